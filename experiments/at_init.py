"""Pruning at initialisation, and what it knows: the sanity checks of Frankle et al.

    python -m experiments.at_init                              # MLP on MNIST-1D
    python -m experiments.at_init lenet-fashion

Prunes networks before any training by SNIP, GraSP, SynFlow or magnitude, and trains what
is left. Each ticket is compared with three that should be worse if the method had found out
which weights matter: its mask shuffled within each layer, its mask on other initial
weights, and a mask of the weights that it scores lowest. Beside them stand random pruning
and the weights that are largest after training, rewound to step 0.

Frankle, Dziugaite, Roy and Carbin, Pruning Neural Networks at Initialization: Why Are We
Missing the Mark?, 2021.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from experiments import cost, display, metrics, presets, recipes
from experiments.dense import Dense, train
from experiments.dense import work as work_of_dense
from experiments.display import Judged, Rows
from experiments.experiment import Experiment, Outcome, dataset
from experiments.identity import FREE, Where
from experiments.imp import tested
from experiments.recipes import Recipe, Setup, make_optimizer, make_task, parse_step
from lottery_jax import (
    at_init,
    errors,
    imp,
    masks,
    plots,
    prune,
    scores,
    training,
    trees,
    verdicts,
)
from lottery_jax.execution import Where as Place
from lottery_jax.types import Mask, Network

if TYPE_CHECKING:
    import xarray as xr

AFTER = "magnitude after training"
RANDOM = "random"

CHECKS = {
    "original": "ticket",
    "shuffled": "random_mask",
    "reinit": "reinit",
    "inverted": "ticket",
}
"""The checks, and the arm of a retraining that each is."""


@dataclasses.dataclass(frozen=True)
class Config(Where, Recipe):
    """Everything that a study is determined by, and where and how it runs."""

    methods: tuple[Literal["snip", "grasp", "synflow", "magnitude"], ...] = (
        "snip",
        "grasp",
        "synflow",
        "magnitude",
    )
    """Methods that are checked; random pruning and the reference always run."""
    densities: tuple[float, ...] = (0.2, 0.1, 0.05, 0.02)
    """Shares of the weights that are kept."""
    score_batches: int = 8
    """Batches of training data on which SNIP and GraSP derive the loss."""
    synflow_rounds: int = 100
    """Rounds of SynFlow."""
    validate_every: int = 500
    """Steps between validations."""
    tolerance: float = dataclasses.field(default=0.005, metadata=FREE)
    """How much more error still counts as no harm."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent initialisations."""


