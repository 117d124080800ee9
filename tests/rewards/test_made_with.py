"""What a reward that is a Python object was made with: told apart by values, weights and helpers; not by what it remembers."""

import argparse
import dataclasses
import enum
import functools
import json
import re
import subprocess
import sys
import weakref
from collections import deque
from fractions import Fraction
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from rlcm.rewards.image import Brightness, Sharpness
from rlcm.rewards.imported import load_callable
from rlcm.rewards.made_with import made_with

LEVEL, WEIGHTS = 1.0, torch.ones(3)


def scored(images, prompts, scale=1):
    return images.mean((1, 2, 3)) * scale


class Keeps:
    def __init__(self, scale, rest=()):
        self.scale, self._rest, self.calls = scale, rest, 0

    def __call__(self, images, prompts):
        self.calls += 1
        return images.mean((1, 2, 3))

    def scored(self, images, prompts):
        return self(images, prompts)


def inner(scale, seen):
    def reward(images, prompts):
        seen.append(len(prompts))
        return images.mean((1, 2, 3)) * scale

    return reward


@pytest.mark.parametrize(
    "make",
    [
        lambda scale: functools.partial(scored, scale=scale),
        lambda scale: functools.partial(functools.partial(scored, scale=3), None, scale),
        Keeps,
        lambda scale: Keeps(1, rest=(scale, "x")),
        lambda scale: Keeps(scale).scored,
        lambda scale: inner(scale, []),
        lambda scale: Sharpness() if scale == 1 else Brightness(target=scale),
    ],
)
def test_what_a_reward_was_made_with_is_told_apart(make):
    assert made_with(make(1.0)) == made_with(make(1.0)) != made_with(make(0.5))


def test_what_a_reward_counts_while_it_works_is_not_what_it_was_made_with():
    images = torch.zeros(2, 3, 4, 4)
    for reward in (Keeps(2.0), inner(2.0, [])):
        before = made_with(reward)
        reward(images, ["a", "b"])
        assert made_with(reward) == before
    assert made_with(len) == (None, None)
    json.dumps([made_with(Keeps(torch.ones(2))), made_with(functools.partial(scored, scale=object()))])


class Network(torch.nn.Module):
    def __init__(self, value=1.0):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([value, 0.0, 0.0]))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, images, prompts):
        self.mean += 1
        return images.mean((2, 3)) @ self.w


class Slots:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3)) * self.scale


@dataclasses.dataclass
class Taste:
    like: float
    words: list


class Mode(enum.Enum):
    HALF, WHOLE = 0.5, 1.0


def named(images, prompts):
    return images.mean((1, 2, 3)) * LEVEL + images.mean((2, 3)) @ WEIGHTS


class Named:
    def __call__(self, images, prompts):
        return [LEVEL for _ in prompts]


def with_level(value, reward):
    """Return what `made_with` says of a reward while a value of its program is another."""
    before = globals()["LEVEL"]
    globals()["LEVEL"] = value
    try:
        return made_with(reward)
    finally:
        globals()["LEVEL"] = before


def other_keeping(value):
    """Return a function that has another function from outside, which has a value from outside."""
    return inner(functools.partial(inner(value, [])), [])


@pytest.mark.parametrize(
    "make",
    [
        Network,
        Slots,
        lambda v: Keeps(Network(v)),
        lambda v: Keeps([v, 2]),
        lambda v: Keeps({"a": {"b": v}}),
        lambda v: Keeps({v, 2}),
        lambda v: Keeps(torch.tensor([v])),
        lambda v: Keeps(torch.full((300, 300), v, dtype=torch.bfloat16)),
        lambda v: Keeps(np.array([v])),
        lambda v: Keeps(np.array(["a", v], dtype=object)),
        lambda v: Keeps(Taste(v, [])),
        lambda v: Keeps(Taste(1.0, [v])),
        lambda v: Keeps(Mode(v)),
        lambda v: Keeps(Keeps(v)),
        lambda v: Keeps(np.float32(v)),
        lambda v: Keeps(complex(v)),
        lambda v: Keeps(Path(str(v))),
        lambda v: Keeps(bytes([int(2 * v)])),
        lambda v: Keeps(Image.new("RGB", (4, 4), (int(v * 100), 0, 0))),
        lambda v: functools.partial(scored, scale=torch.tensor(v)),
        lambda v: functools.partial(scored, scale=[v]),
        lambda v: inner(np.array([v]), []),
        lambda v: inner(Keeps(v), []),
        lambda v: inner(Keeps(v).scored, []),
        lambda v: Keeps(re.compile("x" * 300 + str(v))),
        lambda v: Keeps(np.longdouble(v)),
        lambda v: Keeps(Fraction(v)),
        other_keeping,
    ],
)
def test_values_weights_and_objects_of_a_reward_are_told_apart(make):
    assert made_with(make(1.0)) == made_with(make(1.0)) != made_with(make(0.5))
    json.dumps(made_with(make(1.0)))


