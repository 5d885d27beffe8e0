"""Dense INT8 product with scales and bias fused."""
