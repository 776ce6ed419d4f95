"""One ticket at a glance: where its weights are, unit by unit, and how large."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lottery_jax import errors
from lottery_jax.plots._canvas import STYLES, figures
from lottery_jax.plots.pictures import draw_mask


def overview(
    leaves: Mapping[str, np.ndarray],
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    title: str = "",
) -> Any:
    """A ticket's layers from the first to the last, a row for each.

    On the left the mask, as `masks` draws it. Then how many weights each unit has left, from
    the fullest to the emptiest, beside what it would be if all units had the same number:
    a random mask lies near that line, pruning by magnitude far from it at both ends. On the
    right the values of the surviving weights.

    Args:
      leaves: bool arrays `[..., units]` by what they are called, such as
        `lottery_jax.masks.layers` returns.
      weights: real, of the same names and shapes; None leaves their values out.
      title: above all.

    Returns:
      A matplotlib figure.

    Raises:
      ValueError: there are no leaves, or weights of other names or shapes.
    """
    if not leaves:
        raise errors.wrong("leaves", "{}", "some masks by their names")
    if weights is not None:
        _fit(weights, leaves)
    columns = 2 if weights is None else 3
    figure, grid = figures(len(leaves), columns, (3.2, 2.1))
    for row, (name, mask) in zip(grid, leaves.items()):
        mask = np.asarray(mask, bool)
        row[0].grid(False)
        draw_mask(figure, row[0], name, mask)
        _units(row[1], mask)
        if weights is not None:
            _values(row[2], np.asarray(weights[name])[mask])
    for axes, text in zip(grid[-1], ("inputs", "units, fullest first", "weight")):
        axes.set_xlabel(text, fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def _fit(weights: Mapping[str, np.ndarray], leaves: Mapping[str, np.ndarray]) -> None:
    """Raises a ValueError that names the first mask without weights of its shape."""
    for name, mask in leaves.items():
        given = np.shape(weights[name]) if name in weights else "none"
        if given != np.shape(mask):
            must = f"an array of the mask's shape, {np.shape(mask)}"
            raise errors.wrong(f"weights[{name!r}]", given, must)


def _units(axes: Any, mask: np.ndarray) -> None:
    """How many weights each unit has left, the fullest first."""
    left = np.sort(mask.reshape(-1, mask.shape[-1] if mask.ndim else 1).sum(0))[::-1]
    edges = np.arange(len(left) + 1) + 0.5
    axes.stairs(left, edges, fill=True, color=STYLES["ticket"][0])
    axes.set_axisbelow(True)
    axes.axhline(left.mean(), color="#222222", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlim(0.5, len(left) + 0.5)
    axes.set_ylim(0, None)
    axes.tick_params(labelsize=6)
    axes.set_ylabel("weights left", fontsize=7)
    none = int((left == 0).sum())
    axes.set_title(f"{none} of {len(left)} units have none", fontsize=7)


def _values(axes: Any, alive: np.ndarray) -> None:
    """The values of the weights that survive."""
    if alive.size:
        axes.hist(alive, bins=40, color=STYLES["ticket"][0])
    axes.set_axisbelow(True)
    axes.axvline(0, color="#222222", linewidth=0.6)
    axes.tick_params(labelsize=6)
    axes.set_ylabel("weights", fontsize=7)
    spread = float(np.sqrt(np.mean(np.square(alive)))) if alive.size else 0.0
    axes.set_title(f"{alive.size:,} survive, root mean square {spread:.2g}", fontsize=7)
