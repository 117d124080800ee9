"""Runs that are disturbed: by faults of every kind, and by `kill -9` at random instants."""
