"""Pedestrian attributes and person re-identification on Market-1501, in JAX."""
