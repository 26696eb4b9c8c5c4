"""Evaluators by name: (predict, dataset) -> Result."""
