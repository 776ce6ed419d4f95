"""Today's library in the words of tomorrow's: one `where`, one `Progress`, one `Measure`.

Every call of the experiments into the library that is executed somewhere, lies somewhere,
is watched or measures paths goes through here. When the library takes these things itself,
this module becomes import lines:

    Where, Progress          lottery_jax.execution
    Measure                  lottery_jax.connectivity
    run_levels, retrain      lottery_jax.imp.run, .retrain
    run_instability          lottery_jax.connectivity.run
    train_trunk              lottery_jax.connectivity.branches.train_trunk
    train_bends              lottery_jax.training.train of the curve as a task
    paths, along_curve, plane   lottery_jax.connectivity.paths, .error_along_curve, .plane
    progress, stages, branch_watcher, points_watcher   for `rewinding.subnetworks` only
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import connectivity, imp, training, trees
from lottery_jax.connectivity import branches, linear
from lottery_jax.connectivity.curves import Kind
from lottery_jax.connectivity.points import BatchNorm
from lottery_jax.replicas import (
    Execution,
    default_execution,
    padded,
    parallel,
    place,
    shared,
)
from lottery_jax.types import Array, Key, Network, Params, Task

Tx: TypeAlias = optax.GradientTransformation

# --- the things -----------------------------------------------------------------------


class Curves(NamedTuple):
    """What was recorded while networks trained.

    Attributes:
      steps: of the validations, ascending.
      values: by name (train_NAME, validation_NAME), `[R, V]`; nan is not yet.
      first_nan: the first step at which each diverged, `[R]`; nan is never.
    """

    steps: Sequence[int]
    values: dict[str, np.ndarray]
    first_nan: np.ndarray


class Progress(NamedTuple):
    """How far something has come.

    Attributes:
      stage: what is being done: "level", "trunk", "paths" ...
      done: steps, or points.
      total: of them, at the end of the stage.
      rows: how many networks, or pairs.
      start: where the stage began.
      level: of pruning, or None.
      resumed: whether it was just taken up from a checkpoint.
      curves: what was recorded so far, or None.
    """

    stage: str
    done: int
    total: int
    rows: int
    start: int = 0
    level: int | None = None
    resumed: bool = False
    curves: Curves | None = None


@dataclasses.dataclass(frozen=True)
class Where:
    """How something is executed, and where it lies.

    Attributes:
      execution: devices, chunk ...; None for stored or default settings.
      folder: where checkpoints go; None for nowhere.
      checkpoint_seconds: time between them.
      watch: called with a `Progress` as it goes on.
    """

    execution: Execution | None = None
    folder: pathlib.Path | None = None
    checkpoint_seconds: float = 30.0
    watch: Callable[[Progress], None] | None = None

    def below(self, name: str) -> "Where":
        """The same in a folder below."""
        return dataclasses.replace(self, folder=self.folder and self.folder / name)


class Measure(NamedTuple):
    """How paths are measured: points, splits, BatchNorm, batches for its statistics."""

    alphas: int = linear.ALPHAS
    splits: tuple[str, ...] = ("train", "test")
    batch_norm: BatchNorm | None = None
    statistics_batches: int = 16


# --- the calls ------------------------------------------------------------------------


def run_levels(task: Task, tx: Tx, plan: imp.Plan, *, where: Where, **own: Any) -> Any:
    """`imp.run`."""
    watch = _of_moments(plan, where.watch)
    return imp.run(task, tx, plan, watch=watch, **own, **_how(where))


def retrain(
    task: Task, tx: Tx, plan: imp.Plan, found: Any, *, where: Where, **own: Any
) -> Any:
    """`imp.retrain`."""
    watch = _of_moments(plan, where.watch)
    execution = where.execution
    return imp.retrain(task, tx, plan, found, watch=watch, execution=execution, **own)


def run_instability(
    task: Task, tx: Tx, plan: connectivity.Plan, *, where: Where, **own: Any
) -> connectivity.Analysis:
    """`connectivity.run`."""

    def watch(at: connectivity.Progress) -> None:
        _tell(where, *at)

    return connectivity.run(task, tx, plan, watch=watch, **own, **_how(where))


def train_trunk(*what: Any, where: Where, every: int) -> branches.Trunk:
    """`connectivity.branches.train_trunk`."""
    return branches.train_trunk(
        *what,
        every=every,
        execution=where.execution,
        folder=where.folder,
        watch=partial(_tell, where, "networks"),
    )


def paths(
    task: Task, networks: Network, pairs: Any, measure: Measure, *, where: Where
) -> linear.Path:
    """`connectivity.paths`."""
    return linear.paths(
        task,
        networks,
        pairs,
        execution=where.execution,
        folder=where.folder,
        watch=lambda done, total: _tell(where, "paths", done, total, len(pairs)),
        **measure._asdict(),
    )


def along_curve(
    task: Task,
    a: Network,
    b: Network,
    bends: tuple[Params, ...],
    measure: Measure,
    *,
    kind: Kind,
    where: Where,
) -> linear.Path:
    """`connectivity.error_along_curve`."""
    options = {**measure._asdict(), "execution": where.execution}
    alphas = options.pop("alphas")
    return connectivity.error_along_curve(
        task, a, b, bends, alphas, kind=kind, **options
    )


def plane(*what: Any, measure: Measure, size: int, where: Where) -> Any:
    """`connectivity.plane`."""
    options = {**measure._asdict(), "execution": where.execution}
    del options["alphas"]
    return connectivity.plane(*what, size=size, **options)


def _how(where: Where) -> dict[str, Any]:
    return {
        "execution": where.execution,
        "folder": where.folder,
        "checkpoint_seconds": where.checkpoint_seconds,
    }


def train_bends(
    task: Task,
    tx: Tx,
    pairs: Sequence[tuple[Network, Network]],
    noise: Key,
    steps: int,
    *,
    kind: Kind,
    where: Where,
) -> list[Params]:
    """One bend per pair, all trained together."""
    execution = where.execution or default_execution()
    functions = task.functions
    number = len(pairs)
    rows = np.minimum(np.arange(padded(number, execution)), number - 1)
    a, b = (
        trees.rows(trees.stack([pair[side] for pair in pairs]), rows) for side in (0, 1)
    )

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

    run = parallel(one, (None, 0, 0, 0), execution)
    data = jax.device_put(task.data, shared(execution))
    found: Array = run(data, *place((a, b, noise[rows]), execution))
    return [trees.rows(jax.tree.map(jnp.asarray, found), i) for i in range(number)]


# --- progress -------------------------------------------------------------------------


def _tell(
    where: Where, stage: str, done: int, total: int, rows: int, resumed: bool = False
) -> None:
    if where.watch:
        where.watch(Progress(stage, done, total, rows, resumed=resumed))


def _of_moments(
    plan: imp.Plan, watch: Callable[[Progress], None] | None
) -> Callable[[imp.Moment], None] | None:
    columns = [*range(plan.validate_every, plan.steps, plan.validate_every), plan.steps]

    def tell(at: imp.Moment) -> None:
        rows = slice(at.rows)
        recorded = {name: x[rows] for name, x in at.curves._asdict().items()}
        first_nan = recorded.pop("first_nan")
        curves = Curves(columns, recorded, first_nan)
        assert watch is not None
        steps = at.step, at.stop, at.rows, at.start
        watch(Progress("level", *steps, at.level, at.resumed, curves))

    return tell if watch else None


@contextlib.contextmanager
def progress(
    plan: imp.Plan, names: Sequence[str], first: int, last: int, folder: pathlib.Path
) -> Iterator[Callable[[imp.Moment], None] | None]:
    """A watcher for `imp.run`; `first` is a level."""
    from experiments import display

    with display.progress(folder, names=names, last=last) as watch:
        yield _of_moments(plan, watch)


@contextlib.contextmanager
def stages(what: str = "") -> Iterator[Callable[[Progress], None]]:
    """A watcher for what has stages."""
    from experiments import display

    with display.progress(None, what) as watch:
        yield watch


def branch_watcher(
    watch: Callable[[Progress], None],
) -> Callable[[int, int, int, bool], None]:
    """For `connectivity.branches.train`."""
    return lambda step, stop, rows, resumed: watch(
        Progress("branches", step, stop, rows, resumed=resumed)
    )


def points_watcher(
    watch: Callable[[Progress], None], rows: int
) -> Callable[[int, int], None]:
    """For `connectivity.paths`; rows is the number of pairs."""
    return lambda done, total: watch(Progress("paths", done, total, rows))
