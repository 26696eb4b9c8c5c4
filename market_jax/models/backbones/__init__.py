"""Backbones by name: a file defines `Model`."""
