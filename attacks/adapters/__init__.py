"""Attacks of other libraries behind the contract of this package."""
