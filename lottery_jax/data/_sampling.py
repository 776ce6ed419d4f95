"""Images at other places than their pixels: two products with weights of the pixels.

Products with few numbers cost less than gathering, forward and under `vmap`, on every
platform.
"""

import jax.numpy as jnp

from lottery_jax.types import Array


def products(rows: Array, columns: Array, images: Array) -> Array:
    """`rows` times each image times `columns` transposed, in full precision.

    Args:
      rows: weight of each pixel of a column in each of the result, float32 `[B, I, H]`.
      columns: likewise of a row, `[B, J, W]`.
      images: float32 `[B, H, W, C]`.

    Returns:
      Float32 `[B, I, J, C]`.
    """
    x = jnp.einsum("bih,bhwc->biwc", rows, images, precision="highest")
    return jnp.einsum("bjw,biwc->bijc", columns, x, precision="highest")


def between(size: int, start: Array, share: Array) -> Array:
    """The weight of each pixel of a line in each of a part of it, `[B, size, size]`.

    Interpolation between the centres of pixels, also of those just outside of the part.

    Args:
      size: pixels of the line, and of what comes out.
      start: where the part begins, as a share of the line, float32 `[B]`.
      share: how long it is, likewise, in (0, 1].
    """
    pixels = jnp.arange(size, dtype=jnp.float32)
    centres = start[:, None] * size + (pixels + 0.5)[None, :] * share[:, None] - 0.5
    centres = jnp.clip(centres, 0, size - 1)
    return jnp.maximum(1 - jnp.abs(centres[:, :, None] - pixels[None, None, :]), 0)


def of_window(size: int, start: Array, length: Array, out: int) -> Array:
    """The weight of each pixel of a line in each of a resized window, `[B, out, size]`.

    A triangle filter over the pixels of the window alone: linear interpolation where it
    becomes longer, widened (antialiased) where it becomes shorter. What Pillow and
    torchvision compute for a window that was cut out first.

    Args:
      size: pixels of the line.
      start: the first pixel of the window, int32 `[B]`.
      length: how many it has, int32 `[B]`, 1 or more.
      out: how many there are then.
    """
    pixels = jnp.arange(size, dtype=jnp.int32)[None, :]
    inside = (pixels >= start[:, None]) & (pixels < (start + length)[:, None])
    scale = length.astype(jnp.float32) / out
    centres = (jnp.arange(out, dtype=jnp.float32) + 0.5)[None, :] * scale[:, None]
    centres = centres + start.astype(jnp.float32)[:, None]
    apart = jnp.abs(centres[:, :, None] - (pixels.astype(jnp.float32) + 0.5)[:, None])
    weights = jnp.maximum(1 - apart / jnp.maximum(scale, 1)[:, None, None], 0)
    weights = jnp.where(inside[:, None, :], weights, 0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)
