"""Networks are written as references name them, so that these can read them.

Golden tests beside the models prove that files of references are read; here the same files are
written again.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from market_jax.errors import InputError
from market_jax.models import classifier, transreid
from market_jax.models.backbones import osnet, resnet, vit
from market_jax.tasks import export
from market_jax.weights import files, pretrained, saving
from tests.models import test_osnet, test_published_networks, test_vit
from tests.models.golden import fill
from tests.models.test_backbones import shapes_in_torch
from tests.weights import networks
from tests.weights.makers import safetensors

KEY = jax.random.key(0)


def compare(path, expected):
    found = files.read(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("name", test_published_networks.NETWORKS)
def test_files_of_networks_are_written_as_they_were_read(name, tmp_path):
    _, shapes, rules, tensors = test_published_networks.network(name)
    _, naming, file = test_published_networks.NETWORKS[name]
    unread = [n for n in tensors if n in ("classifier.weight", "heads.weight")]
    read = pretrained.begin(
        shapes, str(safetensors(tmp_path / "a.safetensors", tensors)), "a backbone", rules
    )
    read["params"].pop("head_identity", None)
    path, asked = tmp_path / "b.safetensors", naming if file == "backbone" else file
    count, left_out = saving.write(path, read, rules, asked)
    expected = {name: tensor for name, tensor in tensors.items() if name not in unread}
    assert (count, left_out) == (len(expected), [])
    compare(path, expected)


@pytest.mark.parametrize("name", test_osnet.GOLDEN)
def test_files_of_osnet_are_written_as_they_were_read(name, tmp_path):
    model, naming = test_osnet.make(name)
    shapes = test_osnet.describe(model)
    tensors = fill(shapes_in_torch(shapes, osnet.TORCH_NAMES[naming]))
    path = safetensors(tmp_path / "a.safetensors", tensors)
    read, _ = pretrained.load(path, shapes, osnet.TORCH_NAMES)
    read = {kind: {"backbone": tree} for kind, tree in read.items()}
    saving.write(tmp_path / "b.safetensors", read, osnet.TORCH_NAMES, naming)
    compare(tmp_path / "b.safetensors", tensors)


@pytest.mark.parametrize("name", test_vit.MODELS)
def test_files_of_vision_transformers_are_written_as_they_were_read(name, tmp_path):
    """But for positions, which are those of the config's pictures."""
    model, naming = test_vit.MODELS[name]
    tensors = test_vit.tensors_of(model, naming)
    read, _ = test_vit.load(tmp_path, model, tensors)
    path = tmp_path / "b.safetensors"
    write = (vit.TORCH_NAMES, naming, vit.to_torch)
    saving.write(path, {"params": {"backbone": read["params"]}}, *write)
    tensors = {key.removeprefix("visual."): tensor for key, tensor in tensors.items()}
    found, positions = files.read(path), "positional_embedding" if naming == "CLIP" else "pos_embed"
    moved = {"pos_embed", positions, "mask_token"}
    if naming == "DINOv2":  # whose class token has its position elsewhere
        moved.add("cls_token")
        zero = found["pos_embed"][0, 0]
        np.testing.assert_array_equal(zero, np.zeros_like(zero))
    assert tensors.keys() - found.keys() <= {"mask_token"}
    compare(path, {key: found[key] if key in moved else tensors[key] for key in found})
    again, _ = pretrained.load(path, test_vit.template(model), vit.TORCH_NAMES, vit.TORCH_VALUES)
    jax.tree.map(np.testing.assert_array_equal, again, read)


def test_lora_is_written_into_the_kernels(tmp_path):
    model = vit.Model("tiny", 1, lora_rank=2)
    shapes, rng = test_vit.template(model), np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    path = tmp_path / "a.safetensors"
    variables = {"params": {"backbone": drawn["params"]}}
    saving.write(path, variables, vit.TORCH_NAMES, "timm", vit.to_torch)
    block, found = drawn["params"]["block0"], files.read(path)
    assert not [name for name in found if "lora" in name]
    for ours, theirs in (("qkv", "qkv"), ("out", "proj")):
        added = block[f"{ours}_lora"]["down"] @ block[f"{ours}_lora"]["up"]
        np.testing.assert_allclose(
            found[f"blocks.0.attn.{theirs}.weight"], (block[ours]["kernel"] + added).T, rtol=1e-6
        )


def describe_transreid(cameras=()):
    model = transreid.Model({}, vit.Model("tiny", 12, cameras=cameras), identities=7)
    return jax.eval_shape(model.init, KEY, jnp.zeros((1, 64, 48, 3)))


def transreid_file():
    """Names and shapes as in TransReID's state, without cameras: model/make_model.py."""
    shapes, width = {}, 192
    block = {
        **{f"norm{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")},
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    for where in (*(f"base.blocks.{i}" for i in range(12)), "b1.0", "b2.0"):
        shapes |= {f"{where}.{name}": shape for name, shape in block.items()}
    for where in ("base.norm", "b1.1", "b2.1"):
        shapes |= {f"{where}.{kind}": (width,) for kind in ("weight", "bias")}
    for part in ("", *(f"_{i}" for i in range(1, 5))):
        kinds = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"bottleneck{part}.{kind}": (width,) for kind in kinds}
        shapes[f"classifier{part}.weight"] = (9, width)
    shapes |= {"base.cls_token": (1, 1, width), "base.pos_embed": (1, 13, width)}
    shapes |= {"base.patch_embed.proj.weight": (width, 3, 16, 16)}
    shapes |= {"base.patch_embed.proj.bias": (width,)}
    tensors = fill(shapes)
    return tensors | {k: 0 * v for k, v in tensors.items() if re.match("bottleneck.*bias", k)}


