"""User code shares neither its pictures nor its ends with the run: one boundary takes what it raises, changes, or never returns."""

import asyncio
import contextlib
import functools
import io
import locale
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from rlcm.errors import ConfigError, RewardError
from rlcm.rewards import RewardMix, RewardPart, boundary, build_rewards
from rlcm.rewards.boundary import Beside, UserCode, UserCodeError, result
from rlcm.rewards.imported import load_callable
from rlcm.rewards.of_thread import THREAD_TRAITS
from rlcm.rewards.settings import RewardSettings
from rlcm.rewards.surroundings import TRAITS, Surroundings
from rlcm.rewards.user import bind_arguments


class _Own(BaseException):
    def __str__(self):
        raise SystemExit(3)


ENDS = [
    *(SystemExit(0), SystemExit(1), SystemExit(), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()),
    *(StopIteration(), StopAsyncIteration(), RecursionError("deep"), MemoryError(), TimeoutError(), _Own()),
]


def raising(error):
    def reward(images, prompts):
        raise error

    return reward


def raising_async(error):
    async def reward(images, prompts):
        await asyncio.sleep(0)
        raise error

    return reward


def raising_in_a_task(error):
    async def reward(images, prompts):
        async def task():
            raise error

        return await asyncio.create_task(task())

    return reward


def raising_on_reading(error):
    class Answer:
        def __iter__(self):
            raise error

    return lambda images, prompts: Answer()


def mean(images, prompts):
    return images.mean((1, 2, 3))


async def mean_async(images, prompts):
    await asyncio.sleep(0)
    return images.mean((1, 2, 3))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Warnings are told once a process; what a test gave up is not the next one's."""
    monkeypatch.setattr(boundary, "_told", set())
    monkeypatch.setattr(boundary, "_was_given_up", threading.Event())


@pytest.mark.parametrize("how", [raising, raising_async, raising_in_a_task])
@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_whatever_a_reward_raises_is_the_rewards_error_with_its_prompts(images, prompts, how, error):
    if how is not raising and isinstance(error, (StopIteration, GeneratorExit)):
        pytest.skip("Python itself makes another error of it in a coroutine")
    with pytest.raises(RewardError, match=f"reward mine raised {type(error).__name__}.*5 images, of 'a cat', 'a dog'"):
        RewardMix([("mine", how(error))])(images, prompts)
    assert RewardMix([("mine", mean_async)])(images, prompts).valid.all(), "the next async reward finds a loop that goes on"


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_what_an_answer_raises_while_it_is_read(images, prompts, error):
    if isinstance(error, StopIteration):
        pytest.skip("an empty answer")
    with pytest.raises(RewardError, match="reward mine"):
        RewardMix([("mine", raising_on_reading(error))])(images, prompts)


def test_an_exit_can_be_skipped_like_any_failure(images, prompts):
    raw = RewardMix([RewardPart("mine", raising(SystemExit(0)), on_failure="skip"), RewardPart("good", mean)]).score(
        images, prompts
    )
    assert not raw.valid.any()
    assert "SystemExit: 0" in raw.failures[0]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
        ("def f(*_): f()\nf()", "RecursionError"),
        ("import time; time.sleep(60)", "not done within 0.2 s"),
        ("def f(:", "SyntaxError"),
        ("def __getattr__(name): raise SystemExit(name)", "SystemExit: f"),
    ],
)
def test_whatever_an_import_does_is_an_error_of_the_file(tmp_path, source, text):
    path = tmp_path / "mine.py"
    path.write_text(source)
    limit = 0.2 if "sleep" in source else 60
    for _ in range(2):  # and half a module is not left behind for the next
        with pytest.raises(ConfigError, match=f"mine.py could not be imported: it .*{text}") as found:
            load_callable(f"{path}:f", limit)
        assert "imported.py" not in str(found.value), "no place in the product is named"


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), OSError("no weights"), _Own()], ids=repr)
def test_whatever_a_constructor_does_is_an_error_of_the_reward(error):
    class Mine:
        def __init__(self):
            raise error

    with pytest.raises(ConfigError, match=f"rewards.mine.args={{}}: Mine raised {type(error).__name__}"):
        bind_arguments("mine", Mine, {})


