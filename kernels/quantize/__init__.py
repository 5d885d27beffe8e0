"""Per-token quantization of activations."""
