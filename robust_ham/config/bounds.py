"""The largest numbers that a configuration, an option or a call may hold, and why.

A leaf, the one place for these. They are far beyond what studies use, and small enough that
checking a configuration never asks for much memory or time. What fits on the machine at hand is a
question of its own, see ``evaluation.memory``; so a configuration that is valid on one machine is
valid on another.
"""

from __future__ import annotations

MAX_MODELS = 10_000
"""Of one configuration, sweeps expanded: more is a slip or malice, and would never end."""
MAX_JOBS = 1_000_000
"""Models and their attacks, shard by shard."""
MAX_ITEMS = 1_000
"""Of a list: budgets, milestones, seeds, endpoints. Curves are drawn through tens of budgets."""
MAX_NAME = 255
"""Bytes of a part of a path: file systems take no more."""
MAX_IMAGES = 100_000_000
"""Of a split: ImageNet-21k has 14 million."""
MAX_BATCH = 1_048_576
"""Images of a step, or handed to an attack at once; batches of 32,768 have been published."""
MAX_IMAGE_SIZE = 4_096
"""Pixels of a side; classifiers are trained at 14 to 1,024."""
MAX_EPOCHS = 100_000
"""Passes over the images; few images are trained on for 10,000."""
MAX_RATE = 1e30
"""Learning rate and weight decay; both are rarely above 1. float32 holds up to 3e38; a rate that is
too large for the data ends training in one line, as the loss is no longer finite."""
MAX_DEPTH = 100
"""Convolutions of the small network; the paper's largest has 6."""
MAX_CHANNELS = 65_536
"""Of a layer; wide networks have 4,096."""
MAX_WIDTH = 16.0
"""Multiplier of all channels."""
MAX_KERNEL = 99
"""Side of a kernel; studies go up to 31."""
MAX_SEED = 2**31 - 1
"""What every generator of random numbers takes."""
MAX_DISTANCE = 10_000.0
"""L2 between a black and a white colour image of 4,096 × 4,096 pixels is 7,094."""
MAX_THREADS = 1_024
"""Machines have up to some hundred cores; a million threads end the interpreter."""
MAX_WORKERS = 100_000
"""Jobs at a time on a cluster."""
MAX_GPUS = 64.0
"""Of one job."""
MAX_ROUNDS = 1_000
"""Times that a benchmark times each library."""
MAX_OPTION = 1_000_000
"""Any number among the options of our attacks and of foolbox's, of either sign: the longest
published attacks take 25,000 steps. What multiplies candidates is bounded by the attack itself."""
