"""What does a token cost at a long context? README.md has the method."""
