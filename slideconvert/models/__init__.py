"""Model families, and models built from them: with weights, without weights, and layer by layer."""