def test_a_constructor_that_never_returns(tmp_path):
    (tmp_path / "mine.py").write_text("import time\nclass Mine:\n    def __init__(self): time.sleep(60)\n    __call__ = None\n")
    with pytest.raises(ConfigError, match=r"Mine was not done within 0.2 s.*timeout_seconds: 0.4"):
        build_rewards([RewardSettings(name=f"{tmp_path / 'mine.py'}:Mine", timeout_seconds=0.2)])


def test_what_a_reward_says_of_itself_is_user_code_too():
    class Mine:
        @property
        def display(self):
            raise SystemExit(0)

        differentiable = display

        def __call__(self, images, prompts):
            return [0.0] * len(prompts)

    mix = RewardMix([("mine", Mine())])
    for ask in (lambda: mix.display, lambda: mix.is_differentiable):
        with pytest.raises(ConfigError, match=r"reward mine: its attribute (display|differentiable) raised SystemExit: 0"):
            ask()


def test_a_class_without_a_signature_is_no_reward():
    with pytest.raises(ConfigError, match="no __call__"):
        build_rewards([RewardSettings(name="builtins:dict")])


def vandal(images, prompts, metadata):
    images.mul_(255)
    images.numpy()[:] += 1
    prompts[:] = ["worse"] * len(prompts)
    for entry in metadata:
        entry["colours"].append("black")
        entry["new"] = 1
    return [0.0] * 5


def test_what_a_reward_writes_is_seen_by_nobody(images, prompts):
    seen = []

    def next_one(images, prompts, metadata):
        seen.append((images.clone(), list(prompts), [dict(entry) for entry in metadata]))
        return images.mean((1, 2, 3))

    before, texts = images.clone(), list(prompts)
    metadata = [{"colours": ["red"]} for _ in prompts]
    RewardMix([("vandal", vandal), ("next", next_one)])(images, prompts, metadata)
    assert torch.equal(images, before)
    assert prompts == texts
    assert metadata == [{"colours": ["red"]}] * 5
    assert torch.equal(seen[0][0], before)
    assert seen[0][1:] == (texts, metadata)


def test_the_gradient_flows_through_the_rewards_own_copy(images, prompts):
    def writing(images, prompts):
        images[:, 0] = 0
        return images.square().mean((1, 2, 3))

    writing.differentiable = True
    images.requires_grad_()
    before = images.detach().clone()
    RewardMix([("writing", writing)]).differentiable(images, prompts).total.sum().backward()
    assert torch.equal(images.detach(), before)
    expected = 2 * before / before[0].numel()
    expected[:, 0] = 0
    torch.testing.assert_close(images.grad, expected)


@pytest.mark.parametrize("kind", ["tensor", "array", "view of the images"])
def test_an_answer_that_the_reward_changes_later_stays_what_it_was(images, prompts, kind):
    kept = []

    def reward(images, prompts):
        own = {"tensor": torch.ones(5), "array": np.ones(5, np.float32), "view of the images": images[:, 0, 0, 0]}[kind]
        own[:] = 1
        kept.append(own)
        return own

    reward.differentiable = True
    mix = RewardMix([("mine", reward)])
    raw, found = mix.score(images, prompts), mix.differentiable(images, prompts)
    for own in kept:
        own[:] = 7
    assert raw.parts["mine"].tolist() == found.parts["mine"].tolist() == found.total.tolist() == [1.0] * 5


def every_hook():
    """Register a hook of every kind that all modules run, as somebody does who wants to see a network at work."""
    nothing = lambda *_: None  # noqa: E731
    found = torch.nn.modules.module
    for register in (
        found.register_module_forward_hook,
        found.register_module_forward_pre_hook,
        found.register_module_full_backward_hook,
        found.register_module_full_backward_pre_hook,
        found.register_module_parameter_registration_hook,
        sys.modules["torch.optim.optimizer"].register_optimizer_step_pre_hook,
    ):
        register(nothing)


