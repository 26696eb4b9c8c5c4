"""Raw folders -> prepared datasets (TFDS, ArrayRecord), by `python -m data_prep`."""

from data_prep.prepare import BUILDERS, prepare, prepare_once

__all__ = ["BUILDERS", "prepare", "prepare_once"]
