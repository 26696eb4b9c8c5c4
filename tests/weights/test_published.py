"""Published networks: written from a run, read without it, broken ones named."""

import json
import shutil
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

import market_jax
from market_jax import build, runs, seen
from market_jax.data.attributes import CLASSES
from market_jax.errors import InputError
from market_jax.tasks import attributes, export, reid
from market_jax.weights import published
from tests.conftest import ROOT
from tests.weights import golden_published
from tests.weights.networks import read


@pytest.fixture
def package(file, tmp_path, monkeypatch):
    """A package of published networks with this one, in a folder where nothing else is."""
    folder = tmp_path / "site" / published.PACKAGE
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "weights" / published.PACKAGE / "__init__.py", folder)
    shutil.copy(file, folder)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_network_is_the_same_without_its_run(trained, file):
    people = export.draw_people(6, (96, 64))
    found = runs.published(file, cache=False)
    names = ["embedding", "hat", "predictions"]
    before, after = trained.predict(people, names), found.predict(people, names)
    assert np.ptp(before["embedding"], axis=0).max() > 0.01, "people differ"
    assert export.lowest_cosine(before["embedding"], after["embedding"]) > 0.999
    np.testing.assert_allclose(after["predictions"], before["predictions"], atol=5e-3)
    assert found.step == 0
    assert found.divisions is None
    assert found.schema.labels == CLASSES


def test_embeddings_of_arrays(trained, file):
    people = export.draw_people(4, (96, 64))
    model = market_jax.load(str(file))
    found = model.embed([np.repeat(np.repeat(x, 2, 0), 2, 1) for x in people["image"]])
    assert found.shape == (4, 256)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(model.embed(people["image"]), model.embed(people["image"]))
    assert model.attributes(people["image"])["hat"].classes == ("no", "yes")
    assert model.search(people["image"], people["image"], k=1)[1][:, 0].tolist() == [0, 1, 2, 3]


def test_a_name_a_file_and_a_folder_that_goes_first(package, file, tmp_path):
    assert list(published.names()) == ["tiny"]
    people = export.draw_people(2, (96, 64))["image"]
    by_name = market_jax.load("tiny").embed(people)
    np.testing.assert_array_equal(by_name, market_jax.load(file).embed(people))
    (tmp_path / "tiny").mkdir()
    with pytest.raises(InputError, match="tiny: holds no checkpoint"):
        market_jax.load("tiny")


