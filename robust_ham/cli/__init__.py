"""The command line: one file per verb; the only package that prints."""
