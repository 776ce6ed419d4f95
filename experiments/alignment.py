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
import json
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
    make_model,
    make_optimizer,
    make_path_task,
    parse_steps,
)
from lottery_jax import arms, models, plots, records, verdicts
from lottery_jax.connectivity import alignment, branches, linear
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


NOT_IDENTITY = ("out", "devices", "chunk", "checkpoint_seconds")
"""Fields that change no number."""

PRESETS: Mapping[str, Preset] = {
    "mnist1d": Preset(
        Config(validation=0, learning_rate=1e-3, steps="3000it"),
        "MLPs of three widths on MNIST-1D, Adam 1e-3, 3 replicas; no download. Some "
        "minutes on 2 cores.",
    ),
    "resnet8-cifar10": Preset(
        Config(
            data="cifar10",
            validation=0,
            augment=("flip", "crop"),
            models=("resnet-8-8",),
            batch_size=64,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=1e-4,
            schedule="step",
            drops=("800it", "1200it"),
            steps="1600it",
            batch_norm="recompute",
            alphas=11,
            path_train=2000,
            path_test=3000,
            every=100,
        ),
        "A narrow ResNet-8 with BatchNorm on CIFAR-10, 3 replicas. Some minutes.",
    ),
}


# --- running --------------------------------------------------------------------------


