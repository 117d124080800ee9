"""Users' rewards: found by path, given what they ask for, awaited."""

import asyncio
import functools
import sys
import textwrap

import pytest
import torch

from rlcm.errors import ConfigError, MissingFileError
from rlcm.rewards.imported import load_callable
from rlcm.rewards.user import bind_arguments, call_reward, check_signature, form_of


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent(
            """
            COUNT = 0
            NUMBER = 3

            def blueness(images, prompts, scale=1.0):
                return scale * images[:, 2].mean((1, 2))

            class Judge:
                def __init__(self, strict):
                    if strict not in (True, False):
                        raise ValueError("strict must be true or false")
                    self.strict = strict

                def __call__(self, images, prompts):
                    return [float(self.strict)] * len(prompts)

                class Inner:
                    @staticmethod
                    def score(images, prompts):
                        return [1.0] * len(prompts)

            class Mute:
                pass
            """
        )
    )
    return path


def test_function_in_a_file(file, images, prompts):
    reward = load_callable(f"{file}:blueness")
    torch.testing.assert_close(call_reward(reward, images, prompts), images[:, 2].mean((1, 2)))
    assert load_callable(f"{file}:blueness") is reward, "a file is imported once"


def test_function_in_a_module(file, monkeypatch, images, prompts):
    monkeypatch.syspath_prepend(file.parent)
    assert load_callable("mine:Judge.Inner.score")(images, prompts) == [1.0] * 5


def test_files_of_one_name_do_not_replace_each_other(file, tmp_path, images, prompts):
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text("def blueness(images, prompts):\n    return [7.0] * len(prompts)\n")
    assert load_callable(f"{other}:blueness")(images, prompts) == [7.0] * 5
    assert load_callable(f"{file}:blueness")(images, prompts).shape == (5,)


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("blueness", ConfigError, "not an import path"),
        ("{file}:bluness", ConfigError, "did you mean 'blueness'"),
        ("{file}:zzz", ConfigError, "it has Judge, Mute, blueness"),
        ("{file}:NUMBER", ConfigError, "is a int, not a function"),
        ("{folder}/min.py:blueness", MissingFileError, "did you mean 'mine.py'"),
        ("no_such_module_here:f", ConfigError, "no module 'no_such_module_here'"),
        ("rlcm.rewards.jpg:Compressibility", ConfigError, "no module 'rlcm.rewards.jpg'"),
    ],
)
def test_wrong_paths_say_what_there_is(file, path, error, text):
    with pytest.raises(error, match=text):
        load_callable(path.format(file=file, folder=file.parent))


def test_a_file_in_the_working_folder_that_is_named_without_its_ending_is_told_with_it(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError, match=r"there is no module 'mine' .*did you mean 'mine\.py'\?"):
        load_callable("mine:blueness")


@pytest.mark.parametrize(
    ("source", "text"),
    [("import no_such_thing_at_all", "no_such_thing_at_all"), ("def f(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError")],
)
def test_files_that_cannot_be_imported(tmp_path, source, text):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match=text):
        load_callable(f"{path}:f")


def test_arguments_reach_functions_and_classes(file, images, prompts):
    scaled = bind_arguments("b", load_callable(f"{file}:blueness"), {"scale": 2.0})
    torch.testing.assert_close(call_reward(scaled, images, prompts), 2 * images[:, 2].mean((1, 2)))
    judge = bind_arguments("j", load_callable(f"{file}:Judge"), {"strict": True})
    assert call_reward(judge, images, prompts) == [1.0] * 5


def test_a_function_of_the_images_alone_may_be_named(tmp_path, images, prompts):
    (tmp_path / "one.py").write_text(
        "def plain(images): return images.mean((1, 2, 3))\n"
        "def scaled(images, scale=2.0): return scale * plain(images)\n"
        "def keyword(images, *, scale): return scale * plain(images)\n"
        "def told(images, metadata): return plain(images)\n"
    )
    mean = images.mean((1, 2, 3))
    for name, args, expected in (("plain", {}, mean), ("scaled", {"scale": 3}, 3 * mean), ("keyword", {"scale": 3}, 3 * mean),
                                 ("told", {}, mean)):  # fmt: skip
        reward = bind_arguments("r", load_callable(f"{tmp_path / 'one.py'}:{name}"), args)
        torch.testing.assert_close(call_reward(reward, images, prompts), expected)
    with pytest.raises(ConfigError, match="missing a required argument: 'scale'"):
        bind_arguments("r", load_callable(f"{tmp_path / 'one.py'}:keyword"), {})


@pytest.mark.parametrize(
    "source",
    ["def f(): return lambda images, prompts: 0", "def f(**kw): return 0", "def f(prompts, images): return 0",
     "class S:\n    def f(self, images): return 0\nf = S.f"],
)  # fmt: skip
def test_what_takes_no_pictures_is_told_how_to_be_written(tmp_path, source):
    (tmp_path / "f.py").write_text(source)
    with pytest.raises(
        ConfigError, match=r"rewards\.r: f\(.*\) cannot be called with pictures and prompts; write it as def f\("
    ):
        bind_arguments("r", load_callable(f"{tmp_path / 'f.py'}:f"), {})


