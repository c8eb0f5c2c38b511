"""Upper bounds of the numbers in a configuration, an option or a call.

They are far beyond what studies use, and small enough that checking a configuration takes little
memory and time. They do not depend on the machine, so that a configuration is valid on all or none;
``evaluation.memory`` checks what fits on this one.
"""

from __future__ import annotations

MAX_MODELS = 10_000
"""Models of one configuration, with sweeps expanded."""
MAX_JOBS = 1_000_000
"""Jobs of one configuration: models, and shards of attacks on them."""
MAX_ITEMS = 1_000
"""Entries of a list: budgets, milestones, seeds, endpoints. Curves have tens of budgets."""
MAX_NAME = 255
"""Bytes of a part of a path, the limit of file systems."""
MAX_IMAGES = 100_000_000
"""Images of a split; ImageNet-21k has 14 million."""
MAX_BATCH = 1_048_576
"""Images per training step or call of an attack; batches of 32,768 have been published."""
MAX_IMAGE_SIZE = 4_096
"""Pixels per side; classifiers are trained at 14 to 1,024."""
MAX_EPOCHS = 100_000
"""Passes over the training images; small data sets are trained for up to 10,000."""
MAX_RATE = 1e30
"""Learning rate and weight decay; both are rarely above 1, and float32 holds up to 3e38."""
MAX_DEPTH = 100
"""Convolutions of the small network; the paper's largest has 6."""
MAX_CHANNELS = 65_536
"""Channels of a layer; wide networks have 4,096."""
MAX_WIDTH = 16.0
"""Multiplier of all channels."""
MAX_KERNEL = 99
"""Side of a kernel; studies go up to 31."""
MAX_SEED = 2**31 - 1
"""Largest seed that all random number generators accept."""
MAX_DISTANCE = 10_000.0
"""L2 between a black and a white colour image of 4,096 × 4,096 pixels is 7,094."""
MAX_THREADS = 1_024
"""CPU threads; machines have up to a few hundred cores."""
MAX_WORKERS = 100_000
"""Concurrent jobs on a cluster."""
MAX_GPUS = 64.0
"""GPUs of one job."""
MAX_ROUNDS = 1_000
"""Rounds of a benchmark."""
MAX_OPTION = 1_000_000
"""Absolute value of a numeric option of an attack; the longest published attacks take 25,000
steps."""
