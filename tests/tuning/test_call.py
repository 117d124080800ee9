"""A training in one call, and what comes of it."""

import contextlib
import shutil
import signal
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from tiny_runs import PROMPTS, brightness, lcm_pipeline

import rlcm
from rlcm.builtin import model_path
from rlcm.cli.work.train import check_start
from rlcm.doctor import diagnose
from rlcm.doctor.machine import folder
from rlcm.errors import ConfigError, MissingFileError, RewardError, RunDirectoryError
from rlcm.runs.checkpoint import newest_checkpoint
from rlcm.sharing.formats import export_run
from rlcm.training.config import checked, load_config
from rlcm.training.trainer import Trainer

SMALL = {"batch_size": 16, "images": 4, "rounds": 2, "evaluation": {"every": 0}, "lr": 3e-3}


class Told(BaseException):
    """What the program's own handler of SIGTERM raises."""


def darkness(images, prompts):
    return -images.mean((1, 2, 3))


@contextlib.contextmanager
def double_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def seen():
    return []


@pytest.fixture(scope="module")
def result(tmp_path_factory, seen):
    return rlcm.train(
        rewards=darkness,
        prompts=["a fox", "three frogs"],
        output=str(tmp_path_factory.mktemp("runs")),
        name="dark",
        progress=False,
        callback=lambda metrics: seen.append(metrics["round"]),
        **SMALL,
    )


def test_what_comes_of_it(result, seen):
    assert seen == [1, 2]
    assert set(result.before) == set(result.after)
    assert result.before["reward"] == result.before["rewards.darkness"]
    assert result.before["reward"] != result.after["reward"]
    assert "judge.right" in result.after
    assert result.report.is_file()
    assert result.lora.is_file()
    assert result.config.prompts == ("a fox", "three frogs")
    assert result.config.run.rounds == 2
    assert str(result.report) in repr(result)
    assert "arkness" in repr(result).splitlines()[0]
    assert result.picture().width == 1280
    assert result._repr_png_().startswith(b"\x89PNG")


def test_pictures_are_drawn_as_the_run_sampled(result):
    (drawn,) = result.draw("a fox", seed=3)
    piped = result.pipeline("a fox", generator=torch.Generator().manual_seed(3)).images[0]
    assert drawn.size == (64, 64)
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(piped)).max() <= 1
    other = result.pipeline("a fox", num_inference_steps=1, generator=torch.Generator().manual_seed(3)).images[0]
    assert np.abs(np.asarray(other).astype(int) - np.asarray(piped)).max() > 3, "what is passed wins"
    (one_step,) = result.draw("a fox", seed=3, steps=1)
    assert np.abs(np.asarray(one_step).astype(int) - np.asarray(other)).max() <= 1
    pictures = result.draw(["a fox", "a cat"], n=2)
    again = result.draw(["a cat"], n=2)
    assert [np.asarray(p).tolist() for p in pictures[2:]] == [np.asarray(p).tolist() for p in again]


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.inference_mode(),
        lambda: torch.no_grad(),
        lambda: torch.device("meta"),
        double_by_default,
    ],
    ids=["autocast", "inference mode", "no grad", "default device", "default dtype"],
)
def test_what_the_program_around_has_switched_on_changes_nothing(result, around, tmp_path):
    with around():
        before = (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_device(),
        )
        again = rlcm.train(
            rewards=darkness, prompts=["a fox", "three frogs"], output=str(tmp_path), name="dark", progress=False, **SMALL
        )
        (drawn,) = again.draw("a fox")
        after = torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_device()
    assert before == after
    assert again.lora.read_bytes() == result.lora.read_bytes()
    assert drawn.tobytes() == result.draw("a fox")[0].tobytes()


