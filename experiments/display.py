"""What is seen while an experiment runs and when it ends."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich import progress as bars
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from experiments import logs, metrics, provenance
from experiments.logs import Logs
from lottery_jax import imp, records, verdicts
from lottery_jax.execution import Progress, Waited, Where, processes
from lottery_jax.execution.pace import Pace, left, paced, remaining
from lottery_jax.verdicts import ERROR, Metric


class Rows(NamedTuple):
    """A table as text.

    Attributes:
      title: what its numbers are; above it on the screen.
      header: names of the columns.
      rows: of cells.
    """

    title: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As Markdown, without its title."""
        lines = [self.header, ["---:"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Judged(NamedTuple):
    """A verdict, and what it is about.

    Attributes:
      where: the place in the results, such as {"level": 3, "arm": "ticket"}.
      claim: what was claimed there, in a word or two.
      verdict: the answer.
    """

    where: dict[str, Any]
    claim: str
    verdict: verdicts.Verdict


def mean_range(values: np.ndarray, digits: int = 2) -> str:
    """Mean [min, max] of what did not diverge."""
    values = values[np.isfinite(values)]
    if not values.size:
        return "diverged"
    low, high = values.min(), values.max()
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def mean_deviation(values: np.ndarray, digits: int = 2) -> str:
    """Mean ± standard deviation of what did not diverge."""
    values = values[np.isfinite(values)]
    if not values.size:
        return "diverged"
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def answers(judged: Sequence[Judged], form: str, of: Callable[[Judged], str]) -> str:
    """Where claims hold, fail or stay undecided: "yes at k = 30, 100; no at k = 0".

    Args:
      judged: of one claim.
      form: how places are written: "k = {}".
      of: the place of each.
    """
    found: dict[str, list[str]] = {"yes": [], "no": [], "undecided": []}
    for one in judged:
        found[one.verdict.answer].append(of(one))
    return "; ".join(
        f"{answer} at " + form.format(", ".join(places))
        for answer, places in found.items()
        if places
    )


def claims(judged: Sequence[Judged]) -> list[str]:
    """What was claimed, a line for each claim: how often it holds, and how surely.

        matching: yes at 9 of 16 densities, no at 4, undecided at 3 (16 comparisons; after
        Bonferroni: yes 8, no 3)
        Paired 95% intervals, n = 5.

    Args:
      judged: of one figure or of all; the verdicts of each claim are one
        `verdicts.family`.

    Returns:
      The lines, in the order of the claims, and one that says what all rest on. "After
      Bonferroni" are the answers by intervals that hold for all comparisons of the claim
      together.
    """
    made = by_claim(judged)
    families = {
        name: verdicts.family(one.verdict for one in own) for name, own in made.items()
    }
    lines = [_claim(name, own, made[name]) for name, own in families.items()]
    compared = [own for own in families.values() if own.number]
    if not compared:
        return lines
    low = min(own.n[0] for own in compared)
    high = max(own.n[1] for own in compared)
    sure = ", ".join(dict.fromkeys(f"{100 * own.confidence:g}%" for own in compared))
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    return [*lines, f"Paired {sure} intervals, {n}."]


def by_claim(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Verdicts by what is claimed, in the order of the claims."""
    found: dict[str, list[Judged]] = {}
    for one in judged:
        found.setdefault(one.claim, []).append(one)
    return found


def _claim(name: str, family: verdicts.Family, judged: Sequence[Judged]) -> str:
    """One claim in a line."""
    surviving: str
    if (total := len(judged)) == 1:
        line = f"{name}: {judged[0].verdict.answer}"
        surviving = family.simultaneous[0].answer
    else:
        shown = [f"{answer} at {n}" for answer, n in family.counts.items() if n]
        shown[0] += f" of {total} {_places(judged)}"
        line = f"{name}: {', '.join(shown)}"
        left = [
            f"{a} {n}" for a, n in family.surviving.items() if n and a != "undecided"
        ]
        surviving = ", ".join(left) or "none"
    if not family.number:
        return f"{line} (no interval)"
    if family.number == 1:
        return f"{line} (1 comparison)"
    return f"{line} ({family.number} comparisons; after Bonferroni: {surviving})"


def _places(judged: Sequence[Judged]) -> str:
    """What verdicts of one claim differ in, in the plural: "densities"."""
    values: dict[str, set[str]] = {}
    for one in judged:
        for name, value in one.where.items():
            values.setdefault(name, set()).add(str(value))
    differing = [name for name, several in values.items() if len(several) > 1]
    if "density" in differing and "level" in differing:
        differing.remove("level")  # the same thing
    if len(differing) != 1:
        return "places"
    noun = differing[0].replace("_", " ")
    if noun.endswith("s"):  # weights are what they are
        return noun
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


# --- while it runs --------------------------------------------------------------------


def names(plan: imp.Plan, ids: Sequence[int]) -> list[str]:
    """What the networks of a pruning study are called, in the order of its runs."""
    several = len(plan.chains) > 1
    return [
        f"{f'{chain.name}: ' if several else ''}{arm} of replica {i}"
        for chain in plan.chains
        for i in ids
        for arm in plan.arms
    ]


@contextlib.contextmanager
def watched(
    where: Where,
    what: str = "",
    *,
    names: Sequence[str] = (),
    last: int = 0,
    metric: Metric = ERROR,
) -> Iterator[Where]:
    """The same place, with someone who shows how far its run has come, and logs it.

    Args:
      where: its folder gets `metrics.jsonl` if levels are trained there; its logs, if it
        is watched by some, get every validation.
      what: before the names of stages.
      names: of the networks, in the order of their rows, for those that diverge.
      last: the last level.
      metric: what is validated.
    """
    own = dict(names=names, last=last, metric=metric, waited=where.waited)
    with progress(where.store, what, **own) as watch:  # type: ignore[arg-type]
        if (kept := logs.of(where.watch)) is None:
            yield dataclasses.replace(where, watch=watch)
            return
        with kept.watching(where.store, what, names) as log:
            yield dataclasses.replace(where, watch=_Logged(watch, log, kept))


@dataclasses.dataclass(frozen=True)
class _Logged:
    """A watcher and a log, both told; and the logs, for who watches another part."""

    watch: Callable[[Progress], None]
    log: Callable[[Progress], None]
    logs: Logs

    def __call__(self, at: Progress) -> None:
        self.watch(at)
        self.log(at)


@contextlib.contextmanager
def progress(
    folder: pathlib.Path | None = None,
    what: str = "",
    *,
    names: Sequence[str] = (),
    last: int = 0,
    metric: Metric = ERROR,
    waited: Waited | None = None,
) -> Iterator[Callable[[Progress], None]]:
    """A live bar on a terminal; elsewhere a line per stage and level, or every 30 s.

    Args:
      folder: where `metrics.jsonl` goes, if levels are trained: JSON lines, one per
        validation, continued after an interruption.
      what: before the names of stages.
      names: of the networks, in the order of their rows.
      last: the last level.
      metric: what is validated.
      waited: for the examples of streamed splits; its share is shown.
    """
    console = Console(stderr=True, quiet=processes.index() > 0)
    begin, live = time.monotonic(), console.is_terminal
    bar = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=None),
        bars.TextColumn("{task.fields[at]}"),
        bars.TextColumn("{task.fields[left]}"),
        console=console,
        disable=not live,
        transient=True,
    )
    task = bar.add_task(what, total=None, at="", left="")
    stream = _Stream(folder, begin, metric)
    pace = Pace()
    diverged: set[tuple[Any, int]] = set()
    now_in, shown = "", begin

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    def watch(at: Progress) -> None:
        nonlocal now_in, shown, pace
        now, levels = time.monotonic(), at.level is not None
        label = what + (f"level {at.level}/{last}" if levels else at.stage)
        if at.resumed:
            place = f"{what}level {at.level}" if levels else label
            say(f"continuing at {place}, step {at.done}")
        if not levels and label != now_in:
            bar.reset(task)  # stages are unlike each other; levels are one long way
        now_in = label
        pace = paced(pace, at, now)
        rate = f"{pace.rate:,.0f} replica-steps/s" if pace.rate else ""
        still = left(remaining(pace, at, last))
        error = stream.add(at)
        # Level 0 is a whole training, the others begin where they rewind to.
        before = at.total + (at.level - 1) * at.each if at.level else 0
        bar.update(
            task,
            description=label,
            completed=before + at.done - at.start,
            total=at.total + last * at.each if levels else at.total - at.start,
            at=f"{at.done}/{at.total}  {rate}  {error}",
            left=still,
        )
        # Levels are counted; of other stages one wants to hear now and then.
        due = not levels and now - shown > 30
        if not live and not at.resumed and (at.done == at.total or due):
            shown = now
            place = label if levels else f"{label} {at.done}/{at.total}"
            parts = [
                f"{at.rows} networks",
                rate if levels else "",
                f"waiting for data {waited.share:.0%}"
                if waited and waited.examples
                else "",
                f"{now - begin:.0f} s",
                still,
            ]
            say(f"{place}: " + ", ".join(filter(None, parts)))
        if at.curves is not None:
            for row in np.flatnonzero(np.isfinite(at.curves.first_nan)).tolist():
                if (at.level, row) not in diverged:
                    diverged.add((at.level, row))
                    name = names[row] if names else f"network {row}"
                    say(
                        f"{label.partition('/')[0]}: {name} diverged at step "
                        f"{at.curves.first_nan[row]:.0f}; it is kept out of every average"
                    )

    with bar:
        yield watch


class _Stream:
    """The file of metrics, a line per validation, of a run that trains levels."""

    def __init__(
        self, folder: pathlib.Path | None, begin: float, metric: Metric
    ) -> None:
        self.path = folder and folder / "metrics.jsonl"
        self.begin, self.metric = begin, metric
        self.open, self.best = False, ""

    def add(self, at: Progress) -> str:
        """Writes what was validated just now; returns the best value as text."""
        if self.path is None or at.level is None or at.curves is None:
            return ""
        if at.resumed:
            records.resume_stream(self.path, at.level, at.done)
        elif not self.open:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            records.resume_stream(self.path, -1, 0)
        self.open = True
        validated = at.done > at.start and at.done in at.curves.steps
        if at.resumed or not validated:
            return self.best
        column = list(at.curves.steps).index(at.done)
        name, better = f"validation_{self.metric.name}", self.metric.better
        recorded, nothing = at.curves.values, np.full(at.rows, np.nan)
        line = {  # without a validation split there is nothing
            n: recorded[n][:, column] if n in recorded else nothing
            for n in ("train_loss", name)
        }
        seconds = round(time.monotonic() - self.begin, 3)
        records.append_stream(
            self.path, {"level": at.level, "step": at.done, **line, "seconds": seconds}
        )
        if np.isfinite(line[name]).any():
            best = (np.nanmin if better == "lower" else np.nanmax)(line[name])
            shown = metrics.level(self.metric)
            self.best = f"validation {shown.label}: {shown.of(best):.3g}"
        return self.best


# --- when it ends ---------------------------------------------------------------------


def leave(
    folder: pathlib.Path,
    judged: Sequence[Judged],
    tables: Sequence[Rows],
    lines: Sequence[str],
) -> None:
    """Writes verdicts.json and table.md.

    Args:
      folder: the run folder.
      judged: a flat object each: its place, the claim, and the verdict.
      tables: one or more.
      lines: what follows from them, below.
    """
    text = json.dumps(plain(judged), indent=1)
    records.write_text(folder / "verdicts.json", text + "\n")
    parts = [table.markdown() for table in tables]
    parts += ["\n".join(f"- {line}" for line in lines)] * bool(lines)
    records.write_text(folder / "table.md", "\n\n".join(parts) + "\n")


def plain(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Verdicts for JSON: a flat object each, its place, the claim, and the verdict."""
    return records.finite(
        [
            {**one.where, "claim": one.claim, "verdict": verdicts.as_dict(one.verdict)}
            for one in judged
        ]
    )


def note(
    folder: pathlib.Path,
    judged: Sequence[Judged],
    *,
    experiment: str,
    preset: str,
    shows: str,
    command: str,
    figures: Sequence[str],
) -> dict[str, str]:
    """Puts what results say of themselves into those of a folder, if they say otherwise.

    It follows from fields that change no result, such as a tolerance, too, so it may change
    in a folder.

    Args:
      folder: of the run.
      judged: its verdicts.
      experiment: and all others: see `provenance.Provenance`.

    Returns:
      The attributes, as they are stored now.
    """
    said = provenance.attributes(
        experiment, preset, shows, command, figures, plain(judged), claims(judged)
    )
    found = records.load(folder / "results.nc")
    if not said.items() <= found.attrs.items():
        found.attrs |= said
        records.save(folder / "results.nc", found)
    return said


def show(tables: Sequence[Rows], lines: Sequence[str]) -> None:
    """Prints tables, and what follows from them."""
    console = Console()
    for table in tables:
        grid = _grid(table)
        if _width(console, grid) > console.width:
            # Spreads go below their means, and if even that is too wide nothing is cut.
            rows = [[cell.replace(" [", "\n[") for cell in row] for row in table.rows]
            header = [name.replace(" ", "\n") for name in table.header]
            grid = _grid(Rows(table.title, header, rows))
            console.width = max(console.width, _width(console, grid))
        console.print(table.title, highlight=False, markup=False, soft_wrap=True)
        console.print(grid, highlight=False, markup=False)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


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
