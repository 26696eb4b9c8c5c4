"""`market_jax.load` as a program uses it."""

import doctest
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import market_jax
from market_jax import api, calibration, runs
from market_jax.data.attributes import CLASSES
from market_jax.errors import InputError
from market_jax.retrieval import distances, search
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
    within = len(list(synthetic_raw.rglob("query/*.jpg")))
    everywhere = len(list(synthetic_raw.rglob("*.jpg")))
    assert within == len(paths) < everywhere == len(model.embed(synthetic_raw))
    np.testing.assert_array_equal(by_folder, model.embed(paths))
    arrays = [np.asarray(Image.open(path)) for path in paths]
    np.testing.assert_allclose(by_folder, model.embed(arrays), atol=1e-6)
    np.testing.assert_allclose(by_folder, model.embed(np.stack(arrays)), atol=1e-6)
    np.testing.assert_allclose(by_folder[:1], model.embed(str(paths[0])), atol=1e-6)
    query = runs.restore(workdir).dataset().open("query")
    expected = model.run.predict(query, ["embedding"])["embedding"]
    np.testing.assert_allclose(by_folder, expected, atol=1e-6)


def test_attributes_have_names_and_probabilities(model, synthetic_raw):
    folder = synthetic_raw / "query"
    found = model.attributes(folder, flip=True)
    assert list(found) == list(CLASSES)
    hat = found["hat"]
    assert hat.classes == ("no", "yes")
    np.testing.assert_allclose(hat.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert [hat.classes[i] for i in hat.probabilities.argmax(axis=1)] == hat.names.tolist()
    assert found.pictures.tolist() == [str(path) for path in sorted(folder.iterdir())]
    embeddings, again = model.describe(folder, flip=True)
    np.testing.assert_allclose(embeddings, model.embed(folder, flip=True), atol=1e-6)
    np.testing.assert_allclose(again["hat"].probabilities, hat.probabilities, atol=1e-6)


def test_attributes_become_a_dataframe(model, synthetic_raw, monkeypatch):
    found = model.attributes(synthetic_raw / "query")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="to_dataframe needs: pip install pandas"):
        found.to_dataframe()
    monkeypatch.undo()
    pytest.importorskip("pandas")
    table = found.to_dataframe()
    assert table["hat"].tolist() == found["hat"].names.tolist()
    assert table.index.tolist() == found.pictures.tolist()
    assert (table["hat probability"] >= 0.5).all()


def test_a_generator_is_read_as_it_comes(model, monkeypatch):
    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 256, (20 + i % 3, 10 + i % 5, 3), np.uint8) for i in range(11)]
    expected = model.embed(crops)
    monkeypatch.setattr(api, "_CHUNK", 4)
    np.testing.assert_allclose(model.embed(iter(crops)), expected, atol=1e-6)
    np.testing.assert_allclose(model.embed(crops[3]), expected[3:4], atol=1e-6)
    assert model.attributes(crop for crop in crops).pictures.tolist()[-1] == "picture 10"


def test_a_tracker_compiles_once_for_each_size_of_batch(workdir, monkeypatch):
    """Frames with any number of people, crops of any size, and a gallery that grows by them."""
    model = market_jax.load(str(workdir))
    rng = np.random.default_rng(0)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )

    def track(counts):
        for count in counts:
            sizes = rng.integers(8, 40, (count, 2))
            crops = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
            assert model.embed(crops).shape == (count, 12)
            assert model.attributes(crops)["hat"].names.shape == (count,)

    def remember(sizes):
        for size in sizes:
            model.search(rng.normal(size=(1, 12)), rng.normal(size=(size, 12)), k=5)

    track([1, 4, 8, 16, 32, 64])  # the sizes of batches
    remember([8, 16, 32])
    before = len(compiled)
    assert before > 0
    traces = []
    monkeypatch.setattr(jax, "eval_shape", lambda *_: traces.append(1))
    track([*range(1, 17), 0, 2, 21, 33, 50, 64])
    remember(range(5, 33))
    assert len(compiled) == before
    assert not traces  # of each something is kept


def record(**changes):
    """What an evaluation has written, as far as it says who is the same person."""
    rates = {"precision": 0.9, "recall": 0.5, "false_positive_rate": 0.01}
    found = {"threshold": rates | {"distance": 0.25}, "on_other_identities": rates}
    about = {"images": 9, "identities": 3, "metric": "cosine", "flip": True, "features": "model"}
    return about | {"verification": found, "judged": "split val", "checkpoint": 3} | changes


