"""Checkpoints of other people, read without running code and fitted to networks."""
