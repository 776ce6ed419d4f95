"""What of a ticket matters?  Masks, signs and zeros, taken apart.

    python -m experiments.deconstruct                          # MLP on MNIST-1D
    python -m experiments.deconstruct lenet-fashion

Trains a dense network per replica, prunes it once, layer by layer, to several densities,
and varies one thing at a time: the criterion by which weights are kept; what the kept ones
start from (signs or magnitudes drawn anew, shuffled, made constant); what the pruned ones
are (0, or frozen at their initial value). All variants of all replicas train together. And
how good is each mask on weights that were never trained?

Zhou, Lan, Liu and Yosinski, Deconstructing Lottery Tickets: Zeros, Signs, and the
Supermask, 2019, sections 2 to 5.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cost, display, metrics, presets, recipes
from experiments.dense import Dense, train
from experiments.dense import work as work_of_dense
from experiments.display import Judged, Rows, mean_range
from experiments.experiment import Experiment, Outcome, dataset
from experiments.identity import FREE, Where
from experiments.recipes import Recipe, Setup, make_optimizer, make_task, parse_step
from lottery_jax import (
    errors,
    imp,
    keys,
    masks,
    plots,
    scores,
    tasks,
    training,
    trees,
    verdicts,
)
from lottery_jax.execution import Where as Place
from lottery_jax.imp.levels import prune_chain
from lottery_jax.tasks.anchored import ACTIONS, Action
from lottery_jax.types import Mask, Network, Params, Task

if TYPE_CHECKING:
    import xarray as xr

Criterion = Literal[
    "large_final",
    "small_final",
    "large_init",
    "small_init",
    "large_init_large_final",
    "small_init_small_final",
    "magnitude_increase",
    "movement",
    "random",
    "large_final_same_sign",
    "large_final_diff_sign",
    "magnitude_increase_same_sign",
    "magnitude_increase_diff_sign",
]
Start = Literal[
    "reinit",
    "reinit_signed",
    "shuffled_weights",
    "shuffled_weights_signed",
    "constant",
    "constant_signed",
]

UNTRAINED: tuple[Criterion, ...] = get_args(Criterion)
"""Criteria whose masks are tried on weights that were never trained: all."""

RETRAINED: tuple[Criterion, ...] = UNTRAINED[:9]
"""Those whose sub-networks are trained by default."""

STARTS: tuple[Start, ...] = get_args(Start)
WEIGHTS = ("init", "signed_constant")
"""What is never trained: initial weights, and the deviation of their layer, signed."""


def score(criterion: Criterion) -> str:
    """The name among `scores.SCORES` of what the paper calls a criterion."""
    return "magnitude" if criterion == "large_final" else criterion


@dataclass(frozen=True)
class Config(Where, Recipe):
    """Everything that a study is determined by, and where and how it runs."""

    fraction: float = 0.2
    """Share of the surviving weights that a level removes, where no rate says otherwise."""
    rates: tuple[tuple[str, float], ...] = (("head", 0.1),)
    """Pattern and fraction of some layers; the first match counts."""
    levels: tuple[int, ...] = (1, 4, 8, 12, 16)
    """Levels whose densities sub-networks are trained at; each is pruned at once."""
    untrained_levels: tuple[int, ...] = (1, 2, 4, 6, 8, 10, 12, 16)
    """Levels at which masks are tried on untrained weights."""
    criteria: tuple[Criterion, ...] = RETRAINED
    """Criteria whose sub-networks are trained, large_final among them."""
    starts: tuple[Start, ...] = STARTS
    """What the kept weights of large_final start from, beside their initial value."""
    pruned: tuple[Action, ...] = ACTIONS[1:]
    """What the pruned weights of large_final are, beside 0."""
    every: int = 500
    """Steps of a segment; checkpoints are written between segments."""
    replicas: int = field(default=3, metadata=FREE)
    """Independent runs, each with its own initialisation and noise."""


# --- running --------------------------------------------------------------------------


def chain(cfg: Config, criterion: Criterion, level: int | None = None) -> imp.Chain:
    """The procedure that makes a mask: the trained dense network, pruned at once."""
    return imp.Chain(
        name=criterion if level is None else f"{criterion} at level {level}",
        densities=imp.Geometric(cfg.fraction, (*cfg.rates, (".", cfg.fraction))),
        one_shot=True,
        scope="layerwise",
        score=score(criterion),
    )


def plan(cfg: Config, steps: int, chains: Sequence[imp.Chain], *arms: str) -> imp.Plan:
    """The protocol of some chains; errors name the field."""
    return imp.check(
        imp.Plan(
            steps=steps,
            chains=tuple(chains),
            arms=("ticket", *arms),
            validate_every=cfg.every,
            seed=cfg.seed,
        )
    )


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and protocol; errors name the field."""
    for name, valid in (
        ("criteria", UNTRAINED),
        ("starts", STARTS),
        ("pruned", ACTIONS[1:]),
    ):
        given = errors.names(name, getattr(cfg, name))
        for one_ in given:
            errors.one_of(name, one_, valid)
        if len(set(given)) < len(given):
            raise ValueError(f"{name}={given}; they must all be different")
    if "large_final" not in cfg.criteria:
        raise ValueError(f"criteria={cfg.criteria}; 'large_final' must be among them")
    task = make_task(cfg)
    try:
        trees.matching(task.shapes[0], tuple(dict(cfg.rates)))
    except ValueError as error:
        raise ValueError(f"rates: {error}") from None
    steps = parse_step(cfg, "steps", task.steps_per_epoch)
    protocol = plan(cfg, steps, [chain(cfg, one_) for one_ in cfg.criteria])
    for name in ("levels", "untrained_levels"):
        levels = errors.wholes(name, getattr(cfg, name), 1)
        errors.some_different(name, levels)
        for level in levels:
            counts(cfg, task, level, name)
    return Setup(cfg, task, make_optimizer(cfg, task.steps_per_epoch), protocol)


