"""Grids of runs, here or as a Slurm array. README.md tells how."""
