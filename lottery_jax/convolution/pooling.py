"""Pooling over windows that do not overlap."""

from collections.abc import Callable
from functools import reduce

import jax.numpy as jnp

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
