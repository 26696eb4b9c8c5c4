import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import attributes_cnn
from market_jax import build, inference, runs
from market_jax.data import decoding
from market_jax.errors import InputError
from market_jax.evaluators import reid as evaluator
from market_jax.metrics import ranking
from market_jax.report import model_card
from market_jax.retrieval import distances
from market_jax.tasks import reid
from tests.conftest import small


def result_of(found):
    return json.loads((found.workdir / "evaluation" / reid.FILE).read_text())


def baseline(synthetic, tmp_path):
    return runs.without_model(small(synthetic), str(tmp_path / "baseline"))


def test_held_out_identities_in_every_protocol(trained):
    text = reid.run(trained)
    result = result_of(trained)
    assert list(result["ranking"]) == ["market", "course", "course_with_self"]
    by_protocol = result["ranking"]
    assert by_protocol["course_with_self"]["rank1"] == 1.0, "every query finds itself"
    assert by_protocol["course_with_self"]["mAP"] > by_protocol["course"]["mAP"]
    val = trained.dataset().open("val")
    assert result["images"] == len(val["pid"])
    assert by_protocol["market"]["queries"] == len(set(zip(val["pid"], val["camid"], strict=True)))
    # by hand: the same features, ranked by a sort
    features = trained.predict(val, ["embedding"])["embedding"]
    sides = evaluator.read_features(trained.predict, trained.dataset(), "val")
    made = evaluator.make_protocols(*sides)
    at = {name: i for i, name in enumerate(val["name"])}
    query = features[[at[name] for name in made["market"].query["name"]]]
    plain = distances.compute(query, features)
    expected = ranking.evaluate(plain, **made["market"].labels)
    assert by_protocol["market"]["mAP"] == pytest.approx(expected.mAP, abs=1e-6)
    low, high = by_protocol["market"]["mAP_interval"]
    assert low <= by_protocol["market"]["mAP"] <= high
    assert "ranking, course_with_self" in text
    assert "Pairs of images are not judged: " in text, "two identities, one in each half"


def test_features_are_extracted_once(trained, monkeypatch):
    reid.run(trained)
    (stored,) = trained.evaluation.glob("outputs-*.npz")
    with np.load(stored) as kept:
        assert set(kept.files) == {"key", "digest", "embedding"}
    first = result_of(trained)

    written = (trained.workdir / "checkpoints" / str(trained.step) / "digests.json").read_text()

    def again(step, text=written):
        predict = inference.Predictor(
            trained.predict.apply,
            trained.predict.variables,
            cache=trained.evaluation,
            key=[step, text, trained.extra["config"]],
        )
        return trained._replace(predict=predict)

    monkeypatch.setattr(inference, "run", None)
    reid.run(again(trained.step), metric="euclidean")
    assert result_of(trained)["metric"] == "euclidean"
    reid.run(again(trained.step), metric="cosine")
    assert result_of(trained) == first
    with pytest.raises(TypeError):  # another step's features are not these
        reid.run(again(trained.step + 1))
    with pytest.raises(TypeError):  # nor those of another training in the same folder
        reid.run(again(trained.step, "{}"))
    with pytest.raises(TypeError):  # neither are the mirror images'
        reid.run(again(trained.step), flip=True)


def test_another_data_set_does_not_lie_in_the_folder_of_the_run_s_own(workdir):
    own = runs.restore(workdir).config.data
    assert runs.restore(workdir, data=runs.Data("unitn")).config.data.dir == ""
    assert runs.restore(workdir, data=runs.Data(own.name)).config.data.dir == own.dir != ""


def test_transforms_and_rerankers_stand_beside_plain_ranking(trained):
    words = "k_reciprocal k1=4 k2=2 lambda_value=0.3"
    reid.run(trained, rerank=[words])
    result = result_of(trained)
    assert list(result)[:2] == ["ranking", "ranking+k_reciprocal"]
    assert result["rerankers"] == [words]
    reid.run(trained, transform=["multi_query"], rerank=["spatio_temporal alpha=5"])
    result = result_of(trained)
    assert list(result["ranking+multi_query+spatio_temporal"]) == ["market"]
    reid.run(trained)
    result = result_of(trained)
    assert result["rerankers"] == [], "a second evaluation knows nothing of the first one's"
    assert "ranking+multi_query+spatio_temporal" not in result


