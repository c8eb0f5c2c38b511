"""Windows, layers, network builders, surgery, checkpoints. May import ``data`` and below."""