def counts(cfg: Config, task: Task, level: int, name: str = "levels") -> np.ndarray:
    """How many weights a level keeps: in all, and in each prunable leaf, int32.

    Raises:
      ValueError: no rate fits, or a layer would be left without any weight; names it.
    """
    params, flags = task.shapes[0], masks.of_task(task)
    try:
        found = imp.keep_counts(chain(cfg, "large_final"), params, level, flags)
    except ValueError as error:  # in the words of the configuration
        raise ValueError(str(error).replace("by_layer", "rates")) from None
    layers = [
        path
        for path, take in zip(trees.paths(params), masks.resolve(params, flags))
        if take
    ]
    for layer, number in zip(layers, found[1:]):
        if number == 0:
            raise ValueError(
                f"{name}: level {level} would leave the layer {layer!r} without any "
                "weight, whatever the criterion; leave it out, or lower the rates"
            )
    return found


def cut(dense: Dense, criterion: Criterion, levels: Sequence[int]) -> list[Mask]:
    """The masks of a criterion, `[R, ...]` each, by level.

    Args:
      dense: the networks.
      criterion: by which weights are kept.
      levels: whose counts are kept in each layer.
    """
    cfg, task, _, _ = dense.setup
    keep = jnp.asarray(np.stack([counts(cfg, task, level) for level in levels]))
    places: dict[str, Any] = dict(prunable=masks.of_task(task), exclude=task.exclude)
    own = chain(cfg, criterion)

    def of_replica(key: Any, initial: Params, trained: Params) -> Mask:
        inputs = scores.Inputs(trained, masks.ones_like(trained), initial)
        # One draw for all levels, so that random masks are nested like the others.
        return jax.vmap(lambda n: prune_chain(own, key, inputs, n, **places))(keep)

    key = keys.of_replicas(cfg.seed, dense.ids).score
    before, after = dense.initial.params, dense.trained.params
    found = trees.host(jax.vmap(of_replica)(key, before, after))
    return [jax.tree.map(lambda m, i=i: m[:, i], found) for i in range(len(levels))]


def tested(dense: Dense, networks: Network, where: Place) -> np.ndarray:
    """What networks are compared by, on the test set, `[networks]`."""
    found = training.evaluate(dense.setup.task, networks, "test", where=where.aside())
    return found[recipes.metric(dense.setup.cfg).name].astype(float)


def untrained(dense: Dense, found: Sequence[Mask], where: Place) -> np.ndarray:
    """Masks on weights that were never trained, `[weights, level, replica]`.

    Args:
      dense: the networks.
      found: masks, by level, `[R, ...]` each.
      where: it runs.
    """
    flags, initial = masks.of_task(dense.setup.task), dense.initial
    signed = jax.vmap(
        lambda p: imp.arms.with_signs(imp.arms.constants(p), p, flags, p)
    )(initial.params)
    stack = [
        initial._replace(params=masks.apply(mask, params))
        for params in (initial.params, signed)
        for mask in found
    ]
    value = tested(dense, trees.concatenate(trees.host(stack)), where)
    return value.reshape(len(WEIGHTS), len(found), -1)


