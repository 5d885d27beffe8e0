"""Calibration: text through the model, layer after layer, and each layer compressed with what was seen there."""
