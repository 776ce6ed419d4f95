"""Weight rewinding, learning-rate rewinding, fine-tuning and reinit, by retraining time.

All levels train for t steps that end with the last step of training, so t = T - k. Renda
et al. 2020, section 4.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import cost, metrics
from experiments.display import Judged, Rows, mean_deviation
from experiments.experiment import Experiment, Outcome, dataset
from experiments.imp import tested
from experiments.recipes import (
    Setup,
    make_optimizer,
    make_task,
    metric,
    parse_step,
    parse_steps,
)
from experiments.rewinding import subnetworks
from experiments.rewinding.config import PRESETS, Config
from lottery_jax import imp, plots, verdicts
from lottery_jax.execution import Where

if TYPE_CHECKING:
    import xarray as xr

WAYS = ("rewind", "lr_rewind", "finetune", "reinit")
NAMES = {
    "rewind": "weight rewinding",
    "lr_rewind": "learning-rate rewinding",
    "finetune": "fine-tuning",
    "reinit": "reinit",
}


def plans(cfg: Config, steps_per_epoch: int) -> dict[str, imp.Plan]:
    """Two plans: weight rewinding with its reinits, and what keeps trained weights.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    steps = parse_step(cfg, "steps", steps_per_epoch)
    times = parse_steps(cfg, "retrain_times", steps_per_epoch)
    if not times or not all(0 < t <= steps for t in times):
        raise ValueError(
            f"retrain_times={cfg.retrain_times}; there must be some, each in (0, {steps}]"
        )

    def chains(*retrains: str) -> tuple[imp.Chain, ...]:
        return tuple(
            imp.Chain(
                name=f"{retrain}-t{t}",
                retrain=retrain,  # type: ignore[arg-type]
                rewind_step=steps - t,
                densities=imp.Geometric(cfg.fraction),
                scope=cfg.scope,
            )
            for retrain in retrains
            for t in sorted(set(times))
        )

    def plan(chains: tuple[imp.Chain, ...], *arms: str) -> imp.Plan:
        return imp.check(
            imp.Plan(
                steps=steps,
                chains=chains,
                arms=arms,
                validate_every=cfg.every,
                seed=cfg.seed,
            )
        )

    return {
        "rewound": plan(chains("rewind"), "ticket", "reinit"),
        "kept": plan(chains("lr_rewind", "finetune"), "ticket"),
    }


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and both plans; errors name the field."""
    task = make_task(cfg)
    if not cfg.levels or min(cfg.levels) < 0:
        raise ValueError(f"levels={cfg.levels}; there must be some, 0 or more")
    steps = task.steps_per_epoch
    both = plans(cfg, steps)
    for protocol in both.values():
        imp.check_task(task, protocol, max(cfg.levels))
    return Setup(cfg, task, make_optimizer(cfg, steps), both)


def one(setup: Setup, ids: list[int], where: Where) -> "xr.Dataset":
    """Both plans for some replicas; axes retraining, retrain_time, replica, level."""
    cfg, both = setup.cfg, setup.plan
    found = {
        name: subnetworks.find(setup, plan, ids, where.below(name))
        for name, plan in both.items()
    }
    steps = both["rewound"].steps
    times = sorted({steps - k for k in both["rewound"].rewind_steps})
    names = (f"test_{metric(cfg).name}", "diverged", "density")
    values: dict[str, Any] = {name: [] for name in names}
    for way in WAYS:
        part = "kept" if way in ("lr_rewind", "finetune") else "rewound"
        arm = "reinit" if way == "reinit" else "ticket"
        chain = "rewind" if way == "reinit" else way
        chains = [c.name for c in both[part].chains]
        rows = [chains.index(f"{chain}-t{time_}") for time_ in times]
        for name in names:
            array = found[part].records[name][1]
            values[name].append(array[rows, both[part].arms.index(arm)])
    axes = ("retraining", "retrain_time", "replica", "level")
    out = {name: (axes, np.stack(value)) for name, value in values.items()}
    coordinates = {
        "retraining": list(WAYS),
        "retrain_time": times,
        "replica": ids,
        "level": range(out["density"][1].shape[-1]),
    }
    execution = found["rewound"].execution._asdict()
    results = dataset(cfg, out, coordinates, execution=execution, steps=steps)
    return results.sel(level=sorted(set(cfg.levels)))


def work(setup: Setup) -> cost.Work:
    """What both plans compute."""
    cfg, of = setup.cfg, cost.of_setup(setup)
    return cost.together(
        *(
            cost.named(name, cost.study(of, plan, max(cfg.levels), cfg.replicas))
            for name, plan in setup.plan.items()
        )
    )


# --- what came out --------------------------------------------------------------------


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Which way of retraining is better, and is a later point better than t = T?"""
    values = tested(results, metric(cfg))
    names = [f"replica {i}" for i in results["replica"].values]
    times = results["retrain_time"].values.tolist()
    levels = [level for level in results["level"].values.tolist() if level > 0]
    judged = []

    def compare(claim: str, where: dict[str, Any], one: dict, other: dict) -> None:
        a, b = (values.sel(level=where["level"], **at).values for at in (one, other))
        verdict = verdicts.better(
            a,
            b,
            claim=claim,
            metric=metric(cfg),
            replicas=verdicts.Replicas(names),
        )
        judged.append(Judged(where, claim, verdict))

    for a, b in itertools.combinations(WAYS, 2):
        claim = f"{NAMES[a]} better than {NAMES[b]}"
        for level, t in itertools.product(levels, times):
            one, other = (dict(retraining=way, retrain_time=t) for way in (a, b))
            compare(claim, {"level": level, "retrain_time": t}, one, other)
    if len(times) < 2 or times[-1] != int(results.attrs["steps"]):
        return judged
    for way in ("rewind", "lr_rewind"):
        claim = f"{NAMES[way]}: t = {times[-2]} better than t = T"
        for level in levels:
            one, other = (dict(retraining=way, retrain_time=t) for t in times[-2:])
            compare(claim, {"level": level}, one, other)
    return judged


