"""What came of runs, side by side: how good one model is, runs compared, the paper's experiments."""
