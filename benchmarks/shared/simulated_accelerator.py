"""An accelerator's rounding on a CPU: a network's output rounded to few bits, in a way that depends on the batch's shape.

GPUs choose other kernels for other batch shapes, so one state gets another last bit in a batch of 16 than in one of 8. A CPU
does not, which is why tests on a CPU alone never see it. Here the output is rounded up or down, entry by entry, as the size of
the batch says: never further than to the next number of the precision, and always alike for batches of one size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

MANTISSA = {"bf16": 7, "fp16": 10, "tf32": 10}
"""Bits of a number behind its leading one."""


def rounded(output: Tensor, precision: str) -> Tensor:
    """Return a network's output [B, *latent] as an accelerator of that precision would give it, with its gradient.

    Args:
        output: fp32.
        precision: bf16, fp16 or tf32.
    """
    with torch.no_grad():
        spacing = torch.exp2(output.abs().clamp(min=2.0**-24).log2().floor() - MANTISSA[precision])
        dither = torch.rand(output.shape[1:], generator=torch.Generator().manual_seed(len(output)))
        near = (output / spacing + dither).floor() * spacing
    return output + (near - output).detach()


@contextmanager
def simulated(denoiser: Any, precision: str) -> Iterator[None]:
    """Within it, a denoiser answers as on an accelerator of that precision."""
    real = denoiser.denoise
    denoiser.denoise = lambda *arguments: rounded(real(*arguments), precision)
    try:
        yield
    finally:
        del denoiser.denoise
