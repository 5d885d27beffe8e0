"""The Hugging Face Hub: resolve and download sources, publish checkpoints, explain failures."""
