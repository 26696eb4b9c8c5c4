"""--task=map."""

import csv

import numpy as np
import pytest
from PIL import Image

from market_jax import inference
from market_jax.errors import InputError
from market_jax.report import scatter
from market_jax.retrieval import projection
from market_jax.tasks import map as task

COLUMNS = {
    "name": np.array(["a", "b", "c", "d", "e", "f"]),
    "pid": np.array([7, 7, 2, -1, 9, 9]),
    "camid": np.array([1, 3, 3, -1, 0, 1]),
    "hat": np.array([1, -1, 1, 1, 1, 1]),
}


def test_the_persons_with_most_pictures_are_shown():
    assert task.choose_people(COLUMNS, 2)["name"].tolist() == ["a", "b", "e", "f"]
    assert task.choose_people(COLUMNS, 0) is COLUMNS
    nobody = COLUMNS | {"pid": np.full(6, -1)}
    assert task.choose_people(nobody, 2) is nobody


def test_images_are_grouped_by_person_camera_or_label():
    classes = {"hat": ("no", "yes"), "gender": ("male", "female")}
    groups, names = task.group(COLUMNS, "person", classes)
    assert (groups.tolist(), names) == ([1, 1, 0, -1, 2, 2], ["person 2", "person 7", "person 9"])
    groups, names = task.group(COLUMNS, "camera", classes)
    assert (groups.tolist(), names) == ([1, 2, 2, -1, 0, 1], ["camera 0", "camera 1", "camera 3"])
    groups, names = task.group(COLUMNS, "hat", classes)
    assert (groups.tolist(), names) == ([0, -1, 0, 0, 0, 0], ["hat: yes"])
    with pytest.raises(InputError, match=r"unknown color 'gender'; .*known: camera, hat, person"):
        task.group(COLUMNS, "gender", classes)


@pytest.mark.parametrize("dimensions", [1, 8])
def test_both_methods_keep_groups_together(dimensions):
    rng = np.random.default_rng(0)
    centers = np.where(np.arange(20) < 10, 1.0, -1.0)[:, None]
    features = centers * (5 + rng.uniform(size=(20, dimensions)))
    points, shares = projection.pca(features)
    again = projection.tsne(features, seed=1)
    np.testing.assert_array_equal(again, projection.tsne(features, seed=1))
    assert sum(shares) <= 1.0001
    for found in (points, again):
        assert found.shape == (20, 2)
        middle = found[:10].mean(axis=0), found[10:].mean(axis=0)
        near = np.linalg.norm(found[:10] - middle[0], axis=1)
        far = np.linalg.norm(found[:10] - middle[1], axis=1)
        assert (near < far).all()
    with pytest.raises(InputError, match="tsne has 3 images; it needs 4 or more"):
        projection.tsne(features[:3])


def test_every_group_has_a_look_of_its_own():
    for count in (3, 20, 21, 100):
        found = scatter.styles([f"person {number}" for number in range(count)])
        assert len({(*np.atleast_1d(each["color"]), each["marker"]) for each in found}) == count


def test_a_colour_is_drawn_in_itself():
    found = scatter.styles(["up_color: red", "up_color: multicolor", "up_color: white"])
    assert [each["marker"] for each in found] == ["o", "*", "o"]
    assert (found[0]["color"], found[2]["color"]) == ("red", "white")


@pytest.mark.parametrize("count", [5, 30])
def test_points_are_drawn_with_a_legend_where_it_can_name_them(tmp_path, count, monkeypatch):
    legends = []
    monkeypatch.setattr(scatter.Axes, "legend", lambda *_, **how: legends.append(how))
    groups = np.arange(60) % (count + 1) - 1
    points, names = np.random.default_rng(0).normal(size=(60, 2)), [f"p{i}" for i in range(count)]
    labels = None if count == 5 else ("x", "y")
    scatter.draw(points, groups, names, tmp_path / "a.png", title="title", labels=labels)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    assert len(legends) == (count <= scatter.LISTED)


def test_the_task(trained):
    text = task.run(trained, method="pca", color="gender", count=1)
    picture, table = (trained.evaluation / name for name in ("map_pca_gender.png", "map_pca.csv"))
    assert f"written to {picture} and {table}" in text
    rows = list(csv.DictReader(table.read_text().splitlines()))
    columns = trained.dataset().open("val")
    pids, sizes = np.unique(columns["pid"], return_counts=True)
    assert {row["pid"] for row in rows} == {str(pids[np.argmax(sizes)])}
    kept = np.isin(columns["name"], [row["name"] for row in rows])
    features = inference.features(trained.predict, columns)["feature"][kept]
    expected = projection.pca(features)[0]
    np.testing.assert_allclose([float(row["x"]) for row in rows], expected[:, 0], rtol=1e-4)
    with Image.open(picture) as image:
        assert image.size[0] > 800


def test_the_task_of_a_folder(trained, synthetic_raw):
    folder = synthetic_raw / "query"
    text = task.run(trained, images=str(folder), method="pca", color="camera")
    names = [path.name for path in folder.iterdir()]
    people = len({name.split("_")[0] for name in names})
    assert f"{len(names)} images of {people} persons, principal components by camera" in text
    table = (trained.evaluation / "map_pca.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in table[1:]} == set(names)


def test_what_is_wrong_with_a_flag_is_told(trained):
    with pytest.raises(InputError, match=r"unknown method 'umap'; .*known: pca, tsne"):
        task.run(trained, method="umap")
    with pytest.raises(InputError, match="--count is -1; it must be 0 or more"):
        task.run(trained, count=-1)
    with pytest.raises(InputError, match="--split does nothing with --images"):
        task.run(trained, images="folder", split="test")
    with pytest.raises(InputError, match="--task=map needs a trained run"):
        task.run(trained._replace(predict=None))
