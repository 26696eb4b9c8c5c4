"""`market_jax.load` as a program uses it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import market_jax
from market_jax import runs
from market_jax.data.attributes import CLASSES
from market_jax.errors import InputError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def model(workdir):
    return market_jax.load(str(workdir))


def test_importing_is_instant():
    """Neither JAX nor TensorFlow is imported before something is loaded."""
    code = "import sys, market_jax; print(sorted({'jax', 'flax', 'tensorflow'} & set(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"


def test_loading_imports_no_tensorflow():
    code = "import sys, market_jax.api; print('tensorflow' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "False"


def test_embedding_needs_no_tensorflow(workdir, synthetic_raw):
    code = (
        f"import sys, market_jax; model = market_jax.load({str(workdir)!r}); "
        f"model.embed({str(synthetic_raw / 'query')!r}); print('tensorflow' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "False"


def test_pictures_in_every_form_give_the_same(model, synthetic_raw, workdir):
    folder = synthetic_raw / "query"
    paths = sorted(folder.iterdir())
    by_folder = model.embed(folder)
    assert by_folder.shape == (len(paths), 12)
    np.testing.assert_array_equal(by_folder, model.embed(paths))
    arrays = [np.asarray(Image.open(path)) for path in paths]
    np.testing.assert_allclose(by_folder, model.embed(arrays), atol=1e-6)
    np.testing.assert_allclose(by_folder[:1], model.embed(str(paths[0])), atol=1e-6)
    query = runs.restore(workdir).dataset().open("query")
    expected = model.run.predict(query, ["embedding"])["embedding"]
    np.testing.assert_allclose(by_folder, expected, atol=1e-6)


def test_predictions_have_names_and_probabilities(model, synthetic_raw):
    found = model.predict(synthetic_raw / "query", flip=True)
    assert list(found) == list(CLASSES)
    hat = found["hat"]
    assert hat.classes == ("no", "yes")
    np.testing.assert_allclose(hat.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert [hat.classes[i] for i in hat.probabilities.argmax(axis=1)] == hat.names.tolist()


def test_search_finds_a_picture_itself_first(model, synthetic_raw):
    folder = synthetic_raw / "query"
    distances, found = model.search(folder, folder, k=3)
    assert distances.shape == found.shape == (len(list(folder.iterdir())), 3)
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-5)
    again = model.search(model.embed(folder), model.embed(folder), k=3)
    np.testing.assert_array_equal(found, again[1])


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ("/no/such.jpg", "/no/such.jpg: there is no such file"),
        ([], "no picture is given"),
        ([np.zeros((4, 4), np.uint8)], r"picture 0 is uint8 \(4, 4\); it must be uint8"),
        ([np.zeros((4, 4, 3))], "picture 0 is float64"),
    ],
)
def test_what_is_no_picture_is_refused(model, pictures, message):
    with pytest.raises(InputError, match=message):
        model.embed(pictures)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        market_jax.load(str(tmp_path))


def test_what_is_no_published_network_is_refused():
    with pytest.raises(InputError, match="there is no published network 'smalll'; known: "):
        market_jax.load("smalll")
    with pytest.raises(InputError, match=r"/no/such\.safetensors: there is no such file"):
        market_jax.load("/no/such.safetensors")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=runs/x"], "--workdir is of a run; --model names a published network"),
        (["--checkpoint=latest"], "--checkpoint is of a run; --model names"),
        ([], "there is no published network 'smalll'; known: "),
    ],
)
def test_a_model_or_a_workdir(flags, message):
    command = [sys.executable, "evaluate.py", "--task=attributes", "--model=smalll", *flags]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_loading_leaves_the_run_as_it_is(workdir, synthetic_raw):
    before = sorted(map(str, workdir.rglob("*")))
    market_jax.load(str(workdir), checkpoint="latest").embed(synthetic_raw / "query")
    assert sorted(map(str, workdir.rglob("*"))) == before
    assert json.loads((workdir / "config.json").read_text())["format"] == 4
