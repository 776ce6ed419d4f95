"""Supermasks: masks of an untrained network, found or trained, against trained weights.

    python -m experiments.supermask                            # MLP on MNIST-1D
    python -m experiments.supermask lenet-fashion

Four rows of Zhou et al.'s table, each for the initial weights and for constants of their
signs: the mask of the weights that end large without having changed sign, at the density
that is best on validation data; a mask that is trained while the weights stay; the same
with weights rescaled by the mask's density; and the network whose weights are trained.

Zhou, Lan, Liu and Yosinski, Deconstructing Lottery Tickets: Zeros, Signs, and the
Supermask, 2019, sections 4 and 5.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments import cost, display, frozen, metrics, presets
from experiments.display import Judged, Rows, mean_range
from experiments.experiment import Experiment, Outcome, dataset
from experiments.frozen import FrozenRecipe
from experiments.identity import FREE
from experiments.kinds import images
from experiments.recipes import Setup, make_task
from lottery_jax import (
    errors,
    imp,
    keys,
    masks,
    plots,
    prune,
    supermask,
    training,
    trees,
    verdicts,
)
from lottery_jax.execution import Where
from lottery_jax.scores import large_final_same_sign, magnitude, random
from lottery_jax.training import Trained
from lottery_jax.types import Key, Mask, Network, Params, Prunable, Scores, Task

if TYPE_CHECKING:
    import xarray as xr

WEIGHTS: Mapping[str, Any] = {"initial": None, "constant": "signed_constant"}
"""What is masked, and its law: the initial weights, or constants of their signs."""

LEARNED: Mapping[str, bool] = {"learned": False, "rescaled": True}
"""Masks that are trained, and whether the weights are rescaled by their density."""

MASKS = ("heuristic", *LEARNED)


@dataclasses.dataclass(frozen=True)
class Config(FrozenRecipe):
    """Everything that a study is determined by, and where and how it runs."""

    levels: int = 20
    """Densities of heuristic masks below 1; at each level further weights go."""
    fraction: float = 0.2
    """Share of the surviving weights of a layer that go at each level."""
    rates: tuple[tuple[str, float], ...] = (("head", 0.1), ("", 0.2))
    """Pattern and fraction of each kind of layer; the first match counts."""
    samples: int = 10
    """Masks that are drawn of each that is trained; the error is the mean of theirs."""
    tolerance: float = dataclasses.field(default=0.03, metadata=FREE)
    """How far above that of trained weights the error of a mask may be."""


# --- running --------------------------------------------------------------------------


def prepare(cfg: Config) -> dict[str, Setup]:
    """Tasks and optimizers of weights and of both kinds of masks; errors name the field."""
    errors.at_least("levels", cfg.levels, 1)
    errors.at_least("samples", cfg.samples, 1)
    weights, scores = frozen.set_up_both(cfg)
    kept(cfg, weights.task)  # or it raises
    learned = {
        name: scores._replace(task=masked(cfg, rescale=rescale))
        for name, rescale in LEARNED.items()
    }
    return {"trained": weights, **learned}


def masked(
    cfg: Config, *, rescale: bool, law: Any = None, by_threshold: bool = False
) -> Task:
    """The task of training a mask.

    Args:
      cfg: the configuration.
      rescale: whether weights are rescaled by the density of the mask.
      law: of the weights; None for the initial ones.
      by_threshold: whether what is evaluated is the mask of the weights that are more
        often kept than not, instead of masks that are drawn.
    """
    samples = 0 if by_threshold else cfg.samples
    method = supermask.bernoulli(rescale=rescale, samples=samples)
    return supermask.task(make_task(frozen.of_scores(cfg)), method, law=law)


def kept(cfg: Config, task: Task) -> np.ndarray:
    """How many weights heuristic masks keep in each layer, `[levels + 1, layers]`.

    Raises:
      ValueError: rates that fit no layer, or too many levels.
    """
    densities = imp.Geometric(cfg.fraction, cfg.rates)
    chain = imp.Chain(densities=densities, scope="layerwise", one_shot=True)
    flags, params, levels = masks.of_task(task), task.shapes[0], range(cfg.levels + 1)
    try:
        found = [imp.keep_counts(chain, params, level, flags)[1:] for level in levels]
    except ValueError as error:  # in the words of the configuration
        raise ValueError(str(error).replace("by_layer", "rates")) from None
    return np.stack(found)


def one(setups: dict[str, Setup], ids: list[int], where: Where) -> "xr.Dataset":
    """Trains weights and masks of some replicas, and measures both."""
    trained, number = setups["trained"], len(ids)
    cfg, task = trained.cfg, trained.task
    starts = [
        frozen.fresh(setups["learned"], ids, where, masked(cfg, rescale=False, law=law))
        for law in WEIGHTS.values()
    ]
    # The two kinds of weights are a matter of model states: all train side by side.
    both = training.concatenate(starts)
    with display.watched(where) as place:
        own = frozen.fresh(trained, ids, place, task)
        dense = frozen.trained(trained, own, "trained weights", place)
        state = both.state.model_state
        untrained = Network(state.weights, state.inner)
        found = heuristic(cfg, task, untrained, dense.networks.params, ids, place)
        learned = {
            name: frozen.trained(setups[name], both, f"masks, {name}", place)
            for name in LEARNED
        }
        of_masks = [
            measured(setups[n], cfg, n, done, place) for n, done in learned.items()
        ]
    shape = (len(LEARNED), len(WEIGHTS), number)
    axes = ("mask", "weights", "replica")
    out: dict[str, Any] = {
        name: (axes, np.stack([one[name] for one in of_masks]).reshape(shape))
        for name in of_masks[0]
    }
    curves = [done.curves for done in learned.values()]
    validation = np.stack([c.values["validation_error"] for c in curves])
    out["validation_error"] = ((*axes, "step"), validation.reshape(*shape, -1))
    for split, name in (
        ("test", "trained_error"),
        ("validation", "trained_validation"),
    ):
        out[name] = (("replica",), frozen.error(task, dense, split, place))
    coordinates = {
        "replica": ids,
        "mask": list(LEARNED),
        "weights": list(WEIGHTS),
        "criterion": list(CRITERIA),
        "level": np.arange(cfg.levels + 1),
        "split": list(SPLITS),
        "step": curves[0].steps,
    }
    chance = 1 - 1 / images.load_data(cfg).num_classes
    return dataset(cfg, out | found, coordinates, chance=chance)


def work(setups: dict[str, Setup]) -> cost.Work:
    """What weights and masks cost, and masks that follow from trained weights."""
    trained, cfg = setups["trained"], setups["trained"].cfg
    of, number = cost.of_setup(trained), len(WEIGHTS) * cfg.replicas
    tried = len(CRITERIA) * number * (cfg.levels + 1)
    masks_ = cost.Measured("heuristic masks", of, tried, of.validation + of.test)
    ends = cost.Measured("trained weights", of, cfg.replicas, of.validation)
    # The error of a mask is the mean of those of its samples, and that by threshold.
    tests = cfg.samples + 1
    return cost.together(
        frozen.work(trained, cfg.replicas, "trained weights"),
        cost.Work((), (ends, masks_)),
        *(frozen.work(setups[n], number, f"masks, {n}", tests) for n in LEARNED),
    )


def measured(
    setup: Setup, cfg: Config, name: str, done: Trained, where: Where
) -> dict[str, np.ndarray]:
    """What is said of trained masks, `[R]` each: error and density, by name.

    Both are those of masks that are drawn, and of the mask by threshold.
    """
    method = supermask.bernoulli(prunable=masks.of_task(setup.task))
    each = [trees.rows(done.networks.params, i) for i in range(len(done.places))]
    threshold = masked(cfg, rescale=LEARNED[name], by_threshold=True)
    drawn = [_mean(method.probabilities(scores), method.prunable) for scores in each]
    kept = [masks.density(method.mask(scores), method.prunable) for scores in each]
    return {
        "error": frozen.error(setup.task, done, "test", where),
        "threshold_error": frozen.error(threshold, done, "test", where),
        "density": np.array(drawn, float),
        "threshold_density": np.array(kept, float),
    }


def _mean(tree: Any, prunable: Prunable) -> float:
    """The mean over all weights that are prunable."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(prunable))
    return float(np.concatenate([np.ravel(x) for x, take in pairs if take]).mean())


