"""Recovery: trains the remaining weights against the dense model, block by block and end to end."""
