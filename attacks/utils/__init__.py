"""Code shared by several attacks."""
