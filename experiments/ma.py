"""Does a winning ticket really win? The five conditions of Ma et al. at every learning rate.

    python -m experiments.ma                                   # MLP on MNIST-1D
    python -m experiments.ma lenet-fashion

Finds tickets at several learning rates and densities, and compares each with dense
networks, with small dense networks of as many weights, and with the ticket's own mask on
fresh weights, all trained at every one of these rates. A ticket may look like a winner only
because what it is compared with was trained at a rate that suits it badly: a jackpot is as
good as the dense network at whichever rate suits that best; what holds at the ticket's own
rate alone is a secondary prize.

Ma et al., Sanity Checks for Lottery Tickets: Does Your Winning Ticket Really Win the
Jackpot? 2021.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import cost, display, metrics, presets, recipes
from experiments.display import Judged, Rows
from experiments.experiment import Drawn, Experiment, Outcome, dataset
from experiments.identity import FREE, Where
from experiments.imp import stored_tickets, tested
from experiments.recipes import Recipe, Setup, make_optimizer, make_task, parse_step
from lottery_jax import errors, imp, masks, plots, verdicts
from lottery_jax.execution import Where as Place
from lottery_jax.ma import MaConditions, ma_conditions

if TYPE_CHECKING:
    import xarray as xr

SWEPT = "learning_rate"
"""What is swept here, and nothing else."""

CLAIMS = {
    "nontrivial": "nontrivial sparsity",
    "beats_small_dense": "beats small dense, best rate",
    "beats_reinit": "beats reinit, best rate",
    "matches_same_lr": "matches dense, own rate",
    "matches_best_lr": "matches dense, best rate",
}
"""The five conditions in words, in the order of `MaConditions`; "best rate" is claimed of
every rate."""


@dataclasses.dataclass(frozen=True)
class Config(Where, Recipe):
    """Everything that a study is determined by, and where and how it runs."""

    sweep_learning_rate: tuple[float, ...] = (1.25e-3, 5e-3, 2e-2)
    """Peak rates, instead of `learning_rate`: tickets are found at each, and everything is
    trained at all of them."""
    levels: int = 4
    """Prunings after level 0, the dense network."""
    fraction: float = 0.59
    """Share of the surviving weights removed at each level: as four levels of 20%."""
    rewind_step: str = "0it"
    """The step that levels start from: 0it, 500it, 2ep ..."""
    validate_every: int = 500
    """Steps between validations."""
    max_density: float = dataclasses.field(default=0.1, metadata=FREE)
    """The density from which on a sparsity is called nontrivial; the paper's depend on the
    network. In LeNet and small MLPs random masks hardly harm above a tenth."""
    margin: float = dataclasses.field(default=0.005, metadata=FREE)
    """By how much error fresh weights must be worse: the paper's half a point."""
    tolerance: float = dataclasses.field(default=0.002, metadata=FREE)
    """How far above the dense error at its own rate a ticket may be."""
    best_tolerance: float = dataclasses.field(default=0.005, metadata=FREE)
    """How far above the dense error at any rate a jackpot may be: the paper's half a point
    for CIFAR-10, taken for other sets of ten classes, too."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent runs, each with its own initialisation and noise."""


