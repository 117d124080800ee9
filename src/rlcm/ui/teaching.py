"""Teaching a model one's taste: votes on pictures, a taste learnt from them, and a training on the taste that runs beside the votes."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from rlcm.builtin.vocabulary import known
from rlcm.errors import UsageError
from rlcm.pipelines import make_denoiser
from rlcm.pipelines.settings import BUILTIN
from rlcm.policy.noise import image_seed
from rlcm.policy.rollout import pictures_of, require_pictures
from rlcm.rewards.learned.clip import Network
from rlcm.rewards.taste.features import Encoder
from rlcm.rewards.taste.preference import Ballot, Preference
from rlcm.rewards.taste.reward import FEWEST, ballots, with_pictures
from rlcm.rewards.taste.votes import VotesFile
from rlcm.runs.rundir import RunDirectory, grid
from rlcm.sharing import tuned_pipeline
from rlcm.training.config import TrainConfig, load_config, parse_settings
from rlcm.training.final import WEIGHTS_NAME
from rlcm.training.locations import located
from rlcm.training.prompts import load_prompts
from rlcm.ui.jobs import Jobs

SHOWN = 4
"""Pictures of a question."""
CANDIDATES = 3
"""Questions that are drawn for one that is asked: the one whose answer tells most."""
ANY_EVERY = 3
"""Every so many questions one is asked unchosen: a taste that is sure of itself would never hear that it is wrong."""
AHEAD = 2
"""Questions that are ready before they are asked."""
KEPT = 64
"""Questions that may still be answered."""
VOTES_A_TRAINING, ROUNDS_A_TRAINING = 8, 4
"""After so many new votes so many rounds are trained."""
COMPARED = 4
"""Pictures of fixed prompts and seeds, base beside tuned."""
RECENT = 20
"""Votes over which it is counted how often the taste had guessed right."""


@dataclass(frozen=True, slots=True)
class Question:
    """Pictures of one prompt, of which somebody says the best."""

    id: str
    prompt: str
    images: Tensor
    """[K, 3, h, w] in [0, 1]."""
    features: Tensor
    """[K, D], as the taste sees them."""
    round: int
    """Rounds that the model had been trained when it drew them; 0 is the base model."""

    def pictures(self) -> list[Image.Image]:
        """Return the pictures, one by one."""
        return [grid(self.images[i : i + 1], 1) for i in range(len(self.images))]


@dataclass(slots=True)
class Standing:
    """How a teaching stands."""

    votes: int
    guessed: int
    """Of the last `asked` votes, those that the taste had guessed before it learnt from them."""
    asked: int
    round: int
    training: bool
    failure: str = ""
    compared: list[tuple[str, Image.Image, Image.Image]] = field(default_factory=list)
    """Prompt, the base model's picture, the tuned one's: the same noise."""


def _all_known(source: str | Sequence[str]) -> bool:
    """Whether the built-in detector knows what all prompts ask for."""
    found = load_prompts(source)
    return all(known(prompt, said) is not None for prompt, said in zip(found.prompts, found.metadata, strict=True))


class Teaching:
    """One model that is being taught: its votes lie in NAME-votes/, and its run in NAME/ of the page's folder.

    All of it is on the disk, so that it goes on after the page was closed: votes as they are given, the model as it is trained.

    A taste is a small thing to please, and a picture that pleases it need not be what was asked for. So where the built-in detector
    knows what the prompts ask for, it is a second reward (`composition`), and each of the two counts as much (`algorithm.multi_reward:
    gdpo`).

    Args:
        jobs: the trainings of the page.
        name: of the run.
        source: prompts to draw, as `load_prompts` reads them.
        base: the configuration of the training, but for reward, prompts and length; left out, the package's default.
        choice: which question is asked: of several the one whose answer tells most ("active"), or any ("random").
        votes_a_training: new votes, after which `train` trains.
        rounds_a_training: how many rounds it trains then.

    Raises:
        RLCMError: and its children, if there is a run of that name that learns from something else, or its model cannot be loaded.
    """

    def __init__(
        self,
        jobs: Jobs,
        name: str,
        source: str | Sequence[str] = "world",
        base: TrainConfig | None = None,
        *,
        choice: Literal["active", "random"] = "active",
        votes_a_training: int = VOTES_A_TRAINING,
        rounds_a_training: int = ROUNDS_A_TRAINING,
    ) -> None:
        self.jobs, self.name = jobs, parse_settings(TrainConfig, {"name": name}).name
        self.choice, self.votes_a_training, self.rounds_a_training = choice, votes_a_training, rounds_a_training
        self.votes = VotesFile(jobs.folder / f"{self.name}-votes" / "votes.jsonl")
        self.run = jobs.folder / self.name
        self.config = self._configuration(source, base or load_config())
        self.prompts = load_prompts(self.config.prompts).prompts
        self._encoder = Encoder(None, Network(64, "float32", "auto"))
        before = with_pictures(self.votes.votes())
        self._ballots: OrderedDict[str, Ballot] = OrderedDict(
            zip((vote.id for vote in before), ballots(before, self._encoder) if before else [], strict=True)
        )
        self._given: list[str] = list(self._ballots)
        self._guesses: deque[bool] = deque(maxlen=RECENT)
        self._taste: Preference | None = None
        self._trained_on = 0
        self._asked: OrderedDict[str, Question] = OrderedDict()
        self._ready: deque[Question] = deque()
        self._drawn = 0
        self._lock = threading.RLock()
        self._model: tuple[int, int, Any] | None = None
        self._base = make_denoiser(tuned_pipeline(self.config, None), self.config.sampler, self.config.model)
        self._learn()

    @property
    def is_new(self) -> bool:
        """Whether nothing was answered or trained yet, so that nothing depends on its prompts."""
        return not self._ballots and not (self.run / "config.yaml").is_file() and not self.jobs.state(self.name).alive

    def ask(self) -> Question:
        """Return the next question: drawn by the model as it is now, and of several the one whose answer tells most."""
        with self._lock:
            question = self._ready.popleft() if self._ready else self._draw()
            self._asked[question.id] = question
            while len(self._asked) > KEPT:
                self._asked.popitem(last=False)
            return question

    def prepare(self) -> None:
        """Draw questions ahead, so that the next one is there at once."""
        with self._lock:
            self._learn()
        while True:  # one at a time: an answer need not wait for all
            with self._lock:
                if len(self._ready) >= AHEAD:
                    return
                self._ready.append(self._draw())

    def vote(self, id: str, chosen: Sequence[int]) -> None:
        """Write an answer down; it is on the disk when this returns.

        Raises:
            UsageError: if the question is no longer there, or was answered before.
            RunDirectoryError: if it cannot be written; it does not count then.
        """
        with self._lock:
            question = self._asked.get(id)
            if question is None:
                raise UsageError("these pictures are no longer there, so the answer does not count. Here are new ones.")
            self.votes.add(question.prompt, question.images, chosen, id=id)
            ballot = Ballot(question.features, tuple(chosen))
            if self._taste is not None:
                self._guesses.append(self._taste.guesses_right(ballot))
            self._ballots[id] = ballot
            self._given.append(id)
            del self._asked[id]

    def undo(self) -> bool:
        """Take the last answer back; return whether there was one."""
        with self._lock:
            if not self._given:
                return False
            id = self._given.pop()
            self.votes.undo(id)
            self._ballots.pop(id, None)
            if self._guesses:
                self._guesses.pop()
            return True

    def train(self) -> str | None:
        """Start or go on with the training if there are enough new votes and none is going on; return what was started.

        Raises:
            UsageError, RunDirectoryError: if it cannot be started.
        """
        with self._lock:
            if len(self._ballots) < self._trained_on + self.votes_a_training or self.jobs.state(self.name).alive:
                return None
            rounds = self._round() + self.rounds_a_training
            if (self.run / "config.yaml").is_file():
                self.jobs.resume(self.name, f"run.rounds={rounds}")
            else:
                run = self.config.run.model_copy(update={"rounds": rounds})
                self.jobs.start(self.config.model_copy(update={"run": run}))
            self._trained_on = len(self._ballots)
            return self.name

    def standing(self) -> Standing:
        """Return how it stands, with pictures of the base model and of the tuned one."""
        job, failure = self.jobs.state(self.name), self.jobs.failure(self.name)
        with self._lock:
            round_number, tuned = self._current()
            prompts = [self.prompts[i * len(self.prompts) // COMPARED] for i in range(COMPARED)]
            compared = []
            if tuned is not self._base:
                seeds = [image_seed("compared", i) for i in range(COMPARED)]
                before, after = (self._pictures(model, prompts, seeds) for model in (self._base, tuned))
                compared = [(prompt, grid(before[i : i + 1], 1), grid(after[i : i + 1], 1)) for i, prompt in enumerate(prompts)]
            guessed = list(self._guesses)
            return Standing(len(self._ballots), sum(guessed), len(guessed), round_number, job.alive, failure, compared)

    def _configuration(self, source: str | Sequence[str], base: TrainConfig) -> TrainConfig:
        if (self.run / "config.yaml").is_file():
            config = load_config(self.run / "config.yaml")
            first = config.rewards[0]
            if (first.name, first.args.get("votes")) != ("taste", str(self.votes.path.absolute())):
                raise UsageError(f"name={self.name!r}: that run does not learn from votes; choose another name.")
            return config
        taste = {"name": "taste", "args": {"votes": str(self.votes.path.absolute())}}
        guarded = base.model.path in BUILTIN and _all_known(source)
        changes = {
            "name": self.name,
            "output": str(self.jobs.folder),
            "prompts": source if isinstance(source, str) else tuple(source),
            "rewards": [taste, {"name": "composition"}] if guarded else [taste],
            "algorithm": base.algorithm.model_dump() | ({"multi_reward": "gdpo"} if guarded else {}),
            "evaluation": {"images": 24, "every": 0, "grid": 12},
            "optimizer": base.optimizer.model_dump() | {"schedule": "constant"},
            "run": base.run.model_dump() | {"save_every": self.rounds_a_training, "tracker": "none", "keep_last": 1},
        }
        return located(TrainConfig.model_validate(base.model_dump() | changes))

    def _learn(self) -> None:
        if len(self._ballots) >= FEWEST:
            self._taste = Preference(list(self._ballots.values()), self._encoder.groups)

    def _draw(self) -> Question:
        round_number, denoiser = self._current()
        chosen = self._taste is not None and self.choice == "active" and self._drawn % ANY_EVERY
        self._drawn += 1
        count = CANDIDATES if chosen else 1
        prompts = [self.prompts[i] for i in torch.randint(len(self.prompts), (count,)).tolist()]
        seeds = torch.randint(2**62, (count * SHOWN,)).tolist()
        images = self._pictures(denoiser, [prompt for prompt in prompts for _ in range(SHOWN)], seeds)
        with torch.no_grad():
            features = self._encoder(images).cpu()
        found = [
            Question(uuid.uuid4().hex, *drawn, round_number)
            for drawn in zip(prompts, images.split(SHOWN), features.split(SHOWN), strict=True)
        ]
        if self._taste is None or len(found) == 1:
            return found[0]
        return found[int(self._taste.information(torch.stack([one.features for one in found])).argmax())]

    def _pictures(self, denoiser: Any, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return require_pictures(pictures_of(denoiser, prompts, seeds, self.config.rollout.sample_batch_size))

    def _current(self) -> tuple[int, Any]:
        """Return the rounds trained, and the model as it is now: the base model until a training has left weights."""
        weights = self.run / "final" / WEIGHTS_NAME
        try:
            stamp = weights.stat().st_mtime_ns
        except OSError:
            return 0, self._base
        if self._model is None or self._model[0] != stamp:
            pipeline = tuned_pipeline(self.config, self.run)
            self._model = stamp, self._round(), make_denoiser(pipeline, self.config.sampler, self.config.model)
            self._ready.clear()  # drawn by the model of before
        return self._model[1], self._model[2]

    def _round(self) -> int:
        rows = RunDirectory(self.run).metrics() if self.run.is_dir() else []
        return int(rows[-1]["round"]) if rows else 0


def votes_place(folder: Path, name: str) -> Path:
    """Return the folder of the votes of a teaching."""
    return folder / f"{name}-votes"
