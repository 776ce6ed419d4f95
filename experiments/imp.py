"""Iterative magnitude pruning against its controls: the survey's Figure 1.

    python -m experiments.imp                                  # the demo: under a minute
    python -m experiments.imp mnist1d --levels 5 --out results/try
    python -m experiments.imp --from results/try --level 3 --learning-rate 1e-3

Trains a dense network, prunes the smallest weights, rewinds the others and trains again,
level after level. Every level is compared with the same mask on fresh weights (reinit) and
with a random mask of the same layer densities. All replicas and arms train together. The
same command continues an interrupted run, and a finished one returns at once.

Frankle and Carbin, The Lottery Ticket Hypothesis, 2019.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments import (
    cost,
    display,
    groups,
    identity,
    launch,
    metrics,
    pictures,
    presets,
    recipes,
)
from experiments.display import Judged, Rows
from experiments.experiment import Experiment, Outcome
from experiments.identity import FREE, Where
from experiments.recipes import (
    Recipe,
    Setup,
    make_optimizer,
    make_task,
    parse_step,
)
from lottery_jax import (
    errors,
    imp,
    masks,
    plots,
    records,
    schedules,
    tickets,
    trees,
    verdicts,
)
from lottery_jax.execution import Deadline
from lottery_jax.execution import Where as Place
from lottery_jax.optimizers import settings

if TYPE_CHECKING:
    import xarray as xr

Arm = Literal[
    "ticket",
    "reinit",
    "reinit_raw",
    "random_mask",
    "shuffled_weights",
    "small_dense",
    "reinit_signed",
    "shuffled_weights_signed",
    "constant",
    "constant_signed",
    "random_ticket",
]


@dataclasses.dataclass(frozen=True)
class Config(Where, Recipe):
    """Everything that a study is determined by, and where and how it runs."""

    levels: int = dataclasses.field(default=16, metadata=FREE)
    """Prunings after level 0, the dense network."""
    target_density: float | None = dataclasses.field(default=None, metadata=FREE)
    """Instead of `levels`: prune until the density is no higher than this."""
    rewind_step: str = "0it"
    """The step that levels start from: 0it, 500it, 2ep ..."""
    fraction: float = 0.2
    """Share of the surviving weights removed at each level."""
    linear_fraction: float = 0.1
    """Share of the original weights removed at each level of a linear chain."""
    schedules: tuple[Literal["geometric", "linear", "one_shot"], ...] = ("geometric",)
    """Chains side by side; one_shot prunes the dense network to geometric's densities."""
    retrains: tuple[Literal["rewind", "lr_rewind", "finetune"], ...] = ("rewind",)
    """What is rewound: weights, the learning rate alone, nothing; one chain for each."""
    scope: Literal["global", "layerwise"] = "global"
    """Whether weights are ranked over all layers or within each."""
    rates: tuple[tuple[str, float], ...] = ()
    """For layerwise: pattern and fraction of each kind of layer; the first match counts."""
    rule: Literal["exact", "open_lth"] = "exact"
    """Exact counts, or open_lth's."""
    score: str = "magnitude"
    """Pruning criterion, a name of lottery_jax.scores.SCORES."""
    arms: tuple[Arm, ...] = ("ticket", "reinit", "random_mask")
    """The ticket and its controls."""
    random_scope: Literal["layerwise", "global"] = "layerwise"
    """How the random mask is permuted."""
    level_optimizer: Literal["reset", "rewind"] = "reset"
    """Optimizer state at the start of a level."""
    validate_every: int = 100
    """Steps between validations."""
    tolerance: float | None = dataclasses.field(default=None, metadata=FREE)
    """How much worse than dense a matching ticket may be, in what networks are compared
    by: 0.002 for an error, which is a fraction. None for the metric's own."""
    replicas: int = dataclasses.field(default=5, metadata=FREE)
    """Independent runs, each with its own initialisation and noise."""


