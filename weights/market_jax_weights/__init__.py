"""Trained networks for market_jax: NAME.safetensors, and its model card NAME.md.

`market_jax.load("NAME")` and `evaluate.py --model=NAME` find them here; there is no code.
"""
