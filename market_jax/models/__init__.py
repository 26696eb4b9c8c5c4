"""A model is a file that defines `Model`; its file name is its name."""
