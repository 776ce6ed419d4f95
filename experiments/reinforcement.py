"""Tickets of policies: the return against density, and what finds them.

    python -m experiments.reinforcement                        # CartPole
    python -m experiments.reinforcement acrobot

Trains policies by advantage actor-critic, prunes all their leaves together and rewinds the
rest to an early step, level after level, beside fresh weights under the same mask, a random
mask of the same layer densities, and the surviving weights shuffled. Then the same without
late rewinding, and in one shot: is it the procedure that finds the ticket? And policies that
differ in nothing but their noise: by how much does the return fall on the line between them?

Yu et al., Playing the Lottery with Rewards and Multiple Languages, 2020, section 5.
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import display, imp, instability, metrics, presets, procedures
from experiments.display import Judged, Rows
from experiments.experiment import Experiment, Outcome
from experiments.identity import FREE
from experiments.kinds import policies
from experiments.recipes import Setup, metric
from lottery_jax import connectivity, errors, plots, verdicts
from lottery_jax.execution import Where

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True)
class Config(procedures.Config, policies.Playing):
    """Everything that a study is determined by, and where and how it runs."""

    branches: int = 2
    """Policies that go on from each of two steps, 0 and the rewind step, under different
    noise; 0 for none."""
    alphas: int = 11
    """Evenly spaced points of the line between two of them, the ends among them."""
    threshold: float = dataclasses.field(default=0.02, metadata=FREE)
    """How far the return may fall between stable policies, as a share of what there is
    between the lowest and the best return."""


# --- running --------------------------------------------------------------------------


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and plan; errors name the field."""
    setup = procedures.prepare(cfg)
    errors.whole("horizon", cfg.horizon, 1, setup.plan.steps, "the steps of a run")
    errors.at_least("threshold", cfg.threshold, 0)
    if cfg.branches:
        errors.whole("branches", cfg.branches, 2)
        errors.whole("alphas", cfg.alphas, 2)
        connectivity.check(plan_branches(setup))
    return setup


def plan_branches(setup: Setup) -> connectivity.Plan:
    """What is branched and measured between policies of different noise."""
    cfg, plan = setup.cfg, setup.plan
    return connectivity.Plan(
        steps=plan.steps,
        rewind_steps=tuple(sorted({0, plan.rewind_step})),
        branches=cfg.branches,
        alphas=cfg.alphas,
        splits=("test",),
        seed=plan.seed,
        every=plan.validate_every,
    )


def one(setup: Setup, ids: list[int], where: Where) -> "xr.Dataset":
    """The study of some replicas and all that is beside it, or what is missing of it."""
    cfg, task, tx, _ = setup
    results = procedures.one(setup, ids, where, "reinforcement")
    if not cfg.branches:
        return results
    with display.watched(where.below("branches")) as place:
        found = connectivity.run(
            task, tx, plan_branches(setup), replicas=ids, where=place
        )
    name = metric(cfg).name
    records = instability.rising(found.records, metric(cfg))
    lead = ("branched_at", "replica", "pair")
    at = (0, Ellipsis, 0, 0)  # one schedule, no statistics, one split
    along, fall = records[name][1], records["lii"][1]
    return results.assign_coords(
        branched_at=records["rewind_step"][1], alpha=records["alpha"][1]
    ).assign(
        {
            f"path_{name}": ((*lead, "alpha"), along[(*at, slice(None))]),
            "path_fall": (lead, fall[at]),
        }
    )


# --- what came out --------------------------------------------------------------------


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """What `procedures.judge` asks; and is there no fall between branches?"""
    judged = procedures.judge(results, cfg)
    if "path_fall" not in results:
        return judged
    played, pairs = policies.environment(cfg), results.sizes["pair"]
    clusters = np.repeat(results["replica"].values, pairs)
    names = [f"init {c}, pair {i % pairs}" for i, c in enumerate(clusters)]
    for step in results["branched_at"].values.tolist():
        fall = results["path_fall"].sel(branched_at=step)
        verdict = verdicts.stable(
            instability.samples(fall),
            cfg.threshold * (played.best - played.low),
            metric=metric(cfg),
            replicas=verdicts.Replicas(names, clusters),
        )
        where = {"branched_at": step, "level": 0, "density": 1.0}
        judged.append(Judged(where, "stable", verdict))
    return judged


def of_paths(judged: list[Judged]) -> list[Judged]:
    """The verdicts on what lies between branches."""
    return [one_ for one_ in judged if "branched_at" in one_.where]


def of_tickets(judged: list[Judged]) -> list[Judged]:
    """The others: those on tickets."""
    return [one_ for one_ in judged if "branched_at" not in one_.where]


