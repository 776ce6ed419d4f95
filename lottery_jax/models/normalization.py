"""Batch normalisation that knows which examples are padding."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from lottery_jax import activations
from lottery_jax.models import initializers
from lottery_jax.types import Array


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with example weights.

    Params `scale` and `bias`, collection `batch_stats` with `mean` and `var`; as in
    `flax.linen.BatchNorm`, training needs `mutable=["batch_stats"]`. Normalisation uses
    the batch's biased variance. With `momentum=0` one training pass leaves the batch's
    own moments in `batch_stats`: what recomputing statistics averages.

    Ioffe & Szegedy 2015, algorithm 1. open_lth's: `norm_scale="uniform"`,
    `unbiased=True`.

    Attributes:
      norm_scale: law of the initial scale, "ones" or "uniform", U(0, 1).
      unbiased: whether the running variance averages the unbiased variance (PyTorch) or
        the biased one (Flax).
      momentum: weight of the old running value (PyTorch's is 1 minus this).
      epsilon: added to the variance before the root.
    """

    norm_scale: str = "ones"
    unbiased: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool, weights: Array | None = None) -> Array:
        """Normalises `x`.

        Args:
          x: `[B, ..., C]`.
          train: whether to use the batch's statistics and update the running ones.
          weights: of the examples, `[B]`, finite, at least 0, with a positive sum; an
            example of weight 0 has no influence on the others. None is all ones.

        Returns:
          Array of the shape of `x`, rounded once where activations are narrow.
        """
        channels = x.shape[-1]
        scale = self.param(
            "scale", initializers.scale(self.norm_scale), (channels,), jnp.float32
        )
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        shape = (channels,), jnp.float32
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, *shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, *shape)
        if train:
            mean, var, count = moments(x, weights, running_mean.value)
            if not self.is_initializing():
                batch_var = var
                if self.unbiased:
                    batch_var = var * count / jnp.maximum(count - 1, 1)
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * batch_var
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + self.epsilon)
        # One product and one sum, as PyTorch has it on CPU; centring `x` first makes a
        # training step of ResNet-20 10% slower.
        shift = bias - mean * factor
        y = x * jnp.broadcast_to(factor, x.shape) + jnp.broadcast_to(shift, x.shape)
        return activations.stored(y)


def moments(
    x: Array, weights: Array | None = None, near: Array | None = None
) -> tuple[Array, Array, Array]:
    """Weighted mean and biased variance of each channel, in float32 at least.

    As exact as float32 allows, at any number of values: on a CPU the relative error of
    the variance is about 1e-6 while means are below 100 standard deviations. Accelerators
    read `x` once and centre it by `near`: it is about 1e-6 while means are within a few
    standard deviations of that.

    Args:
      x: `[B, ..., C]`.
      weights: of the examples, `[B]`, with a positive sum; None is all ones.
      near: a guess of the means, `[C]`, running ones say; None, or where it is not finite,
        is 0.

    Returns:
      Mean and variance, `[C]`, and the sum of the weights of all values of one channel,
      `[]`.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    examples = jnp.ones(x.shape[0]) if weights is None else weights
    examples = examples.astype(x.dtype)
    count = examples.sum() * math.prod(x.shape[1:-1])
    share = examples / count
    if near is None:
        near = jnp.zeros(x.shape[-1], x.dtype)
    near = lax.stop_gradient(jnp.where(jnp.isfinite(near), near, 0))
    mean, variance = lax.platform_dependent(
        share, x, near, cpu=_moments_by_products, default=_moments_in_one_pass
    )
    return mean, variance, count


def _moments_by_products(share: Array, x: Array, near: Array) -> tuple[Array, Array]:
    mean = _sum(share, x)
    # Centred by a constant, whose derivatives cost nothing; the last term is 0 and keeps
    # second derivatives right.
    shift = lax.stop_gradient(mean)
    centred = x - jnp.broadcast_to(shift, x.shape)
    variance = _sum(share, jnp.square(centred)) - jnp.square(mean - shift)
    return mean, variance


def _moments_in_one_pass(share: Array, x: Array, near: Array) -> tuple[Array, Array]:
    axes = tuple(range(x.ndim - 1))
    share = share.reshape(-1, *(1 for _ in x.shape[1:]))
    centred = x - jnp.broadcast_to(near, x.shape)
    off = jnp.sum(share * centred, axes)
    variance = jnp.sum(share * jnp.square(centred), axes) - jnp.square(off)
    # That of a constant channel far from `near` is rounding, of either sign.
    return near + off, jnp.maximum(variance, 0)


def _sum(share: Array, x: Array) -> Array:
    """The weighted sum over all axes but the last, one axis after another.

    Rounding grows with the length of a sum: 128 images of 32 x 32 pixels are sums of 128,
    32 and 32 terms instead of one of 131,072. Matrix products, since XLA reduces over
    leading axes slowly on CPU; examples first, which is one long row of memory after
    another (blocks of rows, or pixels first, take longer). Highest precision, for
    accelerators whose default rounds the operands.
    """
    while x.ndim > 1:
        rows = x.reshape(x.shape[0], -1)
        total = jnp.dot(share, rows, precision=lax.Precision.HIGHEST)
        x = total.reshape(x.shape[1:])
        share = jnp.ones(x.shape[0], x.dtype)
    return x
