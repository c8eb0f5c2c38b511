"""A run from its plan to its last table. Imports everything but ``experiments`` and ``cli``."""
