"""Perplexity and zero-shot tasks of checkpoints."""