def retrained(
    dense: Dense,
    task: Task,
    protocol: imp.Plan,
    found: Sequence[Mask],
    networks: Network | Sequence[Network],
    where: Place,
) -> np.ndarray:
    """What sub-networks are compared by after training, `[chain, arm, replica]`.

    Args:
      dense: the networks.
      task: what is trained, on its networks.
      protocol: chains and arms.
      found: a mask for each chain, `[R, ...]`.
      networks: what they start from, for all or for each.
      where: it runs.

    Returns:
      nan for those that diverged.
    """
    study = imp.retrain(
        task,
        dense.setup.tx,
        protocol,
        imp.tickets_from(found, networks),
        level=1,
        replicas=dense.ids,
        dense=networks if isinstance(networks, Network) else None,
        where=where,
    )
    metric = recipes.metric(dense.setup.cfg)
    value = study.records[f"test_{metric.name}"][1][..., 0]
    diverged = study.records["diverged"][1][..., 0] != 0
    return np.where(diverged, np.nan, value)


def by_start(dense: Dense, where: Place) -> np.ndarray:
    """What the kept weights of large_final start from, `[start, level, replica]`."""
    cfg, task, _, whole = dense.setup
    chains = [chain(cfg, "large_final", level) for level in cfg.levels]
    found = cut(dense, "large_final", cfg.levels)
    protocol = plan(cfg, whole.steps, chains, *cfg.starts)
    value = retrained(dense, task, protocol, found, dense.initial, where)
    return value.swapaxes(0, 1)


def by_criterion(dense: Dense, where: Place) -> np.ndarray:
    """All criteria but large_final, `[criterion, level, replica]`."""
    cfg, task, _, whole = dense.setup
    others = _others(cfg)
    chains = [chain(cfg, one_, level) for one_ in others for level in cfg.levels]
    found = [mask for one_ in others for mask in cut(dense, one_, cfg.levels)]
    protocol = plan(cfg, whole.steps, chains)
    value = retrained(dense, task, protocol, found, dense.initial, where)
    return value.reshape(len(others), len(cfg.levels), -1)


def by_pruned(dense: Dense, where: Place) -> np.ndarray:
    """What the pruned weights of large_final are, `[action, level, replica]`."""
    cfg, task, _, whole = dense.setup
    found = cut(dense, "large_final", cfg.levels)
    own = chain(cfg, "large_final")
    chains = [
        replace(own, name=f"{action} at level {level}")
        for action in cfg.pruned
        for level in cfg.levels
    ]
    starts = [
        trees.host(tasks.anchor(dense.initial, mask, action, dense.trained.params))
        for action in cfg.pruned
        for mask in found
    ]
    protocol, task = plan(cfg, whole.steps, chains), tasks.anchored(task)
    found = found * len(cfg.pruned)
    value = retrained(dense, task, protocol, found, starts, where)
    return value.reshape(len(cfg.pruned), len(cfg.levels), -1)


def _others(cfg: Config) -> tuple[Criterion, ...]:
    """The criteria whose sub-networks are trained beside those of large_final."""
    return tuple(one_ for one_ in cfg.criteria if one_ != "large_final")


