"""Tickets of policies: the return against density, and what finds them.

    python -m experiments.reinforcement                        # CartPole
    python -m experiments.reinforcement acrobot

Trains policies by advantage actor-critic, prunes all their leaves together and rewinds the
rest to an early step, level after level, beside fresh weights under the same mask, a random
mask of the same layer densities, and the surviving weights shuffled. Then the same without
late rewinding, and in one shot: is it the procedure that finds the ticket? And policies that
differ in nothing but their noise: by how much does the return fall on the line between them?

Yu et al., Playing the Lottery with Rewards and Multiple Languages, 2020.
"""

import dataclasses
import itertools
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import cost, display, imp, instability, metrics, presets, procedures
from experiments.display import Judged, Rows
from experiments.experiment import Experiment, Outcome
from experiments.experiment import dataset as recorded
from experiments.identity import FREE
from experiments.kinds import policies
from experiments.recipes import Setup, metric
from experiments.rewinding import subnetworks
from lottery_jax import connectivity, errors, plots, verdicts
from lottery_jax.execution import Where

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True)
class Config(procedures.Config, policies.Playing):
    """Everything that a study is determined by, and where and how it runs."""

    branches: int = 2
    """Policies that go on from the rewind step, and from step 0 if that is `beside`, under
    different noise; 0 for none."""
    branch_levels: tuple[int, ...] = (0, 5)
    """Levels of pruning at which they do; level 0 is dense."""
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
    if not cfg.branches:
        return setup
    errors.whole("branches", cfg.branches, 2)
    errors.whole("alphas", cfg.alphas, 2)
    errors.some_different("branch_levels", cfg.branch_levels)
    errors.wholes("branch_levels", cfg.branch_levels, 0, imp.levels(cfg))
    return setup


def one(setup: Setup, ids: list[int], where: Where) -> "xr.Dataset":
    """The study of some replicas and all that is beside it, or what is missing of it."""
    results = procedures.one(setup, ids, where, "reinforcement")
    if not setup.cfg.branches:
        return results
    found = between_branches(setup, ids, where)
    for name in found:
        found[name] = found[name].where(_sound(results, setup.cfg, found))
    return results.merge(found)


def _sound(results: "xr.Dataset", cfg: Config, found: "xr.Dataset") -> "xr.DataArray":
    """Where neither a ticket diverged nor what its mask was made from.

    Returns:
      Bools, `[branched_at, branch_level, replica]`.
    """
    late = results["diverged"].sel(arm="ticket").isel(chain=0, drop=True)
    steps = found["branched_at"].values.tolist()
    flags = [
        results["beside_diverged"].sel(procedure="from_0", drop=True)
        if step == 0 and "from_0" in cfg.beside
        else late
        for step in steps
    ]
    levels = {"level": list(cfg.branch_levels)}
    rows = [
        flag.drop_vars("arm", errors="ignore").sel(levels).rename(level="branch_level")
        for flag in flags
    ]
    values = [row.transpose("branch_level", "replica").values == 0 for row in rows]
    return found["path_fall"].isel(pair=0, drop=True).copy(data=np.stack(values))


def between_branches(setup: Setup, ids: list[int], where: Where) -> "xr.Dataset":
    """The return on the lines between policies that differ in noise alone.

    They go on from the stored tickets of some levels, with a fresh optimizer and fresh
    games: a ticket's file holds none.

    Args:
      setup: from `prepare`.
      ids: of the replicas.
      where: the study of these has run.
    """
    cfg, plan = setup.cfg, setup.plan
    (chain,) = plan.chains
    places = {plan.rewind_step: (where, chain.name)}
    if "from_0" in cfg.beside:
        places[0] = (where.below("beside"), "from_0")

    def stored(step: int) -> tuple[pathlib.Path | str, str]:
        place, name = places[step]
        assert place.folder is not None
        return place.folder, name

    grid = list(itertools.product(sorted(places), cfg.branch_levels))
    cells = subnetworks.cells(
        setup, ids, [(*at, "ticket") for at in grid], where, stored
    )
    numbers = [cfg.branches] * len(cells.step)
    done = subnetworks.train(setup, cells, numbers, ids, where)
    ends = [
        (first + a, first + b)
        for first in range(0, len(done.cell), cfg.branches)
        for a, b in itertools.combinations(range(cfg.branches), 2)
    ]
    with display.watched(done.where.below("paths")) as place:
        path = connectivity.linear.paths(
            setup.task,
            done.networks,
            ends,
            connectivity.Measure(cfg.alphas, None, ("test",)),
            masks=done.masks,
            where=place,
        )
    own = metric(cfg)
    shape = (len(places), len(cfg.branch_levels), len(ids), -1)
    along = path.values[own.name].reshape(*shape, cfg.alphas)
    sign = 1 if own.better == "lower" else -1
    axes = ("branched_at", "branch_level", "replica", "pair")
    return recorded(
        cfg,
        {
            f"path_{own.name}": ((*axes, "alpha"), along),
            "path_fall": (axes, connectivity.instability(sign * along)),
        },
        {
            "branched_at": sorted(places),
            "branch_level": list(cfg.branch_levels),
            "replica": ids,
            "alpha": path.alphas,
        },
    )


