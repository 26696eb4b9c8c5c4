"""Measurements side by side in one run, with their ratios: python -m benchmarks.<name>."""
