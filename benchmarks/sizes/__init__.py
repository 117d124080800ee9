"""What `full_size.py` is made of: models of published sizes without their weights, counted and measured."""
