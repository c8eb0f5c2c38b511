"""Import third-party per-image tables as run folders; no torch."""
