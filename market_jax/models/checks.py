"""Checks that arguments of models are in range, when the model is called."""

from collections.abc import Mapping, Sequence

from market_jax.errors import InputError


def check_rate(rate: float, name: str) -> None:
    """Refuses a dropout rate outside [0, 1).

    Args:
      rate: the share of units that are dropped.
      name: the argument's name, for the message.

    Raises:
      InputError: the rate is out of range; the message names the argument and its value.
    """
    if not 0 <= rate < 1:
        raise InputError(f"{name} is {rate}; it must be 0 or more, below 1")


def check_least(value: int, least: int, name: str) -> None:
    """Refuses a number that is too small.

    Args:
      value: the number.
      least: the smallest number that is allowed.
      name: the argument's name, for the message.

    Raises:
      InputError: the number is too small; the message names the argument and its value.
    """
    if value < least:
        raise InputError(f"{name} is {value}; it must be {least} or more")


def check_classes(classes: Mapping[str, int], name: str = "classes") -> None:
    """Refuses an output with fewer than two classes.

    Args:
      classes: output name -> number of classes.
      name: the argument's name, for the message.

    Raises:
      InputError: the message names the output and its number of classes.
    """
    for output, count in classes.items():
        check_least(count, 2, f"{name}.{output}")


def check_widths(widths: Sequence[int]) -> None:
    """Refuses an empty list of channels, or a layer without channels.

    Args:
      widths: channels of each layer.

    Raises:
      InputError: the message names the value.
    """
    if not widths or min(widths) < 1:
        raise InputError(f"model.widths is {widths}; it must be one number or more, each 1 or more")


def check_stages(attention: Sequence[int], stages: int) -> None:
    """Refuses attention masks after stages that a backbone does not have.

    Args:
      attention: the stages with a mask, counted from 1.
      stages: the number of stages of the backbone.

    Raises:
      InputError: the message names the stage that does not exist.
    """
    for stage in attention:
        if not 1 <= stage <= stages:
            raise InputError(f"attention has stage {stage}; the stages are 1 to {stages}")
