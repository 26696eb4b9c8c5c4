"""Columns kept in a file: used again while what they follow from is the same."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from market_jax.errors import InputError
from market_jax.files import write_atomically
from market_jax.typing import Columns


def cached(path: Path, key: str, make: Callable[[], Columns]) -> Columns:
    """The columns in a file, if it was written for the same key; else made anew, and written.

    Args:
      path: the .npz file, which appears whole, by a rename.
      key: what the columns follow from: the checkpoint, the data, the settings.
      make: () -> columns.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                names = [name for name in stored.files if name not in ("key", "digest")]
                columns = {name: stored[name] for name in names}
                if str(stored["digest"]) == _digest(columns):
                    return columns
    except Exception:  # missing, or broken in whatever way: it can be made again
        logging.debug("%s is made anew", path, exc_info=True)
    columns = make()
    buffer = io.BytesIO()
    np.savez(buffer, key=key, digest=_digest(columns), **columns)
    try:
        write_atomically(path, buffer.getvalue())
    except InputError as error:  # a full disk: it is made again the next time
        logging.warning("%s", error)
    return columns


def _digest(columns: Columns) -> str:
    """A digest of the names, dtypes, shapes and values of columns."""
    digest = hashlib.sha256()
    for name, value in sorted(columns.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
