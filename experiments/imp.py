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
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from experiments import display, groups, launch
from experiments.launch import Command, Preset
from experiments.recipes import (
    Recipe,
    load_data,
    make_optimizer,
    make_task,
    parse_step,
)
from lottery_jax import (
    imp,
    masks,
    plots,
    processes,
    records,
    schedules,
    tickets,
    verdicts,
)
from lottery_jax.convolution import Method
from lottery_jax.replicas import Precision, check_execution, default_execution
from lottery_jax.types import Task

if TYPE_CHECKING:
    import xarray as xr

Arm = Literal[
    "ticket", "reinit", "reinit_raw", "random_mask", "shuffled_weights", "small_dense"
]


@dataclasses.dataclass(frozen=True)
class Config(Recipe):
    """Everything that a study is determined by, and where and how it runs."""

    levels: int = 16
    """Prunings after level 0, the dense network."""
    target_density: float | None = None
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
    tolerance: float = 0.002
    """How far above the dense error a matching ticket may be."""
    seed: int = 0
    """All keys follow from it and the replica's number."""
    replicas: int = 5
    """Independent runs, each with its own initialisation and noise."""
    out: str | None = None
    """Run folder; by default results/imp/PRESET-HASH."""
    devices: int | None = None
    """Devices that share the networks; None for all."""
    chunk: int | None = None
    """Networks that are vmapped at once on a device, 0 for all; None for as many as fit."""
    convolution: Method | None = None
    """How convolutions with a kernel per replica run; None for the platform's default."""
    precision: Precision | None = None
    """What operands of products are rounded to; None for the platform's default. Changes
    results, unlike devices, chunk and convolution, and so belongs to the run."""
    data_parallel: int = 1
    """Devices that share the batch of each network."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints."""


NOT_IDENTITY = (
    "levels",
    "target_density",
    "tolerance",
    "replicas",
    "out",
    "devices",
    "chunk",
    "convolution",
    "data_parallel",
    "checkpoint_seconds",
)
"""Fields that change no number of a level: a run can be extended in them."""

_LENET_FASHION = Config(
    data="fashion_mnist",
    model="lenet-300-100",
    batch_size=60,
    learning_rate=1.2e-3,
    steps="3000it",
    levels=12,
    replicas=3,
)
_LENET_MNIST = Config(
    data="mnist",
    model="lenet-300-100",
    initializer="glorot_normal",
    batch_size=60,
    learning_rate=1.2e-3,
    steps="50000it",
    scope="layerwise",
    rates=(("head", 0.1), ("dense", 0.2)),
    levels=19,
    replicas=5,
)
_OPEN_LTH = Config(
    validation=0,
    initializer="kaiming_normal",
    bias="torch",
    norm_scale="uniform",
    unbiased_variance=True,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.1,
    rule="open_lth",
    arms=("ticket", "reinit_raw", "random_mask"),
    levels=20,
    replicas=3,
    validate_every=391,
)
_OPEN_LTH_CIFAR = dataclasses.replace(
    _OPEN_LTH,
    data="cifar10",
    normalization="imagenet",
    augment=("flip", "crop"),
    weight_decay=1e-4,
    schedule="step",
    drops=("80ep", "120ep"),
    steps="160ep",
)
_RESNET20 = Config(
    data="cifar10",
    augment=("flip", "crop"),
    model="resnet-20",
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.1,
    weight_decay=1e-4,
    schedule="step",
    drops=("10000it", "12500it"),
    steps="15000it",
    levels=12,
    replicas=3,
    validate_every=500,
)

