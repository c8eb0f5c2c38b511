"""Adversarial robustness of baseline and windowed CNNs across kernel sizes."""

__version__ = "0.1.0"