# --- heuristic masks ------------------------------------------------------------------


Criterion = Callable[[Key, Params, Params], Scores]
"""`(key, initial, final) -> scores`, of one network."""

CRITERIA: Mapping[str, Criterion] = {
    "large final, same sign": lambda key, initial, final: large_final_same_sign(
        final, initial
    ),
    "large final": lambda key, initial, final: magnitude(final),
    "random": lambda key, initial, final: random(key, initial),
}
"""What heuristic masks keep: that of the table, the same without signs, and a control."""

HEURISTIC, _, RANDOM = CRITERIA
SPLITS = ("validation", "test")


def heuristic(
    cfg: Config,
    task: Task,
    untrained: Network,
    final: Params,
    ids: list[int],
    where: Where,
) -> dict[str, Any]:
    """The error of untrained weights under masks that follow from trained ones.

    Args:
      cfg: the configuration.
      task: the network's.
      untrained: networks of each kind of weights and replica, `[K R, ...]`.
      final: the trained ones, `[R, ...]`.
      ids: of the replicas.
      where: the devices.
    """
    counts, number = kept(cfg, task), len(ids)
    kinds = {
        name: trees.rows(untrained, slice(k * number, (k + 1) * number))
        for k, name in enumerate(WEIGHTS)
    }
    seeds = keys.of_replicas(cfg.seed, ids).mask_shuffle
    # What is masked does not change what is kept: signs are those of the initial weights.
    initial = kinds["initial"].params
    errors_ = []
    for criterion in CRITERIA.values():
        scores = [
            criterion(seeds[i], trees.rows(initial, i), trees.rows(final, i))
            for i in range(number)
        ]
        found = [_masks(one, counts, task) for one in scores]
        for kind in kinds.values():
            stack = trees.stack(
                [
                    _under(mask, trees.rows(kind, i))
                    for i, by_level in enumerate(found)
                    for mask in by_level
                ]
            )
            errors_ += [
                training.evaluate(task, stack, split, where=where.aside())["error"]
                for split in SPLITS
            ]
    shape = (len(CRITERIA), len(WEIGHTS), len(SPLITS), number, len(counts))
    axes = ("criterion", "weights", "split", "replica", "level")
    return {
        "heuristic_error": (axes, np.stack(errors_).astype(float).reshape(shape)),
        "heuristic_density": (("level",), counts.sum(axis=1) / counts[0].sum()),
    }


