"""--task=compare."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from market_jax import runs, seen
from market_jax.errors import InputError
from market_jax.evaluators import attributes as evaluator
from market_jax.evaluators import scores
from market_jax.metrics import confidence
from market_jax.recipes import supervised
from market_jax.tasks import attributes, compare
from tests.conftest import ROOT, small


@pytest.fixture(scope="module")
def other(synthetic, tmp_path_factory):
    """The folder of a run with another seed, hardly trained."""
    folder = tmp_path_factory.mktemp("other") / "other"
    supervised.fit(small(synthetic, seed=5, epochs=1), folder)
    return folder


def record_of(run):
    """The name of each row, and what is said of it."""
    record = json.loads((run.workdir / "evaluation" / compare.FILE).read_text())
    return [row.pop("run") for row in record["runs"]], record["runs"]


def test_a_run_does_not_differ_from_itself(trained, workdir):
    text = compare.run([[trained], [runs.restore(workdir)]])
    names, (_, found) = record_of(trained)
    assert names == [trained.workdir.name, workdir.name]
    assert list(found) == ["mAP", "rank 1", "mINP"]
    for differs in found.values():
        assert (differs["difference"], differs["p_value"]) == (0, 1)
    assert "+0.00 (+0.00 to +0.00)" in text


def test_the_program_compares_folders(workdir, tmp_path):
    """A row of two seeds beside the scores of a run."""
    for name in ("a", "b"):
        shutil.copytree(workdir, tmp_path / name)
    run = runs.restore(workdir)
    compare.run([[run], [run]])
    rows = f"{run.evaluation / 'scores-reid-val-market.json'},{tmp_path / 'a'}+{tmp_path / 'b'}"
    command = [sys.executable, "evaluate.py", "--task=compare", f"--workdirs={rows}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "+0.00 (+0.00 to +0.00)" in found.stdout


def test_runs_of_one_name_are_told_by_their_paths(trained, tmp_path):
    paths = [trained.workdir, tmp_path / trained.workdir.name]
    compare.run([[trained], [trained._replace(workdir=paths[1])]])
    assert record_of(trained)[0] == list(map(str, paths))


def test_differences_are_those_of_the_queries(trained, other):
    compare.run([[trained], [runs.restore(other)]])
    names, (first, second) = record_of(trained)
    assert names == ["run", "other"]
    mine, others = (
        compare.judge_persons(run, "val", "market", flip=False)
        for run in (trained, runs.restore(other))
    )
    for key, values in mine.values.items():
        expected = confidence.compare(values, others.values[key], mine.pids)
        assert second[key]["difference"] == pytest.approx(expected.difference)
        assert second[key]["mean"] - first[key]["mean"] == pytest.approx(expected.difference)


def test_seeds_of_a_row_are_averaged(trained, workdir, other):
    compare.run([[trained], [runs.restore(workdir), runs.restore(other)]])
    names, (_, both) = record_of(trained)
    assert names == [trained.workdir.name, f"{workdir.name} + other"]
    compare.run([[trained], [runs.restore(other)]])
    each = [row["mAP"]["mean"] for row in record_of(trained)[1]]
    assert both["mAP"]["mean"] == pytest.approx(sum(each) / 2)


def test_attributes_are_compared_picture_by_picture(trained, other):
    """The means are those of --task=attributes, the differences those of their labels."""
    rows = [[trained], [runs.restore(other)]]
    text = compare.run(rows, by="attributes")
    _, found = record_of(trained)
    right = []
    for (run,), entry in zip(rows, found, strict=True):
        attributes.run(run)
        judged = json.loads((run.evaluation / attributes.FILE).read_text())
        count = len(judged["attributes"])
        for key in ("accuracy", "balanced_accuracy"):
            assert entry[key]["mean"] == pytest.approx(judged["mean"][f"{key}_{count}"])
        binary = judged["mean"][f"accuracy_{count}_binary"]
        assert entry["accuracy_binary"]["mean"] == pytest.approx(binary)
        columns = run.dataset().open("val")
        predicted, _ = evaluator.classify(run.predict, columns, list(judged["attributes"]))
        right.append(np.mean([predicted[k] == columns[k] for k in predicted], axis=0))
    expected = confidence.compare(*right, columns["pid"])
    assert found[1]["accuracy"]["difference"] == pytest.approx(expected.difference)
    assert found[1]["accuracy"]["low"] == pytest.approx(expected.low)
    assert f"mean of {count} attributes" in text


def test_what_attributes_cannot_be_compared_by_is_told(trained, monkeypatch):
    with pytest.raises(InputError, match="--protocol does nothing with --by=attributes"):
        compare.run([[trained], [trained]], by="attributes", protocol="course")
    with pytest.raises(InputError, match="unknown --by 'persons'; known: attributes, reid"):
        compare.run([[trained], [trained]], by="persons")
    labels = iter([["gender"], ["age"]])
    monkeypatch.setattr(evaluator, "outputs_to_judge", lambda *_: next(labels))
    with pytest.raises(InputError, match="no label of the split val is predicted by all"):
        compare.run([[trained], [trained]], by="attributes")


def kept(run, name, **about):
    """The scores that a comparison has left in a run's folder, with other entries."""
    found = scores.read(run.evaluation / f"scores-{name}.json")
    return found._replace(about=found.about | about)


