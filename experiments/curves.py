"""Mode connectivity in general: a curve of low error where the line has a barrier.

    python -m experiments.curves                               # MLP on MNIST-1D
    python -m experiments.curves lenet-fashion

Trains networks from different initialisations, and then the bend of a quadratic Bezier
curve and of a polygonal chain between each and the next. The first figure shows the error
along the line and along both curves; the others show the plane through two networks and
the bend between them.

Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, Loss Surfaces, Mode Connectivity, and
Fast Ensembling of DNNs, 2018.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import display, launch
from experiments.launch import Preset
from experiments.recipes import (
    PathRecipe,
    check_paths,
    load_data,
    make_optimizer,
    make_path_task,
    parse_steps,
)
from lottery_jax import arms, connectivity, plots, records, training, verdicts
from lottery_jax.connectivity import branches, linear
from lottery_jax.connectivity.curves import Kind
from lottery_jax.replicas import (
    default_execution,
    padded,
    parallel,
    place,
    shared,
)
from lottery_jax.types import Array, Key, Network, Params, Task

if TYPE_CHECKING:
    import xarray as xr

KINDS: tuple[Kind, ...] = ("bezier", "chain")
PATHS = ("line", *KINDS)


@dataclasses.dataclass(frozen=True)
class Config(PathRecipe):
    """Everything that a study is determined by, and where and how it runs."""

    curve_steps: str = "3000it"
    """How long a bend is trained, with the same optimizer and schedule."""
    batch_norm: Literal["recompute"] | None = None
    """How BatchNorm statistics are treated on a path; needed where there are any."""
    plane: int = 25
    """Points along each axis of the plane; 0 for no plane."""


NOT_IDENTITY = ("out", "devices", "chunk", "checkpoint_seconds")
"""Fields that change no number."""

PRESETS: Mapping[str, Preset] = {
    "mnist1d": Preset(
        Config(validation=0, learning_rate=1e-3, steps="3000it"),
        "MLP 40-100-100-10 on MNIST-1D, Adam 1e-3, 3 replicas; no download. About a "
        "minute on 2 cores.",
    ),
    "lenet-fashion": Preset(
        Config(
            data="fashion_mnist",
            validation=0,
            model="lenet-300-100",
            batch_size=60,
            learning_rate=1.2e-3,
            steps="3000it",
            path_train=5000,
            path_test=5000,
            plane=15,
        ),
        "LeNet-300-100 on Fashion-MNIST, 3 replicas. Some minutes.",
    ),
}


# --- running --------------------------------------------------------------------------


def run(cfg: Config, folder: pathlib.Path) -> "xr.Dataset":
    """Trains networks and curves, or returns what a run folder holds.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    config = records.as_config(cfg)
    if cfg.plane == 1 or cfg.plane < 0:
        raise ValueError(f"plane={cfg.plane}; it must be 0, for none, or 2 or more")
    execution = launch.execution(cfg)
    task = make_path_task(cfg)
    check_paths(cfg, task, cfg.batch_norm, replicas=2)
    (steps,) = parse_steps(cfg, "steps", task.steps_per_epoch)
    (curve_steps,) = parse_steps(cfg, "curve_steps", task.steps_per_epoch)
    records.claim_folder(folder, config, NOT_IDENTITY)
    path = folder / "results.nc"
    if records.intact(path):
        return records.load(path)
    begin = time.monotonic()
    options: dict[str, Any] = dict(
        batch_norm=cfg.batch_norm,
        statistics_batches=cfg.statistics_batches,
        execution=execution,
    )
    splits = cfg.path_splits
    with display.stages() as watch:
        networks = _networks(cfg, task, steps, folder / "networks", watch)
        pairs = [
            (networks[i], networks[(i + 1) % cfg.replicas]) for i in range(cfg.replicas)
        ]
        error = np.zeros((len(PATHS), cfg.replicas, len(splits), cfg.alphas))
        out: dict[str, Any] = {}
        planes = []
        for i, (a, b) in enumerate(pairs):
            stack = jax.tree.map(lambda x, y: jnp.stack([x, y]), a, b)
            found = linear.paths(
                task, stack, [(0, 1)], cfg.alphas, splits=splits, **options
            )
            error[0, i] = found.error[0]
        for p, kind in enumerate(KINDS, 1):
            bends = train_bends(cfg, task, pairs, kind, curve_steps)
            for i, (a, b) in enumerate(pairs):
                found = connectivity.error_along_curve(
                    task,
                    a,
                    b,
                    (bends[i],),
                    cfg.alphas,
                    kind=kind,
                    splits=splits,
                    **options,
                )
                error[p, i] = found.error[0]
            if cfg.plane:
                middle = Network(bends[0], pairs[0][0].model_state)
                planes.append(
                    connectivity.plane(
                        task,
                        *pairs[0],
                        middle,
                        size=cfg.plane,
                        splits=(splits[1],),
                        **options,
                    )
                )
            watch(display.StageProgress("curves", p, len(KINDS), cfg.replicas))
    out["error"] = (("path", "replica", "split", "alpha"), error)
    out["alpha"] = (("alpha",), linear.positions(cfg.alphas))
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
        "replica": range(cfg.replicas),
        "split": list(cfg.path_sizes),
        **({"kind": list(KINDS)} if planes else {}),
    }
    note = load_data(cfg).note
    attributes = {
        **records.environment(),
        "config": config,
        "seconds_last_call": time.monotonic() - begin,
        **({"note": note} if note else {}),
    }
    results = records.dataset(out, coordinates, attributes)
    records.save(path, results)
    return results


