"""Permutation alignment: how much of a barrier is the order of the units?

    python -m experiments.alignment                            # MLPs of three widths
    python -m experiments.alignment resnet8-cifar10            # with BatchNorm

Trains networks from different initialisations. On the lines from each to a copy of itself
with its units renumbered at random, and to the next network, the error is measured as the
units lie, and again after Git Re-Basin's weight matching. A renumbered copy computes the
same function; after matching its line must be flat.

Ainsworth, Hayase and Srinivasa, Git Re-Basin: Merging Models modulo Permutation
Symmetries, 2023.
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from experiments import cost, curves, display, groups, metrics, presets
from experiments.curves import trained
from experiments.display import Judged, Rows, mean_range
from experiments.experiment import Experiment, Outcome, dataset
from experiments.kinds import images
from experiments.recipes import PathRecipe, Setup, parse_step, set_up_paths
from lottery_jax import models, plots, trees, verdicts
from lottery_jax.connectivity import alignment, linear
from lottery_jax.execution import Where
from lottery_jax.keys import of_seed
from lottery_jax.types import Network

if TYPE_CHECKING:
    import xarray as xr

COMPARISONS = (
    "renumbered copy",
    "renumbered copy, aligned",
    "another init",
    "another init, aligned",
)


@dataclasses.dataclass(frozen=True)
class Config(PathRecipe):
    """Everything that a study is determined by, and where and how it runs."""

    models: tuple[str, ...] = ("mlp-64-64-64", "mlp-256-256-256", "mlp-512-512-512")
    """Networks that are compared, instead of `model`."""
    batch_norm: Literal["recompute", "interpolate"] | None = None
    """How BatchNorm statistics are treated on a path; needed where there are any."""
    replicas: int = 3
    """Networks; each is compared with the next, so they belong together."""


# --- running --------------------------------------------------------------------------


def prepare(cfg: Config) -> dict[str, Setup]:
    """Task and optimizer for each model.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    if not cfg.models:
        raise ValueError("models=(); there must be one at least")
    setups = {}
    for name in cfg.models:
        own = dataclasses.replace(cfg, model=name)
        setups[name] = set_up_paths(own, cfg.batch_norm)
        parse_step(own, "steps", setups[name].task.steps_per_epoch)  # or it raises
    return setups


def one(setups: dict[str, Setup], ids: list[int], where: Where) -> "xr.Dataset":
    """Trains and compares the networks of each model; finished ones are kept."""
    import xarray as xr

    assert where.store is not None
    parts = [
        groups.once(
            where.store / f"{name}.nc",
            lambda: of_model(setup, ids, where.below(name)),  # noqa: B023
        )
        for name, setup in setups.items()
    ]
    results = xr.concat(parts, "model", combine_attrs="override")
    return results.assign_coords(model=list(setups))


def work(setups: dict[str, Setup]) -> cost.Work:
    """What the networks of all models, and the paths between them, cost."""
    parts = []
    for name, setup in setups.items():
        cfg, of = setup.cfg, cost.of_setup(setup)
        paths = cfg.replicas * len(COMPARISONS)
        own = curves.work_of_networks(setup), cost.lines(of, cfg, paths, cfg.batch_norm)
        parts.append(cost.named(name, cost.together(*own)))
    return cost.together(*parts)


def of_model(setup: Setup, ids: list[int], where: Where) -> "xr.Dataset":
    """Trains and compares the networks of one model."""
    cfg, task, *_ = setup
    with display.watched(where, f"{cfg.model}: ") as place:
        networks = trained(setup, ids, place)
        members, pairs = list(networks), []
        for i in range(len(networks)):
            for end in ends(cfg, networks, i):
                pairs.append((i, len(members)))
                members.append(end)
        path = linear.paths(
            task,
            trees.stack(members),
            pairs,
            cfg.measure(cfg.batch_norm),
            where=place.below("paths"),
        )
    shape = (len(ids), len(COMPARISONS))
    axes = ("replica", "comparison", "split", "alpha")
    difference = np.array(
        [_largest_difference(members[i], members[j]) for i, j in pairs]
    )
    return dataset(
        cfg,
        {
            "error": (axes, path.error.reshape(*shape, *path.error.shape[1:])),
            "loss": (axes, path.loss.reshape(*shape, *path.loss.shape[1:])),
            "largest_difference": (axes[:2], difference.reshape(shape)),
            "alpha": (("alpha",), path.alphas),
        },
        {
            "replica": ids,
            "comparison": list(COMPARISONS),
            "split": list(cfg.path_sizes),
        },
    )


