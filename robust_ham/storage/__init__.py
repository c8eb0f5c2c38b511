"""Run folders: atomic files, locks, signals, checksums. Without torch; imports ``config``."""
