"""Convolutions and pooling, fast on a CPU too."""
