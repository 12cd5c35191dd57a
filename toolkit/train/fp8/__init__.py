"""Frozen weights in FP8: rows of e4m3 with a scale each, for the forward pass and the gradient of the input."""
