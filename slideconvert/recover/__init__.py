"""Recovery: training what pruning left over against the dense model, block by block and end to end."""
