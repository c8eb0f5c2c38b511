"""Typed sections of a configuration, read from YAML. Without torch; imports ``errors``."""
