"""Running checkpoints: loading, the quantized linear, and the kernels that travel with them."""
