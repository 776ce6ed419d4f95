"""What a row leaves behind: JSON for machines, a page in Markdown, the figure of costs."""

import datetime
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.page import markdown as of_accelerator
from benchmarks.rows import Row, cores
from benchmarks.run import Found, Spread, compare, spread
from benchmarks.tables import table
from lottery_jax import records

INTRODUCTION = pathlib.Path(__file__).parent / "introduction.md"
"""What the page says before its tables; written by hand."""

GPU = "gpu.json"
"""What `benchmarks.gpu` leaves in the folder of results."""

PANELS: Mapping[str, tuple[str, int | None]] = {
    "replicas": ("replicas", 2),
    "devices": ("host devices", 2),
    "levels": ("level (number of prunings)", None),
    "parameters": ("prunable weights", 10),
}
"""Label of each panel of the figure and base of its logarithm, by the names in rows."""


def as_json(
    row: Row, found: Found, seconds: float, load: float, quick: bool
) -> dict[str, Any]:
    """What a row has found, with the seconds it took, and where and when it ran.

    `load` is the machine's load average in the minute before it.
    """
    comparisons = []
    for one in compare(row, found):
        entry = {**one._asdict(), "value": one.value._asdict()}
        if one.target is not None:
            entry["target"] = one.target._asdict()
            entry["reached"] = one.target.reached(one.value.median)
        comparisons.append(entry)
    listed = {number.fact for number in row.numbers}
    facts = {
        name: _median(values)
        for name, values in found.facts.items()
        if name not in listed and not _is_curve(row, name)
    }
    costs: dict[str, dict[str, float]] = {}
    for process, own in found.costs.items():
        for what, cost in own.items():
            costs.setdefault(f"{what}, of each process", {})[process] = cost
    rates = {name: spread(values)._asdict() for name, values in found.rates.items()}
    machine = {"cores": cores(), "processor": _processor()}
    return {
        "setting": row.question,
        "unit": row.unit,
        "rates": rates,
        "comparisons": comparisons,
        "facts": facts | costs,
        "curves": _curves(row, found),
        "quick": quick,
        "seconds": round(seconds, 1),
        "machine": machine | {"load_before": round(load, 2)},
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _median(values: Sequence[Any]) -> Any:
    numbers = all(isinstance(value, int | float) for value in values)
    return spread(values).median if numbers else values[-1]


def _is_curve(row: Row, fact: str) -> bool:
    return any(fact in lines.values() for lines in row.curves.values())


def _curves(row: Row, found: Found) -> dict[str, Any]:
    """By panel and label, (x, median, smallest, largest) of milliseconds."""

    def points(line: Any) -> list[list[float]]:
        if isinstance(line, str):
            return found.facts[line][-1] if line in found.facts else []
        return [
            [x, *spread([1e3 / rate for rate in found.rates[side]])]
            for x, side in line.items()
            if side in found.rates
        ]

    return {
        panel: {label: points(line) for label, line in lines.items()}
        for panel, lines in row.curves.items()
    }


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
    found = records.versions()
    try:
        found["torch"] = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        found["torch"] = "not installed"
    return found


def leave(folder: pathlib.Path, found: Mapping[str, Any], order: Sequence[str]) -> None:
    """Writes JSON, figure and page, with new rows in the places of stored ones.

    What `benchmarks.gpu` has left in `results/gpu.json` is a section of the page.

    Args:
      folder: that of the page; the others lie in its folder `results`.
      found: new rows by name, from `as_json`.
      order: the names of all rows; stored ones that are not among them are dropped.
    """
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    path, figure = results / "benchmarks.json", results / "scaling.png"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    both = stored | dict(found)
    both = {name: both[name] for name in order if name in both}
    path.write_text(json.dumps(both, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib"):
        draw(both, figure)
    name = "results/scaling.png" if figure.is_file() else None
    gpu = results / GPU
    own = of_accelerator(json.loads(gpu.read_text())) if gpu.is_file() else ""
    (folder / "performance.md").write_text(page(both, name, own))


# --- the page -------------------------------------------------------------------------


def page(
    rows: Mapping[str, Any], figure: str | None = None, accelerator: str = ""
) -> str:
    """The whole page: introduction, tables, the figure of costs.

    Args:
      rows: by name, from `as_json`.
      figure: path of that figure, from the page; None if there is none.
      accelerator: the section of `benchmarks.gpu`.
    """
    text = INTRODUCTION.read_text().rstrip("\n") + "\n\n"
    if figure is not None:
        text += (
            f"![what a replica-step costs]({figure})\n\nWhat a replica-step costs "
            "against the number of replicas, host devices, levels and weights: the rows "
            "`scaling` and `levels`.\n\n"
        )
    return text + accelerator + "\n" * bool(accelerator) + markdown(rows)


def markdown(rows: Mapping[str, Any]) -> str:
    """The tables of all rows, from `as_json`."""
    cells = [
        [
            f"`{name}`",
            entry["of"],
            entry["to"] or "-",
            f"{_spread(entry['value'])} {entry['unit']}".strip(),
            "{sense} {bound:g}".format(**entry["target"]) if entry["target"] else "-",
            {True: "yes", False: "**no**", None: "-"}[entry.get("reached")],
        ]
        for name, row in rows.items()
        for entry in row["comparisons"]
    ]
    header = ["row", "measured", "against", "value", "target", "reached"]
    lines = ["## Every comparison", "", *table(header, cells)]
    for name, row in rows.items():
        lines += ["", f"## {name}", ""]
        if row["quick"]:
            lines += ["**Quick mode: these numbers mean nothing.**", ""]
        lines += [row["setting"], ""]
        if row["rates"]:
            rates = [[side, _spread(rate)] for side, rate in row["rates"].items()]
            lines += [*table(["side", row["unit"]], rates), ""]
        tables = {k: fact for k, fact in row["facts"].items() if _is_table(fact)}
        plain = {k: fact for k, fact in row["facts"].items() if k not in tables}
        lines += [f"- {k}: {_plain(fact)}" for k, fact in plain.items()]
        lines += [""] * bool(plain)
        for title, fact in tables.items():
            lines += [f"{title[0].upper()}{title[1:]}:", ""]
            lines += [*table(fact["header"], fact["rows"]), ""]
        where = row["machine"]
        packages = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
        lines.append(
            f"{row['date']}; {where['cores']} cores, {where['processor']}, "
            f"load before {where['load_before']}; "
            f"{packages}; took {row['seconds']:.0f} s."
        )
    return "\n".join(lines) + "\n"


def _is_table(fact: Any) -> bool:
    return isinstance(fact, Mapping) and set(fact) == {"header", "rows"}


def _spread(value: Mapping[str, float]) -> str:
    median, low, high = Spread(**value)
    if low == high:
        return _number(median)
    return f"{_number(median)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    if 1000 <= abs(value) < 1e9 or value == int(value) and abs(value) < 1e9:
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


# --- the figure -----------------------------------------------------------------------


def draw(stored: Mapping[str, Any], path: pathlib.Path) -> bool:
    """Draws what a replica-step costs, from the curves of the stored rows.

    Args:
      stored: rows by name, from `as_json`.
      path: of the PNG.

    Returns:
      Whether there was anything to draw; otherwise there is no file.
    """
    found: dict[str, dict[str, list[list[float]]]] = {}
    for row in stored.values():
        for panel, lines in row.get("curves", {}).items():
            drawn = {label: sorted(points) for label, points in lines.items() if points}
            found.setdefault(panel, {}).update(drawn)
    if not any(found.values()):
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from lottery_jax import plots

    figure, grid = pyplot.subplots(2, 2, figsize=(9.0, 6.4), layout="constrained")
    for axes, (name, (text, base)) in zip(grid.flat, PANELS.items()):
        lines = found.get(name, {})
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set(xlabel=text, ylabel="time of a replica-step (ms)")
        for (label, points), (color, marker) in zip(
            lines.items(), plots.STYLES.values()
        ):
            x, median, low, high = zip(*points)
            bars = [
                [m - a for m, a in zip(median, low)],
                [b - m for m, b in zip(median, high)],
            ]
            style = {"color": color, "marker": marker, "markersize": 4, "capsize": 2}
            axes.errorbar(x, median, bars, label=label, linewidth=1.5, **style)
        if not lines:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
            continue
        if base:
            axes.set_xscale("log", base=base)
        else:
            axes.locator_params(axis="x", integer=True)
        if base == 2:
            every = sorted({x for points in lines.values() for x, *_ in points})
            axes.set_xticks(every, [f"{x:g}" for x in every], minor=False)
        if base == 10:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9)
    plots.save(figure, path, ("png",))
    return True