MEDDLING = {
    "the working folder": lambda: os.chdir("/"),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's number of threads": lambda: torch.set_num_threads(2),
    "torch.use_deterministic_algorithms": lambda: torch.use_deterministic_algorithms(True),
    "torch's precision of matrix products": lambda: torch.set_float32_matmul_precision("medium"),
    "the flags of torch.backends.cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.mkldnn.enabled": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "torch's reduced precision in matrix products": lambda: setattr(
        torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False
    ),
    "torch's kernels of attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "torch's anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "hooks of all of torch's modules or optimisers": lambda: every_hook(),
    "an alarm that would end the process": lambda: [signal.alarm(1000), signal.setitimer(signal.ITIMER_VIRTUAL, 1000)],
    "the locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C"),
    "the default timeout of sockets": lambda: socket.setdefaulttimeout(1.5),
    "sys.stdout": lambda: setattr(sys, "stdout", io.StringIO()),
    "sys.stderr": lambda: setattr(sys, "stderr", io.StringIO()),
    "logging.disable": lambda: logging.disable(logging.CRITICAL),
    "which warnings are errors": lambda: warnings.simplefilter("error"),
    "sys.excepthook": lambda: setattr(sys, "excepthook", None),
    "threading.excepthook": lambda: setattr(threading, "excepthook", None),
    "the umask": lambda: os.umask(0o777),
    "the recursion limit": lambda: sys.setrecursionlimit(500),
}


def test_every_trait_has_a_case():
    assert [trait.name for trait in TRAITS] == list(MEDDLING)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("what", MEDDLING)
def test_the_state_of_the_process_is_put_back_and_the_reward_named_once(images, prompts, caplog, what, is_async):
    def reward(images, prompts):
        MEDDLING[what]()
        return mean(images.float(), prompts).float()

    async def later(images, prompts):
        return reward(images, prompts)

    before = [trait.read() for trait in TRAITS]
    mix = RewardMix([("mine", later if is_async and "threads" not in what else reward)])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            mix(images, prompts)
    assert not [trait.name for trait, was in zip(TRAITS, before, strict=True) if trait.is_harmed(was, trait.read())]
    assert caplog.text.count(f"reward mine changed {what}, on which the whole run depends; it was put back") == 1
    assert not mix.may_run_beside


KEPT = []
"""Modes that are left on as long as somebody holds them."""
MEDDLING_HERE = {
    "torch's autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16).__enter__(),
    "torch's autocast, by its cache": lambda: torch.set_autocast_cache_enabled(False),
    "torch's inference mode": lambda: [KEPT.append(torch.inference_mode()), KEPT[-1].__enter__()],
    "torch's default device": lambda: torch.set_default_device("meta"),
    "NumPy's errstate": lambda: np.seterr(all="raise"),
}


@pytest.mark.parametrize("what", MEDDLING_HERE)
def test_the_state_of_the_runs_own_thread_is_put_back_and_the_code_named(caplog, what):
    before = [trait.read() for trait in THREAD_TRAITS]
    layer = torch.nn.Linear(8, 8)
    right = layer(torch.ones(1, 8))
    with caplog.at_level(logging.WARNING):
        UserCode(f"a callback that meddles with {what}").here(MEDDLING_HERE[what])
    KEPT.clear()
    assert [trait.read() for trait in THREAD_TRAITS] == before
    assert torch.equal(layer(torch.ones(1, 8)), right)
    assert f"{what} changed {what.partition(',')[0]}, on which the whole run depends; it was put back" in caplog.text


