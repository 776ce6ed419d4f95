"""Dense and convolutional layers, and the choices papers leave to their framework."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from lottery_jax import activations, convolution, errors, units
from lottery_jax.models import initializers
from lottery_jax.models.normalization import BatchNorm
from lottery_jax.types import Array

Head: TypeAlias = Literal["linear", "projection", "none"]
"""What a network makes of its representation."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """What differs between implementations of one architecture; hashable.

    Attributes:
      initializer: law of the kernels, a name of `initializers.KERNELS`.
      bias: law of the biases, "zeros" or "torch" (U(+-1 / sqrt(fan_in))).
      norm_scale: law of the norms' scales, "ones" or "uniform" (U(0, 1)).
      unbiased: whether running variances average the unbiased variance of batches, as
        PyTorch does, or the biased one, as Flax does.
      momentum: weight of the old value in running statistics, in [0, 1]. With 0 they
        are the last batch's own.
      epsilon: added to variances before the root.
      head: what is made of the representation: "linear", one layer; "projection", two
        with a ReLU between (`Projection`), as in Chen et al. 2020, section 2.1; "none",
        the representation itself. All other parameters are the same ones, and the same
        draws from one key.
      hidden: units of the first layer of a projection; None for as many as the
        representation has.
    """

    initializer: str = "kaiming_normal"
    bias: str = "zeros"
    norm_scale: str = "ones"
    unbiased: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5
    head: Head = "linear"
    hidden: int | None = None

    def __post_init__(self) -> None:
        """Refuses unknown names and numbers out of range (ValueError)."""
        initializers.kernel(self.initializer)
        initializers.bias(self.bias, fan_in=1)
        initializers.scale(self.norm_scale)
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum}; it must lie in [0, 1]")
        errors.one_of("head", self.head, get_args(Head))
        if self.hidden is not None:
            errors.whole("hidden", self.hidden, 1)
            if self.head != "projection":
                must = f"None: head={self.head!r} has no hidden layer"
                raise errors.wrong("hidden", self.hidden, must)


def _width(layer: nn.Module, features: int) -> int:
    """How many units a layer has: those of the kernel it is given, if that is narrower.

    Networks without their dead units (`lottery_jax.compact`) are applied by the model of
    the full ones. A kernel that is wider fits no layer, and Flax says so.
    """
    if not layer.has_variable("params", "kernel"):  # being initialised
        return features
    return min(features, layer.get_variable("params", "kernel").shape[-1])


class Dense(nn.Module):
    """`[..., C_in]` to `[..., features]`; params `kernel` and `bias`.

    Attributes:
      features: units.
      choices: initialisation.
      narrows: whether a kernel with fewer units is applied as it is. The output layer's
        units are classes, of which none may be missing.
      stores: whether the result is an activation, in the dtype that `activations` says.
        That of the output layer is not: logits are float32.
    """

    features: int
    choices: Choices = Choices()
    narrows: bool = True
    stores: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Applies the layer."""
        fan_in, choices = x.shape[-1], self.choices
        features = _width(self, self.features) if self.narrows else self.features
        kernel = self.param(
            "kernel",
            initializers.kernel(choices.initializer),
            (fan_in, features),
            jnp.float32,
        )
        bias = self.param(
            "bias", initializers.bias(choices.bias, fan_in), (features,), jnp.float32
        )
        if not self.stores:
            wide = jnp.promote_types(x.dtype, kernel.dtype)
            y = convolution.dense(x.astype(wide), kernel)
            return y + jnp.broadcast_to(bias, y.shape)
        y = convolution.dense(activations.stored(x), kernel, activations.precision())
        return activations.stored(y + jnp.broadcast_to(bias, y.shape))


