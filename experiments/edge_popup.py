"""Edge-popup: how good is the best part of a random network, by density and by width?

    python -m experiments.edge_popup                           # MLPs on MNIST-1D
    python -m experiments.edge_popup lenet-fashion

The weights stay as they were drawn; trained are scores, by which a share of each layer is
kept. The first figure shows the accuracy against that share for several laws of the
weights, the second one against the width of the network, both beside the network whose
weights are trained.

Ramanujan, Wortsman, Kembhavi, Farhadi and Rastegari, What's Hidden in a Randomly Weighted
Neural Network?, 2020, sections 3 and 4.
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments import cost, display, frozen, metrics, presets
from experiments.display import Judged, Rows, answers, mean_range
from experiments.experiment import Experiment, Outcome, dataset
from experiments.frozen import FrozenRecipe
from experiments.identity import FREE
from experiments.recipes import Setup, make_task
from lottery_jax import errors, masks, plots, supermask, training, verdicts
from lottery_jax.execution import Where
from lottery_jax.types import Task

if TYPE_CHECKING:
    import xarray as xr

Law = Literal[
    "kaiming_normal",
    "scaled_kaiming_normal",
    "signed_kaiming_constant",
    "scaled_signed_kaiming_constant",
    "xavier_normal",
]

NORMAL, CONSTANT = "kaiming_normal", "signed_kaiming_constant"
EACH = "constants better than normal weights"
"""A claim that is judged at each density."""


@dataclasses.dataclass(frozen=True)
class Config(FrozenRecipe):
    """Everything that a study is determined by, and where and how it runs."""

    densities: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Shares of each layer that are kept, rising."""
    laws: tuple[Law, ...] = (
        "kaiming_normal",
        "signed_kaiming_constant",
        "scaled_signed_kaiming_constant",
    )
    """Laws of the frozen weights; scaled ones are divided by the root of the density."""
    widths: tuple[str, ...] = ()
    """Networks that are compared with `model`, from narrow to wide, itself among them."""
    width_density: float = 0.5
    """The density at which they are; one of `densities`."""
    tolerance: float = dataclasses.field(default=0.002, metadata=FREE)
    """How far above that of trained weights the error may be and still match it."""


def models(cfg: Config) -> tuple[str, ...]:
    """The networks of a study, from narrow to wide."""
    return cfg.widths or (cfg.model,)


# --- running --------------------------------------------------------------------------


def prepare(cfg: Config) -> dict[str, Setup]:
    """Tasks and optimizers of weights and scores of each network; errors name the field."""
    densities = errors.several("densities", cfg.densities, "shares in (0, 1)")
    for density in densities:
        errors.share("densities", density)
    if sorted(set(densities)) != list(densities):
        raise ValueError(f"densities={cfg.densities}; they must rise")
    if not cfg.laws or len(set(cfg.laws)) < len(cfg.laws):
        raise ValueError(f"laws={cfg.laws}; there must be one at least, each once")
    if cfg.width_density not in densities:
        raise ValueError(
            f"width_density={cfg.width_density}; it must be one of densities={densities}"
        )
    if cfg.model not in models(cfg) or len(set(models(cfg))) < len(models(cfg)):
        raise ValueError(
            f"widths={cfg.widths}; they must be different networks, model={cfg.model!r} "
            "among them"
        )
    setups = {}
    # The model first: `one` reads the configuration off the first of them.
    for name in sorted(models(cfg), key=lambda name: name != cfg.model):
        own = dataclasses.replace(cfg, model=name)
        weights, scores = frozen.set_up_both(own)
        task = masked(own, cfg.laws[0], cfg.width_density)
        setups[f"{name}, weights"] = weights
        setups[f"{name}, scores"] = scores._replace(task=task)
    return setups


def masked(cfg: Config, law: str, density: float) -> Task:
    """The task of training the scores of a network.

    Args:
      cfg: the configuration.
      law: of the weights, one of `Law`.
      density: share of each layer that is kept.
    """
    scaled, plain = law.startswith("scaled_"), law.removeprefix("scaled_")
    method = supermask.edge_popup(density)
    task = make_task(frozen.of_scores(cfg))
    return supermask.task(task, method, law=plain, scaled=scaled)  # type: ignore[arg-type]


