"""Weights and images that other packages and market_jax are both given, and what those say.

python tests/models/golden.py    # needs torch and torchvision; prints GOLDEN of test_backbones
python tests/models/golden.py torchreid    # needs torch and torchreid; prints those of test_osnet
python tests/models/golden.py published    # and timm and fastreid; of test_published_networks
"""

import collections
import importlib.util
import pathlib
import sys
import zlib

import numpy as np

SHAPE = (2, 133, 71, 3)  # odd, so that padding and rounding count
SMALL = (2, 77, 43, 3)  # after the first convolution an odd and an even size
TOP = 4  # features of each image that are compared
FIRST = 6  # numbers of a gradient that are compared
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its channels
WEIGHTS = np.cos(np.arange(512, dtype=np.float32))  # of a sum of features, which is differentiated


def images(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """[2, 133, 71, 3] in [0, 1]."""
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


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
            value *= 0.03 if ".NL_" in name else 1  # three of them are multiplied
        elif name.endswith(("bottleneck.0.bias", "bottleneck.bias")):
            value = np.zeros(shape)  # which a BNNeck does not learn
        elif name.endswith(".p"):
            value = rng.uniform(2, 4, shape)  # GeM's power
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
    mean, deviation = IMAGENET
    return x, (x - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


def text(values) -> str:
    """Numbers with six digits, as a list."""
    return f"[{', '.join(f'{v:.6g}' for v in values.ravel())}]"


def torchvision_models():
    """torchvision's models, also where its build and PyTorch's do not match."""
    import torch

    # such builds lack operators, which are not needed here
    torch.library.register_fake = lambda *_, **__: lambda function: function
    from torchvision import models

    return models


def print_torchvision() -> None:
    """Prints the features of torchvision's networks."""
    import torch

    models = torchvision_models()
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


def torchreid(file: str):
    """A file of torchreid's models, which is read alone: the package needs more."""
    folder = pathlib.Path(importlib.util.find_spec("torchreid").origin).parent / "reid" / "models"
    spec = importlib.util.spec_from_file_location(file, folder / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def osnets() -> dict:
    """Name -> what makes it, of torchreid."""
    modules = [torchreid(file) for file in ("osnet", "osnet_ain")]
    return {name: getattr(module, name) for module in modules for name in module.__all__}


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


def fastreid(depth: str, features: int, **settings):
    """A network of fast-reid, whose pictures have values up to 255."""
    from fastreid.config import get_cfg
    from fastreid.modeling import build_model

    config = get_cfg()
    config.MODEL.DEVICE = "cpu"
    config.MODEL.BACKBONE.DEPTH = depth
    config.MODEL.BACKBONE.FEAT_DIM = features
    config.MODEL.BACKBONE.WITH_IBN = True
    config.MODEL.HEADS.NUM_CLASSES = 7
    config.MODEL.HEADS.WITH_BNNECK = True
    config.merge_from_list([item for pair in settings.items() for item in pair])
    return build_model(config)


def bot():
    """BoT (Luo et al. 2019) on a ResNet-18: no ReLU after the first BatchNorm, last stride 1."""
    import torch

    base = torchvision_models().resnet18(weights=None)
    base.relu = base.fc = torch.nn.Identity()
    base.layer4[0].conv1.stride = base.layer4[0].downsample[0].stride = (1, 1)
    model = torch.nn.Sequential(
        collections.OrderedDict(base=base, bottleneck=torch.nn.BatchNorm1d(512))
    )
    model.forward = lambda x: model.bottleneck(model.base(x))
    model.classifier = torch.nn.Linear(512, 7, bias=False)
    return model


def networks() -> dict:
    """Name -> (a function that makes a network of features, mean and deviation of its pictures)."""
    import torch

    models = torchvision_models()
    import timm

    def headless(model):
        model.classifier = torch.nn.Identity()
        return model

    whole, lite = (0, 1 / 255), (127 / 255, 128 / 255)
    power = {"MODEL.BACKBONE.WITH_NL": True, "MODEL.HEADS.POOL_LAYER": "GeneralizedMeanPoolingP"}
    found = {
        "fastreid_ibn18": (lambda: fastreid("18x", 512), whole),
        "fastreid_sbs50": (lambda: fastreid("50x", 2048, **power), whole),
        "bot18": (bot, IMAGENET),
        "ibn_b50": (lambda: headless(torchreid("resnet_ibn_b").resnet50_ibn_b(7)), IMAGENET),
    }
    for width in (1.0, 1.4):
        found |= {
            f"mobilenet_torchvision_{width}": (
                lambda width=width: headless(models.mobilenet_v2(width_mult=width)),
                IMAGENET,
            ),
            f"mobilenet_torchreid_{width}": (
                lambda width=width: headless(torchreid("mobilenetv2").MobileNetV2(7, width)),
                IMAGENET,
            ),
        }
    for name in ("mobilenetv2_140", "tf_efficientnet_lite3", "tf_efficientnet_lite4"):
        way = lite if "lite" in name else IMAGENET
        found[name] = (lambda name=name: timm.create_model(name, num_classes=0), way)
    return found


def print_published() -> None:
    """Prints features, gradients of their root mean square, and sizes, computed in float64."""
    import torch

    for name, (make, (mean, deviation)) in networks().items():
        model = prepare(make()).double()
        count = sum(int(np.prod(shape)) for shape in shapes_of(model).values())
        picture = torch.from_numpy(images(SMALL)).double().requires_grad_()
        mean, deviation = (torch.tensor(v, dtype=torch.float64) for v in (mean, deviation))
        found = model(((picture - mean) / deviation).permute(0, 3, 1, 2))
        kernel = next(value for value in model.parameters() if value.ndim == 4)
        gradients = torch.autograd.grad(found.square().mean().sqrt(), (picture, kernel))
        moments = torch.stack([v for g in gradients for v in (g.mean(), g.std(correction=0))])
        found = found.detach().numpy()
        described = f"{text(found[:, :TOP])}, {found.std():.6g}, {text(moments.numpy())}, {count}"
        print(f'    "{name}": ({described}),', flush=True)


if __name__ == "__main__":
    makers = {"": print_torchvision, "torchreid": print_torchreid, "published": print_published}
    makers["".join(sys.argv[1:])]()
