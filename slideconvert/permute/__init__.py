"""Channel permutations: searched (search), folded into a layer (layer, fold), recorded and undone (permutations)."""