def _networks(
    cfg: Config, task: Task, steps: int, folder: pathlib.Path, watch: Any
) -> list[Network]:
    keys = jax.vmap(lambda i: arms.replica_keys(cfg.seed, i))(jnp.arange(cfg.replicas))
    trunk = branches.train_trunk(
        task,
        make_optimizer(cfg, task.steps_per_epoch),
        keys.init,
        keys.noise,
        (steps,),
        execution=launch.execution(cfg),
        every=cfg.every,
        folder=folder,
        watch=lambda step, stop, rows, resumed: watch(
            display.StageProgress("networks", step, stop, rows, resumed)
        ),
    )
    state = trunk.at(steps)
    stack = Network(state.params, state.model_state)
    return [
        jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), stack)
        for i in range(cfg.replicas)
    ]


def train_bends(
    cfg: Config,
    task: Task,
    pairs: list[tuple[Network, Network]],
    kind: Kind,
    steps: int,
) -> list[Params]:
    """One bend per pair, all trained together."""
    tx = make_optimizer(cfg, task.steps_per_epoch)
    execution = launch.execution(cfg) or default_execution()
    functions = task.functions
    number = len(pairs)
    rows = np.minimum(np.arange(padded(number, execution)), number - 1)
    a, b = (
        jax.tree.map(lambda *x: jnp.stack(x)[rows], *(pair[side] for pair in pairs))
        for side in (0, 1)
    )
    keys = jax.vmap(lambda i: arms.replica_keys(cfg.seed, i).noise)(jnp.array(rows))
    # Other noise than the networks'.
    keys = jax.vmap(lambda key: branches.branch_keys(key, 1)[0])(keys)

    def one(data: Any, a: Network, b: Network, key: Key) -> Params:
        curve = connectivity.curve_task(
            functions._replace(data=data), a.params, b.params, kind=kind
        )
        bends = connectivity.straight(a.params, b.params)
        mask = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.bool_), bends)
        # BatchNorm trains in batch statistics; those of the bend are recomputed.
        state = training.start(tx, Network(bends, a.model_state), (), mask)
        order = training.orders(curve, key, training.epochs_of(task, steps))
        state, _ = training.train(
            curve, tx, state, key, order, jnp.int32(0), jnp.int32(steps), capacity=steps
        )
        return state.params[0]

    run_ = parallel(one, (None, 0, 0, 0), execution)
    data = jax.device_put(task.data, shared(execution))
    found: Array = run_(data, *place((a, b, keys), execution))
    return [
        jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), found) for i in range(number)
    ]