def test_the_same_from_disk_and_further_from_there(result, tmp_path):
    found = rlcm.load(result.path)
    assert (found.before, found.after, found.config) == (result.before, result.after, result.config)
    further = rlcm.train(
        model=result.path,
        rewards={darkness: 1, "composition": 0.5},
        prompts=["a fox", "three frogs"],
        output=str(tmp_path),
        progress=False,
        **SMALL,
    )
    assert further.before["rewards.darkness"] == pytest.approx(result.after["reward"], abs=1e-4), (
        "it begins where that one ended"
    )
    assert [lora.path for lora in further.config.model.loras] == [str(result.path / "final")]
    assert [(r.label, r.weight) for r in further.config.rewards] == [("darkness", 1), ("composition", 0.5)]
    both = further.before["rewards.darkness"] + 0.5 * further.before["rewards.composition"]
    assert further.before["reward"] == pytest.approx(both, abs=1e-5)


def test_a_name_that_is_taken_is_told_before_the_model_is_loaded(result):
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        rlcm.train(name="dark", output=str(result.path.parent), progress=False)


def test_check_and_doctor_say_that_a_name_is_taken(result, capsys):
    taken = [f"output={result.path.parent}", "name=dark", "prompts=[a fox]"]
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        check_start(None, taken)
    check_start(None, [taken[0], "name=free", taken[2]])
    assert "this can start" in capsys.readouterr().out
    said = {name: [f.value for f in folder(load_config(None, [*taken, f"name={name}"]))] for name in ("dark", "free", "")}
    assert said["free"] == said[""] == []
    assert "already holds a run" in said["dark"][0]
    with pytest.raises(ConfigError, match="give a TrainConfig"):
        diagnose("q.yaml")


def test_a_run_that_goes_on_with_its_objects(result):
    trainer = Trainer.resume(result, ["run.rounds=3"], rewards={darkness: 1.0})
    trainer.train()
    assert trainer.round_number == 3


@pytest.mark.parametrize("text", ["", "{}", "null", '{"evaluations": 3}', '{"evaluations": [1e400]}', None])
def test_evaluations_that_cannot_be_read_are_said(result, tmp_path, text):
    run = tmp_path / "dark"
    shutil.copytree(result.path, run)
    (run / "eval.json").unlink()
    if text is not None:
        (run / "eval.json").write_text(text)
    said = "no evaluation yet" if text is None else "eval.json has no evaluation that can be read"
    assert repr(rlcm.load(run)).splitlines()[0] == said


def test_a_run_that_has_not_ended(tmp_path):
    def fails(images, prompts):
        raise ValueError("no")

    with pytest.raises(RewardError):
        rlcm.train(rewards=fails, output=str(tmp_path), name="stopped", progress=False, **SMALL)
    for file in tmp_path.glob("stopped"):
        stopped = rlcm.load(file)
        assert stopped.after == {}
        with pytest.raises(MissingFileError, match="has not ended"):
            _ = stopped.pipeline
        assert stopped._repr_png_() is None
    with pytest.raises(MissingFileError, match="holds no run"):
        rlcm.load(tmp_path)


def test_a_loaded_pipeline_and_a_watcher(tmp_path, capsys):
    class Watching:
        notes, rounds = [], []

        def note(self, text):
            self.notes.append(text)

        def round(self, metrics, rounds):
            self.rounds.append((metrics["round"], rounds))

    made = rlcm.train(
        rlcm.TrainConfig(steps=3, guidance=3.0, rank=4, rollout={"batch_size": 16}),
        model=lcm_pipeline(),
        rewards=[brightness],
        prompts=PROMPTS,
        rounds=1,
        images=4,
        output=str(tmp_path),
        callback=Watching(),
    )
    assert Watching.rounds == [(1, 1)]
    assert any("checked" in note for note in Watching.notes)
    assert made.config.lora.rank == 4
    assert made.config.rollout.batch_size == 16
    assert "round 1/1" in capsys.readouterr().err, "progress is shown unless told otherwise"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rewards": 3}, "is no reward"),
        ({"config": 3}, "config=3 is a int; give a TrainConfig"),
        ({"rounds": "x"}, r"run\.rounds='x'"),
        ({"callback": 3}, "callback=3 cannot be called"),
        ({"model": 3}, "model=3 is a int; give a loaded diffusers pipeline"),
        ({"prompts": []}, "the list has no prompts"),
        ({"foo": 1}, "foo is not a setting"),
        ({"rounds": 2, "run": {"rounds": 3}}, "rounds is short for"),
        ({"config": "nowhere.yaml"}, "does not exist"),
    ],
)
def test_what_cannot_be_is_told_in_words(arguments, said, tmp_path):
    with pytest.raises(Exception, match=said) as caught:
        rlcm.train(**{"progress": False, "output": str(tmp_path), **arguments})
    assert type(caught.value).__module__ == "rlcm.errors"
    assert not list(tmp_path.iterdir())


