"""Mode connectivity in general: a curve of low error where the line has a barrier.

    python -m experiments.curves                               # MLP on MNIST-1D
    python -m experiments.curves lenet-fashion

Trains networks from different initialisations, and then the bend of a quadratic Bezier
curve and of a polygon between each and the next. The first figure shows the error
along the line and along both curves; the others show the plane through two networks and
the bend between them.

Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, Loss Surfaces, Mode Connectivity, and
Fast Ensembling of DNNs, 2018.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from experiments import cost, display, metrics, presets
from experiments.display import Judged, Rows, mean_range
from experiments.experiment import Experiment, Outcome, dataset
from experiments.recipes import PathRecipe, Setup, parse_step, set_up_paths
from lottery_jax import (
    connectivity,
    keys,
    masks,
    plots,
    tasks,
    training,
    trees,
    verdicts,
)
from lottery_jax.connectivity import linear
from lottery_jax.execution import Where
from lottery_jax.tasks.curve import Kind
from lottery_jax.types import Network, Params

if TYPE_CHECKING:
    import xarray as xr

KINDS: tuple[Kind, ...] = ("bezier", "polygon")
PATHS = ("line", *KINDS)


@dataclass(frozen=True)
class Config(PathRecipe):
    """Everything that a study is determined by, and where and how it runs."""

    curve_steps: str = "3000it"
    """How long a bend is trained, with the same optimizer and schedule."""
    batch_norm: Literal["recompute"] | None = None
    """How BatchNorm statistics are treated on a path; needed where there are any."""
    plane: int = 25
    """Points along each axis of the plane; 0 for no plane."""
    replicas: int = 3
    """Networks; a curve leads from each to the next, so they belong together."""


# --- running --------------------------------------------------------------------------


def prepare(cfg: Config) -> Setup:
    """Task and optimizer; errors name the field."""
    if cfg.plane == 1 or cfg.plane < 0:
        raise ValueError(f"plane={cfg.plane}; it must be 0, for none, or 2 or more")
    setup = set_up_paths(cfg, cfg.batch_norm)
    parse_step(cfg, "curve_steps", setup.task.steps_per_epoch)  # or it raises
    return setup


def trained(setup: Setup, ids: list[int], where: Where) -> list[Network]:
    """A network from each initialisation, at the end of training."""
    cfg, task, tx, _ = setup
    steps = parse_step(cfg, "steps", task.steps_per_epoch)
    own = keys.of_replicas(cfg.seed, ids)
    runs = training.fresh(task, tx, own.init, own.noise, where=where)
    place = where.below("networks")
    done = training.train(
        task, tx, runs, steps, every=cfg.every, stage="networks", where=place
    )
    stack = done.networks
    return [trees.rows(stack, i) for i in range(len(ids))]


def work_of_networks(setup: Setup) -> cost.Work:
    """What `trained` costs."""
    steps = parse_step(setup.cfg, "steps", setup.task.steps_per_epoch)
    of = cost.of_setup(setup)
    return cost.trained("networks", of, setup.cfg.replicas, steps)


def bend(
    setup: Setup,
    pairs: list[tuple[Network, Network]],
    noise: Any,
    kind: Kind,
    where: Where,
) -> list[Params]:
    """One bend between the networks of each pair, all trained together."""
    cfg, task, tx, _ = setup
    steps = parse_step(cfg, "curve_steps", task.steps_per_epoch)
    curve = tasks.curve(task, kind=kind)
    start = trees.stack([tasks.between(*pair) for pair in pairs])
    # BatchNorm trains in batch statistics; those of the bend are recomputed.
    ones = masks.ones_like(start.params)
    state = training.start_many(tx, start, (), ones, where=where)
    zeros = np.zeros(len(pairs), np.int32)
    runs = training.Runs(state, noise, zeros, zeros)
    done = training.train(
        curve,
        tx,
        runs,
        steps,
        every=cfg.every,
        stage=f"bends ({kind})",
        where=where.below(f"bends-{kind}"),
    )
    (found,) = done.networks.params
    return [trees.rows(found, i) for i in range(len(pairs))]


def work(setup: Setup) -> cost.Work:
    """What networks, bends and all that is measured between them cost."""
    cfg, of = setup.cfg, cost.of_setup(setup)
    steps = parse_step(cfg, "curve_steps", setup.task.steps_per_epoch)
    bends = [cost.trained(f"bends ({k})", of, cfg.replicas, steps) for k in KINDS]
    paths = cost.lines(of, cfg, len(PATHS) * cfg.replicas, cfg.batch_norm)
    planes = len(KINDS) * cfg.plane**2
    test = cost.Measured("planes", of, planes, cfg.path_test or of.test, path=True)
    return cost.together(
        work_of_networks(setup), *bends, paths, cost.Work((), (test,) * bool(planes))
    )


def one(setup: Setup, ids: list[int], where: Where) -> "xr.Dataset":
    """Trains networks and curves, and measures both."""
    cfg, task = setup.cfg, setup.task
    measure = cfg.measure(cfg.batch_norm)
    # Other noise than the networks'.
    noise = jax.vmap(lambda key: keys.branch_keys(key, 1)[0])(
        keys.of_replicas(cfg.seed, ids).noise
    )
    with display.watched(where) as place:
        networks = trained(setup, ids, place)
        next_ = [(i + 1) % len(ids) for i in ids]
        pairs = [(a, networks[j]) for a, j in zip(networks, next_)]
        lines = connectivity.paths(
            task,
            trees.stack(networks),
            list(zip(ids, next_)),
            measure,
            where=place.below("lines"),
        )
        error, quiet = [lines.error], place.aside()
        planes = []
        for kind in KINDS:
            bends = bend(setup, pairs, noise, kind, place)
            curves = [
                connectivity.error_along_curve(
                    task, *pair, (one_bend,), measure, kind=kind, where=quiet
                )
                for pair, one_bend in zip(pairs, bends)
            ]
            error.append(np.stack([curve.error[0] for curve in curves]))
            if cfg.plane:
                middle = Network(bends[0], pairs[0][0].model_state)
                test = measure._replace(splits=measure.splits[1:])
                planes.append(
                    connectivity.plane(
                        task, *pairs[0], middle, test, size=cfg.plane, where=quiet
                    )
                )
    out: dict[str, Any] = {
        "error": (("path", "replica", "split", "alpha"), np.stack(error).astype(float)),
        "alpha": (("alpha",), linear.positions(cfg.alphas)),
    }
    if planes:
        out |= {
            "plane_error": (("kind", "y", "x"), np.stack([p.error[0] for p in planes])),
            "plane_x": (("kind", "x"), np.stack([p.x for p in planes])),
            "plane_y": (("kind", "y"), np.stack([p.y for p in planes])),
            "plane_networks": (
                ("kind", "network", "coordinate"),
                np.stack([p.networks for p in planes]),
            ),
        }
    coordinates = {
        "path": list(PATHS),
        "replica": ids,
        "split": list(cfg.path_sizes),
        **({"kind": list(KINDS)} if planes else {}),
    }
    return dataset(cfg, out, coordinates)


# --- what came out --------------------------------------------------------------------


def highest(results: "xr.Dataset") -> "xr.DataArray":
    """The highest error of each path above the chord of its ends, a fraction."""
    values = results["error"].transpose(..., "alpha")
    alphas = results["alpha"].values
    height = linear.barrier(values.values, alphas, reference="chord")
    return values.isel(alpha=0, drop=True).copy(data=height)


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Is a curve's barrier lower than the line's?"""
    barrier = highest(results)
    judged = []
    for split in results["split"].values.tolist():
        for path in KINDS:
            at = barrier.sel(split=split)
            verdict = verdicts.paired(
                (at.sel(path=path) - at.sel(path="line")).values,
                side="<",
                tolerance=0.0,
                claim=f"{path}: barrier lower than the line's ({split})",
            )
            where = {"split": split, "path": path}
            judged.append(Judged(where, "barrier lower than the line's", verdict))
    return judged


