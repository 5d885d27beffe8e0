"""The conversion of a planned model; pipeline.py alone knows the order of the stages."""
