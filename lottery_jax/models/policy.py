"""Policies by name: networks that say of an observation what to do, and what it is worth.

They are called as `model(x, train) -> (logits, value)`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from lottery_jax import activations, units
from lottery_jax.models import families
from lottery_jax.models.layers import Choices, Dense
from lottery_jax.types import Array


class ActorCritic(nn.Module):
    """Dense layers with ReLU, and two output layers: of the actions, and of the value.

    The networks of Yu et al. 2020 have 3 layers of 128 for CartPole and of 256
    for Acrobot. Layers: `dense_0`, ..., `policy`, `value`.

    Attributes:
      actions: how many logits there are.
      widths: of the hidden layers.
      choices: initialisers and the like, of all layers.
    """

    actions: int
    widths: Sequence[int] = (128, 128, 128)
    choices: Choices = Choices()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """Logits and values.

        Args:
          x: observations `[B, ...]`.
          train: unused.

        Returns:
          Logits `[B, actions]` of the actions, and values `[B]`.
        """
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = jax.nn.relu(Dense(width, self.choices, name=f"dense_{i}")(x))
        x = activations.wide(x)
        logits, value = (
            Dense(features, self.choices, narrows=False, stores=False, name=name)(x)
            for name, features in (("policy", self.actions), ("value", 1))
        )
        return logits, value[:, 0]

    @nn.nowrap
    def unit_plan(self) -> units.Layers:
        """Every hidden layer makes units of its own; both output layers read the last."""
        *layers, head = units.in_sequence(
            [(f"dense_{i}", None) for i in range(len(self.widths))]
        )
        return [*layers, head._replace(name="policy"), head._replace(name="value")]

    @staticmethod
    def named(numbers: Sequence[int], **settings: Any) -> "ActorCritic | None":
        """`actor-critic-W1[-W2...]`."""
        return ActorCritic(widths=tuple(numbers), **settings) if numbers else None


FAMILIES: families.Families = {
    "actor-critic": (
        "actor-critic-W1[-W2...] (actor-critic-128-128-128)",
        ActorCritic.named,
    )
}
"""All families of policies."""

FORMS = families.forms(FAMILIES)
"""The names that `make` knows."""


def make(name: str, actions: int, **choices: Any) -> nn.Module:
    """The policy of this name, a hashable Linen module.

    Args:
      name: one of `FORMS`: "actor-critic-128-128-128".
      actions: how many there are.
      **choices: fields of `Choices`.

    Raises:
      ValueError: the name is none of these, or a choice has an unknown value.
      TypeError: a choice is unknown.
    """
    settings = {"actions": actions, "choices": Choices(**choices)}
    return families.named(name, FAMILIES, settings)
