"""Weights and images that other packages and market_jax are both given, and what those say.

python tests/models/golden.py    # needs torch and torchvision; prints GOLDEN of test_backbones
python tests/models/golden.py torchreid    # needs torch and torchreid; prints those of test_osnet
"""

import importlib.util
import pathlib
import sys
import zlib

import numpy as np

SHAPE = (2, 133, 71, 3)  # odd, so that padding and rounding count
TOP = 4  # features of each image that are compared
FIRST = 6  # numbers of a gradient that are compared
WEIGHTS = np.cos(np.arange(512, dtype=np.float32))  # of a sum of features, which is differentiated


def images() -> np.ndarray:
    """[2, 133, 71, 3] in [0, 1]."""
    return np.random.default_rng(0).uniform(size=SHAPE).astype(np.float32)


def small_images() -> np.ndarray:
    """[2, 57, 41, 3] in [0, 1], for gradients: of more values, some lie at ReLU's corner."""
    return images()[:, :57, :41]


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


def checksum(shapes: dict[str, tuple[int, ...]]) -> int:
    """One number for names and shapes in any order."""
    return zlib.crc32(repr(sorted(shapes.items())).encode())


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a PyTorch network's tensors, without its counters of batches."""
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return {key: shape for key, shape in shapes.items() if "num_batches_tracked" not in key}


def prepare(model):
    """A PyTorch network with the golden weights, in inference."""
    import torch

    tensors = {key: torch.from_numpy(value) for key, value in fill(shapes_of(model)).items()}
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def pictures(x: np.ndarray):
    """Images as PyTorch has them, and the same normalised as its networks take them."""
    import torch

    x = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return x, (x - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


def text(values) -> str:
    """Numbers with six digits, as a list."""
    return f"[{', '.join(f'{v:.6g}' for v in values.ravel())}]"


def print_torchvision() -> None:
    """Prints the features of torchvision's networks."""
    import torch

    # builds of the two that do not match lack operators, which are not needed here
    torch.library.register_fake = lambda *_, **__: lambda function: function
    from torchvision import models

    _, x = pictures(images())
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "alexnet", "densenet121"):
        model = prepare(getattr(models, name)(weights=None))
        last = "classifier" if hasattr(model, "classifier") else "fc"
        if name == "alexnet":
            model.classifier[6] = torch.nn.Identity()
        else:
            setattr(model, last, torch.nn.Identity())
        with torch.no_grad():
            found = model(x).numpy()
        print(f'    "{name}": ({text(found[:, :TOP])}, {found.std():.6g}),')


def osnets() -> dict:
    """Name -> what makes it, of torchreid, whose files are read alone: the package needs more."""
    folder = pathlib.Path(importlib.util.find_spec("torchreid").origin).parent / "reid" / "models"
    makers = {}
    for file in ("osnet", "osnet_ain"):
        spec = importlib.util.spec_from_file_location(file, folder / f"{file}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        makers |= {name: getattr(module, name) for name in module.__all__}
    return makers


def print_torchreid() -> None:
    """Prints torchreid's OSNets: sizes and names; features, and gradients of a sum of them."""
    import torch

    for name, make in osnets().items():
        model = prepare(make(pretrained=False))
        size = sum(p.numel() for key, p in model.named_parameters() if "classifier" not in key)
        print(f'    "{name}": ({size:_}, {checksum(shapes_of(model))}),')
        image, x = pictures(small_images())
        found = model(x)
        (found * torch.from_numpy(WEIGHTS)).sum().backward()
        grads = image.grad.permute(0, 2, 3, 1), model.conv1.conv.weight.grad.permute(2, 3, 1, 0)
        for value in (found.detach().numpy(), *(grad.numpy() for grad in grads)):
            print(f"        ({text(value.ravel()[:FIRST])}, {value.std():.6g}),")


if __name__ == "__main__":
    print_torchreid() if "torchreid" in sys.argv else print_torchvision()
