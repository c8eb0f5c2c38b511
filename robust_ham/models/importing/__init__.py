"""Third-party checkpoints: read without running code, and assigned to our networks.

May import the rest of ``models``, ``data``, ``storage`` and ``config``.
"""