def test_configurations_by_name(tmp_path, monkeypatch):
    taken = []

    class Stops:
        def __init__(self, config, **objects):
            taken.append(config)
            raise KeyboardInterrupt

    monkeypatch.setattr("rlcm.tuning.call.Trainer", Stops)
    (tmp_path / "own.yaml").write_text("seed: 5\nrun: {rounds: 9}\n")
    for config in (None, "demo", "published", tmp_path / "own.yaml", str(tmp_path / "own.yaml"), rlcm.TrainConfig(seed=5)):
        with pytest.raises(KeyboardInterrupt):
            rlcm.train(config, rounds=4, progress=False)
    default, demo, published, *own = taken
    assert default == rlcm.TrainConfig(rounds=4)
    assert demo.algorithm.loss == "reward_backprop"
    assert published == rlcm.TrainConfig.published(rounds=4)
    assert {config.seed for config in own} == {5}
    assert {config.run.rounds for config in taken} == {4}


def test_a_run_of_a_lambda_has_a_name_that_can_be_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notes = []

    class Watching:
        def note(self, text):
            notes.append(text)

        def round(self, metrics, rounds):
            pass

    made = rlcm.train(
        rewards=lambda images: images.mean((1, 2, 3)), progress=False, callback=Watching(), **SMALL | {"rounds": 1}
    )
    assert made.path.name.startswith("lambda-")
    assert rlcm.load(made.path).after == made.after
    again = f"rlcm.Trainer.resume('runs/{made.path.name}', rewards=...).train(), in Python"
    assert again in notes[0], "no command finds a lambda again"
    with pytest.raises(RunDirectoryError, match="already holds a run") as taken:
        rlcm.train(rewards=lambda images: images.mean((1, 2, 3)), name=made.path.name, progress=False, **SMALL)
    assert again in str(taken.value)
    shutil.rmtree(made.path / "final")
    with pytest.raises(MissingFileError, match="has not ended") as unfinished:
        rlcm.load(made.path).draw("a fox")
    assert again in str(unfinished.value)
    assert f"resume('runs/{made.path.name}', ['run.rounds=1'], rewards=...)" in str(unfinished.value)
    assert "LoRA" not in repr(rlcm.load(made.path))
    with pytest.raises(ConfigError, match=r"was an object of the program that made it.*pass it again"):
        Trainer.resume(made.path)
    with pytest.raises(ConfigError, match="because something has changed") as other:
        Trainer.resume(made.path, ["run.rounds=2"], rewards=lambda images: -images.mean((1, 2, 3)))
    assert f"rlcm.train('runs/{made.path.name}/config.yaml', rewards=..., name='NEW'), in Python" in str(other.value)
    assert f"resume('runs/{made.path.name}', ['run.rounds=2'], rewards=..., force=True).train()" in str(other.value)
    with pytest.raises(ConfigError, match="Start a new run") as seeded:
        Trainer.resume(made.path, ["seed=3"], rewards=lambda images: images.mean((1, 2, 3)))
    config = f"rlcm.load_config('runs/{made.path.name}/config.yaml', ['seed=3'])"
    assert f"rlcm.train({config}, rewards=..., name='NEW'), in Python" in str(seeded.value)
    with pytest.raises(ConfigError, match=r"name the function or class alone, mine\.py:Darkness, and rlcm calls it"):
        rlcm.train(rewards="mine.py:Darkness()", progress=False)


