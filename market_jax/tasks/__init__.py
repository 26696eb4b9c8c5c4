"""What `evaluate.py --task=NAME` runs: a file defines `run`."""
