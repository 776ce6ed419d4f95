"""What the three maps of one convolution share: strides, padding and sizes, checked."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax

from lottery_jax.types import Array

Padding: TypeAlias = str | Sequence[tuple[int, int]]
"""`"SAME"`, `"SAME_LOWER"`, `"VALID"`, or (low, high) for each of height and width."""

CANONICAL = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """What the three maps of one convolution share: static, hashable, in pixels."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    size: tuple[int, ...]  # of the input
    window: tuple[int, ...]  # of the kernel
    output: tuple[int, ...]


def geometry_of(x: Array, kernel: Array, strides: Any, padding: Any) -> Geometry:
    """The geometry of a convolution; raises a ValueError if anything does not fit."""
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"x {x.shape} and kernel {kernel.shape} must have shapes [N, H, W, C_in] "
            "and [h, w, C_in, C_out]"
        )
    both = (x.dtype, kernel.dtype)
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in both) or (
        jnp.promote_types(*both) != kernel.dtype
    ):
        raise ValueError(
            f"x ({x.dtype}) and kernel ({kernel.dtype}) must have one floating dtype, or "
            "the kernel a wider one"
        )
    strides = tuple(int(s) for s in strides)
    if len(strides) != 2 or min(strides) < 1:
        raise ValueError(f"strides = {strides} must be two positive integers")
    size, window = x.shape[1:3], kernel.shape[:2]
    if isinstance(padding, str):
        if padding not in ("SAME", "SAME_LOWER", "VALID"):
            raise ValueError(
                f"padding = {padding!r} must be 'SAME', 'SAME_LOWER', 'VALID' or two "
                "(low, high) pairs"
            )
        padding = lax.padtype_to_pads(size, window, strides, padding)
    edges = tuple((int(low), int(high)) for low, high in padding)
    if len(edges) != 2:
        raise ValueError(f"padding = {padding} must be two (low, high) pairs")
    output = tuple(
        (n + sum(edge) - k) // s + 1
        for n, edge, k, s in zip(size, edges, window, strides)
    )
    if min(output) < 1:
        raise ValueError(
            f"a window of {window} does not fit into {size} pixels padded by {edges}"
        )
    return Geometry(strides, edges, size, window, output)
