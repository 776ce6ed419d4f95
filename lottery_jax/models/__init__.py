"""Flax Linen models of the lottery-ticket literature, by name.

All are called as `model.apply(variables, x, train, weights)`, with `x` of shape
`[B, H, W, C]` (or `[B, ...]` for dense networks) and example weights `[B]` that
BatchNorm respects, and return logits `[B, num_classes]`. The output layer is `head`.
"""

from typing import Any

import flax.linen as nn

from lottery_jax.models.conv import ConvNet as ConvNet
from lottery_jax.models.layers import Choices as Choices
from lottery_jax.models.mlp import MLP as MLP
from lottery_jax.models.mlp import ResidualMLP as ResidualMLP
from lottery_jax.models.normalization import BatchNorm as BatchNorm
from lottery_jax.models.resnet import IMAGENET_LAYERS
from lottery_jax.models.resnet import ResNet as ResNet
from lottery_jax.models.units import Axes as Axes
from lottery_jax.models.units import Axis as Axis
from lottery_jax.models.units import narrow as narrow
from lottery_jax.models.units import state_units as state_units
from lottery_jax.models.units import units as units
from lottery_jax.models.vgg import LAYERS as VGG_LAYERS
from lottery_jax.models.vgg import VGG as VGG

OPEN_LTH: dict[str, Any] = {
    "initializer": "kaiming_normal",
    "bias": "torch",
    "norm_scale": "uniform",
    "unbiased": True,
}
"""The choices of open_lth's defaults; Frankle et al. 2020."""

FRANKLE_CARBIN: dict[str, Any] = {
    "initializer": "glorot_normal",
    "bias": "zeros",
    "norm_scale": "ones",
}
"""The choices of Frankle & Carbin 2019, figure 2 (scales of 1: TensorFlow's default)."""

FORMS = (
    "lenet-W1[-W2...] and mlp-W1[-W2...] (lenet-300-100), residual-mlp-W, "
    "conv-2|4|6|8[-W], vgg-11|13|16|19[-W], resnet-D[-W] with D = 6n + 2 (resnet-20), "
    "imagenet-resnet-18|50[-W]"
)
"""The names that `make` knows; W is a width, for networks of stages the first one's."""


def make(name: str, num_classes: int, **choices: Any) -> nn.Module:
    """The model of this name, a hashable Linen module.

    Args:
      name: one of `FORMS`: "lenet-300-100", "conv-4", "vgg-16", "resnet-20",
        "resnet-20-32" (twice the usual width), "imagenet-resnet-50" ...
      num_classes: number of logits.
      **choices: fields of `Choices`, which differ between papers; `OPEN_LTH` and
        `FRANKLE_CARBIN` are two sets of them.

    Raises:
      ValueError: if the name is none of these, or a choice has an unknown value.
      TypeError: if a choice is unknown.
    """
    family, numbers = _parse(name)
    settings: dict[str, Any] = {
        "num_classes": num_classes,
        "choices": Choices(**choices),
    }
    match family, numbers:
        case "lenet" | "mlp", [_, *_]:
            return MLP(widths=tuple(numbers), **settings)
        case "residual-mlp", [width]:
            return ResidualMLP(width=width, **settings)
        case "conv", [2 | 4 | 6 | 8 as depth, *width] if len(width) < 2:
            widths = _doubled(width or [64], depth // 2)
            return ConvNet(widths=widths, **settings)
        case "vgg", [depth, *width] if depth in VGG_LAYERS and len(width) < 2:
            widths = _doubled(width or [64], 4)
            return VGG(
                layers=VGG_LAYERS[depth], widths=(*widths, widths[-1]), **settings
            )
        case "resnet", [depth, *width] if depth % 6 == 2 < depth and len(width) < 2:
            layers = ((depth - 2) // 6,) * 3
            return ResNet(layers=layers, width=(width or [16])[0], **settings)
        case "imagenet-resnet", [depth, *width] if (
            depth in IMAGENET_LAYERS and len(width) < 2
        ):
            return ResNet(
                layers=IMAGENET_LAYERS[depth],
                width=(width or [64])[0],
                bottleneck=depth >= 50,
                imagenet=True,
                **settings,
            )
    raise ValueError(f"name = {name!r} is no known model; valid forms: {FORMS}")


def _parse(name: str) -> tuple[str, list[int]]:
    parts = name.split("-")
    words = [part for part in parts if not part.isdecimal()]
    numbers = [int(part) for part in parts[len(words) :] if part.isdecimal()]
    if parts[: len(words)] != words or 0 in numbers:
        return name, []
    return "-".join(words), numbers


def _doubled(width: list[int], stages: int) -> tuple[int, ...]:
    return tuple(width[0] * 2**i for i in range(stages))
