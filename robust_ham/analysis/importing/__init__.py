"""Per-image tables of other libraries -> a run folder."""
