"""Channel permutations: search, folding into a layer, storage, composition and inverse."""
