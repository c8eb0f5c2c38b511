"""Experiments beside a run: explanatory figures, and other libraries side by side."""
