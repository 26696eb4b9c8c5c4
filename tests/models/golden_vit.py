"""Vision Transformers that timm and market_jax are both given, and what timm says.

python tests/models/golden_vit.py    # needs torch and timm; prints GOLDEN of test_vit
"""

import numpy as np

try:
    from tests.models import golden
except ImportError:  # run as a script
    import golden

SIZE, SQUARE = (64, 48), 36  # of the pictures; patches whose positions a file has
TOP = 4  # numbers of each picture that are compared
OPENAI = {  # what OpenAI calls the tensors of CLIP's visual tower -> what timm calls them
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.weight": "patch_embed.proj.weight",
    "proj": "head.weight",
}
OPENAI |= {
    f"{openai}.{kind}": f"{timm}.{kind}"
    for openai, timm in (("ln_pre", "norm_pre"), ("ln_post", "norm"))
    for kind in ("weight", "bias")
}
IN_A_BLOCK = {
    "ln_1.": "norm1.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
NETWORKS = {  # name -> timm's network, its arguments, and pixels from one patch to the next
    "augreg": ("vit_tiny_patch16_224", {"depth": 3}, 16),
    "deit": ("deit_tiny_patch16_224", {"depth": 1}, 16),
    "overlapping": ("vit_tiny_patch16_224", {"depth": 2}, 12),
    "dinov2": ("vit_small_patch14_dinov2", {"depth": 2}, 14),
    "dinov2, registers": ("vit_small_patch14_reg4_dinov2", {"depth": 2}, 14),
    "dinov2, Meta's registers": ("vit_small_patch14_reg4_dinov2", {"depth": 2}, 14),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {"depth": 1, "num_classes": 512}, 16),
    "openclip": ("vit_base_patch16_clip_224", {"depth": 1, "num_classes": 512}, 16),
}
PIXELS = {"deit": "imagenet", "dinov2": "imagenet", "clip": "clip", "openclip": "clip"}


def images() -> np.ndarray:
    """[2, 64, 48, 3] in [0, 1]."""
    return golden.images()[:, : SIZE[0], : SIZE[1]]


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """As `golden.fill`, with positions large enough to be seen."""
    tensors = golden.fill(shapes)
    large = [name for name in tensors if name.endswith(("pos_embed", "positional_embedding"))]
    return tensors | {name: 30 * tensors[name] for name in large}


def file_shapes(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a file, of a network whose state in timm has these."""
    shapes = {key: shape for key, shape in shapes.items() if key != "head.bias"}
    width, prefix = shapes["cls_token"][-1], 0 if name == "dinov2, registers" else 1
    shapes["pos_embed"] = (1, SQUARE + prefix, width)
    if name == "dinov2, Meta's registers":
        registers = shapes.pop("reg_token")
        return shapes | {"register_tokens": registers, "mask_token": (1, width)}
    if name != "clip":
        return shapes
    renamed = {timm: openai for openai, timm in OPENAI.items()}
    for key in shapes:
        for openai, timm in IN_A_BLOCK.items():
            if key.startswith(f"blocks.0.{timm}"):
                renamed[key] = f"transformer.resblocks.0.{key[9:].replace(timm, openai)}"
    shapes |= {"cls_token": (width,), "pos_embed": (SQUARE + 1, width)}
    shapes["head.weight"] = shapes["head.weight"][::-1]
    return {f"visual.{renamed[key]}": shape for key, shape in shapes.items()}


def make(name: str):
    """timm's network, with the weights of the file."""
    import timm
    import torch
    from timm.models import vision_transformer

    kind, arguments, stride = NETWORKS[name]
    model = timm.create_model(kind, img_size=SIZE, **({"num_classes": 0} | arguments))
    patch = model.patch_embed.proj.kernel_size[0]
    rows, columns = ((n - patch) // stride + 1 for n in SIZE)
    if stride != patch:
        model.patch_embed.proj.stride = (stride, stride)
        model.patch_embed.grid_size = (rows, columns)
        width = model.pos_embed.shape[-1]
        model.pos_embed = torch.nn.Parameter(torch.zeros(1, 1 + rows * columns, width))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    file = {k: torch.from_numpy(v) for k, v in fill(file_shapes(name, shapes)).items()}
    state = vision_transformer.checkpoint_filter_fn(file, model)
    if "head.bias" in shapes:
        state["head.bias"] = torch.zeros(shapes["head.bias"])
    model.load_state_dict(state)
    return model.eval()


def describe(name: str) -> str:
    """The first features, gradients by the picture and by a kernel; and the deviations of all."""
    import torch
    from timm.data import constants

    known = {
        "half": (constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD),
        "imagenet": (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD),
        "clip": (constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD),
    }
    mean, deviation = known[PIXELS.get(name.split(",")[0], "half")]
    model, x = make(name), torch.from_numpy(images()).requires_grad_()
    pixels = (x - torch.tensor(mean)) / torch.tensor(deviation)
    feature = model(pixels.permute(0, 3, 1, 2))
    kernel = model.blocks[0].attn.qkv.weight
    by = torch.autograd.grad(torch.sin(feature).sum(), (x, kernel))
    found = feature.detach().numpy(), by[0].numpy()[:, 20, 20], by[1].numpy().T[:2]
    tops = [[float(f"{v:.6g}") for v in value[:, :TOP].ravel()] for value in found]
    deviations = [float(f"{np.std(v):.6g}") for v in (found[0], by[0].numpy(), by[1].numpy())]
    return f'    "{name}": ({tops}, {deviations}),'


def main() -> None:
    """Prints what timm's networks give, and how many parameters whole ones have."""
    import torch

    # builds of torch and torchvision that do not match lack operators, which are not needed here
    torch.library.register_fake = lambda *_, **__: lambda function: function
    for name in NETWORKS:
        print(describe(name))
    import timm

    for kind in dict.fromkeys(kind for kind, *_ in NETWORKS.values()):
        model = timm.create_model(kind, img_size=224, num_classes=0)
        print(f'    "{kind}": {sum(p.numel() for p in model.parameters())},')


if __name__ == "__main__":
    main()
