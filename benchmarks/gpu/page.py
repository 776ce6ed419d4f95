"""The tables of an accelerator: as lines while it runs, and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu import cells
from benchmarks.gpu.cells import Cell
from benchmarks.tables import table

_HEADER = ("replicas", "how", "numbers", "replica-steps/s", "ms a step", "busy ms")
_HEADER += ("kernels", "GB a step", "floor, GB", "floor, ms", "error", "compiling, s")


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits that count; "-" for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def line(name: str, found: Mapping[str, Any]) -> str:
    """What a cell has found, in one line."""
    if "rate" not in found:
        return f"{name}: {found.get('error text', 'not measured')}"
    parts = [f"{name}: {number(found['rate'])} replica-steps/s"]
    parts.append(f"{number(found['ms'])} ms")
    if "busy" in found:
        parts.append(f"busy {number(found['busy'])} in {found['kernels']} kernels")
    if "bytes" in found:
        ratio = found["bytes"] / found["floor"]
        parts.append(f"{found['bytes'] / 1e9:.3g} GB, {ratio:.2f} of the floor")
    if "error" in found:
        parts.append(f"error {found['error']:.1e}")
    if found.get("no trace"):
        parts.append(f"no trace: {found['no trace']}")
    parts.append(f"compiled in {found['compiling']:.0f} s")
    return ", ".join(parts)


def _row(cell: Cell, found: Mapping[str, Any], bandwidth: float | None) -> list[str]:
    own = found.get(cell.name, {})
    batch = f", batch {cell.batch:,}" if cell.batch else ""
    floor = own.get("floor")
    soonest = 1e3 * floor / bandwidth if floor and bandwidth else None
    gigabytes = [x / 1e9 if x else None for x in (own.get("bytes"), floor)]
    return [
        f"{cell.replicas}{batch}",
        f"{'PyTorch: ' * (cell.side == 'PyTorch')}{cell.way or '-'}",
        cell.numbers,
        number(own.get("rate"), 4),
        number(own.get("ms")),
        number(own.get("busy")),
        number(own.get("kernels")),
        *(number(x) for x in gigabytes),
        number(soonest),
        f"{own['error']:.1e}" if "error" in own else "-",
        number(own.get("compiling"), 2),
    ]


def _tables(found: Mapping[str, Any]) -> list[str]:
    """A table for each model, of the cells that were measured."""
    results = found["cells"]
    bandwidth = found["rulers"].get("copied bytes per second")
    lines = []
    for model in cells.MODELS:
        own = [
            cell
            for cell in (*cells.OURS, *cells.PEERS)
            if cell.model == model and "rate" in results.get(cell.name, {})
        ]
        if not own:
            continue
        own.sort(key=lambda c: (c.numbers, c.batch, c.replicas, c.side, c.way))
        rows = [_row(cell, results, bandwidth) for cell in own]
        lines += [f"### {model}", "", *table(_HEADER, rows), ""]
    return lines


def _kinds(found: Mapping[str, Any]) -> list[str]:
    """Where the busy time of our cells goes."""
    own = [
        (cell, found["cells"][cell.name]["kinds"])
        for cell in cells.OURS
        if "kinds" in found["cells"].get(cell.name, {})
    ]
    kinds = list(dict.fromkeys(kind for _, by_kind in own for kind in by_kind))
    if not kinds:
        return []
    rows = [
        [cell.name.removeprefix("ours, "), *(number(by.get(k), 2) for k in kinds)]
        for cell, by in own
    ]
    header = ["busy ms of a step", *kinds]
    return ["### Where the time goes", "", *table(header, rows), ""]


def _goals(found: Mapping[str, Any]) -> list[str]:
    reached = cells.compare(found["cells"])
    if not reached:
        return []
    rows: Sequence[Sequence[str]] = [
        [
            one.label,
            f"**{number(one.value)}**" if one.target else number(one.value),
            one.target or "-",
            {True: "yes", False: "**no**", None: "-"}[one.reached],
            f"{one.of.removeprefix('ours, ')} / {one.to.removeprefix('ours, ')}",
        ]
        for one in reached
    ]
    header = ["compared, in replica-steps per second", "value", "target", "reached"]
    lines = [*table([*header, "which of them"], rows), ""]
    known = {one.label for one in reached}
    still = [goal.label for goal in cells.goals() if goal.label not in known]
    if still:
        what = "Open, because one side or both were not measured"
        lines += [f"{what}: {'; '.join(still)}.", ""]
    return lines


def _missing(found: Mapping[str, Any]) -> list[str]:
    """The cells that were not measured, by the reason, and what else went wrong."""
    by_reason: dict[str, list[str]] = {}
    for cell in (*cells.OURS, *cells.PEERS):
        own = found["cells"].get(cell.name, {})
        if "rate" not in own:
            reason = own.get("error text", "not asked for")
            by_reason.setdefault(reason, []).append(cell.name)
    lines = [f"- {reason}: {'; '.join(names)}" for reason, names in by_reason.items()]
    lines += [f"- {remark.splitlines()[0]}" for remark in found["remarks"]]
    return ["### Not measured", "", *lines, ""] if lines else []


def _calls(found: Mapping[str, Any]) -> list[str]:
    """When it was measured: of calls that were joined, which cells each has."""
    by_date: dict[str, list[Cell]] = {}
    for cell in (*cells.OURS, *cells.PEERS):
        own = found["cells"].get(cell.name, {})
        if "rate" in own:
            by_date.setdefault(own.get("date", found["date"]), []).append(cell)
    if set(by_date) <= {found["date"]}:
        return []
    lines = []
    for date, own in sorted(by_date.items()):
        models = ", ".join(dict.fromkeys(f"{c.side} {c.model}" for c in own))
        lines.append(f"- {date}: {len(own)} cells ({models})")
    return ["Measured in several calls on this device:", "", *lines, ""]


def markdown(found: Mapping[str, Any]) -> str:
    """The section of an accelerator, from what `measure` has stored."""
    rulers = found["rulers"]
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    device = found["driver"] or rulers.get("device", "no device")
    lines = ["## On a GPU", ""]
    if found["quick"]:
        lines += ["**Quick mode: these numbers mean nothing.**", ""]
    lines += [
        "One call of `python -m benchmarks.gpu`. ResNet-20 and VGG-16: batch 128 of "
        "32 x 32 pixels, flipped and cropped on the device, SGD with momentum; "
        "LeNet-300-100: batch 60, Adam; masks of density 0.2, noise as data. Ours: one "
        "compiled loop of all replicas. PyTorch: one CUDA graph of a step, a model after "
        "the other, on streams, or stacked; channels-last, fused optimizers, masks by one "
        "call, bfloat16 by autocast. Batches are drawn on the device in both. One network "
        "at batch 1,152 does the work of nine with shared weights, the convolutions that "
        "libraries are best at: one of its steps counts as nine in comparisons. *How*: a "
        "method of `Execution.convolution`, `loop` for one network being plain "
        "convolutions; `-` is the library's own choice, on a GPU `tiles`.",
        "",
        "*Busy* is the sum of the kernels' times in a trace. *GB a step* is what the "
        "compiled program reads and writes. The *floor* is what no arrangement of the "
        "work goes below, about 15 passes over the activations (`benchmarks/floor.py`), "
        "its ms at the bandwidth that is copied with. The *error* is that of one step's "
        "gradient, relative in norm, against the same step of one network in float32, the "
        "larger of the first and the last replica's; PyTorch's against its own float32.",
        "",
        *_goals(found),
    ]
    if copied := rulers.get("copied bytes per second"):
        rate = rulers["bf16 operations per second"]
        lines += [
            f"The device copies {copied / 1e12:.3g} TB/s (read and written) and makes "
            f"{rate / 1e12:.3g} TFLOP/s of products of 8,192 x 8,192 in bfloat16.",
            "",
        ]
    lines += _tables(found) + _kinds(found)
    lines += _missing(found) + _calls(found)
    lines.append(
        f"{found['date']}; {device}; {versions}; took {found.get('seconds', 0):.0f} s."
    )
    return "\n".join(lines) + "\n"
