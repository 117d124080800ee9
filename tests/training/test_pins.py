"""What a run depends on: said, or refused, where it is something else than before the stop."""

import functools
import json
import shlex
import shutil

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from short_runs import metrics_of, resume, trainer
from tiny_runs import PROMPTS, Listener, brightness, lcm_pipeline, tiny_config

from rlcm.errors import ConfigError
from rlcm.report import read_run, write_report
from rlcm.report.templating import plain_text
from rlcm.report.words import headline
from rlcm.rewards import RewardMix
from rlcm.rewards.taste import VotesFile
from rlcm.runs.checkpoint import newest_checkpoint
from rlcm.runs.serialization import save_state
from rlcm.settings import leaves
from rlcm.training import pins
from rlcm.training.config import TrainConfig
from rlcm.training.prompts import load_prompts
from rlcm.training.trainer import Trainer
from rlcm.ui.advice import advice_on

pytestmark = pytest.mark.usefixtures("_no_report")

REWARD = "from helper import scale\n\ndef bright(images, prompts, words=None):\n    return scale * images.mean((1, 2, 3))\n"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with everything that a run names, and the run after its first round of three."""
    place = tmp_path_factory.mktemp("begun")
    lcm_pipeline().save_pretrained(place / "model")
    for name in ("prompts", "looked_at"):
        (place / f"{name}.txt").write_text("\n".join(PROMPTS) + "\n")
    (place / "words.txt").write_text("red\n")
    (place / "reward.py").write_text(REWARD)
    (place / "helper.py").write_text("scale = 2\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        config = tiny_config(
            place / "runs",
            model={"path": str(place / "model")},
            prompts=str(place / "prompts.txt"),
            rewards=[{"name": f"{place / 'reward.py'}:bright", "args": {"words": str(place / "words.txt")}}],
            evaluation={"prompts": str(place / "looked_at.txt"), "images": 2, "grid": 2},
            run={"rounds": 3, "save_every": 1},
        )
        made = Trainer(config)
        made.round()
        made._begin()
        made._evaluate("base")
        made._kept.checkpoint(made._state)
        yield place


@pytest.fixture
def place(begun, tmp_path, monkeypatch):
    """A copy of that folder, in another place."""
    shutil.copytree(begun, tmp_path / "copy")
    file = tmp_path / "copy/runs/run/config.yaml"
    file.write_text(file.read_text().replace(str(begun), str(tmp_path / "copy")))
    return tmp_path / "copy"


def change_bit(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def set_to(**groups):
    """Return what changes settings in the config.yaml of the run, as a person does by hand."""

    def act(place):
        file = place / "runs/run/config.yaml"
        values = yaml.safe_load(file.read_text())
        for group, changes in groups.items():
            values[group] = {**values[group], **changes} if isinstance(changes, dict) else changes
        file.write_text(yaml.safe_dump(values))

    return act


def first_reward(**changes):
    def act(place):
        values = yaml.safe_load((place / "runs/run/config.yaml").read_text())
        set_to(rewards=[{**values["rewards"][0], **changes}])(place)

    return act


def write(name, text):
    return lambda place: (place / name).write_bytes(text.encode())


UNET, ENCODER = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
OTHERS = {
    "prompts": (write("prompts.txt", "a boat\n"), r"prompts \(\S+/prompts\.txt\)"),
    "order of prompts": (write("prompts.txt", "\n".join(PROMPTS[::-1])), r"prompts \("),
    "prompts of evaluations": (write("looked_at.txt", "a boat\n"), r"evaluation\.prompts"),
    "reward": (write("reward.py", REWARD.replace("scale *", "-scale *")), r"rewards\.bright: reward\.py \(\S+/reward\.py\)"),
    "comment in the reward": (write("reward.py", REWARD + "# so\n"), r"rewards\.bright: reward\.py"),
    "module beside the reward": (write("helper.py", "scale = 3\n"), r"rewards\.bright: helper\.py"),
    "file of the reward": (write("words.txt", "blue\n"), r"rewards\.bright\.args\.words"),
    "weight of the reward": (first_reward(weight=-1.0), r"rewards\.bright\.weight: 1\.0 -> -1\.0"),
    "another function": (
        first_reward(name="rlcm.rewards.image:Sharpness", args={}),
        r"rewards\.bright\.name: bright -> Sharpness",
    ),
    "label": (first_reward(label="light"), r'the labels of rewards: \["bright"\] -> \["light"\]'),
    "held-out reward": (set_to(evaluation={"held_out": ["sharpness"]}), r"the labels of evaluation\.held_out: \[\] -> "),
    "seed": (set_to(seed=1), r"seed: 0 -> 1"),
    "weights": (lambda place: change_bit(place / "model" / UNET), rf"round 1: model\.path: {UNET}\."),
    "text encoder": (lambda place: change_bit(place / "model" / ENCODER), rf"round 1: model\.path: {ENCODER}\."),
    "another model": (set_to(model={"path": "builtin"}), r"model\.path"),
    "LoRA of the model": (set_to(model={"loras": [{"path": "some/lora", "revision": "0" * 40}]}), r"model\.loras"),
    "sampler": (set_to(sampler={"steps": 2}), r"sampler\.steps: 3 -> 2"),
    "loss": (set_to(algorithm={"loss": "reinforce"}), r'algorithm\.loss: "ppo_clip" -> "reinforce"'),
    "learning rate": (set_to(optimizer={"lr": 1e-5}), r"optimizer\.lr: 0\.0001 -> 1e-05"),
    "shape of the LoRA": (set_to(lora={"rank": 2}), r"lora\.rank: 4 -> 2"),
    "clock": (set_to(run={"clock": "cpu"}), r'run\.clock: "wall" -> "cpu"'),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_meaning_is_refused_and_named_before_a_model_is_loaded(place, what, monkeypatch):
    act, named = OTHERS[what]
    act(place)
    monkeypatch.setattr("rlcm.training.build.load_pipeline", lambda settings: pytest.fail("the model was loaded"))
    monkeypatch.setattr("rlcm.training.build._check_before_loading", lambda config, acting: None)
    before = (place / "runs/run/metrics.jsonl").exists()
    with pytest.raises(ConfigError, match=named) as refused:
        Trainer.resume(place / "runs/run")
    assert shlex.split(str(refused.value).partition("or go on anyway (in Python: force=True): ")[2]) == [
        "rlcm", "train", "--resume", str(place / "runs/run"), "--force",
    ]  # fmt: skip
    assert (place / "runs/run/metrics.jsonl").exists() == before


def moved(place):
    (place / "elsewhere").mkdir()
    for name in ("prompts.txt", "reward.py", "helper.py", "words.txt"):
        (place / name).rename(place / "elsewhere" / name)
    (place / "model").rename(place / "elsewhere/model")
    set_to(prompts=str(place / "elsewhere/prompts.txt"), model={"path": str(place / "elsewhere/model")})(place)
    name, words = f"{place / 'elsewhere/reward.py'}:bright", str(place / "elsewhere/words.txt")
    first_reward(name=name, args={"words": words})(place)


SAME = {
    "nothing": lambda place: None,
    "a touched file": lambda place: (place / "prompts.txt").touch(),
    "other line endings": write("prompts.txt", "\ufeff" + "\r\n".join(PROMPTS) + "\r\n\r\n"),
    "other line endings of code": write("reward.py", REWARD.replace("\n", "\r\n")),
    "prompts as a list": set_to(prompts=PROMPTS),
    "all files elsewhere": moved,
    "a file beside the weights": write("model/README.md", "mine"),
    "settings of run, and when to look": set_to(run={"rounds": 9, "save_every": 5}, evaluation={"every": 1, "final": "best"}),
    "what a reward's failure does": first_reward(on_failure="skip"),
}


@pytest.mark.parametrize("what", SAME)
def test_the_same_under_another_name_goes_on_without_a_word(place, what):
    SAME[what](place)
    listener = Listener()
    assert Trainer.resume(place / "runs/run", watcher=listener).round_number == 1
    assert not [note for note in listener.notes if "insist" in note or "other" in note], listener.notes


def test_one_reward_of_the_list_may_be_changed_by_its_place_as_far_as_the_whole_may_be(place):
    run = place / "runs/run"
    going = Trainer.resume(run, ["rewards.0.timeout_seconds=4", "rewards.0.on_failure=skip"])
    assert (going.config.rewards[0].timeout_seconds, going.config.rewards[0].on_failure) == (4, "skip")
    with pytest.raises(ConfigError, match=r"something has changed since round 1: rewards\.\w+\.weight: 1\.0 -> 4\.0"):
        Trainer.resume(run, ["rewards.0.weight=4"])
    with pytest.raises(ConfigError, match=r"model\.loras has no entry 0; set it as a whole"):
        Trainer.resume(run, ["model.loras.0.scale=4"])


def test_what_changes_digits_only_is_said_in_one_line(place, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    monkeypatch.setattr(pins, "_version", lambda library: {"torch": "9.9.9"}.get(library, "1"))
    set_to(run={"micro_batch_size": 3}, model={"attention_slicing": True})(place)
    listener = Listener()
    Trainer.resume(place / "runs/run", ["rollout.sample_batch_size=4"], watcher=listener)
    (said,) = (note for note in listener.notes if note.startswith("other than before, for the last digits only: "))
    assert "threads: 1 -> 77" in said or "-> 77" in said
    for change in ("-> 9.9.9", "run.micro_batch_size: 64 -> 3", "model.attention_slicing: false -> true"):
        assert change in said


def test_who_insists_goes_on_and_is_told_so_everywhere(tmp_path, with_report):
    run = trainer(tmp_path, run={"rounds": 1}).train()
    with pytest.raises(
        ConfigError, match=r"because something has changed since round 1: prompts\. What .* --resume \S+ run\.rounds=2 --force$"
    ):
        resume(run, changes=["run.rounds=2"], prompts=["a boat"])
    with pytest.raises(
        ConfigError,
        match=r"--resume optimizer\.lr=0\.01: .*or go on anyway \S+ \S+ \S+: rlcm train --resume \S+ optimizer\.lr=0\.01 ",
    ):
        resume(run, changes=["optimizer.lr=0.01"], prompts=["a boat"])
    listener = Listener()
    going = resume(run, changes=["run.rounds=2", "optimizer.lr=0.01"], prompts=["a boat"], force=True, watcher=listener)
    assert any(note.startswith("going on, as you insist, with other things than up to round 1") for note in listener.notes)
    assert going.train() == run
    what = ["optimizer.lr: 0.0001 -> 0.01", "prompts"]
    assert going.altered == [{"round": 1, "what": what}]
    assert newest_checkpoint(run)[0].state["altered"] == going.altered
    assert json.loads((run / "depends_on.json").read_text())["altered"] == going.altered
    found = read_run(run)
    sentence = "After round 1 it went on with other things than before: optimizer.lr: 0.0001 -> 0.01, prompts."
    assert found.altered == [sentence]
    assert "with a change on the way" in headline(found)[2]
    assert "Before and after are not of one and the same run" in write_report(run).read_text()
    assert any(one.kind == "warning" and one.text == sentence for one in advice_on(found))
    assert plain_text(sentence) in (run / "final/README.md").read_text()
    again = resume(run, changes=["run.rounds=3"], prompts=["a boat"])  # from here on these are its own
    assert again.altered == [{"round": 1, "what": what}]


def test_another_reward_or_model_as_an_object_is_refused(tmp_path):
    def brightness(images, prompts):
        return -images.mean((1, 2, 3))

    run = trainer(tmp_path, run={"rounds": 1}).train()
    with pytest.raises(ConfigError, match=r"rewards\.brightness: its code"):
        resume(run, functions=(brightness,))
    other = lcm_pipeline()
    with torch.no_grad():
        next(other.vae.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(ConfigError, match=r"round 1: model\.path\."):
        resume(run, model=other)
    assert resume(run).round_number == 1


def test_a_model_that_was_an_object_and_is_a_folder_now_is_not_compared(tmp_path):
    run = trainer(tmp_path, run={"rounds": 1}).train()
    lcm_pipeline().save_pretrained(tmp_path / "model")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("path: LatentConsistencyModelPipeline", f"path: {tmp_path / 'model'}"))
    listener = Listener()
    assert Trainer.resume(run, rewards=[brightness], watcher=listener).round_number == 1
    assert any(
        note.startswith("cannot be compared with what was there before: model.path (as an object") for note in listener.notes
    )


def test_a_checkpoint_without_digests_goes_on_with_a_word(tmp_path):
    run = trainer(tmp_path, run={"rounds": 1}).train()
    made = resume(run)
    state = {key: value for key, value in made._state().items() if key not in ("depends_on", "altered")}
    shutil.rmtree(run / "checkpoint-000001")
    (run / "checkpoint-000001").mkdir()
    save_state(run / "checkpoint-000001/state.safetensors", state)
    from rlcm.runs.checkpoint import _digest
    from rlcm.runs.serialization import write_json

    write_json(run / "checkpoint-000001/checksums.json", {"state.safetensors": _digest(run / "checkpoint-000001")})
    listener = Listener()
    resume(run, changes=["run.rounds=2"], prompts=["a boat"], watcher=listener).train()
    assert sum("is not compared" in note for note in listener.notes) == 1
    assert len(metrics_of(run)) == 2
    with pytest.raises(ConfigError, match="prompts"):
        resume(run, changes=["run.rounds=3"])


def test_a_run_without_a_checkpoint_begins_with_what_there_is(tmp_path):
    made = trainer(tmp_path, run={"rounds": 1})
    made._begin()
    run = resume(tmp_path / "run", prompts=["a boat"]).train()
    assert json.loads((run / "eval.json").read_text())["evaluations"][0]["round"] == 0
    assert json.loads((run / "depends_on.json").read_text())["altered"] == []


def test_every_setting_has_a_class_and_those_that_are_listed_exist():
    names = {name for name, _ in leaves(TrainConfig)}
    listed = {*pins.FREE, *pins.ROUNDING, *pins.CONTENT}
    assert listed <= names
    classes = {name: pins.class_of(name) for name in names}
    assert {name for name in names if classes[name] == "free"} >= {"run.rounds", "run.time_limit_minutes", "run.tracker"}
    for name in ("seed", "sampler.steps", "lora.rank", "algorithm.loss", "optimizer.lr", "rollout.branches", "run.clock"):
        assert classes[name] == "meaning"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    texts=st.lists(st.text("ab \u00e9", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=4),
    newline=st.sampled_from(["\n", "\r\n"]),
    blank=st.integers(0, 2),
    mark=st.booleans(),
)
def test_prompts_are_what_is_read_of_them(tmp_path, texts, newline, blank, mark):
    (tmp_path / "p.txt").write_bytes((("\ufeff" if mark else "") + newline.join(texts) + newline * blank).encode())
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    found = {pins.digest_of(load_prompts(source)) for source in (texts, str(tmp_path / "p.txt"), str(tmp_path / "p.jsonl"))}
    assert len(found) == 1
    assert pins.digest_of(load_prompts([*texts, "c"])) not in found


def test_another_server_is_said():
    def pinned(address):
        config = TrainConfig(rewards=[{"name": address, "label": "far"}])
        return pins.pins_of(config, PROMPT_SET, PROMPT_SET, RewardMix([("far", brightness)]), None, pipeline=PIPELINE)

    before, now = pinned("http://one:80").state(), pinned("http://two:80")
    assert pins.not_compared(before, now) == ["rewards.far: its server: http://one:80 -> http://two:80"]
    assert pins.changes_of_rounding(before, now) == pins.changes_of_meaning(before, now) == []


PROMPT_SET = load_prompts(PROMPTS)
PIPELINE = lcm_pipeline()


def test_a_run_goes_on_with_more_votes_but_not_with_others(tmp_path):
    votes = VotesFile(tmp_path / "votes.jsonl")
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        votes.add("a fox", images, [0])
    taste = {"name": "taste", "args": {"votes": str(votes.path)}}
    lcm_pipeline().save_pretrained(tmp_path / "model")
    config = tiny_config(
        tmp_path / "runs",
        model={"path": str(tmp_path / "model")},
        prompts=PROMPTS,
        rewards=[taste],
        run={"rounds": 1, "save_every": 1},
    )
    run = Trainer(config).train()
    votes.add("a fox", images, [1])
    Trainer.resume(run, ["run.rounds=2"]).train()
    assert len(metrics_of(run)) == 2
    lines = votes.path.read_text().splitlines()
    votes.path.write_text("\n".join(reversed(lines)) + "\n")
    with pytest.raises(ConfigError, match=r"rewards\.taste\.args\.votes"):
        Trainer.resume(run, ["run.rounds=3"])


def test_a_reward_that_was_passed_with_other_arguments_is_another(tmp_path):
    def begun(scale):
        return functools.partial(brightness_times, scale=scale)

    run = trainer(tmp_path, functions=[begun(1.0)], run={"rounds": 1, "save_every": 1}).train()
    with pytest.raises(ConfigError, match=r"rewards\.brightness_times: its arguments and weights"):
        resume(run, changes=["run.rounds=2"], functions=[begun(-5.0)])
    resume(run, changes=["run.rounds=2"], functions=[begun(1.0)]).train()
    assert len(metrics_of(run)) == 2


class Weighted(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(weights))
        self.seen = []

    def forward(self, images, prompts):
        self.seen.append(len(prompts))
        return (images.mean((2, 3)) @ self.w).detach()


def test_a_network_that_was_passed_with_other_weights_is_another(tmp_path):
    first = Weighted([1.0, 0.0, 0.0])
    run = trainer(tmp_path, functions=[first], run={"rounds": 1, "save_every": 1}).train()
    with pytest.raises(ConfigError, match=r"rewards\.Weighted: its arguments and weights"):
        resume(run, changes=["run.rounds=2"], functions=[Weighted([-5.0, 0.0, 9.0])])
    resume(run, changes=["run.rounds=2"], functions=[first]).train()
    resume(run, changes=["run.rounds=3"], functions=[Weighted([1.0, 0.0, 0.0])]).train()
    assert len(metrics_of(run)) == 3


def brightness_times(images, prompts, scale):
    return scale * images.mean((1, 2, 3))