def test_the_same_person_is_as_near_as_the_evaluation_said(workdir, synthetic_raw, tmp_path):
    trained = market_jax.load(str(workdir)).run
    model = api.Model(trained._replace(workdir=tmp_path))
    paths = sorted((synthetic_raw / "query").iterdir())
    with pytest.raises(InputError, match=r"reid.json: has no threshold .* --task=reid --workdir"):
        model.same_person(paths[0], paths[1])
    path = tmp_path / "evaluation" / "reid.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record(checkpoint=trained.step)))
    found = model.same_person(paths[:2], [paths[0], paths[2]])
    assert found.calibration.threshold == 0.25
    assert found.calibration.precision == 0.9
    assert "3 people" in found.calibration.judged
    left, right = model.embed(paths[:2], flip=True), model.embed([paths[0], paths[2]], flip=True)
    np.testing.assert_allclose(found.distance, np.diag(distances.compute(left, right)), atol=1e-5)
    assert found.same.tolist() == [True, bool(found.distance[1] <= 0.25)]
    with pytest.raises(InputError, match="2 pictures are compared with 1, one by one"):
        model.same_person(paths[:2], paths[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": -1},
        {"features": "predictions"},
        {"judged": "split train"},
        {"transductive": True},
        {"identities_trained_on": 2},
        {"related": ["unitn"]},
        {"verification": None},
    ],
)
def test_other_evaluations_do_not_calibrate(workdir, tmp_path, changes):
    run = market_jax.load(str(workdir)).run._replace(workdir=tmp_path)
    (tmp_path / "evaluation").mkdir()
    path = tmp_path / "evaluation" / "reid.json"
    path.write_text(json.dumps(record(checkpoint=run.step) | changes))
    with pytest.raises(InputError, match="has no threshold for the embeddings"):
        calibration.find(run)
    path.write_text(json.dumps(record(checkpoint=run.step)))
    assert calibration.find(run).recall == 0.5


def test_the_examples_of_the_docstrings_run(workdir, synthetic_raw, tmp_path):
    pytest.importorskip("pandas")
    folder = tmp_path / "crops"
    folder.mkdir()
    pictures = sorted((synthetic_raw / "query").iterdir())[:6]
    for path in pictures:
        shutil.copy(path, folder)
    run = market_jax.load(str(workdir)).run._replace(workdir=tmp_path)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "reid.json").write_text(json.dumps(record(checkpoint=run.step)))
    names = {"model": api.Model(run), "folder": folder, "pictures": pictures}
    failed, tried = doctest.testmod(api, extraglobs=names)
    assert tried >= 11
    assert not failed
    pytest.importorskip("pymilvus")
    names |= {"market_jax": market_jax, "run": str(workdir), "place": str(tmp_path / "gallery")}
    failed, tried = doctest.testmod(market_jax, extraglobs=names)
    assert tried == 4
    assert not failed
    from market_jax.galleries import gallery

    with gallery.Gallery(tmp_path / "other", api.Model(run), create=True) as opened:
        failed, tried = doctest.testmod(gallery, extraglobs=names | {"gallery": opened})
    assert tried == 12
    assert not failed


def test_search_finds_a_picture_itself_first(model, synthetic_raw):
    folder = synthetic_raw / "query"
    distances, found = model.search(folder, folder, k=3)
    assert distances.shape == found.shape == (len(list(folder.iterdir())), 3)
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-5)
    again = model.search(model.embed(folder), model.embed(folder), k=3)
    np.testing.assert_array_equal(found, again[1])


def test_embeddings_are_written_by_blocks_and_searched_in_the_file(model, synthetic_raw, tmp_path):
    paths = sorted(map(str, (synthetic_raw / "query").iterdir()))
    blocks = (model.embed(paths[i : i + 4]) for i in range(0, len(paths), 4))
    shape = len(paths), 12
    gallery = search.store(tmp_path / "gallery.npy", blocks, shape, "float16")
    near, found = search.top_k(model.embed(paths[:2]), gallery, 1)
    assert found[:, 0].tolist() == [0, 1]
    np.testing.assert_allclose(near, 0, atol=1e-3)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ("/no/such.jpg", "/no/such.jpg: there is no such file"),
        ([1], "picture 0 is a int; it must be a path or an array"),
        ([np.zeros((0, 4, 3), np.uint8)], r"picture 0 is \(0, 4, 3\): it has no pixel"),
        ([np.zeros((4, 4), np.uint8)], r"picture 0 is uint8 \(4, 4\); it must be uint8"),
        ([np.zeros((4, 4, 3))], "picture 0 is float64"),
    ],
)
def test_what_is_no_picture_is_refused(model, pictures, message):
    with pytest.raises(InputError, match=message):
        model.embed(pictures)


def test_no_picture_has_no_embedding_but_an_empty_folder_is_an_error(model, tmp_path):
    assert model.embed([]).shape == (0, 12)
    assert model.attributes([])["hat"].probabilities.shape == (0, 2)
    with pytest.raises(InputError, match=f"{tmp_path}: the folder holds no picture"):
        model.embed(tmp_path)


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
