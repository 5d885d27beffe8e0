"""What the commands do, as functions: options as dataclasses, results as objects; nothing is printed."""
