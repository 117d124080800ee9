"""What `precision.py` is made of: the ratio before any update, and the demo, on a simulated accelerator."""
