"""APR's re-weighting module, and PCB's stripes, by hand."""

import jax
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.models import apr, pcb
from market_jax.models.backbones import resnet

KEY, SIZE, PERSONS = jax.random.key(0), (64, 32), 5
CLASSES = {"age": 4, "hat": 2}


def test_attributes_are_weighed_before_persons_are_told():
    x = jax.random.uniform(KEY, (2, *SIZE, 3))
    model = apr.Model(CLASSES, resnet.Model(18), identities=PERSONS)
    variables = jax.jit(model.init)(KEY, x)
    outputs = jax.jit(model.apply)(variables, x)
    p, params = outputs["predictions"], variables["params"]
    assert p.shape == (2, 5)
    confidence = 1 / (1 + np.exp(-(p @ params["reweighting"]["kernel"])))
    head = params["head_identity"]
    read = np.concatenate([confidence * p, outputs["feature"]], axis=1)
    np.testing.assert_allclose(outputs["identity"], read @ head["kernel"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outputs["embedding"], outputs["feature"])
    for changes in ({"reweighting": False}, {"classes": {}}):
        plain = jax.eval_shape(model.clone(**changes).init, KEY, x)["params"]
        assert "reweighting" not in plain
        assert plain["head_identity"]["kernel"].shape == (512, PERSONS)


def test_pcb_by_hand():
    x = jax.random.uniform(KEY, (2, 96, 32, 3))
    model = pcb.Model({}, resnet.Model(18), identities=PERSONS, stripes=3, width=8)
    variables = jax.jit(model.init)(KEY, x)
    outputs = jax.jit(model.apply)(variables, x)
    seen = jax.jit(model.backbone.apply)(
        {kind: tree["backbone"] for kind, tree in variables.items()}, x
    )
    means = [np.asarray(seen["map"])[:, i].mean(axis=1) for i in range(3)]
    np.testing.assert_allclose(outputs["feature"], np.concatenate(means, axis=1), rtol=1e-5)
    lengths = [mean / np.linalg.norm(mean, axis=1, keepdims=True) for mean in means]
    expected = np.concatenate(lengths, axis=1) / np.sqrt(3)
    np.testing.assert_allclose(outputs["embedding"], expected, rtol=1e-4, atol=1e-6)
    params = variables["params"]
    narrow = means[1] @ params["reduce_part2"]["kernel"] / np.sqrt(1 + 1e-5)
    logits = narrow @ params["head_identity_part2"]["kernel"]
    np.testing.assert_allclose(outputs["identity_part2"], logits, rtol=1e-4, atol=1e-5)
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
