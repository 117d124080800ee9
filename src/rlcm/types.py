"""The plain objects that pass between the stages, and the protocols of a denoiser and a reward.

Letters in shapes: B images, H denoising steps, N states, K actions of a state, C h w a latent, D = C h w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rlcm.transfer import send


class Conditioning(dict[str, Tensor]):
    """What a denoiser is told about its prompts: named tensors, every one of them batch-first."""

    def take(self, index: Tensor) -> Conditioning:
        """Return the rows `index` [M] of every tensor."""
        places = {device: send(index, device) for device in {value.device for value in self.values()}}
        return Conditioning({key: value[places[value.device]] for key, value in self.items()})

    def repeat_interleave(self, repeats: int) -> Conditioning:
        """Return every row `repeats` times in a row."""
        return Conditioning({key: value.repeat_interleave(repeats, dim=0) for key, value in self.items()})

    def to(self, device: torch.device | str) -> Conditioning:
        """Return a copy on `device`."""
        return Conditioning({key: value.to(device) for key, value in self.items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Return the rows of all parts, in order."""
        return Conditioning({key: torch.cat([part[key] for part in parts]) for key in parts[0]})

    def __len__(self) -> int:
        return len(next(iter(self.values()))) if self.keys() else 0


@dataclass(frozen=True, slots=True, eq=False)
class TransitionTable:
    """A sampler of H steps. Row i is the i-th network call, for a latent x and the network's output m:

        x0   = clip(ax x + am m)             predicted clean latent
        mean = b0 x0 + bx x + bm m
        x'   = mean + std z,  z ~ N(0, I)    the next latent, which is the policy's action
        the network's input is c_in x at time `timesteps`

    A row whose std is 0 draws no noise: it is no action, and has no log-probability.
    """

    name: str
    """The scheduler's class without "Scheduler", e.g. LCM."""
    timesteps: Tensor
    """[H] fp32, in the scheduler's own units: 0..999, 250 ln(sigma), 1000 sigma or an angle. Denoisers convert it."""
    c_in: Tensor
    """[H] fp32, factor of the network's input."""
    ax: Tensor
    """[H] fp32, x in x0."""
    am: Tensor
    """[H] fp32, m in x0."""
    b0: Tensor
    """[H] fp32, x0 in the mean."""
    bx: Tensor
    """[H] fp32, x in the mean."""
    bm: Tensor
    """[H] fp32, m in the mean."""
    std: Tensor
    """[H] fp32, >= 0."""
    clip: float | None = None
    """x0 is clamped to [-clip, clip]; None leaves it alone. No gradient passes where it clamps."""
    quiet: Tensor | None = None
    """[3, H] fp32: b0, bx and bm of each row if it is to draw no noise; None: as they are."""

    def __len__(self) -> int:
        return len(self.std)

    def to(self, device: torch.device | str) -> TransitionTable:
        """Return the table on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **moved)

    def noisy_steps(self) -> Tensor:
        """Return the rows that draw noise, LongTensor [A] in order: the steps that are actions."""
        return self.std.nonzero().squeeze(1)

    def with_noise_in(self, rows: Sequence[int]) -> TransitionTable:
        """Return the table whose other rows draw no noise, so that only `rows` can be actions.

        A row without its noise takes the noise that the latent has already, where the sampler's builder says how (`quiet`);
        else it is its own mean. Rows that draw none by themselves stay as they are.

        Args:
            rows: of the table, 0 .. H - 1.
        """
        kept = torch.zeros(len(self), dtype=torch.bool)
        kept[list(rows)] = True
        silenced = ~kept.to(self.std.device) & (self.std > 0)
        columns: dict[str, Any] = {"std": torch.where(silenced, 0.0, self.std)}
        if self.quiet is not None:
            for name, quiet in zip(("b0", "bx", "bm"), self.quiet, strict=True):
                columns[name] = torch.where(silenced, quiet, getattr(self, name))
        return replace(self, **columns)

    def with_final_std(self, std: float) -> TransitionTable:
        """Return the table with the last step drawn from N(its own mean, std^2 I), so that it is an action too.

        Note:
            Few-step samplers end without noise, so the last network call learns nothing from a policy gradient. A small
            final std (.05, say, of a latent of unit variance) explores it. Use it in training and leave it out of
            evaluation: it adds noise to the picture, and the table no longer replays the scheduler's last step.

        Raises:
            ValueError: if std <= 0.
        """
        if not std > 0:
            raise ValueError(f"std={std}; use a positive number, in units of the sampler's latent.")
        return replace(self, std=torch.cat([self.std[:-1], torch.full_like(self.std[-1:], std)]))


class Denoiser(Protocol):
    """A network that predicts, and what surrounds it: text encoding, first latents, decoding. See `rlcm.pipelines`."""

    table: TransitionTable
    """The sampler's coefficients, one row a step; row i belongs to the i-th network call."""
    module: nn.Module
    """The trainable network, a diffusers model that takes adapters."""
    latent_shape: tuple[int, ...]
    """The shape of one latent, without the batch."""

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        ...

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of prompts, one row each; negative prompts and guidance included."""
        ...

    def scale_noise(self, noise: Tensor) -> Tensor:
        """Return the first latents [B, *latent_shape] for standard normal noise of that shape."""
        ...

    def denoise(self, x: Tensor, step: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the network's output, fp32 and shaped like x [B, *latent_shape]; `step` [B] indexes the table's rows."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, h, w] of final latents, UNCLAMPED (nominally in [0, 1]), differentiable, fp32."""
        ...