def test_what_a_program_has_set_for_its_thread_stays_when_a_callback_changes_it():
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        UserCode("calm").here(lambda: None)
        UserCode("wild").here(lambda: [torch.set_autocast_enabled("cpu", False), torch.set_default_device("cpu")])
        assert torch.is_autocast_enabled("cpu")
        assert torch.empty(1).is_meta
    torch.set_default_device(None)


def test_a_reward_may_leave_another_default_device(images, prompts):
    def reward(images, prompts):
        torch.set_default_device("meta")
        return [0.5] * len(prompts)

    assert RewardMix([("mine", reward)])(images, prompts).total.tolist() == [0.5] * len(prompts)


def test_hooks_of_the_program_itself_stay_and_a_rewards_change_no_model(images, prompts):
    layer, seen = torch.nn.Linear(2, 2), []
    own = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:

        def reward(images, prompts):
            torch.nn.modules.module.register_module_forward_hook(lambda module, given, answer: answer * 0)
            return mean(images, prompts)

        RewardMix([("mine", reward)])(images, prompts)
        assert layer(torch.ones(1, 2)).abs().sum() > 0
        assert seen == [1]
    finally:
        own.remove()
    assert not torch.nn.modules.module._global_forward_hooks


def test_tf32_set_in_the_new_way_is_put_back(images, prompts):
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch has the old way alone")

    def reward(images, prompts):
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        return mean(images, prompts)

    RewardMix([("mine", reward)])(images, prompts)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_change_while_a_file_is_imported_is_put_back(tmp_path, caplog):
    (tmp_path / "mine.py").write_text("import os\nos.chdir('/')\ndef f(images, prompts): return [0.0] * len(prompts)\n")
    before = os.getcwd()
    with caplog.at_level(logging.WARNING):
        load_callable(f"{tmp_path}/mine.py:f")
    assert os.getcwd() == before
    assert "mine.py changed the working folder" in caplog.text


def test_what_belongs_to_a_thread_ends_with_it(images, prompts):
    def reward(images, prompts):
        torch.set_grad_enabled(True)
        torch.inference_mode().__enter__()
        torch.set_default_device("meta")
        np.seterr(all="raise")
        return torch.ones(5, device="cpu")

    def next_one(images, prompts):
        assert not torch.is_grad_enabled(), "scores carry no gradient"
        assert not torch.is_inference_mode_enabled()
        assert torch.get_default_device().type == "cpu"
        assert np.geterr()["divide"] == "warn"
        return torch.ones(len(images))

    mix = RewardMix([("mine", reward), ("next", next_one)])
    mix(images, prompts)
    assert mix.may_run_beside, "nothing that others see was changed"


def test_global_generators_go_on_between_calls(images, prompts):
    """A reward that draws random numbers must not draw the same ones in every call."""
    mix = RewardMix([("mine", lambda images, prompts: torch.rand(5))])
    assert not torch.equal(mix.score(images, prompts).parts["mine"], mix.score(images, prompts).parts["mine"])


def test_a_quiet_reward_and_quieter_warnings_are_left_alone(images, prompts, caplog):
    def reward(images, prompts):
        warnings.filterwarnings("ignore", message="of this test alone")
        print("a lot", file=io.StringIO())
        return mean(images, prompts)

    with warnings.catch_warnings():
        mix = RewardMix([("mine", reward)])
        mix(images, prompts)
        assert any("of this test" in str(entry[1].pattern) for entry in warnings.filters if entry[1])
    assert mix.may_run_beside
    assert "changed" not in caplog.text


def test_calls_that_overlap_are_looked_at_when_the_last_has_ended():
    surroundings, before = Surroundings(), os.getcwd()
    first = surroundings.enter("a")
    os.chdir("/")
    second = surroundings.enter("b")
    assert surroundings.leave(first) == ("", [])
    assert os.getcwd() == "/", "the other may be at it, and take it back by itself"
    assert surroundings.leave(second) == ("a or b", ["the working folder"])
    assert surroundings.leave(second) == ("", [])
    assert os.getcwd() == before


def _hang(images, prompts):
    time.sleep(60)


