"""VGG for CIFAR, with batch normalisation and one dense layer."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from lottery_jax import convolution, units
from lottery_jax.models.layers import (
    Choices,
    Conv,
    batch_norm,
    doubled,
    head,
    in_sequence,
    mean_of_pixels,
)
from lottery_jax.types import Array

LAYERS: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions in each group, by depth (the two lost dense layers included)."""


class VGG(nn.Module):
    """Groups of (3x3 convolution with bias, BatchNorm, ReLU), pooled between.

    Simonyan & Zisserman 2015, table 1, with the mean over the remaining pixels and one
    dense layer at the end, as in open_lth's `cifar_vgg_D`. Layers: `conv_0`, `norm_0`,
    ..., `head`.

    Attributes:
      num_classes: outputs.
      layers: convolutions in each group (`LAYERS`).
      widths: channels in each group.
      choices: initialisation and normalisation.
    """

    num_classes: int
    layers: Sequence[int] = LAYERS[16]
    widths: Sequence[int] = (64, 128, 256, 512, 512)
    choices: Choices = Choices()

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, weights: Array | None = None
    ) -> Array:
        """Logits `[B, num_classes]` of `x`, `[B, H, W, C]`; see `BatchNorm`."""
        i = 0
        for group, (layers, width) in enumerate(
            zip(self.layers, self.widths, strict=True)
        ):
            if group:
                x = convolution.max_pool(x)
            for _ in range(layers):
                x = Conv(width, choices=self.choices, name=f"conv_{i}")(x)
                x = jax.nn.relu(
                    batch_norm(self.choices, f"norm_{i}")(x, train, weights)
                )
                i += 1
        return head(mean_of_pixels(x), self.num_classes, self.choices)

    @nn.nowrap
    def unit_plan(self) -> units.Layers:
        """Every convolution makes channels of its own, normalised by its norm."""
        convs = range(sum(self.layers))
        layers = [(f"conv_{i}", f"norm_{i}") for i in convs]
        return in_sequence(layers, self.choices)

    @staticmethod
    def named(numbers: Sequence[int], **settings: Any) -> "VGG | None":
        """`vgg-11|13|16|19[-W]`, W channels in the first group, 8 W in the last two."""
        match numbers:
            case [depth, *width] if depth in LAYERS and len(width) < 2:
                widths = doubled(width or [64], 4)
                return VGG(
                    layers=LAYERS[depth], widths=(*widths, widths[-1]), **settings
                )
        return None
