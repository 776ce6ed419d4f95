"""The three maps of R kernels as batched matrix products over tiles of output pixels.

A tile of a x b output pixels is one row of a matrix product. The pixels of the input that
it sees, its window, are gathered once: for 3 x 3 kernels and tiles of 4 x 4 that is 2.25
copies of the input, where single pixels (tiles of 1 x 1: patches) make nine. The kernel is
spread over the window, with zeros where a pixel of the window does not reach a pixel of
the tile: more operations than the convolution has, in products of a shape that matrix
units like.

Why not XLA's grouped convolutions: on a GPU cuDNN executes many small groups one slow kernel
after another, and their gradients by FFT.

x is `[R, N, H, W, Ci]`, kernel `[R, h, w, Ci, Co]`, g `[R, N, H', W', Co]`; a tile is a
pair of pixels.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from lottery_jax.convolution.geometry import Geometry
from lottery_jax.types import Array

Tile: TypeAlias = tuple[int, ...]
"""Height and width of a tile, in output pixels."""


def forward(
    x: Array,
    kernel: Array,
    geometry: Geometry,
    dtype: Any,
    precision: Any,
    tile: Tile | None = None,
) -> Array:
    """The convolutions, `[R, N, H', W', Co]`.

    Args:
      x: `[R, N, H, W, Ci]`.
      kernel: `[R, h, w, Ci, Co]`, of the same dtype.
      geometry: what the three maps of one convolution share.
      dtype: of the result.
      precision: of products, XLA's own.
      tile: in output pixels; None for the cheapest.
    """
    tile = tile or _cheapest(x, geometry, kernel.shape[4])
    tile = _within(tile, geometry.output)
    seen = _windows_of_outputs(x, geometry, tile)
    wide = spread(kernel, taps(geometry, tile))
    y = _product(seen, wide, (2, 1), dtype, precision)
    return _untiled(y, x.shape[1], tile, geometry.output)


def input_gradient(
    g: Array,
    kernel: Array,
    geometry: Geometry,
    dtype: Any,
    precision: Any,
    tile: Tile | None = None,
) -> Array:
    """The gradients in the inputs, `[R, N, H, W, Ci]`, by tiles of input pixels.

    Pixel p of the input is reached from pixel q of g by the tap p + low - stride * q, so
    that a stride needs no zeros between the pixels of g.

    Args:
      g: a gradient in the output, `[R, N, H', W', Co]`.
      kernel: `[R, h, w, Ci, Co]`, of the same dtype.
      geometry: what the three maps of one convolution share.
      dtype: of the result.
      precision: of products, XLA's own.
      tile: in input pixels, made a multiple of the strides; None for the cheapest.
    """
    strides, low = geometry.strides, _low(geometry)
    if tile is None:
        tile = _cheapest(g, geometry, kernel.shape[3])
        tile = tuple(t * s for t, s in zip(tile, strides))
    tile = tuple(
        max(s, t // s * s)
        for t, s in zip(_within(tile, geometry.size), strides, strict=True)
    )
    first = [-((h - 1 - p) // s) for h, p, s in zip(geometry.window, low, strides)]
    sizes = [(a - 1 + p) // s - f + 1 for a, p, s, f in zip(tile, low, strides, first)]
    reached = [
        np.arange(a)[None] + p - s * (np.arange(m)[:, None] + f)
        for m, a, p, s, f in zip(sizes, tile, low, strides, first)
    ]
    seen = windows(
        g,
        _counts(geometry.size, tile),
        [a // s for a, s in zip(tile, strides)],
        sizes,
        [-f for f in first],
    )
    wide = spread(kernel.swapaxes(3, 4), reached)
    x = _product(seen, wide, (2, 1), dtype, precision)
    return _untiled(x, g.shape[1], tile, geometry.size)


def kernel_gradient(
    x: Array,
    g: Array,
    geometry: Geometry,
    dtype: Any,
    precision: Any,
    tile: Tile | None = None,
) -> Array:
    """The gradients in the kernels, `[R, h, w, Ci, Co]`.

    The gradient in the spread kernel, in which every tap stands once for each pixel of
    the tile, and the sums over these. With the tile of `forward` the windows are the same
    array, which XLA keeps.

    Args:
      x: `[R, N, H, W, Ci]`.
      g: a gradient in the output, `[R, N, H', W', Co]`, of the same dtype.
      geometry: what the three maps of one convolution share.
      dtype: of the result; sums are float32 at least.
      precision: of products, XLA's own.
      tile: in output pixels; None for the cheapest.
    """
    tile = _within(tile or _cheapest(x, geometry, g.shape[4]), geometry.output)
    wide = jnp.promote_types(dtype, jnp.float32)
    seen = _windows_of_outputs(x, geometry, tile)
    counts = _counts(geometry.output, tile)
    own = windows(g, counts, tile, tile, (0, 0))
    spread_gradient = _product(seen, own, (1, 1), wide, precision)
    replicas, channels, features = x.shape[0], x.shape[4], g.shape[4]
    sizes = [len(t) for t in taps(geometry, tile)]
    spread_gradient = spread_gradient.reshape(
        replicas, *sizes, channels, *tile, features
    )
    # Where in the window each tap lies, for each pixel of the tile: [h, a] and [w, b].
    rows, columns = (
        np.arange(h)[:, None] + s * np.arange(t)
        for h, s, t in zip(geometry.window, geometry.strides, tile)
    )
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    a, b = np.arange(tile[0])[:, None], np.arange(tile[1])
    # [h, w, a, b, R, C_in, C_out]
    found = spread_gradient[:, rows, columns, :, a, b]
    return found.sum((2, 3)).transpose(2, 0, 1, 3, 4).astype(dtype)


# --- windows and spread kernels -------------------------------------------------------


def windows(
    x: Array,
    counts: Sequence[int],
    strides: Sequence[int],
    sizes: Sequence[int],
    low: Sequence[int],
) -> Array:
    """What each tile sees, one row each; zeros outside of the image.

    A gather by a constant list of pixels: XLA fuses it with what made `x` into one pass
    that loads and stores several values at once and does not branch. Slices that are
    concatenated or padded become single loads behind branches, at a quarter of the speed.

    Args:
      x: `[R, N, H, W, C]`.
      counts: windows along both axes.
      strides: between windows, in pixels.
      sizes: of a window.
      low: pixels that the first window begins before the image.

    Returns:
      `[R, N * count, size * C]`, windows and their pixels row by row.
    """
    replicas, images, height, width, channels = x.shape
    rows, columns = (
        np.arange(n)[:, None] * s - p + np.arange(m)[None]
        for n, s, m, p in zip(counts, strides, sizes, low)
    )
    out = (replicas, images * math.prod(counts), math.prod(sizes) * channels)
    inside = _both((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    every = np.arange(height)[:, None], np.arange(width)[:, None]
    if np.array_equal(rows, every[0]) and np.array_equal(columns, every[1]):
        return x.reshape(out)
    pixels = (
        np.clip(rows, 0, height - 1)[:, None, :, None] * width
        + np.clip(columns, 0, width - 1)[None, :, None, :]
    )
    x = x.reshape(replicas, images, height * width, channels)
    seen = x.at[:, :, pixels.reshape(-1).astype(np.int32)].get(mode="promise_in_bounds")
    if not inside.all():
        seen = jnp.where(inside.reshape(-1)[:, None], seen, jnp.zeros((), x.dtype))
    return seen.reshape(out)


def spread(kernel: Array, joined: Sequence[np.ndarray]) -> Array:
    """Kernels over the windows of tiles.

    Args:
      kernel: `[R, h, w, Ci, Co]`.
      joined: for rows and columns, `[size of the window, size of the tile]`: which tap
        joins a pixel of the window to a pixel of the tile; none where it is no tap.

    Returns:
      `[R, window * Ci, tile * Co]`, pixels row by row.
    """
    replicas, height, width, channels, features = kernel.shape
    (rows, columns), sizes = joined, (height, width)
    inside = _both(*((t >= 0) & (t < n) for t, n in zip(joined, sizes)))
    rows, columns = (np.clip(t, 0, n - 1) for t, n in zip(joined, sizes))
    wide = kernel[:, rows[:, None, :, None], columns[None, :, None, :]]
    if not inside.all():
        wide = jnp.where(inside[..., None, None], wide, jnp.zeros((), kernel.dtype))
    # [R, window, tile, Ci, Co] to [R, window, Ci, tile, Co].
    wide = wide.transpose(0, 1, 2, 5, 3, 4, 6)
    (m, a), (n, b) = rows.shape, columns.shape
    return wide.reshape(replicas, m * n * channels, a * b * features)


def _windows_of_outputs(x: Array, geometry: Geometry, tile: Tile) -> Array:
    steps = [a * s for a, s in zip(tile, geometry.strides)]
    sizes = [len(t) for t in taps(geometry, tile)]
    return windows(x, _counts(geometry.output, tile), steps, sizes, _low(geometry))


def taps(geometry: Geometry, tile: Tile) -> list[np.ndarray]:
    """Which tap joins a pixel of a tile's window to an output pixel of the tile.

    Args:
      geometry: of the convolution.
      tile: in output pixels.

    Returns:
      For rows and columns, `[size of the window, size of the tile]`; what lies outside of
      the kernel is no tap.
    """
    sizes = [
        h + (a - 1) * s for h, a, s in zip(geometry.window, tile, geometry.strides)
    ]
    return [
        np.arange(m)[:, None] - s * np.arange(a)[None]
        for m, a, s in zip(sizes, tile, geometry.strides)
    ]


def _product(
    a: Array, b: Array, summed: tuple[int, int], dtype: Any, precision: Any
) -> Array:
    """One matrix product for each replica, the sum over an axis of both."""
    return lax.dot_general(
        a,
        b,
        (((summed[0],), (summed[1],)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=dtype,
    )


def _untiled(y: Array, images: int, tile: Tile, size: Sequence[int]) -> Array:
    """Rows of tiles, `[R, N * count, a * b * C]`, as images, `[R, N, H, W, C]`."""
    replicas, _, values = y.shape
    channels = values // math.prod(tile)
    rows, columns = _counts(size, tile)
    y = y.reshape(replicas, images, rows, columns, *tile, channels)
    y = y.transpose(0, 1, 2, 4, 3, 5, 6)
    y = y.reshape(replicas, images, rows * tile[0], columns * tile[1], channels)
    y = y[:, :, : size[0], : size[1]]
    # Left alone, XLA lays activations out with channels first and turns all of them over.
    return with_layout_constraint(y, Layout(major_to_minor=tuple(range(y.ndim))))


def _counts(size: Sequence[int], tile: Tile) -> tuple[int, ...]:
    return tuple(-(-n // t) for n, t in zip(size, tile, strict=True))


def _within(tile: Tile, size: Sequence[int]) -> Tile:
    return tuple(min(t, n) for t, n in zip(tile, size, strict=True))


def _low(geometry: Geometry) -> list[int]:
    return [low for low, _ in geometry.padding]


def _both(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return rows[:, None, :, None] & columns[None, :, None, :]


# --- which tile -----------------------------------------------------------------------

_TILES: tuple[Tile, ...] = ((1, 1), (1, 2), (2, 2), (2, 4), (4, 4))

_BANDWIDTH = 3e12
"""Bytes a second of gathers and products: 2.3 to 3.8 TB/s were measured on an H200."""

_OPERATIONS = 1.2e15
"""Operations a second, times bytes of an operand: 290 TFLOP/s were measured on an H200 in
tensorfloat32, for products of 576 x 256."""


def _cheapest(x: Array, geometry: Geometry, features: int) -> Tile:
    images, channels = x.shape[1], x.shape[4]
    return cheapest(images, geometry, channels, features, x.dtype.itemsize)


def cheapest(
    images: int, geometry: Geometry, channels: int, features: int, itemsize: int
) -> Tile:
    """The tile of the least predicted time for one kernel and its windows.

    Args:
      images: of one replica.
      geometry: of the convolution.
      channels: of the input.
      features: of the output.
      itemsize: of the operands, in bytes.
    """

    def seconds(tile: Tile) -> float:
        seen = math.prod(len(t) for t in taps(geometry, tile)) * channels
        rows = images * math.prod(_counts(geometry.output, tile))
        values = math.prod(tile) * features
        pixels = math.prod(geometry.output) * math.prod(geometry.strides)
        kernel = math.prod(geometry.window) * channels * features
        gathered = rows * seen + seen * values + images * pixels * channels + kernel
        product = rows * seen + seen * values + rows * values
        return gathered * itemsize / _BANDWIDTH + max(
            product * itemsize / _BANDWIDTH,
            2 * rows * seen * values * itemsize / _OPERATIONS,
        )

    return min(sorted({_within(t, geometry.output) for t in _TILES}), key=seconds)
