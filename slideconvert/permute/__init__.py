"""Channel permutations: found, folded into the weights, recorded."""
