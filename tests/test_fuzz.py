"""Broken inputs of every kind: each ends in a result of the right kind, or in an `InputError`.

`pytest tests/test_fuzz.py tests/weights/test_changed.py tests/evaluators/test_scores.py --fuzz=100`
tries a hundred times as many. Weight files and files of scores are there.
"""

import contextlib
import io
import shutil
import time

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from hypothesis import given
from PIL import Image

import data_prep
from configs import source_b, vae
from market_jax import experiment, registry, runs, settings
from market_jax.data import attributes, cached, columns, decoding, folders
from market_jax.errors import InputError
from market_jax.retrieval import chain
from market_jax.tasks import inputs
from market_jax.training import checkpoints, writers
from tests.conftest import row, small, write_annotations
from tests.training.test_checkpoints import make_state, save_all

SECONDS = 20  # of one input; it took far less, or it hangs


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat", "zero"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def damage(content: bytes, changes) -> bytes:
    """The content with bytes flipped, cut off, inserted, repeated or set to zero."""
    data = bytearray(content)
    for kind, place, value in changes:
        at = int(place * len(data))
        if kind == "flip" and data:
            data[at] ^= 1 << (value % 8)
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = bytes([value]) * (1 + value % 5)
        elif kind == "repeat":
            data[at:at] = data[at : at + value]
        else:
            data[at : at + value] = bytes(len(data[at : at + value]))
    return bytes(data)


@contextlib.contextmanager
def damaged(path, changes, missing=False):
    """A file that is damaged, or missing, meanwhile."""
    content = path.read_bytes()
    try:
        path.unlink() if missing else path.write_bytes(damage(content, changes))
        yield
    finally:
        path.write_bytes(content)


def attempt(read, accept=lambda result: True):
    """Reads; anything but an accepted result or an `InputError` is a failure."""
    began, message = time.monotonic(), "accepted"
    try:
        result = read()
    except InputError as error:
        message = str(error).strip()
    else:
        assert accept(result)
    assert message, "a message says what is wrong"
    assert time.monotonic() - began < SECONDS


