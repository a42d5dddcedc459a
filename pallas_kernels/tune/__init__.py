"""The fastest tiles of the GPU kernels on the machine at hand, found by measuring."""