def one(setups: dict[str, Setup], ids: list[int], where: Where) -> "xr.Dataset":
    """Trains weights and scores of some replicas of each network, and measures both."""
    cfg = next(iter(setups.values())).cfg
    out: dict[str, Any] = {}
    trained, widths, sizes = [], [], []
    with display.watched(where) as place:
        for name in models(cfg):
            weights, scores = (setups[f"{name}, {kind}"] for kind in _KINDS)
            at = place.below(name)
            runs = frozen.fresh(weights, ids, at, weights.task)
            done = frozen.trained(weights, runs, f"{name}, weights", at)
            trained.append(frozen.error(weights.task, done, "test", at))
            sizes.append(
                masks.total(weights.task.shapes[0], masks.of_task(weights.task))
            )
            densities = cfg.densities if name == cfg.model else (cfg.width_density,)
            found = popped(scores, weights.cfg, densities, ids, at)
            here = list(densities).index(cfg.width_density)
            widths.append(found["error"][:, here])
            if name == cfg.model:
                axes = ("law", "density", "replica")
                out |= {key: (axes, value) for key, value in found.items()}
    out["trained_error"] = (("model", "replica"), np.stack(trained))
    out["width_error"] = (("model", "law", "replica"), np.stack(widths))
    out["size"] = (("model",), np.array(sizes))
    coordinates = {
        "replica": ids,
        "law": list(cfg.laws),
        "density": list(cfg.densities),
        "model": list(models(cfg)),
    }
    return dataset(cfg, out, coordinates)


def work(setups: dict[str, Setup]) -> cost.Work:
    """What weights and scores of all networks cost."""
    cfg = next(iter(setups.values())).cfg
    parts = []
    for name in models(cfg):
        weights, scores = (setups[f"{name}, {kind}"] for kind in _KINDS)
        densities = len(cfg.densities) if name == cfg.model else 1
        number = len(cfg.laws) * densities * cfg.replicas
        parts.append(frozen.work(weights, cfg.replicas, f"{name}, weights"))
        own = frozen.work(scores, number, f"{name}, scores")
        of = cost.of_setup(scores)
        ends = cost.Measured(f"{name}, ends", of, number, of.validation)
        parts += [own, cost.Work((), (ends,))]
    return cost.together(*parts)


_KINDS = ("weights", "scores")


def popped(
    setup: Setup,
    cfg: Config,
    densities: tuple[float, ...],
    ids: list[int],
    where: Where,
) -> dict[str, np.ndarray]:
    """Networks of trained scores, all laws and densities in one batch.

    Args:
      setup: of the scores.
      cfg: the configuration, with the network's name.
      densities: shares that are kept.
      ids: of the replicas.
      where: the devices and the folder.

    Returns:
      `error` on test data and `validation_error`, `[laws, densities, R]`.
    """
    # Weights, and how many are kept, are model states: the task is the same for all.
    parts = [
        frozen.fresh(setup, ids, where, masked(cfg, law, density))
        for law in cfg.laws
        for density in densities
    ]
    runs = training.concatenate(parts)
    done = frozen.trained(setup, runs, f"{cfg.model}, scores", where)
    shape = (len(cfg.laws), len(densities), len(ids))
    return {
        name: frozen.error(setup.task, done, split, where).reshape(shape)
        for name, split in (("error", "test"), ("validation_error", "validation"))
    }


# --- what came out --------------------------------------------------------------------


def best_density(results: "xr.Dataset", law: str) -> float:
    """The density with the lowest validation error, in the mean over replicas."""
    error = results["validation_error"].sel(law=law).mean("replica")
    return float(error.idxmin("density"))


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """An inverted U? Constants better than normal weights? Does width close the gap?"""
    judged = []
    laws = [str(law) for law in results["law"].values]
    densities = results["density"].values.tolist()
    replicas = verdicts.Replicas([f"replica {i}" for i in results["replica"].values])

    def error(law: str, density: float) -> np.ndarray:
        return results["error"].sel(law=law, density=density).values

    for law in laws if len(densities) > 2 else ():
        top, claim = best_density(results, law), "best between the ends"
        parts = [
            verdicts.better(
                error(law, top),
                error(law, end),
                claim=f"density {top:g} better than {end:g}",
                replicas=replicas,
            )
            for end in (densities[0], densities[-1])
        ]
        whole = verdicts.combine(*parts, claim=f"{_shown(law)}: {claim}, at {top:g}")
        judged.append(Judged({"law": law, "density": top}, claim, whole))
    for kind in ("", "scaled_"):
        constant, normal = f"{kind}{CONSTANT}", f"{kind}{NORMAL}"
        if not {normal, constant} <= set(laws):
            continue
        claim = f"{_shown(kind)}{EACH}"
        for density in densities:
            verdict = verdicts.better(
                error(constant, density),
                error(normal, density),
                claim=f"density {density:g}: {claim}",
                replicas=replicas,
            )
            judged.append(Judged({"density": density}, claim, verdict))
    gap = results["width_error"] - results["trained_error"]
    for law in laws:
        for model in results["model"].values.tolist():
            claim = "matches trained weights"
            verdict = verdicts.matching(
                results["width_error"].sel(law=law, model=model).values,
                results["trained_error"].sel(model=model).values,
                cfg.tolerance,
                replicas=replicas,
            )._replace(claim=f"{model}, {_shown(law)}: {claim}")
            judged.append(Judged({"model": model, "law": law}, claim, verdict))
        if results.sizes["model"] > 1:
            claim = "width closes the gap"
            first, last = (gap.sel(law=law).isel(model=i).values for i in (0, -1))
            verdict = verdicts.paired(
                last - first,
                side="<",
                tolerance=0.0,
                claim=f"{_shown(law)}: {claim} to trained weights",
                replicas=replicas,
            )
            judged.append(Judged({"law": law}, claim, verdict))
    return judged


