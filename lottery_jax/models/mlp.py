"""Fully connected networks: LeNet-300-100 and its kin."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from lottery_jax import units
from lottery_jax.models.layers import Choices, Dense, head, head_units, in_sequence
from lottery_jax.types import Array


class MLP(nn.Module):
    """Dense layers with ReLU; with widths (300, 100), LeNet-300-100.

    LeCun et al. 1998, as in Frankle & Carbin 2019, figure 2; open_lth's
    `mnist_lenet_300_100`. Layers: `dense_0`, ..., `head`.

    Attributes:
      num_classes: width of the output layer.
      widths: of the hidden layers.
      choices: initialisers and the like, of all layers.
    """

    num_classes: int
    widths: Sequence[int] = (300, 100)
    choices: Choices = Choices()

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, weights: Array | None = None
    ) -> Array:
        """Logits `[B, num_classes]` of `x`, `[B, ...]`; `train`, `weights` unused."""
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = jax.nn.relu(Dense(width, self.choices, name=f"dense_{i}")(x))
        return head(x, self.num_classes, self.choices)

    @nn.nowrap
    def unit_plan(self) -> units.Layers:
        """Every layer makes units of its own."""
        layers = [(f"dense_{i}", None) for i in range(len(self.widths))]
        return in_sequence(layers, self.choices)

    @staticmethod
    def named(numbers: Sequence[int], **settings: Any) -> "MLP | None":
        """`lenet-W1[-W2...]` and `mlp-W1[-W2...]`."""
        return MLP(widths=tuple(numbers), **settings) if numbers else None


class ResidualMLP(nn.Module):
    """Two hidden layers, a residual connection around the second.

    `h = relu(dense_0 x); h = h + relu(dense_1 h); head h`, with 500 units the network
    of MNIST-1D's lottery tickets (Greydanus & Kobak 2024, section 3, and its code).

    Attributes:
      num_classes: width of the output layer.
      width: of both hidden layers.
      choices: initialisers and the like, of all layers.
    """

    num_classes: int
    width: int = 500
    choices: Choices = Choices()

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, weights: Array | None = None
    ) -> Array:
        """Logits `[B, num_classes]` of `x`, `[B, ...]`; `train`, `weights` unused."""
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.relu(Dense(self.width, self.choices, name="dense_0")(x))
        x = x + jax.nn.relu(Dense(self.width, self.choices, name="dense_1")(x))
        return head(x, self.num_classes, self.choices)

    @nn.nowrap
    def unit_plan(self) -> units.Layers:
        """The residual connection ties the units of both layers."""
        return [
            units.Layer("dense_0", None, "stream"),
            units.Layer("dense_1", "stream", "stream"),
            *head_units("stream", self.choices),
        ]

    @staticmethod
    def named(numbers: Sequence[int], **settings: Any) -> "ResidualMLP | None":
        """`residual-mlp-W`."""
        return ResidualMLP(width=numbers[0], **settings) if len(numbers) == 1 else None
