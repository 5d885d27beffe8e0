"""Calibration: run text through the model layer by layer, and compress each layer for its inputs."""
