"""Instability analysis: the survey's Figures 2 and 3.

    python -m experiments.instability                          # the demo: under a minute
    python -m experiments.instability lenet-fashion --out results/lenet

Trains networks from several initialisations to the steps k, and from each of these states
branches under different SGD noise (data order and augmentation). On the line between two
branches the error is measured: Figure 2 shows it for k = 0; Figure 3 shows over k how far
it rises above the ends (LII). Below 2 points a state is called stable. The same command
continues an interrupted run, and a finished one returns at once.

Frankle, Dziugaite, Roy and Carbin, Linear Mode Connectivity and the Lottery Ticket
Hypothesis, 2020.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments import cost, display, metrics, presets, recipes
from experiments.display import Judged, Rows, mean_deviation
from experiments.experiment import Experiment, Outcome, dataset
from experiments.identity import FREE
from experiments.recipes import (
    PathRecipe,
    Setup,
    make_task,
    metric,
    parse_step,
    parse_steps,
    set_up_paths,
)
from lottery_jax import connectivity, plots, trees, verdicts
from lottery_jax.connectivity.analysis import Records
from lottery_jax.execution import Where

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True)
class Config(PathRecipe):
    """Everything that an analysis is determined by, and where and how it runs."""

    rewind_steps: tuple[str, ...] = ("0it", "30it", "100it", "300it", "1000it")
    """The steps k that branches start from: 0it, 500it, 2ep ..."""
    branches: int = 3
    """Continuations of each state under different noise; every two make a pair."""
    batch_norm: tuple[Literal["recompute", "interpolate"], ...] = ()
    """How BatchNorm statistics are treated on a path; both are compared if given both."""
    schedules: tuple[Literal["continued", "restarted"], ...] = ("continued",)
    """Branches that train from k to T, and the control: T steps from k, schedule anew."""
    threshold: float = dataclasses.field(default=0.02, metadata=FREE)
    """Below this LII a state is called stable."""


def plan(cfg: Config, steps_per_epoch: int) -> connectivity.Plan:
    """The protocol; errors name the field."""
    return connectivity.check(
        connectivity.Plan(
            steps=parse_step(cfg, "steps", steps_per_epoch),
            rewind_steps=parse_steps(cfg, "rewind_steps", steps_per_epoch),
            branches=cfg.branches,
            batch_norm=cfg.batch_norm,
            alphas=cfg.alphas,
            splits=cfg.path_splits,
            statistics_batches=cfg.statistics_batches,
            schedules=cfg.schedules,
            seed=cfg.seed,
            every=cfg.every,
        )
    )


# --- running --------------------------------------------------------------------------


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and plan; errors name the field."""
    setup = set_up_paths(cfg, *cfg.batch_norm)
    return setup._replace(plan=plan(cfg, setup.task.steps_per_epoch))


def one(setup: Setup, ids: list[int], where: Where) -> "xr.Dataset":
    """An analysis of some initialisations, or what is missing of it."""
    cfg, task, tx, protocol = setup
    start = recipes.start(cfg, task, ids)
    with display.watched(where) as place:
        found = connectivity.run(
            task, tx, protocol, replicas=ids, start=start, where=place
        )
    splits = list(cfg.path_sizes)
    names = found.records["split"][1].tolist()
    return dataset(
        cfg,
        {
            name.replace("_part", ""): value
            for name, value in rising(found.records, metric(cfg)).items()
            if name != "split"
        },
        {"replica": ids, "split": splits},
        execution=found.execution._asdict(),
        path_examples={s: trees.count(task.data[n]) for s, n in zip(splits, names)},
    )


def work(setup: Setup) -> cost.Work:
    """What an analysis computes."""
    return cost.analysis(cost.of_setup(setup), setup.plan, setup.cfg)


def work_of(cfg: Config) -> cost.Work:
    """The same, of a data set of known size; nothing is loaded for it."""
    of = cost.of_recipe(cfg)
    return cost.analysis(of, plan(cfg, of.steps_per_epoch), cfg)