def test_a_function_of_no_module_is_an_object_of_its_program(tmp_path):
    space = {}
    exec("def made(images, prompts):\n    return images.mean((1, 2, 3))", space)
    made = rlcm.train(rewards=space["made"], output=tmp_path, name="exec", progress=False, **SMALL | {"rounds": 1})
    assert made.config.rewards[0].name in ("<exec>:made", "builtins:made")
    with pytest.raises(ConfigError, match=r"pass it again"):
        Trainer.resume(made.path)


def test_what_a_result_is_asked_for_wrongly(result):
    for wrong in (
        {"steps": 0}, {"steps": 1.5}, {"steps": True}, {"seed": 2**64}, {"seed": "a"}, {"n": 0}, {"n": 1.5},
        {"prompts": 5}, {"prompts": None}, {"prompts": [1]}, {"prompts": []},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            result.draw(**{"prompts": "a fox", **wrong})
    for columns in (0, -1, 1.5, "a", 10**6, True):
        with pytest.raises(ConfigError, match="give a whole number from 1 to 10"):
            result.picture(columns)
    for run in (None, 5, ""):
        with pytest.raises(ConfigError, match="names no folder"):
            rlcm.load(run)
        with pytest.raises(ConfigError, match="names no folder"):
            Trainer.resume(run)
    with pytest.raises(ConfigError, match=r"Trainer\.resume takes no rounds"):
        Trainer.resume(result.path, rounds=3)
    with pytest.raises(ConfigError, match="give a TrainConfig"):
        Trainer("q.yaml")
    with pytest.raises(ConfigError, match="settings have names"):
        rlcm.TrainConfig(5)
    with pytest.raises(ConfigError, match="a function is no setting"):
        rlcm.TrainConfig(rewards=darkness)


def test_a_callback_that_cannot_be_called_is_told_at_once(tmp_path):
    for callback in (lambda: 1, lambda a, b: 1, 3):
        with pytest.raises(ConfigError, match="cannot be called with the metrics of a round"):
            rlcm.train(callback=callback, output=str(tmp_path), progress=False)
    assert not list(tmp_path.iterdir())


def test_what_a_callback_does_to_its_metrics_is_its_own(tmp_path, capsys):
    seen = []

    def callback(metrics):
        seen.append(metrics.pop("round"))
        metrics.clear()

    given = {"rewards": [brightness], "prompts": PROMPTS, "steps": 3, "guidance": 3.0, "output": str(tmp_path)}
    rlcm.train(model=lcm_pipeline(), callback=callback, progress=True, **given, **SMALL)
    assert seen == [1, 2]
    assert "round 2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("group", "update", "said"),
    [
        (None, {"seed": -5}, "seed=-5: input should be greater than or equal to 0"),
        (None, {"seed": "7"}, "seed='7': input should be a valid integer"),
        (None, {"seed": 7.5}, "seed=7.5: input should be a valid integer"),
        (None, {"name": "../elsewhere"}, "name='../elsewhere'"),
        (None, {"output": None}, "output=None: input should be a valid string"),
        (None, {"rouds": 5}, "rouds is not a setting; did you mean"),
        (None, {"rewards": []}, "rewards=[]"),
        ("run", {"rounds": -1}, "run.rounds=-1: input should be greater than or equal to 1"),
        ("optimizer", {"lr": float("nan")}, "optimizer.lr=nan"),
        ("optimizer", {"schedule": "cosine"}, "optimizer.schedule='cosine'"),
        ("rollout", {"batch_size": 3.5}, "rollout.batch_size=3.5"),
        ("algorithm", {"kl_coefficient": -1}, "algorithm.kl_coefficient=-1: input should be greater than or equal to 0"),
        ("evaluation", {"final": "bst"}, "evaluation.final='bst'"),
    ],
)
def test_what_was_put_into_a_copy_of_a_configuration_is_checked(tmp_path, group, update, said):
    """pydantic does not look at what `model_copy` is given."""
    config = rlcm.TrainConfig(name="copied", output=str(tmp_path / "runs"), rounds=1)
    update = {group: getattr(config, group).model_copy(update=update)} if group else update
    changed = config.model_copy(update=update)
    for entry in (rlcm.train, Trainer, diagnose):
        with pytest.raises(ConfigError) as refused:
            entry(changed)
        assert said in str(refused.value), entry
    assert not list(tmp_path.iterdir())


