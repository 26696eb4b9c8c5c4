"""Published weights: reading files of tensors, and fitting them to a model."""