def plan(cfg: Config, steps_per_epoch: int) -> imp.Plan:
    """The protocol; errors name the field."""
    if cfg.rates and cfg.scope != "layerwise":
        raise ValueError(f"rates={cfg.rates}; they need scope='layerwise'")
    several = len(cfg.schedules) * len(cfg.retrains) > 1
    chains = tuple(
        imp.Chain(
            name="-".join([schedule, retrain][: 1 + (len(cfg.retrains) > 1)])
            if several
            else "imp",
            densities=imp.Linear(cfg.linear_fraction, cfg.rates)
            if schedule == "linear"
            else imp.Geometric(cfg.fraction, cfg.rates),
            one_shot=schedule == "one_shot",
            scope=cfg.scope,
            rule=cfg.rule,
            score=cfg.score,
            retrain=retrain,
        )
        for schedule in cfg.schedules
        for retrain in cfg.retrains
    )
    found = imp.check(
        imp.Plan(
            steps=parse_step(cfg, "steps", steps_per_epoch),
            rewind_step=parse_step(cfg, "rewind_step", steps_per_epoch),
            chains=chains,
            arms=cfg.arms,
            validate_every=cfg.validate_every,
            level_optimizer=cfg.level_optimizer,
            random_scope=cfg.random_scope,
            seed=cfg.seed,
        )
    )
    swept = recipes.sweep(cfg, steps_per_epoch)
    return imp.swept(found, swept) if swept else found


def levels(cfg: Config) -> int:
    """Number of prunings, from the target density if that is given.

    Raises:
      ValueError: there is no such number; names the field.
    """
    if cfg.target_density is None:
        errors.at_least("levels", cfg.levels, 0)
        return cfg.levels
    if not 0 < cfg.target_density <= 1:
        raise ValueError(f"target_density={cfg.target_density}; it must be in (0, 1]")
    return schedules.levels_to(cfg.target_density, cfg.fraction)


# --- running --------------------------------------------------------------------------


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and plan; errors name the field."""
    task = make_task(cfg)
    protocol = plan(cfg, task.steps_per_epoch)
    tx = make_optimizer(cfg, task.steps_per_epoch, sweeps=True)
    params = task.shapes[0]
    for field, patterns in (("exclude", cfg.exclude), ("rates", dict(cfg.rates))):
        try:
            trees.matching(params, tuple(patterns))
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
    for chain in protocol.chains:
        try:
            imp.keep_counts(chain, params, levels(cfg), masks.of_task(task))
        except ValueError as error:  # in the words of the configuration
            raise ValueError(str(error).replace("by_layer", "rates")) from None
    return Setup(cfg, task, tx, protocol)


def one(
    setup: Setup, ids: list[int], where: Place, experiment: str = "imp"
) -> "xr.Dataset":
    """A pruning study of some replicas, or what is missing of it.

    Args:
      setup: from `prepare`.
      ids: of the replicas.
      where: it runs.
      experiment: whose tickets they are.
    """
    cfg, task, tx, protocol = setup
    with watched(setup, ids, where, levels(cfg)) as place:
        study = imp.run(
            task,
            tx,
            protocol,
            levels=levels(cfg),
            replicas=ids,
            start=recipes.start(cfg, task, ids),
            metadata=recipes.ticket_metadata(cfg, experiment),
            where=place,
        )
    if where.store is not None:
        own = study.records | pictures.of_study(study, where.store)
        study = study._replace(records=own)
    return study.dataset(**_note(cfg))


def work(setup: Setup) -> cost.Work:
    """What a study computes."""
    cfg = setup.cfg
    return cost.study(cost.of_setup(setup), setup.plan, levels(cfg), cfg.replicas)


def work_of(cfg: Config) -> cost.Work:
    """The same, of a data set of known size; nothing is loaded for it."""
    of = cost.of_recipe(cfg)
    return cost.study(of, plan(cfg, of.steps_per_epoch), levels(cfg), cfg.replicas)


def watched(setup: Setup, ids: list[int], where: Place, last: int) -> Any:
    """The place of a study with a display that knows what its networks are called."""
    names, metric = display.names(setup.plan, ids), recipes.metric(setup.cfg)
    return display.watched(where, names=names, last=last, metric=metric)


def _note(cfg: Config) -> dict[str, str]:
    """What must be said of the data wherever results are shown."""
    return {"note": note} if (note := recipes.note(cfg)) else {}


def complete(results: "xr.Dataset", cfg: Config) -> bool:
    """Whether there are as many levels as are asked for."""
    return results.sizes["level"] > levels(cfg)


# --- one stored level again -----------------------------------------------------------


def retrain(
    cfg: Config,
    source: pathlib.Path,
    level: int,
    folder: pathlib.Path,
    deadline: Deadline | None = None,
) -> "xr.Dataset":
    """Trains one stored level again with changed fields.

    Args:
      cfg: the stored configuration, or a changed one.
      source: the stored run.
      level: of it.
      folder: of the new run.
      deadline: when this call must have ended; None for no limit.

    Raises:
      ValueError: a field that makes no sense, or tickets that do not fit it.
      FileNotFoundError: there are no tickets of that level; says of which there are.
    """
    setup = prepare(cfg)
    protocol, free = setup.plan, identity.free(Config)
    stored = records.read_config(source) or {}
    swept = _sweep_of(setup, stored, source)
    if swept:  # of tickets that were found at one setting
        protocol = dataclasses.replace(protocol, chains=protocol.procedures)
    of = {i: group for group, ids in groups.groups(source, 0) for i in ids}
    ids = sorted(of)[: cfg.replicas]
    if len(ids) < cfg.replicas:
        raise ValueError(f"replicas={cfg.replicas}; {source} has {len(ids)}")
    found = stored_tickets(of, protocol, ids, level)
    # A random mask, say, keeps weights that the level's tickets have lost.
    losing = {arm.name for arm in imp.ARMS if arm.lost}
    lost = level > 0 and not losing.isdisjoint(protocol.arms)
    dense = stored_tickets(of, protocol, ids, 0) if lost else None
    params = setup.task.shapes[0]
    try:
        masks.check(found[0][0].mask, params)
    except ValueError as error:
        raise ValueError(
            f"--level {level} of {source} does not fit model={cfg.model!r} on "
            f"data={cfg.data!r}: {error}"
        ) from None
    origin = {
        "retrained_from": records.identity(stored, free),
        "retrained_level": level,
    }
    config = identity.as_config(cfg)
    records.claim_folder(folder, config | origin, free)

    def train() -> "xr.Dataset":
        where = launch.where(cfg, folder, deadline=deadline)
        with watched(setup, ids, where, level) as place:
            study = imp.retrain(
                setup.task,
                setup.tx,
                protocol,
                found,
                level=level,
                replicas=ids,
                dense=dense,
                sweep=swept or None,
                where=place,
            )
        results = study.dataset(**origin, **_note(cfg))
        results.attrs["config"] = json.dumps(config)
        return results

    return groups.once(
        folder / "results.nc", train, lambda r: r["replica"].values.tolist() == ids
    )


def _sweep_of(
    setup: Setup, stored: Mapping[str, Any], source: pathlib.Path
) -> dict[str, tuple[float, ...]]:
    """What is swept of a level's tickets; nothing if each was found at its own setting."""
    there = {f"sweep_{name}": stored.get(f"sweep_{name}", []) for name in recipes.SWEPT}
    if not any(there.values()):
        return recipes.sweep(setup.cfg, setup.task.steps_per_epoch)
    ours = identity.as_config(setup.cfg)
    for field, values in there.items():
        if (now := ours.get(field, [])) != values:
            must = f"{values}, as in {source}, whose tickets are those of each setting"
            raise errors.wrong(field, now, must)
    return {}


