"""Instability analysis: the survey's Figures 2 and 3.

    python -m experiments.instability                          # the demo: under a minute
    python -m experiments.instability lenet-fashion --out results/lenet

Trains networks from several initialisations to the steps k, and from each of these states
branches under different SGD noise (data order and augmentation). On the line between two
branches the error is measured: Figure 2 shows it for k = 0; Figure 3 shows over k how far
it rises above the ends (LII). Below 2 points a state is called stable. The same command
continues an interrupted run, and a finished one returns at once.

Frankle, Dziugaite, Roy and Carbin, Linear Mode Connectivity and the Lottery Ticket
Hypothesis, 2020.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments import display, groups, launch, recipes
from experiments.launch import Preset
from experiments.recipes import (
    PathRecipe,
    check_paths,
    load_data,
    make_optimizer,
    make_path_task,
    make_task,
    parse_steps,
)
from lottery_jax import connectivity, plots, records, verdicts

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True)
class Config(PathRecipe):
    """Everything that an analysis is determined by, and where and how it runs."""

    rewind_steps: tuple[str, ...] = ("0it", "30it", "100it", "300it", "1000it")
    """The steps k that branches start from: 0it, 500it, 2ep ..."""
    branches: int = 3
    """Continuations of each state under different noise; every two make a pair."""
    batch_norm: tuple[Literal["recompute", "interpolate"], ...] = ()
    """How BatchNorm statistics are treated on a path; both are compared if given both."""
    schedules: tuple[Literal["continued", "restarted"], ...] = ("continued",)
    """Branches that train from k to T, and the control: T steps from k, schedule anew."""
    threshold: float = 0.02
    """Below this LII a state is called stable."""


NOT_IDENTITY = ("threshold", *recipes.NOT_IDENTITY)
"""Fields that change no number of a replica."""

_MNIST1D = Config(
    validation=0,
    optimizer="sgd",
    learning_rate=0.1,
    steps="3000it",
    every=500,
    schedules=("continued", "restarted"),
)
_LENET = Config(
    data="fashion_mnist",
    validation=0,
    model="lenet-300-100",
    batch_size=60,
    learning_rate=1.2e-3,
    steps="3000it",
    path_train=10_000,
    every=100,
)
_RESNET8 = Config(
    data="cifar10",
    validation=0,
    augment=("flip", "crop"),
    model="resnet-8-8",
    batch_size=64,
    optimizer="sgd",
    learning_rate=0.1,
    weight_decay=1e-4,
    schedule="step",
    drops=("800it", "1200it"),
    steps="1600it",
    rewind_steps=("0it", "16it", "50it", "160it", "480it", "1000it"),
    batch_norm=("recompute", "interpolate"),
    alphas=11,
    path_train=2000,
    path_test=3000,
    every=100,
)
_PAPER = Config(
    data="cifar10",
    validation=0,
    augment=("flip", "crop"),
    model="resnet-20",
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.1,
    weight_decay=1e-4,
    schedule="step",
    drops=("32000it", "48000it"),
    steps="63000it",
    rewind_steps=(
        "0it",
        "100it",
        "250it",
        "500it",
        "1000it",
        "2000it",
        "4000it",
        "8000it",
    ),
    batch_norm=("recompute", "interpolate"),
    path_train=10_000,
    every=500,
)

PRESETS: Mapping[str, Preset] = {
    "mnist1d": Preset(
        _MNIST1D,
        "The demo: MLP 40-100-100-10 on MNIST-1D, SGD 0.1, 3 inits x 3 branches, five k, "
        "with the control of restarted schedules; no download. Under a minute on 2 cores.",
    ),
    "lenet-fashion": Preset(
        dataclasses.replace(_LENET, rewind_steps=("0it", "100it", "300it", "1000it")),
        "LeNet-300-100 on Fashion-MNIST, Adam 1.2e-3, 3,000 steps: stable from the start. "
        "Some minutes on 2 cores.",
    ),
    "resnet8-cifar10": Preset(
        _RESNET8,
        "A narrow ResNet-8 with BatchNorm on CIFAR-10, 1,600 steps: unstable at k = 0. "
        "Both BatchNorm policies. About an hour on 2 cores.",
    ),
    "lenet-mnist-paper": Preset(
        dataclasses.replace(
            _LENET,
            data="mnist",
            initializer="glorot_normal",
            steps="24000it",
            path_train=None,
            rewind_steps=("0it", "240it", "1200it", "4800it"),
            every=1000,
        ),
        "Frankle et al.'s LeNet: MNIST, Adam 1.2e-3, batch 60, 24,000 steps.",
    ),
    "resnet20-cifar10-paper": Preset(
        _PAPER,
        "Frankle et al.'s ResNet-20: lr 0.1 with drops at 32,000 and 48,000 of 63,000 "
        "steps, eight k. GPU; interrupt and repeat at will.",
    ),
    "vgg16-cifar10-paper": Preset(
        dataclasses.replace(_PAPER, model="vgg-16"),
        "Frankle et al.'s VGG-16, with the same schedule. GPU; interrupt and repeat.",
    ),
}


def plan(cfg: Config, steps_per_epoch: int) -> connectivity.Plan:
    """The protocol of a configuration.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    steps, *_ = parse_steps(cfg, "steps", steps_per_epoch)
    return connectivity.check(
        connectivity.Plan(
            steps=steps,
            rewind_steps=parse_steps(cfg, "rewind_steps", steps_per_epoch),
            branches=cfg.branches,
            batch_norm=cfg.batch_norm,
            alphas=cfg.alphas,
            splits=cfg.path_splits,
            statistics_batches=cfg.statistics_batches,
            schedules=cfg.schedules,
            seed=cfg.seed,
            every=cfg.every,
        )
    )


