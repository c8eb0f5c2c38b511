"""Statements of the reference works as assertions, and their answers; no torch."""
