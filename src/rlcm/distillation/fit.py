"""One training loop for the recipe and the distiller: seeded by update, averaged weights, resumable from its last checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlcm.errors import CheckpointError, TrainingError
from rlcm.runs.refusals import disk_errors
from rlcm.runs.serialization import load_state, save_state

Loss = Callable[[torch.Generator, float], dict[str, torch.Tensor]]
"""From a CPU generator that depends on (seed, update) alone, and the progress in [0, 1), to scalars; "loss" is minimised."""


SAVE_EVERY_SECONDS = 60.0
AGAIN = ", then give the same command again: it goes on with what was saved"


@dataclass(frozen=True, slots=True)
class Fit:
    """How long and how fast a stage trains: Muon and AdamW, warm-up then linear decay over the second half, EMA."""

    updates: int
    lr: float = 2e-3
    """Of AdamW: embeddings, biases, norms and thin layers, or all weights where muon_lr is 0."""
    muon_lr: float = 0.0
    """Of Muon: all weights with two or more axes of at least eight."""
    warmup: int = 50
    weight_decay: float = 1e-2
    ema: float = 0.999
    max_grad_norm: float = 1.0


def device() -> torch.device:
    """Return the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_precision() -> torch.autocast:
    """Return an autocast to bfloat16 where the processor computes in it, else one that does nothing."""
    on_gpu = torch.cuda.is_available()
    return torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16, enabled=on_gpu or torch.cpu._is_avx512_bf16_supported())


def fit(
    name: str, model: nn.Module, loss: Loss, settings: Fit, work: Path, seed: int, *, companion: nn.Module | None = None
) -> None:
    """Train `model` in place and leave it with its averaged weights.

    Args:
        companion: a module without gradients that changes during training (a slow copy) and is part of the checkpoint.
        work: gets `<name>.safetensors`, from which an interrupted stage goes on, and `<name>.jsonl`, its log.

    Raises:
        CheckpointError: if the work to go on with is damaged, or that of another model.
        TrainingError: if the loss or the gradient is not finite.
    """
    copy = list(companion.parameters()) if companion is not None else []
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimisers = _optimisers(model, settings)
    average = [p.detach().clone() for p in parameters]
    file, log = work / f"{name}.safetensors", work / f"{name}.jsonl"
    done = 0
    seconds = 0.0
    if file.exists():
        try:
            state = load_state(file)
        except CheckpointError as error:
            raise CheckpointError(
                f"{str(error).partition(';')[0].rstrip('.')}; delete {file} to begin the stage again."
            ) from error
        try:
            done, seconds = int(state["updates"]), float(state["seconds"])
            for optimiser, stored in zip(optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(stored)
            for ours, kind in ((parameters, "weights"), (average, "average"), (copy, "companion")):
                for p, tensor in zip(ours, state[kind], strict=True):
                    if p.shape != tensor.shape:  # copying would stretch a smaller one in silence
                        raise ValueError(f"a weight is {tuple(tensor.shape)} in place of {tuple(p.shape)}")
                    p.data.copy_(tensor)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{file} is that of another model or of other settings ({error}); delete it to begin the stage again, or go on with "
                "the settings that it began with."
            ) from error

    if done >= settings.updates:
        print(f"{name}: {done} updates are done already, of {settings.updates} that were asked for", flush=True)
    kept = done

    def save() -> None:
        state = {
            "updates": done,
            "seconds": seconds,
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "weights": [p.data for p in parameters],
            "average": average,
            "companion": [p.data for p in copy],
        }
        with disk_errors(file, then=AGAIN):
            save_state(file, state)

    started = saved = time.monotonic()
    began_with = seconds
    sums: dict[str, float] = {}
    summed = 0
    while done < settings.updates:
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _schedule(done, settings)
        values = loss(torch.Generator().manual_seed(seed * 1_000_003 + done), done / settings.updates)
        model.zero_grad(set_to_none=True)
        values["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        figures = {key: float(value.detach()) for key, value in {**values, "grad_norm": norm}.items()}
        if not (math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"])):
            raise TrainingError(
                f"{name}: update {done + 1} has a loss or gradient that is not finite (loss {figures['loss']:g}, gradient norm "
                f"{figures['grad_norm']:g}), so training stops here. What was saved is of update {kept}. Lower lr={settings.lr:g}, and "
                f"begin again in another folder, or delete {work}."
            )
        for optimiser in optimisers:
            optimiser.step()
        done += 1
        decay = min(settings.ema, done / (done + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        for key, figure in figures.items():
            sums[key] = sums.get(key, 0.0) + figure
        summed += 1
        now = time.monotonic()
        seconds = began_with + now - started
        if done % 50 == 0 or done == settings.updates:
            line = {"update": done, "seconds": round(seconds, 1)} | {k: round(v / summed, 5) for k, v in sums.items()}
            sums.clear()
            summed = 0
            with disk_errors(log, then=AGAIN), open(log, "a") as out:
                out.write(json.dumps(line) + "\n")
            print(f"{name} {line}", flush=True)
        if now - saved > SAVE_EVERY_SECONDS or done == settings.updates:
            save()
            kept = done
            saved = time.monotonic()
    for p, a in zip(parameters, average, strict=True):
        p.data.copy_(a)


def _schedule(update: int, settings: Fit) -> float:
    if update < settings.warmup:
        return (update + 1) / settings.warmup
    return min(1.0, 2 * (1 - update / settings.updates))


def _optimisers(model: nn.Module, settings: Fit) -> list[torch.optim.Optimizer]:
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2 and min(p.shape[:2]) >= 8 and id(p) not in embeddings]
    if not settings.muon_lr:
        matrices = []
    chosen = {id(p) for p in matrices}
    others = {"params": [p for p in trained if id(p) not in chosen], "peak": settings.lr}
    adam = torch.optim.AdamW([others], lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.99))
    return [adam, Muon([{"params": matrices, "peak": settings.muon_lr}])] if matrices else [adam]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal: Jordan et al. 2024, "Muon"; convolutions count as [out, in * k * k].

    On the built-in autoencoder it reaches in 150 updates what AdamW needs about 1,000 for.
    """

    def __init__(self, params: Any, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step along the gradients; a closure is not called."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(p.grad)
                direction = _orthogonal((p.grad + group["momentum"] * velocity).flatten(1))
                scale = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
                p.add_(direction.view_as(p), alpha=-group["lr"] * scale)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return the nearest semi-orthogonal matrix, roughly, by five quintic Newton-Schulz iterations."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return x.T if tall else x
