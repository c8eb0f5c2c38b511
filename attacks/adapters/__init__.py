"""Adapters that give attacks of other libraries the interface of this package."""
