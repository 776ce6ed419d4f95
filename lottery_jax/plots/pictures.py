"""Masks and weights as pictures."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lottery_jax import errors
from lottery_jax.plots._canvas import STYLES, matplotlib_pyplot

_PIXELS = 400
"""Places along a side of a picture, beyond which neighbours are drawn as one."""


def masks(
    leaves: Mapping[str, np.ndarray], *, title: str = "", columns: int = 3
) -> Any:
    """Masks as pictures, one for each leaf: where weights survive.

    A matrix `[inputs, units]` has a row of the picture for each unit and a column for each
    input. The kernels of a convolution `[height, width, inputs, units]` lie side by side in
    the same order, with lines between them; so many that they would not be seen become one
    place each, with the share that survives. Where a side is longer than 400 places,
    neighbours are drawn as one, by their share.

    Args:
      leaves: bool arrays by what they are called, of any number of axes.
      title: above all.
      columns: pictures side by side.

    Returns:
      A matplotlib figure; dark is what survives.

    Raises:
      ValueError: there are no leaves.
    """
    if not leaves:
        raise errors.wrong("leaves", "{}", "some masks by their names")
    columns = min(columns, len(leaves))
    rows = -(-len(leaves) // columns)
    figure, panels = _panels(rows, columns, (3.2, 2.9))
    for axes in panels[len(leaves) :]:
        axes.set_axis_off()
    for axes, (name, mask) in zip(panels, leaves.items()):
        draw_mask(figure, axes, name, np.asarray(mask, bool))
        axes.set_xlabel("inputs", fontsize=7)
        axes.set_ylabel("units", fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def draw_mask(figure: Any, axes: Any, name: str, mask: np.ndarray) -> None:
    """Draws one mask, with a bar of colours where places are shares.

    Args:
      figure: that the axes belong to.
      axes: of matplotlib.
      name: of the leaf, above it.
      mask: bool, of any number of axes.
    """
    shape = "x".join(map(str, mask.shape))
    if not mask.size:
        axes.set_title(f"{name}\n{shape}, no weights", fontsize=7)
        axes.set_axis_off()
        return
    picture, lines = mask_picture(mask)
    largest = max(float(np.nanmax(picture, initial=0.0)), 1e-9)
    drawn = axes.imshow(
        picture,
        cmap=_colors("Blues"),
        vmin=0,
        vmax=largest,
        aspect=_aspect(picture),
        interpolation="nearest",
    )
    if not (lines or set(np.unique(picture)) <= {0.0, 1.0}):
        bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)
        bar.ax.tick_params(labelsize=6)
        bar.set_label("share that survives", fontsize=6)
    axes.set_title(f"{name}\n{shape}, {100 * mask.mean():.3g}% survive", fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])


def mask_picture(mask: np.ndarray, pixels: int = _PIXELS) -> tuple[np.ndarray, bool]:
    """The share that survives at each place `[units, inputs]`; whether it has lines.

    Args:
      mask: bool, of any number of axes.
      pixels: the most places along a side.
    """
    if mask.ndim > 2:
        *kernel, inputs, units = mask.shape
        height, width = (int(np.prod(kernel[:-1])), kernel[-1])
        tiles = mask.reshape(height, width, inputs, units).transpose(3, 0, 2, 1)
        shape = units * (height + 1) - 1, inputs * (width + 1) - 1
        if max(shape) <= pixels and height * width > 1:
            lined = np.full((units, height + 1, inputs, width + 1), np.nan)
            lined[:, :height, :, :width] = tiles
            picture = lined.reshape(units * (height + 1), inputs * (width + 1))
            return picture[:-1, :-1], True
        return _binned(tiles.mean(axis=(1, 3)), pixels), False
    matrix = mask.reshape(-1, mask.shape[-1]) if mask.ndim else mask.reshape(1, 1)
    return _binned(matrix.T.astype(float), pixels), False


def _aspect(picture: np.ndarray) -> str:
    """Places are squares, unless the picture would be a line."""
    height, width = picture.shape
    return "equal" if 1 / 3 < height / width < 3 else "auto"


def _binned(picture: np.ndarray, pixels: int) -> np.ndarray:
    """Means of equal blocks, so that no side has more than so many places."""
    for axis in (0, 1):
        size = picture.shape[axis]
        step = -(-size // pixels)
        if step > 1:
            first = np.arange(0, size, step)
            count = np.diff(np.append(first, size))
            total = np.add.reduceat(picture, first, axis=axis)
            picture = total / np.expand_dims(count, 1 - axis)
    return picture


def receptive_fields(
    mask: np.ndarray,
    shape: tuple[int, ...] | None = None,
    *,
    weights: np.ndarray | None = None,
    number: int = 24,
    title: str = "",
) -> Any:
    """What the units of a first layer look at, as pictures of the input.

    Beside them, how many weights survive at each place: on digits, which lie in the middle,
    few of them at the rim.

    Args:
      mask: bool `[inputs, units]`, or the kernels of a convolution `[height, width,
        channels, units]`.
      shape: of an input, `[height, width]`, with channels or without, or `[length]`; their
        product is the number of inputs. Channels are summed. Kernels have theirs.
      weights: real, of the mask's shape: what survives is drawn with its sign. None draws
        the mask.
      number: of units that are shown, those with the most survivors first.
      title: above all.

    Returns:
      A matplotlib figure.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    mask = np.asarray(mask, bool)
    if weights is not None and np.shape(weights) != mask.shape:
        raise errors.wrong("weights.shape", np.shape(weights), f"{mask.shape}")
    if mask.ndim == 4:
        shape = mask.shape[:-1] if shape is None else shape
        mask = mask.reshape(-1, mask.shape[-1])
        weights = None if weights is None else np.reshape(weights, mask.shape)
    if mask.ndim != 2:
        raise errors.wrong("mask.shape", mask.shape, "[inputs, units], or of kernels")
    if shape is None or mask.shape[0] != int(np.prod(shape)) or len(shape) > 3:
        must = f"the shape of {mask.shape[0]} inputs, one to three numbers"
        raise errors.wrong("shape", shape, must)
    height, width = (1, shape[0]) if len(shape) == 1 else shape[:2]

    def pictures(values: np.ndarray) -> np.ndarray:
        """`[inputs, units]` as `[units, height, width]`, channels summed."""
        return values.T.reshape(
            -1, height, width, values.shape[0] // height // width
        ).sum(axis=-1)

    looks = pictures(mask.astype(float))
    shown = looks if weights is None else pictures(np.where(mask, weights, 0.0))
    shown = np.where(looks > 0, shown, np.nan)
    best = np.argsort(-looks.sum(axis=(1, 2)), kind="stable")[:number]
    signs = "red: positive, blue: negative" if weights is not None else "red: survives"
    title = f"{title}\n{signs}, grey: pruned; the units with the most weights left"
    if height == 1:
        return _line_fields(shown[best, 0], looks[:, 0].sum(axis=0), best, title)
    return _image_fields(shown[best], looks, best, title)


