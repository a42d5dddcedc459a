"""How fast is a training step? README.md has the method."""
