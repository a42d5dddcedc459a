"""How fast and how small are the linear-cost forms? README.md has the method."""
