"""What one job does: train a model, attack it; the gate's checks; transfer."""
