"""Dense and convolutional layers, and the choices papers leave to their framework."""

import dataclasses
import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from lottery_jax import activations, convolution
from lottery_jax.models import initializers
from lottery_jax.models.normalization import BatchNorm
from lottery_jax.types import Array


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
    """

    initializer: str = "kaiming_normal"
    bias: str = "zeros"
    norm_scale: str = "ones"
    unbiased: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Refuses unknown names and momenta outside of [0, 1] (ValueError)."""
        initializers.kernel(self.initializer)
        initializers.bias(self.bias, fan_in=1)
        initializers.scale(self.norm_scale)
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum}; it must lie in [0, 1]")


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


def head(num_classes: int, choices: Choices) -> Dense:
    """The output layer, `head`, which has all its classes whatever it is given."""
    return Dense(num_classes, choices, narrows=False, stores=False, name="head")


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
