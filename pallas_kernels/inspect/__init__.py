"""What the GPU kernels become on a GPU, found by compiling where there is none."""
