"""What re-identification adds: BNNeck, cosines, non-local blocks, and features of parts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import source_b
from market_jax import build
from market_jax.errors import InputError
from market_jax.models import classifier, heads, parts
from market_jax.models.attention import NonLocal
from market_jax.models.backbones import efficientnet_lite, resnet
from market_jax.models.heads import pool_and_classify
from market_jax.models.layers import conv, shares_of_cells
from market_jax.models.norms import batch_norm
from market_jax.retrieval.triplets import unit_length
from market_jax.training import checkpoints, transfer
from market_jax.training.state import init_state
from tests.models.test_backbones import made_up_weights

KEY, SIZE, PERSONS = jax.random.key(0), (64, 32), 5
CLASSES = {"age": 4, "hat": 2}


class Neck(nn.Module):
    classifier: str = "linear"
    suffix: str = ""

    @nn.compact
    def __call__(self, x, train=False):
        settings = {"classifier": self.classifier, "suffix": self.suffix}
        return heads.bnneck(x, PERSONS, train, **settings)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_bnneck_learns_no_shift():
    x = 3 * normal(8, 6) + 1
    outputs, variables = Neck(suffix="_part1").init_with_output(KEY, x, True)
    assert outputs.keys() == {"feature_part1", "embedding_part1", "identity_part1"}
    assert {name: set(p) for name, p in variables["params"].items()} == {
        "bnneck_part1": {"scale"},
        "head_identity_part1": {"kernel"},
    }
    expected = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    np.testing.assert_allclose(outputs["embedding_part1"], expected, atol=1e-5)
    with pytest.raises(InputError, match="unknown classifier 'round'; known: cosine, linear"):
        Neck("round").init(KEY, x)


def test_cosines():
    x = normal(8, 6)
    x[0] = 0
    outputs, variables = Neck("cosine").init_with_output(KEY, x)
    kernel = np.asarray(variables["params"]["head_identity"]["kernel"])
    assert kernel.shape == (6, PERSONS)
    embedding = np.asarray(outputs["embedding"])[1:]
    lengths = np.linalg.norm(embedding, axis=1)[:, None] * np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(outputs["identity"][1:], embedding @ kernel / lengths, atol=1e-5)
    assert np.abs(outputs["identity"]).max() <= 1 + 1e-6
    np.testing.assert_array_equal(outputs["identity"][0], 0)
    gradient = jax.grad(lambda x: jnp.sum(unit_length(x) ** 2))(x)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("train", [True, False])
def test_a_non_local_block_begins_as_the_identity(train):
    x = normal(2, 4, 3, 6)
    y, variables = NonLocal().init_with_output(KEY, x, train)
    np.testing.assert_array_equal(y, x)
    assert variables["params"]["theta"]["kernel"].shape == (1, 1, 6, 3)
    narrow = NonLocal(inner=1).init(KEY, x)["params"]
    assert narrow["out"]["kernel"].shape == (1, 1, 1, 6)


def test_a_non_local_block_by_hand():
    x = normal(2, 4, 3, 6)
    params = jax.tree.map(lambda v: v + normal(*v.shape), dict(NonLocal().init(KEY, x)["params"]))
    moments = {"bn": {"mean": normal(6), "var": 1 + normal(6) ** 2}}
    found = NonLocal().apply({"params": params, "batch_stats": moments}, x)

    def apply(name, places):
        return places @ np.asarray(params[name]["kernel"])[0, 0] + params[name]["bias"]

    for image, result in zip(x, found, strict=True):
        places = image.reshape(12, 6)
        theta, phi, g = (apply(name, places) for name in ("theta", "phi", "g"))
        y = apply("out", theta @ phi.T / 12 @ g)
        y = (y - moments["bn"]["mean"]) / np.sqrt(moments["bn"]["var"] + 1e-5)
        y = y * params["bn"]["scale"] + params["bn"]["bias"] + places
        np.testing.assert_allclose(result.reshape(12, 6), y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (
            resnet.Model(50, non_local=(0, 2, 3, 0)),
            {f"non_local{name}" for name in ("2_2", "2_3", "3_3", "3_4", "3_5")},
        ),
        (efficientnet_lite.Model(non_local=(0, 0, 0, 1, 0, 0, 0)), {"non_local4_2"}),
    ],
    ids=["resnet", "efficientnet_lite"],
)
def test_non_local_blocks_follow_the_last_blocks_of_a_stage(model, names):
    x = jax.ShapeDtypeStruct((1, *SIZE, 3), np.float32)
    found, plain = (
        set(jax.eval_shape(m.init, KEY, x)["params"]) for m in (model, model.clone(non_local=()))
    )
    assert found - plain == names
    for wrong in ((1,), (9,) * len(model.non_local)):
        with pytest.raises(InputError, match=r"non_local is \(.*it must be \(\) or a number for"):
            jax.eval_shape(model.clone(non_local=wrong).init, KEY, x)


def last(x, train):
    x = conv(8, 3, bias=False, name="last_conv")(x)
    return nn.relu(batch_norm(train, name="last_bn")(x))


class Last(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return last(x, train)


class Staged(nn.Module):
    """A backbone of two stages, the last of which can be had again."""

    @nn.compact
    def __call__(self, x, train=False):
        before = nn.relu(conv(6, 3, 8, name="first")(x))
        after = last(before, train)
        return pool_and_classify([before, after, after], {}, "gem")

    @nn.nowrap
    def last_stage(self, name):
        return Last(name=name)


def images(count=4):
    return jax.random.uniform(jax.random.key(1), (count, *SIZE, 3))


def make(**fields):
    """A network of parts, its variables, and images."""
    settings = {"identities": PERSONS, "width": 6} | fields
    model, x = parts.Model(CLASSES, Staged(), **settings), images()
    return model, jax.jit(model.init)(KEY, x), x


def test_the_most_active_rows_are_dropped():
    x = np.ones((2, 6, 3, 2), np.float32)
    x[0, 4, 1] = -3  # one active place is enough
    x[0, 2] = 1.5
    x[1, 0, 2, 1], x[1, 5] = 4, 2
    found = np.asarray(parts.drop_top_rows(x, 0.33))
    zero = (found == 0).all(axis=(2, 3))
    assert [np.flatnonzero(rows).tolist() for rows in zero] == [[2, 4], [0, 5]]
    np.testing.assert_array_equal(found[~zero], x[~zero])
    np.testing.assert_array_equal(parts.drop_top_rows(x, 0.0), x)


@pytest.mark.parametrize(
    ("branches", "count"), [(("global", "part", "channel"), 7), (("part",), 3)]
)
def test_outputs_of_parts(branches, count):
    model, variables, x = make(branches=branches)
    outputs = jax.jit(model.apply)(variables, x)
    names = ["global", "global_max", "part_max", "part1", "part2", "channel1", "channel2"]
    names = names if count == 7 else names[2:5]
    told = {name for name in outputs if name.startswith("identity")}
    assert told == {f"identity_{name}" for name in names}
    assert outputs["embedding"].shape == outputs["feature"].shape == (4, 6 * count)
    lengths = np.linalg.norm(np.split(np.asarray(outputs["embedding"]), count, axis=1), axis=2)
    np.testing.assert_allclose(lengths, count**-0.5, rtol=1e-4)
    for i, name in enumerate(names):
        part = outputs["embedding"][:, 6 * i : 6 * i + 6] * count**0.5
        np.testing.assert_allclose(part, unit_length(outputs[f"embedding_{name}"]), rtol=1e-5)
        assert outputs[f"identity_{name}"].shape == (4, PERSONS)
        np.testing.assert_array_equal(
            outputs["feature"][:, 6 * i : 6 * i + 6], outputs[f"feature_{name}"]
        )
    assert outputs["age"].shape == (4, 4)
    copies = {name for name in variables["params"] if name.startswith("branch")}
    assert copies == {f"branch_{branch}" for branch in branches[1:]}


def test_features_of_parts_by_hand():
    """Without dense layers and persons; rows are dropped in training alone."""
    model, variables, x = make(width=0, identities=0, stripes=3, drop=0.4)
    shared = {
        kind: tree | {f"branch_{name}": last_of(tree) for name in ("part", "channel")}
        for kind, tree in variables.items()
    }
    outputs = jax.jit(model.apply)(shared, x)
    found = Staged().apply({kind: tree["backbone"] for kind, tree in shared.items()}, x)
    z = np.asarray(found["map"])  # 8 rows
    expected = {
        "global": z.mean(axis=(1, 2)),
        "global_max": z.max(axis=(1, 2)),
        "part_max": z.max(axis=(1, 2)),
        "part1": z[:, :3].mean(axis=(1, 2)),
        "part2": z[:, 2:6].mean(axis=(1, 2)),
        "part3": z[:, 5:].mean(axis=(1, 2)),
        "channel1": z[..., :4].mean(axis=(1, 2)),
        "channel2": z[..., 4:].mean(axis=(1, 2)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[f"feature_{name}"], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(np.linalg.norm(outputs["embedding"], axis=1), 1, rtol=1e-5)
    trained, _ = model.apply(shared, x, True, mutable=["batch_stats"])
    z, _ = Staged().apply(
        {kind: tree["backbone"] for kind, tree in shared.items()}, x, True, mutable=["batch_stats"]
    )
    kept = parts.drop_top_rows(z["map"], 0.4).max(axis=(1, 2))
    np.testing.assert_allclose(trained["feature_global_max"], kept, rtol=1e-5)
    assert not np.allclose(kept, z["map"].max(axis=(1, 2)))


def last_of(tree):
    return {
        name: tree["backbone"][name]
        for name in ("last_conv", "last_bn")
        if name in tree["backbone"]
    }


def test_stripes_overlap_where_rows_do_not_divide():
    np.testing.assert_allclose(shares_of_cells(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(shares_of_cells(3, 2), [[0.5, 0.5, 0], [0, 0.5, 0.5]])


def test_gradients_are_finite_and_reach_all_that_an_output_needs():
    """The backbone's pooling is needed by the attributes alone."""
    model, variables, x = make(classifier="cosine")

    def loss(params, attributes):
        outputs, _ = model.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        value = sum(jnp.sum(v[:, 0]) for k, v in outputs.items() if k.startswith("identity"))
        return value + attributes * jnp.sum(outputs["age"][:, 0] + outputs["hat"][:, 1])

    gradient = jax.jit(jax.grad(loss))
    for attributes in (0.0, 1.0):
        found = gradient(variables["params"], attributes)
        zero = {
            "/".join(key.key for key in where)
            for where, leaf in jax.tree_util.tree_leaves_with_path(found)
            if not np.any(leaf)
        }
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        unused = {"backbone/gem/power"} | {
            f"head_{group}/Dense_0/{leaf}"
            for group in ("age", "binaries")
            for leaf in ("kernel", "bias")
        }
        assert zero == (set() if attributes else unused)


