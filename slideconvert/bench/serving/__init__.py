"""Serving in vLLM: the checkpoints that are compared, an engine of each in its own process, what it reached."""
