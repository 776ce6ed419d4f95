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
from typing import Any, NamedTuple

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


def run_levels(
    task: Task,
    tx: optax.GradientTransformation,
    plan: imp.Plan,
    *,
    levels: int,
    replicas: Sequence[int],
    where: Where,
    metadata: dict[str, Any] | None = None,
) -> imp.Study:
    """`imp.run`."""
    return imp.run(
        task,
        tx,
        plan,
        levels=levels,
        replicas=replicas,
        metadata=metadata,
        execution=where.execution,
        folder=where.folder,
        checkpoint_seconds=where.checkpoint_seconds,
        watch=_of_moments(plan, where.watch),
    )


def retrain(
    task: Task,
    tx: optax.GradientTransformation,
    plan: imp.Plan,
    found: Any,
    *,
    level: int,
    replicas: Sequence[int],
    dense: Any,
    where: Where,
) -> imp.Study:
    """`imp.retrain`."""
    return imp.retrain(
        task,
        tx,
        plan,
        found,
        level=level,
        replicas=replicas,
        dense=dense,
        execution=where.execution,
        watch=_of_moments(plan, where.watch),
    )


def run_instability(
    task: Task,
    tx: optax.GradientTransformation,
    plan: connectivity.Plan,
    *,
    replicas: Sequence[int],
    where: Where,
) -> connectivity.Analysis:
    """`connectivity.run`."""
    return connectivity.run(
        task,
        tx,
        plan,
        replicas=replicas,
        execution=where.execution,
        folder=where.folder,
        checkpoint_seconds=where.checkpoint_seconds,
        watch=lambda at: _tell(where, *at[:4], resumed=at.resumed),
    )


def train_trunk(
    task: Task,
    tx: optax.GradientTransformation,
    init: Key,
    noise: Key,
    steps: Sequence[int],
    *,
    every: int,
    where: Where,
) -> branches.Trunk:
    """`connectivity.branches.train_trunk`."""
    return branches.train_trunk(
        task,
        tx,
        init,
        noise,
        steps,
        every=every,
        execution=where.execution,
        folder=where.folder,
        watch=lambda done, total, rows, resumed: _tell(
            where, "networks", done, total, rows, resumed=resumed
        ),
    )


def paths(
    task: Task,
    networks: Network,
    pairs: Sequence[tuple[int, int]],
    measure: Measure,
    *,
    where: Where,
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
    return connectivity.error_along_curve(
        task,
        a,
        b,
        bends,
        measure.alphas,
        kind=kind,
        execution=where.execution,
        **_but_alphas(measure),
    )


def plane(
    task: Task,
    a: Network,
    b: Network,
    c: Network,
    measure: Measure,
    *,
    size: int,
    where: Where,
) -> Any:
    """`connectivity.plane`."""
    return connectivity.plane(
        task, a, b, c, size=size, execution=where.execution, **_but_alphas(measure)
    )


def train_bends(
    task: Task,
    tx: optax.GradientTransformation,
    pairs: Sequence[tuple[Network, Network]],
    noise: Key,
    steps: int,
    *,
    kind: Kind,
    where: Where,
) -> list[Params]:
    """One bend per pair, all trained together.

    Args:
      task: of the networks.
      tx: the optimizer.
      pairs: the two ends of each curve.
      noise: a noise key for each.
      steps: how long.
      kind: of curve.
      where: its execution.
    """
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


def _but_alphas(measure: Measure) -> dict[str, Any]:
    return {name: x for name, x in measure._asdict().items() if name != "alphas"}


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
        watch(
            Progress(
                "level",
                at.step,
                at.stop,
                at.rows,
                at.start,
                at.level,
                at.resumed,
                curves,
            )
        )

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
