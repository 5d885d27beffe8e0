"""The conversion itself: the one place that knows the order of the stages."""