@pytest.mark.parametrize("make", [lambda: FunctionType(named.__code__, globals()), Named])
def test_what_a_reward_names_of_its_program_counts(make):
    assert with_level(1.0, make()) == with_level(1.0, make()) != with_level(0.5, make())


def test_helpers_of_the_program_count_by_their_text_and_those_of_libraries_by_their_names(monkeypatch):
    def helper(images):
        return images.mean((1, 2, 3))

    def other(images):
        return images.amax((1, 2, 3))

    other.__qualname__ = helper.__qualname__
    assert made_with(inner(helper, [])) != made_with(inner(other, []))
    assert made_with(inner(torch.nn.functional.relu, [])).rest[0]["scale"] == "relu"


@pytest.mark.parametrize(
    "text",
    [
        "def help(images):\n    return images * LEVEL\n",
        "def help(images):\n    return images * TABLE['a'][0]\n",
        "def help(images):\n    return inner(images)\n\ndef inner(images):\n    return images * LEVEL\n",
        "class Helper:\n    @staticmethod\n    def of(images):\n        return images * LEVEL\n\n"
        "def help(images):\n    return Helper.of(images)\n",
    ],
)
@pytest.mark.parametrize("way", ["from", "module", "base", "layer"])
def test_what_a_reward_uses_of_the_users_own_modules_counts(tmp_path, text, way):
    ways = {
        "from": "from {0} import help\n\ndef reward(images, prompts):\n    return help(images)\n",
        "module": "import {0}\n\ndef reward(images, prompts):\n    return {0}.help(images)\n",
        "base": "from {0} import help\n\nclass Base:\n    def __call__(self, images, prompts):\n        return help(images)\n\n"
        "class Reward(Base):\n    pass\n\nreward = Reward()\n",
        "layer": "import torch\nfrom {0} import help\n\nclass Layer(torch.nn.Module):\n    def forward(self, x):\n"
        "        return help(x)\n\nreward = torch.nn.Sequential(Layer())\n",
    }

    def of(value, name):
        place = tmp_path / name
        place.mkdir()
        (place / "near_by.py").write_text(f"LEVEL, TABLE = {value}, {{'a': [{value}]}}\n\n{text}")
        (place / "mine.py").write_text(ways[way].format("near_by"))
        return made_with(load_callable(f"{place / 'mine.py'}:reward"))

    assert json.dumps(of(1.0, "a")) == json.dumps(of(1.0, "b")) != json.dumps(of(0.5, "c"))


def test_what_comes_in_while_it_works_is_not_what_it_was_made_with():
    images, history, lazy = torch.zeros(2, 3, 4, 4), {}, torch.nn.Sequential()

    def remembers(images, prompts):
        history[len(history)] = prompts
        return scored(images, prompts)

    for reward in (Network(), remembers):
        before = made_with(reward)
        reward(images, ["a", "b"])
        assert made_with(reward) == before
    before = made_with(lazy)
    lazy.append(torch.nn.Linear(2, 2))
    assert made_with(lazy) == before, "it was loaded at the first call"
    assert made_with(torch.nn.Sequential(torch.nn.Linear(2, 2))) != before
    network = Network()
    before = made_with(network)
    network.w.data += 1
    assert made_with(network) != before, "weights are not what it remembers"


def counting(start):
    calls = start

    def reward(images, prompts):
        nonlocal calls
        calls += 1
        return scored(images, prompts)

    return reward


def counts_outside(images, prompts):
    global COUNTED
    COUNTED += 1
    return helps(images, prompts)


def helps(images, prompts):
    BUFFER[:] += 1
    SEEN.append(len(prompts))
    return scored(images, prompts)


class CountsUp(Keeps):
    def __call__(self, images, prompts):
        self.scale += 1
        return scored(images, prompts)


COUNTED, BUFFER, SEEN = 0, np.zeros(2), []


@pytest.mark.parametrize(
    "reward", [counting(0), counts_outside, CountsUp(0), Keeps(torch.zeros(2)), Keeps({}), Keeps([Keeps([])])]
)
def test_counters_means_and_caches_in_one_process_are_what_it_remembers(reward):
    before = made_with(reward)
    for _ in range(2):
        reward(torch.zeros(2, 3, 4, 4), ["a", "b"])
        if isinstance(reward, Keeps) and isinstance(reward.scale, torch.Tensor):
            reward.scale += 1
        elif isinstance(reward, Keeps) and isinstance(reward.scale, dict):
            reward.scale["a"] = 1
        elif isinstance(reward, Keeps) and isinstance(reward.scale, list):
            reward.scale[0].scale.append(1)
        assert made_with(reward) == before
    assert made_with(CountsUp(0)) != made_with(CountsUp(1)), "what it began with counts"


