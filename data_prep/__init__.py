"""Raw folders -> prepared data sets (TFDS, ArrayRecord), by `python -m data_prep`."""

from data_prep.build import (
    BUILDERS,
    draw_once,
    find_or_prepare,
    prepare,
    prepare_once,
    progress_bar,
)
from data_prep.synthetic import draw

__all__ = [
    "BUILDERS",
    "draw",
    "draw_once",
    "find_or_prepare",
    "prepare",
    "prepare_once",
    "progress_bar",
]