PRESETS: Mapping[str, Preset] = {
    "mnist1d": Preset(
        Config(),
        "The demo: MLP 40-100-100-10 on MNIST-1D, 5 replicas, 16 levels, no download. "
        "Under a minute on 2 cores.",
    ),
    "digits": Preset(
        Config(
            data="digits",
            batch_size=32,
            learning_rate=2e-3,
            steps="600it",
            levels=12,
            validate_every=50,
        ),
        "MLP 64-100-100-10 on 1,797 real 8x8 scans, no download. Under a minute.",
    ),
    "lenet-fashion": Preset(
        _LENET_FASHION,
        "LeNet-300-100 on Fashion-MNIST, Adam 1.2e-3, 3,000 steps, 3 replicas, 12 levels.",
    ),
    "lenet-mnist-paper": Preset(
        _LENET_MNIST,
        "Frankle and Carbin's numbers: LeNet-300-100 on MNIST, 50,000 steps, layerwise 20% "
        "and 10% for the output layer, 5 replicas. Hours on a CPU.",
    ),
    "open-lth-lenet": Preset(
        dataclasses.replace(
            _OPEN_LTH,
            data="mnist",
            model="lenet-300-100",
            momentum=0.0,
            exclude=("head",),
            steps="40ep",
            validate_every=469,
        ),
        "open_lth's mnist_lenet_300_100: SGD 0.1, 40 epochs, its counts, initialisation "
        "and untrained reinit; no validation split.",
    ),
    "open-lth-resnet20": Preset(
        dataclasses.replace(_OPEN_LTH_CIFAR, model="resnet-20"),
        "open_lth's cifar_resnet_20: 160 epochs, lr 0.1 with two drops, k = 0. GPU.",
    ),
    "open-lth-vgg16": Preset(
        dataclasses.replace(_OPEN_LTH_CIFAR, model="vgg-16", exclude=("head",)),
        "open_lth's cifar_vgg_16: 160 epochs, lr 0.1 with two drops, k = 0. GPU.",
    ),
    "resnet20-cifar10-standard": Preset(
        _RESNET20,
        "lr 0.1, batch 128, k = 0: the failure that Liu et al. and Gale et al. report; "
        "expect no gap between ticket and reinit. GPU.",
    ),
    "resnet20-cifar10-low": Preset(
        dataclasses.replace(_RESNET20, learning_rate=0.01),
        "Works because the learning rate is low (0.01), at the price of dense accuracy. GPU.",
    ),
    "resnet20-cifar10-warmup": Preset(
        dataclasses.replace(_RESNET20, learning_rate=0.03, warmup="10000it"),
        "Works because of 10,000 steps of warm-up to lr 0.03. GPU.",
    ),
    "resnet20-cifar10-rewind": Preset(
        dataclasses.replace(_RESNET20, rewind_step="500it"),
        "Works because weights are rewound to step 500 instead of 0. GPU.",
    ),
    "resnet20-cifar10-batch1024": Preset(
        dataclasses.replace(
            _RESNET20,
            batch_size=1024,
            steps="120ep",
            drops=("80ep", "100ep"),
            validate_every=220,
        ),
        "Works because large batches (1,024) make SGD less noisy (Maene et al.). GPU.",
    ),
    "resnet8-cifar10": Preset(
        dataclasses.replace(
            _RESNET20,
            model="resnet-8-8",
            batch_size=64,
            learning_rate=0.01,
            schedule="constant",
            drops=(),
            steps="1000it",
            fraction=0.6,
            levels=3,
            validate_every=250,
            arms=("ticket", "reinit"),
        ),
        "A narrow ResNet-8 at low learning rate, 60% per level, 1,000 steps: a residual "
        "network in about half an hour on 2 cores.",
    ),
    "oneshot-vs-iterative": Preset(
        dataclasses.replace(
            _LENET_FASHION,
            schedules=("geometric", "linear", "one_shot"),
            # Twelve equal steps to the density of geometric's level 12.
            linear_fraction=0.0776067,
            arms=("ticket",),
        ),
        "One-shot, geometric and linear schedules to the same densities, in one figure.",
    ),
    "conv2-cifar10": Preset(
        Config(
            data="cifar10",
            model="conv-2",
            initializer="glorot_normal",
            batch_size=60,
            learning_rate=2e-4,
            steps="20000it",
            scope="layerwise",
            rates=(("head", 0.1), ("conv", 0.1), ("dense", 0.2)),
            levels=14,
            replicas=5,
            validate_every=500,
        ),
        "Frankle and Carbin's Conv-2 on CIFAR-10 with their layerwise rates. GPU, or days.",
    ),
}