async def _hang_async(images, prompts):
    await asyncio.sleep(60)


async def _block_the_loop(images, prompts):
    time.sleep(5)


def _hang_while_read(images, prompts):
    class Answer:
        def __iter__(self):
            time.sleep(60)

    return Answer()


@pytest.mark.parametrize("reward", [_hang, _hang_async, _block_the_loop, _hang_while_read])
def test_a_reward_that_does_not_return_is_given_up(images, prompts, reward):
    mix = RewardMix([RewardPart("mine", reward, timeout_seconds=0.2)])
    with pytest.raises(RewardError, match=r"reward mine was not done within 0.2 s.*timeout_seconds: 0.4.*'a cat'"):
        mix.score(images, prompts)
    assert RewardMix([("mine", mean_async)])(images, prompts).valid.all(), "async rewards have a loop that goes on"


def test_a_coroutine_that_is_given_up_is_cancelled(images, prompts):
    ended = threading.Event()

    async def reward(images, prompts):
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(RewardError):
        RewardMix([RewardPart("mine", reward, timeout_seconds=0.1)]).score(images, prompts)
    assert ended.wait(5)


def test_a_slow_reward_within_its_limit_is_waited_for(images, prompts):
    def slow(images, prompts):
        time.sleep(0.3)
        return mean(images, prompts)

    assert RewardMix([RewardPart("slow", slow, timeout_seconds=30)])(images, prompts).valid.all()


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_limits_that_are_none(limit):
    with pytest.raises(ValueError, match="timeout_seconds"):
        RewardMix([RewardPart("mine", mean, timeout_seconds=limit)])


@pytest.mark.parametrize("on_failure", ["stop", "skip"])
def test_the_wish_to_stop_ends_a_reward_that_hangs(images, prompts, monkeypatch, on_failure):
    monkeypatch.setattr(boundary, "STOP_SECONDS", 0.1)
    mix = RewardMix([RewardPart("mine", _hang, on_failure=on_failure)])
    mix.stop_wanted = lambda: True
    with pytest.raises(RewardError, match="reward mine was given up: the run is to stop"):
        mix.score(images, prompts)


def test_the_wish_to_stop_leaves_a_reward_the_time_it_always_takes(images, prompts, monkeypatch):
    monkeypatch.setattr(boundary, "STOP_SECONDS", 0.0)

    def slow(images, prompts):
        time.sleep(0.4)
        return mean(images, prompts)

    mix = RewardMix([("slow", slow)])
    mix.score(images, prompts)
    mix.stop_wanted = lambda: True
    assert mix.score(images, prompts).valid.all()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("beside", [False, True])
def test_an_exception_of_a_signal_ends_the_wait_for_a_reward(images, prompts, beside):
    def ring(number, frame):
        raise KeyboardInterrupt

    mix = RewardMix([("mine", _hang)])
    previous = signal.signal(signal.SIGALRM, ring)
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt), Beside() as scoring:
            result(scoring.submit(mix.score, images, prompts)) if beside else mix.score(images, prompts)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - began < 20
    assert boundary.is_left_running()
    while boundary._surroundings._inside:  # what is left alone keeps nobody from putting things back
        time.sleep(0.05)
        assert time.monotonic() - began < 20


def test_all_threads_of_user_code_end_with_the_process(images, prompts):
    daemons = []

    def reward(images, prompts):
        own = threading.Thread(target=lambda: None)
        daemons.append((threading.current_thread().daemon, own.daemon))
        own.start()
        return mean(images, prompts)

    with Beside() as scoring:
        result(scoring.submit(RewardMix([("mine", reward)]).score, images, prompts))
    assert daemons == [(True, True)]