def rising(records: Records, metric: verdicts.Metric) -> Records:
    """Records whose `lii` is that of what networks are compared by, and in its direction.

    An analysis says how far each value rises above its ends, the error's under the name
    `lii`. Where higher is better, it is how far the value falls below them.

    Args:
      records: of an analysis.
      metric: what networks are compared by.
    """
    kept = {
        name: found
        for name, found in records.items()
        if not name.startswith("lii") or name == "lii_loss"
    }
    axes, values = records[metric.name]
    sign = 1 if metric.better == "lower" else -1
    return kept | {"lii": (axes[:-1], connectivity.instability(sign * values))}


# --- what came out --------------------------------------------------------------------


def samples(values: "xr.DataArray", *keep: str) -> np.ndarray:
    """All (replica, pair) of an array as the first axis, then the axes named."""
    return values.stack(sample=("replica", "pair")).transpose("sample", *keep).values


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """At each k: is the mean LII below the threshold? Pairs of one init are one unit."""
    number = results.sizes["pair"]
    clusters = np.repeat(results["replica"].values, number)
    names = [f"init {c}, pair {i % number}" for i, c in enumerate(clusters)]
    judged = []
    axes = ("schedule", "batch_norm", "split", "rewind_step")
    for at in itertools.product(*(results[axis].values.tolist() for axis in axes)):
        where = dict(zip(axes, at))
        verdict = verdicts.stable(
            samples(results["lii"].sel(where)),
            cfg.threshold,
            metric=metric(cfg),
            replicas=verdicts.Replicas(names, clusters),
        )
        judged.append(Judged(where, "stable", verdict))
    return judged


def conclusions(outcome: Outcome) -> list[str]:
    """One line per kind of measurement: at which k training is stable."""
    lines, judged = [], outcome.judged

    def kind(one: Judged) -> tuple[str, ...]:
        return tuple(one.where[k] for k in ("split", "batch_norm", "schedule"))

    for kinds in dict.fromkeys(map(kind, judged)):
        mine = [one for one in judged if kind(one) == kinds]
        text = display.answers(mine, "k = {}", lambda j: str(j.where["rewind_step"]))
        name = ", ".join(x for x in kinds if x != "none")
        lines.append(f"stable ({name}): {text}")
    if judged:
        verdict = judged[-1].verdict
        points = metrics.difference(outcome.metric)
        lines.append(
            f"Stable: the 95% interval of the mean LII, over inits (n = {verdict.n}), lies "
            f"below {points.of(verdict.tolerance):g} {points.unit}; all numbers are in "
            "verdicts.json."
        )
    first_nan = outcome.results["first_nan"]
    for at in np.argwhere(np.isfinite(first_nan.values)):
        where = ", ".join(
            f"{a} {first_nan[a].values[i] if a in first_nan.coords else i}"
            for a, i in zip(first_nan.dims, at)
        )
        lines.append(f"Diverged, and left out of every verdict: {where}")
    return lines


def tables(outcome: Outcome) -> list[Rows]:
    """LII and the other rulers at each k, as mean and standard deviation."""
    results, metric = outcome.results, outcome.metric
    splits = [str(s) for s in results["split"].values]
    others = ["l2", "angle", *(f"disagreement_{s}" for s in splits)]
    others = [name for name in others if name in results]
    level, points = metrics.level(metric), metrics.difference(metric)
    header = ["schedule", "BatchNorm", "k", *(f"LII {s}" for s in splits)]
    header += [f"end {level.name} {s} {level.unit}" for s in splits]
    header += [name.replace("_", " ") for name in others]
    axes = ("schedule", "batch_norm", "rewind_step")
    rows = []
    for schedule, policy, step in itertools.product(*(results[a].values for a in axes)):
        at = results.sel(schedule=schedule, rewind_step=step)
        own = at.sel(batch_norm=policy)
        ends = own[metric.name].isel(alpha=[0, -1]).mean("alpha")
        row = [str(schedule), str(policy), str(int(step))]
        for shown, values in ((points, own["lii"]), (level, ends)):
            row += [
                mean_deviation(shown.of(samples(values.sel(split=s)))) for s in splits
            ]
        row += [mean_deviation(samples(at[name]), 3) for name in others]
        rows.append(row)
    number, pairs = results.sizes["replica"], results.sizes["pair"]
    title = f"{outcome.preset}: LII in {points.unit}, mean ± standard deviation of "
    title += f"{number} inits x {pairs} pairs"
    return [Rows(title, header, rows)]


