"""How R kernels are executed, and the choice per platform: the lowering of the maps.

| method | what runs |
|---|---|
| "loop" | one kernel after another: the default on CPU |
| "grouped" | one grouped convolution, XLA's own: the default elsewhere |
| "patches" | patches and one batched matrix product |

For R = 1 they are the same: a plain convolution.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from lottery_jax.convolution import primitives
from lottery_jax.convolution.one_kernel import CANONICAL_MAPS, PATCHES, STOCK, Maps
from lottery_jax.types import Array

_MANTISSA = {"tensorfloat32": 10, "bfloat16": 7}
"""Bits of the fraction that operands are rounded to."""


def _loop(function: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    if a.shape[0] == 1:
        return function(a[0], b[0])[None]
    return lax.map(lambda pair: function(*pair), (a, b))


def _together(function: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    if a.shape[0] == 1:
        return function(a[0], b[0])[None]
    return jax.vmap(function)(a, b)


def _lower(primitive: Primitive, name: str, default: str, platform: str | None) -> None:
    """Says how a primitive is computed on a platform.

    Args:
      primitive: one of the three.
      name: of the map, a field of `Maps`.
      default: the method where none was asked for.
      platform: None for all that have no rule of their own.
    """
    cpu = platform == "cpu"
    alone: Maps = CANONICAL_MAPS if cpu else STOCK

    def lowered(a, b, *, geometry, dtype, precision, method):
        method = method or default
        maps = {"loop": alone, "grouped": STOCK, "patches": PATCHES}[method]
        maps = alone if a.shape[0] == 1 else maps
        execute = _loop if method == "loop" else _together
        common = jnp.promote_types(a.dtype, b.dtype)
        a, b = a.astype(common), b.astype(common)
        if precision in _MANTISSA:
            a, b, precision = _rounded(a, b, precision, cpu)
        wide = jnp.promote_types(a.dtype, dtype)
        compute: Any = partial(
            getattr(maps, name), geometry=geometry, dtype=wide, precision=precision
        )
        return execute(compute, a, b).astype(dtype)

    rule = mlir.lower_fun(lowered, multiple_results=False)
    mlir.register_lowering(primitive, rule, platform=platform)


def _rounded(
    a: Array, b: Array, precision: str, cpu: bool
) -> tuple[Array, Array, lax.Precision | None]:
    """Operands at a named precision, and the precision of XLA that keeps them so."""
    if a.dtype == jnp.bfloat16 and cpu:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if a.dtype != jnp.float32:
        return a, b, None  # narrow already, or double on purpose
    if precision == "bfloat16" and not cpu:
        return a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), None
    # Products of rounded operands are exact in float32: so a CPU computes what the matrix
    # units of an accelerator do, up to the order of summation.
    bits = _MANTISSA[precision]
    a, b = (lax.reduce_precision(x, 8, bits) for x in (a, b))
    return a, b, lax.Precision.HIGHEST if cpu else lax.Precision.DEFAULT


for _primitive, _name in (
    (primitives.forward_p, "forward"),
    (primitives.input_gradient_p, "input_gradient"),
    (primitives.kernel_gradient_p, "kernel_gradient"),
):
    _lower(_primitive, _name, "grouped", None)
    _lower(_primitive, _name, "loop", "cpu")
