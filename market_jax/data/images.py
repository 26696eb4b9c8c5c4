"""Pictures that are decoded when they are indexed: `images[indices]` -> uint8 [n, H, W, 3]."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from market_jax.data import decoding

_CHUNK = 1024  # pictures at a time


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """Pictures of a prepared data set, read by random access.

    Attributes:
      source: records with "image" (encoded) and "name".
      rows: the pictures' positions in the source, int [M].
      image_size: (height, width); pictures of another size are resized.
      fingerprint: a digest that differs for other pictures.
    """

    source: Sequence[Any]
    rows: np.ndarray
    image_size: tuple[int, int]
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        records = self.source.__getitems__([int(i) for i in self.rows[indices]])
        images = (decoding.decode(record["image"], record["name"]) for record in records)
        return decoding.resize_all(images, self.image_size, len(records))

    def take(self, indices: np.ndarray) -> "StoredImages":
        """The pictures at `indices`, not decoded yet."""
        return dataclasses.replace(self, rows=self.rows[indices])


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Pictures in single files.

    Attributes:
      paths: the paths of the files, str [M].
      image_size: (height, width); pictures of another size are resized.
      fingerprint: a digest that differs for other pictures.
    """

    paths: np.ndarray
    image_size: tuple[int, int]
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        paths = self.paths[indices]
        return decoding.resize_all(map(decoding.read, paths), self.image_size, len(paths))

    def take(self, indices: np.ndarray) -> "ImageFiles":
        """The pictures at `indices`, not decoded yet."""
        return dataclasses.replace(self, paths=self.paths[indices])


@dataclasses.dataclass(frozen=True)
class JoinedImages:
    """Pictures of several sources, one after the other.

    Attributes:
      parts: the sources: arrays, or other classes of this module.
      part: int [M], the number of the source that a picture is in.
      rows: int [M], the picture's position in its source.
    """

    parts: tuple[Any, ...]
    part: np.ndarray
    rows: np.ndarray

    @property
    def fingerprint(self) -> str | None:
        """A digest that differs for other pictures; None if a source has none."""
        known = [getattr(part, "fingerprint", None) for part in self.parts]
        return None if None in known else "+".join(known)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        part, rows = self.part[indices], self.rows[indices]
        images = None
        for number in np.unique(part):
            chosen = part == number
            found = self.parts[number][rows[chosen]]
            if images is None:
                images = np.empty((len(rows), *found.shape[1:]), np.uint8)
            images[chosen] = found
        return self.parts[0][rows] if images is None else images

    def take(self, indices: np.ndarray) -> "JoinedImages":
        """The pictures at `indices`, not decoded yet."""
        return dataclasses.replace(self, part=self.part[indices], rows=self.rows[indices])


def join(parts: Sequence[Any]) -> JoinedImages:
    """Joins several sources of pictures.

    Args:
      parts: arrays uint8 [M, H, W, 3] or the classes above, all with the same H and W.
    """
    sizes = [len(part) for part in parts]
    return JoinedImages(
        tuple(parts),
        np.repeat(np.arange(len(parts)), sizes),
        np.concatenate([np.arange(size) for size in sizes]),
    )


def files_fingerprint(paths: Sequence[Path], *more: Any) -> str:
    """A digest of files' names, sizes and times; it differs when a file has changed.

    Args:
      paths: the files.
      *more: other values that the digest depends on, such as the image size.
    """
    state = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in map(Path, paths)]
    return hashlib.sha256(repr((state, more)).encode()).hexdigest()[:16]


def _fits(size_in_bytes: int) -> bool:
    """Whether an array takes at most half of the memory that is free now."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return True
    return size_in_bytes <= free // 2


def load(images: Any) -> Any:
    """Decodes pictures into an array uint8 [M, H, W, 3], if they fit into memory.

    Args:
      images: pictures as in a column "image"; returned as they are if they do not fit.
    """
    if isinstance(images, np.ndarray) or not len(images):
        return images
    first = images[np.arange(1)]
    if not _fits(len(images) * first.nbytes):
        logging.warning("%d pictures do not fit into memory: they are read anew", len(images))
        return images
    loaded = np.empty((len(images), *first.shape[1:]), np.uint8)
    for start in range(0, len(images), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(images)))
        loaded[rows] = images[rows]
    return loaded


def digests(images: Any) -> np.ndarray:
    """A digest of each picture's pixels, bytes [M]; equal pictures have equal digests.

    Args:
      images: pictures as in a column "image".
    """
    parts = []
    for start in range(0, len(images), _CHUNK):
        chunk = images[np.arange(start, min(start + _CHUNK, len(images)))]
        parts += [hashlib.sha256(image.tobytes()).hexdigest()[:32].encode() for image in chunk]
    return np.array(parts)
