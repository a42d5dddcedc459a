"""Where text comes from: one file for each format, and one that finds the files."""