def copies_are_the_backbones(variables, copies):
    """For each copy whether all its layers are the backbone's."""
    return [
        jax.tree.all(
            jax.tree.map(
                np.array_equal, part, {layer: variables[kind]["backbone"][layer] for layer in part}
            )
        )
        for kind in ("params", "batch_stats")
        for part in [variables[kind][copy] for copy in copies]
    ]


def test_copies_begin_as_the_published_last_stage(tmp_path):
    config = source_b.get_config("heads,resnet,depth=18")
    config.model.name = "parts"
    model = build.model(config.model)
    shapes = jax.eval_shape(model.init, KEY, np.zeros((1, *SIZE, 3), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    own = {kind: tree["backbone"] for kind, tree in variables.items()}
    path = made_up_weights(tmp_path, own, resnet.TORCH_NAMES["torchvision"])
    config.model.pretrained = str(path)
    found = build.pretrained_variables(config, variables)
    copies = ("branch_part", "branch_channel")
    assert not any(copies_are_the_backbones(variables, copies))
    assert all(copies_are_the_backbones(found, copies))
    assert set(found["params"]["branch_part"]) == {"layer4_0", "layer4_1"}
    assert found["params"]["head_age"] is variables["params"]["head_age"]
    a, b = (found["params"][name]["layer4_0"]["conv1"]["kernel"] for name in copies)
    assert not np.shares_memory(a, b)


def test_copies_begin_as_those_of_a_run_where_it_has_them(tmp_path):
    how = {"score": 1.0, "round_start": 0, "extra": {}}
    copies = ("branch_part", "branch_channel")
    model, first, x = make()
    plain = classifier.Model(CLASSES, Staged(), identities=PERSONS)
    runs = {"parts": first, "plain": jax.jit(plain.init)(KEY, x)}
    fresh = jax.jit(model.init)(jax.random.key(2), x)
    for name, variables in runs.items():
        state = init_state(variables, optax.identity(), seed=0)
        checkpoints.save(tmp_path / name / "checkpoints", 1, state, **how)
        found = transfer.begin(fresh, tmp_path / name)
        assert jax.tree.all(
            jax.tree.map(
                np.array_equal, found["params"]["backbone"], variables["params"]["backbone"]
            )
        )
        same = copies_are_the_backbones(found, copies)[:2]
        assert same == [name == "plain"] * 2
        if name == "parts":
            part = found["params"]["branch_part"], first["params"]["branch_part"]
            assert jax.tree.all(jax.tree.map(np.array_equal, *part))


class NoLast(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = conv(3, 3, 8)(x)
        return {"map": x, "feature": x.mean(axis=(1, 2))}


@pytest.mark.parametrize(
    ("backbone", "fields", "message"),
    [
        (Staged(), {"branches": ()}, r"model.branches is \(\); it must be one or more, each once"),
        (Staged(), {"branches": ("part", "part")}, "model.branches is .* each once"),
        (Staged(), {"branches": ("parts",)}, "unknown branch 'parts'; did you mean 'part'"),
        (Staged(), {"stripes": 9}, "model.stripes is 9 and the map has 8 rows; it must be at most"),
        (NoLast(), {}, "the backbone has no last stage to copy, so there can be one branch"),
        (NoLast(), {"branches": ("channel",)}, "the map has 3 channels, which have no halves"),
    ],
)
def test_parts_that_there_cannot_be(backbone, fields, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(parts.Model(CLASSES, backbone, **fields).init, KEY, images())


def test_a_backbone_without_a_last_stage_can_have_stripes():
    model = parts.Model({}, NoLast(), branches=("part",), identities=PERSONS)
    outputs = jax.eval_shape(model.init_with_output, KEY, images())[0]
    assert outputs["identity_part2"].shape == (4, PERSONS)