def one(setup: Setup, ids: list[int], where: Place) -> "xr.Dataset":
    """Trains dense networks, takes them apart, and trains the parts."""
    cfg, metric = setup.cfg, recipes.metric(setup.cfg)
    with display.watched(where, last=1, metric=metric) as place:
        dense = train(setup, ids, place)
        whole = tested(dense, dense.trained, place)
        before = [
            untrained(dense, cut(dense, one_, cfg.untrained_levels), place)
            for one_ in UNTRAINED
        ]
        starts = by_start(dense, place.below("starts"))
        # The ticket itself is the first of each family.
        criteria = pruned = starts[:1]
        if _others(cfg):
            after = by_criterion(dense, place.below("criteria"))
            criteria = np.concatenate([criteria, after])
        if cfg.pruned:
            pruned = np.concatenate([pruned, by_pruned(dense, place.below("pruned"))])
    name = metric.name
    return dataset(
        cfg,
        {
            f"dense_{name}": (("replica",), whole),
            f"criterion_{name}": (("criterion", "level", "replica"), criteria),
            f"start_{name}": (("start", "level", "replica"), starts),
            f"pruned_{name}": (("pruned", "level", "replica"), pruned),
            f"untrained_{name}": (
                ("mask", "weights", "untrained_level", "replica"),
                np.stack(before),
            ),
            "density": (("level",), _densities(setup, cfg.levels)),
            "untrained_density": (
                ("untrained_level",),
                _densities(setup, cfg.untrained_levels),
            ),
        },
        {
            "replica": ids,
            "criterion": ["large_final", *_others(cfg)],
            "start": ["ticket", *cfg.starts],
            "pruned": ["zero", *cfg.pruned],
            "mask": list(UNTRAINED),
            "weights": list(WEIGHTS),
            "level": list(cfg.levels),
            "untrained_level": list(cfg.untrained_levels),
        },
    )


def work(setup: Setup) -> cost.Work:
    """What dense networks and all their parts compute."""
    cfg, whole, of = setup.cfg, setup.plan, cost.of_setup(setup)
    levels, replicas = len(cfg.levels), cfg.replicas

    def again(name: str, number: int, *arms: str) -> cost.Work:
        if not number:
            return cost.Work(())
        chains = [imp.Chain(f"{i}") for i in range(number)]
        protocol = plan(cfg, whole.steps, chains, *arms)
        return cost.again(of, protocol, replicas, name)

    tried = len(UNTRAINED) * len(WEIGHTS) * len(cfg.untrained_levels) * replicas
    untrained_ = cost.Measured("masks on untrained weights", of, tried, of.test)
    return cost.together(
        work_of_dense(setup),
        cost.Work((), (untrained_,)),
        again("starts", levels, *cfg.starts),
        again("criteria", len(_others(cfg)) * levels),
        again("pruned weights", len(cfg.pruned) * levels),
    )


def _densities(setup: Setup, levels: Sequence[int]) -> np.ndarray:
    total = masks.total(setup.task.shapes[0], masks.of_task(setup.task))
    kept = [counts(setup.cfg, setup.task, level)[0] for level in levels]
    return np.array(kept) / total


# --- what came out --------------------------------------------------------------------

_PAIRS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "criterion": (
        *(("large_final", other) for other in RETRAINED[1:]),
        *((other, "random") for other in RETRAINED[1:-1]),
    ),
    "start": (
        *(("ticket", start) for start in STARTS),
        *((f"{start}_signed", start) for start in STARTS[::2]),
    ),
    "pruned": (
        ("zero", "freeze"),
        ("freeze_grown", "zero"),
        ("freeze_grown_all", "zero"),
    ),
}
"""What is compared with what: first the one that wins, or may, in the paper."""


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """At each density: what is better than what, and is a mask alone above chance?"""
    metric = recipes.metric(cfg)
    replicas = verdicts.Replicas([f"replica {i}" for i in results["replica"].values])
    judged = []
    where: dict[str, Any]

    def better(family: str, at: "xr.DataArray", a: str, b: str, where: Any) -> None:
        claim = f"{a} better than {b}"
        verdict = verdicts.better(
            at.sel({family: a}).values,
            at.sel({family: b}).values,
            claim=claim,
            metric=metric,
            replicas=replicas,
        )
        judged.append(Judged({"family": family} | where, claim, verdict))

    for family, pairs in _PAIRS.items():
        values, there = results[f"{family}_{metric.name}"], results[family].values
        for a, b in pairs:
            for level in results["level"].values:
                if a in there and b in there:
                    where = {
                        "level": int(level),
                        "density": float(results["density"].sel(level=level)),
                    }
                    better(family, values.sel(level=level), a, b, where)
    values = results[f"untrained_{metric.name}"]
    for weights in results["weights"].values:
        for level in results["untrained_level"].values:
            at = values.sel(weights=weights, untrained_level=level)
            density = results["untrained_density"].sel(untrained_level=level)
            where = {"weights": str(weights), "level": int(level)}
            where |= {"density": float(density)}
            for other in ("large_final", "random"):
                better("mask", at, "large_final_same_sign", other, where)
    return judged


