"""Weights and images that torchvision and market_jax are both given, and what torchvision says.

python tests/models/golden.py    # needs torch and torchvision; prints GOLDEN of test_backbones
"""

import zlib

import numpy as np

SHAPE = (2, 133, 71, 3)  # odd, so that padding and rounding count
TOP = 4  # features of each image that are compared


def images() -> np.ndarray:
    """[2, 133, 71, 3] in [0, 1]."""
    return np.random.default_rng(0).uniform(size=SHAPE).astype(np.float32)


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """PyTorch's names and shapes -> weights that depend on the name alone, activations near 1."""
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) > 1:
            value = rng.normal(size=shape) * np.sqrt(1.5 / np.prod(shape[1:]))
        elif name.endswith(("running_var", "weight")):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = 0.1 * rng.normal(size=shape)
        tensors[name] = value.astype(np.float32)
    return tensors


def main() -> None:
    """Prints the features of torchvision's networks."""
    import torch

    # builds of the two that do not match lack operators, which are not needed here
    torch.library.register_fake = lambda *_, **__: lambda function: function
    from torchvision import models

    x = torch.from_numpy(images()).permute(0, 3, 1, 2)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "alexnet", "densenet121"):
        model = getattr(models, name)(weights=None)
        tensors = fill({key: tuple(value.shape) for key, value in model.state_dict().items()})
        model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=False)
        last = "classifier" if hasattr(model, "classifier") else "fc"
        if name == "alexnet":
            model.classifier[6] = torch.nn.Identity()
        else:
            setattr(model, last, torch.nn.Identity())
        with torch.no_grad():
            found = model.eval()(x).numpy()
        top = ", ".join(f"{v:.6g}" for v in found[:, :TOP].ravel())
        print(f'    "{name}": ([{top}], {found.std():.6g}),')


if __name__ == "__main__":
    main()