def work(setup: Setup) -> cost.Work:
    """What the study, all beside it and the branches cost."""
    cfg, own = setup.cfg, procedures.work(setup)
    if not cfg.branches:
        return own
    of, plan = cost.of_setup(setup), setup.plan
    steps = {plan.rewind_step, *([0] if "from_0" in cfg.beside else [])}
    cells = len(steps) * len(cfg.branch_levels) * cfg.replicas
    number = cells * cfg.branches
    orders = cfg.replicas * cfg.branches
    done = cost.trained(
        "branches", of, number, plan.steps, first=min(steps), orders=orders
    )
    points = cells * math.comb(cfg.branches, 2) * cfg.alphas
    path = cost.Measured("paths", of, points, of.test, path=True)
    return cost.together(own, done, cost.Work((), (path,)))


# --- what came out --------------------------------------------------------------------


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """What `procedures.judge` asks; and is there no fall between branches?"""
    judged = procedures.judge(results, cfg)
    if "path_fall" not in results:
        return judged
    played, pairs = policies.environment(cfg), results.sizes["pair"]
    clusters = np.repeat(results["replica"].values, pairs)
    names = [f"init {c}, pair {i % pairs}" for i, c in enumerate(clusters)]
    density = results["density"].sel(arm="ticket").isel(chain=0).mean("replica")
    for at in _branched(results):
        level = at["branch_level"]
        verdict = verdicts.stable(
            instability.samples(results["path_fall"].sel(at)),
            cfg.threshold * (played.best - played.low),
            metric=metric(cfg),
            replicas=verdicts.Replicas(names, clusters),
        )
        where = {
            "branched_at": at["branched_at"],
            "level": level,
            "density": float(density.sel(level=level)),
        }
        judged.append(Judged(where, "stable", verdict))
    return judged


def _branched(results: "xr.Dataset") -> list[dict[str, int]]:
    """Where policies branch: a step and a level each."""
    axes = ("branched_at", "branch_level")
    values = (results[axis].values.tolist() for axis in axes)
    return [dict(zip(axes, at)) for at in itertools.product(*values)]


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
        text = display.answers(
            paths,
            "{}",
            lambda j: (
                f"k = {j.where['branched_at']} with {100 * j.where['density']:.1f}%"
            ),
        )
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

    def written(*values: "xr.DataArray") -> list[str]:
        return [display.mean_range(x.values, 1) for x in values]

    rows = []
    for level, density in zip(
        results["level"].values, procedures.densities(results), strict=True
    ):
        row = [str(int(level)), f"{100 * density:.1f}"]
        rows.append(row + written(*(x.sel(level=level) for x in lines.values())))
    number = f"mean [min, max] of {results.sizes['replica']} replicas"
    title = f"Test {shown.text}: {number}"
    found = [Rows(title, ["level", "density %", *lines], rows)]
    if "path_fall" in results:
        rows = []
        for at in _branched(results):
            along, fall = (results[f"path_{x}"].sel(at) for x in ("return", "fall"))
            ends = along.isel(alpha=[0, -1]).mean("alpha")
            row = [str(at["branched_at"]), str(at["branch_level"])]
            rows.append(row + written(ends, along.min("alpha"), fall))
        title = f"Policies that differ in noise from step k on: {number}"
        header = ["k", "level", "return at the ends", "lowest between them", "fall"]
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
                f"k = {at['branched_at']}, level {at['branch_level']}": (
                    instability.samples(along.sel(at), "alpha")
                )
                for at in _branched(results)
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
    "--rewind-step 1it --validate-every 3 --levels 1 --replicas 2 --alphas 2 "
    "--branch-levels 0 1",
    prepare=prepare,
    one=one,
    work=work,
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
