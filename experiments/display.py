"""What is seen while an experiment runs and when it ends."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lottery_jax import records
from lottery_jax.imp import Moment

if TYPE_CHECKING:
    import xarray as xr


class Rows(NamedTuple):
    """A table as text: a header and rows."""

    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.header, ["---:"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@contextlib.contextmanager
def progress(
    levels: int, steps: int, stream: pathlib.Path
) -> Iterator[Callable[[Moment], None]]:
    """A live bar on a terminal, a line per level elsewhere; and the metrics stream.

    Args:
      levels: prunings after level 0.
      steps: steps of a training run.
      stream: JSON lines, one per validation; continued after an interruption.
    """
    console = Console(stderr=True)
    begin, live = time.monotonic(), console.is_terminal
    bar = Progress(
        TextColumn("level {task.fields[level]}/{task.fields[levels]}"),
        BarColumn(bar_width=None),
        TextColumn("step {task.fields[step]}"),
        TextColumn("{task.fields[rate]} replica-steps/s"),
        TextColumn("validation error {task.fields[error]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not live,
        transient=True,
    )
    task = bar.add_task(
        "", total=None, level=0, levels=levels, step=0, rate="-", error="-"
    )
    stream.parent.mkdir(parents=True, exist_ok=True)
    seen: dict[str, Any] = {"time": None, "rate": 0.0, "step": None}

    def watch(moment: Moment) -> None:
        now = time.monotonic()
        if moment.resumed:
            records.resume_stream(stream, moment.level, moment.step)
            console.print(f"continuing at level {moment.level}, step {moment.step}")
        elif moment.level == 0 and seen["time"] is None:
            records.resume_stream(stream, -1, 0)
        last = seen["step"] if seen["step"] is not None else moment.start
        done = moment.step - (last if last < moment.step else moment.start)
        if seen["time"] is not None and now > seen["time"]:
            rate = done * moment.rows / (now - seen["time"])
            seen["rate"] = rate if not seen["rate"] else 0.9 * seen["rate"] + 0.1 * rate
        seen.update(time=now, step=moment.step)
        curves = moment.curves
        if not moment.resumed:
            column = _last_column(curves.validation_error[: moment.rows])
            error = curves.validation_error[: moment.rows, column]
            records.append_stream(
                stream,
                {
                    "level": moment.level,
                    "step": moment.step,
                    "train_loss": curves.train_loss[: moment.rows, column],
                    "validation_error": error,
                    "seconds": round(now - begin, 3),
                },
            )
        else:
            error = np.array([np.nan])
        shown = f"{100 * np.nanmin(error):.1f}%" if np.isfinite(error).any() else "-"
        per_level = moment.stop - moment.start
        total = steps + levels * per_level
        before = 0 if moment.level == 0 else steps + (moment.level - 1) * per_level
        bar.update(
            task,
            total=total,
            completed=before + moment.step - moment.start,
            level=moment.level,
            step=moment.step,
            rate=f"{seen['rate']:,.0f}",
            error=shown,
        )
        if not live and moment.step == moment.stop:
            console.print(
                f"level {moment.level}/{levels}: {moment.rows} networks, "
                f"{seen['rate']:,.0f} replica-steps/s, {now - begin:.0f} s"
            )
        new = np.flatnonzero(np.isfinite(curves.first_nan[: moment.rows]))
        for row in set(new.tolist()) - seen.setdefault((moment.level, "nan"), set()):  # type: ignore[call-overload]
            seen[(moment.level, "nan")].add(row)  # type: ignore[index]
            console.print(
                f"level {moment.level}: network {row} diverged at step "
                f"{curves.first_nan[row]:.0f}; it is kept out of every average"
            )

    with bar:
        yield watch


def _last_column(error: np.ndarray) -> int:
    columns = np.flatnonzero(np.isfinite(error).any(axis=0))
    return int(columns[-1]) if len(columns) else 0


def density_table(results: "xr.Dataset", accuracy: "xr.DataArray") -> Rows:
    """Density, and accuracy per arm as mean [min, max] over replicas, in percent."""
    several = results.sizes["chain"] > 1
    arms = [str(arm) for arm in results["arm"].values]
    header = (["chain"] if several else []) + ["level", "density %"]
    header += [arm.replace("_", " ") for arm in arms]
    rows = []
    for chain in results["chain"].values:
        for level in results["level"].values:
            at = {"chain": chain, "level": level}
            density = results["density"].sel(arm="ticket", **at).mean()
            row = [str(chain)] if several else []
            row += [str(int(level)), f"{100 * float(density):.1f}"]
            for arm in arms:
                values = accuracy.sel(arm=arm, **at).values
                row.append(_spread(values[np.isfinite(values)]))
            rows.append(row)
    return Rows(header, rows)


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "diverged"
    return f"{values.mean():.1f} [{values.min():.1f}, {values.max():.1f}]"


def show(
    table: Rows,
    judged: Sequence[dict[str, Any]],
    results: "xr.Dataset",
    figure: pathlib.Path,
) -> None:
    """Prints the table, the verdicts, and the figure's path last."""
    console = Console()
    grid = Table(
        box=box.SIMPLE_HEAD,
        title=f"Test accuracy in %, mean [min, max] of {results.sizes['replica']} replicas",
    )
    for name in table.header:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        grid.add_row(*row)
    console.print(grid)
    for line in summarize(judged):
        console.print(line, highlight=False, soft_wrap=True)
    note = results.attrs.get("note")
    if note:
        console.print(f"Data: {note}", highlight=False, soft_wrap=True)
    console.print(f"\nFigure: {figure}", highlight=False, soft_wrap=True)


def summarize(judged: Sequence[dict[str, Any]]) -> list[str]:
    """One line per claim: at which densities it holds, fails or stays undecided."""
    lines = []
    chains = list(dict.fromkeys(row["chain"] for row in judged))
    for chain in chains:
        mine = [row for row in judged if row["chain"] == chain]
        for claim in dict.fromkeys(row["claim"] for row in mine):
            found: dict[str, list[float]] = {"yes": [], "no": [], "undecided": []}
            for row in mine:
                if row["claim"] == claim:
                    found[row["verdict"].answer].append(row["density"])
            text = "; ".join(
                f"{answer} at {', '.join(f'{100 * d:.1f}' for d in densities)}%"
                for answer, densities in found.items()
                if densities
            )
            prefix = f"{chain}: " if len(chains) > 1 else ""
            lines.append(f"{prefix}ticket {claim}: {text}")
    if judged:
        last = judged[-1]["verdict"]
        lines.append(
            "Verdicts are paired 95% intervals over replicas, n = "
            f"{last.n}; all numbers are in verdicts.json."
        )
    return lines
