"""Results as text, files and pictures."""
