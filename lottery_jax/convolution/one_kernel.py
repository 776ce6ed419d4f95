"""The three maps for one kernel, two ways: XLA's own, and fast in CPU loops.

x is `[N, H, W, Ci]`, kernel `[h, w, Ci, Co]`, g `[N, H', W', Co]`, all of one dtype; the
result has `dtype`, at least as wide.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lottery_jax.convolution import tiles
from lottery_jax.convolution.geometry import CANONICAL, Geometry
from lottery_jax.types import Array

_NONE = ((0, 0), (0, 0))


class Maps(NamedTuple):
    """The three maps; each takes two arrays, geometry, dtype and precision."""

    forward: Callable[..., Array]
    input_gradient: Callable[..., Array]
    kernel_gradient: Callable[..., Array]


# --- XLA's own ------------------------------------------------------------------------


def _stock_forward(
    x: Array, kernel: Array, geometry: Geometry, dtype: Any, precision: Any
) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        dimension_numbers=CANONICAL,
        precision=precision,
        preferred_element_type=dtype,
    )


def _stock_input_gradient(
    g: Array, kernel: Array, geometry: Geometry, dtype: Any, precision: Any
) -> Array:
    # Typed like g, mesh axes it varies over included: else `jax.shard_map` sums over them.
    x = jax.typeof(g).update(shape=(g.shape[0], *geometry.size, kernel.shape[2]))
    forward = partial(
        _stock_forward, geometry=geometry, dtype=g.dtype, precision=precision
    )
    return jax.linear_transpose(lambda x: forward(x, kernel), x)(g)[0]


def _stock_kernel_gradient(
    x: Array, g: Array, geometry: Geometry, dtype: Any, precision: Any
) -> Array:
    shape = (*geometry.window, x.shape[3], g.shape[3])
    kernel = jax.typeof(g).update(shape=shape)
    forward = partial(
        _stock_forward, geometry=geometry, dtype=g.dtype, precision=precision
    )
    return jax.linear_transpose(lambda kernel: forward(x, kernel), kernel)(g)[0]


STOCK = Maps(_stock_forward, _stock_input_gradient, _stock_kernel_gradient)


# --- fast in loops on CPU -------------------------------------------------------------


def _canonical_forward(
    x: Array, kernel: Array, geometry: Geometry, dtype: Any, precision: Any
) -> Array:
    if geometry.strides == (1, 1):
        if math.prod(geometry.size) < math.prod(geometry.window):
            # XLA swaps the operands where the window has more pixels than the image,
            # and the swapped one has no fast path (100 times slower, 2 x 2 pixels).
            return _patches_forward(x, kernel, geometry, dtype, precision)
        columns = _columns_at_once(kernel.shape[2], kernel.shape[3], geometry.output[1])
        if columns > 1 and min(geometry.window) > 1:
            return _wide_forward(x, kernel, geometry, dtype, precision, columns)
    return _stock_forward(x, kernel, geometry, dtype, precision)


def _columns_at_once(channels: int, features: int, columns: int) -> int:
    """How many output columns a CPU computes together: a power of two, at most 4.

    XLA's matrix products need 32 features to fill their registers, and 64 to make up for
    the overhead of very short rows. Two columns of 16 features are 32 features of a window
    that is one column wider: a third more operations, at 1.4 times the speed for 16
    channels and at 3 times for the 3 channels of an image.
    """
    if channels >= 32:
        return 1
    wanted = 64 if channels < 8 else 32
    return next((b for b in (4, 2) if b * features <= wanted and columns % b == 0), 1)


def _wide_forward(
    x: Array,
    kernel: Array,
    geometry: Geometry,
    dtype: Any,
    precision: Any,
    columns: int,
) -> Array:
    """Tiles of neighbouring columns of the output: features of one wider window."""
    channels, features = kernel.shape[2:]
    taps = tiles.taps(geometry, (1, columns))
    window = tuple(len(t) for t in taps)
    spread = tiles.spread(kernel[None], taps)
    spread = spread.reshape(*window, channels, columns * features)
    wide = geometry._replace(strides=(1, columns), window=window)
    y = _stock_forward(x, spread, wide, dtype, precision)
    return y.reshape(x.shape[0], *geometry.output, features)


def _canonical_input_gradient(
    g: Array, kernel: Array, geometry: Geometry, dtype: Any, precision: Any
) -> Array:
    """The convolution of the spread output gradient with the flipped kernel."""
    spread = tuple((m - 1) * s + 1 for m, s in zip(geometry.output, geometry.strides))
    before = [k - 1 - low for k, (low, _) in zip(geometry.window, geometry.padding)]
    after = [
        n + k - 1 - m - low
        for n, k, m, low in zip(geometry.size, geometry.window, spread, before)
    ]
    padding = tuple(zip(before, after))
    if geometry.window == (1, 1):
        g = lax.dot_general(
            g,
            kernel[0, 0],
            (((3,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=dtype,
        )
        return _pad(g, padding, geometry.strides)
    if geometry.strides != (1, 1):
        g, padding, spread = _pad(g, padding, geometry.strides), _NONE, geometry.size
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    mirrored = Geometry((1, 1), padding, g.shape[1:3], geometry.window, geometry.size)
    return _canonical_forward(g, flipped, mirrored, dtype, precision)


def _canonical_kernel_gradient(
    x: Array, g: Array, geometry: Geometry, dtype: Any, precision: Any
) -> Array:
    """The sum over chunks of a few images.

    A scan, because its operands are materialised: otherwise XLA recomputes what made
    `x` (normalisation, ReLU, residual sums) inside every transpose of it. What a few
    images need stays in cache.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    pixels = math.prod(geometry.output)
    if geometry.strides == (1, 1) and pixels <= math.prod(geometry.size):
        images, product = max(4, -(-256 // pixels)), _turned_kernel_gradient
    else:
        # Taken with the stride, patches need no zeros between the pixels of g.
        images, product = max(2, -(-512 // pixels)), _patches_kernel_gradient
    few = partial(product, geometry=geometry, dtype=wide, precision=precision)
    chunks, rest = divmod(x.shape[0], images)
    whole = chunks * images
    if rest:
        total = few(x[whole:], g[whole:])
    else:
        total = jnp.zeros((*geometry.window, x.shape[3], g.shape[3]), wide)
    if chunks:
        split = [z[:whole].reshape(chunks, images, *z.shape[1:]) for z in (x, g)]
        total, _ = lax.scan(lambda t, part: (t + few(*part), None), total, split)
    return total


def _turned_kernel_gradient(
    x: Array, g: Array, geometry: Geometry, dtype: Any, precision: Any
) -> Array:
    """One convolution: channels take the place of images, images that of channels.

    With few features two columns of g are taken together, as in `_wide_forward`; even
    and odd columns of x are then channels of their own.
    """
    images, channels, features = x.shape[0], x.shape[3], g.shape[3]
    (height, width), (rows, columns) = geometry.window, geometry.output
    pair = 2 if features < 32 and columns % 2 == 0 and width > 1 else 1
    x = _pad(x, geometry.padding)
    if pair == 2:
        # One more column where the number is odd; no window of a pair reaches further.
        x = _pad(x, ((0, 0), (0, x.shape[2] % 2)))
    # [pair * Ci, H, W / pair, N] and [H', W' / pair, N, pair * Co].
    x = x.reshape(images, x.shape[1], -1, pair * channels).transpose(3, 1, 2, 0)
    g = g.reshape(images, rows, -1, pair * features).transpose(1, 2, 0, 3)
    out = lax.conv_general_dilated(
        x,
        g,
        (1, 1),
        _NONE,
        dimension_numbers=CANONICAL,
        precision=precision,
        preferred_element_type=dtype,
    )
    # [pair, Ci, h, w / pair, pair, Co]: column 2 j + p of the window for column i of g.
    out = out.reshape(pair, channels, height, -1, pair, features)
    out = out.transpose(2, 3, 0, 1, 4, 5).reshape(height, -1, channels, pair, features)
    return sum(
        (out[:, i : i + width, :, i] for i in range(1, pair)),
        start=out[:, :width, :, 0],
    )


CANONICAL_MAPS = Maps(
    _canonical_forward, _canonical_input_gradient, _canonical_kernel_gradient
)


# --- patches, of which a CPU copies slices faster than it gathers pixels ---------------


def _patches_forward(
    x: Array, kernel: Array, geometry: Geometry, dtype: Any, precision: Any
) -> Array:
    return lax.dot_general(
        _patches(_pad(x, geometry.padding), geometry),
        kernel.reshape(-1, kernel.shape[3]),
        (((3,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=dtype,
    )


def _patches_kernel_gradient(
    x: Array, g: Array, geometry: Geometry, dtype: Any, precision: Any
) -> Array:
    # This way round XLA turns g over in memory, and not the patches, which are larger.
    turned = lax.dot_general(
        g,
        _patches(_pad(x, geometry.padding), geometry),
        (((0, 1, 2), (0, 1, 2)), ((), ())),
        precision=precision,
        preferred_element_type=dtype,
    )
    return turned.T.reshape(*geometry.window, x.shape[3], g.shape[3])


def _pad(x: Array, padding: Any, strides: tuple[int, ...] = (1, 1)) -> Array:
    if tuple(padding) == _NONE and strides == (1, 1):
        return x
    edges = [(low, high, s - 1) for (low, high), s in zip(padding, strides)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _patches(x: Array, geometry: Geometry) -> Array:
    """What the window sees: padded [N, ., ., C] to [N, H', W', h * w * C]."""
    (rows, columns), (height, width) = geometry.strides, geometry.output
    slices = [
        x[:, i : i + rows * height : rows, j : j + columns * width : columns]
        for i in range(geometry.window[0])
        for j in range(geometry.window[1])
    ]
    return jnp.concatenate(slices, axis=-1)
