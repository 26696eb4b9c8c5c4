"""The training identities, for transforms and re-rankers that learn."""

import functools
from collections.abc import Callable
from typing import Any

from market_jax.errors import InputError
from market_jax.typing import Columns


class Training:
    """The training identities' columns and features, read when they are first asked for.

    Args:
      columns: () -> columns without images.
      features: () -> the same with "feature" float32 [M, D].
    """

    def __init__(self, columns: Callable[[], Columns], features: Callable[[], Columns]):
        self._columns, self._features = columns, features
        self._learned: dict[tuple, Any] = {}

    @functools.cached_property
    def columns(self) -> Columns:
        """Columns without images."""
        return self._columns()

    @functools.cached_property
    def features(self) -> Columns:
        """Columns with "feature"."""
        return self._features()

    def learn(self, function: Callable, **settings: Any) -> Any:
        """What a function learns, once for the same settings.

        Args:
          function: (training, **settings) -> what is learned.
          **settings: hashable.
        """
        key = (function, tuple(sorted(settings.items())))
        if key not in self._learned:
            self._learned[key] = function(self, **settings)
        return self._learned[key]


def need(training: Training | None, name: str) -> Training:
    """The training identities.

    Args:
      training: what was given, or None.
      name: of what learns from them, for the message.

    Raises:
      InputError: there are none.
    """
    if training is None:
        raise InputError(f"{name} learns from training images, and there are none")
    return training
