"""Per-token quantization fused with the gather of activations into slide windows."""
