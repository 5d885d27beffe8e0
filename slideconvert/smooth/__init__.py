"""Smoothing: channel scales move from the inputs of linears into their weights, so that 8 bits hold the inputs."""
