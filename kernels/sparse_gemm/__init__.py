"""Matrix product of lifted activations with packed 2:4 windows."""
