"""The suite: checks any implementation of tensor-parallel layers against the contract in `spec`."""
