"""Pictures of every kind, and a clock for what must not hang."""

import contextlib
import io
import signal
import struct
import zlib

import numpy as np
from PIL import Image

# four blocks, so that no turn and no mirror image looks the same, also as a JPEG
UPRIGHT = np.repeat(np.repeat(np.arange(6).reshape(3, 2), 16, 0), 16, 1).astype(np.uint8) * 40


def encoded(image, kind="PNG", **how) -> bytes:
    """A picture's file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def png(width: int, height: int, *, bits: int = 8, kind: int = 2, rows: bytes = b"") -> bytes:
    """A PNG by hand: whatever size its header claims."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@contextlib.contextmanager
def within(seconds: int):
    """Fails instead of hanging."""

    def fail(*_):
        raise AssertionError(f"it took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
