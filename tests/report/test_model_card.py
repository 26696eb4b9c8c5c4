"""What a model card says of pictures that were learned from without labels."""

import yaml

from market_jax.report import model_card

ABOUT = {
    "name": "tiny",
    "config": {"model": {"name": "classifier"}, "data": {"image_size": [96, 64]}},
    "labels": {},
    "trained_on": [{"name": "synthetic", "identities": 3, "pids": {"train": [1, 2, 3]}}],
    "clustered": [],
    "commit": "abc",
}
SHOWN = {"size": 8, "parameters": "9", "dtype": "float16", "drawn": 16, "cosine": 1.0}


def record(split, **more):
    """What `--task=reid` writes."""
    row = {"mAP": 0.5, "rank1": 0.75, "mINP": 0.25}
    said = {"judged": f"split {split}", "data": "unitn", "images": 9, "identities": 3}
    return {"ranking": {"market": row}, "features": "model"} | said | more


def test_a_transductive_figure_is_marked_wherever_it_stands():
    evaluations = [record("test", transductive=True), record("val")]
    text = model_card.model_card(ABOUT, evaluations, {}, **SHOWN)
    marked = (
        "| mAP, ranking, protocol market | TRANSDUCTIVE, unitn, split test: 9 images of 3 people"
    )
    assert marked in text
    assert "| mAP, ranking, protocol market | unitn, split val: 9 images of 3 people |" in text
    assert "\nTRANSDUCTIVE: the network has learned from the judged pictures" in text
    fields = yaml.safe_load("\n".join(model_card.front_matter(ABOUT, evaluations)))
    first, second = (result["dataset"]["name"] for result in fields["model-index"][0]["results"])
    assert first.startswith("TRANSDUCTIVE, unitn, split test")
    assert second.startswith("unitn, split val")
    assert "TRANSDUCTIVE" not in model_card.model_card(ABOUT, [record("val")], {}, **SHOWN)


def test_what_was_learned_from_without_labels_is_named_and_has_its_license():
    assert "| learned from without labels | nothing |" in model_card.model_card(
        ABOUT, [], {}, **SHOWN
    )
    about = ABOUT | {"clustered": [["unitn", "test"], ["synthetic,market1501", "train"]]}
    text = model_card.model_card(about, [], {}, **SHOWN)
    heap = "unitn, split test; synthetic,market1501, split train"
    assert f"| learned from without labels | {heap} |" in text
    assert 'license_name: "research-only"' in text
    drawn = ABOUT | {"clustered": [["synthetic", "test"]]}
    assert "license" not in "\n".join(model_card.front_matter(drawn, []))
