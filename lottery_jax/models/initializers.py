"""Initial weights, by the name that experiments record.

The normal laws are not truncated: `jax.nn.initializers.he_normal` and `glorot_normal`
cut their tails at two standard deviations and rescale, PyTorch's do not.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lottery_jax import errors
from lottery_jax.keys import settled
from lottery_jax.types import Array

Initializer = Callable[..., Array]
"""`(key, shape, dtype) -> array`; kernels are `[..., fan in, fan out]`."""

kaiming_normal: Initializer = settled(
    jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
)
"""N(0, 2 / fan_in). He et al. 2015, section 2.2; open_lth's `kaiming_normal`."""

glorot_normal: Initializer = settled(
    jax.nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
)
"""N(0, 2 / (fan_in + fan_out)). Glorot & Bengio 2010; Frankle & Carbin 2019."""

normal_002: Initializer = settled(jax.nn.initializers.normal(0.02))
"""N(0, 0.02^2), whatever the fans. Devlin et al. 2019; Radford et al. 2019."""

torch_kernel: Initializer = settled(
    jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
)
"""U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), the default of PyTorch's layers."""

KERNELS: dict[str, Initializer] = {
    "kaiming_normal": kaiming_normal,
    "glorot_normal": glorot_normal,
    "normal_0.02": normal_002,
    "torch": torch_kernel,
}
FANS: dict[str, Literal["fan_in", "fan_avg"]] = {
    "kaiming_normal": "fan_in",
    "glorot_normal": "fan_avg",
    "torch": "fan_in",
}
"""What the variance of each is divided by, of those that know their fans."""

BIASES = ("zeros", "torch")
SCALES = ("ones", "uniform")


def torch_bias(fan_in: int) -> Initializer:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), the default of PyTorch's layers.

    open_lth changes the initialisation of weights only, so this is the law of its biases.

    Args:
      fan_in: inputs of one unit: `h * w * C_in` of a convolution.
    """
    bound = 1 / math.sqrt(fan_in)

    @settled
    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def kernel(name: str) -> Initializer:
    """The law of a kernel, by a name of `KERNELS`; ValueError else."""
    return KERNELS[_known("initializer", name, tuple(KERNELS))]


def bias(name: str, fan_in: int) -> Initializer:
    """The law of a bias: "zeros" or "torch" (`torch_bias`); ValueError else."""
    if _known("bias", name, BIASES) == "torch":
        return torch_bias(fan_in)
    return jax.nn.initializers.zeros


def scale(name: str) -> Initializer:
    """The law of a norm's scale: "ones" or "uniform", U(0, 1); ValueError else."""
    if _known("norm_scale", name, SCALES) == "uniform":
        return settled(jax.nn.initializers.uniform(1.0))
    return jax.nn.initializers.ones


def _known(field: str, name: str, valid: tuple[str, ...]) -> str:
    errors.one_of(field, name, valid)
    return name
