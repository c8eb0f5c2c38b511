"""The work of jobs (models, attacks) and of the steps after them (gate, transfer, kernels)."""
