"""What the tests of rewards share."""

import pytest
import torch
from torch import Tensor


@pytest.fixture
def images() -> Tensor:
    """Five random pictures [5, 3, 12, 10]: B, C, h, w all differ."""
    return torch.rand(5, 3, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def prompts() -> list[str]:
    return ["a cat", "a dog", "a red fox", "two bees", "a whale"]