def test_a_network_of_the_hub(file, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(hub, "hf_hub_download", lambda *which: asked.append(which) or str(file))
    people = export.draw_people(2, (96, 64))["image"]
    found = market_jax.load("hf:me/nets/some/tiny.safetensors").embed(people)
    np.testing.assert_array_equal(found, market_jax.load(file).embed(people))
    assert asked == [("me/nets", "some/tiny.safetensors")]


def test_eight_bits_need_pictures_that_were_trained_on(file, tmp_path):
    run = runs.published(file, cache=False)
    with pytest.raises(InputError, match=r"--int8 looks at training pictures, .* --data_dir=DIR"):
        export.run(run, output=str(tmp_path / "x.onnx"), to="onnx", int8=True)
    assert not list(tmp_path.glob("x*"))


def test_unknown_names(package):
    with pytest.raises(InputError, match=r"network 'tny'; known: tiny\. .* pip install ./weights"):
        market_jax.load("tny")
    with pytest.raises(InputError, match="runs/tiny: holds no checkpoint"):
        market_jax.load("runs/tiny")
    with pytest.raises(InputError, match=r"no\.safetensors: there is no such file"):
        market_jax.load("no.safetensors")
    with pytest.raises(InputError, match="checkpoint is '3'; a published network, tiny, has only"):
        market_jax.load("tiny", checkpoint="3")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(published, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"'small'; known: none\. They come with: pip install"):
        market_jax.load("small")


def test_judging_needs_data_and_names_whom_the_network_knows(package, synthetic):
    with pytest.raises(InputError, match=r"'tiny' brings no data; give --images=FOLDER, or the"):
        attributes.run(runs.published("tiny"))
    run = runs.published("tiny", runs.Data("synthetic", str(synthetic)))
    assert str(run.workdir) == "runs/published/tiny"
    shown = len(np.unique(run.dataset().open("train")["pid"]))
    text = reid.run(run, split="train")
    assert text.startswith(f"CAUTION: 3 of {shown} identities judged here were trained on; ")
    result = json.loads((run.evaluation / reid.FILE).read_text())
    assert result["identities_trained_on"] == 3
    text = attributes.run(run, split="test")
    assert text.startswith("0 of ")
    assert "CAUTION" not in text
    assert json.loads((run.evaluation / attributes.FILE).read_text())["identities_trained_on"] == 0


def test_a_split_without_an_image_is_told(package, synthetic):
    """As "val" of a network that was trained on everybody."""
    run = runs.published("tiny", runs.Data("synthetic", str(synthetic)))
    run.config.data.val_fraction = 0.0
    for task in (reid, attributes):
        with pytest.raises(InputError, match="synthetic: the split 'val' has no image, where data"):
            task.run(run)
    assert len(run.dataset().open("train")["pid"])


def test_a_folder_alone_is_of_the_data_it_was_trained_on(package, synthetic):
    run = runs.published("tiny", runs.Data(dir=str(synthetic)))
    assert run.config.data.name == "synthetic"
    with pytest.raises(InputError, match="the data sets unitn,synthetic are not judged together"):
        runs.published("tiny", runs.Data("unitn,synthetic", "a,b"))


def test_the_course_release_shows_the_people_of_market1501_under_other_numbers(trained, synthetic):
    extra = trained.extra | {"trained_on": [{"name": "unitn", "pids": {"train": [2, 7]}}]}
    extra["trained_on"][0]["identities"] = 2
    sides = [{"pid": np.array([-1, 0, 2, 2, 9])}]

    class Judged:
        is_published = True

        def __init__(self, name):
            self.extra, self.name = extra, name
            self.config = ConfigDict({"data": {"name": name}})

        def dataset(self):
            schema = build.datasets.Schema(self.name, {})
            return build.datasets.Dataset(schema, None, parts=[build.datasets.Part(schema)])

    def known_in(name):
        return seen.known_pids(Judged(name), sides, Judged(name).dataset().parts)

    assert known_in("unitn") == ({2, 9}, {2})
    assert known_in("synthetic") == ({2, 9}, set())
    text, record = seen.known_people(Judged("market1501"), sides, split="test")
    assert text.startswith("CAUTION: the network was trained on 2 identities of unitn, which shows")
    assert "identities_trained_on" not in record
    text, record = seen.known_people(Judged("unitn"), sides, split="test")
    assert record["identities_trained_on"] == 1


def test_pictures_of_a_folder(package, synthetic_raw):
    text = reid.run(runs.published("tiny"), images=str(synthetic_raw / "bounding_box_test"))
    assert text.startswith("The network was trained on 3 identities of synthetic: ")


def change(path, changed, tensors=None, about=None, entry="market_jax"):
    """A copy of a file with other tensors or metadata."""
    before, said = read(path)
    said = said | (about or {})
    said = {key: value for key, value in said.items() if value is not None}
    tensors = {k: v for k, v in (before | (tensors or {})).items() if v is not None}
    safetensors.numpy.save_file(tensors, changed, {entry: json.dumps(said)})
    return changed


KERNEL = "params/head_identity/kernel"
RATES = {"threshold": 0.4, "precision": 0.9, "recall": 0.5, "false_positive_rate": 0.01}
RATES |= {"metric": "cosine", "flip": False, "judged": "split val"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entry": "other"}, "is no published network of market_jax: its metadata has no entry"),
        ({"about": {"format": 2}}, "has format 2; this version of market_jax reads 1"),
        ({"about": {"format": None}}, "has format None"),
        ({"about": {"labels": None}}, "the metadata has no 'labels'"),
        ({"about": {"labels": {"hat": 3}}}, "the metadata: labels.hat is 3; it must be a list"),
        ({"about": {"trained_on": [{}]}}, "trained_on has no 'name'"),
        ({"about": {"labels": {"gender": [*"abc"]}}}, "gender is 2; the data set has 3 classes"),
        ({"about": {"same_person": {"threshold": 0.4}}}, "same_person has no 'precision'"),
        ({"about": {"same_person": RATES | {"threshold": float("nan")}}}, "threshold is nan; it"),
        ({"about": {"same_person": RATES | {"flip": 2}}}, "same_person: flip is 2; it must be"),
        ({"about": {"config": {}}}, "no network follows from its config"),
        ({"about": {"config": {"data": 3}}}, "no network follows from its config"),
        ({"tensors": {KERNEL: None}}, f"has no tensor {KERNEL}, which the network"),
        ({"tensors": {"x": np.ones(2, np.float32)}}, "its config has no tensor x"),
        ({"tensors": {KERNEL: np.ones((256, 2), np.float16)}}, r"is \(256, 2\); the network of"),
        ({"tensors": {KERNEL: np.ones((256, 1), np.int32)}}, "is int32; the network of its config"),
        (
            {"tensors": {KERNEL: np.full((256, 1), np.nan, np.float16)}},
            "values that are not finite",
        ),
    ],
)
def test_files_that_do_not_fit(file, tmp_path, changes, message):
    path = change(file, tmp_path / "changed.safetensors", **changes)
    with pytest.raises(InputError, match=f"changed.safetensors: .*{message}"):
        market_jax.load(path)


