"""How far do stacked windows see? README.md tells."""
