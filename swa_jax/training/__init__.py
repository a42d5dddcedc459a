"""Training: configuration, one step, where it runs, its record and its checkpoints."""
