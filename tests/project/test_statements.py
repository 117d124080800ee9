"""What README and docs state is so: each statement stands on its page, word for word, and is tried."""

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_runs import PROMPTS, brightness, lcm_pipeline, tiny_config

import rlcm
from rlcm import TrainConfig, load_config
from rlcm.builtin import DEMO, PUBLISHED
from rlcm.builtin.prompts import prompt_set
from rlcm.cli import main
from rlcm.errors import RLCMError
from rlcm.learning.losses import ppo_clip, reinforce
from rlcm.pipelines import SamplerSettings, make_denoiser
from rlcm.pipelines.families import FAMILIES
from rlcm.rewards import BUILT_IN
from rlcm.rewards.taste.votes import VotesFile, read_votes
from rlcm.training.prompts import load_prompts
from rlcm.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a tiny model, and one that was told to stop after its first round and went on."""
    folders = [tmp_path_factory.mktemp(name) for name in ("straight", "stopped")]

    def trainer(folder, rounds):
        return Trainer(tiny_config(folder, run={"rounds": rounds}), model=lcm_pipeline(), rewards=[brightness], prompts=PROMPTS)

    straight, halted = trainer(folders[0], 2).train(), trainer(folders[1], 1).train()
    resumed = Trainer.resume(halted, ["run.rounds=2"], model=lcm_pipeline(), rewards=[brightness], prompts=PROMPTS).train()
    return SimpleNamespace(straight=straight, resumed=resumed)


def command(*arguments):
    return CliRunner().invoke(main, list(arguments))


def refused(*changes):
    with pytest.raises(RLCMError) as error:
        load_config(None, changes)
    return str(error.value)


def rewards_are_as_many(run):
    return f"{len(BUILT_IN)} rewards are built in" in (ROOT / "README.md").read_text()


def pipelines_are_as_many(run):
    return f"{len(FAMILIES)} kinds of diffusers pipelines" in (ROOT / "README.md").read_text()


def a_mistyped_setting_names_the_nearest(run):
    return "did you mean optimizer.lr?" in refused("optimizer.lrr=1")


def defaults_are_the_same_everywhere(run):
    return TrainConfig() == load_config(None) == load_config(None, ["name="])


def the_demo_back_propagates(run):
    demo = load_config(DEMO)
    return demo.algorithm.loss == "reward_backprop" and demo.rewards[0].name == "composition"


def the_default_needs_no_gradient(run):
    return not TrainConfig().algorithm.follows_reward


def eight_images_share_a_state(run):
    return TrainConfig().rollout.branches == 8


def published_is_one_thing(run):
    paper = TrainConfig.published()
    return paper == load_config(PUBLISHED) and paper.rollout.branches == 1 and not paper.algorithm.kl_coefficient


def python_is_new_enough(run):
    return 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text()


def settings_about_a_word(run):
    said = command("settings", "branches")
    return said.exit_code == 0 and "rollout.branches=8" in said.output and "micro_batch_size" not in said.output


def a_reward_takes_images_and_prompts(run):
    first = json.loads((run.straight / "eval.json").read_text())["evaluations"][0]
    return list(inspect.signature(brightness).parameters) == ["images", "prompts"] and "brightness" in first["rewards"]


def a_resumed_run_ends_the_same(run):
    lora = "final/pytorch_lora_weights.safetensors"
    return (run.straight / lora).read_bytes() == (run.resumed / lora).read_bytes()


def every_round_appears_once(run):
    lines = (run.resumed / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["round"] for line in lines] == [1, 2]


def nothing_is_unpickled(run):
    kinds = {file.suffix for file in run.straight.rglob("*") if file.is_file()}
    source = "".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    readers = re.findall(r"torch\.load\(.*", source)
    only_weights = all("weights_only=True" in reader for reader in readers)
    return only_weights and "import pickle" not in source and not kinds & {".pt", ".pth", ".bin", ".pkl"}


def the_lora_loads_in_plain_diffusers(run):
    pipeline = lcm_pipeline()
    before = pipeline.unet.state_dict().keys()
    pipeline.load_lora_weights(run.straight / "final")
    return len(pipeline.unet.state_dict()) > len(before)


def evaluations_have_fixed_prompts_and_seeds(run):
    found = [json.loads((each / "eval.json").read_text())["evaluations"][0] for each in (run.straight, run.resumed)]
    return found[0]["reward"] == found[1]["reward"]


def the_report_needs_no_network(run):
    page = (run.straight / "report.html").read_text()
    return not re.search(r"(src|href)=[\"']?https?://", page) and "<script src" not in page


def the_judge_works_for_the_built_in_model_only(run):
    return not json.loads((run.straight / "eval.json").read_text())["evaluations"][0].get("judge")


def a_reward_without_variance_is_refused(run, folder):
    def flat(images, prompts):
        return [1.0] * len(images)

    made = Trainer(tiny_config(folder), model=lcm_pipeline(), rewards=[flat], prompts=PROMPTS)
    with pytest.raises(RLCMError, match="all 6 images of the first round have the same reward"):
        made.train()
    return True


def genevals_format_loads(run, folder):
    line = {"tag": "counting", "prompt": "a photo of two foxes", "include": [{"class": "fox", "count": 2}]}
    (folder / "prompts.jsonl").write_text(json.dumps(line) + "\n")
    return load_prompts(str(folder / "prompts.jsonl")).metadata[0]["include"] == [{"class": "fox", "count": 2}]


def a_vote_is_a_line_with_its_pictures_beside_it(run, folder):
    votes = VotesFile(folder / "votes.jsonl")
    votes.add("a fox", torch.zeros(2, 3, 8, 8), [1])
    line = json.loads(votes.path.read_text())
    return Image.open(folder / line["pictures"][0]).size == (8, 8) and line["chosen"] == [1]


def ppo_is_reinforce_at_one_update(run):
    log_ratio, advantages = torch.zeros(3, 2, requires_grad=True), torch.randn(3, 2)
    found = ppo_clip(log_ratio, advantages, clip_range=1e-4), reinforce(log_ratio, advantages)
    return torch.equal(*(torch.autograd.grad(loss.sum(), log_ratio)[0] for loss in found))


def the_last_step_draws_no_noise(run):
    table = make_denoiser(lcm_pipeline(), SamplerSettings(steps=4, guidance=3.0)).table
    return table.std[-1] == 0 and bool((table.std[:-1] > 0).all())


def a_second_voter_is_another_file(run, folder):
    files = [VotesFile(folder / name / "votes.jsonl") for name in ("ada", "ben")]
    for file in files:
        file.add("a fox", torch.rand(2, 3, 8, 8), [0], id=f"of {file.path.parent.name}")
    files[1].path.write_text(files[1].path.read_text() + files[0].path.read_text())
    return len(read_votes(*(file.path for file in files))) == 2


def unseen_prompts_are_other_prompts(run):
    known, unseen = ({entry["prompt"] for entry in prompt_set(name)} for name in ("world", "world-unseen"))
    return not known & unseen


def the_version_is_said(run):
    return rlcm.__version__ in command("--version").output


STATEMENTS = [
    ("README.md", "rewards are built in", rewards_are_as_many),
    ("README.md", "kinds of diffusers pipelines", pipelines_are_as_many),
    ("README.md", "A mistyped setting is an error that names the nearest one.", a_mistyped_setting_names_the_nearest),
    (
        "README.md",
        "are the same everywhere: for `rlcm train` without a file, for settings that a",
        defaults_are_the_same_everywhere,
    ),
    ("README.md", "The demo does this.", the_demo_back_propagates),
    ("README.md", "It needs no gradient of the reward.", the_default_needs_no_gradient),
    ("README.md", "It draws eight images from one intermediate state", eight_images_share_a_state),
    ("README.md", "is available with the paper's settings: `rlcm train --published`", published_is_one_thing),
    ("README.md", "Python 3.10 or newer.", python_is_new_enough),
    ("README.md", "or those about a word", settings_about_a_word),
    ("README.md", "a Python function of images and prompts", a_reward_takes_images_and_prompts),
    ("README.md", "a LoRA that plain diffusers loads", the_lora_loads_in_plain_diffusers),
    ("README.md", "**Every run is evaluated** on fixed prompts and seeds", evaluations_have_fixed_prompts_and_seeds),
    ("docs/reliability.md", "On a CPU the LoRA is the same byte for byte", a_resumed_run_ends_the_same),
    ("docs/reliability.md", "so that every round appears once", every_round_appears_once),
    ("docs/reliability.md", "Nothing of a run is ever unpickled.", nothing_is_unpickled),
    (
        "docs/how-to/my-own-reward.md",
        "`alignment` work for the built-in model only.",
        the_judge_works_for_the_built_in_model_only,
    ),
    (
        "docs/how-to/my-own-reward.md",
        "The doctor and the trainer refuse a reward without variance.",
        a_reward_without_variance_is_refused,
    ),
    ("docs/rewards.md", "A vote that is in two files counts once.", a_second_voter_is_another_file),
    (
        "docs/rewards.md",
        "one on each line, with the pictures in a folder next to it",
        a_vote_is_a_line_with_its_pictures_beside_it,
    ),
    ("docs/rewards.md", "GenEval", genevals_format_loads),
    ("docs/algorithms/ppo-clip.md", "is 1, and it is exactly [REINFORCE]", ppo_is_reinforce_at_one_update),
    ("docs/algorithms/ppo-clip.md", "The last step of a consistency model is such a step", the_last_step_draws_no_noise),
    (
        "docs/evaluation.md",
        "`world-unseen`: other prompts of the kinds that the run was trained on",
        unseen_prompts_are_other_prompts,
    ),
    ("docs/run-directory.md", "report.html", the_report_needs_no_network),
    ("docs/run-directory.md", "version", the_version_is_said),
]


@pytest.mark.parametrize(("page", "text", "is_so"), STATEMENTS, ids=[check.__name__ for *_, check in STATEMENTS])
def test_it_is_so(run, tmp_path, page, text, is_so):
    assert text in " ".join((ROOT / page).read_text(encoding="utf-8").split()), f"{page} does not say this any more"
    more = [tmp_path] if "folder" in inspect.signature(is_so).parameters else []
    assert is_so(run, *more)