def is_picture(image):
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_pictures(often, kind):
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    picture = Image.fromarray(rng.integers(0, 255, (24, 12, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(buffer, kind, **({} if kind == "BMP" else {"exif": exif}))

    @often(60)
    @given(CHANGES)
    def run(changes):
        attempt(lambda: decoding.decode(damage(buffer.getvalue(), changes), "x.jpg"), is_picture)

    run()


CELL = st.one_of(
    st.sampled_from(["a.jpg", "./a.jpg", "../a.jpg", "/etc/passwd", "b.jpg", "", "1", "-1", "0"]),
    st.sampled_from(["1_0", "1.0", "nan", "2147483648", "-2", "1e3", "٣", "\x00", "a,b", '"', "é"]),
    st.text(max_size=5),
)
TABLE = st.lists(st.lists(CELL, max_size=6), max_size=6)
HEADERS = st.sampled_from(
    ["name,pid,camid", "pid,name,camid,name", "name,pid", "name,pid,camid,split,hat", "", "name"]
)


def test_lists(often, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (4, 8)).save(tmp_path / name)
    table = tmp_path / "images.csv"

    def is_sound(records):
        names = [r["name"] for r in records]
        inside = all((tmp_path / n).resolve().parent == tmp_path.resolve() for n in names)
        return inside and len(set(names)) == len(names) and all(r["pid"] >= -1 for r in records)

    @often(150)
    @given(HEADERS, TABLE, st.sampled_from(["utf-8", "utf-16", "latin-1"]), st.booleans())
    def run(header, rows, encoding, skip):
        text = "\r\n".join([header, *(",".join(cells) for cells in rows)])
        table.write_bytes(text.encode(encoding, errors="replace"))
        report = folders.Report(skip)
        attempt(lambda: folders.read_list(tmp_path, table, report), is_sound)
        attempt(lambda: inputs.read_excluded(table), lambda names: isinstance(names, set))
        source = data_prep.builders.Source(tmp_path, report, lambda x, desc: x)
        attempt(lambda: data_prep.builders.Table.read(source), lambda r: isinstance(r, dict))

    run()


def is_annotation(table):
    return all(len(labels) == 12 and pid > 0 for pid, labels in table.items())


@pytest.mark.parametrize("ending", [".csv", ".mat"])
def test_annotations(often, tmp_path, ending):
    path = tmp_path / f"annotations{ending}"
    if ending == ".csv":
        write_annotations(path, [("2", row(upred=2)), ("7", row(age=4))])
    else:
        structs = {c: np.ones(2) for c in attributes.COLUMNS}
        structs["image_index"] = np.array(["0002", "0007"], object)
        other = structs | {"image_index": np.array(["0003", "0009"], object)}
        content = {"market_attribute": {"train": structs, "test": other}}
        scipy.io.savemat(path, content, do_compression=True)
    content = path.read_bytes()
    assert len(attributes.read(path)) >= 2

    @often(100)
    @given(CHANGES)
    def run(changes):
        path.write_bytes(damage(content, changes))
        attempt(lambda: attributes.read(path), is_annotation)

    run()


def test_checkpoints(often, tmp_path):
    save_all(tmp_path, [1.0, 2.0], batch_stats={"mean": jnp.ones(2)})
    whole = make_state(0, batch_stats={"mean": jnp.ones(2)})
    paths = sorted(p for p in (tmp_path / "2").rglob("*") if p.is_file())

    def is_what_was_saved(state):
        return np.array_equal(state.params["w"], np.full(3, 2.0)) and int(state.step) == 2

    @often(40)
    @given(st.sampled_from(paths), CHANGES, st.booleans())
    def run(path, changes, missing):
        with damaged(path, changes, missing):
            attempt(lambda: checkpoints.find(tmp_path, "best"), lambda step: step in (1, 2))
            attempt(lambda: checkpoints.read_extra(tmp_path, 2))
            attempt(lambda: checkpoints.read_state(tmp_path, 2, whole), is_what_was_saved)

    run()


def test_prepared_data_sets(often, synthetic, tmp_path):
    directory = tmp_path / "synthetic"
    shutil.copytree(synthetic, directory)
    good = columns.open_split(directory, "query", image_size=(8, 4))
    paths = sorted(p for p in directory.iterdir() if "train" not in p.name and "test" not in p.name)

    def is_what_was_prepared(found):
        return all(np.array_equal(found[key], good[key]) for key in good if key != "image")

    def read():
        return columns.open_split(directory, "query", image_size=(8, 4))

    @often(40)
    @given(st.sampled_from(paths), CHANGES, st.booleans())
    def run(path, changes, missing):
        with damaged(path, changes, missing):
            attempt(read, is_what_was_prepared)

    run()


def test_files_that_can_be_made_again(often, tmp_path):
    """Cached features and logs are read as they were, made anew, or their lines left out."""
    path, truth = tmp_path / "outputs.npz", {"embedding": np.arange(12.0).reshape(4, 3)}
    cached.cached(path, "key", lambda: truth)
    content = path.read_bytes()
    log = tmp_path / writers.METRICS_FILE
    lines = b"".join(b'{"step": %d, "val/loss": 0.5}\n' % step for step in range(1, 9))

    @often(100)
    @given(CHANGES)
    def run(changes):
        path.write_bytes(damage(content, changes))
        found = cached.cached(path, "key", lambda: truth)
        np.testing.assert_array_equal(found["embedding"], truth["embedding"])
        log.write_bytes(damage(lines, changes))
        for line in writers.read_metrics(tmp_path):
            assert isinstance(line["step"], int)

    run()


VALUES = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 1.5, -0.5, 1e30, float("nan"), float("inf"), 10**12, True]),
    st.sampled_from(["", "x", "cross_entropy", "triplet", "no.such:thing", "a:b:c", ":", "../x"]),
    st.sampled_from([(), (4,), (1, 2), (0, 0), (-4, 2), ("a", "b"), ((1, 2),), None, {}, {"a": 1}]),
    st.lists(st.integers(-2, 9), max_size=4).map(tuple),
)
SKIPPED = ("data.dir", "data.name", "tasks", "recipe", "profile")  # not of what is built