@pytest.mark.parametrize("parameters", ["self", "self, prompts, images", "self, a, b, c, d"])
def test_an_object_that_takes_no_pictures_is_told_so(tmp_path, parameters):
    (tmp_path / "f.py").write_text(f"class F:\n    def __call__({parameters}): return 0\n")
    with pytest.raises(
        ConfigError, match=r"rewards\.r: F\(.*\) cannot be called .*; write it as def __call__\(self, images, prompts\)"
    ):
        bind_arguments("r", load_callable(f"{tmp_path / 'f.py'}:F"), {})


def test_metadata_may_be_positional_alone(tmp_path, images, prompts):
    (tmp_path / "f.py").write_text(
        "class F:\n    def __call__(self, images, prompts, metadata, /): return [float(entry['n']) for entry in metadata]\n"
        "def f(images, prompts, metadata, /): return [float(entry['n']) for entry in metadata]\n"
    )
    for name in "Ff":
        reward = bind_arguments("r", load_callable(f"{tmp_path / 'f.py'}:{name}"), {})
        assert call_reward(reward, images, prompts, [{"n": n} for n in range(5)]) == [0, 1, 2, 3, 4]


def test_bound_functions_stay_differentiable(images):
    def mean(images, prompts, power):
        return (images**power).mean((1, 2, 3))

    mean.differentiable = True
    assert bind_arguments("m", mean, {"power": 2}).differentiable


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("blueness", {"scael": 1}, "it takes scale"),
        ("Judge", {}, "strict"),
        ("Judge", {"strict": 3}, "must be true or false"),
        ("Mute", {}, "no __call__"),
    ],
)
def test_wrong_arguments_are_named(file, name, args, text):
    with pytest.raises(ConfigError, match=text):
        bind_arguments("mine", load_callable(f"{file}:{name}"), args)


def three(images, prompts, extra):
    return [entry.get("n", 0) for entry in extra]


def named(images, prompts, *, metadata):
    return [entry.get("n", 0) for entry in metadata]


def positional_only(images, prompts, metadata, /):
    return [entry.get("n", 0) for entry in metadata]


@pytest.mark.parametrize("reward", [three, named, positional_only, functools.partial(three)])
def test_metadata_is_passed_on(reward, images, prompts):
    assert call_reward(reward, images, prompts, [{"n": i} for i in range(5)]) == [0, 1, 2, 3, 4]
    assert call_reward(reward, images, prompts) == [0] * 5


def test_a_default_is_not_taken_for_metadata():
    assert form_of(lambda images, prompts, scale=2.0: None).metadata == "no"
    assert form_of(lambda images, prompts, *rest: None).metadata == "no"
    assert form_of(lambda images, prompts, metadata=None: None).metadata == "named"


@pytest.mark.parametrize(
    ("source", "args", "expected"),
    [
        ("def f(images, invert=False): return [2.0 if invert else 1.0] * len(images)", {}, 1.0),
        ("def f(images, invert=False): return [2.0 if invert else 1.0] * len(images)", {"invert": True}, 2.0),
        ("def f(images, scale=2.0, metadata=None): return [scale * len(metadata)] * len(images)", {}, 10.0),
        ("class f:\n    def __call__(self, images, negate=False): return [-1.0 if negate else 1.0] * len(images)", {}, 1.0),
        ("def f(images, prompts=None): return [float(len(prompts))] * len(images)", {}, 5.0),
        ("def f(images, texts=()): return [float(len(texts))] * len(images)", {}, 5.0),
        ("def f(images, p=None): return [float(len(p))] * len(images)", {}, 5.0),
        ("def f(images, *, prompts=None): return [float(len(prompts))] * len(images)", {}, 5.0),
        ("def f(images, *, prompts): return [float(len(prompts))] * len(images)", {}, 5.0),
        ("def f(images, scale=1.0, prompts=()): return [scale * len(prompts)] * len(images)", {"scale": 2}, 10.0),
        ("def f(images, metadata, prompts): return [float(len(metadata + prompts))] * len(images)", {}, 10.0),
        ("def f(*given): return [float(len(given))] * len(given[0])", {}, 2.0),
        ("def f(images, p=''): return [float(len(p))] * len(images)", {}, 5.0),
        ("def f(images, size=(1, 2), *rest): return [float(len(size))] * len(images)", {}, 2.0),
        ("def f(images, scale=1.0, texts=None): return [scale * len(texts)] * len(images)", {}, 5.0),
        ("def f(images, *, captions): return [float(len(captions))] * len(images)", {}, 5.0),
        (
            "import torch\nclass f(torch.nn.Module):\n    def forward(self, images, invert=False): return [float(invert)] * 5",
            {},
            0.0,
        ),
        ("import torch\nclass f(torch.nn.Module):\n    def forward(self, images): return [1.0] * 5", {}, 1.0),
        ("import torch\n@torch.no_grad()\ndef f(images, scale): return [scale] * 5", {"scale": 2.0}, 2.0),
        (
            "import torch\n@torch.no_grad()\ndef f(images, prompts, scale): return [scale * len(prompts)] * 5",
            {"scale": 2.0},
            10.0,
        ),
    ],
)
def test_every_parameter_gets_what_is_meant_for_it(tmp_path, images, prompts, source, args, expected):
    """An option with a default never gets the prompts, and `prompts` does wherever it stands."""
    (tmp_path / "f.py").write_text(source)
    made = load_callable(f"{tmp_path / 'f.py'}:f")
    assert call_reward(bind_arguments("r", made, args), images, prompts) == [expected] * 5
    if not args:
        passed = made() if isinstance(made, type) else made
        check_signature(passed)
        assert call_reward(passed, images, prompts) == [expected] * 5


