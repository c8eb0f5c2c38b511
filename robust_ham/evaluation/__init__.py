"""Run an attack, score its output independently, write one row per image."""