def conclusions(outcome: Outcome) -> list[str]:
    """At which densities each claim holds, who diverged, and where training is stable."""
    paths = of_paths(outcome.judged)
    lines = imp.conclusions(outcome._replace(judged=of_tickets(outcome.judged)))
    if paths:
        text = display.answers(paths, "k = {}", lambda j: str(j.where["branched_at"]))
        below = paths[0].verdict.tolerance
        lines.append(
            f"stable (the return between two branches of step k falls by less than "
            f"{below:g}): {text}"
        )
    return lines


def tables(outcome: Outcome) -> list[Rows]:
    """The return at each density, of each arm and other procedure; and between branches."""
    results = outcome.results
    lines, shown = procedures.lines(results, "test_return"), metrics.level(RETURN)
    rows = []
    at = zip(results["level"].values, procedures.densities(results))
    for level, density in at:
        values = (x.sel(level=level).values for x in lines.values())
        row = [str(int(level)), f"{100 * density:.1f}"]
        rows.append(row + [display.mean_range(x, 1) for x in values])
    number = f"mean [min, max] of {results.sizes['replica']} replicas"
    title = f"Test {shown.text}: {number}"
    found = [Rows(title, ["level", "density %", *lines], rows)]
    if "path_fall" in results:
        along, rows = results["path_return"], []
        for step in results["branched_at"].values:
            own = along.sel(branched_at=step)
            ends = own.isel(alpha=[0, -1]).mean("alpha")
            fall = results["path_fall"].sel(branched_at=step)
            values = (ends, own.min("alpha"), fall)
            rows.append(
                [str(int(step)), *(display.mean_range(x.values, 1) for x in values)]
            )
        title = f"Dense policies that differ in noise from step k on: {number}"
        header = ["k", "return at the ends", "lowest between them", "fall"]
        found.append(Rows(title, header, rows))
    return found


def figures(outcome: Outcome) -> Iterator[tuple[Any, ...]]:
    """The return against density, of arms and procedures; differences; between branches."""
    results, cfg = outcome.results, outcome.cfg
    lines = procedures.lines(results, "test_return")
    judged, density = of_tickets(outcome.judged), procedures.densities(results)
    about = f"{outcome.preset}: {outcome.networks}"
    number = f"mean of {results.sizes['replica']} replicas, bars: min to max"
    dense = results["level"].values[0] == 0
    for name, drawn in procedures.drawn(lines, results, cfg, "return").items():
        figure = plots.against_density(
            density,
            drawn,
            ylabel=f"test return of {cfg.episodes} episodes at the end of training",
            title=f"{about}\n{number}",
            baseline=float(np.nanmean(lines["ticket"].sel(level=0))) if dense else None,
        )
        yield name, figure, procedures.about(judged, name, results)
    if differences := _differences(judged, results):
        figure = plots.against_density(
            density[-len(next(iter(differences.values()))[0]) :],
            differences,
            ylabel="return of the ticket, minus that of ...",
            title=f"{about}\npaired over {results.sizes['replica']} replicas, bars: "
            "95% intervals",
            baseline=0.0,
            baseline_label="no difference",
        )
        yield "differences", figure, []
    if "path_return" in results:
        along = results["path_return"]
        figure = plots.along_path(
            results["alpha"].values,
            {
                f"from step {step}": instability.samples(
                    along.sel(branched_at=step), "alpha"
                )
                for step in results["branched_at"].values.tolist()
            },
            ylabel="test return",
            title=f"{about}: policies that differ in noise\nmean and standard deviation "
            f"of {along.sizes['replica']} inits x {along.sizes['pair']} pairs",
            ends=("one branch", "another"),
        )
        yield "between_branches", figure, of_paths(outcome.judged)
    yield from (
        drawn_ for drawn_ in imp.figures(outcome) if drawn_[0] == "layer_density"
    )


def _differences(judged: list[Judged], results: "xr.Dataset") -> dict[str, np.ndarray]:
    """By what tickets are compared with: the interval of the difference at each level.

    Three rows: both ends and the estimate between them, whose mean is the estimate.
    """
    levels = [level for level in results["level"].values.tolist() if level > 0]
    found: dict[str, np.ndarray] = {}
    for one_ in judged:
        if not one_.claim.startswith("better than "):
            continue
        name = one_.claim.removeprefix("better than ")
        rows = found.setdefault(name, np.full((3, len(levels)), np.nan))
        verdict = one_.verdict
        rows[:, levels.index(one_.where["level"])] = (
            verdict.low,
            verdict.estimate,
            verdict.high,
        )
    return {name: rows for name, rows in found.items() if np.isfinite(rows).any()}


RETURN = verdicts.RETURN

PRESETS = presets.make(Config, presets.REINFORCEMENT)

EXPERIMENT = Experiment(
    name="reinforcement",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    default="cartpole",
    tiny="--model actor-critic-4 --batch-size 4 --horizon 2 --episodes 2 --steps 3it "
    "--rewind-step 1it --validate-every 3 --levels 1 --replicas 2 --alphas 2",
    prepare=prepare,
    one=one,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
    complete=imp.complete,
    again=imp.retrain,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
