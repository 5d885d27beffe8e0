"""The types that every stage works on: patterns, number schemes, quantized weights, masks."""
