"""Environments by name."""

from collections.abc import Callable, Mapping

from lottery_jax import errors
from lottery_jax.environments.acrobot import acrobot
from lottery_jax.environments.cartpole import cartpole
from lottery_jax.environments.environment import Environment

NAMED: Mapping[str, Callable[[], Environment]] = {
    "cartpole-v0": cartpole,
    "cartpole-v1": lambda: cartpole(500),
    "acrobot-v1": acrobot,
}
"""What makes each of them."""

NAMES = tuple(NAMED)
"""The names that `make` knows."""


def make(name: str) -> Environment:
    """The environment of this name.

    Args:
      name: one of `NAMES`.

    Raises:
      ValueError: the name is none of these.
    """
    errors.one_of("name", name, NAMES)
    return NAMED[name]()
