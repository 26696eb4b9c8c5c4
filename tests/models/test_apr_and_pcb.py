"""APR's re-weighting module, and PCB's stripes, by hand."""

import jax
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.models import apr, pcb
from market_jax.models.backbones import resnet
from tests.models.test_attention import shaken

KEY, SIZE, PERSONS = jax.random.key(0), (64, 32), 5
CLASSES = {"age": 4, "hat": 2}


def drawn(model, x):
    """Variables, none of which does nothing after the backbone."""
    variables = jax.jit(model.init)(KEY, x)
    return {kind: shaken(tree) | {"backbone": tree["backbone"]} for kind, tree in variables.items()}


def test_attributes_are_weighed_before_persons_are_told():
    x = jax.random.uniform(KEY, (2, *SIZE, 3))
    model = apr.Model(CLASSES, resnet.Model(18), identities=PERSONS)
    variables = drawn(model, x)
    outputs = jax.jit(model.apply)(variables, x)
    p, params = outputs["predictions"], variables["params"]
    assert p.shape == (2, 5)
    layer, head = params["reweighting"], params["head_identity"]
    confidence = 1 / (1 + np.exp(-(p @ layer["kernel"] + layer["bias"])))
    read = np.concatenate([confidence * p, outputs["feature"]], axis=1)
    expected = read @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(outputs["identity"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(outputs["embedding"], outputs["feature"])
    for changes in ({"reweighting": False}, {"classes": {}}):
        plain = jax.eval_shape(model.clone(**changes).init, KEY, x)["params"]
        assert "reweighting" not in plain
        assert plain["head_identity"]["kernel"].shape == (512, PERSONS)


def test_pcb_by_hand():
    x = jax.random.uniform(KEY, (2, 96, 32, 3))
    model = pcb.Model({}, resnet.Model(18), identities=PERSONS, stripes=3, width=8)
    variables = drawn(model, x)
    outputs = jax.jit(model.apply)(variables, x)
    seen = jax.jit(model.backbone.apply)(
        {kind: tree["backbone"] for kind, tree in variables.items()}, x
    )
    means = [np.asarray(seen["map"])[:, i].mean(axis=1) for i in range(3)]
    np.testing.assert_allclose(outputs["feature"], np.concatenate(means, axis=1), rtol=1e-5)
    lengths = [mean / np.linalg.norm(mean, axis=1, keepdims=True) for mean in means]
    expected = np.concatenate(lengths, axis=1) / np.sqrt(3)
    np.testing.assert_allclose(outputs["embedding"], expected, rtol=1e-4, atol=1e-6)
    for part, mean in enumerate(means, start=1):
        layer, norm, head = (
            variables["params"][f"{name}_part{part}{end}"]
            for name, end in (("reduce", ""), ("reduce", "_bn"), ("head_identity", ""))
        )
        moments = variables["batch_stats"][f"reduce_part{part}_bn"]
        narrow = mean @ layer["kernel"] + layer["bias"]
        narrow = (narrow - moments["mean"]) / np.sqrt(moments["var"] + 1e-5)
        logits = (narrow * norm["scale"] + norm["bias"]) @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(outputs[f"identity_part{part}"], logits, rtol=1e-3, atol=1e-3)
    plain = jax.eval_shape(model.clone(identities=0).init_with_output, KEY, x)[0]
    assert plain.keys() == {"map", "feature", "embedding"}
    with pytest.raises(InputError, match=r"model\.stripes is 6 and the map has 3 rows"):
        jax.eval_shape(model.clone(stripes=6).init, KEY, x)


@pytest.mark.parametrize("kind", [apr, pcb])
def test_persons_may_be_told_by_cosines(kind):
    x = jax.random.uniform(KEY, (2, 192, 32, 3))
    model = kind.Model(CLASSES, resnet.Model(18), identities=PERSONS, classifier="cosine")
    outputs, variables = jax.eval_shape(model.init_with_output, KEY, x)
    heads = {name: set(p) for name, p in variables["params"].items() if "head_identity" in name}
    assert heads
    assert all(names == {"kernel"} for names in heads.values()), "vectors, and no bias"
    assert {v.shape for k, v in outputs.items() if k.startswith("identity")} == {(2, PERSONS)}
