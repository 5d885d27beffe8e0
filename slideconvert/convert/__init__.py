"""Conversion of a planned model. Only pipeline.py knows the order of the stages."""
