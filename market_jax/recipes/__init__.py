"""Recipes by name: a file defines `fit(config, workdir)`, what `train.py` runs."""