# --- running --------------------------------------------------------------------------


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and the plan of a retraining; errors name the field."""
    errors.some_different("methods", cfg.methods)
    errors.some_different("densities", cfg.densities)
    errors.at_least("score_batches", cfg.score_batches, 1)
    errors.at_least("synflow_rounds", cfg.synflow_rounds, 1)
    task = make_task(cfg)
    where = masks.of_task(task), task.exclude
    for name in cfg.methods:
        for density in cfg.densities:
            at_init.keep_counts(method(cfg, name), task.shapes[0], density, *where)
    plan = imp.Plan(
        steps=parse_step(cfg, "steps", task.steps_per_epoch),
        chains=_chains((*cfg.methods, AFTER), cfg.densities),
        arms=("ticket", "random_mask", "reinit"),
        validate_every=cfg.validate_every,
        seed=cfg.seed,
    )
    tx = make_optimizer(cfg, task.steps_per_epoch)
    return Setup(cfg, task, tx, imp.check(plan))


def method(cfg: Config, name: str) -> at_init.Method:
    """A method with the rounds of the configuration."""
    found = at_init.METHODS[name]
    if name == "synflow":
        found = dataclasses.replace(found, rounds=cfg.synflow_rounds)
    return found


def _chains(names: Sequence[str], densities: Sequence[float]) -> tuple[imp.Chain, ...]:
    return tuple(
        imp.Chain(f"{name.replace(' ', '-')}-{density:g}")
        for name in names
        for density in densities
    )


def one(setup: Setup, ids: list[int], where: Place) -> "xr.Dataset":
    """Prunes and trains a group of replicas: all checks of all methods at once."""
    cfg, task, _, plan = setup
    names = (*cfg.methods, AFTER)
    with display.watched(where, metric=recipes.metric(cfg)) as place:
        dense = train(setup, ids, place)
        whole = training.evaluate(task, dense.trained, "test", where=place.aside())
    after, start = largest(dense), dense.initial

    def masks_of(name: str, inverted: bool) -> Mask:
        how = dataclasses.replace(method(cfg, name), inverted=inverted)
        return imp.prune_at_init(
            task,
            how,
            cfg.densities,
            replicas=ids,
            seed=cfg.seed,
            batches=cfg.score_batches,
            where=where.below("masks").aside(),
        ).masks

    upright = [masks_of(name, inverted=False) for name in cfg.methods]
    checked = retrain(setup, plan, [*upright, after], start, ids, where.below("checks"))
    # What is only trained as it stands.
    others = [masks_of(name, inverted=True) for name in cfg.methods]
    rest = dataclasses.replace(
        plan,
        chains=_chains(
            [f"{n}-inverted" for n in cfg.methods] + [RANDOM], cfg.densities
        ),
        arms=("ticket",),
    )
    others.append(masks_of(RANDOM, inverted=False))
    alone = retrain(setup, rest, others, start, ids, where.below("baselines"))
    return _results(cfg, ids, names, checked, alone, whole)


def work(setup: Setup) -> cost.Work:
    """What dense networks and all masks cost; what masks are found by is left out."""
    cfg, plan, of = setup.cfg, setup.plan, cost.of_setup(setup)
    others = _chains([*map(str, cfg.methods), RANDOM], cfg.densities)
    rest = dataclasses.replace(plan, chains=others, arms=("ticket",))
    return cost.together(
        work_of_dense(setup),
        cost.again(of, plan, cfg.replicas, "checks"),
        cost.again(of, rest, cfg.replicas, "baselines"),
    )


def largest(dense: Dense) -> Mask:
    """Masks of the weights that are largest after training, `[density, replica, ...]`."""
    cfg, task, _, _ = dense.setup
    size = jax.tree.map(np.asarray, scores.magnitude(dense.trained.params))
    how = {"prunable": masks.of_task(task), "exclude": task.exclude}

    def mask(density: float, i: int) -> Mask:
        own = trees.rows(size, i)
        return prune.to_density(own, masks.ones_like(own), density, **how)

    replicas = range(len(dense.ids))
    of = [trees.stack([mask(d, i) for i in replicas]) for d in cfg.densities]
    return trees.host(trees.stack(of))


def retrain(
    setup: Setup,
    plan: imp.Plan,
    found: Sequence[Mask],
    start: Network,
    ids: list[int],
    where: Place,
) -> imp.Study:
    """Trains every mask of every method under the arms of a plan, all at once.

    Args:
      setup: of the run.
      plan: with a chain for each method and density.
      found: of each method, `[density, replica, ...]` leaves.
      start: the networks at initialisation, `[replica, ...]` leaves.
      ids: of the replicas.
      where: it runs.
    """
    number = len(setup.cfg.densities)
    chains = [trees.rows(of, d) for of in found for d in range(number)]
    named = display.names(plan, ids)
    metric = recipes.metric(setup.cfg)
    with display.watched(where, names=named, last=1, metric=metric) as place:
        return imp.retrain(
            setup.task,
            setup.tx,
            plan,
            imp.tickets_from(chains, start),
            level=1,
            replicas=ids,
            dense=start,
            where=place,
        )


def _results(
    cfg: Config,
    ids: list[int],
    names: Sequence[str],
    checked: imp.Study,
    alone: imp.Study,
    dense: Mapping[str, np.ndarray],
) -> "xr.Dataset":
    """Everything by method, density, check and replica; nan where nothing was trained."""
    axes = ("method", "density", "check", "replica")
    arms, number = checked.plan.arms, len(cfg.densities)
    records = {
        name: value[..., 0] if axis[-1] == "level" else value[..., 0, :]
        for name, (axis, value) in checked.records.items()
        # The density is an axis here; `alive` says the same.
        if "level" in axis and "step" not in axis and name != "density"
    }
    out: dict[str, Any] = {}
    for name, value in records.items():
        further = value.shape[3:]
        shape = (len(names) + 1, number, len(CHECKS), len(ids), *further)
        full = np.full(shape, np.nan)
        by_method = value.reshape(len(names), number, *value.shape[1:])
        other = alone.records[name][1]
        other = (other[:, 0, :, 0] if not further else other[:, 0, :, 0, :]).reshape(
            len(cfg.methods) + 1, number, len(ids), *further
        )
        for i, (check, arm) in enumerate(CHECKS.items()):
            if check == "inverted":
                full[: len(cfg.methods), :, i] = other[:-1]
            else:
                full[:-1, :, i] = by_method[:, :, arms.index(arm)]
        full[-1, :, 0] = other[-1]
        out[name] = ((*axes, *(("layer",) if further else ())), full)
    out |= {
        f"dense_test_{name}": (("replica",), value) for name, value in dense.items()
    }
    coordinates = {
        "method": [*names, RANDOM],
        "density": list(cfg.densities),
        "check": list(CHECKS),
        "replica": ids,
        "layer": [str(name) for name in checked.records["layer"][1]],
    }
    return dataset(cfg, out, coordinates)


# --- what came out --------------------------------------------------------------------


def lost(results: "xr.Dataset") -> "xr.DataArray":
    """How many layers have lost all weights, `[method, density, check, replica]`."""
    return (results["layer_density"] == 0).sum("layer")


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Which checks hurt, and how does each method compare with the references?"""
    values, empty = tested(results, recipes.metric(cfg)), lost(results)
    judged = []
    for name in results["method"].values.tolist():
        for density in results["density"].values.tolist():
            where = {"method": name, "density": density}
            gone = empty.sel(where | {"check": "original"}).values.any()
            claims = _claims(values, where, cfg, bool(gone))
            judged += [Judged(where, one.claim, one) for one in claims]
    return judged


