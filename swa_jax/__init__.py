"""SWAX and its relatives: windowed attention and recurrent memory, in JAX."""
