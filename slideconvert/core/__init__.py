"""What every stage works on: patterns, number schemes, quantized weights, masks."""
