"""What all tests share: one thread, and the path of the tiny pipelines."""

import os
import sys
from pathlib import Path

import torch

# One thread, in processes that tests start, too: the models are tiny, and sums are then in the same order everywhere.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent / "pipelines"))
