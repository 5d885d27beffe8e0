"""The plan of a conversion, from the fields of a recipe to the tensors of the output. It needs shapes alone."""
