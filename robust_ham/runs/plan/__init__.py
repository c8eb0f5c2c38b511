"""From a configuration to jobs."""
