"""--task=export for other programs: what is written returns what the run does."""

import json

import numpy as np
import pytest

from market_jax import build, inference, programs, runs
from market_jax.errors import InputError
from market_jax.export import functions
from market_jax.tasks import export

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("to", "name"),
    [("onnx", "x.onnx"), ("saved_model", "x"), ("stablehlo", "x.stablehlo")],
)
def test_a_written_network_returns_what_the_run_does(trained, tmp_path, to, name):
    flip = to == "onnx"
    text = export.run(trained, output=str(tmp_path / name), to=to, attributes=True, flip=flip)
    assert "its outputs differ from the run's by" in text
    assert [path.name for path in tmp_path.iterdir()] == [name]
    people = export.draw_people(3, trained.config.data.image_size)
    found = programs.FORMATS[to].load(tmp_path / name)(people["image"])
    expected = trained.predict(people, ["embedding", "hat"], flip=flip)
    top = np.abs(expected["embedding"]).max()
    np.testing.assert_allclose(found["embedding"], expected["embedding"], atol=1e-4 * top)
    shares = found[f"{functions.ATTRIBUTES}hat"]
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(shares.argmax(axis=1), expected["hat"].argmax(axis=1))


def test_a_network_of_bfloat16_is_written_in_float32(trained, tmp_path):
    config = trained.config.copy_and_resolve_references()
    config.dtype = "bfloat16"
    model = build.model(config.model, config.dtype)
    predict = inference.Predictor(model.apply, trained.predict.variables, model=model)
    run = trained._replace(config=config, predict=predict)
    export.run(run, output=str(tmp_path / "x.onnx"), to="onnx")
    people = export.draw_people(3, config.data.image_size)
    found = programs.FORMATS["onnx"].load(tmp_path / "x.onnx")(people["image"])["embedding"]
    expected = trained.predict(people, ["embedding"])["embedding"]
    top = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-4 * top)
    assert np.abs(predict(people, ["embedding"])["embedding"] - expected).max() > 1e-3 * top


def test_onnx_says_what_its_classes_are(trained, tmp_path):
    import onnxruntime

    path = tmp_path / "x.onnx"
    export.run(trained, output=str(path), to="onnx", attributes=True)
    session = onnxruntime.InferenceSession(str(path))
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    assert labels["hat"] == ["no", "yes"]


def test_an_onnx_file_is_judged_as_the_run_is(trained, tmp_path):
    path = tmp_path / "x.onnx"
    export.run(trained, output=str(path), to="onnx")
    people = export.draw_people(70, trained.config.data.image_size)
    predict, names = runs.feature_source(trained, str(path))
    found = predict(people, names, flip=True)
    expected = trained.predict(people, ["embedding"], flip=True)["embedding"]
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-4 * np.abs(expected).max())
    smaller = {"image": people["image"][:, 1:], "name": people["name"]}
    with pytest.raises(InputError, match="takes pictures of 96x64; these are 95x64"):
        predict(smaller, names)


def test_eight_bits_are_a_quarter_of_the_file(trained, tmp_path, synthetic):
    config = trained.config.copy_and_resolve_references()
    config.data.dir = str(synthetic)
    run = trained._replace(divisions=None, config=config)
    text = export.run(run, output=str(tmp_path / "small.onnx"), to="onnx", int8=True)
    assert "lowest cosine to the run's embeddings of drawn people" in text
    export.run(trained, output=str(tmp_path / "large.onnx"), to="onnx")
    sizes = [(tmp_path / name).stat().st_size for name in ("small.onnx", "large.onnx")]
    assert sizes[0] < 0.35 * sizes[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"to": "onnx", "output": "x.safetensors"}, r"it must name the file: NAME\.onnx"),
        ({"to": "stablehlo", "output": "x.stablehlo", "int8": True}, "--int8 does nothing with"),
        ({"to": "onnx", "output": "x.onnx", "dtype": "float16"}, "--dtype does nothing with"),
        ({"output": "x.safetensors", "flip": True}, "--flip does nothing with --to=safetensors"),
        ({"to": "onxx", "output": "x.onnx"}, "did you mean 'onnx'"),
    ],
)
def test_what_does_nothing_is_refused(trained, flags, message):
    with pytest.raises(InputError, match=message):
        export.run(trained, **flags)


def test_what_is_there_already_is_kept(trained, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="is there already"):
        export.run(trained, output=str(path), to="onnx")
    assert path.read_bytes() == b"mine"
