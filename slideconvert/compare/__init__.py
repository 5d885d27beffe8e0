"""Several finished checkpoints side by side: size, quality, expected speed, and output error by layer."""
