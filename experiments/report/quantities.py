"""What of results can be drawn: every number with its axes, without its replicas.

Nothing is known of an experiment but the names of its axes and variables, so whatever is
recorded is shown.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments import metrics, pictures
from lottery_jax.verdicts import METRICS

if TYPE_CHECKING:
    import xarray as xr

SAMPLES = ("replica", "pair", "branch", "example")
"""Axes of what was repeated: means are over them, with the least and the greatest."""

_ACROSS = ("alpha", "step", "epoch", "point", "level", "density", "rewind_step")
"""Axes that lie horizontally, the first one that there is."""

_LINES = (
    *("arm", "method", "check", "finder", "procedure", "criterion", "cure", "chain"),
    *("source", "comparison", "rewind_step"),
)
"""Axes with a line for each place, the first one that there is."""

_SHARES = ("density", "diverged", "disagreement", "commonest_answer", "overlap")

_DIFFERENCES = ("lii", "barrier")
"""Words for how much higher a value of a metric lies than another."""

_DISTANCES = ("single_error", "subset_error", "golden_error", "weight_error")
"""Errors of weights, which are no shares of examples."""

_OF_DIVERGED = ("first_nan",)
"""What only a network that diverged has."""


class Axis(NamedTuple):
    """A named axis of a quantity.

    Attributes:
      name: of the dimension.
      title: as it is written.
      labels: what its places are called.
      values: where they lie, as numbers; None where they have names alone.
      scale: "linear", "log" or "symlog".
      falling: whether it falls from left to right.
      start: the place that is shown first, where only one is.
    """

    name: str
    title: str
    labels: list[str]
    values: list[float] | None
    scale: str = "linear"
    falling: bool = False
    start: int = 0


class Quantity(NamedTuple):
    """A recorded number at every place of its axes.

    Attributes:
      name: of the variable.
      title: with its unit.
      axes: in the order of the arrays; none is that of `SAMPLES`.
      mean: over replicas that did not diverge, flat in C order; None where all did.
      low: the least of them.
      high: the greatest of them.
      n: how many they are.
      density: in percent at each place, where a level has one; else None.
      across: the axis that lies horizontally at first; "density" for that array.
      lines: the axis with a line for each place at first, or "".
      thinned: what is left out of long axes, in words; or "".
    """

    name: str
    title: str
    axes: list[Axis]
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]
    n: list[int]
    density: list[float | None] | None
    across: str
    lines: str
    thinned: str


def found(
    results: "xr.Dataset", places: int = 60_000, compared: str = ""
) -> list[Quantity]:
    """All that has an axis to be drawn over, what networks are compared by first.

    One of which no replica has a value is among them.

    Args:
      results: of any experiment.
      places: the most of all quantities together; longer axes are thinned out.
      compared: the metric that networks are compared by, where that is known.
    """
    names = [name for name in _numeric(results) if _own_axes(results, name)]
    each = max(64, min(4_000, places // max(len(names), 1)))
    every = [quantity(results, name, each, compared) for name in names]

    def rank(one: Quantity) -> tuple[Any, ...]:
        return not any(one.n), *_rank(results, one.name, compared)

    return sorted(every, key=rank)


class Number(NamedTuple):
    """A recorded number that has no axis but those of `SAMPLES`.

    Attributes:
      title: with its unit.
      mean: over replicas; None where all diverged.
      low: the least.
      high: the greatest.
      n: how many they are.
    """

    title: str
    mean: float | None
    low: float | None
    high: float | None
    n: int


def numbers(results: "xr.Dataset", compared: str = "") -> list[Number]:
    """What has no axis to be drawn over.

    Args:
      results: of any experiment.
      compared: the metric that networks are compared by, where that is known.
    """
    rows = []
    for name in _numeric(results):
        if _own_axes(results, name):
            continue
        shown = how_shown(name, compared)
        values = shown.of(_kept(results, name).values.astype(float)).reshape(-1)
        values, title = values[np.isfinite(values)], _title(name, shown)
        if values.size:
            mean, low, high = (float(f(values)) for f in (np.mean, np.min, np.max))
            rows.append(Number(title, mean, low, high, len(values)))
        else:
            rows.append(Number(title, None, None, None, 0))
    return rows


def quantity(
    results: "xr.Dataset", name: str, places: int, compared: str = ""
) -> Quantity:
    """A variable, ready to be drawn.

    Args:
      results: that hold it.
      name: its name.
      places: the most that are kept.
      compared: the metric that networks are compared by, where that is known.
    """
    kept, shown = _kept(results, name), how_shown(name, compared)
    kept, thinned = _thinned(kept, places)
    dims = [str(dim) for dim in kept.dims if dim not in SAMPLES]
    samples = [dim for dim in kept.dims if dim in SAMPLES]
    values = shown.of(kept.transpose(*dims, *samples).values.astype(float))
    values = values.reshape(*(kept.sizes[dim] for dim in dims), -1)
    seen = np.isfinite(values)
    n = seen.sum(axis=-1)
    some = np.maximum(n, 1)
    mean = np.where(n > 0, np.where(seen, values, 0).sum(axis=-1) / some, np.nan)
    low = np.where(seen, values, np.inf).min(axis=-1)
    high = np.where(seen, values, -np.inf).max(axis=-1)
    axes = [axis(kept, dim) for dim in dims]
    density = _density(results, kept, dims, name)
    # Where there is no network there is no density: controls of level 0.
    if density is not None and not (density[n > 0] > 0).all():
        density = None
    across = _across(kept, axes, density is not None)
    taken = {across, _level_of(dims) if across == "density" else across}
    return Quantity(
        name,
        _title(name, shown),
        axes,
        _plain(mean),
        _plain(low),
        _plain(high),
        n.reshape(-1).tolist(),
        None if density is None else _plain(100 * density),
        across,
        _lines([one for one in axes if one.name not in taken]),
        thinned,
    )


def how_shown(name: str, compared: str = "") -> metrics.Shown:
    """How the values of a variable are written: errors and shares in percent.

    Args:
      name: of the variable.
      compared: the metric that networks are compared by; a difference that names none is
        of that one, and is written as it is stored where it is not known.
    """
    padded = f"_{name}_"
    bare = metrics.Shown(name, "", lambda x: x)
    if name in _DISTANCES:
        return bare
    apart = any(f"_{word}_" in padded for word in _DIFFERENCES)
    of = metrics.difference if apart else metrics.level
    for metric in sorted(METRICS.values(), key=lambda one: -len(one.name)):
        if f"_{metric.name}_" in padded:
            return of(metric)
    if apart:
        return of(METRICS[compared]) if compared in METRICS else bare
    if any(f"_{share}_" in padded for share in _SHARES):
        return metrics.Shown(name, "%", lambda x: 100 * x)
    return bare


def axis(values: "xr.DataArray", dim: str) -> Axis:
    """An axis of a variable, by its coordinate or by position."""
    title, size = dim.replace("_", " "), values.sizes[dim]
    places = values[dim].values if dim in values.coords else np.arange(size)
    if places.dtype.kind not in "iuf":
        labels = [_label(place) for place in places.tolist()]
        start = labels.index("test") if "test" in labels else 0
        return Axis(dim, title, labels, None, start=start)
    if dim == "density":
        places, title = 100 * places, "weights remaining (%)"
    labels = _numbers_in_words(places)
    last = 0 if dim in ("batch_norm", "x", "y") else size - 1
    numbers = places.astype(float)
    if not np.isfinite(numbers).all():
        return Axis(dim, title, labels, None)
    scale = _scale(dim, numbers)
    return Axis(dim, title, labels, numbers.tolist(), scale, dim == "density", last)


def _numbers_in_words(places: np.ndarray) -> list[str]:
    """As short as they can be and still differ: the script finds places by them."""
    if places.dtype.kind in "iu":
        return [str(place) for place in places.tolist()]
    own = places.tolist()
    for digits in (4, 6, 9):
        labels = [f"{place:.{digits}g}" for place in own]
        if len(set(labels)) == len(set(own)):
            return labels
    return [repr(place) for place in own]


def _label(place: Any) -> str:
    """A name in words; a key path as it is."""
    name = str(place)
    return name if "/" in name else name.replace("_", " ")


def _scale(dim: str, places: np.ndarray) -> str:
    """Logarithmic where places lie decades apart, or are densities."""
    above = places[places > 0]
    if places.min() < 0 or not above.size:
        return "linear"
    apart = above.max() / above.min()
    if dim == "density" and places.min() > 0:
        return "log"
    uneven = len(above) > 2 and np.ptp(np.diff(above)) > 1e-3 * above.max()
    if apart < 8 or not uneven:
        return "linear"
    return "log" if places.min() > 0 else "symlog"


# --- one variable ---------------------------------------------------------------------


def _numeric(results: "xr.Dataset") -> list[str]:
    """The variables that hold numbers, but those that are pictures."""
    return [
        str(name)
        for name, own in results.data_vars.items()
        if own.dtype.kind in "iufb" and own.size and name not in pictures.NAMES
    ]


def _own_axes(results: "xr.Dataset", name: str) -> list[str]:
    """The axes of a variable that are not of repetitions, with more than one place."""
    own = results[name]
    return [str(d) for d in own.dims if d not in SAMPLES and own.sizes[d] > 1]


def _kept(results: "xr.Dataset", name: str) -> "xr.DataArray":
    """A variable without what diverged, and without axes of a single place."""
    own = results[name]
    gone = _companion(results, name, "diverged", own.dims)
    if gone is not None and not name.endswith(_OF_DIVERGED):
        own = own.copy(data=np.where(_spread(gone, own) == 0, own.values, np.nan))
    single = [d for d in own.dims if d not in SAMPLES and own.sizes[d] == 1]
    return own.isel(dict.fromkeys(single, 0), drop=True)


def _spread(own: "xr.DataArray", over: "xr.DataArray") -> np.ndarray:
    """An array over some of another's axes, repeated over all of them."""
    ordered = own.transpose(*(d for d in over.dims if d in own.dims)).values
    shape = [over.sizes[d] if d in own.dims else 1 for d in over.dims]
    return np.broadcast_to(ordered.reshape(shape), over.shape)