def _image_fields(
    shown: np.ndarray, looks: np.ndarray, units: np.ndarray, title: str
) -> Any:
    """A grid of units, and the sum over all of them on the right."""
    columns = min(6, len(units))
    rows = -(-len(units) // columns)
    figure, panels = _panels(rows, columns, (0.85, 0.95), beside=2.9)
    *small, last = panels
    largest = _most(shown)
    for axes in small[len(units) :]:
        axes.set_axis_off()
    for axes, picture, unit in zip(small, shown, units):
        survive = int(looks[unit].sum())
        _signed(axes, picture, largest)
        axes.set_title(f"unit {unit}: {survive}", fontsize=6, pad=2)
    total = looks.sum(axis=0)
    drawn = last.imshow(total, cmap=_colors("viridis"), vmin=0, interpolation="nearest")
    last.set_xticks([])
    last.set_yticks([])
    last.set_title(
        f"weights that survive at each place,\nall {len(looks)} units", fontsize=8
    )
    bar = figure.colorbar(drawn, ax=last, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def _line_fields(
    shown: np.ndarray, total: np.ndarray, units: np.ndarray, title: str
) -> Any:
    """Units as rows over the places of a line, and the sum over all units below."""
    figure, (above, below) = _panels(2, 1, (6.0, 2.2))
    largest = _most(shown)
    _signed(above, shown, largest)
    above.set_aspect("auto")
    above.set_yticks(range(len(units)), [str(unit) for unit in units], fontsize=5)
    above.set_ylabel("unit", fontsize=8)
    below.bar(np.arange(len(total)), total, width=1.0, color=STYLES["ticket"][0])
    below.set_xlim(-0.5, len(total) - 0.5)
    below.set_xticks(np.linspace(0, len(total) - 1, 5).astype(int))
    below.set_yticks(np.linspace(0, max(total.max(), 1), 4).astype(int))
    below.set_xlabel("place in the input", fontsize=8)
    below.set_ylabel("units that look there", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def _most(shown: np.ndarray) -> float:
    """Where the colours end: a few large weights would make all others pale."""
    seen = np.abs(shown[np.isfinite(shown)])
    return max(float(np.quantile(seen, 0.98)), 1e-9) if seen.size else 1.0


def _signed(axes: Any, picture: np.ndarray, largest: float) -> None:
    """A picture of signed numbers; what is nan is grey."""
    colors = _colors("RdBu_r")
    drawn = np.ma.masked_invalid(picture)
    axes.imshow(
        drawn, cmap=colors, vmin=-largest, vmax=largest, interpolation="nearest"
    )
    axes.set_xticks([])
    axes.set_yticks([])


def _colors(name: str) -> Any:
    """A colour map in which nan is grey."""
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad="#e4e4e4")


def _panels(
    rows: int, columns: int, size: tuple[float, float], beside: float = 0.0
) -> tuple[Any, list[Any]]:
    """A figure of bare axes, row by row; the last one is on the right of all, if asked for.

    Args:
      rows: of axes.
      columns: of axes.
      size: of each, in inches: width and height.
      beside: the width of one more, in inches.
    """
    pyplot = matplotlib_pyplot()
    width, height = columns * size[0] + beside, rows * size[1] + 0.5
    figure = pyplot.figure(figsize=(width, max(height, beside)), layout="constrained")
    ratios = [size[0]] * columns + [beside] * bool(beside)
    grid = figure.add_gridspec(rows, len(ratios), width_ratios=ratios)
    panels = [
        figure.add_subplot(grid[i, j]) for i in range(rows) for j in range(columns)
    ]
    if beside:
        panels.append(figure.add_subplot(grid[:, columns]))
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure, panels
