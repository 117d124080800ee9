"""Sampling as acting: run the policy from noise to images, and keep what an update needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlcm.errors import WeightsError
from rlcm.policy import gaussian
from rlcm.policy.noise import draw, image_seed, stream
from rlcm.policy.policy import Policy
from rlcm.policy.transitions import transition
from rlcm.settings import Settings
from rlcm.transfer import send
from rlcm.types import Conditioning, Denoiser, Trajectory, TransitionTable


class RolloutSettings(Settings):
    """How many images a round samples, and how."""

    batch_size: int = Field(default=128, ge=1, le=1_000_000)
    """Images a round, over all processes."""
    images_per_prompt: int = Field(default=1, ge=1, le=1_000_000)
    """Trajectories of the same prompt in a round."""
    sample_batch_size: int = Field(default=64, ge=1, le=1_000_000)
    """Images that one process samples at once. Smaller needs less memory; the images are the same."""
    branches: int = Field(default=8, ge=1, le=1_000_000)
    """K: noises drawn from one state of a trajectory, each run on to an image of its own; 1 is plain sampling."""
    branch_schedule: Literal["uniform", "last", "mixed"] | tuple[float, ...] = "uniform"
    """At which noisy step a trajectory branches: `uniform` any, `last` the last, `mixed` half and half, or one probability a
    noisy step."""
    antithetic: bool = False
    """Half of a trajectory's branches take the negative of the other half's noise."""

    @model_validator(mode="after")
    def _paired(self) -> RolloutSettings:
        if self.antithetic and self.branches % 2:
            raise ValueError(f"rollout.antithetic=true needs an even number of rollout.branches, not {self.branches}.")
        return self


@torch.no_grad()
def rollout(
    policy: Policy,
    conditioning: Conditioning,
    prompt_index: Tensor,
    seeds: Sequence[int],
    *,
    branch_steps: Tensor | None = None,
    branches: int = 1,
    antithetic: bool = False,
    keep_predictions: bool = False,
    keep_targets: Literal["final", "next"] | None = None,
    keep_last: bool = False,
) -> Trajectory:
    """Return B trajectories: plain ones, whose every noisy step is an action, or branched ones.

    A branched trajectory runs alone up to its branch step. There it draws K noises from ONE mean, and its K branches run on
    to K images: K actions for a single network call, which share prompt and state.

    Args:
        conditioning: rows that `prompt_index` [B] points to.
        seeds: B, one an image; the same seeds give the same images.
        branch_steps: [B] table rows with noise at which to branch; None for plain trajectories.
        branches: K; 1 for plain trajectories.
        antithetic: the second half of the branches takes the negative of the first half's noise (K even).
        keep_predictions: keep every call's x_0 prediction (plain trajectories only).
        keep_targets: keep the x_0 that followed each action: the one of the `final` call, or of the `next`.
        keep_last: keep what the last call was given.

    Raises:
        ValueError: if branching is asked for by one of branch_steps and branches only, or K is odd with antithetic noise.
    """
    if (branch_steps is None) != (branches == 1) or (keep_predictions and branch_steps is not None):
        raise ValueError(f"branches={branches} needs branch_steps, and plain trajectories have branches=1")
    if antithetic and branches % 2:
        raise ValueError(f"branches={branches} is odd; antithetic noise comes in pairs")
    denoiser = policy.denoiser
    device, shape = denoiser.device, denoiser.latent_shape
    streams = [stream(seed) for seed in seeds]
    trunk = torch.arange(len(seeds))  # row of x -> trajectory; a trajectory that has branched has K rows
    here = conditioning.take(prompt_index)  # `here` has a row for every row of x
    x = denoiser.scale_noise(send(draw(streams, shape), device))
    kept: list[_Kept] = []
    predictions: list[Tensor] = []
    followed: list[Tensor] = []  # the next call's prediction for every entry of `kept`
    acted: Tensor | None = None  # rows of x that are actions of the call before
    for step, std in enumerate(policy.stds):
        prediction, mean, _ = policy.step(x, torch.full((len(x),), step, device=device), here)
        if keep_predictions:
            predictions.append(prediction)
        if acted is not None:
            followed.append(prediction[send(acted, device)].unflatten(0, (-1, branches)))
        acted, last = None, x
        if std == 0:
            x = mean
            continue
        acting = torch.ones(len(x), dtype=torch.bool) if branch_steps is None else branch_steps[trunk] == step
        rows = acting.nonzero().squeeze(1)
        repeats = torch.where(acting, branches, 1)
        source = torch.arange(len(x)).repeat_interleave(repeats)
        if branches > 1 and len(rows):
            splitting = {int(row): _branch_streams(seeds[int(trunk[row])], branches) for row in rows}
            streams = [s for row, own in enumerate(streams) for s in splitting.get(row, [own])]
        z = send(draw(streams, shape), device)
        # Which rows of the next x are actions: branches of one state side by side.
        ours = acting[source].nonzero().squeeze(1)
        actors, descent = send(ours, device), send(source, device)
        if antithetic and len(rows):
            of_branches = z[actors].unflatten(0, (len(rows), branches))
            of_branches[:, branches // 2 :] = -of_branches[:, : branches // 2]
            z[actors] = of_branches.flatten(0, 1)
        before, last, x = x, x[descent], mean[descent] + std * z
        if len(rows):
            at = send(rows, device)
            actions = x[actors].unflatten(0, (len(rows), branches))
            kept.append(_Kept(trunk[rows], before[at], mean[at], actions, step))
            acted = ours if keep_targets == "next" else None
        if len(source) > len(trunk):
            here = here.take(descent)
        trunk = trunk[source]
    if acted is not None:  # no call follows the last one: its own prediction stands in
        followed.append(prediction[at].unsqueeze(1).expand(-1, branches, *shape))
    images = decode_images(denoiser, x)
    found = _stacked(kept, len(seeds), followed)
    if keep_targets == "final":
        ends = prediction[:, None] if len(prediction) == len(x) else prediction[descent][:, None]
        found["targets"] = ends.unflatten(0, (len(seeds), branches)).transpose(1, 2).expand_as(found["actions"])
    return Trajectory(
        prompt_index=prompt_index,
        **found,
        images=images.unflatten(0, (len(seeds), branches)),
        predictions=torch.stack(predictions, 1) if keep_predictions else None,
        last_states=last.unflatten(0, (len(seeds), branches)) if keep_last else None,
    )


class _Kept(NamedTuple):
    """The actions of one step: whose they are [n], states and means [n, *latent], actions [n, K, *latent], the step."""

    trajectories: Tensor
    states: Tensor
    means: Tensor
    actions: Tensor
    step: int


def _stacked(kept: list[_Kept], size: int, followed: list[Tensor]) -> dict[str, Tensor]:
    """Return states, means, actions and steps, and targets if any, with the axes [B, A, ...]; every trajectory acted A times."""
    if not kept:
        raise ValueError("no step of the sampler draws noise, so a rollout has no actions")
    whose = torch.cat([part.trajectories for part in kept])
    # By trajectory, and within one by step.
    order = whose.argsort(stable=True)
    steps = torch.cat([torch.full((len(part.trajectories),), part.step) for part in kept])
    columns = {name: torch.cat([getattr(part, name) for part in kept]) for name in ("states", "means", "actions")}
    if followed:
        columns["targets"] = torch.cat(followed)
    place = send(order, columns["states"].device)
    found = {name: column[place] for name, column in columns.items()} | {"steps": steps[order]}
    return {name: column.unflatten(0, (size, -1)) for name, column in found.items()}


def _branch_streams(seed: int, branches: int) -> list[torch.Generator]:
    return [stream(image_seed(seed, "branch", branch)) for branch in range(branches)]


@torch.no_grad()
def sample_latents(denoiser: Denoiser, table: TransitionTable, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
    """Return the final latents [B, *latent] that a sampler reaches from the images' seeds.

    Args:
        table: the denoiser's own, or one that differs from it only in its last std.
        conditioning: B rows.
    """
    streams = [stream(seed) for seed in seeds]
    x = denoiser.scale_noise(send(draw(streams, denoiser.latent_shape), denoiser.device))
    for row, std in enumerate(table.std.tolist()):
        step = torch.full((len(x),), row, device=x.device)
        _, x, _ = transition(table, x, denoiser.denoise(x, step, conditioning), step)
        if std > 0:
            x = x + std * send(draw(streams, denoiser.latent_shape), x.device)
    return x


@torch.no_grad()
def path_divergence(policy: Policy, table: TransitionTable, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
    """Return the KL divergence of the policy's path to an image from the base model's: [B], nats, on the CPU.

        KL = E sum over noisy steps of sum((mean - mean_ref)^2) / (2 std^2)

    The divergence of a step is exact; the states are those of B paths, from the images' seeds.

    Args:
        table: as for `sample_latents`, with a noisy step.
        conditioning: B rows.
    """
    denoiser = policy.denoiser
    total = torch.zeros(len(seeds), device=denoiser.device)
    streams = [stream(seed) for seed in seeds]
    x = denoiser.scale_noise(send(draw(streams, denoiser.latent_shape), denoiser.device))
    noisy = table.std.cpu().nonzero().flatten().tolist()
    for row, std in enumerate(table.std.tolist()[: max(noisy, default=-1) + 1]):
        step = torch.full((len(x),), row, device=x.device)
        _, mean, stds = transition(table, x, denoiser.denoise(x, step, conditioning), step)
        if std > 0:
            with policy.reference():
                _, reference, _ = transition(table, x, denoiser.denoise(x, step, conditioning), step)
            total += gaussian.kl(mean, reference, stds, "sum")
            mean = mean + std * send(draw(streams, denoiser.latent_shape), x.device)
        x = mean
    return total.cpu()


@torch.no_grad()
def decode_images(denoiser: Denoiser, latents: Tensor) -> Tensor:
    """Return images [B, 3, h, w] in [0, 1], on the CPU, decoded as many at once as the denoiser's `decode_batch_size` says."""
    at_once = getattr(denoiser, "decode_batch_size", None) or max(len(latents), 1)
    return torch.cat([denoiser.decode(part).clamp(0, 1).cpu() for part in latents.split(at_once)])


