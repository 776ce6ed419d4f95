"""Maps and tables: planes, differences, answers, values by their names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lottery_jax import errors
from lottery_jax.plots._canvas import STYLES, figure_of_axes, figures


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
    figure, axes = figure_of_axes()
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
    height = 1.1 + 0.42 * max(map(len, grids.values()))
    width = max(2.8 + 1.2 / len(grids), 6.0 / len(grids))
    figure, (row,) = figures(1, len(grids), (width, height), sharey=True)
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
    figure, grid = figures(1, len(values), (width, height))
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


def heat_maps(
    at: np.ndarray,
    values: Mapping[str, np.ndarray],
    *,
    label: str,
    axis: str,
    title: str = "",
    marked: Mapping[str, Sequence[float]] | None = None,
) -> Any:
    """Square maps side by side, such as how far each of many masks is from each other.

    Args:
      at: where rows and columns lie, `[N]`, evenly spaced.
      values: per panel `[N, N]`, 0 or more; nan is left white. All share one scale of
        colours, from light at 0 to dark.
      label: of the values, with their unit.
      axis: what both axes are, with their unit.
      title: above all panels.
      marked: places of `at`, of panels by name: dashed lines across and down.

    Returns:
      A matplotlib figure; rows count from the top.
    """
    columns = min(3, len(values))
    width = 3.0 if columns > 1 else 4.5
    figure, grid = figures(-(-len(values) // columns), columns, (width, 1.15 * width))
    finite = np.concatenate([np.ravel(x) for x in values.values()])
    finite = finite[np.isfinite(finite)]
    most = max(float(finite.max()) if finite.size else 0.0, 1e-12)
    half = (at[1] - at[0]) / 2 if len(at) > 1 else 0.5
    edges = (at[0] - half, at[-1] + half, at[-1] + half, at[0] - half)
    for axes, (panel, found) in zip(grid.flat, values.items()):
        axes.grid(False)
        shown = axes.imshow(
            found, cmap="viridis_r", vmin=0, vmax=most, extent=edges, aspect="equal"
        )
        for place in (marked or {}).get(panel, ()):
            for line in (axes.axvline, axes.axhline):
                line(place, color="#d1603d", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_title(panel, fontsize=9)
        axes.set_xlabel(axis, fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel(axis, fontsize=9)
    for axes in grid.flat[len(values) :]:
        axes.set_axis_off()
    figure.colorbar(shown, ax=list(grid.flat), shrink=0.9).set_label(label, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def overlaps(
    iou: Mapping[str, np.ndarray],
    chance: Mapping[str, np.ndarray],
    *,
    names: Sequence[str],
    title: str = "",
) -> Any:
    """How much masks have in common, a map for each layer, and by chance in small.

    The arguments are what `lottery_jax.masks.overlaps` returns. Up to eight masks, numbers
    stand in the cells: intersection over union in percent, and below it what independent
    masks of the same densities would have. Colours are how far the one lies above the other,
    on one scale of ten points or more for all maps: white is chance.

    Args:
      iou: per layer `[N, N]`, in [0, 1].
      chance: likewise.
      names: of the masks.
      title: above all.

    Returns:
      A matplotlib figure; the diagonal, on which masks meet themselves, is grey.

    Raises:
      ValueError: other layers by chance than without, or a matrix that is not as large as
        there are names.
    """
    if set(iou) != set(chance) or not iou:
        raise errors.wrong("chance", list(chance), f"matrices of {list(iou)}, some")
    number = len(names)
    for field, matrices_ in (("iou", iou), ("chance", chance)):
        for layer, matrix in matrices_.items():
            if np.shape(matrix) != (number, number):
                must = f"{(number, number)}, a row for each of the names"
                raise errors.wrong(f"{field}[{layer!r}].shape", np.shape(matrix), must)
    same = np.eye(number, dtype=bool)
    above = {n: np.where(same, np.nan, x - chance[n]) for n, x in iou.items()}
    apart = np.abs(np.concatenate([x[~same] for x in above.values()]))
    # Of few weights, a few points are noise: no strong colours for them.
    most = 100 * max(float(apart.max(initial=0.0)), 0.1)
    columns = min(4, len(iou))
    width = max(1.3 + 0.5 * number, 2.4)
    figure, grid = figures(-(-len(iou) // columns), columns, (width, width))
    for axes in grid.flat[len(iou) :]:
        axes.set_axis_off()
    for axes, (layer, found) in zip(grid.flat, above.items()):
        axes.grid(False)
        axes.set_facecolor("#e4e4e4")
        shown = axes.imshow(100 * found, cmap="RdBu", vmin=-most, vmax=most)
        for i, j in np.argwhere(~same) if number <= 8 else ():
            dark = abs(100 * found[i, j]) > 0.6 * most
            color = "white" if dark else "#222222"
            for text, size, lift in (
                (f"{100 * iou[layer][i, j]:.0f}", 8, -0.12),
                (f"({100 * chance[layer][i, j]:.0f})", 6, 0.26),
            ):
                place = j, i + lift
                axes.text(
                    *place, text, ha="center", va="center", fontsize=size, color=color
                )
        axes.set_xticks(range(number), names, rotation=35, ha="right", fontsize=7)
        axes.set_yticks(range(number), names, fontsize=7)
        axes.set_title(layer, fontsize=9)
    bar = figure.colorbar(shown, ax=list(grid.flat), shrink=0.8)
    bar.set_label("points above chance", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    note = "intersection over union (%), by chance in brackets"
    figure.suptitle(f"{title}\n{note}" if title else note, fontsize=9)
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
    figure, axes = figure_of_axes()
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
