"""Models of published sizes without their weights, counted and measured, and tiny ones: for `full_size.py` and `gpu.py`."""