# --- running --------------------------------------------------------------------------


def run(cfg: Config, folder: pathlib.Path) -> "xr.Dataset | None":
    """Runs what is missing of an analysis in its folder, and returns all results.

    With several processes the first one returns them, the others None.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    config = records.as_config(cfg)
    task = make_path_task(cfg)
    protocol = plan(cfg, task.steps_per_epoch)
    tx = make_optimizer(cfg, task.steps_per_epoch)
    for policy in cfg.batch_norm or (None,):
        check_paths(cfg, task, policy)

    def one(group: pathlib.Path, ids: list[int]) -> "xr.Dataset":
        with display.stages() as watch:
            found = connectivity.run(
                task,
                tx,
                protocol,
                replicas=ids,
                execution=launch.execution(cfg),
                folder=group,
                checkpoint_seconds=cfg.checkpoint_seconds,
                watch=watch,
            )
        return _dataset(cfg, found, ids, task.data)

    return groups.run(folder, config, NOT_IDENTITY, cfg.replicas, one)


def _dataset(
    cfg: Config,
    found: connectivity.Analysis,
    ids: list[int],
    data: Any,
) -> "xr.Dataset":
    splits = list(cfg.path_sizes)
    names = found.records["split"][1].tolist()
    attributes = {
        **records.environment(),
        "execution": found.execution._asdict(),
        "path_examples": {s: len(data[n]["label"]) for s, n in zip(splits, names)},
        **({"note": note} if (note := load_data(cfg).note) else {}),
    }
    own = {
        name.replace("_part", ""): value
        for name, value in found.records.items()
        if name != "split"
    }
    coordinates = {"replica": ids, "split": splits}
    return records.dataset(own, coordinates, attributes)


# --- what came out --------------------------------------------------------------------


def samples(values: "xr.DataArray", *keep: str) -> np.ndarray:
    """All (replica, pair) of an array as the first axis, then the axes named."""
    return values.stack(sample=("replica", "pair")).transpose("sample", *keep).values


def judge(results: "xr.Dataset", threshold: float) -> list[dict[str, Any]]:
    """At each k: is the mean LII below the threshold? Pairs of one init are one unit."""
    rows = []
    lii = results["lii"]
    number = lii.sizes["pair"]
    clusters = np.repeat(results["replica"].values, number)
    for schedule in results["schedule"].values:
        for policy in results["batch_norm"].values:
            for split in results["split"].values:
                for step in results["rewind_step"].values:
                    at = lii.sel(
                        schedule=schedule,
                        batch_norm=policy,
                        split=split,
                        rewind_step=step,
                    )
                    verdict = verdicts.stable(
                        samples(at),
                        threshold,
                        replicas=verdicts.Replicas(
                            [
                                f"init {c}, pair {i % number}"
                                for i, c in enumerate(clusters)
                            ],
                            clusters,
                        ),
                    )
                    rows.append(
                        {
                            "schedule": str(schedule),
                            "batch_norm": str(policy),
                            "split": str(split),
                            "rewind_step": int(step),
                            "verdict": verdict,
                        }
                    )
    return rows


def policy_text(results: "xr.Dataset", policy: str) -> str:
    """What a figure says of BatchNorm."""
    if policy == "none":
        return "no BatchNorm"
    if policy == "interpolate":
        return "BatchNorm statistics interpolated"
    batches = json.loads(results.attrs["config"])["statistics_batches"]
    return f"BatchNorm statistics recomputed on {batches} training batches"


def draw(results: "xr.Dataset", cfg: Config, folder: pathlib.Path) -> pathlib.Path:
    """Draws Figures 2 and 3 and the other rulers; returns the path of Figure 3."""
    inits, pairs = results.sizes["replica"], results.sizes["pair"]
    name = f"{cfg.model} on {cfg.data}"
    count = f"mean and standard deviation of {inits} inits x {pairs} pairs"
    main = (
        results.sel(schedule="continued")
        if _continued(results)
        else results.isel(schedule=0)
    )
    policies = [str(p) for p in results["batch_norm"].values]
    first = int(results["rewind_step"].values[0])
    lines = {
        f"{split}" + (f", {policy}" if len(policies) > 1 else ""): 100
        * samples(
            main["error"].sel(rewind_step=first, split=split, batch_norm=policy),
            "alpha",
        )
        for policy in policies
        for split in results["split"].values
    }
    shown = policy_text(results, policies[0])
    if len(policies) > 1:
        shown += "; or interpolated"
    figure = plots.along_path(
        results["alpha"].values,
        lines,
        ylabel="error (%)",
        title=f"{name}: branches of step k = {first}\n{count}\n{shown}",
        ends=("one branch", "another"),
    )
    plots.save(figure, folder / "figures" / "error_along_path")
    total = parse_steps(cfg, "steps", _steps_per_epoch(cfg))[0]
    lines, variants = {}, {}
    for schedule in results["schedule"].values:
        for policy in policies:
            for split in results["split"].values:
                label = str(split)
                label += f", {policy}" if len(policies) > 1 else ""
                if schedule == "restarted" and _continued(results):
                    variants[f"{label}, restarted"] = label
                label += ", restarted" if schedule == "restarted" else ""
                at = results["lii"].sel(
                    schedule=schedule, batch_norm=policy, split=split
                )
                lines[label] = 100 * samples(at, "rewind_step")
    path = folder / "figures" / "instability"
    figure = plots.against_step(
        results["rewind_step"].values,
        lines,
        ylabel="linear interpolation instability\n(points of error)",
        title=f"{name}\n{count}\n{shown}",
        total=total,
        threshold=100 * cfg.threshold,
        threshold_label="stable below this",
        variants=variants,
    )
    plots.save(figure, path)
    rulers = {"angle distance": main["angle"]}
    rulers |= {
        f"disagreement, {split}": main[f"disagreement_{split}"]
        for split in results["split"].values
        if f"disagreement_{split}" in main
    }
    if "travel_from_init" in main:
        apart = main["l2"] / main["travel_from_init"].mean("branch")
        rulers["L2 distance / distance from the init"] = apart
    figure = plots.against_step(
        results["rewind_step"].values,
        {label: samples(value, "rewind_step") for label, value in rulers.items()},
        ylabel="between two branches (fraction)",
        title=f"{name}: the other rulers\n{count}",
        total=total,
    )
    plots.save(figure, folder / "figures" / "other_rulers")
    return path.with_suffix(".png")


def _continued(results: "xr.Dataset") -> bool:
    return "continued" in results["schedule"].values


def _steps_per_epoch(cfg: Config) -> int:
    return make_task(cfg).steps_per_epoch


def table(results: "xr.Dataset") -> display.Rows:
    """LII in points and the other rulers at each k, as mean and standard deviation."""
    header = ["schedule", "BatchNorm", "k"]
    splits = [str(s) for s in results["split"].values]
    header += [f"LII {s}" for s in splits]
    header += [f"end error {s} %" for s in splits]
    others = ["l2", "angle", *(f"disagreement_{s}" for s in splits)]
    others = [name for name in others if name in results]
    header += [name.replace("_", " ") for name in others]
    rows = []
    for schedule in results["schedule"].values:
        for policy in results["batch_norm"].values:
            for step in results["rewind_step"].values:
                at = results.sel(schedule=schedule, rewind_step=step)
                own = at.sel(batch_norm=policy)
                row = [str(schedule), str(policy), str(int(step))]
                for split in splits:
                    row.append(_spread(100 * samples(own["lii"].sel(split=split))))
                for split in splits:
                    ends = (
                        own["error"].sel(split=split).isel(alpha=[0, -1]).mean("alpha")
                    )
                    row.append(_spread(100 * samples(ends)))
                row += [_spread(samples(at[name]), 3) for name in others]
                rows.append(row)
    return display.Rows(header, rows)


def _spread(values: np.ndarray, digits: int = 2) -> str:
    values = values[np.isfinite(values)]
    if not len(values):
        return "diverged"
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def report(
    results: "xr.Dataset", cfg: Config, preset: str, folder: pathlib.Path
) -> None:
    """Figures, table and verdicts, on the disk and on the screen."""
    figure = draw(results, cfg, folder)
    judged = judge(results, cfg.threshold)
    rows = table(results)
    lines = [*conclusions(judged), *_diverged(results)]
    display.leave(folder, judged, [rows], lines)
    if note := results.attrs.get("note"):
        lines.append(f"Data: {note}")
    title = (
        f"{preset}: LII in points, mean ± standard deviation of "
        f"{results.sizes['replica']} inits x {results.sizes['pair']} pairs"
    )
    display.show_lines(title, rows, [*lines, "", f"Figure: {figure}"])


def conclusions(judged: list[dict[str, Any]]) -> list[str]:
    """One line per kind of measurement: at which k training is stable."""
    lines = []
    kinds = ("schedule", "batch_norm", "split")
    for kind in dict.fromkeys(tuple(row[k] for k in kinds) for row in judged):
        mine = [row for row in judged if tuple(row[k] for k in kinds) == kind]
        answers: dict[str, list[str]] = {"yes": [], "no": [], "undecided": []}
        for row in mine:
            answers[row["verdict"].answer].append(str(row["rewind_step"]))
        text = "; ".join(
            f"{answer} at k = {', '.join(steps)}"
            for answer, steps in answers.items()
            if steps
        )
        schedule, policy, split = kind
        name = ", ".join(
            x for x in (split, policy if policy != "none" else "", schedule) if x
        )
        lines.append(f"stable ({name}): {text}")
    if judged:
        verdict = judged[-1]["verdict"]
        lines.append(
            f"Stable: the 95% interval of the mean LII, over inits (n = {verdict.n}), lies "
            f"below {100 * verdict.tolerance:g} points; all numbers are in verdicts.json."
        )
    return lines


def _diverged(results: "xr.Dataset") -> list[str]:
    found = np.argwhere(np.isfinite(results["first_nan"].values))
    axes = results["first_nan"].dims
    return [
        "Diverged, and left out of every verdict: "
        + ", ".join(
            f"{a} {results[a].values[i] if a in results.coords else i}"
            for a, i in zip(axes, at)
        )
        for at in found
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""

    def work(cfg: Config, preset: str, folder: pathlib.Path) -> None:
        if (results := run(cfg, folder)) is not None:
            report(results, cfg, preset, folder)

    about = __doc__ or ""
    return launch.main(
        "instability",
        PRESETS,
        "mnist1d",
        about,
        NOT_IDENTITY,
        work,
        arguments,
        several=True,
    )


if __name__ == "__main__":
    sys.exit(main())