class Conv(nn.Module):
    """`[B, H, W, C_in]` to `[B, H', W', features]` by `convolution.conv`.

    Pads every side by half the window, as PyTorch's models do: with a stride of 2 and
    an even size that is not what "SAME" pads. A kernel with fewer channels is applied as
    it is.

    Attributes:
      features: output channels.
      window: height and width of the kernel.
      stride: along both axes.
      use_bias: whether there is one.
      choices: initialisers and the like.
    """

    features: int
    window: int = 3
    stride: int = 1
    use_bias: bool = True
    choices: Choices = Choices()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Applies the layer."""
        features = _width(self, self.features)
        shape = (self.window, self.window, x.shape[-1], features)
        kernel = self.param(
            "kernel", initializers.kernel(self.choices.initializer), shape, jnp.float32
        )
        edge = (self.window // 2, self.window // 2)
        y = convolution.conv(
            activations.stored(x),
            kernel,
            strides=(self.stride, self.stride),
            padding=(edge, edge),
            precision=activations.precision(),
        )
        if not self.use_bias:
            return y
        bias = self.param(
            "bias",
            initializers.bias(self.choices.bias, math.prod(shape[:3])),
            (features,),
            jnp.float32,
        )
        return activations.stored(y + jnp.broadcast_to(bias, y.shape))


def doubled(width: Sequence[int], stages: int) -> tuple[int, ...]:
    """Widths of stages of which each is twice as wide as the one before."""
    return tuple(width[0] * 2**i for i in range(stages))


class Projection(nn.Module):
    """A head of two layers, `hidden` and `output`, with a ReLU between.

    The projection g of Chen et al. 2020, section 2.1, without a norm.

    Attributes:
      outputs: numbers that come out.
      choices: initialisation, and how many units are hidden.
    """

    outputs: int
    choices: Choices = Choices()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, width]` to `[B, outputs]`, float32."""
        width = self.choices.hidden or x.shape[-1]
        if self.has_variable("params", "hidden"):
            # What it is given says it: `x` may be without its dead units.
            width = self.get_variable("params", "hidden")["kernel"].shape[-1]
        x = jax.nn.relu(Dense(width, self.choices, name="hidden")(x))
        output = Dense(
            self.outputs, self.choices, narrows=False, stores=False, name="output"
        )
        return output(x)


def head(x: Array, num_classes: int, choices: Choices) -> Array:
    """What the network says, from its representation; all parameters are below `head`.

    Args:
      x: the representation, `[B, width]`.
      num_classes: outputs of the head, which has all of them whatever it is given.
      choices: which head.

    Returns:
      `[B, num_classes]`; the representation in float32 where there is no head.
    """
    if choices.head == "none":
        return activations.wide(x)
    if choices.head == "projection":
        return Projection(num_classes, choices, name="head")(x)
    return Dense(num_classes, choices, narrows=False, stores=False, name="head")(x)


def head_units(reads: str | None, choices: Choices) -> units.Layers:
    """The layers of a head, for the `unit_plan()` of a network.

    Args:
      reads: the group of units that it reads.
      choices: which head.

    Raises:
      ValueError: there is no head; the units of the representation are outputs then, and
        none of them may be missing.
    """
    if choices.head == "none":
        must = "'linear' or 'projection': without a head units are outputs"
        raise errors.wrong("choices.head", repr(choices.head), must)
    if choices.head == "projection":
        hidden = units.Layer("head/hidden", reads, "head/hidden")
        return [hidden, units.Layer("head/output", "head/hidden", None)]
    return [units.Layer("head", reads, None)]


def in_sequence(
    layers: Sequence[tuple[str, str | None]], choices: Choices
) -> units.Layers:
    """`units.in_sequence` with the head that a network has."""
    *body, last = units.in_sequence(layers)
    return [*body, *head_units(last.reads, choices)]


def mean_of_pixels(x: Array) -> Array:
    """`[B, H, W, C]` to `[B, C]`, added up in float32."""
    return activations.wide(x).mean((1, 2))


def batch_norm(choices: Choices, name: str) -> BatchNorm:
    """A `BatchNorm` as `choices` says."""
    return BatchNorm(
        norm_scale=choices.norm_scale,
        unbiased=choices.unbiased,
        momentum=choices.momentum,
        epsilon=choices.epsilon,
        name=name,
    )
