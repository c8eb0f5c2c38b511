"""Named data sets and folders of images → uint8 tensors. May import ``storage`` and ``config``."""