def stored_tickets(
    where: Mapping[int, pathlib.Path], protocol: imp.Plan, ids: list[int], level: int
) -> list[list[tickets.Ticket]]:
    """The tickets of a level, by chain and replica.

    Args:
      where: the folder of the study of each replica.
      protocol: of these studies.
      ids: of the replicas.
      level: of pruning.

    Raises:
      FileNotFoundError: there are none; says of which levels there are.
    """

    def path(chain: imp.Chain, i: int, level: int) -> pathlib.Path:
        return imp.ticket_path(where[i], chain.name, level, i)

    def there(level: int) -> bool:
        return all(path(c, i, level).is_file() for c in protocol.chains for i in ids)

    if not there(level):
        stored = [str(number) for number in range(100) if there(number)]
        raise FileNotFoundError(
            f"--level {level}: there are no tickets of it; there are those of level "
            + (", ".join(stored) or "none")
        )
    return [
        [tickets.load(path(chain, i, level)) for i in ids] for chain in protocol.chains
    ]


# --- what came out --------------------------------------------------------------------


def tested(results: "xr.Dataset", metric: verdicts.Metric) -> "xr.DataArray":
    """What networks are compared by, at the end; replicas that diverged are nan."""
    return results[f"test_{metric.name}"].where(results["diverged"] == 0)


def accuracy(results: "xr.Dataset") -> "xr.DataArray":
    """Accuracy in percent; replicas that diverged are nan, by name."""
    return metrics.quality(verdicts.ERROR).of(tested(results, verdicts.ERROR))


def _early_stop(results: "xr.Dataset") -> "xr.DataArray":
    """The step of minimum validation loss; nan where diverged or not validated."""
    steps = results["early_stop_step"]
    return steps.where((steps >= 0) & (results["diverged"] == 0)).astype(float)


