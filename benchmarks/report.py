"""What a row leaves behind: JSON for machines, a page in Markdown for readers."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from benchmarks.timing import Spread

INTRODUCTION = pathlib.Path(__file__).parent / "introduction.md"
"""What the page says before its tables; written by hand."""

PACKAGES = ("lottery-jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")


class Target(NamedTuple):
    """A bound that the median must keep.

    Attributes:
      sense: how the median must compare with the bound.
      bound: in the unit of the comparison.
    """

    sense: Literal[">=", ">", "<="]
    bound: float

    def reached(self, value: float) -> bool:
        """Whether a value keeps the bound."""
        match self.sense:
            case ">=":
                return value >= self.bound
            case ">":
                return value > self.bound
            case "<=":
                return value <= self.bound


class Comparison(NamedTuple):
    """One number that a row is about.

    Attributes:
      of: what was measured.
      to: the peer or ruler that it is divided by, in the same run; "" for a plain number.
      value: median, smallest and largest of the turns.
      target: None where there is none.
      unit: "" for ratios.
    """

    of: str
    to: str
    value: Spread
    target: Target | None = None
    unit: str = ""


class Table(NamedTuple):
    """A fact that is a table.

    Attributes:
      header: names of the columns.
      rows: cells, already text.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Point(NamedTuple):
    """One point of a curve of costs.

    Attributes:
      x: number of replicas, devices, weights ..., or a level.
      cost: milliseconds of a replica-step.
    """

    x: float
    cost: Spread


Curve: TypeAlias = Sequence[Point]


class Row(NamedTuple):
    """One benchmark.

    Attributes:
      name: of the row.
      setting: what ran, in a sentence or two.
      rates: units of work per second of each side.
      unit: of the rates.
      comparisons: the ratios, with their targets.
      facts: other numbers and tables, by name.
      curves: lines of the figure of costs, by panel (an axis' name) and label.
    """

    name: str
    setting: str
    rates: Mapping[str, Spread] = {}
    unit: str = ""
    comparisons: Sequence[Comparison] = ()
    facts: Mapping[str, Any] = {}
    curves: Mapping[str, Mapping[str, Curve]] = {}


def as_json(row: Row, seconds: float, load: float, quick: bool) -> dict[str, Any]:
    """A row with where and when it was measured.

    Args:
      row: the row.
      seconds: that it took in all.
      load: the machine's load average in the minute before it.
      quick: whether it ran with the tiny sizes that show no more than that it runs.
    """
    comparisons = []
    for comparison in row.comparisons:
        entry = {**comparison._asdict(), "value": comparison.value._asdict()}
        if comparison.target is not None:
            entry["target"] = comparison.target._asdict()
            entry["reached"] = comparison.target.reached(comparison.value.median)
        comparisons.append(entry)
    return {
        "setting": row.setting,
        "unit": row.unit,
        "rates": {name: rate._asdict() for name, rate in row.rates.items()},
        "comparisons": comparisons,
        "facts": {
            name: fact._asdict() if isinstance(fact, Table) else fact
            for name, fact in row.facts.items()
        },
        "curves": {
            panel: {
                label: [[point.x, *point.cost] for point in curve]
                for label, curve in lines.items()
            }
            for panel, lines in row.curves.items()
        },
        "quick": quick,
        "seconds": round(seconds, 1),
        "machine": machine() | {"load_before": round(load, 2)},
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """Cores that this process may use, and the model of the processor."""
    return {"cores": cores(), "processor": _processor()}


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """Model name, with family and model number, which virtual machines do not hide."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    parts = [line.partition(":") for line in lines]
    fields = {name.strip(): value.strip() for name, _, value in parts}
    name = fields.get("model name", platform.machine())
    numbers = [fields.get(field, "?") for field in ("cpu family", "model")]
    return f"{name}, family {numbers[0]}, model {numbers[1]}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def merge(path: pathlib.Path, rows: Mapping[str, Any], order: Sequence[str]) -> dict:
    """The stored rows with new ones put in their places; writes nothing.

    Args:
      path: of a JSON file that may be missing.
      rows: new rows by name, from `as_json`.
      order: the names of all rows; stored ones that are not among them are dropped.
    """
    stored = json.loads(path.read_text()) if path.is_file() else {}
    both = stored | dict(rows)
    return {name: both[name] for name in order if name in both}


def page(rows: Mapping[str, Any], figure: str | None = None) -> str:
    """The whole page: introduction, tables, the figure of costs.

    Args:
      rows: by name, from `as_json`.
      figure: path of that figure, from the page; None if there is none.
    """
    text = INTRODUCTION.read_text().rstrip("\n") + "\n\n"
    if figure is not None:
        text += (
            f"![what a replica-step costs]({figure})\n\nWhat a replica-step costs "
            "against the number of replicas, host devices, levels and weights: the rows "
            "`scaling` and `levels`.\n\n"
        )
    return text + markdown(rows)


def markdown(rows: Mapping[str, Any]) -> str:
    """The tables of all rows, from `as_json`."""
    lines = ["## Every comparison", ""]
    cells = []
    for name, row in rows.items():
        for entry in row["comparisons"]:
            number, target = Spread(**entry["value"]), entry.get("target")
            cells.append(
                [
                    f"`{name}`",
                    entry["of"],
                    entry["to"] or "-",
                    f"{_spread(number)} {entry['unit']}".strip(),
                    f"{target['sense']} {target['bound']:g}" if target else "-",
                    {True: "yes", False: "**no**", None: "-"}[entry.get("reached")],
                ]
            )
    lines += table(
        ["row", "measured", "against", "value", "target", "reached"],
        cells,
    )
    for name, row in rows.items():
        lines += ["", f"## {name}", ""]
        if row["quick"]:
            lines += ["**Quick mode: these numbers mean nothing.**", ""]
        lines += [row["setting"], ""]
        if row["rates"]:
            rates = [[k, _spread(Spread(**rate))] for k, rate in row["rates"].items()]
            lines += [*table(["side", row["unit"]], rates), ""]
        tables = {k: fact for k, fact in row["facts"].items() if _is_table(fact)}
        plain = {k: fact for k, fact in row["facts"].items() if k not in tables}
        lines += [f"- {k}: {_plain(fact)}" for k, fact in plain.items()]
        if plain:
            lines.append("")
        for title, fact in tables.items():
            lines += [f"{title[0].upper()}{title[1:]}:", ""]
            lines += [*table(fact["header"], fact["rows"]), ""]
        where, numbers = row["machine"], row["versions"]
        packages = ", ".join(f"{k} {v}" for k, v in numbers.items())
        lines.append(
            f"{row['date']}; {where['cores']} cores, {where['processor']}, load before "
            f"{where['load_before']}; {packages}; took {row['seconds']:.0f} s."
        )
    return "\n".join(lines) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]


def _is_table(fact: Any) -> bool:
    return isinstance(fact, Mapping) and set(fact) == {"header", "rows"}


def _spread(value: Spread) -> str:
    if value.low == value.high:
        return _number(value.median)
    return f"{_number(value.median)} ({_number(value.low)} to {_number(value.high)})"


def _number(value: float) -> str:
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(v)}" for name, v in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value)
    return str(value)
