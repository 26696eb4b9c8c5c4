"""Experiments as plain data: one file each."""
