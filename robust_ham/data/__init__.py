"""Named data sets and folders -> uint8 tensors. Imports ``storage`` and ``config``."""
