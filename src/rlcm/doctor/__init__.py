"""Whether a run will work, before it is begun."""