def run(cfg: Config, folder: pathlib.Path) -> "xr.Dataset":
    """Trains and compares what is missing in a run folder, and returns all results.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    import xarray as xr

    config = records.as_config(cfg)
    if not cfg.models:
        raise ValueError("models=(); there must be one at least")
    for name in cfg.models:
        own = dataclasses.replace(cfg, model=name)
        check_paths(own, make_path_task(own), cfg.batch_norm, replicas=2)
    records.claim_folder(folder, config, NOT_IDENTITY)
    path = folder / "results.nc"
    if records.intact(path):
        return records.load(path)
    begin = time.monotonic()
    parts = []
    for name in cfg.models:
        done = folder / f"{name}.nc"
        if not records.intact(done):
            own = dataclasses.replace(cfg, model=name)
            records.save(done, _run_model(own, folder / name))
        parts.append(records.load(done))
    results = xr.concat(parts, "model", combine_attrs="override")
    results = results.assign_coords(model=list(cfg.models))
    results.attrs |= {
        "config": json.dumps(config),
        "seconds_last_call": time.monotonic() - begin,
    }
    records.save(path, results)
    return results


def _run_model(cfg: Config, folder: pathlib.Path) -> "xr.Dataset":
    task = make_path_task(cfg)
    tx = make_optimizer(cfg, task.steps_per_epoch)
    (steps,) = parse_steps(cfg, "steps", task.steps_per_epoch)
    keys = jax.vmap(lambda i: arms.replica_keys(cfg.seed, i))(jnp.arange(cfg.replicas))
    execution = launch.execution(cfg)
    with display.stages(f"{cfg.model}: ") as watch:

        def trained(step: int, stop: int, rows: int, resumed: bool) -> None:
            watch(display.StageProgress("networks", step, stop, rows, resumed))

        trunk = branches.train_trunk(
            task,
            tx,
            keys.init,
            keys.noise,
            (steps,),
            execution=execution,
            every=cfg.every,
            folder=folder / "networks",
            watch=trained,
        )
        state = trunk.at(steps)
        stack = Network(state.params, state.model_state)
        networks = [
            jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), stack)
            for i in range(cfg.replicas)
        ]
        model = make_model(cfg)
        axes = models.units(model, networks[0].params)
        state_axes = models.state_units(
            model, networks[0].params, networks[0].model_state
        )
        members, pairs = list(networks), []
        for i, network in enumerate(networks):
            order = alignment.random(
                axes, network.params, jax.random.key(cfg.seed + 1 + i)
            )
            copy = Network(
                alignment.permute(axes, network.params, order),
                alignment.permute(state_axes, network.model_state, order),
            )
            other = networks[(i + 1) % cfg.replicas]
            for end in (copy, other):
                aligned = alignment.align(axes, network, end, state_axes=state_axes)
                for member in (end, aligned.network):
                    pairs.append((i, len(members)))
                    members.append(member)
        path = linear.paths(
            task,
            jax.tree.map(lambda *x: jnp.stack(x), *members),
            pairs,
            cfg.alphas,
            batch_norm=cfg.batch_norm,
            splits=cfg.path_splits,
            statistics_batches=cfg.statistics_batches,
            execution=execution,
            folder=folder / "paths",
            watch=display.points_watcher(watch, len(pairs)),
        )
    shape = (cfg.replicas, len(COMPARISONS))
    axes_ = ("replica", "comparison", "split", "alpha")
    difference = np.array(
        [
            max(
                float(jnp.max(jnp.abs(x - y)))
                for x, y in zip(
                    jax.tree.leaves(members[i].params),
                    jax.tree.leaves(members[j].params),
                )
            )
            for i, j in pairs
        ]
    )
    out = {
        "error": (axes_, path.error.reshape(*shape, *path.error.shape[1:])),
        "loss": (axes_, path.loss.reshape(*shape, *path.loss.shape[1:])),
        "largest_difference": (axes_[:2], difference.reshape(shape)),
        "alpha": (("alpha",), path.alphas),
    }
    coordinates = {
        "replica": range(cfg.replicas),
        "comparison": list(COMPARISONS),
        "split": list(cfg.path_sizes),
    }
    note = load_data(cfg).note
    attributes = records.environment() | ({"note": note} if note else {})
    return records.dataset(out, coordinates, attributes)


# --- what came out --------------------------------------------------------------------


def instabilities(results: "xr.Dataset") -> "xr.DataArray":
    """LII of every line, a fraction."""
    values = results["error"].transpose(..., "alpha")
    return values.isel(alpha=0, drop=True).copy(data=linear.instability(values.values))


def judge(results: "xr.Dataset") -> list[dict[str, Any]]:
    """Does aligning lower the instability between different networks?"""
    lii = instabilities(results)
    rows = []
    for model in results["model"].values:
        for split in results["split"].values:
            at = lii.sel(model=model, split=split)
            claim = "LII lower after aligning"
            rows.append(
                {
                    "model": str(model),
                    "split": str(split),
                    "verdict": verdicts.paired(
                        (
                            at.sel(comparison="another init, aligned")
                            - at.sel(comparison="another init")
                        ).values,
                        side="<",
                        tolerance=0.0,
                        claim=claim,
                    ),
                }
            )
    return rows


def table(results: "xr.Dataset") -> display.Rows:
    """LII in points of each comparison, mean and range over replicas."""
    lii = 100 * instabilities(results)
    rows = []
    for model in results["model"].values:
        for comparison in results["comparison"].values:
            at = lii.sel(model=model, comparison=comparison)
            row = [str(model), str(comparison)]
            for split in results["split"].values:
                values = at.sel(split=split).values
                row.append(
                    f"{values.mean():.2f} [{values.min():.2f}, {values.max():.2f}]"
                )
            apart = results["largest_difference"].sel(
                model=model, comparison=comparison
            )
            row.append(f"{float(apart.max()):.2g}")
            rows.append(row)
    header = ["model", "line to", *(f"LII {s}" for s in results["split"].values)]
    return display.Rows([*header, "largest difference of a weight"], rows)


def draw(results: "xr.Dataset", cfg: Config, folder: pathlib.Path) -> pathlib.Path:
    """Test error along the four lines, a figure for each model; the last one's path."""
    path = folder
    for model in results["model"].values:
        lines = {
            str(c): 100
            * results["error"]
            .sel(model=model, comparison=c, split="test")
            .transpose("replica", "alpha")
            .values
            for c in results["comparison"].values
        }
        policy = f"\nBatchNorm statistics: {cfg.batch_norm}" if cfg.batch_norm else ""
        figure = plots.along_path(
            results["alpha"].values,
            lines,
            ylabel="test error (%)",
            title=f"{model} on {cfg.data}\nmean and deviation of "
            f"{results.sizes['replica']} lines each{policy}",
            ends=("a network", "the other end"),
        )
        path = folder / "figures" / f"alignment_{model}"
        plots.save(figure, path)
    return path.with_suffix(".png")


def report(
    results: "xr.Dataset", cfg: Config, preset: str, folder: pathlib.Path
) -> None:
    """Figures, table and verdicts, on the disk and on the screen."""
    figure = draw(results, cfg, folder)
    judged = judge(results)
    rows = table(results)
    lines = [f"{r['model']}, {r['split']}: {r['verdict'].describe()}" for r in judged]
    display.leave(folder, judged, [rows], lines)
    title = f"{preset}: points of error, mean [min, max] of "
    title += f"{results.sizes['replica']} lines"
    display.show_lines(title, rows, [*lines, "", f"Figure: {figure}"])


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""

    def work(cfg: Config, preset: str, folder: pathlib.Path) -> None:
        report(run(cfg, folder), cfg, preset, folder)

    about = __doc__ or ""
    return launch.main(
        "alignment", PRESETS, "mnist1d", about, NOT_IDENTITY, work, arguments
    )


if __name__ == "__main__":
    sys.exit(main())
