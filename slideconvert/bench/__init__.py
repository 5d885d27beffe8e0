"""Benchmarks of kernels, layers and servers: what is timed, how, what is kept of it, and how it is shown."""
