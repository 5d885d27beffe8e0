"""What comes before a linear, fused with the quantization of its activations: RMSNorm, gated activations."""