def _claims(
    values: "xr.DataArray", where: dict[str, Any], cfg: Config, gone: bool
) -> list[verdicts.Verdict]:
    """The verdicts on one method at one density; gone: the original has lost layers."""
    names = [f"replica {i}" for i in values["replica"].values]
    same: dict[str, Any] = dict(
        metric=recipes.metric(cfg), replicas=verdicts.Replicas(names)
    )

    def of(method: str, check: str) -> np.ndarray:
        at = where | {"method": method, "check": check}
        return values.sel(at).transpose("replica").values

    ticket, found = of(where["method"], "original"), []
    for check in list(CHECKS)[1:]:
        other = of(where["method"], check)
        if np.isfinite(other).any():  # it was trained
            claim = f"better than {check}"
            found.append(verdicts.better(ticket, other, claim=claim, **same))
            harm = verdicts.matching(other, ticket, cfg.tolerance, **same)
            harm = harm._replace(claim=f"{check} does not hurt")
            if gone:
                reason = "the original has lost layers: there is little to be hurt"
                harm = harm._replace(answer="undecided", reason=reason)
            found.append(harm)
    if where["method"] not in (RANDOM, AFTER):
        for reference in (RANDOM, AFTER):
            claim, other = f"better than {reference}", of(reference, "original")
            found.append(verdicts.better(ticket, other, claim=claim, **same))
    return found


def conclusions(outcome: Outcome) -> list[str]:
    """At which densities each claim holds, for each method."""
    lines, judged = [], outcome.judged
    for name, claim in dict.fromkeys((j.where["method"], j.claim) for j in judged):
        mine = [j for j in judged if (j.where["method"], j.claim) == (name, claim)]
        text = display.answers(mine, "{}%", lambda j: f"{100 * j.where['density']:g}")
        lines.append(f"{name}: {claim}: {text}")
    margin = outcome.metric.text(outcome.cfg.tolerance)
    lines.append(
        "Verdicts are paired 95% intervals over replicas, n = "
        f"{outcome.results.sizes['replica']}; no harm is less than {margin} "
        f"{outcome.metric.unit}".rstrip()
        + "; all numbers are in verdicts.json."
    )
    return lines


def tables(outcome: Outcome) -> list[Rows]:
    """Accuracy of each method and check, and the layers that were lost."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    values, empty = shown.of(tested(results, outcome.metric)), lost(results)
    rows = []
    for name in results["method"].values.tolist():
        for density in results["density"].values.tolist():
            cells, gone = [], []
            for check in CHECKS:
                at = {"method": name, "density": density, "check": check}
                ran = np.isfinite(results["alive"].sel(at)).any()
                own = values.sel(at).values
                cells.append(display.mean_range(own, 1) if ran else "")
                number = empty.sel(at).values
                if ran and number.any():
                    gone.append(f"{check} {number.max()}")
            rows.append([name, f"{100 * density:g}", *cells, ", ".join(gone)])
    dense = shown.of(results[f"dense_test_{outcome.metric.name}"].values)
    title = f"Test {shown.name} in {shown.unit}: mean [min, max] of "
    title += (
        f"{results.sizes['replica']} replicas; dense {display.mean_range(dense, 1)}"
    )
    header = ["method", "density %", *CHECKS, "layers lost (most)"]
    return [Rows(title, header, rows)]


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """All methods in one figure; each with its checks; what each keeps of each layer."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    values = shown.of(tested(results, outcome.metric))
    density = results["density"].values
    number = results.sizes["replica"]
    caption = f"{outcome.networks}\nmean of {number} replicas, bars: min to max"
    dense = shown.of(results[f"dense_test_{outcome.metric.name}"].values)
    style: dict[str, Any] = dict(
        ylabel=f"test {shown.name} at the end of training ({shown.unit})",
        baseline=float(np.nanmean(dense)),
    )

    def line(name: str, check: str) -> np.ndarray:
        at = values.sel({"method": name, "check": check})
        return at.transpose("replica", "density").values

    names = results["method"].values.tolist()
    lines = {name: line(name, "original") for name in names}
    title = f"pruning at initialisation: {caption}"
    yield "methods", plots.against_density(density, lines, title=title, **style)
    for name in names:
        if name == RANDOM:
            continue
        lines = {check: line(name, check) for check in CHECKS}
        if name != AFTER:
            lines[AFTER] = line(AFTER, "original")
        lines = {n: y for n, y in lines.items() if np.isfinite(y).any()}
        label = name.replace(" ", "_")
        title = f"{name}: {caption}"
        yield label, plots.against_density(density, lines, title=title, **style)
        own = results["layer_density"].sel({"method": name, "check": "original"})
        own = own.mean("replica")
        layers = {
            str(layer): own.sel(layer=layer).values for layer in results["layer"].values
        }
        title = f"{name}: {outcome.networks}\nmean of {number} replicas"
        yield f"layers_{label}", plots.layer_densities(density, layers, title)


PRESETS = presets.make(Config, presets.AT_INIT)

EXPERIMENT = Experiment(
    name="at_init",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-4 --subset 200 --steps 2it --validate-every 2 --methods snip "
    "--densities 0.5 --replicas 3",
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