def test_what_a_partial_holds_stays(images):
    def f(images, scale=1.0, prompts=(), metadata=()):
        return [scale * (len(prompts) + len(metadata))] * len(images)

    held = functools.partial(f, prompts=["mine"], metadata=["m"])
    held.differentiable = True
    assert call_reward(bind_arguments("r", held, {"scale": 2.0}), images, ["a"] * 5) == [4.0] * 5


@pytest.mark.parametrize(
    ("source", "args", "known"),
    [
        ("def f(images, invert=False): return 0", {"inver": True}, "it takes invert"),
        ("def f(images): return 0", {"x": 1}, "it takes no arguments"),
        ("def f(images, *, scale=1): return 0", {"scal": 1}, "it takes scale"),
        ("def f(images, scale, prompts): return 0", {"scal": 3}, "it takes scale"),
    ],
)
def test_an_argument_that_is_not_there_is_answered_with_those_that_are(tmp_path, source, args, known):
    (tmp_path / "f.py").write_text(source)
    with pytest.raises(ConfigError, match=rf"rewards\.r\.args=.* does not fit .*{known}\.$"):
        bind_arguments("r", load_callable(f"{tmp_path / 'f.py'}:f"), args)


async def slow(images, prompts):
    await asyncio.sleep(0.001)
    return [2.0] * len(prompts)


class AsyncReward:
    """Keeps something that belongs to the event loop between calls, as an HTTP session does."""

    def __init__(self):
        self.lock = None

    async def __call__(self, images, prompts):
        self.lock = self.lock or asyncio.Lock()
        async with self.lock:
            await asyncio.sleep(0)
        return [3.0] * len(prompts)


def test_coroutines_are_awaited_in_one_loop(images, prompts):
    reward = AsyncReward()
    assert call_reward(slow, images, prompts) == [2.0] * 5
    assert call_reward(reward, images, prompts) == call_reward(reward, images, prompts) == [3.0] * 5


def test_coroutines_are_awaited_inside_a_running_loop(images, prompts):
    async def notebook():
        return call_reward(slow, images, prompts)

    assert asyncio.run(notebook()) == [2.0] * 5


def test_a_file_that_was_edited_is_read_again_and_its_neighbours_too(tmp_path, monkeypatch):
    file, beside = tmp_path / "edited_reward.py", tmp_path / "edited_helper.py"
    beside.write_text("FACTOR = 1\n")
    file.write_text("import edited_helper\ndef f(images, prompts): return edited_helper.FACTOR\n")
    first = load_callable(f"{file}:f")
    assert first(None, None) == 1
    assert load_callable(f"{file}:f") is first, "what has not changed is not imported again"
    beside.write_text("FACTOR = 2\n")  # in the same second, of the same length
    assert load_callable(f"{file}:f")(None, None) == 2
    file.write_text(
        "import edited_helper\ndef f(images, prompts): return 9 * edited_helper.FACTOR\ndef g(images, prompts): ...\n"
    )
    assert load_callable(f"{file}:f")(None, None) == 18
    assert load_callable(f"{file}:g").__name__ == "g"
    assert first(None, None) == 1, "whoever has it keeps the old one"
    monkeypatch.syspath_prepend(tmp_path)
    assert load_callable("edited_reward:f")(None, None) == 18
    file.write_text(file.read_text().replace("9", "8"))
    assert load_callable("edited_reward:f")(None, None) == 16


def test_a_file_that_was_mended_after_an_error_is_read_again(tmp_path):
    file = tmp_path / "broken_reward.py"
    file.write_text("def f(images, prompts):\n    raise ZeroDivisionError\n")
    with pytest.raises(ZeroDivisionError):
        load_callable(f"{file}:f")(None, None)
    file.write_text("def f(images, prompts):\n    return 1\n")
    assert load_callable(f"{file}:f")(None, None) == 1
