"""Experiments outside a run: explanatory figures, and a benchmark against other libraries."""
