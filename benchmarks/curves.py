"""The figure of costs: what a replica-step takes as something else grows."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lottery_jax import plots


class _Panel(NamedTuple):
    """How one axis is drawn.

    Attributes:
      label: what is on it, with its unit.
      base: of the logarithm; None for a linear axis.
      ylog: whether costs are on a logarithmic axis too.
    """

    label: str
    base: int | None
    ylog: bool = False


PANELS: Mapping[str, _Panel] = {
    "replicas": _Panel("replicas", 2),
    "devices": _Panel("host devices", 2),
    "levels": _Panel("level (number of prunings)", None),
    "parameters": _Panel("prunable weights", 10, ylog=True),
}
"""By the names that rows give their curves."""


def collect(stored: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The curves of all stored rows, by panel and label.

    Args:
      stored: rows by name, from `report.as_json`.

    Returns:
      Arrays `[points, 4]`: x, then median, smallest and largest cost in milliseconds.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for row in stored.values():
        for panel, lines in row.get("curves", {}).items():
            for label, points in lines.items():
                found.setdefault(panel, {})[label] = np.array(points, float)
    return found


def draw(stored: Mapping[str, Any], path: pathlib.Path) -> bool:
    """Draws the curves that the stored rows have; False, and no file, if they have none.

    Args:
      stored: rows by name, from `report.as_json`.
      path: of the PNG.

    Raises:
      ImportError: there is no matplotlib.
    """
    found = collect(stored)
    if not found:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    figure, grid = pyplot.subplots(2, 2, figsize=(9.0, 6.4), layout="constrained")
    styles = list(plots.STYLES.values())
    for axes, (name, panel) in zip(grid.flat, PANELS.items()):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_xlabel(panel.label)
        axes.set_ylabel("time of a replica-step (ms)")
        lines = found.get(name, {})
        if not lines:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
            continue
        for (label, points), (color, marker) in zip(lines.items(), styles):
            x, median, low, high = points[np.argsort(points[:, 0])].T
            axes.errorbar(
                x,
                median,
                yerr=[median - low, high - median],
                label=label,
                color=color,
                marker=marker,
                markersize=4,
                linewidth=1.5,
                elinewidth=0.9,
                capsize=2,
            )
        if panel.base:
            axes.set_xscale("log", base=panel.base)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if panel.base == 2:
            every = sorted({x for points in lines.values() for x in points[:, 0]})
            axes.set_xticks(every, [f"{x:g}" for x in every])
            axes.xaxis.set_minor_locator(NullLocator())
        if panel.ylog:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        else:
            top = max(points[:, 3].max() for points in lines.values())
            axes.set_ylim(0, 1.15 * top)
        axes.legend(frameon=False, fontsize=9)
    plots.save(figure, path, ("png",))
    return True