def test_a_module_that_is_being_imported_can_be_named(tmp_path, monkeypatch):
    """As by a script that trains where it is imported: another thread would wait for its import lock for good."""
    (tmp_path / "script_that_trains.py").write_text(
        textwrap.dedent(
            """
            from rlcm.rewards.imported import load_callable
            def f(images, prompts): return [1.0] * len(prompts)
            found = load_callable("script_that_trains:f", 20)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    import script_that_trains

    assert script_that_trains.found is script_that_trains.f


def test_results_come_back_and_errors_of_the_product_stay_themselves():
    code = UserCode("mine")
    assert code.run(lambda: 3) == 3
    with pytest.raises(ConfigError, match="as it was"):
        code.run(functools.partial(_raise, ConfigError("as it was")))
    with pytest.raises(UserCodeError, match=r"raised KeyError: 'lost' \(test_boundary.py, line \d+\)") as caught:
        code.run(functools.partial(_raise, KeyError("lost")))
    assert isinstance(caught.value.__cause__, KeyError)


def _raise(error):
    raise error


def test_a_reward_behind_a_server_is_within_the_boundary(images, prompts):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from rlcm.rewards.served.server import ServerSettings, create_app
    from rlcm.rewards.served.wire import encode_request

    mix = RewardMix([RewardPart("exits", raising(SystemExit(0))), RewardPart("hangs", _hang, timeout_seconds=0.2)])
    with TestClient(create_app(mix, ServerSettings())) as client:
        for label, text in {"exits": "raised SystemExit: 0", "hangs": "not done within 0.2 s"}.items():
            body, kind = encode_request(images, prompts, None, [label], encoding="uint8")
            answer = client.post("/score", content=body, headers={"Content-Type": kind})
            assert answer.status_code == 500
            assert f"reward {label}" in answer.json()["detail"]
            assert text in answer.json()["detail"]


def test_the_process_ends_with_an_error_where_a_reward_hangs_in_a_thread_of_its_own(tmp_path):
    """Python itself would wait for the pool's thread at its end."""
    source = "import asyncio, time\nasync def f(images, prompts):\n    await asyncio.to_thread(time.sleep, 300)\n"
    (tmp_path / "mine.py").write_text(source)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    reward = "{name: mine.py:f, timeout_seconds: 0.3}"
    words = [sys.executable, "-m", "rlcm", "rewards", "try", reward, "--images", "a.png"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "error: reward f was not done within 0.3 s" in ended.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_nothing_is_left_of_the_processes_of_a_reward_that_was_given_up(tmp_path):
    source = """
        import time, multiprocessing

        def f(images, prompts):
            left = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
            left.start()
            open("pid", "w").write(str(left.pid))
            left.join()
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(source))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = [sys.executable, "-m", "rlcm", "rewards", "try", "{name: mine.py:f, timeout_seconds: 2}", "--images", "a.png"]
    (tmp_path / "temporary").mkdir()
    around = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    ended = subprocess.run(words, cwd=tmp_path, env=around, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "was not done within 2 s" in ended.stderr
    assert "f.timeout_seconds = 4)" in ended.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        assert not psutil.wait_procs([psutil.Process(int((tmp_path / "pid").read_text()))], timeout=20)[1]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("left", ["pool.submit(time.sleep, 300)", "fork.Process(target=time.sleep, args=(300,)).start()"])
def test_a_command_ends_although_a_reward_left_work_in_a_pool_or_a_process(tmp_path, left):
    """Python itself would wait for it, after the command has said all that it has to say."""
    source = f"""
        import time, multiprocessing
        from concurrent.futures import ThreadPoolExecutor

        pool, fork = ThreadPoolExecutor(1), multiprocessing.get_context("fork")

        def f(images, prompts):
            {left}
            return images.mean((1, 2, 3))
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(source))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    command = "from rlcm.cli import kinds, main; kinds.GRACE_SECONDS = 0.5; main(prog_name='rlcm')"
    words = [sys.executable, "-c", command, "rewards", "try", "mine.py:f", "--images", "a.png"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0
    assert "a.png" in ended.stdout
    assert "something that a reward left running was not done within 0.5 s of the end; it was left" in ended.stderr
