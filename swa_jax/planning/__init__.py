"""What a training step would be on a cluster that is not there, found by compiling."""
