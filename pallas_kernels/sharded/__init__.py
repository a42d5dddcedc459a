"""The operations on sequences whose tokens are cut over an axis of a mesh."""
