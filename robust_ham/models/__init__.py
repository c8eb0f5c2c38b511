"""Windows, layers, network builders, surgery, checkpoints."""