def test_what_was_put_into_a_copy_of_a_configuration_is_taken_as_if_it_had_been_given():
    plain = rlcm.TrainConfig(rounds=1)
    fine = plain.model_copy(
        update={"run": {"rounds": 3}, "seed": 7.0, "rollout": plain.rollout.model_copy(update={"batch_size": 16.0})}
    )
    found = checked(fine)
    assert [found.run.rounds, found.seed, found.rollout.batch_size] == [3, 7, 16]
    assert {type(value) for value in (found.seed, found.rollout.batch_size)} == {int}
    unleashed = plain.model_copy(update={"algorithm": plain.algorithm.model_copy(update={"kl_coefficient": 0})})
    assert checked(unleashed) == rlcm.TrainConfig(rounds=1, leash=0)


@pytest.mark.parametrize("watcher", [print, 3, Told, SimpleNamespace(note=print), SimpleNamespace(note=print, round=3)])
def test_a_watcher_that_cannot_be_told_is_refused_at_once(tmp_path, result, watcher):
    with pytest.raises(ConfigError, match=r"is not an object with the methods `note` and `round`"):
        Trainer(rlcm.TrainConfig(name="x", output=str(tmp_path)), watcher=watcher)
    with pytest.raises(ConfigError, match=r"is not an object with the methods `note` and `round`"):
        Trainer.resume(result, None, watcher=watcher)


async def postponed(metrics):
    raise AssertionError


def generator(metrics):
    yield


class Postponed:
    def note(self, text):
        pass

    async def round(self, metrics, rounds):
        raise AssertionError


class Called:
    async def __call__(self, metrics):
        raise AssertionError


@pytest.mark.parametrize("callback", [postponed, generator, Postponed(), Called()])
def test_a_callback_that_would_never_run_is_refused(tmp_path, callback):
    with pytest.raises(ConfigError, match="would be called and not run"):
        rlcm.train(callback=callback, output=str(tmp_path), progress=False)
    with pytest.raises(ConfigError, match="cannot be called with the metrics of a round"):
        rlcm.train(callback=Postponed, output=str(tmp_path), progress=False)  # a class


@pytest.mark.parametrize(
    ("number", "rounds", "raised"),
    [(signal.SIGINT, 3, KeyboardInterrupt), (signal.SIGINT, 1, KeyboardInterrupt), (signal.SIGTERM, 3, Told)],
)
def test_a_loop_over_seeds_is_stopped_by_one_signal(tmp_path, monkeypatch, number, rounds, raised):
    """Also in the last round; the round that it came in is saved, and the signal then does what it did before."""

    def own(*_):
        raise Told

    previous = signal.signal(signal.SIGTERM, own)
    begun = []

    def stop(metrics):
        signal.raise_signal(number)

    def loop():
        for seed in (0, 1):
            begun.append(seed)
            given = {"model": lcm_pipeline(), "rewards": [brightness], "prompts": PROMPTS, "steps": 3, "guidance": 3.0}
            changes = SMALL | {"rounds": rounds, "name": str(seed), "seed": seed}
            rlcm.train(**given, callback=stop, output=str(tmp_path), progress=False, **changes)

    try:
        with pytest.raises(raised):
            loop()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert begun == [0]
    assert newest_checkpoint(tmp_path / "0")[0].round == 1
    assert (tmp_path / "0/final").exists() == (rounds == 1)


def meddle(metrics):
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(3)


def test_what_a_callback_changes_of_the_process_is_put_back(tmp_path, caplog):
    given = {
        "rewards": [brightness],
        "prompts": PROMPTS,
        "steps": 3,
        "guidance": 3.0,
        "output": str(tmp_path),
        "progress": False,
    }
    made = [
        rlcm.train(model=lcm_pipeline(), callback=callback, name=name, **given, **SMALL)
        for name, callback in (("calm", print), ("wild", meddle))
    ]
    assert made[0].lora.read_bytes() == made[1].lora.read_bytes()
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    assert "the callback changed torch's default dtype and torch's number of threads" in caplog.text


