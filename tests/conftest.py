"""Two CPU devices, the compilation cache, and small data sets that the tests share."""

import gc
import hashlib
import os
import shutil
from pathlib import Path

import flax
import hypothesis
import jax
import numpy as np
import pytest
from PIL import Image

import data_prep
from configs import attributes_cnn
from data_prep import builders
from market_jax import devices
from market_jax.data import attributes, columns, datasets
from market_jax.recipes import supervised
from market_jax.typing import Columns
from tests.browser import Browser

ROOT = Path(__file__).parents[1]

# compiling takes most of the time, and more for several devices; test_scripts.py runs the programs
# without
FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
# what profilers and debuggers read in programs takes its time too
jax.config.update("jax_include_full_tracebacks_in_locations", False)
flax.config.update("flax_profile", False)
devices.start()
# Programs for several devices hold an address of our partitioning, by which none would be found
# again; without it one is found even if that code is another one, so that each has its own folder.
KERNELS = sorted((ROOT / "market_jax/kernels").glob("*.py"))
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in KERNELS)).hexdigest()[:16]
CACHE = Path(jax.config.jax_compilation_cache_dir) / f"tests-{DIGEST}"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser):
    """`--fuzz=N`: N times as many broken inputs, see `test_fuzz`."""
    parser.addoption("--fuzz", type=int, default=1, help="how many times as many broken inputs")


def pytest_collection_finish():
    """What lives as long as the tests is not searched for garbage again and again."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


REAL = Path(os.environ.get("MARKET_JAX_DATA", ROOT.parent / "shared" / "data"))


def real(path: str) -> Path:
    """A file or folder of the real data, or a skip that says what is missing."""
    if not (REAL / path).exists():
        pytest.skip(f"needs the real data: {REAL / path} (MARKET_JAX_DATA names their folder)")
    return REAL / path


def row(**changes: int) -> dict[str, int]:
    """A valid row of the 27 annotation columns: all ones, with changes."""
    return dict.fromkeys(attributes.COLUMNS, 1) | changes


def write_annotations(path: Path, rows: list[tuple[str, dict[str, int]]]) -> None:
    """Writes an annotation CSV."""
    lines = [",".join(("id", *attributes.COLUMNS))]
    lines += [",".join([pid, *(str(r[c]) for c in attributes.COLUMNS)]) for pid, r in rows]
    path.write_text("\n".join(lines) + "\n")


def write_picture(path: Path, color: int = 0) -> None:
    """A small picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 8, 3), color, np.uint8)).save(path, "JPEG")


def small(directory: Path, **changes):
    """The attribute experiment at a size for tests."""
    config = attributes_cnn.get_config()
    config.data.dir = str(directory)
    config.data.image_size = (32, 16)
    config.model.widths = (4, 6, 8, 6)
    config.model.final_pool = (4, 4)
    config.batch_size, config.epochs, config.log_every = 16, 3, 2
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def often(request):
    """How many inputs of a kind are tried: a number times `--fuzz`."""
    times = request.config.getoption("--fuzz")

    def examples(count):
        quiet = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
        return hypothesis.settings(
            max_examples=count * times, deadline=None, suppress_health_check=quiet
        )

    return examples


@pytest.fixture
def open_browser(tmp_path):
    """A function that opens a headless browser, a `Browser`; what it saves lies in `tmp_path`."""
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if not (driver and binary):
        pytest.skip("needs a browser: Debian's packages chromium and chromium-driver")
    opened = []

    def make(kind=Browser):
        opened.append(kind(driver, binary, tmp_path))
        return opened[-1]

    yield make
    for browser in opened:
        if browser.process.poll() is None:
            browser.close()


@pytest.fixture
def unitn(tmp_path: Path) -> Path:
    """A raw folder like the course release: 3 identities, 6 training images."""
    root = tmp_path / "raw"
    for pid in (2, 7, 11):
        for camid in (1, 2):
            write_picture(root / "train" / f"{pid:04d}_c{camid}_{pid:09d}.jpg", 20 * pid)
    for folder in ("test", "queries"):
        for index in range(2):
            write_picture(root / folder / f"{index:06d}.jpg", 90 * index)
    rows = [("2", row(upred=2)), ("7", row(age=4, gender=2)), ("11", row(downblue=2, hat=2))]
    write_annotations(root / "annotations_train.csv", rows)
    return root


@pytest.fixture(scope="session")
def synthetic_raw(tmp_path_factory) -> Path:
    """A small synthetic release, drawn once."""
    directory = tmp_path_factory.mktemp("synthetic") / "raw"
    data_prep.draw(directory, identities=10, distractors=3, junk=6)
    return directory


@pytest.fixture(scope="session")
def synthetic(synthetic_raw: Path, tmp_path_factory) -> Path:
    """The same, prepared."""
    return data_prep.prepare("synthetic", synthetic_raw, tmp_path_factory.mktemp("prepared"))[0]


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """A prepared data set without the label "hat", of 4 persons at cameras 1 and 2."""
    root = tmp_path_factory.mktemp("other")
    for pid in (2, 7, 11, 30):
        for camid in (1, 2):
            write_picture(root / "raw/train" / f"{pid:04d}_c{camid}_{pid:09d}.jpg", 8 * pid)
    for folder in ("test", "queries"):
        write_picture(root / "raw" / folder / "000000.jpg", 9)
    rows = [(str(pid), row(upred=2)) for pid in (2, 7, 11, 30)]
    write_annotations(root / "raw/annotations_train.csv", rows)
    classes = builders.attributes.CLASSES
    fewer = {name: names for name, names in classes.items() if name != "hat"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders.Unitn, "LABELS", fewer)
        patch.setattr(builders.folders, "ATTRIBUTES", tuple(fewer))
        read = builders.attributes.read
        patch.setattr(
            builders.attributes,
            "read",
            lambda *a: {p: {k: v for k, v in r.items() if k != "hat"} for p, r in read(*a).items()},
        )
        return data_prep.prepare("unitn", root / "raw", root / "prepared")[0]


@pytest.fixture(scope="session")
def train_columns(synthetic: Path) -> Columns:
    """Its training split in memory."""
    return columns.in_memory(columns.open_split(synthetic, "train", image_size=(128, 64)))


@pytest.fixture(scope="session")
def dataset(synthetic: Path) -> datasets.Dataset:
    """The same as trainings see it, at the size of `small`."""
    return datasets.open_dataset([synthetic], image_size=(32, 16))


@pytest.fixture(scope="session")
def workdir(synthetic: Path, tmp_path_factory) -> Path:
    """A finished run."""
    directory = tmp_path_factory.mktemp("runs") / "small"
    supervised.fit(small(synthetic), directory)
    return directory
