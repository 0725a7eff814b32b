"""The fault matrix: each cause made for real, against the service as it really runs. docs/faults.rst tells them all."""
