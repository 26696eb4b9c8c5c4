"""Attributes read from a picture as a sequence ("JCM": Liu et al. 2018), on any backbone.

python train.py --config=configs/jcm.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/jcm.py:ctc=0 --config.data.name=unitn --config.data.dir=DIR

After the colon stand the backbone and its arguments, and `ctc`, the weight of the CTC loss beside
the decoder's cross-entropy, 0.2 by default and below 1; 0 leaves the sequence out.
EfficientNet-Lite begins with ImageNet's weights.

Of the paper only the abstract and a summary could be read. What they leave open is chosen here: the
rows of the map at a sixteenth of the picture's size are the sequence, of 16 at 256x128, with sines
of their heights; attributes are told from head to foot; two layers encode, one decodes; Adam as in
configs/source_b.py.

By configs/comparison.py, an hour and a half on one core without AVX-512, 85.2 % of the 12
attributes (multi-class) on new identities of the course release; without CTC 85.3 %.
"""

from ml_collections import ConfigDict

from configs import common

ORDER = (
    *("hat", "hair", "gender", "age", "backpack", "up", "up_color", "bag", "handbag"),
    *("clothes", "down", "down_color"),
)
STAGES = {
    "efficientnet_lite": 5,
    "mobilenet_v2": 5,
    "resnet": 3,
    "residual_attention": 3,
    "densenet": 3,
    "osnet": 3,
}  # at a sixteenth of the size


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments, and the weight of the CTC loss: "resnet,ctc=0.5".
    """
    name, values = common.read_backbone(arguments)
    weight = values.pop("ctc", 0.2)
    if isinstance(weight, str) or not 0 <= weight < 1:
        raise ValueError(f"ctc is {weight!r}; it must be 0 or more and below 1")
    config = common.get_config()
    config.tasks = ("attributes", "reid")
    config.data.image_size = (256, 128)
    config.epochs = 20
    config.optimizer.update(learning_rate=1e-3, lr_multipliers=(("^backbone", 0.3),))
    config.model = {
        "name": "jcm",
        "classes": common.ATTRIBUTES,
        "backbone": common.backbone(name, values),
        "pretrained": "auto" if name == "efficientnet_lite" else "",
        "order": ORDER,
        "stage": STAGES.get(name, 0),
        "width": 256,
        "heads": 4,
        "layers": 2,
        "dropout": 0.1,
    }
    config.losses = {
        "decoder": {"name": "cross_entropies", "logits": ORDER, "weight": 1.0 - weight},
        "sequence": {"name": "ctc", "labels": ORDER, "weight": float(weight)},
    }
    told = tuple(f"ctc_{name}" for name in ORDER)
    config.metrics = {
        "accuracy": {"name": "accuracy", "logits": ORDER},
        "accuracy_of_sequence": {"name": "accuracy", "logits": told, "labels": ORDER},
    }
    config.evaluators.attributes = {"name": "attributes"}
    config.augmentation = {
        "flip": {"probability": 0.5},
        "crop": {"padding": 10},
        "erase": {"probability": 0.1, "area": (0.05, 0.13), "aspect": 0.3},
    }
    return config
