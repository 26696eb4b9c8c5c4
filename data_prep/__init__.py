"""Raw folders -> prepared datasets (TFDS, ArrayRecord), by `python -m data_prep`."""

from data_prep.build import BUILDERS, prepare, prepare_once, progress_bar
from data_prep.synthetic import draw

__all__ = ["BUILDERS", "draw", "prepare", "prepare_once", "progress_bar"]
