"""Verdicts and configurations as rows of text, with the places of their intervals."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lottery_jax.verdicts import DENSITY, METRICS, STEPS, Metric

_METRICS = {**METRICS, STEPS.name: STEPS, DENSITY.name: DENSITY}


class Interval(NamedTuple):
    """Where an interval lies in a picture of it, in percent of its width.

    Attributes:
      low: where it begins.
      width: how long it is.
      estimate: its middle; None for none.
      tolerance: what it is compared with.
    """

    low: float
    width: float
    estimate: float | None
    tolerance: float


class Row(NamedTuple):
    """A verdict in words.

    Attributes:
      place: what it is about, cell by cell.
      answer: "yes", "no" or "undecided".
      estimate: with its sign; an interval and a tolerance likewise.
      interval: "[low, high]".
      tolerance: with the side that is claimed.
      n: independent units.
      unit: of the numbers.
      more: what must be said of it, or "".
      drawn: the interval as a picture; None where it is infinite.
    """

    place: list[str]
    answer: str
    estimate: str
    interval: str
    tolerance: str
    n: str
    unit: str
    more: str
    drawn: Interval | None


class Claim(NamedTuple):
    """All verdicts on a claim.

    Attributes:
      name: what is claimed.
      counts: how often each answer was given, in words.
      header: the names of the places' columns.
      rows: a verdict each.
      axis: where pictures of intervals begin and end, in words; of several units, each of
        which has an axis of its own, that it is so.
    """

    name: str
    counts: str
    header: list[str]
    rows: list[Row]
    axis: tuple[str, str]


def claims(judged: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Verdicts by what is claimed.

    Args:
      judged: a flat object each, as in verdicts.json.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for one in judged:
        by_name.setdefault(str(one.get("claim", "")), []).append(one)
    return [_claim(name, own) for name, own in by_name.items()]


def _claim(name: str, own: Sequence[Mapping[str, Any]]) -> Claim:
    header = list(
        dict.fromkeys(
            key
            for one in own
            for key in one
            if key not in _VERDICT and (len(own) == 1 or _differs(key, own))
        )
    )
    found = [one.get("verdict", {}) for one in own]
    answers = [str(verdict.get("answer", "")) for verdict in found]
    counts = ", ".join(
        f"{answer} {answers.count(answer)}"
        for answer in ("yes", "no", "undecided")
        if answer in answers
    )
    by_unit: dict[str, list[Mapping[str, Any]]] = {}
    for verdict in found:
        by_unit.setdefault(_unit(verdict), []).append(verdict)
    bounds = {unit: _bounds(every) for unit, every in by_unit.items()}
    rows = [
        _row(one, header, *bounds[_unit(verdict)]) for one, verdict in zip(own, found)
    ]
    ends = ("each unit has", "an axis of its own")
    if len(bounds) == 1:
        ((low, high),) = bounds.values()
        ends = (f"{low:.3g}", f"{high:.3g}")
    return Claim(name, counts, [key.replace("_", " ") for key in header], rows, ends)


_VERDICT = ("claim", "verdict")


def _unit(verdict: Mapping[str, Any]) -> str:
    """The name of what a verdict compares."""
    return str(verdict.get("unit", ""))


def _differs(key: str, own: Sequence[Mapping[str, Any]]) -> bool:
    """Whether places of a claim differ in something."""
    return len({str(one.get(key)) for one in own}) > 1


def _row(one: Mapping[str, Any], header: Sequence[str], low: float, high: float) -> Row:
    verdict = one.get("verdict", {})
    metric = _METRICS.get(_unit(verdict))
    own, digits = _scaled(verdict), metric.digits if metric else 4
    shown = {
        key: "-" if value is None else f"{value:+.{digits}f}"
        for key, value in own.items()
    }
    more = [str(verdict[key]) for key in ("reason",) if verdict.get(key)]
    if verdict.get("excluded"):
        more.append(f"diverged: {', '.join(map(str, verdict['excluded']))}")
    interval = f"[{shown['low']}, {shown['high']}]"
    return Row(
        [_place(key, one.get(key)) for key in header],
        str(verdict.get("answer", "")),
        shown["estimate"],
        interval if own["low"] is not None else "none",
        f"{verdict.get('side', '')} {shown['tolerance']}",
        str(verdict.get("n", "")),
        metric.unit if metric else _unit(verdict),
        "; ".join(more),
        _drawn(own, low, high),
    )


def _scaled(verdict: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a verdict in the unit that they are shown in; None for infinite."""
    metric: Metric | None = _METRICS.get(_unit(verdict))
    scale = metric.scale if metric else 1.0
    found: dict[str, float | None] = {}
    for key in ("estimate", "low", "high", "tolerance"):
        value = verdict.get(key)
        number = isinstance(value, int | float) and math.isfinite(value)
        found[key] = scale * float(value) if number else None  # type: ignore[arg-type]
    return found


def _bounds(every: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Where pictures of intervals begin and end: all of them, with some room."""
    values = [x for one in every for x in _scaled(one).values() if x is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.04 * (high - low) or 1.0
    return low - room, high + room


def _drawn(own: Mapping[str, float | None], low: float, high: float) -> Interval | None:
    begin, end, tolerance = own["low"], own["high"], own["tolerance"]
    if begin is None or end is None or tolerance is None:
        return None
    places = [100 * (x - low) / (high - low) for x in (begin, end, tolerance)]
    middle = own["estimate"]
    estimate = None if middle is None else 100 * (middle - low) / (high - low)
    return Interval(places[0], places[1] - places[0], estimate, places[2])


def _place(key: str, value: Any) -> str:
    if key.endswith("density") and isinstance(value, int | float):
        return f"{100 * value:.3g}%"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("_", " ")


# --- configurations -------------------------------------------------------------------


def plain(value: Any) -> str:
    """The value of a field."""
    return value if isinstance(value, str) and value else json.dumps(value)


def changed(
    config: Mapping[str, Any], usual: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Fields that differ from the usual ones: their name, value, and usual value.

    Args:
      config: as it is stored; a field that is not there has its usual value.
      usual: of the preset.
    """
    return [
        (name, plain(value), plain(usual.get(name)))
        for name, value in config.items()
        if name != "out" and value != usual.get(name)
    ]


def differing(
    configs: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[str]]]:
    """Fields in which runs differ, with the value of each run."""
    names = dict.fromkeys(name for config in configs for name in config)
    rows = []
    for name in names:
        own = [plain(config[name]) if name in config else "-" for config in configs]
        if len(set(own)) > 1 and name != "out":
            rows.append((name, own))
    return rows
