"""The commands as Python functions: options as dataclasses, results as objects; they print nothing."""
