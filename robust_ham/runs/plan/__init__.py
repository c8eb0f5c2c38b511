"""Turn a configuration into jobs and their keys."""
