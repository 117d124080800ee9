"""Per-prompt statistics: the running rewards of every prompt as its baseline."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlcm.learning.advantages.standardising import checked_values, like, standardise


class PromptStatistics:
    """Running rewards of every prompt, and the advantages that follow from them.

        A = (r - mean_p) / (std_p + 1e-6)

    mean_p and std_p are those of the prompt's last `buffer_size` rewards, this round's included, once they are at least
    `min_count`; until then those of the whole batch. Black et al. 2023 (DDPO, arXiv:2305.13301), as in RLCM
    (arXiv:2404.03673).

    Args:
        buffer_size: how many rewards a prompt remembers, >= 1; the oldest leave first.
        min_count: how many it needs before its own statistics are used, 1 .. buffer_size.
        normalise_std: False subtracts the mean only.

    Raises:
        ValueError: if buffer_size < 1 or min_count is not within 1 .. buffer_size.
    """

    def __init__(self, buffer_size: int, min_count: int, *, normalise_std: bool = True) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be >= 1, got {buffer_size}")
        if not 1 <= min_count <= buffer_size:
            raise ValueError(f"min_count must be within 1 .. buffer_size={buffer_size}, got {min_count}")
        self.buffer_size = buffer_size
        self.min_count = min_count
        self.normalise_std = normalise_std
        self._buffers: dict[str, deque[float]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Remember this round's rewards and return their advantages.

        Rewards all equal (in the prompt's buffer, or in the batch where it stands in) carry no preference: advantage 0.

        Args:
            prompts: B strings, one an image.
            rewards: [B], finite.

        Returns:
            [B] advantages.

        Raises:
            ValueError: if the lengths disagree or a reward is not finite. The buffers are then as before.
        """
        values = checked_values(rewards)
        if len(prompts) != len(values):
            raise ValueError(f"{len(prompts)} prompts for {len(values)} rewards")
        for prompt, value in zip(prompts, values.tolist(), strict=True):
            self._buffers.setdefault(prompt, deque(maxlen=self.buffer_size)).append(value)
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(row)
        result = torch.empty_like(values)
        for prompt, index in rows.items():
            buffer = self._buffers[prompt]
            population = torch.tensor(buffer, dtype=torch.float64) if len(buffer) >= self.min_count else values
            result[index] = standardise(values[index], population, self.normalise_std)
        return like(result, rewards)

    def engaged_fraction(self, prompts: Sequence[str]) -> float:
        """Return the share of images whose prompt has enough rewards for statistics of its own, 0 .. 1."""
        engaged = [len(self._buffers.get(prompt, ())) >= self.min_count for prompt in prompts]
        return sum(engaged) / max(len(engaged), 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered rewards, oldest first, as JSON-able values; a float survives JSON bit for bit."""
        return {"buffers": {prompt: list(buffer) for prompt, buffer in self._buffers.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; under a smaller buffer_size the newest rewards stay."""
        self._buffers = {
            prompt: deque(map(float, buffer), maxlen=self.buffer_size) for prompt, buffer in state["buffers"].items()
        }
