"""What a study of an encoder's tickets says: verdicts, tables and figures."""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import display, metrics
from experiments.bert_tickets.config import Config
from experiments.display import Judged, Rows, mean_deviation
from experiments.experiment import Outcome
from lottery_jax import plots, verdicts
from lottery_jax.verdicts import METRICS, Metric

if TYPE_CHECKING:
    import xarray as xr

CONTROLS = {
    "random_mask": "random mask",
    "reinit": "random weights",
    "reinit_raw": "random weights",
    "shuffled_weights": "shuffled pre-trained weights",
}
"""What the arms are called here: the mask is the ticket's where the weights are not."""


def metrics_of(results: "xr.Dataset") -> dict[str, Metric]:
    """What networks of each task are compared by."""
    found = results.attrs["metrics"]
    named = json.loads(found) if isinstance(found, str) else found
    return {task: METRICS[name] for task, name in named.items()}


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Is each ticket matching, is it better than its controls, do masks transfer?

    "At least as good" is non-inferiority to the task's own ticket, within the tolerance.
    """
    names = [f"replica {i}" for i in results["replica"].values]
    replicas, judged = verdicts.Replicas(names), []
    own = metrics_of(results)

    def matches(
        claim: str, where: dict[str, Any], a: Any, b: Any, metric: Metric
    ) -> None:
        found = verdicts.matching(
            a.values, b.values, cfg.tolerance, metric=metric, replicas=replicas
        )
        judged.append(Judged(where, claim, found._replace(claim=claim)))

    for task, metric in own.items():
        ticket = results["ticket"].sel(task=task)
        for level in results["level"].values[1:].tolist():
            where = {"task": task, "level": level, "sparsity": _sparsity(level)}
            a, dense = ticket.sel(level=level), ticket.sel(level=0)
            matches("ticket matches dense", where, a, dense, metric)
        for level, arm in itertools.product(
            results["control_level"].values.tolist(), results["arm"].values.tolist()
        ):
            control = results["control"].sel(task=task, control_level=level, arm=arm)
            claim = f"ticket better than {CONTROLS[arm]}"
            where = {"task": task, "level": level, "sparsity": _sparsity(level)}
            found = verdicts.better(
                ticket.sel(level=level).values,
                control.values,
                claim=claim,
                metric=metric,
                replicas=replicas,
            )
            judged.append(Judged(where, claim, found))
        at = results["transferred"].sel(target=task)
        native = at.sel(source=task)
        for source in results["source"].values.tolist():
            if source == task:
                continue
            where = {"source": source, "target": task}
            moved = at.sel(source=source)
            claim = "transferred at least as good as the same-task ticket"
            matches(claim, where, moved, native, metric)
            dense = ticket.sel(level=0)
            matches("transferred matches dense", where, moved, dense, metric)
    return judged


def _sparsity(level: int) -> int:
    """In percent, of a level that removes 10% of the original weights."""
    return 10 * level


def matching_sparsity(judged: Sequence[Judged], task: str) -> dict[str, int | None]:
    """The highest sparsity, in percent, up to which tickets of a task match.

    Returns:
      By how it is counted: "mean", where the mean is within the tolerance, as papers have
      it; "surely", where the verdict is yes. None where not even the first level does.
    """
    found: dict[str, int | None] = {}
    mine = [
        one
        for one in judged
        if one.claim == "ticket matches dense" and one.where["task"] == task
    ]
    for kind in ("mean", "surely"):
        best = None
        for one in sorted(mine, key=lambda one: one.where["level"]):
            verdict = one.verdict
            holds = (
                verdict.answer == "yes"
                if kind == "surely"
                else (
                    verdict.estimate <= verdict.tolerance
                    if verdict.side in ("<", "<=")
                    else verdict.estimate >= verdict.tolerance
                )
            )
            if not holds:
                break
            best = one.where["sparsity"]
        found[kind] = best
    return found


def as_good(judged: Sequence[Judged], source: str) -> tuple[int, int, int]:
    """How often a source is at least as good as the task's own ticket.

    Returns:
      On how many targets its mean is no worse, on how many that is sure within the
      tolerance, and of how many other targets.
    """
    mine = [
        one.verdict
        for one in judged
        if one.claim.startswith("transferred at least")
        and one.where["source"] == source
    ]
    no_worse = sum(
        v.estimate <= 0 if v.side in ("<", "<=") else v.estimate >= 0 for v in mine
    )
    return no_worse, sum(v.answer == "yes" for v in mine), len(mine)


# --- in words and numbers -------------------------------------------------------------


def tables(outcome: Outcome) -> list[Rows]:
    """Tickets and controls; the highest matching sparsity; the matrix; common weights."""
    return [_levels(outcome), _matching(outcome), _matrix(outcome), _overlap(outcome)]


def _levels(outcome: Outcome) -> Rows:
    results = outcome.results
    arms = [str(arm) for arm in results["arm"].values]
    rows = []
    for task, metric in metrics_of(results).items():
        shown = metrics.quality(metric)
        for level in results["level"].values.tolist():
            at = shown.of(results["ticket"].sel(task=task, level=level)).values
            row = [task, shown.name, str(_sparsity(level)), mean_deviation(at, 1)]
            for arm in arms:
                if level in results["control_level"]:
                    at = results["control"].sel(task=task, control_level=level, arm=arm)
                    row.append(mean_deviation(shown.of(at).values, 1))
                else:
                    row.append("-")
            rows.append(row)
    header = [
        "task",
        "metric",
        "sparsity %",
        "ticket",
        *(CONTROLS[arm] for arm in arms),
    ]
    title = f"{outcome.preset}: test metric times 100, mean ± deviation of "
    return Rows(f"{title}{results.sizes['replica']} replicas", header, rows)


def _matching(outcome: Outcome) -> Rows:
    def text(value: int | None) -> str:
        return "none" if value is None else str(value)

    rows = []
    for task, metric in metrics_of(outcome.results).items():
        found = matching_sparsity(outcome.judged, task)
        rows.append([task, metric.name, text(found["mean"]), text(found["surely"])])
    header = ["task", "metric", "by the mean", "by the interval"]
    return Rows("Highest sparsity of matching tickets, in %", header, rows)


def _matrix(outcome: Outcome) -> Rows:
    results = outcome.results
    own = metrics_of(results)
    rows = []
    for source in results["source"].values.tolist():
        row = [source]
        for target, metric in own.items():
            at = results["transferred"].sel(target=target, source=source).values
            row.append(mean_deviation(metrics.quality(metric).of(at), 1))
        better, surely, of = as_good(outcome.judged, source)
        rows.append([*row, f"{better} of {of}", f"{surely} of {of}"])
    dense = ["dense"]
    for target, metric in own.items():
        at = results["ticket"].sel(task=target, level=0).values
        dense.append(mean_deviation(metrics.quality(metric).of(at), 1))
    rows.append([*dense, "-", "-"])
    header = ["ticket of", *(f"on {target}" for target in own)]
    header += ["no worse than same-task", "surely"]
    sparsity = _sparsity(outcome.cfg.transfer_level)
    title = f"Masks of {sparsity}% sparsity of each task on each: test metric times 100"
    return Rows(title, header, rows)


def _overlap(outcome: Outcome) -> Rows:
    found = outcome.results["overlap"].mean("replica")
    names = found["source"].values.tolist()
    rows = [
        [
            source,
            *(f"{100 * float(found.sel(source=source, other=o)):.1f}" for o in names),
        ]
        for source in names
    ]
    density = 100 - _sparsity(outcome.cfg.transfer_level)
    title = "Surviving weights of one mask that survive in another, too, in % "
    return Rows(f"{title}(by chance {density})", ["", *names], rows)


def conclusions(outcome: Outcome) -> list[str]:
    """How often each claim holds, and of how many targets each source is good."""
    lines = display.claims(outcome.judged)
    for source in outcome.results["source"].values.tolist():
        better, surely, of = as_good(outcome.judged, source)
        lines.append(
            f"Masks of {source}: no worse in the mean than the same-task ticket on {better} "
            f"of {of} other tasks, surely on {surely}"
        )
    for name in ("ticket", "control", "transferred"):
        if number := int(np.isnan(outcome.results[name]).sum()):
            lines.append(
                f"Diverged, and left out of every average: {number} of {name}s"
            )
    return lines


# --- figures --------------------------------------------------------------------------


def figures(outcome: Outcome) -> Iterator[tuple[str, Any, Sequence[Judged]]]:
    """Tickets and controls over sparsity, a panel per task; the matrix of transfer."""
    judged = outcome.judged
    of_tickets = [one for one in judged if one.claim.startswith("ticket ")]
    yield "tickets", _panels(outcome), of_tickets
    rest = [one for one in judged if one not in of_tickets]
    yield "transfer", _maps(outcome), rest


def _panels(outcome: Outcome) -> Any:
    results = outcome.results
    levels = results["level"].values.tolist()
    panels = {}
    for task, metric in metrics_of(results).items():
        shown = metrics.quality(metric)
        ticket = shown.of(results["ticket"].sel(task=task))
        lines = {"ticket": ticket.transpose("replica", "level").values}
        for arm in results["arm"].values.tolist():
            at = shown.of(results["control"].sel(task=task, arm=arm))
            at = at.transpose("replica", "control_level").values
            line = np.full((len(at), len(levels)), np.nan)
            for i, level in enumerate(results["control_level"].values.tolist()):
                line[:, levels.index(level)] = at[:, i]
            lines[CONTROLS[arm]] = line
        unit = f" ({shown.unit})" if shown.unit else ""
        dense = float(ticket.sel(level=0).mean())
        panels[f"{task}: {shown.name}{unit}"] = plots.Panel(lines, {"dense": dense})
    return plots.panels_against(
        np.array([_sparsity(level) for level in levels]),
        panels,
        xlabel="sparsity (%)",
        ylabel="test metric",
        title=f"{outcome.preset}: tickets from pre-trained weights; mean of "
        f"{results.sizes['replica']} replicas, bars: min to max",
    )


def _maps(outcome: Outcome) -> Any:
    results, own = outcome.results, metrics_of(outcome.results)
    sources = results["source"].values.tolist()

    def above(reference: Any) -> np.ndarray:
        """How much better than a reference, `[source, target]`, in points."""
        columns = []
        for target, metric in own.items():
            at = results["transferred"].sel(target=target)
            sign = 1 if metric.better == "higher" else -1
            away = sign * metric.scale * (at - reference(target))
            columns.append(away.mean("replica").values)
        return np.stack(columns, axis=1)

    same = above(lambda t: results["transferred"].sel(target=t, source=t))
    dense = above(lambda t: results["ticket"].sel(task=t, level=0))
    sparsity = _sparsity(outcome.cfg.transfer_level)
    return plots.matrices(
        {"against the same-task ticket": same, "against dense": dense},
        rows=sources,
        columns=list(own),
        label="better (+) or worse (-)\nby so many points",
        ylabel="mask of",
        xlabel="trained on",
        title=f"{outcome.preset}: masks of {sparsity}% sparsity, mean of "
        f"{results.sizes['replica']} replicas; bold and *: no worse",
        marked={
            "against the same-task ticket": same >= 0,
            "against dense": dense >= 0,
        },
    )