def test_a_results_pipeline_stands_for_its_run(result, tmp_path):
    (before,) = result.draw("a fox", seed=3)
    further = rlcm.train(
        model=result.pipeline, rewards=darkness, prompts=["a fox"], output=str(tmp_path), progress=False, **SMALL
    )
    assert [lora.path.startswith(str(result.path)) for lora in further.config.model.loras] == [True]
    (after,) = result.draw("a fox", seed=3)
    assert np.array_equal(np.asarray(before), np.asarray(after)), "what was learnt further is not in it"
    assert further.before["reward"] == pytest.approx(
        rlcm.train(
            model=result, rewards=darkness, prompts=["a fox"], output=str(tmp_path / "b"), progress=False, **SMALL
        ).before["reward"]
    )


def fused(pipeline, run):
    pipeline.load_lora_weights(str(run / "final"), adapter_name="mine")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def shaken(pipeline, run):
    with torch.no_grad():
        next(pipeline.vae.decoder.parameters()).add_(0.01)


@pytest.mark.parametrize(("change", "part"), [(fused, "unet"), (shaken, "vae")])
def test_a_run_on_changed_weights_does_not_draw_with_those_of_the_folder(result, tmp_path, capsys, change, part):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model_path("student"))
    change(pipeline, result.path)
    made = rlcm.train(model=pipeline, rewards=darkness, prompts=["a fox"], output=str(tmp_path), **SMALL)
    assert f"the weights of {part} of the pipeline that was passed" in " ".join(capsys.readouterr().err.split())
    for draw in (
        lambda: made.draw("a fox"),
        lambda: made.pipeline,
        lambda: export_run(made.path, "merged"),
        lambda: rlcm.train(model=made, rewards=darkness, output=str(tmp_path), progress=False, **SMALL),
    ):
        with pytest.raises(
            ConfigError, match=rf"with other weights than its folder has \({part}\), and no file of the run holds them"
        ):
            draw()
    with pytest.raises(
        ConfigError, match=r"something has changed since round 2: parts of the model that was passed whose weights"
    ):
        Trainer.resume(made.path, ["run.rounds=3"], rewards=darkness)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model_path("student"))
    change(pipeline, result.path)
    pipeline.save_pretrained(tmp_path / "whole")  # the remedy
    Trainer.resume(made.path, ["run.rounds=3"], rewards=darkness, model=pipeline)
    saved = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "whole")  # the same weights under another name
    Trainer.resume(made.path, ["run.rounds=3"], rewards=darkness, model=saved)
    whole = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "whole")
    again = rlcm.train(model=whole, rewards=darkness, prompts=["a fox"], output=str(tmp_path), progress=False, **SMALL)
    assert len(again.draw("a fox")) == 1


def test_a_run_whose_base_no_file_holds_does_not_draw_another_one(result, tmp_path, capsys):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model_path("student"))
    pipeline.load_lora_weights(str(result.path / "final"), adapter_name="mine")
    made = rlcm.train(model=pipeline, rewards=darkness, prompts=["a fox"], output=str(tmp_path), **SMALL)
    assert "the adapters mine of the pipeline that was passed" in " ".join(capsys.readouterr().err.split())
    for draw in (
        lambda: made.draw("a fox"),
        lambda: made.pipeline,
        lambda: export_run(made.path, "merged"),
        lambda: rlcm.train(model=made, rewards=darkness, output=str(tmp_path), progress=False, **SMALL),
    ):
        with pytest.raises(ConfigError, match="passed with the adapters mine in it, and no file of the run holds them"):
            draw()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model_path("student"))  # the remedy
    pipeline.load_lora_weights(str(result.path / "final"), adapter_name="mine")
    pipeline.load_lora_weights(str(made.path / "final"), adapter_name="tuned")
    pipeline.set_adapters(["mine", "tuned"])
    assert export_run(made.path, "kohya").is_file()