def test_what_is_given_twice_is_applied_twice(trained):
    """Each uses what came before it, and of each is kept what it has learned."""
    first, second = "kmeans soft=0.5 seed=0", "kmeans soft=0.5 seed=1"
    rows = {}
    for words in ([first], [second], [first, second]):
        reid.run(trained, rerank=words)
        result = result_of(trained)
        rows[tuple(words)] = result["+".join(["ranking"] + ["kmeans"] * len(words))]
    assert rows[first, second] not in (rows[first,], rows[second,])
    assert {"images_per_cluster", f"images_per_cluster of {second}"} <= result.keys()


def test_what_needs_frames_or_labels_decodes_no_picture(trained, monkeypatch):
    decoded, decode = [], decoding.decode

    def spy(content, where):
        decoded.append(where)
        return decode(content, where)

    monkeypatch.setattr(decoding, "decode", spy)
    training = reid.Features(trained, "model", False).training
    assert {"pid", "camid", "frame"} <= training.columns.keys()
    assert not decoded
    assert len(training.features["feature"]) <= len(decoded)


def test_clusters_answer_beside_plain_ranking(trained):
    reid.run(trained, rerank=["kmeans clusters=4"])
    result = result_of(trained)
    assert list(result)[:2] == ["ranking", "ranking+kmeans"]
    assert list(result["ranking+kmeans"]) == ["market", "course", "course_with_self"]
    assert result["ranking+kmeans"]["course"]["mAP"] < result["ranking"]["course"]["mAP"] + 0.2
    assert "images_per_cluster" not in result
    text = reid.run(trained, rerank=["agglomerative method=average soft=0.5"])
    result = result_of(trained)
    assert result["ranking+agglomerative"]["course_with_self"]["rank1"] == 1.0
    assert result["mAP_on_training"][str(result["images_per_cluster"])] == max(
        result["mAP_on_training"].values()
    )
    assert "ranking+agglomerative, market" in text


def test_a_clustering_learns_its_threshold_or_asks_the_bic(trained):
    reid.run(trained, rerank=["agglomerative learn=threshold"])
    learned = result_of(trained)
    assert learned["threshold"] > 0
    reid.run(trained, rerank=[f"agglomerative threshold={learned['threshold']}"])
    assert result_of(trained)["ranking+agglomerative"] == learned["ranking+agglomerative"]
    reid.run(trained, rerank=["agglomerative neighbours=3 method=average learn=threshold"])
    assert result_of(trained)["threshold"] != learned["threshold"]
    reid.run(trained, rerank=["gaussian_mixture bic=true"])
    assert "images_per_cluster" not in result_of(trained)


