"""Statements of the reference works, and how a run's tables answer them."""
