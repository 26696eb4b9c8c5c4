"""Writes the synthetic release: who walks past which camera when, and the pictures.

The same seed gives the same release. A person walks from camera to camera; the time on the way is
`cameras.travel_frames` with a spread of a tenth, so that frame numbers say something about who can
be where.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.io

from data_prep.synthetic import cameras, people
from market_jax.data.attributes import COLUMNS, decode
from market_jax.errors import InputError

RECORD = "drawn.json"  # how the release was drawn
FOLDERS = {"train": "bounding_box_train", "test": "bounding_box_test", "query": "query"}
_SHOTS = (3, 7)  # pictures of a person at one camera: least, most + 1
_VISITS = (3, 7)  # cameras that a person passes: least, most + 1
_SEQUENCE = 30_000  # frames
_TRAINING = 0.75  # share of the identities: few people teach a network names, not attributes


def visits(rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    """The cameras that one person passes: (camera, sequence, frame) of each.

    Args:
      rng: source of everything random.
    """
    order = rng.permutation(list(cameras.CAMERAS))[: rng.integers(*_VISITS)]
    sequence, frame = int(rng.integers(1, 3)), float(rng.integers(100, _SEQUENCE // 2))
    for previous, camid in zip([None, *order], order, strict=False):
        if previous is not None:
            frame += cameras.travel_frames(int(previous), int(camid)) * rng.normal(1.0, 0.1)
        yield int(camid), sequence, int(frame)


def _walk(seed: int, pid: int, person: people.Person, in_train: bool) -> Iterator[tuple]:
    """(folder, name, bytes) of every picture of a person."""
    rng = np.random.default_rng([seed, 1, pid])
    for camid, sequence, frame in visits(rng):
        camera, turned = cameras.CAMERAS[camid], rng.random() < 0.25
        folder = FOLDERS["train" if in_train else "test"]
        for shot in range(rng.integers(*_SHOTS)):
            name = f"{pid:04d}_c{camid}s{sequence}_{frame + 12 * shot:06d}_{1 + shot % 3:02d}.jpg"
            yield folder, name, cameras.shoot(camera, person, rng, turned=turned)
        if not in_train:
            name = f"{pid:04d}_c{camid}s{sequence}_{frame + 6:06d}_00.jpg"
            yield FOLDERS["query"], name, cameras.shoot(camera, person, rng, turned=turned)


def _others(seed: int, count: int, pid: int) -> Iterator[tuple]:
    """(folder, name, bytes) of distractors (pid 0: strangers) or junk (pid -1)."""
    rng = np.random.default_rng([seed, 2, pid + 1])
    for index in range(count):
        camid = int(rng.integers(1, len(cameras.CAMERAS) + 1))
        outfits = people.outfits(rng, 2)
        strangers = [people.person(rng, outfit) for outfit in outfits]
        if pid == 0:
            content = cameras.shoot(cameras.CAMERAS[camid], strangers[0], rng)
        else:
            content = cameras.shoot_junk(cameras.CAMERAS[camid], strangers, rng)
        mark = "-1" if pid < 0 else "0000"
        sequence, frame = 1 + index % 2, int(rng.integers(_SEQUENCE))
        name = f"{mark}_c{camid}s{sequence}_{frame:06d}_{index % 90:02d}.jpg"
        yield FOLDERS["test"], name, content


def _annotation(path: Path, crowd: dict[int, people.Person], sides: dict[str, list[int]]) -> None:
    """`market_attribute.mat`, its fields in another order in each struct, as in the original."""
    structs = {}
    for side, pids in sides.items():
        rows = [decode(crowd[pid].attributes) for pid in pids]
        order = COLUMNS if side == "train" else COLUMNS[::-1]
        structs[side] = {c: np.array([row[c] for row in rows], np.float64) for c in order}
        structs[side]["image_index"] = np.array([f"{pid:04d}" for pid in pids], object)
    scipy.io.savemat(path, {"market_attribute": structs})


def draw(
    directory: Path,
    *,
    seed: int = 0,
    identities: int = 64,
    distractors: int = 60,
    junk: int = 60,
    progress: Callable = lambda items, desc: items,
) -> None:
    """Draws the synthetic release into a new folder, which appears whole, by a rename.

    Args:
      directory: the new folder, which must not exist yet.
      seed: seeds everything random; the same seed gives the same files.
      identities: the number of persons, 4 to 9999; three quarters are in the training folder.
      distractors: the number of pictures of strangers, pid 0, in the test folder.
      junk: the number of pictures without a whole person, pid -1, in the test folder.
      progress: (iterable, desc=text) -> iterable; shows how far the drawing is, e.g. `tqdm`.

    Raises:
      InputError: the directory exists, the seed is negative, or there are fewer than 4 or more
        than 9999 identities.
    """
    directory = Path(directory)
    if directory.exists():
        raise InputError(f"{directory}: exists already; the synthetic release is drawn anew")
    if not 4 <= identities <= 9999:
        raise InputError(f"identities is {identities}; it must be 4 to 9999")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or more")
    crowd, sides = _crowd(seed, identities)

    def pictures():
        for side, pids in sides.items():
            for pid in pids:
                yield from _walk(seed, pid, crowd[pid], side == "train")
        yield from _others(seed, distractors, 0)
        yield from _others(seed, junk, -1)

    partial = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed drawing
    try:
        for folder in FOLDERS.values():
            (partial / folder).mkdir(parents=True)
        for folder, name, content in progress(pictures(), desc="drawing"):
            (partial / folder / name).write_bytes(content)
        _annotation(partial / "market_attribute.mat", crowd, sides)
        how = {"seed": seed, "identities": identities, "distractors": distractors, "junk": junk}
        (partial / RECORD).write_text(json.dumps(how) + "\n")
        os.replace(partial, directory)
    except OSError as error:
        raise InputError(f"{directory} cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _crowd(seed: int, identities: int) -> tuple[dict[int, people.Person], dict[str, list[int]]]:
    """The persons by pid, and the pids of each side, "train" and "test"."""
    rng = np.random.default_rng([seed, 0])
    # six people wear each outfit, so that colour tells neither who somebody is nor what the
    # other attributes are
    shared = people.outfits(rng, -(-identities // 6))
    worn = [shared[i] for i in rng.permutation(identities) % len(shared)]
    crowd = {pid: people.person(rng, outfit) for pid, outfit in enumerate(worn, start=1)}
    order = rng.permutation(identities) + 1
    count = round(_TRAINING * identities)
    return crowd, {"train": sorted(order[:count].tolist()), "test": sorted(order[count:].tolist())}