def test_flipped_features_are_the_mean(trained):
    val = trained.dataset().open("val")
    images = val["image"][np.arange(len(val["pid"]))]
    sides = [val | {"image": images}, val | {"image": images[:, :, ::-1]}]
    for source in ("model", "pixels"):
        predict, names = runs.feature_source(trained, source)
        both = inference.features(predict, val, names, flip=True)["feature"]
        parts = [inference.features(predict, rows, names)["feature"] for rows in sides]
        np.testing.assert_allclose(both, sum(parts) / 2, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(both, both.reshape(-1, 32, 16, 3)[:, :, ::-1].reshape(both.shape))


@pytest.mark.parametrize("features", ["pixels", "color_histogram"])
def test_what_needs_no_training_beats_chance(synthetic, tmp_path, features):
    found = baseline(synthetic, tmp_path)
    reid.run(found, features=features, split="test")
    result = result_of(found)
    rows = build.dataset(found.config).open("test")
    query = build.dataset(found.config).open("query")
    assert result["ranking"]["market"]["queries"] == len(query["pid"]), "the release's own queries"
    assert result["images"] == len(rows["pid"])
    kept = result["verification"]["on_other_identities"]
    assert 0 <= kept["precision"] <= 1
    rng = np.random.default_rng(0)
    labels = {f"{s}_{k}s": side[k] for s, side in (("query", query), ("gallery", rows))
              for k in ("pid", "camid")}  # fmt: skip
    chance = np.mean(
        [ranking.evaluate(rng.random((len(query["pid"]), len(rows["pid"]))), **labels).mAP
         for _ in range(20)]
    )  # fmt: skip
    assert result["ranking"]["market"]["mAP"] > 1.1 * chance


def test_a_folder_and_a_list_give_what_the_split_gives(synthetic, synthetic_raw, tmp_path):
    found = baseline(synthetic, tmp_path)
    folder = synthetic_raw / "bounding_box_test"
    reid.run(found, features="pixels", images=str(folder))
    by_name = result_of(found)
    rows = build.dataset(found.config).open("test")
    lines = [
        f"{n},{p},{c}" for n, p, c in zip(rows["name"], rows["pid"], rows["camid"], strict=True)
    ]
    table = tmp_path / "list.csv"
    table.write_text("\n".join(["name,pid,camid", *lines[::-1]]) + "\n")
    reid.run(found, features="pixels", images=str(folder), annotations=str(table))
    assert result_of(found)["ranking"] == by_name["ranking"]


def test_excluded_images_are_gone(synthetic, tmp_path):
    found = baseline(synthetic, tmp_path)
    reid.run(found, features="pixels", split="test")
    everything = result_of(found)
    rows = build.dataset(found.config).open("test")
    junk = rows["name"][rows["pid"] == -1]
    table = tmp_path / "junk.csv"
    kept = rows["name"][rows["pid"] > 0][0]
    table.write_text("name,rejected\n" + "".join(f"{n},1\n" for n in junk) + f"{kept},0\n")
    text = reid.run(found, features="pixels", split="test", exclude=str(table))
    assert text.startswith("split test, less those in junk.csv: ")
    assert result_of(found)["images"] == everything["images"] - len(junk)
    assert (everything["exclude"], result_of(found)["exclude"]) == (None, str(table))
    assert "split test, queries of Q, less those in junk.csv: " in model_card.judged(
        result_of(found) | {"queries": "folder/Q"}
    )
    market = [r["ranking"]["market"] for r in (everything, result_of(found))]
    assert market[0]["mAP"] == pytest.approx(market[1]["mAP"], abs=1e-9), "junk never counted"
    table.write_text("name\nnobody.jpg\n")
    with pytest.raises(InputError, match=r"junk.csv: 'nobody.jpg' is none of the images"):
        reid.run(found, features="pixels", split="test", exclude=str(table))
    table.write_text("image\nnobody.jpg\n")
    with pytest.raises(InputError, match=r"junk.csv: the header has no column 'name'"):
        reid.run(found, features="pixels", split="test", exclude=str(table))


def test_the_page_is_whole(trained):
    text = reid.run(trained, report=True, transform=["average_query_expansion k=2"])
    page = trained.workdir / "evaluation" / reid.PAGE
    assert str(page) in text
    content = page.read_text()
    for heading in ("Worst queries", "Median queries", "Best queries"):
        assert f"{heading}: ranking+average_query_expansion, market" in content
    assert content.count('class="query"') == 15
    assert content.count("<figure") == 15 * 11
    assert result_of(trained)["ranking"]["market"]["mAP"] > 0


@pytest.fixture
def release(unitn, tmp_path):
    """A run over a raw course release whose queries are copies of test images."""
    rng = np.random.default_rng(0)
    for i in range(12):
        image = Image.fromarray(rng.integers(0, 256, (128, 64, 3), np.uint8))
        image.save(unitn / "test" / f"{i:06d}.jpg")
    for i in range(4):
        shutil.copyfile(unitn / "test" / f"{2 * i + 1:06d}.jpg", unitn / "queries" / f"{i:06d}.jpg")
    config = attributes_cnn.get_config()
    config.data.name, config.data.dir = "unitn", str(unitn)
    return runs.without_model(config, str(tmp_path / "answers"))


@pytest.mark.parametrize(
    "ranked_by",
    [
        {},
        {"rerank": ["k_reciprocal k1=3 k2=1"]},
        {"rerank": ["agglomerative clusters=4 soft=0.5"]},
    ],
)
def test_answers_to_the_release(release, ranked_by, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = reid.run(release, features="pixels", predict="release", top_k=5, **ranked_by)
    lines = (release.workdir / "evaluation" / "reid_test.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{i:06d}.jpg" for i in range(4)]
    for i, line in enumerate(lines):
        names = line.split(": ")[1].split(", ")
        assert names[0] == f"{2 * i + 1:06d}.jpg"
        assert len(set(names)) == 5
    assert "of 4 queries with a twin in the gallery, 100.00 % have it in the answer" in text
    assert "100.00 % at rank 1" in text


def test_a_cluster_is_a_shorter_answer(release, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    reid.run(release, features="pixels", predict="release", rerank=["kmeans clusters=12"])
    lines = (release.workdir / "evaluation" / "reid_test.txt").read_text().splitlines()
    assert lines == [f"{i:06d}.jpg: {2 * i + 1:06d}.jpg" for i in range(4)]


def test_answers_to_queries_of_any_name(release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unitn = Path(release.config.data.dir)
    (tmp_path / "asked").mkdir()
    for i in range(4):
        shutil.copyfile(unitn / "queries" / f"{i:06d}.jpg", tmp_path / "asked" / f"who {i}.jpg")
    folders = {"predict": str(tmp_path / "asked"), "images": str(unitn / "test")}
    text = reid.run(release, features="pixels", top_k=2, **folders)
    lines = (release.workdir / "evaluation" / "reid_test.txt").read_text().splitlines()
    assert [line.split(", ")[0] for line in lines] == [
        f"who {i}.jpg: {2 * i + 1:06d}.jpg" for i in range(4)
    ]
    assert text.startswith("4 answers of at most 2")
    with pytest.raises(InputError, match="--annotations does nothing with --predict"):
        reid.run(release, features="pixels", annotations="a.csv", **folders)


def test_mistakes_end_in_a_message(release, trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    one_camera = tmp_path / "one_camera"
    one_camera.mkdir()
    for pid, frame in np.ndindex(2, 3):
        noise = np.random.default_rng(3 * pid + frame).integers(256, size=(32, 16, 3))
        name = f"{pid + 1:04d}_c1s1_{frame:06d}_00.png"
        Image.fromarray(noise.astype(np.uint8)).save(one_camera / name)
    cases = [
        (release, {"split": "test", "features": "pixels"}, "--predict=release answers them"),
        (release, {"predict": "release", "features": "pixels", "top_k": 13}, "top_k is 13; .* 12"),
        (
            release,
            {"predict": "queries", "features": "pixels"},
            "--predict is 'queries': a folder of queries needs --images",
        ),
        (release, {"features": "pixel"}, "unknown features 'pixel'; did you mean 'pixels'"),
        (release, {}, "--features=model needs a trained run"),
        (trained, {"split": "test2"}, "there is no split 'test2'"),
        (trained, {"annotations": "x.csv"}, "--annotations does nothing without --images"),
        (trained, {"rerank": ["gaussian_mixture clusters=3 bic=true"]}, "give one of them"),
        (trained, {"rerank": ["rerank"]}, "unknown re-ranker 'rerank'"),
        (trained, {"rerank": ["multi_query"]}, "unknown re-ranker 'multi_query'"),
        (trained, {"transform": ["k_reciprocal"]}, "unknown transform 'k_reciprocal'"),
        (trained, {"rerank": ["kmeans clusters=0"]}, "clusters is 0; it must be 1 to"),
        (trained, {"rerank": ["kmeans learn=threshold"]}, "cannot learn 'threshold'"),
        (trained, {"rerank": ["agglomerative clusters=3 learn=threshold"]}, "cannot learn"),
        (trained, {"rerank": ["k_reciprocal k1"]}, "'k1' is not KEY=VALUE"),
        (trained, {"rerank": ["k_reciprocal k1=twenty"]}, "k1 is 'twenty'; it must be a whole"),
        (trained, {"rerank": ["k_reciprocal k1=true"]}, "k1 is True; it must be a whole number"),
        (trained, {"rerank": ["k_reciprocal one_more=2"]}, "one_more is 2; it must be true or"),
        (trained, {"rerank": ["k_reciprocal metric=cosine"]}, "argument of re-ranker .*'metric'"),
        (trained, {"rerank": ["spatio_temporal training=3"]}, "argument of re-ranker .*'training'"),
        (trained, {"metric": "manhattan"}, "unknown metric 'manhattan'"),
        (
            trained,
            {"images": str(one_camera), "transform": ["multi_query"]},
            "protocol 'market' is not possible with these images",
        ),
    ]
    for found, arguments, message in cases:
        with pytest.raises(InputError, match=message):
            reid.run(found, **arguments)
        assert not (found.workdir / "evaluation" / reid.FILE).exists()
