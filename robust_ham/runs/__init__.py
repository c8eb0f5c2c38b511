"""Runs: plan, jobs, runners, status, verification. Imports all but ``experiments`` and ``cli``."""