def times(factor):
    def decorated(function):
        @functools.wraps(function)
        def wrapper(images, prompts):
            return function(images, prompts) * factor

        return wrapper

    return decorated


@functools.lru_cache
def cached(value):
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda v: lambda images, prompts, k=v: images.mean((1, 2, 3)) * k,
        lambda v: times(v)(scored),
        lambda v: times(2.0)(times(v)(scored)),
        lambda v: Keeps(np.full(60_000, v, np.float32)),
        lambda v: Keeps(torch.full((700, 300), v).T),
        lambda v: Keeps({scored: v}),
        lambda v: type("Own", (Keeps,), {"factor": v, "__module__": __name__})(1),
    ],
)
def test_defaults_decorators_large_arrays_and_class_values_are_told_apart(make):
    assert made_with(make(1.1)) == made_with(make(1.1)) != made_with(make(1.2))


class Passes(Keeps):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Sets:
    def __init__(self, **values):
        for name, value in values.items():
            setattr(self, name, value)


class Hides:
    def __init__(self, scale):
        self.__scale = scale

    @property
    def scale(self):
        return self.__scale


class Pair(NamedTuple):
    scale: float

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3)) * self.scale


@pytest.mark.parametrize(
    "make",
    [
        Passes,
        lambda v: Sets(scale=v),
        Hides,
        Pair,
        lambda v: Keeps(SimpleNamespace(scale=v)),
        lambda v: Keeps(argparse.Namespace(scale=v)),
        lambda v: Keeps(torch.eye(3).mul(v).to_sparse()),
        lambda v: Keeps(torch.nn.Dropout(v / 10)),
        lambda v: torch.nn.Sequential(torch.nn.ReLU() if v == 1 else torch.nn.Tanh()),
        lambda v: Keeps(slice(0, v)),
        lambda v: Keeps(deque([v])),
        lambda v: Keeps(bytearray([int(2 * v)])),
    ],
)
def test_ways_to_keep_an_argument_are_told_apart(make):
    assert made_with(make(1.0)) == made_with(make(1.0)) != made_with(make(0.5))
    json.dumps(made_with(make(1.0)))


def device(images, prompts):
    return [cached(0) for _ in prompts] if images.LEVEL else images.device


def test_attributes_are_no_names_of_the_module_and_a_device_has_no_number():
    def made():
        return FunctionType(device.__code__, globals())

    assert with_level(1.0, made()) == with_level(0.5, made()), "images.LEVEL is not LEVEL"
    assert made_with(Keeps("cuda:0")) == made_with(Keeps("cuda:1")) != made_with(Keeps("cpu"))
    assert made_with(Keeps(torch.device("cuda:0"))) == made_with(Keeps(torch.device("cuda:1")))


def test_it_is_the_same_in_another_process_and_takes_no_time_where_functions_call_one_another(tmp_path):
    calls = "".join(f"def f{i}(x):\n    return {' + '.join(f'f{j}(x)' for j in range(9) if j != i)}\n\n" for i in range(9))
    (tmp_path / "mine.py").write_text(
        f"import numpy as np\n\n{calls}def g(x):\n    return KNOWN\n\nKNOWN = [g, f3]\n"
        "TABLE = {f0: 1, f1: {'a', 'b', 'c'}, object(): 2}\nROWS = np.array([f2, object()])\n\n"
        "def reward(images, prompts):\n    return f0(images), TABLE, ROWS, KNOWN\n"
    )
    script = (
        "from rlcm.rewards.made_with import made_with\nfrom rlcm.rewards.imported import load_callable\n"
        f"print(made_with(load_callable({str(tmp_path / 'mine.py') + ':reward'!r})))"
    )
    told = {subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(told) == 1
    assert len(told.pop()) < 10_000


class Raising:
    def __getattr__(self, name):
        raise RuntimeError(name)

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


def test_strange_objects_are_no_reason_to_fail():
    picture = Image.new("RGB", (2, 2))
    picture.close()
    lazy, gone = torch.nn.LazyLinear(1), weakref.proxy(Keeps(1))
    held = [
        Raising(),
        lazy,
        gone,
        picture,
        10**5000,
        torch.nn.Module.__new__(torch.nn.Module),
        type("Has", (), {"a": Raising()})(),
    ]
    for one in [*held, *map(Keeps, held)]:
        json.dumps(made_with(one))


def test_circles_and_what_cannot_be_read_have_an_end():
    circle: list = [1]
    circle.append(circle)
    held = Keeps(circle)
    held.scale.append(held)
    for reward in (held, Keeps(torch.ones(2, device="meta")), Keeps(torch.ones(2, 2).to_sparse()), Keeps(object())):
        json.dumps(made_with(reward))
    assert made_with(Unhashable([1])) != made_with(Unhashable([2]))


class Unhashable(Keeps):
    __hash__ = None