def _companion(
    results: "xr.Dataset", name: str, of: str, dims: Sequence[Any]
) -> "xr.DataArray | None":
    """What is recorded beside a variable: of "dense_error" "dense_diverged", say."""
    words = name.split("_")
    prefixes = ["_".join(words[:i]) + "_" for i in range(len(words) - 1, 0, -1)]
    for prefix in [*prefixes, ""]:
        beside = f"{prefix}{of}"
        if beside == name or beside not in results.data_vars:
            continue  # `get` would look for names that are like it
        if set(results[beside].dims) <= set(dims):
            return results[beside]
    return None


def _density(
    results: "xr.Dataset", kept: "xr.DataArray", dims: list[str], name: str
) -> np.ndarray | None:
    """The density at each place, `[...]` as `dims`; None where no level has one."""
    if (level := _level_of(dims)) is None or "density" in dims:
        return None
    whole, named = results[name].dims, level.replace("level", "density")
    own = _companion(results, name, "density", whole)
    if own is None and named in results.data_vars:
        own = results[named]
    if own is None or level not in own.dims or not set(own.dims) <= set(whole):
        return None
    own = own.mean([d for d in own.dims if d not in dims])
    if level in kept.coords and level in own.coords:  # some may be thinned out
        own = own.sel({level: kept[level].values})
    over = kept.isel({d: 0 for d in kept.dims if d not in dims}).transpose(*dims)
    if any(own.sizes[d] != over.sizes[d] for d in own.dims):
        return None
    return _spread(own, over)


