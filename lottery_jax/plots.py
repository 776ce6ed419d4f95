"""Figures from recorded arrays. Needs matplotlib (the extra `experiments`)."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lottery_jax import errors

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
}
"""Colour and marker of each arm, the same in every figure."""

_LINES = ("-", "--", ":", "-.")


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
    figure, axes = _figure()
    density = np.broadcast_to(density, (len(values), np.shape(density)[-1]))
    parts = {label: label.rpartition(": ") for label in values}
    chains = list(dict.fromkeys(chain for chain, _, _ in parts.values()))
    one_arm = len({arm for _, _, arm in parts.values()}) == 1 < len(chains)
    styles = _styles(list(chains if one_arm else values))
    for x, (label, y) in zip(density, values.items()):
        chain, _, _ = parts[label]
        line = _LINES[chains.index(chain) % len(_LINES)]
        _mean_line(axes, 100 * x, y, label, styles[chain if one_arm else label], line)
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
    _density_axis(axes, density)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    _names(figure, axes)
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
    ylabel: str,
    title: str = "",
    lowest: float | None = None,
) -> Any:
    """Lines over density in several panels, with the same axes and one legend below.

    Args:
      density: `[levels]`, in (0, 1], of all lines.
      panels: by their titles, all with the same labels.
      ylabel: with its unit.
      title: above all.
      lowest: where the vertical axis begins; a mean below it is written at its foot.

    Returns:
      A matplotlib figure: means over replicas, bars from min to max.
    """
    figure, row = _row(len(panels), 3.6)
    for axes, (name, panel) in zip(row, panels.items()):
        styles = _styles([_arm(label) for label in panel.lines])
        for label, y in panel.lines.items():
            _mean_line(axes, 100 * density, y, label, styles[_arm(label)])
            for x, mean in zip(100 * density, np.nanmean(y, axis=0)):
                if lowest is not None and mean < lowest:
                    color, foot = styles[_arm(label)][0], axes.get_xaxis_transform()
                    axes.text(
                        x,
                        0.01,
                        f"{mean:.1f} \N{DOWNWARDS ARROW}",
                        transform=foot,
                        color=color,
                        fontsize=8,
                        ha="right",
                    )
        axes.set_ylim(bottom=lowest)
        for i, (label, level) in enumerate(panel.levels.items()):
            line = (0, ((2, 2), (6, 2))[i % 2])
            axes.axhline(
                level, color="#222222", linewidth=0.9, linestyle=line, label=label
            )
        _density_axis(axes, density)
        axes.set_title(name, fontsize=9)
    row[0].set_ylabel(ylabel)
    figure.suptitle(title, fontsize=10)
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        frameon=False,
        fontsize=8,
        loc="outside lower center",
        ncols=3,
    )
    return figure


def _arm(label: str) -> str:
    """The arm that a label such as "reinit, at its best rate" begins with."""
    return label.partition(",")[0]


ANSWERS: Mapping[str, str] = {
    "yes": "#8fc7a0",
    "no": "#e8a28c",
    "undecided": "#e6e6e6",
    "jackpot": "#3f9a5b",
    "secondary prize": "#f0d080",
    "none": "#e8a28c",
}
"""Colours of answers to claims."""


def answers(
    grids: Mapping[str, Mapping[str, Sequence[str]]],
    columns: Sequence[str],
    *,
    xlabel: str,
    title: str = "",
) -> Any:
    """Answers as tables beside each other: a row for each claim, coloured and in words.

    Args:
      grids: by their titles; per claim an answer for each column: one of `ANSWERS` gets
        its colour, anything else none. All have the same claims.
      columns: what the answers are given for.
      xlabel: what these are.
      title: above all.

    Raises:
      ValueError: another number of answers than of columns; names the claim.
    """
    figure, row = _row(len(grids), 0.5 + 0.42 * max(map(len, grids.values())))
    for axes, (name, grid) in zip(row, grids.items()):
        for place, (claim, given) in enumerate(grid.items()):
            if len(given) != len(columns):
                must = f"{len(columns)} answers, one for each column"
                raise errors.wrong(f"grids[{name!r}][{claim!r}]", list(given), must)
            for at, answer in enumerate(given):
                color = ANSWERS.get(answer, "#ffffff")
                axes.barh(place, 0.96, 0.92, at - 0.48, color=color)
                words = answer.replace(" ", "\n")
                axes.text(at, place, words, ha="center", va="center", fontsize=7)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(grid) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), columns, fontsize=8)
        axes.set_yticks(range(len(grid)), list(grid), fontsize=8)
        axes.set_xlabel(xlabel)
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


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
    figure, axes = _figure()
    styles = _styles(list(values))
    for label, (x, y) in values.items():
        _mean_line(axes, x, y, label, styles[label], geometric=logarithmic[1])
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
    _names(figure, axes)
    return figure


def by_name(
    values: Mapping[str, np.ndarray],
    *,
    label: str,
    title: str = "",
    reference: float | None = None,
    reference_label: str = "",
) -> Any:
    """Points in a row for each name, such as the columns of a paper's table.

    Args:
      values: per name `[replicas]`; nan entries are left out. The first name is at the
        top.
      label: of the values, with their unit.
      title: above the axes.
      reference: a dashed vertical line, such as chance.
      reference_label: what it is.

    Returns:
      A matplotlib figure: every replica, and bars of the mean from min to max, with the
      mean as a number.
    """
    figure, axes = _figure()
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    color = STYLES["ticket"][0]
    for place, y in enumerate(values.values()):
        y = np.asarray(y, float)[np.isfinite(y)]
        if not y.size:
            continue
        mean = y.mean()
        axes.errorbar(
            mean,
            place,
            xerr=[[mean - y.min()], [y.max() - mean]],
            color=color,
            marker="o",
            markersize=5,
            elinewidth=1.2,
            capsize=3,
        )
        axes.plot(y, np.full(len(y), place), ".", color="#777777", markersize=3)
        axes.annotate(
            f"{mean:.1f}",
            (mean, place),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(values)), [name.replace("_", " ") for name in values])
    axes.set_ylim(len(values) - 0.5, -0.7)
    if reference is not None:
        axes.axvline(reference, color="#222222", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            reference_label,
            (reference, 0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10)
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

    figure, axes = _figure()
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    for color, (name, y) in zip(colors, layers.items()):
        y = np.where(y > 0, y, np.nan)
        # With points, so that a single level is seen.
        axes.plot(100 * density, 100 * y, ".-", color=color, label=name)
    axes.plot(
        100 * density, 100 * density, color="#999999", linewidth=0.8, linestyle=":"
    )
    _density_axis(axes, density)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks(*_ticks(low, high))
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
    figure, axes = _figure()
    styles = _styles(list(values))
    for i, (label, y) in enumerate(values.items()):
        y = y[np.isfinite(y).all(axis=1)]
        color, _ = styles[label]
        mean, spread = y.mean(axis=0), y.std(axis=0)
        line = _LINES[i // len(STYLES) % len(_LINES)]
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
    figure, axes = _figure()
    positive = steps[steps > 0]
    x = np.asarray(steps, float)
    # Zero stands as far left of the first step as one on the axis may.
    zero = positive.min() / 3 if len(positive) else 1.0
    x = np.where(x > 0, x, zero) if logarithmic else x
    width = x.max() - x.min() if len(x) > 1 else 1.0
    variants = variants or {}
    own = [label for label in values if label not in variants]
    styles = _styles(own)
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
            linestyle=_LINES[label in variants],
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


def loss_plane(
    x: np.ndarray,
    y: np.ndarray,
    values: np.ndarray,
    networks: np.ndarray,
    *,
    label: str,
    names: Sequence[str] = ("a", "b", "c"),
    title: str = "",
    better: str = "lower",
) -> Any:
    """Filled contours of a plane through three networks; better values are brighter.

    Args:
      x: coordinates `[X]`, in units of L2 distance between weights.
      y: coordinates `[Y]`.
      values: `[Y, X]`.
      networks: where the three lie, `[3, 2]`.
      label: of the values, with their unit.
      names: of the three networks.
      title: above the axes.
      better: whether "lower" or "higher" values are better.

    Raises:
      ValueError: `better` is neither.
    """
    if better not in ("lower", "higher"):
        raise ValueError(f"better={better!r}; it must be one of lower, higher")
    figure, axes = _figure()
    axes.grid(False)
    colors = "viridis_r" if better == "lower" else "viridis"
    filled = axes.contourf(x, y, values, levels=20, cmap=colors)
    figure.colorbar(filled, ax=axes, label=label)
    for name, (at_x, at_y) in zip(names, networks):
        axes.plot(at_x, at_y, "o", color="white", markeredgecolor="#222222")
        axes.annotate(name, (at_x, at_y), xytext=(6, 6), textcoords="offset points")
    axes.set_xlabel("distance in weight space (L2)")
    axes.set_ylabel("distance in weight space (L2)")
    axes.set_title(title, fontsize=10)
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
    figure, axes = _figure()
    places = {int(step): i for i, step in enumerate(steps)}
    none, styles = len(steps), _styles(list(values))
    for i, (label, y) in enumerate(values.items()):
        color, marker = styles[label]
        height = np.array([none if np.isnan(v) else places[int(v)] for v in y], float)
        height += 0.06 * (i - (len(values) - 1) / 2)
        axes.plot(100 * density, height, color=color, linewidth=1.2, label=label)
        for x, h, v in zip(100 * density, height, y):
            face = "white" if np.isnan(v) else color
            axes.plot([x], [h], marker, color=color, markerfacecolor=face, markersize=6)
    _density_axis(axes, density)
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
    figure, axes = _figure()
    positive = {label: y[y > 0] for label, y in values.items()}
    everything = np.concatenate(list(positive.values()))
    edges = np.geomspace(everything.min(), everything.max() * (1 + 1e-9), 61)
    styles = _styles(list(values))
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
            x, color="#222222", linewidth=1.2, linestyle=_LINES[1 + i % 3], label=label
        )
    axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


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
        mask = np.asarray(mask, bool)
        picture, lines = _mask_picture(mask)
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
        shape = "x".join(map(str, mask.shape))
        share = 100 * mask.mean() if mask.size else 0.0
        axes.set_title(f"{name}\n{shape}, {share:.3g}% survive", fontsize=7)
        axes.set_xlabel("inputs", fontsize=7)
        axes.set_ylabel("units", fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def _mask_picture(mask: np.ndarray) -> tuple[np.ndarray, bool]:
    """The share that survives at each place `[units, inputs]`; whether it has lines."""
    if mask.ndim > 2:
        *kernel, inputs, units = mask.shape
        height, width = (int(np.prod(kernel[:-1])), kernel[-1])
        tiles = mask.reshape(height, width, inputs, units).transpose(3, 0, 2, 1)
        shape = units * (height + 1) - 1, inputs * (width + 1) - 1
        if max(shape) <= _PIXELS and height * width > 1:
            lined = np.full((units, height + 1, inputs, width + 1), np.nan)
            lined[:, :height, :, :width] = tiles
            picture = lined.reshape(units * (height + 1), inputs * (width + 1))
            return picture[:-1, :-1], True
        return _binned(tiles.mean(axis=(1, 3))), False
    matrix = mask.reshape(-1, mask.shape[-1]) if mask.ndim else mask.reshape(1, 1)
    return _binned(matrix.T.astype(float)), False


def _aspect(picture: np.ndarray) -> str:
    """Places are squares, unless the picture would be a line."""
    height, width = picture.shape
    return "equal" if 1 / 3 < height / width < 3 else "auto"


def _binned(picture: np.ndarray) -> np.ndarray:
    """Means of equal blocks, so that no side has more than `_PIXELS` places."""
    for axis in (0, 1):
        size = picture.shape[axis]
        step = -(-size // _PIXELS)
        if step > 1:
            first = np.arange(0, size, step)
            count = np.diff(np.append(first, size))
            total = np.add.reduceat(picture, first, axis=axis)
            picture = total / np.expand_dims(count, 1 - axis)
    return picture


def receptive_fields(
    mask: np.ndarray,
    shape: tuple[int, ...],
    *,
    weights: np.ndarray | None = None,
    number: int = 24,
    title: str = "",
) -> Any:
    """What the units of a first layer look at, as pictures of the input.

    Beside them, how many weights survive at each place: on digits, which lie in the middle,
    few of them at the rim.

    Args:
      mask: bool `[inputs, units]`; a convolution's kernels are inputs of the shape of one.
      shape: of an input, `[height, width]`, with channels or without, or `[length]`; their
        product is the number of inputs. Channels are summed.
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
    if mask.ndim != 2 or mask.shape[0] != int(np.prod(shape)) or len(shape) > 3:
        must = f"the shape of {mask.shape[0]} inputs, one to three numbers"
        raise errors.wrong("shape", shape, must)
    if weights is not None and np.shape(weights) != mask.shape:
        raise errors.wrong("weights.shape", np.shape(weights), f"{mask.shape}")
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
    pyplot = _pyplot()
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
def panels_against_density(
    density: np.ndarray,
    values: Mapping[str, Mapping[str, np.ndarray]],
    *,
    ylabel: str,
    title: str = "",
    baselines: Mapping[str, float] | None = None,
    baseline_label: str = "dense",
) -> Any:
    """Panels of lines over density, such as one for each target, with one legend.

    Args:
      density: `[levels]`, in (0, 1].
      values: per panel and label `[replicas, levels]`; nan entries are left out. A label
        has the same colour in all panels.
      ylabel: with its unit.
      title: above all panels.
      baselines: a dashed horizontal line in panels, by their names.
      baseline_label: its legend entry.

    Returns:
      A matplotlib figure, two panels in a row, each with a vertical axis of its own.
    """
    columns = min(2, len(values))
    size = (3.6, 2.7) if columns > 1 else (5.8, 3.4)
    figure, grid = _grid(-(-len(values) // columns), columns, size)
    labels = list(dict.fromkeys(label for own in values.values() for label in own))
    styles = _styles(labels, without=("random_mask", "random_ticket", "dense"))
    for axes, (panel, own) in zip(grid.flat, values.items()):
        for label, y in own.items():
            _mean_line(axes, 100 * density, y, label, styles[label])
        if panel in (baselines or {}):
            axes.axhline(
                (baselines or {})[panel],
                color="#222222",
                linewidth=0.8,
                linestyle=(0, (4, 3)),
                label=baseline_label,
            )
        _density_axis(axes, density)
        axes.set_title(panel, fontsize=9)
    for axes in grid.flat[len(values) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
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
        ncols=min(2 * columns, len(named)),
    )
    return figure


def matrices(
    values: Mapping[str, np.ndarray],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    marked: Mapping[str, np.ndarray] | None = None,
) -> Any:
    """Maps of differences side by side, with the numbers in their cells.

    Args:
      values: per panel `[rows, columns]`; nan is left white. All share one scale of
        colours, red below 0 and blue above.
      rows: their names, from the top.
      columns: their names.
      label: of the values, with their unit.
      xlabel: what the columns are.
      ylabel: what the rows are.
      title: above all panels.
      marked: cells with a star and bold numbers, bool, of panels by name.

    Returns:
      A matplotlib figure.
    """
    # However few there are, titles and the scale must fit.
    width = max(1.0 + 0.55 * len(columns), 7.0 / len(values))
    height = max(1.6 + 0.42 * len(rows), 2.6)
    figure, grid = _grid(1, len(values), (width, height))
    finite = np.abs(np.concatenate([np.ravel(x) for x in values.values()]))
    finite = finite[np.isfinite(finite)]
    most = max(float(finite.max()) if finite.size else 0.0, 1e-12)
    for axes, (panel, found) in zip(grid.flat, values.items()):
        axes.grid(False)
        shown = axes.imshow(found, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
        stars = (marked or {}).get(panel, np.zeros(np.shape(found), bool))
        for i, j in np.argwhere(np.isfinite(found)):
            dark = abs(found[i, j]) > 0.6 * most
            axes.text(
                j,
                i,
                f"{found[i, j]:+.1f}" + "*" * bool(stars[i, j]),
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold" if stars[i, j] else "normal",
                color="white" if dark else "#222222",
            )
        names = [name.replace("_", " ") for name in columns]
        axes.set_xticks(range(len(columns)), names, rotation=35, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), [], fontsize=8)
        axes.set_title(panel, fontsize=9)
        axes.set_xlabel(xlabel)
    grid[0, 0].set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    grid[0, 0].set_ylabel(ylabel)
    figure.colorbar(shown, ax=list(grid.flat)).set_label(label, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


CAPTION_SIZE = 7
"""Size of the text below a figure, in points."""


def caption(figure: Any, lines: Sequence[str]) -> Any:
    """Writes text below a figure; `save` makes the page as much longer.

    What is drawn keeps its place and size, so nothing can overlap the text.

    Args:
      figure: from any function here, or another of matplotlib's.
      lines: of text, each broken where it would be wider than the figure; what follows
        is set in. None of them: nothing is written.

    Returns:
      The figure.
    """
    if not lines:
        return figure
    points = 72 * figure.get_figwidth()
    left = 0.02
    broken = [part for line in lines for part in _broken(line, points * (0.94 - left))]
    text = figure.text(left, 0, "\n".join(broken), va="top", fontsize=CAPTION_SIZE)
    text.set_parse_math(False)
    return figure


def _broken(line: str, width: float) -> list[str]:
    """A line in parts no wider than so many points, where its words allow it."""
    from matplotlib.textpath import TextPath

    def wide(text: str) -> float:
        # Ends that are measured: a path has no extent where there is only a blank.
        return TextPath((0, 0), f"{text}|", size=CAPTION_SIZE).get_extents().width

    parts, indent = [""], "    "
    for word in line.split():
        longer = f"{parts[-1]} {word}" if parts[-1].strip() else f"{parts[-1]}{word}"
        if parts[-1].strip() and wide(longer) > width:
            longer = indent + word
            parts.append("")
        parts[-1] = longer
    return parts


def save(
    figure: Any, path: pathlib.Path, formats: Sequence[str] = ("png", "svg")
) -> None:
    """Writes a figure in several formats beside each other and closes it.

    Text below the figure, from `caption`, belongs to it.

    Raises:
      ValueError: the path is an address.
      OSError: a file cannot be written; names it.
    """
    from matplotlib import pyplot

    path = errors.on_disk("path", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        page = _page(figure)
        for suffix in formats:
            # No date in the file: the same figure makes the same bytes.
            metadata = {"Date": None} if suffix == "svg" else None
            target = path.with_suffix(f".{suffix}")
            figure.savefig(target, dpi=150, metadata=metadata, bbox_inches=page)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write {target}: {reason}") from error
    finally:
        pyplot.close(figure)


def _page(figure: Any) -> Any:
    """What is written of a figure, in inches: all of it, with the text below; or None."""
    from matplotlib.transforms import Bbox

    page = figure.bbox_inches
    boxes = [text.get_window_extent() for text in figure.texts]
    bottom = min((box.y0 / figure.dpi for box in boxes), default=0.0)
    if bottom >= page.y0:
        return None
    # A legend outside of the axes would go to the lower end of what is written.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, 0, 1, 1), transform=figure.transFigure)
    return Bbox.from_extents(page.x0, bottom - 0.08, page.x1, page.y1)


def _figure() -> tuple[Any, Any]:
    """A figure with axes."""
    figure, grid = _grid(1, 1, (6.0, 3.8))
    return figure, grid[0, 0]


def _grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure with axes `[rows, columns]`, and the size of one of them in inches."""
    figure, grid = _pyplot().subplots(
        rows,
        columns,
        figsize=(columns * size[0], rows * size[1]),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    return figure, grid


def _pyplot() -> Any:
    """matplotlib's, without a screen."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError(
            "figures need matplotlib: pip install 'lottery-jax[experiments]'"
        ) from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lottery_jax"
    from matplotlib import pyplot

    return pyplot


def _row(number: int, height: float) -> tuple[Any, Any]:
    """A figure of axes beside each other that share their vertical one."""
    figure, axes = _figure()
    figure.set_size_inches(max(6.0, 1.2 + 2.8 * number), height + 0.6)
    axes.remove()
    row = figure.subplots(1, number, sharey=True, squeeze=False)[0]
    for own in row:
        own.spines[["top", "right"]].set_visible(False)
        own.grid(axis="y", color="#dddddd", linewidth=0.6)
    return figure, row


def _mean_line(
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


def _names(figure: Any, axes: Any) -> None:
    """The legend; below the axes where many lines leave no room for their names."""
    names = axes.get_legend_handles_labels()[1]
    if len(names) > 4:
        columns = 3 if max(map(len, names)) <= 30 else 2
        place = "outside lower center"
        figure.legend(frameon=False, fontsize=8, loc=place, ncols=columns)
    else:
        axes.legend(frameon=False, fontsize=9)


def _styles(
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


def _density_axis(axes: Any, density: np.ndarray) -> None:
    axes.set_xscale("log")
    high, low = 100 * np.max(density), 100 * np.min(density)
    axes.set_xlim(high * 1.08, low / 1.08)
    axes.set_xticks(*_ticks(low / 1.08, high * 1.08))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("weights remaining (%)")


def _ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round numbers on a logarithmic axis of percent, and their labels."""
    rounds = [a * 10.0**b for b in range(-4, 3) for a in (1, 2, 5)]
    inside = [tick for tick in rounds if low <= tick <= high]
    if len(inside) < 2:  # the axis is short: whatever numbers lie at its quarters
        inside = [low ** (1 - t) * high**t for t in (0.25, 0.5, 0.75)]
    return inside, [f"{tick:.3g}" for tick in inside]
