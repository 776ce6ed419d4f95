"""What all figures share: axes, colours, lines of means, legends."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

STYLES: Mapping[str, tuple[str, str]] = {
    "ticket": ("#0b6e99", "o"),
    "reinit": ("#d1603d", "s"),
    "reinit_raw": ("#e0a458", "D"),
    "random_mask": ("#7a7a7a", "^"),
    "shuffled_weights": ("#8661a8", "v"),
    "small_dense": ("#3f8f55", "P"),
    "dense": ("#222222", "X"),
    "reinit_signed": ("#8c2f14", "<"),
    "shuffled_weights_signed": ("#4b2a66", ">"),
    "constant": ("#5cb8b2", "h"),
    "constant_signed": ("#1f6f6b", "p"),
    "random_ticket": ("#a8a8a8", "*"),
    "static": ("#b8a13a", "d"),
    "gradual": ("#c2407e", "8"),
}
"""Colour and marker of each arm, the same in every figure."""


LINES = ("-", "--", ":", "-.")


def figure_of_axes() -> tuple[Any, Any]:
    """A figure with axes."""
    figure, grid = figures(1, 1, (6.0, 3.8))
    return figure, grid[0, 0]


def figures(
    rows: int,
    columns: int,
    size: tuple[float, float],
    *,
    sharey: bool | Literal["row"] = False,
) -> tuple[Any, Any]:
    """A figure with axes `[rows, columns]`, and the size of one of them in inches."""
    figure, grid = matplotlib_pyplot().subplots(
        rows,
        columns,
        figsize=(columns * size[0], rows * size[1]),
        layout="constrained",
        squeeze=False,
        sharey=sharey,
    )
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    return figure, grid


def matplotlib_pyplot() -> Any:
    """matplotlib's; without a screen, but where a notebook shows what is drawn."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError(
            "figures need matplotlib: pip install 'lottery-jax[experiments]'"
        ) from None
    if "inline" not in os.environ.get("MPLBACKEND", ""):
        matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lottery_jax"
    from matplotlib import pyplot

    return pyplot


def mean_line(
    axes: Any,
    x: np.ndarray,
    y: np.ndarray,
    label: str,
    style: tuple[str, str],
    line: str = "-",
    geometric: bool = False,
) -> None:
    """A line of means over replicas `[replicas, N]`, with bars from min to max."""
    seen = np.isfinite(y).any(axis=0)
    y, x = y[:, seen], x[seen]
    mean = np.exp(np.nanmean(np.log(y), axis=0)) if geometric else np.nanmean(y, axis=0)
    spread = np.abs(np.stack([np.nanmin(y, axis=0), np.nanmax(y, axis=0)]) - mean)
    color, marker = style
    axes.errorbar(
        x,
        mean,
        yerr=spread,
        label=label.replace("_", " "),
        color=color,
        marker=marker,
        linestyle=line,
        markersize=4,
        linewidth=1.5,
        elinewidth=0.9,
        capsize=2,
    )


def legend(figure: Any, axes: Any) -> None:
    """The legend; below the axes where many lines leave no room for their names."""
    names = axes.get_legend_handles_labels()[1]
    if len(names) > 4:
        columns = 3 if max(map(len, names)) <= 30 else 2
        place = "outside lower center"
        figure.legend(frameon=False, fontsize=8, loc=place, ncols=columns)
    else:
        axes.legend(frameon=False, fontsize=9)


def line_styles(
    labels: Sequence[str], without: Sequence[str] = ()
) -> dict[str, tuple[str, str]]:
    """Colour and marker of each line: arms have theirs, others share what is left.

    Those of the arms `without` are kept for these.
    """
    arms = {label: label.rpartition(": ")[2].replace(" ", "_") for label in labels}
    taken = {*arms.values(), *without}
    left = [style for arm, style in STYLES.items() if arm not in taken]
    others = [label for label in labels if arms[label] not in STYLES]
    return {
        label: STYLES[arms[label]]
        if arms[label] in STYLES
        else left[others.index(label) % len(left)]
        for label in labels
    }


def density_axis(axes: Any, density: np.ndarray) -> None:
    """Density from the largest to the smallest, on a logarithmic axis, in percent."""
    axes.set_xscale("log")
    high, low = 100 * np.max(density), 100 * np.min(density)
    axes.set_xlim(high * 1.08, low / 1.08)
    own = np.unique(100 * np.asarray(density)).tolist()
    axes.set_xticks(*log_ticks(low / 1.08, high * 1.08, own if len(own) <= 4 else ()))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("weights remaining (%)")


def log_ticks(
    low: float, high: float, own: Sequence[float] = ()
) -> tuple[list[float], list[str]]:
    """Round numbers on a logarithmic axis of percent, and their labels.

    Args:
      low: where the axis begins.
      high: where it ends.
      own: numbers to write where the axis is too short for two round ones.
    """
    rounds = [a * 10.0**b for b in range(-4, 3) for a in (1, 2, 5)]
    inside = [tick for tick in rounds if low <= tick <= high]
    if len(inside) < 2:  # else whatever numbers lie at its quarters
        quarters = [low ** (1 - t) * high**t for t in (0.25, 0.5, 0.75)]
        inside = list(own) if len(own) > 1 else quarters
    return inside, [f"{tick:.3g}" for tick in inside]