def test_files_of_transreid_with_a_jigsaw_have_the_last_block_twice(tmp_path):
    tensors = transreid_file()
    path = safetensors(tmp_path / "a.safetensors", tensors)
    how = (str(path), "vit", vit.TORCH_NAMES, 0, vit.TORCH_VALUES)
    params = pretrained.begin(describe_transreid(), *how)["params"]
    for where, name in (
        (params["backbone"]["block10"], "base.blocks.10"),
        (params["backbone"]["block11"], "b1.0"),
        (params["branch_jigsaw"]["block11"], "b2.0"),
    ):
        expected = tensors[f"{name}.mlp.fc1.bias"]
        np.testing.assert_array_equal(where["fc1"]["bias"], expected, err_msg=name)
    np.testing.assert_array_equal(params["backbone"]["norm"]["scale"], tensors["b1.1.weight"])
    for part, name in (("global", "bottleneck"), ("jigsaw3", "bottleneck_3")):
        scale = params[f"bnneck_{part}"]["scale"]
        np.testing.assert_array_equal(scale, tensors[f"{name}.weight"])
    plain = classifier.Model({}, vit.Model("tiny", 12))
    shapes = jax.eval_shape(plain.init, KEY, jnp.zeros((1, 64, 48, 3)))
    alone = pretrained.begin(shapes, *how)["params"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, alone, params["backbone"])


@pytest.mark.parametrize("cameras", [(), (1, 2, 3, 4, 5, 6)])
def test_what_transreid_is_written_as_can_be_read(cameras, tmp_path):
    tensors = transreid_file()
    if cameras:
        tensors["base.sie_embed"] = np.full((6, 1, 192), 7, np.float32)
    path = safetensors(tmp_path / "a.safetensors", tensors)
    how = ("vit", vit.TORCH_NAMES, 0, vit.TORCH_VALUES)
    read = pretrained.begin(describe_transreid(cameras), str(path), *how)
    read["params"] = {k: v for k, v in read["params"].items() if not k.startswith("head_")}
    again = tmp_path / "b.safetensors"
    saving.write(again, read, vit.TORCH_NAMES, "TransReID", vit.to_torch)
    unused = ("base.blocks.11.", "base.norm.", "classifier")
    compare(again, {k: v for k, v in tensors.items() if not k.startswith(unused)})


def test_files_without_a_jigsaw_give_the_copy_the_backbones_last_block(tmp_path):
    model = vit.Model("tiny", 12)
    path = safetensors(tmp_path / "a.safetensors", test_vit.tensors_of(model, "timm"))
    how = ("vit", vit.TORCH_NAMES, 0, vit.TORCH_VALUES)
    params = pretrained.begin(describe_transreid(), str(path), *how)["params"]
    copy, own = params["branch_jigsaw"], params["backbone"]
    for name in ("block11", "norm"):
        jax.tree.map(np.testing.assert_array_equal, copy[name], own[name])
    # a step gives the memory of each array away
    assert not np.shares_memory(copy["norm"]["scale"], own["norm"]["scale"])


def test_what_is_left_out_is_named_and_what_cannot_be_is_refused(tmp_path):
    model = classifier.Model({"hat": 2}, resnet.Model(18, attention=(2,)), identities=5)
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 64, 32, 3)))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"--naming=torchvision has no names for .* attention2"):
        saving.write(path, ones, resnet.TORCH_NAMES, "torchvision")
    for tree in ones.values():
        tree["backbone"].pop("attention2", None)
    for naming, left_out in (("torchvision", {"bnneck"}), ("BoT", set())):
        _, found = saving.write(path, ones, resnet.TORCH_NAMES, naming)
        heads = {name for name in ones["params"] if name not in ("backbone", "bnneck")}
        assert set(found) == left_out | heads
    with pytest.raises(InputError, match=r"unknown value of --naming 'keras'.*BoT.*torchvision"):
        saving.write(path, ones, resnet.TORCH_NAMES, "keras")
    ones["params"]["backbone"]["conv1"]["kernel"][0] = np.inf
    before = path.read_bytes()
    with pytest.raises(InputError, match="conv1/kernel has values that are not finite"):
        saving.write(path, ones, resnet.TORCH_NAMES, "BoT")
    assert path.read_bytes() == before


def test_a_run_is_written_by_the_task(tmp_path):
    run = networks.as_run(networks.tiny(), tmp_path / "run", [1, 2])
    path = tmp_path / "alex.safetensors"
    text = export.run(run, output=str(path), naming="torchvision")
    assert text.startswith(f"10 tensors in {path}; left out: bnneck, ")
    kernel = run.predict.variables["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        files.read(path)["features.0.weight"], np.transpose(kernel, (3, 2, 0, 1))
    )
    with pytest.raises(InputError, match="is there already"):
        export.run(run, output=str(path), naming="torchvision")
    with pytest.raises(InputError, match="--dtype does nothing with --naming"):
        export.run(run, output=str(path), naming="torchvision", dtype="float16")
    with pytest.raises(InputError, match="--naming does nothing with --to=onnx"):
        export.run(run, output="a.onnx", to="onnx", naming="torchvision")
