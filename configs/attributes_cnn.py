"""The attribute network of Facchinetti & Bellumat: a head and a cross-entropy for each attribute.

python train.py --config=configs/attributes_cnn.py
python train.py --config=configs/attributes_cnn.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/attributes_cnn.py --config.model.residual=False

On the course release 12 epochs take an hour on two cores; expect 83 % as the multi-class mean of 12
attributes on held-out identities (majority 71 %), with 1.8 GiB of memory at the most. See
docs/results.md.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The experiment."""
    config = common.get_config()
    config.tasks = ("attributes", "reid")
    config.epochs = 12
    config.model = {
        "name": "attributes_cnn",
        "classes": common.ATTRIBUTES,
        "residual": True,
        "widths": (32, 128, 256, 128),
        "final_pool": (4, 16),
        "head_width": 64,
        "dropout": 0.5,
    }
    config.losses = {
        name: {
            "name": "cross_entropy",
            "weight": 1 / len(common.ATTRIBUTES),
            "logits": name,
            "label_smoothing": 0.0,
        }
        for name in common.ATTRIBUTES
    }
    config.metrics.accuracy = {"name": "accuracy", "logits": (*common.ATTRIBUTES,)}
    config.augmentation = {
        "flip": {"probability": 0.5},
        "crop": {"padding": 6},
        "rotate": {"degrees": 10.0, "probability": 0.0},
        "jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "probability": 1.0},
        "noise": {"std": 0.02, "probability": 0.0},
        "erase": {"probability": 0.3, "area": (0.02, 0.2), "aspect": 0.3},
    }
    return config