def _level_of(dims: Sequence[str]) -> str | None:
    """The axis of levels, if there is one."""
    return next((d for d in dims if d == "level" or d.endswith("_level")), None)


def _across(kept: "xr.DataArray", axes: Sequence[Axis], dense: bool) -> str:
    """The axis that lies horizontally at first."""
    names = [one.name for one in axes]
    for name in _ACROSS:
        if name in names:
            return "density" if name == "level" and dense else name
    if dense:
        return "density"
    ordered = [one for one in axes if one.values is not None]
    chosen = max(ordered or axes, key=lambda one: len(one.labels))
    return chosen.name


def _lines(axes: Sequence[Axis]) -> str:
    """The axis with a line for each place at first."""
    few = {one.name: one for one in axes if len(one.labels) <= 24}
    for name in _LINES:
        if name in few:
            return name
    named = [name for name, one in few.items() if one.values is None]
    return (named or list(few) or [""])[0]


def _thinned(kept: "xr.DataArray", places: int) -> tuple["xr.DataArray", str]:
    """A variable with so many places; and what was left out, in words."""
    own = [str(d) for d in kept.dims if d not in SAMPLES]
    said: list[str] = []
    whole = {dim: kept.sizes[dim] for dim in own}
    while (total := math.prod(kept.sizes[d] for d in own)) > places:
        longest = max(own, key=lambda dim: kept.sizes[dim])
        size = kept.sizes[longest]
        fewer = max(2, min(size - 1, size * places // total))
        if size <= 2:
            break
        at = np.unique(np.linspace(0, size - 1, fewer).round().astype(int))
        kept = kept.isel({longest: at})
    for dim in own:
        if kept.sizes[dim] < whole[dim]:
            said.append(f"{kept.sizes[dim]} of {whole[dim]} places of {dim}")
    return kept, ", ".join(said)


def _title(name: str, shown: metrics.Shown) -> str:
    words = name.replace("_", " ")
    return f"{words} ({shown.unit})" if shown.unit else words


def _rank(results: "xr.Dataset", name: str, compared: str) -> tuple[Any, ...]:
    """What networks are compared by comes first, then what has most axes."""
    words = f"_{name}_"
    of = [metric for metric in _MAIN if f"_{metric}_" in words]
    at = _MAIN.index(of[0]) if of else len(_MAIN)
    early, loss = name.endswith("_early"), "_loss_" in words
    tested = name.startswith("test_") or name in METRICS
    beside = name.startswith(("dense_", "found_", "beside_", "train_", "validation_"))
    main = bool(of) and not early and not beside
    first = main and tested and f"_{compared}_" in words
    axes = len(_own_axes(results, name))
    return not first, not (main and tested), not main, at, early, beside, loss, -axes


_MAIN = ("return", "perplexity", "f1", "matthews", "pearson", "accuracy", "error")
"""Metrics, the first one that there is; where results do not say what they compare."""


def _plain(values: np.ndarray) -> list[float | None]:
    """Values flat, of five digits, nan and infinity as None."""
    return [
        float(f"{x:.5g}") if math.isfinite(x) else None
        for x in values.reshape(-1).tolist()
    ]
