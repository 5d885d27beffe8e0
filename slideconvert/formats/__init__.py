"""How a linear is stored in a checkpoint: layouts, bytes, config.json."""
