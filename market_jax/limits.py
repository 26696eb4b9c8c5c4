"""The numbers and texts of a config that belong to no object, and what each may be."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from market_jax import kinds
from market_jax.errors import InputError
from market_jax.registry import choose
from market_jax.typing import Fraction, FractionBelow1, NonNegative, PositiveFraction, Range

_Side = Annotated[int, Range(1, 4096)]  # pixels
_Count = Annotated[int, Range(1, 2**31 - 1)]
_CountOrNone = Annotated[int, Range(0, 2**31 - 1)]
_KINDS = {
    **dict.fromkeys(
        (
            *("epochs", "evaluate_every", "log_every", "grad_accum_steps", "batch_size"),
            "optimizer.plateau_every",
        ),
        _Count,
    ),
    **dict.fromkeys(
        (
            *("patience", "num_instances", "seed", "steps_per_epoch", "report_every"),
            "data.split_seed",
        ),
        _CountOrNone,
    ),
    **dict.fromkeys(("ema_decay", "data.val_fraction", "data.holdout_fraction"), FractionBelow1),
    **dict.fromkeys(("remat", "profile", "data.in_memory"), bool),
    **dict.fromkeys(("dtype", "convolution", "select.metric", "select.mode"), str),
    "optimizer.plateau_factor": PositiveFraction,
    **dict.fromkeys(("optimizer.warmup_epochs", "optimizer.freeze_epochs"), NonNegative),
    "optimizer.warmup_from": Fraction,
}
_STAGE = {  # the settings of a stage of training, see configs/common.py
    "until": Annotated[float, Range(0, 1, above=True, below=True)],
    "image_size": tuple[_Side, _Side],
    "last_stride": Literal[1, 2],
}
_PARTS = {
    **dict.fromkeys(("data", "model", "optimizer", "select"), dict[str, Any]),
    **dict.fromkeys(
        ("losses", "metrics", "evaluators", "hooks", "augmentation", "stages", "writers"),
        dict[str, dict[str, Any]],
    ),
    **dict.fromkeys(("model.name", "optimizer.name"), str),
    **dict.fromkeys(("optimizer.schedule",), dict[str, Any]),
    **dict.fromkeys(("optimizer.learning_rate", "optimizer.clip_norm"), float),
    **dict.fromkeys(("optimizer.lr_multipliers", "data.image_size"), Any),
    **dict.fromkeys(("data.name", "data.dir"), str),
}


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """`data.image_size`, checked: (height, width).

    Args:
      config: the experiment's config as dicts.

    Raises:
      InputError: it is not two whole numbers, 1 to 4096.
    """
    return kinds.check("data.image_size", config["data"]["image_size"], tuple[_Side, _Side])


def check(config: Mapping[str, Any]) -> None:
    """Checks what no signature says.

    Args:
      config: the experiment's config as dicts.

    Raises:
      InputError: a part is missing, or a value is of another kind or out of range; the message
        names it.
    """
    for key, kind in (_PARTS | _KINDS).items():
        owner, _, name = key.rpartition(".")
        fields = config[owner] if owner else config
        if name not in fields:
            raise InputError(f"the config has no {key}")
        kinds.check(key, fields[name], kind)
    image_size(config)
    for name, fields in config["stages"].items():
        _check_stage(f"stages.{name}", fields)
    choose(config["select"]["mode"], {"min": 1, "max": 1}, "select.mode")


def _check_stage(key: str, fields: Mapping[str, Any]) -> None:
    if "until" not in fields:
        raise InputError(f"{key} has no field 'until': the share of the training where it ends")
    for name, value in fields.items():
        kinds.check(f"{key}.{name}", value, choose(name, _STAGE, f"field of {key}"))
