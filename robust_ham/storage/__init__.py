"""A run folder: files written whole, locks, signals, checksums. Without torch."""
