"""Lines over density, steps, paths or any quantity."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lottery_jax.plots._canvas import (
    LINES,
    STYLES,
    density_axis,
    figure_of_axes,
    figures,
    legend,
    line_styles,
    log_ticks,
    mean_line,
)


def against_density(
    density: np.ndarray,
    values: Mapping[str, np.ndarray],
    *,
    ylabel: str,
    title: str = "",
    baseline: float | None = None,
    baseline_label: str = "dense",
) -> Any:
    """Lines over density, one per arm: mean over replicas, bars from min to max.

    Args:
      density: `[levels]`, or one row per line `[lines, levels]`, in (0, 1].
      values: per label `[replicas, levels]`; nan entries are left out. A label
        "chain: arm" gets the arm's colour and the chain's line style; where all have the
        same arm, the chains get colours.
      ylabel: with its unit.
      title: above the axes.
      baseline: a horizontal line.
      baseline_label: its legend entry.

    Returns:
      A matplotlib figure; density falls from left to right on a logarithmic axis.
    """
    figure, axes = figure_of_axes()
    density = np.broadcast_to(density, (len(values), np.shape(density)[-1]))
    parts = {label: label.rpartition(": ") for label in values}
    chains = list(dict.fromkeys(chain for chain, _, _ in parts.values()))
    one_arm = len({arm for _, _, arm in parts.values()}) == 1 < len(chains)
    styles = line_styles(list(chains if one_arm else values))
    for x, (label, y) in zip(density, values.items()):
        chain, _, _ = parts[label]
        line = LINES[chains.index(chain) % len(LINES)]
        mean_line(axes, 100 * x, y, label, styles[chain if one_arm else label], line)
    if baseline is not None:
        axes.axhline(baseline, color="#222222", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            baseline_label,
            (1, baseline),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    density_axis(axes, density)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    legend(figure, axes)
    return figure


class Panel(NamedTuple):
    """What is drawn in one of several axes beside each other.

    Attributes:
      lines: per label `[replicas, levels]`; nan entries are left out.
      levels: horizontal lines, by their labels.
    """

    lines: Mapping[str, np.ndarray]
    levels: Mapping[str, float] = {}


def panels_against_density(
    density: np.ndarray,
    panels: Mapping[str, Panel],
    *,
    ylabel: str | Sequence[str],
    title: str = "",
    shared: bool = False,
    columns: int | None = None,
    lowest: float | None = None,
) -> Any:
    """Panels of lines over density, such as one for each target, with one legend below.

    Args:
      density: `[levels]`, in (0, 1], of all lines.
      panels: by their titles; a label has the same colour in all.
      ylabel: with its unit; of all rows, or of each.
      title: above all panels.
      shared: all in one row with one vertical axis; else two in a row, each with its own.
      columns: instead of both: how many are in a row, whose vertical axis is one.
      lowest: where vertical axes begin; a mean below it is written at their foot.

    Returns:
      A matplotlib figure: means over replicas, bars from min to max.
    """

    def finish(axes: Any, name: str, colors: Mapping[str, str]) -> None:
        for label, y in panels[name].lines.items():
            if lowest is not None:
                _at_the_foot(axes, 100 * density, y, lowest, colors[label])
        density_axis(axes, density)

    figure, drawn = _panels(
        100 * density, panels, ylabel, title, shared, finish, columns
    )
    if lowest is not None:
        for axes in drawn:  # shared ones have all their lines now
            axes.set_ylim(bottom=lowest)
    return figure


def panels_against(
    x: np.ndarray,
    panels: Mapping[str, Panel],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    shared: bool = False,
    logarithmic: bool = False,
    marked: Mapping[str, Sequence[float]] | None = None,
    marked_label: str = "",
) -> Any:
    """Panels of lines over any quantity, with one legend below.

    Args:
      x: `[N]`, of all lines; all of them are ticks.
      panels: by their titles; a label has the same colour in all.
      xlabel: what lies on the horizontal axes, with its unit.
      ylabel: with its unit.
      title: above all panels.
      shared: all in one row with one vertical axis; else two in a row, each with its own.
      logarithmic: the horizontal axes.
      marked: places on the horizontal axis, of panels by name: vertical lines.
      marked_label: what they are.

    Returns:
      A matplotlib figure: means over replicas, bars from min to max.
    """

    def finish(axes: Any, name: str, colors: Mapping[str, str]) -> None:
        for i, place in enumerate((marked or {}).get(name, ())):
            label = "_" * bool(i) + marked_label
            axes.axvline(
                place, color="#999999", linewidth=0.9, linestyle=":", label=label
            )
        axes.set_xscale("log" if logarithmic else "linear")
        axes.set_xticks(x, [f"{place:.3g}" for place in x], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set_xlabel(xlabel)

    return _panels(x, panels, ylabel, title, shared, finish)[0]


def _panels(
    x: np.ndarray,
    panels: Mapping[str, Panel],
    ylabel: str | Sequence[str],
    title: str,
    shared: bool,
    finish: Callable[[Any, str, Mapping[str, str]], None],
    columns: int | None = None,
) -> tuple[Any, Sequence[Any]]:
    """Panels of lines over `x`, and their axes.

    `finish` sees each one's axes, its name and the colour of each label.
    """
    one_axis = shared or columns is not None
    if columns is None:
        columns = len(panels) if shared else min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = (max(2.8, 6.0 / columns), 3.9 if rows == 1 else 2.7)
    if not one_axis:
        size = (3.6, 2.7)
    if len(panels) == 1:
        size = (6.0, 3.9)  # however few there are, titles must fit
    figure, grid = figures(rows, columns, size, sharey="row" if one_axis else False)
    labels = [label for panel in panels.values() for label in panel.lines]
    styles = line_styles(
        list(dict.fromkeys(map(_arm, labels))), without=ARMS_OF_THEIR_OWN
    )
    colors = {label: styles[_arm(label)][0] for label in labels}
    for axes, (name, panel) in zip(grid.flat, panels.items()):
        for label, y in panel.lines.items():
            mean_line(axes, x, y, label, styles[_arm(label)])
        for i, (label, level) in enumerate(panel.levels.items()):
            line = (0, ((4, 3), (2, 2))[i % 2])
            axes.axhline(
                level, color="#222222", linewidth=0.9, linestyle=line, label=label
            )
        finish(axes, name, colors)
        axes.set_title(name, fontsize=9)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    labels = [ylabel] * rows if isinstance(ylabel, str) else list(ylabel)
    for axes, text in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(text)
    figure.suptitle(title, fontsize=10)
    named = {
        name: handle
        for axes in grid.flat
        for handle, name in zip(*axes.get_legend_handles_labels())
    }
    figure.legend(
        named.values(),
        named.keys(),
        frameon=False,
        fontsize=8,
        loc="outside lower center",
        ncols=_legend_columns(figure, list(named), 4 if columns > 1 else 3),
    )
    return figure, grid.flat[: len(panels)]


def _legend_columns(figure: Any, labels: Sequence[str], most: int) -> int:
    """How many columns of a legend are as wide as a figure, in letters of 8 points."""
    width = 0.6 + 0.065 * max(map(len, labels), default=0)  # inches, with the handle
    fits = int(figure.get_size_inches()[0] / width)
    return max(1, min(most, fits, len(labels)))


ARMS_OF_THEIR_OWN = ("random_mask", "random_ticket", "dense")
"""Arms whose colours no other line of panels has."""


def _at_the_foot(
    axes: Any, x: np.ndarray, y: np.ndarray, lowest: float, color: str
) -> None:
    """Means below the axes, as numbers at their foot."""
    for place, mean in zip(x, np.nanmean(y, axis=0)):
        if mean < lowest:
            axes.text(
                place,
                0.01,
                f"{mean:.1f} \N{DOWNWARDS ARROW}",
                transform=axes.get_xaxis_transform(),
                color=color,
                fontsize=8,
                ha="right",
            )


def _arm(label: str) -> str:
    """The arm that a label such as "reinit, at its best rate" begins with."""
    return label.partition(",")[0]


def against(
    values: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    logarithmic: tuple[bool, bool] = (False, False),
    ticks: Mapping[float, str] | None = None,
    second: tuple[str, float] | None = None,
    baseline: float | None = None,
    baseline_label: str = "",
) -> Any:
    """Lines over any quantity: mean over replicas, bars from min to max.

    Args:
      values: per label what it is drawn over, `[N]`, and the values, `[replicas, N]`; nan
        entries are left out. Means on a logarithmic axis are geometric.
      xlabel: what lies on the horizontal axis, with its unit.
      ylabel: what the values are, with their unit.
      title: above the axes.
      logarithmic: the horizontal and the vertical axis.
      ticks: what is written below which places; None for round numbers.
      second: a horizontal axis above: its label, and how many of these make one of those
        below.
      baseline: a dashed horizontal line.
      baseline_label: its legend entry.
    """
    figure, axes = figure_of_axes()
    styles = line_styles(list(values))
    for label, (x, y) in values.items():
        mean_line(axes, x, y, label, styles[label], geometric=logarithmic[1])
    if baseline is not None:
        axes.axhline(
            baseline,
            color="#222222",
            linewidth=0.8,
            linestyle=(0, (4, 3)),
            label=baseline_label,
        )
    for axis, is_log in zip("xy", logarithmic):
        getattr(axes, f"set_{axis}scale")("log" if is_log else "linear")
    if ticks is not None:
        axes.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
        axes.set_xticks([], minor=True)
    if second is not None:
        above, factor = second
        axes.secondary_xaxis(
            "top", functions=(lambda x: x * factor, lambda x: x / factor)
        ).set_xlabel(above)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    legend(figure, axes)
    return figure


def layer_densities(
    density: np.ndarray, layers: Mapping[str, np.ndarray], title: str = ""
) -> Any:
    """The density of each layer against that of the network, both in percent.

    Args:
      density: `[levels]`, in (0, 1].
      layers: per layer `[levels]`, in [0, 1]; zeros cannot be drawn and are left out.
      title: above the axes.
    """
    from matplotlib import colormaps

    figure, axes = figure_of_axes()
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for color, (name, y) in zip(colors, layers.items()):
        y = np.where(y > 0, y, np.nan)
        # With points, so that a single level is seen.
        axes.plot(100 * density, 100 * y, ".-", color=color, label=name)
    axes.plot(
        100 * density, 100 * density, color="#999999", linewidth=0.8, linestyle=":"
    )
    density_axis(axes, density)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks(*log_ticks(low, high))
    axes.set_yticks([], minor=True)
    axes.set_ylabel("weights remaining in the layer (%)")
    axes.set_title(title, fontsize=10)
    columns = 1 if len(layers) <= 8 else 2 if len(layers) <= 20 else 3
    axes.legend(frameon=False, fontsize=9 if len(layers) <= 8 else 5, ncols=columns)
    return figure


def along_path(
    alphas: np.ndarray,
    values: Mapping[str, np.ndarray],
    *,
    ylabel: str,
    title: str = "",
    ends: tuple[str, str] = ("", ""),
    reference: float | None = None,
    from_zero: bool = True,
) -> Any:
    """Lines over the position on a path: mean over samples, band of one deviation.

    Args:
      alphas: `[A]`.
      values: per label `[samples, A]`; samples with nan are left out.
      ylabel: with its unit.
      title: above the axes.
      ends: what lies at alpha = 0 and 1, below the axis.
      reference: a dashed horizontal line, such as chance.
      from_zero: whether the vertical axis reaches down to 0, as errors want it. False
        for metrics to which 0 means nothing, such as a return.
    """
    figure, axes = figure_of_axes()
    styles = line_styles(list(values))
    for i, (label, y) in enumerate(values.items()):
        y = y[np.isfinite(y).all(axis=1)]
        color, _ = styles[label]
        mean, spread = y.mean(axis=0), y.std(axis=0)
        line = LINES[i // len(STYLES) % len(LINES)]
        axes.plot(alphas, mean, line, color=color, label=label, linewidth=1.5)
        axes.fill_between(
            alphas, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0
        )
    if reference is not None:
        axes.axhline(reference, color="#222222", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlim(alphas[0], alphas[-1])
    axes.set_xlabel(r"position on the path, $\alpha$")
    for at, text in zip((0, 1), ends):
        if text:
            axes.annotate(
                text,
                (at, 0),
                xycoords=("data", "axes fraction"),
                xytext=(0, -26),
                textcoords="offset points",
                ha=("left", "right")[at],
                fontsize=8,
            )
    if from_zero:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    return figure


def against_step(
    steps: np.ndarray,
    values: Mapping[str, np.ndarray],
    *,
    ylabel: str,
    title: str = "",
    xlabel: str = "rewind step k",
    total: int | None = None,
    threshold: float | None = None,
    threshold_label: str = "",
    variants: Mapping[str, str] | None = None,
    logarithmic: bool = True,
) -> Any:
    """Lines over rewind steps: mean over samples, bars of one standard deviation.

    Args:
      steps: `[K]`, 0 or more, on a logarithmic axis that begins with 0.
      values: per label `[samples, K]`; nan entries are left out. Labels that are arms
        have their colours.
      ylabel: with its unit.
      title: above the axes.
      xlabel: what the steps are.
      total: the length of training; ticks then show the share of it, too.
      threshold: a dashed horizontal line.
      threshold_label: its name in the legend.
      variants: a label, and another that it is a variant of: it gets the other's colour
        and is dashed.
      logarithmic: whether the axis is; 0 then stands at its left end.
    """
    figure, axes = figure_of_axes()
    positive = steps[steps > 0]
    x = np.asarray(steps, float)
    # Zero stands as far left of the first step as one on the axis may.
    zero = positive.min() / 3 if len(positive) else 1.0
    x = np.where(x > 0, x, zero) if logarithmic else x
    width = x.max() - x.min() if len(x) > 1 else 1.0
    variants = variants or {}
    own = [label for label in values if label not in variants]
    styles = line_styles(own)
    for i, (label, y) in enumerate(values.items()):
        color, marker = styles[variants.get(label, label)]
        seen = np.isfinite(y).any(axis=0)
        # A little apart, so that bars do not cover each other.
        place = i - (len(values) - 1) / 2
        apart = x * 1.03**place if logarithmic else x + 0.005 * width * place
        axes.errorbar(
            apart[seen],
            np.nanmean(y[:, seen], axis=0),
            yerr=np.nanstd(y[:, seen], axis=0),
            label=label.replace("_", " "),
            color=color,
            marker=marker,
            linestyle=LINES[label in variants],
            markersize=4,
            linewidth=1.5,
            elinewidth=0.9,
            capsize=2,
        )
    if threshold is not None:
        axes.axhline(
            threshold,
            color="#222222",
            linewidth=0.8,
            linestyle=(0, (4, 3)),
            label=threshold_label,
        )
    axes.set_xscale("log" if logarithmic else "linear")
    labels = [
        f"{step}" + (f"\n{100 * step / total:.3g}%" if total and step else "")
        for step in steps.tolist()
    ]
    axes.set_xticks(x, labels, fontsize=8)
    axes.set_xticks([], minor=True)
    share = " (below: share of training)" if total else ""
    axes.set_xlabel(xlabel + share)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    return figure


def steps_against_density(
    density: np.ndarray,
    values: Mapping[str, np.ndarray],
    steps: np.ndarray,
    *,
    title: str = "",
) -> Any:
    """Rewind steps over density, such as the smallest stable and matching ones.

    Args:
      density: `[levels]`, in (0, 1].
      values: per label `[levels]`, each one of `steps`, or nan for none of them: those
        are drawn as open marks above the axis.
      steps: all that were tried, rising.
      title: above the axes.
    """
    figure, axes = figure_of_axes()
    places = {int(step): i for i, step in enumerate(steps)}
    none, styles = len(steps), line_styles(list(values))
    for i, (label, y) in enumerate(values.items()):
        color, marker = styles[label]
        height = np.array([none if np.isnan(v) else places[int(v)] for v in y], float)
        height += 0.06 * (i - (len(values) - 1) / 2)
        axes.plot(100 * density, height, color=color, linewidth=1.2, label=label)
        for x, h, v in zip(100 * density, height, y):
            face = "white" if np.isnan(v) else color
            axes.plot([x], [h], marker, color=color, markerfacecolor=face, markersize=6)
    density_axis(axes, density)
    labels = [*(str(int(step)) for step in steps), "none of these"]
    axes.set_yticks(range(none + 1), labels)
    axes.set_ylim(-0.4, none + 0.4)
    axes.set_ylabel("rewind step k")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    return figure


def histogram(
    values: Mapping[str, np.ndarray],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    marks: Mapping[str, float] | None = None,
) -> Any:
    """How often values on a logarithmic axis occur, one outline per label.

    Args:
      values: per label any number of positive ones; others are left out.
      xlabel: what they are, with their unit.
      ylabel: what is counted.
      title: above the axes.
      marks: dashed vertical lines, by what they are called.
    """
    figure, axes = figure_of_axes()
    positive = {label: y[y > 0] for label, y in values.items()}
    everything = np.concatenate(list(positive.values()))
    edges = np.geomspace(everything.min(), everything.max() * (1 + 1e-9), 61)
    styles = line_styles(list(values))
    for label, y in positive.items():
        axes.hist(
            y,
            edges,
            histtype="step",
            color=styles[label][0],
            label=label,
            linewidth=1.5,
        )
    for i, (label, x) in enumerate((marks or {}).items()):
        axes.axvline(
            x, color="#222222", linewidth=1.2, linestyle=LINES[1 + i % 3], label=label
        )
    axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure
