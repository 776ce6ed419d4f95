"""Error and instability of subnetworks against the rewind step: stable iff matching?

Frankle et al. 2020, sections 4 and 5; barriers between successive levels as in Paul et
al. 2023.
"""

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments import cost, metrics
from experiments.display import Judged, Rows
from experiments.experiment import Experiment, Outcome, dataset
from experiments.instability import samples
from experiments.recipes import Setup, metric, parse_step, parse_steps, set_up_paths
from experiments.rewinding import subnetworks
from experiments.rewinding.config import PRESETS, Config
from lottery_jax import errors, imp, plots, verdicts
from lottery_jax.connectivity.linear import Projection
from lottery_jax.execution import Where

if TYPE_CHECKING:
    import xarray as xr

SPLITS = ("train", "test")
PROJECTIONS: tuple[Projection, ...] = ("intersection", "union")
ANSWERS: tuple[verdicts.Answer, ...] = ("yes", "no", "undecided")


def plan(cfg: Config, steps_per_epoch: int) -> imp.Plan:
    """One chain for each rewind step.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    chosen = sorted(set(parse_steps(cfg, "rewind_steps", steps_per_epoch)))
    if not chosen:
        raise ValueError("rewind_steps=(); there must be one at least")
    return imp.check(
        imp.Plan(
            steps=parse_step(cfg, "steps", steps_per_epoch),
            chains=tuple(
                imp.Chain(
                    name=subnetworks.chain_name(step),
                    rewind_step=step,
                    densities=imp.Geometric(cfg.fraction),
                    scope=cfg.scope,
                )
                for step in chosen
            ),
            arms=("ticket",),
            validate_every=cfg.every,
            seed=cfg.seed,
        )
    )


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and plan; errors name the field."""
    setup = set_up_paths(cfg, cfg.batch_norm)
    errors.at_least("branches", cfg.branches, 2)
    if 0 not in cfg.levels or min(cfg.levels) < 0 or len(cfg.levels) < 2:
        raise ValueError(
            f"levels={cfg.levels}; there must be 0, the dense network that the others are "
            "compared with, and another level"
        )
    if "ticket" not in cfg.arms:
        raise ValueError(f"arms={cfg.arms}; 'ticket' must be there")
    protocol = plan(cfg, setup.task.steps_per_epoch)
    imp.check_task(setup.task, protocol, max(cfg.levels))
    return setup._replace(plan=protocol)


# --- running --------------------------------------------------------------------------


def one(setup: Setup, ids: list[int], where: Where) -> "xr.Dataset":
    """Some replicas: prune, branch, measure."""
    cfg, protocol = setup.cfg, setup.plan
    steps, last = list(protocol.rewind_steps), max(cfg.levels)
    levels = sorted(set(cfg.levels))
    grid = [
        (step, level, arm)
        for step in steps
        for level in levels
        for arm in (cfg.arms if level else ("ticket",))
    ]
    # Barriers between successive levels need one branch of every ticket.
    between = [
        (step, level, "ticket")
        for step in steps
        for level in range(last + 1)
        if cfg.successive and level not in cfg.levels
    ]
    numbers = [cfg.branches] * (len(grid) * len(ids)) + [1] * (len(between) * len(ids))
    found = where.below("imp")
    subnetworks.find(setup, protocol, ids, found)
    cells = subnetworks.cells(setup, ids, [*grid, *between], found)
    trained = subnetworks.train(setup, cells, numbers, ids, where)
    how = cfg.measure(cfg.batch_norm)
    measured = subnetworks.measure(setup, trained, how)
    out = _arrange(setup, ids, cells, trained, measured)
    coordinates = {
        "rewind_step": steps,
        "level": levels,
        "arm": list(cfg.arms),
        "replica": ids,
        "split": list(SPLITS),
    }
    if cfg.successive:
        out |= _levels(setup, ids, cells, trained)
        coordinates |= {"projection": list(PROJECTIONS), "earlier": list(range(last))}
    return dataset(
        cfg,
        out,
        coordinates,
        execution=trained.execution._asdict(),
        steps=protocol.steps,
    )


def work(setup: Setup) -> cost.Work:
    """What the study computes."""
    cfg, protocol, of = setup.cfg, setup.plan, cost.of_setup(setup)
    steps, last, replicas = protocol.rewind_steps, max(cfg.levels), cfg.replicas
    pruned = len(set(cfg.levels)) - 1
    cells = len(steps) * replicas * (1 + pruned * len(cfg.arms))
    successive = len(set(range(last + 1)) - set(cfg.levels)) if cfg.successive else 0
    branches = cells * cfg.branches + len(steps) * replicas * successive
    parts = [cost.study(of, protocol, last, replicas)]
    if "reinit" in cfg.arms:
        parts.append(subnetworks.work_of_draws(of, steps, replicas))
    parts.append(subnetworks.work(of, branches, protocol, replicas * cfg.branches))
    number = cells * math.comb(cfg.branches, 2)
    parts.append(cost.lines(of, cfg, number, cfg.batch_norm))
    examples = cost.path_examples(of, cfg)
    ends = cost.Measured("branches", of, branches, examples)
    parts.append(cost.Work((), (ends,)))
    if cfg.successive:
        number = len(PROJECTIONS) * len(steps) * replicas * last
        parts.append(cost.lines(of, cfg, number, cfg.batch_norm))
    return cost.together(*parts)


def _arrange(
    setup: Setup,
    ids: list[int],
    cells: subnetworks.Cells,
    trained: subnetworks.Trained,
    measured: subnetworks.Measured,
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """From cells to named axes; what was not run is nan."""
    cfg = setup.cfg
    steps, levels = list(setup.plan.rewind_steps), sorted(set(cfg.levels))
    shape = (len(steps), len(levels), len(cfg.arms), len(ids))
    lead = ("rewind_step", "level", "arm", "replica")

    def empty(*rest: int) -> np.ndarray:
        return np.full((*shape, *rest), np.nan, np.float32)

    number = cfg.branches
    error, first_nan = empty(number, len(SPLITS)), empty(number)
    lii, angle = empty(*measured.lii.shape[1:]), empty(measured.angle.shape[1])
    density = empty()
    for c in range(len(cells.step)):
        if cells.level[c] not in levels:
            continue
        at = (
            steps.index(cells.step[c]),
            levels.index(cells.level[c]),
            list(cfg.arms).index(cells.arm[c]),
            cells.replica[c],
        )
        mine = trained.cell == c
        error[at], first_nan[at] = measured.error[mine], trained.first_nan[mine]
        lii[at], angle[at] = measured.lii[c], measured.angle[c]
        density[at] = cells.density[c]
    return {
        "error": ((*lead, "branch", "split"), error),
        "first_nan": ((*lead, "branch"), first_nan),
        "lii": ((*lead, "pair", "split"), lii),
        "angle": ((*lead, "pair"), angle),
        "density": (lead, density),
    }


def _levels(
    setup: Setup,
    ids: list[int],
    cells: subnetworks.Cells,
    trained: subnetworks.Trained,
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    cfg = setup.cfg
    steps, last = list(setup.plan.rewind_steps), max(cfg.levels)
    shape = (len(PROJECTIONS), len(steps), last, len(ids), len(SPLITS))
    barrier = np.full(shape, np.nan, np.float32)
    density = np.full((last,), np.nan, np.float32)
    for p, projection in enumerate(PROJECTIONS):
        how = cfg.measure(cfg.batch_norm)
        found = subnetworks.level_barriers(setup, cells, trained, how, projection)
        for a, b, height in found:
            at = (steps.index(cells.step[a]), cells.level[a], cells.replica[a])
            barrier[(p, *at)] = height
            density[cells.level[a]] = cells.density[b]
    axes = ("projection", "rewind_step", "earlier", "replica", "split")
    return {
        "level_barrier": (axes, barrier),
        "later_density": (("earlier",), density),
    }


# --- what came out --------------------------------------------------------------------


def dense_error(results: "xr.Dataset") -> "xr.DataArray":
    """The dense network's error at each k, mean over branches; per replica and split."""
    return results["error"].sel(level=0, arm="ticket", drop=True).mean("branch")


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Stable? Matching? For each (k, level, arm), with an interval over replicas."""
    names = [f"replica {i}" for i in results["replica"].values]
    lii = results["lii"].sel(split="test")
    pairs = lii.sizes["pair"]
    clusters = np.repeat(results["replica"].values, pairs)
    pair_names = [f"{n}, pair {p}" for n in names for p in range(pairs)]
    error = results["error"].sel(split="test").mean("branch", skipna=False)
    dense = dense_error(results).sel(split="test")
    judged = []
    axes = ("rewind_step", "level", "arm")
    for step, level, arm in itertools.product(
        *(results[a].values.tolist() for a in axes)
    ):
        if level == 0 and arm != "ticket":
            continue
        at = dict(rewind_step=step, level=level, arm=arm)
        where = {
            "rewind_step": step,
            "level": level,
            "density": float(results["density"].sel(at).mean()),
            "arm": arm,
        }
        stable = verdicts.stable(
            samples(lii.sel(at)),
            cfg.threshold,
            metric=metric(cfg),
            replicas=verdicts.Replicas(pair_names, clusters),
        )
        own, reference = error.sel(at).values, dense.sel(rewind_step=step).values
        matching = verdicts.matching(
            own,
            reference,
            cfg.tolerance,
            metric=metric(cfg),
            replicas=verdicts.Replicas(names),
        )
        judged += [Judged(where, "stable", stable), Judged(where, "matching", matching)]
    return judged


class Subnetwork(NamedTuple):
    """Both verdicts on the subnetworks of one (k, level, arm).

    Attributes:
      rewind_step: k.
      level: of pruning.
      density: share of the weights that survive.
      arm: its name.
      stable: whether its LII is below the threshold.
      matching: whether its error is no higher than dense.
    """

    rewind_step: int
    level: int
    density: float
    arm: str
    stable: verdicts.Verdict
    matching: verdicts.Verdict


def subnetworks_of(judged: list[Judged]) -> list[Subnetwork]:
    """The verdicts two by two."""
    both: dict[tuple[Any, ...], dict[str, Any]] = {}
    for where, claim, verdict in judged:
        both.setdefault(tuple(where.items()), dict(where))[claim] = verdict
    return [Subnetwork(**fields) for fields in both.values()]


def contingency(found: list[Subnetwork]) -> Rows:
    """How often stable and matching go together, over all (k, level, arm) but dense."""
    pairs = [(s.stable.answer, s.matching.answer) for s in found if s.level > 0]
    rows = [
        [f"stable: {stable}", *(str(pairs.count((stable, m))) for m in ANSWERS)]
        for stable in ANSWERS
    ]
    title = "Stable against matching, by the intervals"
    return Rows(title, ["", *(f"matching: {a}" for a in ANSWERS)], rows)


def contingency_of_means(found: list[Subnetwork], cfg: Config) -> Rows:
    """The same by the means alone, without intervals: everything is decided."""
    pairs = [
        (s.stable.estimate < cfg.threshold, s.matching.estimate <= cfg.tolerance)
        for s in found
        if s.level > 0
    ]
    rows = [
        [
            f"mean LII {'below' if stable else 'above'}",
            *(str(pairs.count((stable, matching))) for matching in (True, False)),
        ]
        for stable in (True, False)
    ]
    header = ["", "mean error matches", "mean error does not"]
    return Rows("By the means alone", header, rows)


def smallest_steps(found: list[Subnetwork]) -> dict[str, np.ndarray]:
    """By claim, the smallest k at which the ticket is so by its mean; nan: at none.

    Levels are in ascending order.
    """

    def smallest(level: int, claim: str) -> float:
        return min(
            (
                float(s.rewind_step)
                for s in found
                if (s.level, s.arm) == (level, "ticket")
                and getattr(s, claim).estimate <= getattr(s, claim).tolerance
            ),
            default=np.nan,
        )

    levels = sorted({s.level for s in found})
    return {
        claim: np.array([smallest(level, claim) for level in levels])
        for claim in ("stable", "matching")
    }


def conclusions(outcome: Outcome) -> list[str]:
    """At the smallest k where the ticket is stable and matching, are the controls?"""
    points = metrics.difference(outcome.metric)
    return claim_at_first(subnetworks_of(outcome.judged), points)


def claim_at_first(found: list[Subnetwork], points: metrics.Shown) -> list[str]:
    """A line for each density; see `conclusions`."""
    lines = []
    for level in sorted({s.level for s in found if s.level > 0}):
        mine = [s for s in found if s.level == level]
        density = f"{100 * mine[0].density:.1f}%"
        first = min(
            (
                s.rewind_step
                for s in mine
                if s.arm == "ticket" and s.stable.answer == s.matching.answer == "yes"
            ),
            default=None,
        )
        if first is None:
            lines.append(
                f"density {density}: no k at which the ticket is both stable and matching "
                "by the intervals"
            )
            continue
        text = "; ".join(
            f"{s.arm.replace('_', ' ')}: stable {s.stable.answer} "
            f"({points.of(s.stable.estimate):.1f} {points.unit}), matching "
            f"{s.matching.answer} ({points.of(s.matching.estimate):+.1f})"
            for s in mine
            if s.rewind_step == first
        )
        lines.append(f"density {density}, k = {first}: {text}")
    return lines


def tables(outcome: Outcome) -> list[Rows]:
    """LII and error above dense of each subnetwork; stable against matching, twice."""
    found = subnetworks_of(outcome.judged)
    points = metrics.difference(outcome.metric)

    def interval(verdict: verdicts.Verdict) -> str:
        half = (verdict.high - verdict.low) / 2
        return f"{points.of(verdict.estimate):+.2f} ± {points.of(half):.2f}"

    header = ["density %", "k", "arm", "LII", "stable"]
    header += [f"{points.name} - dense", "matching"]
    rows = [
        [
            f"{100 * s.density:.1f}",
            str(s.rewind_step),
            s.arm.replace("_", " "),
            interval(s.stable),
            s.stable.answer,
            interval(s.matching),
            s.matching.answer,
        ]
        for s in sorted(
            found, key=lambda s: (s.level, s.rewind_step, s.arm != "ticket")
        )
    ]
    title = f"{outcome.preset}: {points.unit} of test {points.name}, mean ± 95% "
    title += f"half-width over {outcome.results.sizes['replica']} replicas"
    means = contingency_of_means(found, outcome.cfg)
    return [Rows(title, header, rows), contingency(found), means]


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """LII and error over k at each density, the smallest k, barriers between levels."""
    results, cfg, name = outcome.results, outcome.cfg, outcome.networks
    level_, points = metrics.level(outcome.metric), metrics.difference(outcome.metric)
    number, pairs = results.sizes["replica"], results.sizes["pair"]
    steps, total = results["rewind_step"].values, int(results.attrs["steps"])
    policy = f"\nBatchNorm statistics: {cfg.batch_norm}" if cfg.batch_norm else ""
    dense = dense_error(results).sel(split="test").transpose("replica", "rewind_step")
    for level in [int(level) for level in results["level"].values if level > 0]:
        density = 100 * float(results["density"].sel(level=level, arm="ticket").mean())
        lii, error = {}, {}
        for arm in results["arm"].values:
            at = results.sel(level=level, arm=arm, split="test")
            lii[str(arm)] = points.of(samples(at["lii"], "rewind_step"))
            mean = at["error"].mean("branch").transpose("replica", "rewind_step")
            error[str(arm)] = level_.of(mean.values)
        error["dense"] = level_.of(dense.values)
        title = f"{name}, {density:.1f}% of the weights"
        figure = plots.against_step(
            steps,
            lii,
            ylabel=f"linear interpolation instability\n({points.unit} of test "
            f"{points.name})",
            title=f"{title}\nmean and deviation of {number} replicas x {pairs} pairs{policy}",
            total=total,
            threshold=points.of(cfg.threshold),
            threshold_label="stable below this",
        )
        yield f"instability_level{level:02d}", figure
        figure = plots.against_step(
            steps,
            error,
            ylabel=f"test {level_.label}",
            title=f"{title}\nmean and deviation of {number} replicas",
            total=total,
        )
        yield f"error_level{level:02d}", figure
    found = subnetworks_of(outcome.judged)
    densities = {s.level: s.density for s in reversed(found) if s.arm == "ticket"}
    figure = plots.steps_against_density(
        np.array([densities[level] for level in sorted(densities)]),
        {f"smallest {claim} k": y for claim, y in smallest_steps(found).items()},
        steps,
        title=f"{name}: tickets, by the means over {number} replicas",
    )
    yield "first_steps", figure
    if "level_barrier" not in results:
        return
    for projection in results["projection"].values:
        barrier = results["level_barrier"].sel(projection=projection, split="test")
        barrier = points.of(barrier.transpose("rewind_step", "replica", "earlier"))
        figure = plots.against_density(
            results["later_density"].values,
            {f"k = {step}": barrier.sel(rewind_step=step).values for step in steps},
            ylabel=f"barrier above the chord\n({points.unit} of test {points.name})",
            title=f"{name}: successive levels of tickets\nmean of {number} replicas, bars: "
            f"min to max; projection: {projection}",
        )
        yield f"level_barriers_{projection}", figure


EXPERIMENT = Experiment(
    name="rewinding",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-4 --subset 200 --steps 2it --rewind-steps 0it 1it --branches 2 "
    "--replicas 2 --alphas 3 --levels 0 1",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
    error_alone=True,
)