def test_a_config_with_a_model_of_others_is_not_imported(file, tmp_path):
    _, about = read(file)
    about["config"]["model"]["name"] = "evil:Model"
    path = change(file, tmp_path / "evil.safetensors", about=about)
    with pytest.raises(InputError, match=r"config\.model\.name is 'evil:Model', code outside"):
        market_jax.load(path)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_that_was_cut(file, tmp_path, length):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(file.read_bytes()[:length])
    with pytest.raises(InputError, match=r"cut\.safetensors: is "):
        market_jax.load(path)


def test_metadata_that_is_no_json(file, tmp_path):
    tensors, _ = read(file)
    path = tmp_path / "x.safetensors"
    for text in ("{", "[" * 100_000, "3"):
        safetensors.numpy.save_file(tensors, path, {"market_jax": text})
        with pytest.raises(
            InputError, match=r"x\.safetensors: (its metadata is no JSON|has format)"
        ):
            market_jax.load(path)


def test_a_file_of_torch_is_no_published_network(save, tmp_path):
    path = save({}, "zip", "x.safetensors")
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(InputError, match=r"x\.safetensors: holds no tensors"):
        market_jax.load(path)


def shipped():
    """The networks of the package in this checkout."""
    return sorted(golden_published.FOLDER.glob(f"*{published.SUFFIX}"))


@pytest.mark.parametrize("path", shipped() or [None], ids=lambda p: p.stem if p else "none")
def test_shipped_networks_say_what_they_said(path):
    """`python -m tests.weights.golden_published` writes what is expected."""
    if path is None:
        pytest.skip(f"{golden_published.FOLDER} holds no network yet")
    assert path.stat().st_size <= published.MOST_BYTES
    text = path.with_suffix(".md").read_text()
    assert "must not be used for" in text
    about = published.read(path).about
    assert about["name"] == path.stem
    assert about["config"]["model"]["name"] not in ("autoencoder", "vae")
    expected = json.loads(golden_published.FILE.read_text())
    assert path.stem in expected, "run: python -m tests.weights.golden_published"
    found = golden_published.measure(path)
    for key, value in expected[path.stem].items():
        np.testing.assert_allclose(found[key], value, atol=2e-3, rtol=1e-2)