def policy_text(results: "xr.Dataset", policy: str) -> str:
    """What a figure says of BatchNorm."""
    if policy == "none":
        return "no BatchNorm"
    if policy == "interpolate":
        return "BatchNorm statistics interpolated"
    batches = json.loads(results.attrs["config"])["statistics_batches"]
    return f"BatchNorm statistics recomputed on {batches} training batches"


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """LII over k (Figure 3), the error on the way (Figure 2), and the other rulers."""
    results, cfg, metric = outcome.results, outcome.cfg, outcome.metric
    level, points = metrics.level(metric), metrics.difference(metric)
    inits, pairs = results.sizes["replica"], results.sizes["pair"]
    name = outcome.networks
    count = f"mean and standard deviation of {inits} inits x {pairs} pairs"
    schedules = results["schedule"].values.tolist()
    policies = results["batch_norm"].values.tolist()
    splits = results["split"].values.tolist()
    continued = "continued" in schedules
    main = results.sel(schedule="continued" if continued else schedules[0])
    total = parse_step(cfg, "steps", make_task(cfg).steps_per_epoch)
    shown = policy_text(results, policies[0])
    if len(policies) > 1:
        shown += "; or interpolated"

    def labelled(split: str, policy: str) -> str:
        return f"{split}, {policy}" if len(policies) > 1 else split

    lines, variants = {}, {}
    for schedule, policy, split in itertools.product(schedules, policies, splits):
        label = labelled(split, policy)
        if schedule == "restarted":
            if continued:
                variants[f"{label}, restarted"] = label
            label += ", restarted"
        at = dict(schedule=schedule, batch_norm=policy, split=split)
        lines[label] = points.of(samples(results["lii"].sel(at), "rewind_step"))
    figure = plots.against_step(
        results["rewind_step"].values,
        lines,
        ylabel=f"linear interpolation instability\n({points.unit} of {points.name})",
        title=f"{name}\n{count}\n{shown}",
        total=total,
        threshold=points.of(cfg.threshold),
        threshold_label="stable below this",
        variants=variants,
    )
    yield "instability", figure
    first = int(results["rewind_step"].values[0])
    along = main[metric.name].sel(rewind_step=first)
    lines = {
        labelled(split, policy): level.of(
            samples(along.sel(split=split, batch_norm=policy), "alpha")
        )
        for policy, split in itertools.product(policies, splits)
    }
    figure = plots.along_path(
        results["alpha"].values,
        lines,
        ylabel=level.label,
        title=f"{name}: branches of step k = {first}\n{count}\n{shown}",
        ends=("one branch", "another"),
    )
    yield "error_along_path", figure
    rulers = {"angle distance": main["angle"]}
    rulers |= {
        f"disagreement, {split}": main[f"disagreement_{split}"]
        for split in splits
        if f"disagreement_{split}" in main
    }
    if "travel_from_init" in main:
        apart = main["l2"] / main["travel_from_init"].mean("branch")
        rulers["L2 distance / distance from the init"] = apart
    figure = plots.against_step(
        results["rewind_step"].values,
        {label: samples(value, "rewind_step") for label, value in rulers.items()},
        ylabel="between two branches (fraction)",
        title=f"{name}: the other rulers\n{count}",
        total=total,
    )
    yield "other_rulers", figure


PRESETS = cost.told(presets.make(Config, presets.INSTABILITY), work_of)

EXPERIMENT = Experiment(
    name="instability",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-4 --subset 200 --steps 2it --rewind-steps 0it 1it --branches 2 "
    "--replicas 2 --alphas 3 --every 1",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
    starts=True,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
