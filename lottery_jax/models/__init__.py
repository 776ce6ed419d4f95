"""Flax Linen models of the lottery-ticket literature, by name.

All are called as `model.apply(variables, x, train, weights)`, with `x` of shape
`[B, H, W, C]` (or `[B, ...]` for dense networks) and example weights `[B]` that
BatchNorm respects, and return logits `[B, num_classes]`. The output layer is `head`; it
may be a projection instead, for pre-training, and `headless` is a network without it.
Networks that read texts are those of `bert` and of `language`, those that play are those
of `policy`.

A new architecture is a file: its module, its `unit_plan()` (see `lottery_jax.units`), how
it is named, and one line in `FAMILIES`.
"""

import dataclasses
from typing import Any

import flax.linen as nn

from lottery_jax import errors
from lottery_jax.models import families, initializers
from lottery_jax.models import language as language
from lottery_jax.models import policy as policy
from lottery_jax.models.bert import Bert as Bert
from lottery_jax.models.bert import BertShape as BertShape
from lottery_jax.models.conv import ConvNet as ConvNet
from lottery_jax.models.decoder import Decoder as Decoder
from lottery_jax.models.layers import Choices as Choices
from lottery_jax.models.mlp import MLP as MLP
from lottery_jax.models.mlp import ResidualMLP as ResidualMLP
from lottery_jax.models.normalization import BatchNorm as BatchNorm
from lottery_jax.models.policy import ActorCritic as ActorCritic
from lottery_jax.models.recurrent import Recurrent as Recurrent
from lottery_jax.models.resnet import ResNet as ResNet
from lottery_jax.models.vgg import VGG as VGG
from lottery_jax.types import Mask, Params
from lottery_jax.units import narrow as narrow_axes
from lottery_jax.units import of_params, of_state

units, state_units = of_params, of_state
"""The axes of all parameters, or of a model state: `units.of_params`, `units.of_state`."""

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

FAMILIES: families.Families = {
    "lenet": ("lenet-W1[-W2...] (lenet-300-100)", MLP.named),
    "mlp": ("mlp-W1[-W2...]", MLP.named),
    "residual-mlp": ("residual-mlp-W", ResidualMLP.named),
    "conv": ("conv-2|4|6|8[-W]", ConvNet.named),
    "vgg": ("vgg-11|13|16|19[-W]", VGG.named),
    "resnet": ("resnet-D[-W] with D = 6n + 2 (resnet-20)", ResNet.named),
    "imagenet-resnet": (
        "imagenet-resnet-18|34|50|101|152[-W]",
        ResNet.named_imagenet,
    ),
    "tiny-imagenet-resnet": (
        "tiny-imagenet-resnet-18|34|50|101|152[-W] (CIFAR's stem, for 64 pixels)",
        ResNet.named_tiny_imagenet,
    ),
}
"""All families; W is a width, for networks of stages the first one's."""

FORMS = families.forms(FAMILIES)
"""The names that `make` knows."""


def make(name: str, num_classes: int, **choices: Any) -> nn.Module:
    """The model of this name, a hashable Linen module.

    Args:
      name: one of `FORMS`: "lenet-300-100", "conv-4", "vgg-16", "resnet-20",
        "resnet-20-32" (twice the usual width), "imagenet-resnet-50" ...
      num_classes: number of logits, or of what a projection has.
      **choices: fields of `Choices`, which differ between papers; `OPEN_LTH` and
        `FRANKLE_CARBIN` are two sets of them.

    Raises:
      ValueError: if the name is none of these, or a choice has an unknown value.
      TypeError: if a choice is unknown.
    """
    settings = {"num_classes": num_classes, "choices": Choices(**choices)}
    return families.named(name, FAMILIES, settings)


def headless(model: nn.Module) -> nn.Module:
    """The same network without its head: what comes out is its representation.

    It is applied to the parameters of the whole network, of which it leaves the head's
    unread; `[B, width]`, float32.

    Args:
      model: a model of images, with `choices`.

    Raises:
      ValueError: a model without them.
    """
    choices = getattr(model, "choices", None)
    must = "a model of images of lottery_jax.models, with `choices`"
    if not isinstance(choices, Choices):
        raise errors.wrong("model", type(model).__name__, must)
    bare = dataclasses.replace(choices, head="none", hidden=None)
    return model.clone(choices=bare)


def narrow(model: nn.Module, params: Params, count: int) -> tuple[Params, Mask]:
    """A narrower dense network inside the full shapes: `lottery_jax.units.narrow`.

    Args:
      model: a model of this package, or one with `unit_plan()` and `choices`.
      params: a draw of the full network.
      count: number of kernel weights wanted.

    Returns:
      The parameters, rescaled to the model's law at the narrow fans and not masked, and
      the mask.

    Raises:
      ValueError: see `units`.
    """
    axes = units(model, params)
    law = model.choices.initializer
    errors.one_of("initializer", law, initializers.FANS)  # or it knows no fans
    return narrow_axes(axes, params, count, fan=initializers.FANS[law])
