"""Ways to run a quantized linear, and the choice among them."""