def tables(outcome: Outcome) -> list[Rows]:
    """The three families by density, and the masks on untrained weights at their best."""
    results, metric = outcome.results, outcome.metric
    shown = metrics.quality(metric)
    what = f"Test {shown.name} in {shown.unit}: mean [min, max] of "
    what += f"{results.sizes['replica']} replicas; columns are weights remaining"
    density = [f"{100 * x:.1f}%" for x in results["density"].values]
    out = []
    for family, title in _TITLES.items():
        values = shown.of(results[f"{family}_{metric.name}"])
        rows = [
            [
                str(name),
                *(
                    mean_range(values.sel({family: name, "level": level}).values, 1)
                    for level in results["level"].values
                ),
            ]
            for name in results[family].values
        ]
        out.append(Rows(f"{title}. {what}", [family, *density], rows))
    raw = results[f"untrained_{metric.name}"]
    values, rows = shown.of(raw), []
    pick = np.argmin if metric.better == "lower" else np.argmax
    for name in results["mask"].values:
        row = [str(name)]
        for weights in results["weights"].values:
            at = values.sel(mask=name, weights=weights)
            best = int(pick(raw.sel(mask=name, weights=weights).mean("replica").values))
            share = 100 * float(results["untrained_density"][best])
            row.append(
                f"{mean_range(at.isel(untrained_level=best).values, 1)} at {share:.1f}%"
            )
        rows.append(row)
    title = (
        f"Untrained weights under masks, at the density where the mean is best. {what}"
    )
    out.append(Rows(title, ["mask", *map(str, results["weights"].values)], rows))
    return out


_TITLES = {
    "criterion": "Which weights are kept",
    "start": "What the kept weights of large final start from",
    "pruned": "What the pruned weights of large final are",
}


def conclusions(outcome: Outcome) -> list[str]:
    """For each comparison its differences by density, with intervals."""
    text = outcome.metric.text
    by_comparison: dict[str, list[str]] = {}
    for one_ in outcome.judged:
        weights = str(one_.where.get("weights", "")).replace("_", " ")
        name = (f"untrained {weights}: " if weights else "") + one_.claim
        verdict = one_.verdict
        found = (
            f"{100 * one_.where['density']:.1f}%: {verdict.answer} "
            f"({text(verdict.estimate)} [{text(verdict.low)}, {text(verdict.high)}])"
        )
        by_comparison.setdefault(name.replace("_", " "), []).append(found)
    unit = metrics.difference(outcome.metric)
    return [
        *(f"{name}: {'; '.join(found)}" for name, found in by_comparison.items()),
        f"By weights remaining. In brackets: difference of {unit.name} in {unit.unit}, "
        "first minus second, with its paired 95% interval over n = "
        f"{outcome.results.sizes['replica']} replicas.",
    ]


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """The three families against density, and the masks on untrained weights."""
    results, metric = outcome.results, outcome.metric
    shown = metrics.quality(metric)
    of = f"{outcome.networks}\nmean of {results.sizes['replica']} replicas, bars: min to max"
    dense = float(shown.of(results[f"dense_{metric.name}"]).mean())
    for family, title in _TITLES.items():
        values = shown.of(results[f"{family}_{metric.name}"])
        yield (
            family,
            plots.against_density(
                results["density"].values,
                {
                    str(name): values.sel({family: name})
                    .transpose("replica", "level")
                    .values
                    for name in results[family].values
                },
                ylabel=f"test {shown.name} after training ({shown.unit})",
                title=f"{title}\n{of}",
                baseline=dense,
            ),
        )
    values = shown.of(results[f"untrained_{metric.name}"])
    for weights in results["weights"].values:
        at = values.sel(weights=weights).transpose("mask", "replica", "untrained_level")
        yield (
            f"untrained_{weights}",
            plots.against_density(
                results["untrained_density"].values,
                {str(name): at.sel(mask=name).values for name in _DRAWN},
                ylabel=f"test {shown.name} without training ({shown.unit})",
                title=f"Masks on untrained weights ({str(weights).replace('_', ' ')})\n{of}",
            ),
        )


_DRAWN = tuple(name for name in UNTRAINED if not name.startswith("small_init"))
"""As many as colours can tell apart; the tables have all."""


PRESETS = presets.make(Config, presets.DECONSTRUCT)

EXPERIMENT = Experiment(
    name="deconstruct",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-4 --subset 200 --steps 2it --levels 1 --untrained-levels 1 2 "
    "--criteria large_final random --starts constant reinit_signed --pruned freeze "
    "--replicas 3",
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
