"""Swin Transformers that timm and market_jax are both given, and what timm says.

python tests/models/golden_swin.py    # needs torch and timm; prints GOLDEN and RESIZED of test_swin
"""

import numpy as np

try:
    from tests.models import golden
except ImportError:  # run as a script
    import golden

TOP = 4  # numbers of each picture that are compared
NETWORKS = {  # name -> size of the pictures, the blocks of each stage, and a window's side
    "padded, one side narrower": ((96, 40), (1, 2), 7),  # maps of 24x10, 12x5
    "an odd map": ((72, 40), (2, 2, 1), 3),  # 18x10, 9x5, 5x3
    "as on ImageNet": ((112, 112), (2, 2), 7),
}


def images(size: tuple[int, int]) -> np.ndarray:
    """[2, H, W, 3] in [0, 1]."""
    return np.random.default_rng(0).uniform(size=(2, *size, 3)).astype(np.float32)


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """As `golden.fill`, with biases of positions large enough to be seen."""
    tensors = golden.fill(shapes)
    tables = [name for name in tensors if name.endswith("bias_table")]
    return tensors | {name: 3 * tensors[name] for name in tables}


def make(name: str):
    """timm's network, with the weights of the file."""
    import timm
    import torch

    size, depths, window = NETWORKS[name]
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=size,
        depths=depths,
        num_heads=tuple(3 * 2**i for i in range(len(depths))),
        window_size=window,
        num_classes=0,
    )
    tensors = fill(golden.shapes_of(model))
    model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    return model.eval()


WINDOWS = ((7, 5), (4, 1), (9, 6), (12, 14))  # that biases of windows of 7x7 are resized to
TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"


def resized(window: tuple[int, int]) -> str:
    """The first biases that timm interpolates for a window, and the deviation of all."""
    import torch
    from timm.layers import resize_rel_pos_bias_table

    table = torch.from_numpy(fill({TABLE: (13 * 13, 3)})[TABLE])
    count = (2 * window[0] - 1) * (2 * window[1] - 1)
    found = resize_rel_pos_bias_table(table, window, (count, 3)).numpy()
    return f"    {window}: ({golden.text(found[:2])}, {found.std():.6g}),"


def describe(name: str) -> str:
    """The first features, gradients by the picture and by a kernel; and the deviations of all."""
    import torch

    model = make(name)
    x, pixels = golden.pictures(images(NETWORKS[name][0]))
    feature = model(pixels)
    kernel = model.layers[1].blocks[1].attn.qkv.weight
    by = torch.autograd.grad(torch.sin(feature).sum(), (x, kernel))
    found = feature.detach().numpy(), by[0].permute(0, 2, 3, 1).numpy(), by[1].numpy().T
    picked = found[0], found[1][:, 20, 20], found[2][:2]
    tops = [[float(f"{v:.6g}") for v in value[:, :TOP].ravel()] for value in picked]
    deviations = [float(f"{np.std(value):.6g}") for value in found]
    return f'    "{name}": ({tops}, {deviations}),'


def main() -> None:
    """Prints what timm's networks give, and how many parameters whole ones have."""
    import torch

    # builds of torch and torchvision that do not match lack operators, which are not needed here
    torch.library.register_fake = lambda *_, **__: lambda function: function
    for name in NETWORKS:
        print(describe(name))
    for window in WINDOWS:
        print(resized(window))
    import timm

    for size in ("tiny", "small", "base"):
        model = timm.create_model(f"swin_{size}_patch4_window7_224")
        print(f'    "{size}": {sum(p.numel() for p in model.parameters())},')


if __name__ == "__main__":
    main()
