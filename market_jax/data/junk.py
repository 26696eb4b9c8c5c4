"""Makes junk out of pictures of people, for data without labelled junk: crops of a bad detector."""

import numpy as np

from market_jax.data.decoding import resize

KINDS = ("background", "part", "shifted")


def make_junk(images: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Makes a piece of junk from each image.

    Args:
      images: pictures of people, uint8 [M, H, W, 3].
      seed: seeds the choice of kinds and places.

    Returns:
      The junk, uint8 [M, H, W, 3], and the kind of each picture, str [M]: "background" is a strip
      beside the person, enlarged; "part" is a quarter to a third of height and width, enlarged;
      "shifted" is half of the person beside the background of another picture.
    """
    rng = np.random.default_rng(seed)
    kinds = rng.choice(KINDS, len(images))
    others = rng.permutation(len(images))
    height, width = images.shape[1:3]
    made = np.empty_like(images)
    for i, (image, kind) in enumerate(zip(images, kinds, strict=True)):
        if kind == "background":
            w, h = max(width // 6, 1), max(height // 3, 1)
            left = 0 if rng.random() < 0.5 else width - w
            top = rng.integers(0, height // 3 + 1)
        elif kind == "part":
            share = rng.uniform(0.25, 0.35)
            h, w = max(int(share * height), 1), max(int(share * width), 1)
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        else:
            half = width // 2
            strip = resize(images[others[i], :, : max(width // 6, 1)], (height, width - half))
            side = image[:, :half] if rng.random() < 0.5 else image[:, width - half :]
            made[i] = np.concatenate([strip, side], axis=1)
            continue
        made[i] = resize(
            np.ascontiguousarray(image[top : top + h, left : left + w]), (height, width)
        )
    return made, kinds