# --- running --------------------------------------------------------------------------


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and the plan of a study; errors name the field."""
    rates = cfg.sweep_learning_rate
    if not rates:
        raise errors.wrong("sweep_learning_rate", rates, "some rates")
    for field in (f"sweep_{name}" for name in recipes.SWEPT if name != SWEPT):
        if values := getattr(cfg, field):
            raise errors.wrong(field, values, "empty: rates alone are compared")
    usual = next(
        f.default for f in dataclasses.fields(cfg) if f.name == "learning_rate"
    )
    if cfg.learning_rate not in (usual, *rates):
        must = "one of sweep_learning_rate, which are used instead"
        raise errors.wrong("learning_rate", cfg.learning_rate, must)
    errors.at_least("levels", cfg.levels, 1)
    for field in ("margin", "best_tolerance"):
        errors.at_least(field, getattr(cfg, field), 0)
    errors.within("max_density", cfg.max_density, 0, 1)
    task = make_task(cfg)
    plan = imp.check(
        imp.Plan(
            steps=parse_step(cfg, "steps", task.steps_per_epoch),
            rewind_step=parse_step(cfg, "rewind_step", task.steps_per_epoch),
            chains=(imp.Chain(densities=imp.Geometric(cfg.fraction)),),
            arms=("ticket", "small_dense"),
            validate_every=cfg.validate_every,
            seed=cfg.seed,
        )
    )
    flags = masks.of_task(task)
    imp.keep_counts(plan.chains[0], task.shapes[0], cfg.levels, flags)  # or it raises
    make_tx = make_optimizer(cfg, task.steps_per_epoch, sweeps=True)
    return Setup(cfg, task, make_tx, plan)


def one(setup: Setup, ids: list[int], where: Place) -> "xr.Dataset":
    """Finds tickets at every rate, and trains fresh weights in their masks at all rates."""
    cfg, task, make_tx, plan = setup
    sweep = recipes.sweep(cfg, task.steps_per_epoch)
    metric, levels = recipes.metric(cfg), range(1, cfg.levels + 1)
    finding, there = imp.swept(plan, sweep), where.below("study")
    if (folder := there.store) is None:
        raise errors.wrong("where.folder", None, "a folder: tickets are kept there")
    with display.watched(
        there,
        names=display.names(finding, ids),
        last=cfg.levels,
        metric=metric,
    ) as place:
        study = imp.run(
            task,
            make_tx,
            plan,
            levels=cfg.levels,
            replicas=ids,
            sweep=sweep,
            metadata=recipes.ticket_metadata(cfg, "ma"),
            where=place,
        )
    of = dict.fromkeys(ids, folder)
    found = [row for n in levels for row in stored_tickets(of, finding, ids, n)]
    # Level after level, and the rates at which they were found within each.
    named = [
        f"level {n}, found at {rate!r}"
        for n in levels
        for rate in cfg.sweep_learning_rate
    ]
    again = dataclasses.replace(
        plan, chains=tuple(map(imp.Chain, named)), arms=("reinit",)
    )
    names = display.names(imp.swept(again, sweep, tickets=False), ids)
    there = where.below("masks")
    with display.watched(there, names=names, last=1, metric=metric) as place:
        trained = imp.retrain(
            task,
            make_tx,
            again,
            found,
            level=1,
            replicas=ids,
            sweep=sweep,
            where=place,
        )
    return _results(cfg, ids, study.dataset(), trained.dataset())


def work(setup: Setup) -> cost.Work:
    """What the study at every rate, and its masks at all rates, cost."""
    cfg, task, _, plan = setup
    of, sweep = cost.of_setup(setup), recipes.sweep(cfg, task.steps_per_epoch)
    found = cfg.levels * len(cfg.sweep_learning_rate)
    chains = tuple(imp.Chain(f"{i}") for i in range(found))
    again = dataclasses.replace(plan, chains=chains, arms=("reinit",))
    again = imp.swept(again, sweep, tickets=False)
    return cost.together(
        cost.study(of, imp.swept(plan, sweep), cfg.levels, cfg.replicas),
        cost.again(of, again, cfg.replicas),
    )


def _results(
    cfg: Config, ids: list[int], study: "xr.Dataset", trained: "xr.Dataset"
) -> "xr.Dataset":
    """What each network reaches at the end, by the rates it was found and trained at.

    Args:
      cfg: the configuration.
      ids: of the replicas.
      study: `[chain, learning_rate, arm, replica, level]`.
      trained: `[chain, learning_rate, 1, replica, 1]`, a chain for each level and rate.
    """
    axes = ("learning_rate", "arm", "replica", "level")
    rates, number = len(cfg.sweep_learning_rate), cfg.levels
    study = study.isel(chain=0)
    names = [str(name) for name in study]
    measured = [n for n in names if n.startswith("test_") and "_early" not in n]
    out: dict[str, Any] = {
        name: (axes, study[name].transpose(*axes).values)
        for name in (*measured, "density", "alive", "diverged")
    }
    trained = trained.isel(arm=0)
    for name in (*measured, "diverged"):
        last = trained[name].isel(level=0)
        own = last.transpose("chain", "learning_rate", "replica").values
        own = own.reshape(number, rates, rates, len(ids))
        out[f"reinit_{name}"] = (
            ("found_rate", "learning_rate", "replica", "pruned"),
            np.moveaxis(own, 0, -1),
        )
    coordinates = {
        "learning_rate": list(cfg.sweep_learning_rate),
        "found_rate": list(cfg.sweep_learning_rate),
        "arm": study["arm"].values.tolist(),
        "replica": ids,
        "level": list(range(number + 1)),
        "pruned": list(range(1, number + 1)),
    }
    return dataset(cfg, out, coordinates)


# --- what came out --------------------------------------------------------------------


def fresh(results: "xr.Dataset", metric: verdicts.Metric) -> "xr.DataArray":
    """What the masks reach with fresh weights at each rate; nan where diverged.

    Args:
      results: of a run.
      metric: what is compared.

    Returns:
      `[found_rate, learning_rate, replica, level]`, of the levels after 0.
    """
    values = results[f"reinit_test_{metric.name}"]
    values = values.where(results["reinit_diverged"] == 0)
    return values.rename(pruned="level")


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """The five conditions on the ticket of each rate and level."""
    metric = recipes.metric(cfg)
    values = tested(results, metric)
    reinit = fresh(results, metric)
    names = [f"replica {i}" for i in results["replica"].values]
    judged = []

    def at_each_rate(array: "xr.DataArray", **at: Any) -> Mapping[float, np.ndarray]:
        return {
            rate: array.sel(learning_rate=rate, **at).values
            for rate in results["learning_rate"].values.tolist()
        }

    for rate in results["found_rate"].values.tolist():
        for level in results["pruned"].values.tolist():
            at = {"learning_rate": rate, "level": level}
            density = float(results["density"].sel(arm="ticket", **at).mean())
            found = ma_conditions(
                values.sel(arm="ticket", **at).values,
                lr=rate,
                density=density,
                max_density=cfg.max_density,
                tolerance=cfg.best_tolerance,
                dense_errors=at_each_rate(values, arm="ticket", level=0),
                reinit_errors=at_each_rate(reinit, found_rate=rate, level=level),
                small_dense_error=at_each_rate(values, arm="small_dense", level=level),
                margin=cfg.margin,
                same_lr_tolerance=cfg.tolerance,
                metric=metric,
                replicas=verdicts.Replicas(names),
            )
            where = at | {"density": density}
            judged += [
                Judged(where, claim, getattr(found, name))
                for name, claim in CLAIMS.items()
            ]
    return judged


def conditions(judged: list[Judged]) -> dict[tuple[float, int], MaConditions]:
    """The five conditions together, by rate and level; see `judge`."""
    found: dict[tuple[float, int], list[verdicts.Verdict]] = {}
    for each in judged:
        at = each.where["learning_rate"], each.where["level"]
        found.setdefault(at, []).append(each.verdict)
    return {at: MaConditions(*five) for at, five in found.items()}


def densities(results: "xr.Dataset") -> np.ndarray:
    """Of the tickets of all levels after 0, `[levels]`; the same at every rate."""
    density = results["density"].sel(arm="ticket").isel(learning_rate=0)
    return density.mean("replica").values[1:]


def best(values: "xr.DataArray", metric: verdicts.Metric) -> "xr.DataArray":
    """At the rate that is best on the average over replicas, at each level."""
    worse = values if metric.better == "lower" else -values
    mean = worse.mean("replica").fillna(np.inf)
    return values.isel(learning_rate=mean.argmin("learning_rate"))


def conclusions(outcome: Outcome) -> list[str]:
    """Jackpots and secondary prizes, how often each condition holds, and at which rates."""
    cfg, found = outcome.cfg, conditions(outcome.judged)
    density = dict(enumerate(densities(outcome.results), 1))
    lines = []
    for summary in ("jackpot", "secondary prize", "none", "undecided"):
        places = [
            f"{100 * density[level]:.1f}% found at {rate:g}"
            for (rate, level), five in found.items()
            if five.summary == summary
        ]
        lines.append(f"{summary}: {', '.join(places) or 'nowhere'}")
    points = outcome.metric.text
    lines.append(
        f"Nontrivial: density {cfg.max_density:g} or less. Worse than the ticket: by more "
        f"than {points(cfg.margin)} for reinit and 0 for small dense, at every rate. "
        f"Matching: {points(cfg.tolerance)} at the same rate, "
        f"{points(cfg.best_tolerance)} at every rate ({outcome.metric.unit})."
    )
    dense = tested(outcome.results, outcome.metric).sel(arm="ticket", level=0)
    chosen = float(best(dense, outcome.metric)["learning_rate"])
    if chosen in (min(cfg.sweep_learning_rate), max(cfg.sweep_learning_rate)):
        lines.append(
            f"Dense is best at {chosen:g}, an end of the rates that were tried: its best "
            "may lie beyond."
        )
    return [*lines, *display.claims(outcome.judged)]


def tables(outcome: Outcome) -> list[Rows]:
    """What everything reaches at its best rate; and the conditions."""
    results, metric = outcome.results, outcome.metric
    shown = metrics.quality(metric)
    values, reinit = tested(results, metric), fresh(results, metric)
    dense = values.sel(arm="ticket", level=0)
    small = values.sel(arm="small_dense")
    numbers, answers = [], []
    found = conditions(outcome.judged)
    for (rate, level), five in found.items():
        at: dict[str, Any] = {"learning_rate": rate, "level": level}
        of_mask = reinit.sel(found_rate=rate, level=level)
        place = [f"{rate:g}", f"{100 * densities(results)[level - 1]:.1f}"]
        row = [display.mean_range(shown.of(values.sel(arm="ticket", **at).values), 1)]
        for each in (of_mask, small.sel(level=level), dense):
            chosen = best(each, metric)
            text = display.mean_range(shown.of(chosen.values), 1)
            row.append(f"{text} at {float(chosen['learning_rate']):g}")
        same = display.mean_range(shown.of(dense.sel(learning_rate=rate).values), 1)
        numbers.append([*place, *row, same])
        answers.append([*place, *(verdict.answer for verdict in five), five.summary])
    number = results.sizes["replica"]
    title = f"Test {shown.name} in {shown.unit}: mean [min, max] of {number} replicas; "
    title += "controls at the best of all rates"
    header = ["rate", "density %", "ticket", "reinit", "small dense", "dense"]
    return [
        Rows(title, [*header, "dense, own rate"], numbers),
        Rows(
            "The conditions of Ma et al.",
            [*header[:2], *CLAIMS.values(), "in all"],
            answers,
        ),
    ]


def figures(outcome: Outcome) -> Iterator[Drawn]:
    """Accuracy against density for each rate; and the conditions as a grid."""
    results, metric = outcome.results, outcome.metric
    shown = metrics.quality(metric)
    values, reinit = tested(results, metric), fresh(results, metric)
    rates = results["found_rate"].values.tolist()
    dense, small = values.sel(arm="ticket", level=0), values.sel(arm="small_dense")
    density, number = densities(results), results.sizes["replica"]

    def lines(array: "xr.DataArray") -> np.ndarray:
        own = array.sel(level=results["pruned"].values)
        return shown.of(own.transpose("replica", "level").values)

    most = best(dense, metric)
    panels = {}
    for rate in rates:
        ticket = values.sel(arm="ticket", learning_rate=rate)
        panels[f"ticket found and trained at {rate:g}"] = plots.Panel(
            {
                "ticket": lines(ticket),
                "reinit, at its best rate": lines(
                    best(reinit.sel(found_rate=rate), metric)
                ),
                "small dense, at its best rate": lines(best(small, metric)),
            },
            {
                "dense, at the ticket's rate": _mean(shown, dense, rate),
                "dense, at its best rate": float(shown.of(most).mean()),
            },
        )
    title = f"{outcome.networks}, mean of {number} replicas, bars: min to max"
    title += f"; rates {', '.join(f'{rate:g}' for rate in rates)}"
    figure = plots.panels_against_density(
        density,
        panels,
        ylabel=f"test {shown.name} at the end\nof training ({shown.unit})",
        title=title,
        shared=True,
        lowest=_lowest(panels) if metric == verdicts.ERROR else None,
    )
    yield shown.name, figure, outcome.judged
    found = conditions(outcome.judged)
    grids = {}
    for rate in rates:
        fives = [found[rate, level] for level in results["pruned"].values.tolist()]
        grid = {
            claim: [getattr(five, name).answer for five in fives]
            for name, claim in CLAIMS.items()
        }
        grids[f"ticket found at {rate:g}"] = grid | {
            "in all": [five.summary for five in fives]
        }
    figure = plots.answers(
        grids,
        [f"{100 * d:.1f}" for d in density],
        xlabel="weights remaining (%)",
        title=f"{outcome.networks}: the conditions of Ma et al., n = {number}",
    )
    yield "conditions", figure, outcome.judged


def _lowest(panels: Mapping[str, plots.Panel]) -> float | None:
    """Where the axis begins if something lies far below tickets, masks and dense."""
    own: list[np.ndarray] = []
    for panel in panels.values():
        ticket, reinit, _ = panel.lines.values()
        own += [ticket, reinit, np.array(list(panel.levels.values()))]
    low, high = (f([f(x) for x in own]) for f in (np.nanmin, np.nanmax))
    least = np.nanmin([np.nanmin(y) for p in panels.values() for y in p.lines.values()])
    foot = float(low - 0.5 * (high - low))
    return foot if least < foot else None


def _mean(shown: metrics.Shown, dense: "xr.DataArray", rate: float) -> float:
    return float(shown.of(dense.sel(learning_rate=rate)).mean())


PRESETS = presets.make(Config, presets.MA)

EXPERIMENT = Experiment(
    name="ma",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-8 --subset 200 --steps 2it --validate-every 2 --levels 1 "
    "--sweep-learning-rate 1e-3 1e-2 --replicas 2",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
