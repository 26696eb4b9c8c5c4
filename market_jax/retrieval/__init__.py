"""Ranking a gallery: distances, stages that change them, and search."""