@torch.no_grad()
def pictures_of(denoiser: Denoiser, prompts: Sequence[str], seeds: Sequence[int], at_once: int) -> Tensor:
    """Return a picture for each of B prompts, from a seed each: [B, 3, h, w] in [0, 1], on the CPU.

    Args:
        prompts: encoded once each, however often they stand here.
        at_once: how many are sampled together.
    """
    names = sorted(set(prompts))
    encoded, index = denoiser.encode(names), torch.tensor([names.index(prompt) for prompt in prompts])
    parts = [
        sample_latents(denoiser, denoiser.table, encoded.take(index[rows]), [seeds[i] for i in rows.tolist()])
        for rows in torch.arange(len(prompts)).split(at_once)
    ]
    return torch.cat([decode_images(denoiser, latents) for latents in parts])


def require_pictures(images: Tensor) -> Tensor:
    """Return decoded images [B, 3, h, w] that are about to be shown or saved, where NaN would silently become black.

    Raises:
        WeightsError: if one of them holds NaN.
    """
    broken = int((~images.flatten(1).isfinite().all(1)).sum())
    if broken:
        raise WeightsError(
            f"{broken} of {len(images)} pictures hold NaN or infinity: the model's weights, or those of a LoRA, are beyond what its "
            "precision can hold. Take model.precision=fp32, a smaller scale of the LoRA, or another one."
        )
    return images
