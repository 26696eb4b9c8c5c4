"""The embedded data set: pedestrians drawn by the project, in Market-1501's official layout."""

from data_prep.synthetic.release import draw

__all__ = ["draw"]