@runtime_checkable
class Reward(Protocol):
    """A reward: any callable from images and prompts to one number an image.

    Images are float RGB in [0, 1], [B, 3, h, w]; the answer is a tensor, array or list [B], higher is better, or a
    dict of named components of that shape. A callable that takes a third argument gets the prompts' metadata, a list of dicts.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], /) -> Any: ...


@dataclass(slots=True)
class Trajectory:
    """What a rollout of B trajectories leaves behind: plain ones have K = 1, branched ones A = 1."""

    prompt_index: Tensor
    """[B] rows of the conditioning and of the prompt list."""
    states: Tensor
    """[B, A, *latent] fp32: the states in which actions were drawn; A is the number of noisy steps."""
    means: Tensor
    """[B, A, *latent] fp32: the means of the sampling policy at those states."""
    actions: Tensor
    """[B, A, K, *latent] fp32: exactly what fed the next step."""
    steps: Tensor
    """[B, A] table rows of the states."""
    images: Tensor
    """[B, K, 3, h, w] in [0, 1], on the CPU."""
    predictions: Tensor | None
    """[B, H, *latent] the x_0 prediction of every network call, kept only for dense rewards."""
    targets: Tensor | None = None
    """[B, A, K, *latent] the x_0 that followed each action, kept only for losses that need it."""
    last_states: Tensor | None = None
    """[B, K, *latent] what the last network call was given, kept only where its gradient is followed."""

    @staticmethod
    def cat(parts: Sequence[Trajectory]) -> Trajectory:
        """Return the trajectories of all parts, in order."""
        columns: dict[str, Any] = {}
        for name in Trajectory.__slots__:
            column = [getattr(part, name) for part in parts]
            columns[name] = None if column[0] is None else torch.cat(column)
        return Trajectory(**columns)


@dataclass(slots=True)
class Experience:
    """States, K actions of each, and how good they were: what an update learns from."""

    states: Tensor
    """[N, *latent] fp32."""
    steps: Tensor
    """[N] table rows."""
    prompt_index: Tensor
    """[N] rows of the conditioning."""
    old_means: Tensor
    """[N, *latent] fp32 means of the policy that drew the actions, which the ratio is taken to: as sampling computed them, or
    as learning does, see `sampling_means`."""
    actions: Tensor
    """[N, K, *latent] fp32."""
    advantages: Tensor
    """[N, K]."""
    weights: Tensor
    """[N] importance of each state; 1 for plain rollouts."""
    targets: Tensor | None = None
    """[N, K, *latent] the x_0 that each action led to, for a consistency loss."""
    sampling_means: Tensor | None = None
    """[N, *latent] fp32 means as sampling computed them, once `old_means` are those of the computation that learns."""

    def __len__(self) -> int:
        return len(self.states)

    def take(self, index: Tensor) -> Experience:
        """Return the states `index` [M] with all that belongs to them."""
        places = {device: send(index, device) for device in {column.device for column in self._columns().values()}}
        return replace(self, **{name: column[places[column.device]] for name, column in self._columns().items()})

    def part(self, start: int, stop: int) -> Experience:
        """Return the states from `start` up to `stop`, as views."""
        return replace(self, **{name: column[start:stop] for name, column in self._columns().items()})

    def to(self, device: torch.device | str) -> Experience:
        """Return it with everything on `device`."""
        return replace(self, **{name: send(column, device) for name, column in self._columns().items()})

    def _columns(self) -> dict[str, Tensor]:
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}


class Drawn(Protocol):
    """Images, what they show and what they are worth: an evaluation, or a set of a study."""

    @property
    def images(self) -> Tensor:
        """[B, 3, h, w] in [0, 1]."""
        ...

    @property
    def prompts(self) -> list[str]:
        """B."""
        ...

    @property
    def seeds(self) -> list[int]:
        """B."""
        ...

    @property
    def rewards(self) -> dict[str, Tensor]:
        """[B] every reward by label, and their sum as "total"."""
        ...

    @property
    def judge(self) -> dict[str, Tensor] | None:
        """[B] booleans by question; None without a judge."""
        ...


Metrics = Mapping[str, float]
"""Named numbers of a round."""
