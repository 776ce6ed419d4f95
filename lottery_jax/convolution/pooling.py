"""Pooling whose gradients are cheap in loops: over windows that do not overlap, or do."""

from collections.abc import Callable
from functools import reduce

import jax.numpy as jnp
from jax import lax

from lottery_jax.types import Array


def max_pool(x: Array, window: int = 2) -> Array:
    """Maximum over non-overlapping windows; its gradient is cheap in loops.

    Where entries tie for the maximum the gradient is shared among them, equally if
    `window` is 2 (`flax.linen.max_pool` and PyTorch give all of it to the first one).
    After a ReLU that concerns windows of zeros, whose gradient the ReLU stops anyway.

    Args:
      x: `[N, H, W, C]`.
      window: side of the window in pixels; rows and columns left over are dropped.

    Returns:
      `[N, H // window, W // window, C]`.

    Raises:
      ValueError: if the window is smaller than 1 or larger than the image.
    """
    return _pool(jnp.maximum, x, window)


def overlapping_max_pool(
    x: Array, window: int = 3, stride: int = 2, padding: int = 1
) -> Array:
    """Maximum over windows that may overlap, by default the one after ResNets' 7x7 stem.

    Values, and gradients to rounding, of `flax.linen.max_pool` and PyTorch: of entries
    that tie the first one of the window, row by row, has all of the gradient. nan is the
    largest number. Inside a loop on CPU a seventh of the time of `flax.linen.max_pool`,
    whose gradient selects and scatters.

    Args:
      x: real, `[N, H, W, C]`.
      window: side of the window in pixels.
      stride: from one window to the next, in pixels.
      padding: pixels of minus infinity on every side, fewer than the window has.

    Returns:
      `[N, H', W', C]`, where H' is (H + 2 * padding - window) // stride + 1.

    Raises:
      ValueError: if no number is in its range or the window is larger than the image.
    """
    height, width = x.shape[1:3]
    if stride < 1 or not 0 <= padding < window <= min(height, width) + 2 * padding:
        raise ValueError(
            f"window = {window}, stride = {stride}, padding = {padding}: the window must "
            f"fit into the {height} x {width} pixels of x with the padding, which is 0 or "
            "more and less than the window, and the stride must be at least 1"
        )
    # Within rows first: what is left of ties is the first one in the order of pixels.
    return _along(_along(x, 2, window, stride, padding), 1, window, stride, padding)


def _along(x: Array, axis: int, window: int, stride: int, padding: int) -> Array:
    """Maxima over windows along one axis, which keep their first largest entry."""
    edges = [(padding, padding, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)
    last = (x.shape[axis] - window) // stride * stride
    return reduce(
        _first_largest,
        [
            lax.slice_in_dim(x, i, i + last + 1, stride, axis=axis)
            for i in range(window)
        ],
    )


def _first_largest(first: Array, second: Array) -> Array:
    return jnp.where((second > first) | jnp.isnan(second), second, first)


def avg_pool(x: Array, window: int = 2) -> Array:
    """Mean over non-overlapping windows; arguments and shapes as in `max_pool`."""
    return _pool(jnp.add, x, window) / window**2


def _pool(combine: Callable[[Array, Array], Array], x: Array, window: int) -> Array:
    n, height, width, channels = x.shape
    if not 1 <= window <= min(height, width):
        raise ValueError(
            f"window = {window} must be at least 1 and fit into the {height} x {width} "
            "pixels of x"
        )
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    x = x.reshape(n, rows, window, columns, window, channels)
    # Elementwise over slices: inside a loop on CPU a reduction over axes as short as
    # these costs 4 times as much, `reduce_window` 15 times.
    x = reduce(combine, [x[:, :, i] for i in range(window)])
    return reduce(combine, [x[:, :, :, j] for j in range(window)])
