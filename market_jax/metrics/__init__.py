"""Measures of predictions, in NumPy."""
