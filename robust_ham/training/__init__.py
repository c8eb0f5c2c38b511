"""Train one network; resume; torchrun. Imports ``models`` and what stands below it."""
