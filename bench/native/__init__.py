"""What native kernels must hold: every bound as data, measured in one run."""
