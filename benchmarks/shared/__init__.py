"""What several scripts need, one file a thing."""
