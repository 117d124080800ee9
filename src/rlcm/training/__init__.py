"""A run: its configuration, its rounds, and the loop over them."""
