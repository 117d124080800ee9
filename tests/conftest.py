"""What all tests share: one thread, Ctrl-C, and the path of the tiny pipelines."""

import os
import signal
import sys
from pathlib import Path

import torch

# One thread, in processes that tests start, too: the models are tiny, and sums are then in the same order everywhere.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # in the background of a shell, and under nohup; tests send them
        signal.signal(number, usual)
sys.path.insert(0, str(Path(__file__).parent / "pipelines"))