def tables(outcome: Outcome) -> list[Rows]:
    """The barrier of each path, mean and range over pairs."""
    points = metrics.difference(outcome.metric)
    barrier = points.of(highest(outcome.results))
    splits = outcome.results["split"].values.tolist()
    rows = [
        [path, *(mean_range(barrier.sel(path=path, split=s).values) for s in splits)]
        for path in PATHS
    ]
    title = f"{outcome.preset}: {points.unit} of {points.name} above the chord of the "
    title += f"ends, mean [min, max] of {outcome.results.sizes['replica']} pairs"
    return [Rows(title, ["path", *(f"barrier {s}" for s in splits)], rows)]


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """Error along line and curves, and the planes."""
    results, shown = outcome.results, metrics.level(outcome.metric)
    error = shown.of(results["error"])
    figure = plots.along_path(
        results["alpha"].values,
        {
            f"{path}, {split}": error.sel(path=path, split=split).values
            for split in results["split"].values
            for path in PATHS
        },
        ylabel=shown.label,
        title=f"{outcome.networks}: two initialisations\nmean and deviation of "
        f"{results.sizes['replica']} pairs",
        ends=("a network", "another"),
    )
    yield "curves", figure
    for kind in results["kind"].values if "kind" in results.sizes else ():
        at = results.sel(kind=kind)
        figure = plots.loss_plane(
            at["plane_x"].values,
            at["plane_y"].values,
            shown.of(at["plane_error"].values),
            at["plane_networks"].values,
            label=f"test {shown.label}",
            names=("a network", "another", f"bend ({kind})"),
            title=f"{outcome.networks}: the plane of two networks and a bend",
        )
        yield f"plane_{kind}", figure


PRESETS = presets.make(Config, presets.CURVES)

EXPERIMENT = Experiment(
    name="curves",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-4 --subset 200 --steps 2it --curve-steps 2it --alphas 3 --plane 2 "
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