def plan(cfg: Config, steps_per_epoch: int) -> imp.Plan:
    """The protocol of a configuration.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    several = len(cfg.schedules) * len(cfg.retrains) > 1
    chains = tuple(
        imp.Chain(
            name="-".join([schedule, retrain][: 1 + (len(cfg.retrains) > 1)])
            if several
            else "imp",
            schedule=schedule,
            fraction=cfg.linear_fraction if schedule == "linear" else cfg.fraction,
            scope=cfg.scope,
            rates=cfg.rates,
            rule=cfg.rule,
            score=cfg.score,
            retrain=retrain,
        )
        for schedule in cfg.schedules
        for retrain in cfg.retrains
    )
    return imp.check(
        imp.Plan(
            steps=parse_step(cfg, "steps", steps_per_epoch),
            rewind_step=parse_step(cfg, "rewind_step", steps_per_epoch),
            chains=chains,
            arms=cfg.arms,
            validate_every=cfg.validate_every,
            optimizer=cfg.level_optimizer,
            random_scope=cfg.random_scope,
            seed=cfg.seed,
        )
    )


def levels(cfg: Config) -> int:
    """Number of prunings, from the target density if that is given.

    Raises:
      ValueError: there is no such number; names the field.
    """
    if cfg.target_density is None:
        if cfg.levels < 0:
            raise ValueError(f"levels={cfg.levels}; it must be 0 or more")
        return cfg.levels
    if not 0 < cfg.target_density <= 1:
        raise ValueError(f"target_density={cfg.target_density}; it must be in (0, 1]")
    return schedules.levels_to(cfg.target_density, cfg.fraction)


def check(cfg: Config, task: Task, protocol: imp.Plan) -> None:
    """Finds what makes no sense before a run folder is made.

    Raises:
      ValueError: names the field.
    """
    if cfg.replicas < 1:
        raise ValueError(f"replicas={cfg.replicas}; it must be 1 or more")
    for field in ("tolerance", "checkpoint_seconds"):
        if not getattr(cfg, field) >= 0:
            raise ValueError(f"{field}={getattr(cfg, field)}; it must be 0 or more")
    check_execution(launch.execution(cfg) or default_execution())
    params = jax.eval_shape(task.init, jax.random.key(0))[0]
    for field, patterns in (("exclude", cfg.exclude), ("rates", dict(cfg.rates))):
        try:
            masks.matching(params, tuple(patterns))
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
    prunable = task.prunable(params) if task.prunable else masks.prunable(params)
    masks.cuttable(params, prunable, task.exclude)
    for chain in protocol.chains:
        imp.keep_counts(chain, params, levels(cfg), prunable)


# --- running --------------------------------------------------------------------------


def run(cfg: Config, folder: pathlib.Path) -> "xr.Dataset | None":
    """Runs what is missing of a study in its folder, and returns all results.

    With several processes the first one returns them, the others None.
    """
    config = records.as_config(cfg)
    task = make_task(cfg)
    protocol = plan(cfg, task.steps_per_epoch)
    tx = make_optimizer(cfg, task.steps_per_epoch)
    check(cfg, task, protocol)
    number = levels(cfg)
    more = {"note": note} if (note := load_data(cfg).note) else {}
    # A ticket says what determined it, and not how far the study went.
    own = {name: x for name, x in config.items() if name not in NOT_IDENTITY}

    def one(group: pathlib.Path, ids: list[int]) -> "xr.Dataset":
        names = _names(protocol, ids)
        with display.progress(protocol, names, 0, number, group) as watch:
            study = imp.run(
                task,
                tx,
                protocol,
                levels=number,
                replicas=ids,
                execution=launch.execution(cfg),
                folder=group,
                checkpoint_seconds=cfg.checkpoint_seconds,
                metadata={"model": cfg.model, "task": cfg.data, "config": own},
                watch=watch,
            )
        return _dataset(study, protocol, ids, more)

    return groups.run(folder, config, NOT_IDENTITY, cfg.replicas, one, grows=True)


def _names(protocol: imp.Plan, ids: list[int]) -> list[str]:
    """What the networks of a study are called on the screen, in the order of its rows."""
    several = len(protocol.chains) > 1
    return [
        f"{f'{chain.name}: ' if several else ''}{arm} of replica {i}"
        for chain in protocol.chains
        for i in ids
        for arm in protocol.arms
    ]


def _dataset(
    study: imp.Study,
    protocol: imp.Plan,
    ids: list[int],
    more: Mapping[str, Any],
) -> "xr.Dataset":
    number = study.records["test_error"][1].shape[3]
    coordinates = {
        "chain": [chain.name for chain in protocol.chains],
        "arm": list(protocol.arms),
        "replica": ids,
        "level": range(number),
    }
    attributes = {
        **records.environment(),
        "execution": study.execution._asdict(),
        "execution_changes": [
            (c.level, c.step, c.execution._asdict()) for c in study.changes
        ],
        "rewind_step": protocol.rewind_step,
        "steps": protocol.steps,
        **more,
    }
    return records.dataset(study.records, coordinates, attributes)


def stored(cfg: Config, folder: pathlib.Path) -> "xr.Dataset | None":
    """The results in a folder, if they hold all that is asked for.

    Raises:
      ValueError: the folder holds a run with another configuration.
    """
    path = folder / "results.nc"
    if cfg.replicas < 1 or not records.intact(path):
        return None
    found = records.load(path)
    if found.sizes["level"] <= levels(cfg) or found.sizes["replica"] < cfg.replicas:
        return None
    # What it says of its size stays, when less is asked for.
    own = records.read_config(folder) or {}
    size = {name: own[name] for name in NOT_IDENTITY if name in own}
    records.claim_folder(folder, records.as_config(cfg) | size, NOT_IDENTITY)
    return found


def retrain(command: Command, folder: pathlib.Path) -> "xr.Dataset":
    """Trains one stored level again with changed fields.

    Raises:
      ValueError: a field that makes no sense, or tickets that do not fit it.
      FileNotFoundError: there are no tickets of that level; says of which there are.
    """
    cfg, source, level = command.config, command.source, command.level
    assert source is not None and level is not None
    task = make_task(cfg)
    protocol = plan(cfg, task.steps_per_epoch)
    tx = make_optimizer(cfg, task.steps_per_epoch)
    check(cfg, task, protocol)
    where = {i: group for group, ids in groups.groups(source, 0) for i in ids}
    ids = sorted(where)[: cfg.replicas]
    if len(ids) < cfg.replicas:
        raise ValueError(f"replicas={cfg.replicas}; {source} has {len(ids)}")
    found = _tickets(where, protocol, ids, level)
    # A random mask keeps weights that the level's tickets have lost.
    lost = level > 0 and "random_mask" in protocol.arms
    dense = _tickets(where, protocol, ids, 0) if lost else None
    params = jax.eval_shape(task.init, jax.random.key(0))[0]
    try:
        masks.check(found[0][0].mask, params)
    except ValueError as error:
        raise ValueError(
            f"--level {level} of {source} does not fit model={cfg.model!r} on "
            f"data={cfg.data!r}: {error}"
        ) from None
    origin = {
        "retrained_from": records.identity(
            records.read_config(source) or {}, NOT_IDENTITY
        ),
        "retrained_level": level,
    }
    config = records.as_config(cfg)
    records.claim_folder(folder, config | origin, NOT_IDENTITY)
    path = folder / "results.nc"
    if records.intact(path):
        results = records.load(path)
        if results["replica"].values.tolist() == ids:
            return results
    begin = time.monotonic()
    names = _names(protocol, ids)
    with display.progress(protocol, names, level, level, folder) as watch:
        study = imp.retrain(
            task,
            tx,
            protocol,
            found,
            level=level,
            replicas=ids,
            dense=dense,
            execution=launch.execution(cfg),
            watch=watch,
        )
    more = {"note": note} if (note := load_data(cfg).note) else {}
    results = _dataset(study, protocol, ids, origin | more)
    results = results.assign_coords(level=[level])
    seconds = time.monotonic() - begin
    results.attrs |= {"config": json.dumps(config), "seconds_last_call": seconds}
    records.save(path, results)
    return results


def _tickets(
    where: Mapping[int, pathlib.Path], protocol: imp.Plan, ids: list[int], level: int
) -> list[list[tickets.Ticket]]:
    """The tickets of a level, by chain and replica."""

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


def accuracy(results: "xr.Dataset", name: str = "test_error") -> "xr.DataArray":
    """Accuracy in percent; replicas that diverged are nan, by name."""
    return (100 * (1 - results[name])).where(results["diverged"] == 0)


def _early_stop(results: "xr.Dataset") -> "xr.DataArray":
    """The step of minimum validation loss; nan where diverged or not validated."""
    steps = results["early_stop_step"]
    return steps.where((steps >= 0) & (results["diverged"] == 0)).astype(float)


def judge(results: "xr.Dataset", tolerance: float) -> list[dict[str, Any]]:
    """The verdicts at each level of each chain: matching or winning, and better than what.

    Returns:
      One dict per chain, level and claim, with the density and a `verdicts.Verdict`.
    """
    rewind_step = int(results.attrs["rewind_step"])
    rows = []
    sound = results["diverged"] == 0
    error = results["test_error"].where(sound)
    stops = _early_stop(results).sel(arm="ticket")
    names = [f"replica {i}" for i in results["replica"].values]
    for chain in results["chain"].values:
        for level in results["level"].values[results["level"].values > 0]:
            at = error.sel(chain=chain, level=level)
            ticket = at.sel(arm="ticket").values
            claims = {}
            has_dense = 0 in results["level"]  # a retrained level has not
            if has_dense:
                dense = error.sel(chain=chain, arm="ticket", level=0).values
                claims["matching"] = verdicts.matching(
                    ticket, dense, tolerance, replicas=verdicts.Replicas(names)
                )
            if has_dense and rewind_step == 0:
                stop = stops.sel(chain=chain, level=level).values
                dense_stop = stops.sel(chain=chain, level=0).values
                validated = bool(np.isfinite(stops).any())
                claims["winning"] = verdicts.winning(
                    ticket,
                    dense,
                    rewind_step=0,
                    tolerance=tolerance,
                    early_stop_step=stop if validated else None,
                    dense_early_stop_step=dense_stop if validated else None,
                    replicas=verdicts.Replicas(names),
                )
            for arm in results["arm"].values:
                if arm != "ticket":
                    control = at.sel(arm=arm).values
                    claim = f"better than {arm.replace('_', ' ')}"
                    claims[claim] = verdicts.better(
                        ticket, control, claim=claim, replicas=verdicts.Replicas(names)
                    )
            density = results["density"].sel(chain=chain, arm="ticket", level=level)
            rows += [
                {
                    "chain": str(chain),
                    "level": int(level),
                    "density": float(density.mean()),
                    "claim": claim,
                    "verdict": verdict,
                }
                for claim, verdict in claims.items()
            ]
    return rows


def draw(results: "xr.Dataset", folder: pathlib.Path, title: str) -> pathlib.Path:
    """Draws the three figures of a study; returns the path of the first."""
    several = results.sizes["chain"] > 1
    lines, stops, density = {}, {}, []
    acc = accuracy(results)
    stop = _early_stop(results)
    for chain in results["chain"].values:
        for arm in results["arm"].values:
            label = f"{chain}: {arm}" if several else str(arm)
            lines[label] = acc.sel(chain=chain, arm=arm).values
            stops[label] = stop.sel(chain=chain, arm=arm).values
            x = results["density"].sel(chain=chain, arm=arm).mean("replica").values
            density.append(x)
    caption = f"{title}\nmean of {results.sizes['replica']} replicas, bars: min to max"
    first = folder / "figures" / "accuracy"
    dense = float(acc.sel(arm="ticket").isel(chain=0, level=0).mean())
    figure = plots.against_density(
        np.array(density),
        lines,
        ylabel="test accuracy at the end of training (%)",
        title=caption,
        baseline=dense if results["level"].values[0] == 0 else None,
    )
    plots.save(figure, first)
    if np.isfinite(list(stops.values())).any():
        figure = plots.against_density(
            np.array(density),
            stops,
            ylabel="step of minimum validation loss",
            title=caption,
        )
        plots.save(figure, folder / "figures" / "early_stop")
    ticket = results.sel(arm="ticket").isel(chain=0).mean("replica", keep_attrs=False)
    layers = {
        str(name): ticket["layer_density"].sel(layer=name).values
        for name in results["layer"].values
    }
    figure = plots.layer_densities(ticket["density"].values, layers, title)
    plots.save(figure, folder / "figures" / "layer_density")
    return first.with_suffix(".png")


def report(
    results: "xr.Dataset", cfg: Config, preset: str, folder: pathlib.Path
) -> None:
    """Figures, table and verdicts, on the disk and on the screen."""
    figure = draw(results, folder, f"{preset}: {cfg.model} on {cfg.data}")
    judged = judge(results, cfg.tolerance)
    table = display.density_table(results, accuracy(results))
    display.leave(folder, judged, [table], ())
    display.show(table, judged, results, figure)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    command = launch.parse(PRESETS, "mnist1d", __doc__ or "", arguments)
    cfg = command.config

    def work() -> None:
        digits = records.identity(records.as_config(cfg), NOT_IDENTITY)
        if command.source is not None:
            if processes.count() > 1:
                raise ValueError("--from: a level is trained again by one process")
            name = f"level{command.level:02d}-{digits}"
            folder = pathlib.Path(cfg.out or command.source / "retrained" / name)
            results: xr.Dataset | None = retrain(command, folder)
        else:
            name = f"{command.preset}-{digits}"
            folder = pathlib.Path(cfg.out or pathlib.Path("results", "imp", name))
            found = stored(cfg, folder)
            results = run(cfg, folder) if found is None else found
        if results is not None and processes.index() == 0:
            report(results, cfg, command.preset, folder)

    return launch.guarded(work, command.processes)


if __name__ == "__main__":
    sys.exit(main())
