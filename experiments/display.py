"""What is seen while an experiment runs and when it ends."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lottery_jax import processes, records, verdicts
from lottery_jax.connectivity import Progress as StageProgress
from lottery_jax.imp import Moment, Plan

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
    plan: Plan, names: Sequence[str], first: int, last: int, folder: pathlib.Path
) -> Iterator[Callable[[Moment], None]]:
    """A live bar on a terminal, a line per level elsewhere; and the metrics stream.

    Args:
      plan: the protocol.
      names: of the networks, in the order of the rows.
      first: the first level that is trained.
      last: the last one.
      folder: where `metrics.jsonl` goes: JSON lines, one per validation, continued after
        an interruption.
    """
    console = Console(stderr=True, quiet=processes.index() > 0)
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
        "", total=None, level=first, levels=last, step=0, rate="-", error="-"
    )
    stream = folder / "metrics.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    columns = [*range(plan.validate_every, plan.steps, plan.validate_every), plan.steps]
    diverged: set[tuple[int, int]] = set()
    before: float | None = None
    reached, rate, error = 0, 0.0, "-"

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    def watch(moment: Moment) -> None:
        nonlocal before, reached, rate, error
        now, curves = time.monotonic(), moment.curves
        if moment.resumed:
            records.resume_stream(stream, moment.level, moment.step)
            say(f"continuing at level {moment.level}, step {moment.step}")
        elif before is None:
            records.resume_stream(stream, -1, 0)
        if before is not None and now > before:
            done = moment.step - max(moment.start, reached)
            if done <= 0:  # a new level
                done = moment.step - moment.start
            speed = done * moment.rows / (now - before)
            rate = 0.9 * rate + 0.1 * speed if rate else speed
        before, reached = now, moment.step
        if not moment.resumed and moment.step in columns:
            column = columns.index(moment.step)
            errors = curves.validation_error[: moment.rows, column]
            records.append_stream(
                stream,
                {
                    "level": moment.level,
                    "step": moment.step,
                    "train_loss": curves.train_loss[: moment.rows, column],
                    "validation_error": errors,
                    "seconds": round(now - begin, 3),
                },
            )
            if np.isfinite(errors).any():
                error = f"{100 * np.nanmin(errors):.1f}%"
        bar.update(
            task,
            total=_steps(plan, moment, first, last + 1),
            completed=_steps(plan, moment, first, moment.level)
            + moment.step
            - moment.start,
            level=moment.level,
            step=moment.step,
            rate=f"{rate:,.0f}",
            error=error,
        )
        if not live and moment.step == moment.stop:
            shown = f"{rate:,.0f} replica-steps/s, " if rate else ""
            say(
                f"level {moment.level}/{last}: {moment.rows} networks, {shown}"
                f"{now - begin:.0f} s"
            )
        bad = np.isfinite(curves.first_nan[: moment.rows])
        for row in np.flatnonzero(bad).tolist():
            if (moment.level, row) not in diverged:
                diverged.add((moment.level, row))
                say(
                    f"level {moment.level}: {names[row]} diverged at step "
                    f"{curves.first_nan[row]:.0f}; it is kept out of every average"
                )

    with bar:
        yield watch


@contextlib.contextmanager
def stages(what: str = "") -> Iterator[Callable[[StageProgress], None]]:
    """A live bar on a terminal, a line per stage and every 30 seconds elsewhere."""
    console = Console(stderr=True, quiet=processes.index() > 0)
    begin, live = time.monotonic(), console.is_terminal
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=console,
        disable=not live,
        transient=True,
    )
    task, shown, stage = bar.add_task(what), begin, ""

    def watch(at: StageProgress) -> None:
        nonlocal shown, stage
        label = f"{what}{at.stage} ({at.rows})"
        if at.stage != stage:
            bar.reset(task, total=at.total, description=label)
            stage = at.stage
        bar.update(task, completed=at.done)
        now = time.monotonic()
        if at.resumed:
            console.print(f"continuing at {label} {at.done}", highlight=False)
        elif not live and (at.done == at.total or now - shown > 30):
            shown = now
            text = f"{label} {at.done}/{at.total}, {now - begin:.0f} s"
            console.print(text, highlight=False, soft_wrap=True, markup=False)

    with bar:
        yield watch


def leave(
    folder: pathlib.Path, judged: Any, tables: Sequence[Rows], lines: Sequence[str]
) -> None:
    """Writes verdicts.json and table.md, with what follows from the tables below them.

    Args:
      folder: the run folder.
      judged: verdicts in dicts and lists, beside what they are about.
      tables: one or more.
      lines: conclusions.
    """
    text = json.dumps(records.finite(_as_plain(judged)), indent=1)
    records.write_text(folder / "verdicts.json", text + "\n")
    parts = [table.markdown() for table in tables]
    parts += ["\n".join(f"- {line}" for line in lines)] * bool(lines)
    records.write_text(folder / "table.md", "\n\n".join(parts) + "\n")


def _as_plain(value: Any) -> Any:
    """Verdicts as dicts, wherever they are."""
    if isinstance(value, verdicts.Verdict):
        return verdicts.as_dict(value)
    if isinstance(value, dict):
        return {name: _as_plain(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_as_plain(v) for v in value]
    return value


def branch_watcher(
    watch: Callable[[StageProgress], None],
) -> Callable[[int, int, int, bool], None]:
    """For `connectivity.branches.train`."""
    return lambda step, stop, rows, resumed: watch(
        StageProgress("branches", step, stop, rows, resumed)
    )


def points_watcher(
    watch: Callable[[StageProgress], None], rows: int
) -> Callable[[int, int], None]:
    """For `connectivity.paths`; rows is the number of pairs."""
    return lambda done, total: watch(StageProgress("paths", done, total, rows))


def show_lines(title: str, table: Rows, lines: Sequence[str]) -> None:
    """Prints a table and what follows from it."""
    console = Console()
    grid = _grid(table)
    console.width = max(console.width, _width(console, grid))
    for line in [title, grid, *lines]:
        console.print(line, highlight=False, markup=False, soft_wrap=line is not grid)


def _steps(plan: Plan, moment: Moment, first: int, stop: int) -> int:
    """Steps of the levels [first, stop); level 0 is a whole run."""
    later = (
        moment.stop - moment.start
        if moment.level
        else plan.steps - min(plan.rewind_steps)
    )
    return sum(later if level else plan.steps for level in range(first, stop))


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
    grid = _grid(table)
    if _width(console, grid) > console.width:
        # The spread goes below the mean, and if even that is too wide nothing is cut.
        rows = [[cell.replace(" [", "\n[") for cell in row] for row in table.rows]
        grid = _grid(Rows([name.replace(" ", "\n") for name in table.header], rows))
        console.width = max(console.width, _width(console, grid))
    replicas = results.sizes["replica"]
    lines = [f"Test accuracy in %: mean [min, max] of {replicas} replicas", grid]
    lines += [*summarize(judged), *diverged(results)]
    if note := results.attrs.get("note"):
        lines.append(f"Data: {note}")
    for line in [*lines, "", f"Figure: {figure}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=line is not grid)


def _grid(table: Rows) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in table.header:
        grid.add_column(Text(name), justify="right", no_wrap=True)
    for row in table.rows:
        grid.add_row(*map(Text, row))
    return grid


def _width(console: Console, grid: Table) -> int:
    unlimited = console.options.update(width=10_000)
    return Measurement.get(console, unlimited, grid).maximum


def diverged(results: "xr.Dataset") -> list[str]:
    """One line per network that diverged, or whose mask was made from one that did."""
    lines = []
    flags = results["diverged"].transpose("chain", "arm", "replica", "level").values
    for c, a, r in np.argwhere(flags.any(axis=-1)):
        chain, arm, replica = (
            results[name].values[i]
            for name, i in zip(("chain", "arm", "replica"), (c, a, r))
        )
        levels = results["level"].values[flags[c, a, r] != 0]
        prefix = f"{chain}: " if results.sizes["chain"] > 1 else ""
        lines.append(
            f"Diverged, and left out of every average: {prefix}{arm} of replica "
            f"{replica} at level {', '.join(map(str, levels))}"
        )
    return lines


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
