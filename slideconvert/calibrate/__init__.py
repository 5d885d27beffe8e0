"""Calibration: runs text through the model layer by layer and compresses each layer by its inputs."""