def _shown(law: str) -> str:
    return law.replace("_", " ")


def tables(outcome: Outcome) -> list[Rows]:
    """Accuracy by density and law; and by network and law, at one density."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    laws = [str(law) for law in results["law"].values]
    number = results.sizes["replica"]
    of_all = f"test {shown.label}, mean [min, max] of {number} replicas"
    header = [_shown(law) for law in laws]

    def cells(values: "xr.DataArray") -> list[str]:
        return [mean_range(shown.of(values.sel(law=law).values)) for law in laws]

    error = results["error"]
    rows = [
        [f"{100 * d:g}", *cells(error.sel(density=d))]
        for d in results["density"].values
    ]
    found = [
        Rows(
            f"{outcome.preset}: {outcome.networks}, {of_all}",
            ["density %", *header],
            rows,
        )
    ]
    rows = []
    for model in results["model"].values.tolist():
        trained = shown.of(results["trained_error"].sel(model=model).values)
        own = cells(results["width_error"].sel(model=model))
        size = f"{int(results['size'].sel(model=model)):,}"
        rows.append([model, size, *own, mean_range(trained)])
    header = ["network", "weights", *header, "trained weights"]
    title = f"at {100 * outcome.cfg.width_density:g}% of each layer, {of_all}"
    return [*found, Rows(title, header, rows)]


def conclusions(outcome: Outcome) -> list[str]:
    """The verdicts, a line each; those of each density in one."""
    each = dict.fromkeys(o.claim for o in outcome.judged if o.claim.endswith(EACH))
    lines = [o.verdict.describe() for o in outcome.judged if o.claim not in each]
    for claim in each:
        found = answers(
            [one for one in outcome.judged if one.claim == claim],
            "densities {}",
            lambda one: f"{one.where['density']:g}",
        )
        lines.append(f"{claim}: {found}")
    return lines


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """Accuracy against density, and against the width of the network."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    laws = [str(law) for law in results["law"].values]
    number = results.sizes["replica"]
    caption = f"mean of {number} replicas, bars: min to max"
    error, trained = shown.of(results["error"]), shown.of(results["trained_error"])
    of_model = trained.sel(model=outcome.cfg.model)
    yield (
        "density",
        plots.against(
            {
                law: (
                    100 * results["density"].values,
                    error.sel(law=law).transpose("replica", "density").values,
                )
                for law in laws
            },
            xlabel="weights of each layer that are kept (%)",
            ylabel=f"test {shown.label}",
            title=f"{outcome.networks}, weights frozen\n{caption}",
            baseline=float(of_model.mean()),
            baseline_label="trained weights",
        ),
    )
    if results.sizes["model"] < 2:
        return
    kept = 100 * outcome.cfg.width_density
    width = shown.of(results["width_error"])
    lines = {law: width.sel(law=law) for law in laws} | {"trained weights": trained}
    sizes = results["size"].values
    yield (
        "width",
        plots.against(
            {
                label: (sizes, line.transpose("replica", "model").values)
                for label, line in lines.items()
            },
            xlabel="weights of the whole network",
            ylabel=f"test {shown.label}",
            title=f"{outcome.cfg.data}, {kept:g}% of each layer kept\n{caption}",
            logarithmic=(True, False),
            ticks={
                size: f"{size:,}\n{model}"
                for size, model in zip(sizes.tolist(), results["model"].values)
            },
        ),
    )


PRESETS = presets.make(Config, presets.EDGE_POPUP)

EXPERIMENT = Experiment(
    name="edge_popup",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-4 --widths mlp-3 mlp-4 --subset 200 --steps 2it --score-steps 2it "
    "--densities 0.3 0.5 --laws kaiming_normal signed_kaiming_constant --replicas 2",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
    error_alone=True,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
