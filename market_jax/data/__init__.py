"""From prepared images to augmented batches."""