def by_chain(results: "xr.Dataset") -> "xr.Dataset":
    """The results of a sweep with each setting as a chain; others as they are."""
    names = [name for name in recipes.SWEPT if name in results.dims]
    if not names:
        return results
    stacked = results.stack(at=("chain", *names))
    chains = [
        chain + settings.words(dict(zip(names, values)))
        for chain, *values in stacked["at"].values
    ]
    stacked = stacked.drop_vars(["at", "chain", *names]).rename(at="chain")
    return stacked.assign_coords(chain=chains).transpose("chain", ...)


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """At each level of each chain: matching or winning, and better than what?"""
    results = by_chain(results)
    metric = recipes.metric(cfg)
    values = tested(results, metric)
    stops = _early_stop(results).sel(arm="ticket")
    validated = bool(np.isfinite(stops).any())
    has_dense = 0 in results["level"]  # a retrained level has not
    names = [f"replica {i}" for i in results["replica"].values]
    replicas = verdicts.Replicas(names)
    judged = []
    for chain in results["chain"].values:
        for level in results["level"].values[results["level"].values > 0]:
            at = values.sel(chain=chain, level=level)
            ticket = at.sel(arm="ticket").values
            claims = {}
            if has_dense:
                dense = values.sel(chain=chain, arm="ticket", level=0).values
                claims["matching"] = verdicts.matching(
                    ticket, dense, cfg.tolerance, metric=metric, replicas=replicas
                )
            from_init = int(results.attrs["rewind_step"]) == 0
            if has_dense and from_init:
                stop, dense_stop = (
                    stops.sel(chain=chain, level=n).values if validated else None
                    for n in (level, 0)
                )
                claims["winning"] = verdicts.winning(
                    ticket,
                    dense,
                    rewind_step=0,
                    tolerance=cfg.tolerance,
                    early_stop_step=stop,
                    dense_early_stop_step=dense_stop,
                    metric=metric,
                    replicas=replicas,
                )
            for arm in results["arm"].values[results["arm"].values != "ticket"]:
                claim = f"better than {arm.replace('_', ' ')}"
                claims[claim] = verdicts.better(
                    ticket,
                    at.sel(arm=arm).values,
                    claim=claim,
                    metric=metric,
                    replicas=replicas,
                )
            density = results["density"].sel(chain=chain, arm="ticket", level=level)
            where = {
                "chain": str(chain),
                "level": int(level),
                "density": float(density.mean()),
            }
            judged += [Judged(where, claim, v) for claim, v in claims.items()]
    return judged


def tables(outcome: Outcome) -> list[Rows]:
    """Density, and the accuracy of each arm as mean [min, max] over replicas."""
    results, metric = by_chain(outcome.results), outcome.metric
    several = results.sizes["chain"] > 1
    arms = [str(arm) for arm in results["arm"].values]
    shown = metrics.quality(metric)
    values = shown.of(tested(results, metric))
    header = (["chain"] if several else []) + ["level", "density %"]
    rows = []
    for chain in results["chain"].values:
        for level in results["level"].values:
            at = {"chain": chain, "level": level}
            density = results["density"].sel(arm="ticket", **at).mean()
            row = [str(chain)] if several else []
            row += [str(int(level)), f"{100 * float(density):.1f}"]
            row += [
                display.mean_range(values.sel(arm=arm, **at).values, 1) for arm in arms
            ]
            rows.append(row)
    title = f"Test {shown.text}: mean [min, max] of "
    title += f"{results.sizes['replica']} replicas"
    return [Rows(title, header + [arm.replace("_", " ") for arm in arms], rows)]


def conclusions(outcome: Outcome) -> list[str]:
    """At which densities each claim holds, and who diverged."""
    lines, judged = [], outcome.judged
    chains = list(dict.fromkeys(one.where["chain"] for one in judged))
    for chain, claim in dict.fromkeys((j.where["chain"], j.claim) for j in judged):
        mine = [j for j in judged if (j.where["chain"], j.claim) == (chain, claim)]
        prefix = f"{chain}: " if len(chains) > 1 else ""
        text = display.answers(mine, "{}%", lambda j: f"{100 * j.where['density']:.1f}")
        lines.append(f"{prefix}ticket {claim}: {text}")
    if judged:
        lines.append(
            "Verdicts are paired 95% intervals over replicas, n = "
            f"{judged[-1].verdict.n}; all numbers are in verdicts.json."
        )
    best = _at_best(outcome.results, outcome.metric)
    return [*lines, *best, *_diverged(by_chain(outcome.results))]