# --- what came out --------------------------------------------------------------------


def highest(results: "xr.Dataset") -> "xr.DataArray":
    """The highest error of each path above the chord of its ends, a fraction."""
    values = results["error"].transpose(..., "alpha")
    alphas = results["alpha"].values
    height = linear.barrier(values.values, alphas, reference="chord")
    return values.isel(alpha=0, drop=True).copy(data=height)


def judge(results: "xr.Dataset") -> list[dict[str, Any]]:
    """Is a curve's barrier lower than the line's?"""
    barrier = highest(results)
    rows = []
    for split in results["split"].values:
        for path in KINDS:
            at = barrier.sel(split=split)
            rows.append(
                {
                    "split": str(split),
                    "path": path,
                    "verdict": verdicts.paired(
                        (at.sel(path=path) - at.sel(path="line")).values,
                        side="<",
                        tolerance=0.0,
                        claim=f"{path}: barrier lower than the line's ({split})",
                    ),
                }
            )
    return rows


def table(results: "xr.Dataset") -> display.Rows:
    """The barrier of each path in points, mean and range over pairs."""
    barrier = 100 * highest(results)
    splits = [str(s) for s in results["split"].values]
    rows = []
    for path in PATHS:
        cells = [barrier.sel(path=path, split=s).values for s in splits]
        rows.append(
            [path, *(f"{v.mean():.2f} [{v.min():.2f}, {v.max():.2f}]" for v in cells)]
        )
    return display.Rows(["path", *(f"barrier {s}" for s in splits)], rows)


def draw(results: "xr.Dataset", cfg: Config, folder: pathlib.Path) -> pathlib.Path:
    """Error along line and curves, and the planes; returns the first figure's path."""
    name = f"{cfg.model} on {cfg.data}"
    lines = {
        f"{path}, {split}": 100 * results["error"].sel(path=path, split=split).values
        for split in results["split"].values
        for path in PATHS
    }
    figure = plots.along_path(
        results["alpha"].values,
        lines,
        ylabel="error (%)",
        title=f"{name}: two initialisations\nmean and deviation of "
        f"{results.sizes['replica']} pairs",
        ends=("a network", "another"),
    )
    first = folder / "figures" / "curves"
    plots.save(figure, first)
    for kind in results["kind"].values if "kind" in results.sizes else ():
        at = results.sel(kind=kind)
        figure = plots.loss_plane(
            at["plane_x"].values,
            at["plane_y"].values,
            100 * at["plane_error"].values,
            at["plane_networks"].values,
            label="test error (%)",
            names=("a network", "another", f"bend ({kind})"),
            title=f"{name}: the plane of two networks and a bend",
        )
        plots.save(figure, folder / "figures" / f"plane_{kind}")
    return first.with_suffix(".png")


def report(
    results: "xr.Dataset", cfg: Config, preset: str, folder: pathlib.Path
) -> None:
    """Figures, table and verdicts, on the disk and on the screen."""
    figure = draw(results, cfg, folder)
    judged = judge(results)
    rows = table(results)
    lines = [row["verdict"].describe() for row in judged]
    display.leave(folder, judged, [rows], lines)
    title = (
        f"{preset}: points of error above the chord of the ends, mean [min, max] of "
    )
    title += f"{results.sizes['replica']} pairs"
    display.show_lines(title, rows, [*lines, "", f"Figure: {figure}"])


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""

    def work(cfg: Config, preset: str, folder: pathlib.Path) -> None:
        report(run(cfg, folder), cfg, preset, folder)

    about = __doc__ or ""
    return launch.main(
        "curves", PRESETS, "mnist1d", about, NOT_IDENTITY, work, arguments
    )


if __name__ == "__main__":
    sys.exit(main())
