"""A gallery that two processes describe, each its share, as on two hosts."""

import numpy as np
import pytest
from PIL import Image

import market_jax
from market_jax.tasks import export
from tests.test_scripts import finish, places, start
from tests.weights import networks

pytest.importorskip("pymilvus")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for number, image in enumerate(export.draw_people(11, (96, 64))["image"]):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return folder


def index(network, images, gallery, **environment):
    flags = (f"--model={network}", f"--images={images}", f"--gallery={gallery}")
    return start("evaluate.py", "--task=index", *flags, **environment)


def test_two_processes_describe_a_gallery_as_one_does(tmp_path, pictures):
    network = tmp_path / "tiny.safetensors"
    run = networks.as_run(networks.tiny(), tmp_path / "tiny", [1, 2])
    export.run(run, output=str(network))
    for process in [index(network, pictures, tmp_path / "two", **place) for place in places(2)]:
        text = finish(process)
        assert "11 pictures described, 0 known; 11 in the gallery" in text
    text = finish(index(network, pictures, tmp_path / "two"))
    assert "0 pictures described, 11 known; 11 in the gallery" in text
    finish(index(network, pictures, tmp_path / "one"))
    with (
        market_jax.gallery(tmp_path / "one", str(network)) as one,
        market_jax.gallery(tmp_path / "two", str(network)) as two,
    ):
        found = {hit.id: two.find(hit.id)[1] for hit in two.all()}
        assert len(found) == 11
        for hit in one.all():
            np.testing.assert_allclose(found[hit.id], one.find(hit.id)[1], atol=1e-5)