def conclusions(outcome: Outcome) -> list[str]:
    """The comparisons at the sparsest level, a line each."""
    results, points = outcome.results, metrics.difference(outcome.metric)
    level = int(results["level"].values[-1])
    density = float(results["density"].sel(level=level).mean())
    lines = [f"At {100 * density:.1f}% of the weights:"]
    for claim in dict.fromkeys(one.claim for one in outcome.judged):
        text = ", ".join(
            (f"t = {where['retrain_time']} " if "retrain_time" in where else "")
            + f"{verdict.answer} ({points.of(verdict.estimate):+.1f})"
            for where, of, verdict in outcome.judged
            if of == claim and where["level"] == level
        )
        lines.append(f"{claim} (difference of {points.name} in {points.unit}): {text}")
    return lines


def tables(outcome: Outcome) -> list[Rows]:
    """Accuracy of each way of retraining by density and retraining time."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    values = shown.of(tested(results, outcome.metric))
    rows = []
    for level, t in itertools.product(
        results["level"].values, results["retrain_time"].values
    ):
        at = dict(level=level, retrain_time=t)
        density = float(results["density"].sel(**at, retraining="rewind").mean())
        cells = [
            mean_deviation(values.sel(**at, retraining=way).values, 1) for way in WAYS
        ]
        rows.append([f"{100 * density:.1f}", str(int(t)), *cells])
    title = f"{outcome.preset}: test {shown.name} in {shown.unit}, mean ± deviation of "
    title += f"{results.sizes['replica']} replicas"
    return [Rows(title, ["density %", "t", *NAMES.values()], rows)]


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """Accuracy against density at one t, and against t at the sparsest level."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    values = shown.of(tested(results, outcome.metric))
    times = results["retrain_time"].values
    middle = int(times[len(times) // 2])
    density = results["density"].sel(retraining="rewind", retrain_time=middle)
    number, total = results.sizes["replica"], int(results.attrs["steps"])

    def lines(along: str, **at: int) -> dict[str, np.ndarray]:
        chosen = values.sel(at).transpose("retraining", "replica", along)
        return {name: chosen.sel(retraining=way).values for way, name in NAMES.items()}

    figure = plots.against_density(
        density.mean("replica").values,
        lines("level", retrain_time=middle),
        ylabel=f"test {shown.label}",
        title=f"{outcome.networks}, retrained for t = {middle} of {total} steps\n"
        f"mean of {number} replicas, bars: min to max",
    )
    yield shown.name, figure
    level = int(results["level"].values[-1])
    share = 100 * float(density.sel(level=level).mean())
    figure = plots.against_step(
        times,
        lines("retrain_time", level=level),
        ylabel=f"test {shown.label}",
        xlabel="retraining time t",
        title=f"{outcome.networks}, {share:.1f}% of the weights\nmean and deviation of "
        f"{number} replicas",
        total=total,
        logarithmic=False,
    )
    yield "retraining_time", figure


EXPERIMENT = Experiment(
    name="rewinding",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    default="mnist1d-retraining",
    tiny="--model mlp-4 --subset 200 --steps 2it --drops 1it --retrain-times 1it 2it "
    "--every 2 --levels 0 1 --replicas 2",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
    error_alone=True,
)
