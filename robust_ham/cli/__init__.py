"""The command line: one file per verb. The only package that prints; it may import all others."""
