"""What lies on disk: a run's folder, its checkpoints, and where its metrics go."""
