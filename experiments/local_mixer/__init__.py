"""Does attention over a short window beat the short convolution? README.md tells."""
