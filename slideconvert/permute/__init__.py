"""Channel permutations: their search, folding into a layer, record and inverse."""
