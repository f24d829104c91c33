"""What things cost on this machine: medians and ratios of one run, and no assertions. `python -m benchmarks --help`."""
