"""--task=activation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import common
from market_jax import build, inference, models
from market_jax.data import descriptors
from market_jax.errors import InputError
from market_jax.models import backbones
from market_jax.registry import files_of
from market_jax.tasks import activation
from market_jax.training.state import draw_variables

SIZE = (64, 64)
COLUMNS = {"image": np.zeros((2, *SIZE, 3), np.uint8), "name": np.array(["a", "b"])}
CLASSES = {"gender": 2}
HEADED = {  # models on a backbone, whose map is the network's
    "classifier": {},
    "apr": {"identities": 3},
    "pcb": {"stripes": 2, "width": 4},
    "parts": {"stripes": 2, "width": 4},
    "multitask": {"hidden": 4, "width": 4},
    "jcm": {"width": 4, "heads": 2, "layers": 1},
}
TINY = {"name": "tests.toys:Backbone", "width": 4}


def predictor(fields):
    """A network with the first variables that it gets."""
    model = build.model(fields)
    variables = jax.eval_shape(lambda: draw_variables(model, SIZE, jax.random.key(0)))
    return inference.Predictor(model.apply, variables, model=model)


@pytest.mark.parametrize("name", files_of(backbones))
def test_every_backbone_has_a_map(name):
    """Traced alone: its places are fewer than the picture's."""
    predict = predictor({"name": name, "classes": CLASSES} | common.BACKBONES[name])
    forward = inference.make_forward(predict.apply, ["map"], flip=False, derive=lambda x: x)
    found = jax.eval_shape(forward, predict.variables, COLUMNS["image"])["map"]
    assert found.shape[0] == 2
    assert 1 <= found.shape[1] == found.shape[2] < 64


@pytest.mark.parametrize("name", HEADED)
def test_every_network_on_a_backbone_has_its_map(name):
    fields = {"name": name, "classes": CLASSES, "backbone": TINY} | HEADED[name]
    outputs = predictor(fields).output_names(COLUMNS)
    assert "map" in outputs
    assert name in files_of(models)


def test_activation_by_hand():
    values = (
        jnp.zeros((1, 2, 2, 3)).at[0, 0, 1].set(jnp.array([1.0, 1.0, 1.0])).at[0, 1, 0, 2].set(2)
    )
    found = activation.measure({"map": values})["activation"]
    np.testing.assert_allclose(found, [[[0, 0.6], [0.8, 0]]], atol=1e-6)
    assert not np.any(activation.measure({"map": 0 * values})["activation"])


def test_what_has_no_map_is_told(trained):
    predict = predictor({"name": "vae", "widths": (4,), "latent": 2})
    with pytest.raises(InputError, match=r"no output 'map'.* the outputs: .*embedding"):
        activation.activations(predict, COLUMNS)
    with pytest.raises(InputError, match=r"no output 'map'"):
        activation.activations(descriptors.Descriptor(descriptors.pixels), COLUMNS)
    with pytest.raises(InputError, match="--task=activation needs a trained run"):
        activation.run(trained._replace(predict=None))
    with pytest.raises(InputError, match=r"'a.pdf'; it must end in .html or .png"):
        activation.run(trained, output="a.pdf")
    with pytest.raises(InputError, match="--count is 0; it must be 1 or more"):
        activation.run(trained, count=0)


def test_the_page_shows_crops_spread_over_the_split(trained):
    text = activation.run(trained, count=3)
    page = (trained.evaluation / activation.PAGE).read_text()
    names = sorted(trained.dataset().open("val")["name"].tolist())
    assert page.count('class="person"') == 3
    assert page.count("data:image/jpeg;base64,") == 9, "crop, activation, both"
    assert names[0] in page
    assert names[-1] in page
    assert "http" not in page, "the page needs nothing else"
    assert "3 images; the map has 8 rows and 4 columns" in text


def test_one_picture_of_a_folder(trained, synthetic_raw, tmp_path):
    folder = synthetic_raw / "bounding_box_test"
    activation.run(trained, images=str(folder), count=9, output=str(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (8 * (16 + 4), 4 * (32 + 4)), "two rows of crops and their maps"
