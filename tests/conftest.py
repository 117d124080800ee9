"""What all tests share: one thread, and the path of the tiny pipelines."""

import sys
from pathlib import Path

import torch

# One thread: the models are tiny, and sums are then in the same order everywhere.
torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent / "pipelines"))
