"""What `gpu.py` is made of: its cases in order of worth, how each is run, and what the page says of them."""