def with_parts(keys):
    """The keys, and those of the parts that they are in."""
    parts = [key.split(".")[:n] for key in keys for n in range(1, key.count(".") + 2)]
    return sorted({".".join(part) for part in parts})


def changed(config, key, value):
    """The config with another value, whatever its kind."""
    owner, _, name = key.rpartition(".")
    with config.ignore_type():
        (config[owner] if owner else config)[name] = value
    return config


def test_configs(often):
    """What is wrong is found when things are built, before data are read."""
    makers_of = [lambda: small("data"), lambda: tiny_vae(), lambda: tiny_classifier()]
    keys = [with_parts(settings.flatten(settings.to_json(make()))) for make in makers_of]
    pairs = [(n, key) for n, some in enumerate(keys) for key in some if key not in SKIPPED]

    @often(60)
    @given(st.sampled_from(pairs), VALUES)
    def run(pair, value):
        number, key = pair

        def check():
            config = changed(makers_of[number](), key, value)
            experiment.check(config)

        attempt(check)

    run()


def tiny_vae():
    config = vae.get_config()
    config.data.image_size = (32, 16)
    return config


def tiny_classifier():
    config = source_b.get_config("identity,alexnet,dense=False")
    config.data.image_size, config.model.head.width = (96, 64), 8
    return config


WORDS = st.lists(
    st.one_of(
        st.sampled_from([*chain.RERANKERS, *chain.TRANSFORMS]),
        st.builds(
            "{}={}".format,
            st.sampled_from(["k1", "k2", "k", "lambda_value", "clusters", "soft", "alpha", "x"]),
            st.sampled_from(["0", "-1", "3", "1e9", "1_0", "nan", "inf", "true", "'a'", "(1,2)"]),
        ),
        st.text(max_size=6),
    ),
    max_size=4,
).map(" ".join)


def test_specs_of_the_command_line(often):
    rng = np.random.default_rng(0)
    sides = [
        {
            "feature": rng.normal(size=(8, 4)).astype(np.float32),
            "pid": np.repeat([1, 2], 4),
            "camid": np.tile([1, 2], 4),
            "frame": np.arange(8),
            "sequence": np.ones(8, int),
            "name": np.array([f"{i}.jpg" for i in range(8)]),
        }
        for _ in range(2)
    ]

    def use(text, known, positional):
        spec = registry.read_words(text, known, "step")
        made = registry.bind(spec, known, "step", training=None, metric=registry.LATER)
        if "metric" in registry._hints(made.func):
            made = registry.functools.partial(made, metric="cosine")
        return made(*positional)

    @often(150)
    @given(WORDS)
    def run(text):
        distances = np.abs(rng.normal(size=(8, 8))).astype(np.float32)
        attempt(lambda: registry.read_words(text, chain.RERANKERS, "re-ranker"))
        for known, given_ in ((chain.RERANKERS, (*sides, distances)), (chain.TRANSFORMS, sides)):
            name = text.split()[0] if text.split() else ""
            if name not in ("spatio_temporal", "learned_weights", "gaussian_mixture"):
                attempt(lambda k=known, g=given_: use(text, k, g))

    run()


def test_what_a_run_keeps(often, workdir, tmp_path):
    """config.json and the text in a checkpoint, damaged: the run is read whole, or refused."""
    run_folder = tmp_path / "runs" / "x"
    shutil.copytree(workdir, run_folder)
    files = [run_folder / "config.json", *run_folder.glob("checkpoints/*/extra/*")]
    files += run_folder.glob("checkpoints/*/digests.json")

    @often(15)
    @given(st.sampled_from(sorted(files)), CHANGES)
    def run(path, changes):
        with damaged(path, changes):
            attempt(lambda: runs.find_run("attributes", tmp_path / "runs"))
            attempt(lambda: runs.restore(run_folder, "latest", cache=False).step > 0)

    run()
