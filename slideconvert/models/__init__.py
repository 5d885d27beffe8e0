"""What is known of a model family, and models built from it: with weights, without, and layer by layer."""