def _masks(scores: Scores, counts: np.ndarray, task: Task) -> list[Mask]:
    """The mask of each level, one network's; a layer keeps as many as `counts` says."""
    full, flags = masks.ones_like(scores), masks.of_task(task)
    return [
        prune.layerwise_topk(scores, full, keep=keep, prunable=flags) for keep in counts
    ]


def _under(mask: Mask, network: Network) -> Network:
    """The same network under a mask, on the host."""
    return trees.host(network._replace(params=masks.apply(mask, network.params)))


# --- what came out --------------------------------------------------------------------


def best(results: "xr.Dataset", criterion: str = HEURISTIC) -> "xr.Dataset":
    """Heuristic masks at the density that validation chooses, for each replica.

    Args:
      results: of a run.
      criterion: what is kept; the density is that which is best for `HEURISTIC`.

    Returns:
      `error` on test data, and `density`, with axes weights and replica.
    """
    of_all = results["heuristic_error"].sel(level=slice(1, None))  # 0 is no mask
    level = of_all.sel(criterion=HEURISTIC, split="validation").argmin("level")
    found = of_all.sel(criterion=criterion, split="test").isel(level=level)
    density = results["heuristic_density"].sel(level=slice(1, None)).isel(level=level)
    return found.to_dataset(name="error").assign(density=density)


def columns(results: "xr.Dataset") -> dict[str, np.ndarray]:
    """The test error of each column of the table, `[R]` each, in the paper's order."""
    found = {}
    for mask in MASKS:
        source = best(results) if mask == "heuristic" else results.sel(mask=mask)
        for weights in WEIGHTS:
            error = source["error"].sel(weights=weights)
            found[f"{NAMES[mask]}, {weights} weights"] = error.values
    return found | {"trained weights": results["trained_error"].values}


NAMES: Mapping[str, str] = {
    "heuristic": "heuristic mask",
    "learned": "learned mask",
    "rescaled": "learned mask, rescaled",
}

