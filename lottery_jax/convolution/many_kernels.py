"""How R kernels are executed, and the choice per platform: the lowering of the maps.

| method | what runs |
|---|---|
| "loop" | one kernel after another: the default on CPU |
| "tiles" | tiles of output pixels and one batched matrix product: the default on GPUs |
| "grouped" | one grouped convolution, XLA's own: the default on TPUs |

For R = 1 "loop" and "grouped" are the same: a plain convolution. Images of one pixel (dense
layers) are a batched matrix product by every method.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from lottery_jax.convolution import primitives, tiles
from lottery_jax.convolution.api import Method
from lottery_jax.convolution.one_kernel import CANONICAL_MAPS, STOCK
from lottery_jax.types import Array

_MANTISSA = {"tensorfloat32": 10, "bfloat16": 7}
"""Bits of the fraction that operands are rounded to."""


def _lower(
    primitive: Primitive, name: str, default: Method, platform: str | None
) -> None:
    """Says how a primitive is computed on a platform.

    Args:
      primitive: one of the three.
      name: of the map, a field of `Maps`.
      default: the method where none was asked for.
      platform: None for all that have no rule of their own.
    """
    alone = CANONICAL_MAPS if platform == "cpu" else STOCK

    def lowered(a, b, *, geometry, dtype, precision, method):
        method = method or default
        common = jnp.promote_types(a.dtype, b.dtype)
        a, b = a.astype(common), b.astype(common)
        if precision in _MANTISSA:
            a, b, precision = _rounded(a, b, precision, platform)
        wide = jnp.promote_types(a.dtype, dtype)
        maps: Any = alone if method == "loop" else STOCK
        if method == "tiles" or geometry.size == geometry.window == (1, 1):
            maps = tiles
        compute: Any = partial(
            getattr(maps, name), geometry=geometry, dtype=wide, precision=precision
        )
        if maps is tiles:
            y = compute(a, b)
        elif a.shape[0] == 1:
            y = compute(a[0], b[0])[None]
        elif method == "loop":
            y = lax.map(lambda pair: compute(*pair), (a, b))
        else:
            y = jax.vmap(compute)(a, b)
        return y.astype(dtype)

    rule = mlir.lower_fun(lowered, multiple_results=False)
    mlir.register_lowering(primitive, rule, platform=platform)


def _rounded(
    a: Array, b: Array, precision: str, platform: str | None
) -> tuple[Array, Array, lax.Precision | None]:
    """Operands at a named precision, and the precision of XLA that keeps them so."""
    cpu = platform == "cpu"
    if a.dtype == jnp.bfloat16 and cpu:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if a.dtype != jnp.float32:
        return a, b, None  # narrow already, or double on purpose
    if precision == "bfloat16" and not cpu:
        return a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), None
    if platform in _GPUS:
        # Its matrix units round as they read; to do so before is a pass over memory.
        return a, b, lax.Precision.DEFAULT
    # Products of rounded operands are exact in float32: so a CPU computes what the matrix
    # units of an accelerator do, up to the order of summation.
    bits = _MANTISSA[precision]
    a, b = (lax.reduce_precision(x, 8, bits) for x in (a, b))
    return a, b, lax.Precision.HIGHEST if cpu else lax.Precision.DEFAULT


_GPUS = ("cuda", "rocm")

for _primitive, _name in (
    (primitives.forward_p, "forward"),
    (primitives.input_gradient_p, "input_gradient"),
    (primitives.kernel_gradient_p, "kernel_gradient"),
):
    _lower(_primitive, _name, "grouped", None)
    _lower(_primitive, _name, "loop", "cpu")
    for _gpu in _GPUS:
        _lower(_primitive, _name, "tiles", _gpu)
