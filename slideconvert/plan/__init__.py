"""What is to be done, from the words of a recipe to the tensors of the output; on shapes alone."""