def _at_best(results: "xr.Dataset", metric: verdicts.Metric) -> list[str]:
    """At which setting of a sweep each arm is best, with what it is at all of them."""
    names = [name for name in recipes.SWEPT if name in results.dims]
    if not names:
        return []
    shown = metrics.quality(metric)
    chosen_by, test = f"validation_{metric.name}", tested(results, metric)
    values = results[chosen_by].isel(step=-1).where(results["diverged"] == 0)
    if not np.isfinite(values).any():
        chosen_by, values = f"test_{metric.name}", test
    sign, lines = 1 if metric.better == "lower" else -1, []
    grid = settings.settings({name: results[name].values.tolist() for name in names})
    # Level 0 is the dense network for all arms.
    at = [(int(results["level"][0]), "ticket")]
    at += [(int(results["level"][-1]), str(arm)) for arm in results["arm"].values]
    for chain in results["chain"].values:
        for level, arm in dict.fromkeys(at):
            here = {"chain": chain, "level": level, "arm": arm}
            mean = {
                settings.words(one).removeprefix(", "): (
                    float(sign * values.sel(here | one).mean()),
                    display.mean_range(shown.of(test.sel(here | one)).values, 1),
                )
                for one in grid
            }
            known = {name: x for name, (x, _) in mean.items() if np.isfinite(x)}
            best = min(known, key=known.__getitem__) if known else "none"
            what = "dense" if level == 0 else f"{arm} at level {level}"
            prefix = f"{chain}: " if results.sizes["chain"] > 1 else ""
            rest = "; ".join(f"{name}: {said}" for name, (_, said) in mean.items())
            lines.append(
                f"{prefix}{what} is best at {best} (by {chosen_by}); test {shown.text} at "
                f"each setting: {rest}"
            )
    return lines


def _diverged(results: "xr.Dataset") -> list[str]:
    """Each network that diverged, or whose mask was made from one that did."""
    lines = []
    axes = ("chain", "arm", "replica")
    flags = results["diverged"].transpose(*axes, "level").values
    for at in np.argwhere(flags.any(axis=-1)):
        chain, arm, replica = (results[a].values[i] for a, i in zip(axes, at))
        levels = results["level"].values[flags[tuple(at)] != 0]
        prefix = f"{chain}: " if results.sizes["chain"] > 1 else ""
        lines.append(
            f"Diverged, and left out of every average: {prefix}{arm} of replica "
            f"{replica} at level {', '.join(map(str, levels))}"
        )
    return lines


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """Accuracy and the step of early stopping against density, and that of each layer."""
    results = by_chain(outcome.results)
    several = results.sizes["chain"] > 1
    shown = metrics.quality(outcome.metric)
    values, stop = shown.of(tested(results, outcome.metric)), _early_stop(results)
    lines, stops, density = {}, {}, []
    for chain in results["chain"].values:
        for arm in results["arm"].values:
            at = {"chain": chain, "arm": arm}
            label = f"{chain}: {arm}" if several else str(arm)
            if outcome.results.sizes["chain"] == 1:  # what all lines would begin with
                label = label.removeprefix(f"{outcome.results['chain'].values[0]}, ")
            lines[label] = values.sel(at).values
            stops[label] = stop.sel(at).values
            density.append(results["density"].sel(at).mean("replica").values)
    title = f"{outcome.preset}: {outcome.networks}"
    caption = f"{title}\nmean of {results.sizes['replica']} replicas, bars: min to max"
    swept = results.sizes["chain"] > outcome.results.sizes["chain"]
    dense = float(values.sel(arm="ticket").isel(chain=0, level=0).mean())
    figure = plots.against_density(
        np.array(density),
        lines,
        ylabel=f"test {shown.label} at the end of training",
        title=caption,
        # A sweep has a dense network for each setting: the first point of each line.
        baseline=dense if results["level"].values[0] == 0 and not swept else None,
    )
    yield shown.name, figure
    if np.isfinite(list(stops.values())).any():
        figure = plots.against_density(
            np.array(density),
            stops,
            ylabel="step of minimum validation loss",
            title=caption,
        )
        yield "early_stop", figure
    if swept:
        title += f"\n{results['chain'].values[0]}"  # the first setting
    ticket = results.sel(arm="ticket").isel(chain=0).mean("replica", keep_attrs=False)
    layers = {
        str(name): ticket["layer_density"].sel(layer=name).values
        for name in results["layer"].values
    }
    density_ = ticket["density"].values
    yield "layer_density", plots.layer_densities(density_, layers, title)


PRESETS = cost.told(presets.make(Config, presets.IMP), work_of)

EXPERIMENT = Experiment(
    name="imp",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-4 --subset 200 --steps 2it --validate-every 2 --levels 1 "
    "--replicas 2",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
    complete=complete,
    again=retrain,
    starts=True,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
