"""What each part of configs/small.py is worth: short trainings on small pictures, one change each.

python train.py --config=configs/ablation.py:small --workdir=runs/ablation-small \
    --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/ablation.py:gem --workdir=runs/ablation-gem \
    --config.data.name=unitn --config.data.dir=DIR
python evaluate.py --task=compare --workdirs=runs/ablation-small,runs/ablation-gem --split=val \
    --checkpoint=latest

After the colon stand the changes to make, in order; `small`, or none, is the recipe as it is, and
`identity` is the one before it, configs/source_b.py:identity. `rate=7e-4` is another
learning rate. All train for 12 epochs at 128x64, on three fifths of the persons; another fifth is
to compare on, and the last, the holdout split, is not to be touched by any choice. docs/results.md
has the figures.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import bot, common, rgpr, small, source_b, sun


def softmax(config: ConfigDict) -> None:
    """The smoothed cross-entropy of configs/bot.py instead of circle softmax on cosines."""
    config.model.classifier = "linear"
    config.losses.identity = bot.get_config().losses.identity


def persons(config: ConfigDict) -> None:
    """Persons alone, without attributes."""
    config.tasks = ("reid",)
    config.model.classes = {}
    del config.losses.attributes, config.evaluators.attributes, config.metrics.accuracy


def unweighted(config: ConfigDict) -> None:
    """Attributes whose rare classes count as much as the others."""
    del config.losses.attributes.sigma
    config.losses.attributes.name = "cross_entropies"


def stripes(config: ConfigDict) -> None:
    """A second branch that sees two horizontal stripes, as in configs/sun.py."""
    config.model.update(name="parts", branches=("global", "part"), stripes=2, width=256, drop=0.33)
    one = config.losses.identity.to_dict() | {"weight": 1 / len(sun.PARTS)}
    del config.losses.identity
    config.losses.update(common.for_parts(one, sun.PARTS))


def set_to(**flags) -> Callable[[ConfigDict], None]:
    """A change that sets fields: dots in their names are written as double underscores."""
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    return lambda config: config.update_from_flattened_dict(dotted)


def changed_by(transforms: dict) -> Callable[[ConfigDict], None]:
    """Transforms of pictures before those that there are."""

    def change(config: ConfigDict) -> None:
        config.augmentation = transforms | config.augmentation.to_dict()

    return change


CHANGES = {
    "small": lambda config: None,
    "softmax": softmax,
    "persons": persons,
    "decoupled": set_to(optimizer__coupled=False),
    "gem": set_to(model__backbone__pooling="gem"),
    "stride": set_to(model__backbone__last_stride=2),
    "ema": set_to(ema_decay=0.999),
    "soft": set_to(losses__triplet__margin=0.0),
    "no_triplet": set_to(losses__triplet__weight=0.0),
    "no_erasing": set_to(augmentation__erase__probability=0.0),
    "crop": set_to(augmentation__crop__padding=5),
    "gray_patch": changed_by(rgpr.GRAY["patches"]),
    "jitter": changed_by({"jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}}),
    "stripes": stripes,
    "unweighted": unweighted,
}


def get_config(arguments: str = "small") -> ConfigDict:
    """The experiment.

    Args:
      arguments: "identity", or the changes, "gem,rate=7e-4".
    """
    words, values = common.read_arguments(arguments)
    rate = values.pop("rate", None)
    if values or ("identity" in words and (len(words) > 1 or rate is not None)):
        raise ValueError(f"{arguments!r} must be changes and a rate alone, or identity alone")
    if words == ["identity"]:
        config = source_b.get_config("identity")
    else:
        config = small.get_config()
        config.optimizer.warmup_epochs = 2.0
        for word in words:
            if word not in CHANGES:
                raise ValueError(f"unknown change {word!r}; known: identity, {', '.join(CHANGES)}")
            CHANGES[word](config)
        if rate is not None:
            config.optimizer.learning_rate = rate
    config.epochs = 12
    config.stages = {}
    config.evaluate_every = 4
    config.select = {"metric": "val/market/mAP", "mode": "max"}
    config.patience = 0
    config.data.image_size = (128, 64)
    config.data.holdout_fraction = 0.2
    return config
