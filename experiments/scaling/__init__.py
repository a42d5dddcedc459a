"""How the bytes between devices grow with the row's length and the number of GPUs."""
