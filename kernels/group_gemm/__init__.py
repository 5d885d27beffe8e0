"""Products with weights quantized by groups of columns, of which some are absent."""