@pytest.mark.parametrize("by", ["reid-val-course-flip", "attributes-val-flip"])
def test_scores_stand_in_a_run_s_place(trained, other, by):
    asked = {"by": by.partition("-")[0], "flip": True}
    asked |= {"protocol": "course"} if "course" in by else {}
    second = runs.restore(other)
    compare.run([[trained], [second]], **asked)
    of_runs = record_of(trained)
    mine, others = kept(trained, by), kept(second, by)
    compare.run([[trained], [others]], **asked)
    assert record_of(trained) == of_runs
    turned = others._replace(values=dict(reversed(others.values.items())))
    compare.run([[trained], [turned]], **asked)
    assert record_of(trained) == of_runs
    (trained.evaluation / compare.FILE).unlink()
    text = compare.run([[mine], [others, mine]], **asked)
    assert "other + " in text
    assert "written to" not in text
    assert not (trained.evaluation / compare.FILE).exists()


@pytest.mark.parametrize(
    ("changes", "asked", "message"),
    [
        ({}, {"protocol": "course"}, "its 'protocol' is 'market'; compared is 'course'"),
        ({}, {"split": "train"}, "its 'split' is 'val'; compared is 'train'"),
        ({}, {"flip": True}, "its 'flip' is False; compared is True"),
        ({}, {"by": "attributes"}, "its 'by' is 'reid'; compared is 'attributes'"),
        ({"pictures": ["", ""]}, {}, "its split val has other pictures than"),
        ({"pictures": None}, {}, "does not say which pictures it is of"),
    ],
)
def test_scores_of_something_else_are_not_compared(trained, changes, asked, message):
    compare.run([[trained], [trained]])
    name, about = "reid-val-market", changes
    with pytest.raises(InputError, match=f"{name}.json: {message}"):
        compare.run([[trained], [kept(trained, name, **about)]], **asked)


def test_scores_with_other_values_are_not_compared(trained):
    compare.run([[trained], [trained]])
    found = kept(trained, "reid-val-market")
    short = found._replace(values={"mAP": found.values["mAP"]})
    with pytest.raises(InputError, match="json: its values must be mAP, rank 1, mINP"):
        compare.run([[short], [short]])
    for change in (
        {"pids": found.pids + 1},
        {"names": found.names[::-1]},
        {"values": found.values | {"mAP": np.where(found.pids > 0, np.nan, 0)}},
    ):
        with pytest.raises(InputError, match="json: its split val has other pictures than"):
            compare.run([[trained], [found._replace(**change)]])


def test_scores_over_other_labels_are_not_compared(trained):
    compare.run([[trained], [trained]], by="attributes")
    found = kept(trained, "attributes-val")
    with pytest.raises(InputError, match="json: its 'labels' are 3; they must be names"):
        compare.run([[trained], [kept(trained, "attributes-val", labels=3)]], by="attributes")
    fewer = found.about["labels"][1:]
    others = kept(trained, "attributes-val", labels=fewer)
    with pytest.raises(
        InputError, match=f"json: its values are means over {found.about['labels'][0]}"
    ):
        compare.run([[found], [others]], by="attributes")


def test_scores_keep_the_mark_of_transductive_figures(trained, monkeypatch):
    compare.run([[trained], [trained]])
    plain = kept(trained, "reid-val-market")
    with monkeypatch.context() as patch:
        patch.setattr(seen, "is_transductive", lambda *_: True)
        compare.run([[trained], [trained]])
    assert json.loads((trained.evaluation / compare.FILE).read_text())["transductive"] is True
    marked = kept(trained, "reid-val-market")
    text = compare.run([[plain, marked], [plain]])
    assert text.startswith("TRANSDUCTIVE")
    assert text.count("(transductive)") == 1
    assert not compare.run([[plain], [marked]]).startswith("TRANSDUCTIVE")
    with pytest.raises(InputError, match="json: its 'caution' is no text"):
        compare.run([[plain], [kept(trained, "reid-val-market", caution=3)]])


def test_it_is_said_of_every_row_whom_its_networks_know(trained):
    compare.run([[trained], [trained]])
    known = {"caution": "CAUTION: it knows them.", "identities_trained_on": 3}
    marked = kept(trained, "reid-val-market", **known)
    text = compare.run([[trained], [marked]])
    assert f"{marked.path} (trained on them): CAUTION: it knows them." == text.splitlines()[0]
    (first, _), (own, others) = record_of(trained)
    assert "trained on them" not in first
    assert "cautions" not in own
    assert others["cautions"] == [known["caution"]]
    text = compare.run([[marked], [trained]])
    assert text.startswith("CAUTION: it knows them.\n\n")
    assert text.count("(trained on them)") == 1


def test_runs_that_hold_out_others_are_not_compared(trained, synthetic, tmp_path):
    config = small(synthetic, epochs=1, **{"data.split_seed": 3})
    supervised.fit(config, tmp_path / "third")
    with pytest.raises(InputError, match="third: its split val has other pictures than"):
        compare.run([[trained], [runs.restore(tmp_path / "third")]])


def test_an_unknown_protocol_is_told(trained):
    with pytest.raises(InputError, match="unknown protocol 'markt'; did you mean 'market'"):
        compare.run([[trained], [trained]], protocol="markt")


def test_a_small_p_value_is_not_shown_as_0():
    found = confidence.Comparison(difference=0.1, low=0.05, high=0.15, p_value=1 / 2001)
    assert compare._as_cells(found) == ("+10.00 (+5.00 to +15.00)", "< 0.001")
    assert compare._as_cells(found._replace(p_value=0.001))[1] == "0.001"
