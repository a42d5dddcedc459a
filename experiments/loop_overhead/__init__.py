"""What does the training loop cost beside its step? README.md has the method."""
