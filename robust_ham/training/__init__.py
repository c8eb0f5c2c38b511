"""Train one network, resume it, share it among processes. Imports ``models`` and below."""
