"""A network that needs no training, pictures of noise, and the places where galleries are made."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from market_jax.api import Attributes, Prediction
from market_jax.data import decoding
from market_jax.galleries.gallery import Gallery

CLASSES = {"gender": ("male", "female"), "up_color": ("black", "red", "pink")}


class Network:
    """A network that describes a picture by its colours, and remembers what it was shown."""

    is_published, workdir = True, Path("runs/toy")

    def __init__(self, digest="a"):
        self.digest, self.seen, self.run = digest, [], self
        self.schema, self.extra = self, {"name": "toy", "same_person": {}}
        self.labels = CLASSES | {"hat": ("no", "yes")}

    def output_names(self):
        return ("embedding", "gender", "up_color")

    def embed(self, pictures, *, flip=False):
        if isinstance(pictures, str | Path | np.ndarray):
            pictures = [pictures]
        images = [decoding.read(p) if isinstance(p, str | Path) else p for p in pictures]
        small = [decoding.resize(image, (2, 2)).reshape(-1) / 255 - 0.5 for image in images]
        return np.array(small, np.float32).reshape(-1, 12)

    def describe(self, pictures, *, flip=False):
        names = [Path(p).name if isinstance(p, str | Path) else "array" for p in pictures]
        self.seen += names
        vectors = self.embed(pictures, flip=flip)
        shares = [np.stack([vectors[:, 0] + 0.5, 0.5 - vectors[:, 0]], axis=1)]
        black = np.minimum(2 * np.abs(vectors[:, 1:2]), 1)
        shares.append(np.concatenate([black, (1 - black) / 4, (1 - black) * 3 / 4], axis=1))
        predictions = {
            name: Prediction(np.array(classes)[share.argmax(axis=1)], share, classes)
            for (name, classes), share in zip(CLASSES.items(), shares, strict=True)
        }
        return vectors, Attributes(np.array(names), predictions)


def calibrate(network, threshold):
    """Has a network say up to which distance two pictures show the same person."""
    rates = {"precision": 0.9, "recall": 0.5, "false_positive_rate": 0.01}
    found = {"threshold": threshold, "metric": "cosine", "flip": False, "judged": "3 people"}
    network.extra = network.extra | {"same_person": rates | found}


def draw(folder, count, first=0):
    """Pictures of noise, named as Market-1501 names them: three cameras."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}_c{i % 3 + 1}s1_{i:06d}_00.png")
    return folder


@pytest.fixture
def crops(tmp_path):
    return draw(tmp_path / "crops", 30)


@pytest.fixture
def network():
    return Network()


@pytest.fixture(params=["folder", "server"])
def place(request, tmp_path):
    """Where a gallery is made: a folder, and a Milvus server if the environment names one."""
    if request.param == "folder":
        yield tmp_path / "gallery"
        return
    if "MARKET_JAX_MILVUS" not in os.environ:
        pytest.skip("needs a Milvus server: MARKET_JAX_MILVUS=http://HOST:19530")
    client = pytest.importorskip("pymilvus").MilvusClient(os.environ["MARKET_JAX_MILVUS"])
    before = client.list_collections()
    yield os.environ["MARKET_JAX_MILVUS"]
    for name in set(client.list_collections()).difference(before):
        client.drop_collection(name)


@pytest.fixture
def gallery(place, crops, network):
    with Gallery(place, network, create=True) as opened:
        opened.add(crops)
        yield opened