def ends(cfg: Config, networks: list[Network], i: int) -> Iterator[Network]:
    """What a network is compared with, in the order of `COMPARISONS`."""
    network, model = networks[i], images.make_model(cfg)
    axes = models.units(model, network.params)
    state_axes = models.state_units(model, network.params, network.model_state)
    order = alignment.random(axes, network.params, of_seed(cfg.seed + 1 + i))
    copy = Network(
        alignment.permute(axes, network.params, order),
        alignment.permute(state_axes, network.model_state, order),
    )
    for end in (copy, networks[(i + 1) % len(networks)]):
        yield end
        yield alignment.align(axes, network, end, state_axes=state_axes).network


def _largest_difference(a: Network, b: Network) -> float:
    leaves = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params))
    return max(float(abs(x - y).max()) for x, y in leaves)


# --- what came out --------------------------------------------------------------------


def instabilities(results: "xr.Dataset") -> "xr.DataArray":
    """LII of every line, a fraction."""
    values = results["error"].transpose(..., "alpha")
    return values.isel(alpha=0, drop=True).copy(data=linear.instability(values.values))


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Does aligning lower the instability between different networks?"""
    lii = instabilities(results)
    judged = []
    for model in results["model"].values.tolist():
        for split in results["split"].values.tolist():
            at = lii.sel(model=model, split=split)
            aligned = at.sel(comparison="another init, aligned")
            claim = "LII lower after aligning"
            verdict = verdicts.paired(
                (aligned - at.sel(comparison="another init")).values,
                side="<",
                tolerance=0.0,
                claim=claim,
            )
            judged.append(Judged({"model": model, "split": split}, claim, verdict))
    return judged


def conclusions(outcome: Outcome) -> list[str]:
    """The verdicts, a line each."""
    return [
        f"{one.where['model']}, {one.where['split']}: {one.verdict.describe()}"
        for one in outcome.judged
    ]


def tables(outcome: Outcome) -> list[Rows]:
    """LII of each comparison, mean and range over replicas."""
    results, points = outcome.results, metrics.difference(outcome.metric)
    lii = points.of(instabilities(results))
    splits = results["split"].values.tolist()
    rows = []
    for model in results["model"].values.tolist():
        for comparison in results["comparison"].values.tolist():
            at = dict(model=model, comparison=comparison)
            cells = [mean_range(lii.sel(**at, split=s).values) for s in splits]
            apart = float(results["largest_difference"].sel(at).max())
            rows.append([model, comparison, *cells, f"{apart:.2g}"])
    header = ["model", "line to", *(f"LII {s}" for s in splits)]
    title = f"{outcome.preset}: {points.unit} of {points.name}, mean [min, max] of "
    title += f"{results.sizes['replica']} lines"
    return [Rows(title, [*header, "largest difference of a weight"], rows)]


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """Test error along the four lines, a figure for each model."""
    results, cfg = outcome.results, outcome.cfg
    shown = metrics.level(outcome.metric)
    policy = f"\nBatchNorm statistics: {cfg.batch_norm}" if cfg.batch_norm else ""
    for model in results["model"].values:
        error = results["error"].sel(model=model, split="test")
        error = shown.of(error.transpose("comparison", "replica", "alpha"))
        figure = plots.along_path(
            results["alpha"].values,
            {
                str(c): error.sel(comparison=c).values
                for c in results["comparison"].values
            },
            ylabel=f"test {shown.label}",
            title=f"{model} on {cfg.data}\nmean and deviation of "
            f"{results.sizes['replica']} lines each{policy}",
            ends=("a network", "the other end"),
        )
        yield f"alignment_{model}", figure


PRESETS = presets.make(Config, presets.ALIGNMENT)

EXPERIMENT = Experiment(
    name="alignment",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--models mlp-6 mlp-9 --subset 200 --steps 2it --alphas 3 --replicas 2",
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