ABOVE_CHANCE = 0.2
"""By how much a heuristic mask must beat chance to be far above it: 20 points."""


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Heuristic masks against chance, trained masks against trained weights."""
    judged = []
    chance, chosen = results.attrs["chance"], best(results)["error"]
    control = best(results, RANDOM)["error"]
    replicas = verdicts.Replicas([f"replica {i}" for i in results["replica"].values])
    for weights in WEIGHTS:
        at = {"mask": "heuristic", "weights": weights}
        error = chosen.sel(weights=weights).values
        claim = "far above chance"
        verdict = verdicts.paired(
            error - chance,
            side="<",
            tolerance=-ABOVE_CHANCE,
            claim=f"heuristic mask, {weights} weights: {claim}",
            replicas=replicas,
        )
        judged.append(Judged(at, claim, verdict))
        claim = "better than a random mask"
        verdict = verdicts.better(
            error,
            control.sel(weights=weights).values,
            claim=f"heuristic mask, {weights} weights: {claim} of its density",
            replicas=replicas,
        )
        judged.append(Judged(at, claim, verdict))
    claim = "constants better than initial weights"
    verdict = verdicts.better(
        chosen.sel(weights="constant").values,
        chosen.sel(weights="initial").values,
        claim=f"heuristic mask: {claim}",
        replicas=replicas,
    )
    judged.append(Judged({"mask": "heuristic"}, claim, verdict))
    for mask in LEARNED:
        for weights in WEIGHTS:
            claim = "close to trained weights"
            verdict = verdicts.matching(
                results["error"].sel(mask=mask, weights=weights).values,
                results["trained_error"].values,
                cfg.tolerance,
                replicas=replicas,
            )._replace(claim=f"{NAMES[mask]}, {weights} weights: {claim}")
            judged.append(Judged({"mask": mask, "weights": weights}, claim, verdict))
    winner = {"mask": "rescaled", "weights": "constant"}
    parts = [
        verdicts.better(
            results["error"].sel(winner).values,
            results["error"].sel(mask=mask, weights=weights).values,
            claim=f"better than {NAMES[mask]}, {weights} weights",
            replicas=replicas,
        )
        for mask in LEARNED
        for weights in WEIGHTS
        if {"mask": mask, "weights": weights} != winner
    ]
    claim = "best of the four"
    name = f"{NAMES['rescaled']}, constant weights: {claim}"
    judged.append(Judged(winner, claim, verdicts.combine(*parts, claim=name)))
    return judged


def tables(outcome: Outcome) -> list[Rows]:
    """Accuracy of each column of the table, and the density of its masks."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    chosen, rows = best(results), []
    for mask in MASKS:
        for weights in WEIGHTS:
            learned = mask != "heuristic"
            source = results.sel(mask=mask) if learned else chosen
            at = source.sel(weights=weights)
            threshold = "threshold_error" if learned else "error"
            rows.append(
                [
                    NAMES[mask],
                    weights,
                    mean_range(shown.of(at["error"].values)),
                    mean_range(shown.of(at[threshold].values)) if learned else "",
                    mean_range(100 * at["density"].values, 1),
                    mean_range(100 * at["threshold_density"].values, 1)
                    if learned
                    else "",
                ]
            )
    trained = mean_range(shown.of(results["trained_error"].values))
    rows.append(["none", "trained", trained, "", "100", ""])
    title = f"{outcome.preset}: test {shown.label}, mean [min, max] of "
    title += f"{results.sizes['replica']} replicas"
    header = ["mask", "weights", f"{shown.name} {shown.unit}", "by threshold"]
    return [Rows(title, [*header, "density %", "by threshold"], rows)]


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """The table; accuracy of heuristic masks by density; masks while they are trained."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    number = results.sizes["replica"]
    caption = f"{outcome.networks}\nmean of {number} replicas, bars: min to max"
    chance = float(shown.of(results.attrs["chance"]))
    yield (
        "table",
        plots.by_name(
            {name: shown.of(error) for name, error in columns(results).items()},
            label=f"test {shown.label}",
            title=caption,
            reference=chance,
            reference_label="chance",
        ),
    )
    trained = float(shown.of(results["trained_error"].mean()))
    of_all = shown.of(results["heuristic_error"].sel(split="test"))
    lines = {
        f"{weights} weights: {criterion}": of_all.sel(
            criterion=criterion, weights=weights
        ).values
        for criterion in CRITERIA
        for weights in WEIGHTS
    }
    yield (
        "heuristic",
        plots.against_density(
            results["heuristic_density"].values,
            lines,
            ylabel=f"test {shown.label}, untrained",
            title=caption,
            baseline=trained,
            baseline_label="trained weights",
        ),
    )
    validation = shown.of(results["validation_error"])
    yield (
        "training",
        plots.against_step(
            results["step"].values,
            {
                f"{NAMES[mask]}, {weights}": validation.sel(
                    mask=mask, weights=weights
                ).values
                for mask in LEARNED
                for weights in WEIGHTS
            },
            ylabel=f"validation {shown.label}",
            xlabel="step of training the mask",
            title=f"{outcome.networks}\nmean and deviation of {number} replicas",
            threshold=float(shown.of(results["trained_validation"].mean())),
            threshold_label="trained weights, at their end",
            logarithmic=False,
        ),
    )


PRESETS = presets.make(Config, presets.SUPERMASK)

EXPERIMENT = Experiment(
    name="supermask",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-4 --subset 200 --steps 2it --score-steps 2it --levels 2 --samples 2 "
    "--replicas 2",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    error_alone=True,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
