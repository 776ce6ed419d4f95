"""One level of a study: every arm of every chain and replica, trained together.

A *row* is one network that is trained: (chain, replica, arm). All rows of all levels go
through the same few compiled programs; masks, start steps and data order are arguments.
`lottery_jax.imp` decides what each level starts from; this module trains and tests it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import arms, replicas, training
from lottery_jax.replicas import Execution
from lottery_jax.types import Array, Key, Mask, Network, PyTree, Task, TrainState


class Rows(NamedTuple):
    """The networks of a study, in the order chain, replica, arm; then padding.

    Attributes:
      chain: index of the chain, int32 `[P]`.
      replica: position of the replica (not its id), int32 `[P]`.
      arm: index into `arms.ARMS`, int32 `[P]`.
      number: how many rows are real; the others repeat the last one and never train.
      keys: the keys of each row's replica, `[P]` each.
    """

    chain: np.ndarray
    replica: np.ndarray
    arm: np.ndarray
    number: int
    keys: arms.ReplicaKeys

    @property
    def fresh(self) -> np.ndarray:
        """Which rows have an initialisation and a noise of their own, bool `[P]`."""
        return np.isin(self.arm, [arms.ARMS.index(name) for name in arms.FRESH])

    def is_arm(self, name: str) -> np.ndarray:
        """Which rows belong to an arm, bool `[P]`."""
        return self.arm == arms.ARMS.index(name)


def make_rows(
    chains: int,
    arm_names: tuple[str, ...],
    ids: tuple[int, ...],
    seed: int,
    execution: Execution,
) -> Rows:
    """Lays out the rows, padded to a multiple of the devices."""
    indices = [arms.ARMS.index(name) for name in arm_names]
    grid = [(c, r, a) for c in range(chains) for r in range(len(ids)) for a in indices]
    number = len(grid)
    grid += [grid[-1]] * (replicas.padded(number, execution) - number)
    chain, replica, arm = (np.array(column, np.int32) for column in zip(*grid))
    # One small program: made one by one, the keys took seconds of a run's start.
    draw = jax.jit(
        jax.vmap(partial(arms.replica_keys, seed)),
        out_shardings=replicas.sharded(execution),
    )
    keys = draw(np.array(ids, np.int32)[replica])
    return Rows(chain, replica, arm, number, keys)


class Running(NamedTuple):
    """All rows in the middle of a level.

    Attributes:
      state: the networks in training, `[P]`.
      best: the networks at their minimum of validation loss so far, `[P]`.
      best_loss: that loss, float32 `[P]`; infinite before the first validation.
      best_step: its step, int32 `[P]`.
    """

    state: TrainState
    best: Network
    best_loss: Array
    best_step: Array


class Programs(NamedTuple):
    """What is compiled, once for all levels; every argument has a row axis but `shared`.

    Attributes:
      init: (init key) -> network, stream state.
      order: (noise key) -> data order.
      start: (network, stream state, mask, old optimizer state, step) -> running.
      train: (data, running, noise key, order, a, b, offset, active) -> running, metrics.
      validate: (data, running, step, active) -> running, metrics.
      test: (data, network) -> metrics.
      take: (tree, indices) -> the rows of a tree at `indices`.
    """

    init: Callable[..., Any]
    order: Callable[..., Any]
    start: Callable[..., Any]
    train: Callable[..., Any]
    validate: Callable[..., Any]
    test: Callable[..., Any]
    take: Callable[..., Any]


def compile_programs(
    task: Task,
    tx: optax.GradientTransformation,
    execution: Execution,
    *,
    epochs: int,
    capacity: int,
    keep_optimizer: bool,
) -> Programs:
    """Builds the programs; they compile at their first call.

    Args:
      task: what is trained; its data is not looked at.
      tx: the optimizer.
      execution: devices and chunk.
      epochs: how many epochs a row may reach into.
      capacity: the longest segment.
      keep_optimizer: start levels from the stored optimizer state instead of a new one.
    """
    # Evaluation has one key: it draws nothing that may differ between steps or rows.
    functions = task.functions
    parallel = partial(replicas.parallel, execution=execution)

    def init(key: Key) -> tuple[Network, PyTree]:
        params, model_state, stream_state = task.init(key)
        return Network(params, model_state), stream_state

    def start(
        network: Network, stream: PyTree, mask: Mask, old: PyTree, step: Array
    ) -> Running:
        state = training.start(tx, network, stream, mask, step)
        if keep_optimizer:
            kept = training.transforms.mask_state(old, mask)
            # Fine-tuning goes on elsewhere in the schedule than where this was kept.
            kept = training.transforms.at_schedule_step(kept, step)
            # At step 0 there is nothing to keep yet.
            state = state._replace(
                opt_state=jax.tree.map(
                    lambda k, n: jnp.where(step > 0, k, n), kept, state.opt_state
                )
            )
        network = Network(state.params, state.model_state)
        return Running(state, network, jnp.float32(jnp.inf), jnp.int32(0))

    def train(
        data: PyTree,
        running: Running,
        key: Key,
        order: Array,
        a: Array,
        b: Array,
        offset: Array,
        active: Array,
    ) -> tuple[Running, dict[str, Array]]:
        state, metrics = training.train(
            functions._replace(data=data),
            tx,
            running.state,
            key,
            order,
            a,
            b,
            capacity=capacity,
            offset=offset,
            active=active,
        )
        return running._replace(state=state), metrics

    def validate(
        data: PyTree, running: Running, step: Array, active: Array
    ) -> tuple[Running, dict[str, Array]]:
        state = running.state
        metrics = task.evaluate(
            state.params, state.model_state, data, jax.random.key(0), "validation"
        )
        better = active & (metrics["loss"] < running.best_loss)
        network = Network(state.params, state.model_state)
        running = running._replace(
            best=jax.tree.map(
                lambda new, old: jnp.where(better, new, old), network, running.best
            ),
            best_loss=jnp.where(better, metrics["loss"], running.best_loss),
            best_step=jnp.where(better, step, running.best_step),
        )
        metrics = {
            name: jnp.where(active, value, jnp.nan) for name, value in metrics.items()
        }
        return running, metrics

    def test(data: PyTree, network: Network) -> dict[str, Array]:
        return task.evaluate(
            network.params, network.model_state, data, jax.random.key(0), "test"
        )

    return Programs(
        init=parallel(init, (0,)),
        order=parallel(lambda key: training.orders(functions, key, epochs), (0,)),
        start=parallel(start, (0, 0, 0, 0, 0)),
        train=parallel(train, (None, 0, 0, 0, None, None, 0, 0)),
        validate=parallel(validate, (None, 0, None, 0)),
        test=parallel(test, (None, 0)),
        take=jax.jit(
            lambda tree, indices: jax.tree.map(lambda x: x[indices], tree),
            out_shardings=replicas.sharded(execution),
        ),
    )


class Timeline(NamedTuple):
    """When each row trains during a level.

    Attributes:
      join: the step at which a row starts, int32 `[P]`.
      offset: added to the step for its schedule and noise, int32 `[P]`.
      stop: the step at which all rows end.
      every: validate at multiples of this, and at the end.
      marks: steps that must be the end of a segment (rewind steps).
    """

    join: np.ndarray
    offset: np.ndarray
    stop: int
    every: int
    marks: tuple[int, ...]

    def validation_steps(self) -> list[int]:
        """The steps at which a dense run is validated, the last one included."""
        return sorted({*range(self.every, self.stop, self.every), self.stop})

    def segments(self, after: int | None = None) -> list[tuple[int, int]]:
        """The segments of this level, or those that are left after a step."""
        first = int(self.join.min()) if after is None else after
        marks = {*self.marks, *(int(j) for j in self.join)}
        return training.segments(first, self.stop, self.every, marks)


class Curves(NamedTuple):
    """What is recorded during a level, one column per validation step; nan = not yet.

    Attributes:
      train_loss: mean over the steps since the last column, float32 `[P, V]`.
      train_error: likewise, in [0, 1].
      validation_loss: float32 `[P, V]`.
      validation_error: in [0, 1].
      first_nan: the first step whose training loss was not finite, float32 `[P]`; nan
        for a row that never diverged.
    """

    train_loss: np.ndarray
    train_error: np.ndarray
    validation_loss: np.ndarray
    validation_error: np.ndarray
    first_nan: np.ndarray


def empty_curves(rows: int, columns: int) -> Curves:
    """Curves in which nothing has happened yet."""

    def nan(*shape: int) -> np.ndarray:
        return np.full(shape, np.nan, np.float32)

    wide = (rows, columns)
    return Curves(nan(*wide), nan(*wide), nan(*wide), nan(*wide), nan(rows))


def run_level(
    programs: Programs,
    rows: Rows,
    data: PyTree,
    order: Array,
    noise: Key,
    timeline: Timeline,
    running: Running,
    curves: Curves,
    execution: Execution,
    after: int | None = None,
    validates: bool = True,
) -> Iterator[tuple[int, Running, Curves]]:
    """Trains all rows to the end of a level; yields after every segment.

    Args:
      programs: from `compile_programs`.
      rows: the layout.
      data: the task's data, on the devices.
      order: the rows' data orders.
      noise: the rows' noise keys.
      timeline: who trains when.
      running: the rows at the start, or where they were interrupted.
      curves: what was recorded so far; not changed in place.
      execution: the devices that the rows lie on.
      after: the step after which to go on, None for the start of the level.
      validates: whether the task has a validation split.

    Yields:
      (step, running, curves) after each segment.
    """
    columns = timeline.validation_steps()
    offset = replicas.place(timeline.offset, execution)
    real = np.arange(len(rows.arm)) < rows.number
    since: list[dict[str, np.ndarray]] = []
    for a, b in timeline.segments(after):
        active_host = (timeline.join <= a) & real
        active = replicas.place(active_host, execution)
        running, metrics = programs.train(
            data, running, noise, order, np.int32(a), np.int32(b), offset, active
        )
        curves = Curves(*(x.copy() for x in curves))
        seen = {name: np.asarray(x)[:, : b - a] for name, x in metrics.items()}
        bad = ~np.isfinite(seen["loss"]) & active_host[:, None]
        new = bad.any(axis=1) & np.isnan(curves.first_nan)
        curves.first_nan[new] = (a + bad.argmax(axis=1))[new]
        since.append(seen)
        if b in columns:
            column = columns.index(b)
            curves.train_loss[:, column] = _mean_since(since, "loss")
            curves.train_error[:, column] = _mean_since(since, "error")
            since = []
            if validates:
                running, metrics = programs.validate(data, running, np.int32(b), active)
                curves.validation_loss[:, column] = np.asarray(metrics["loss"])
                curves.validation_error[:, column] = np.asarray(metrics["error"])
        yield b, running, curves


def _mean_since(since: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """The mean of a metric over the steps a row trained; nan for none or no metric."""
    if any(name not in seen for seen in since):
        return np.full(since[0]["loss"].shape[0], np.nan, np.float32)
    values = np.concatenate([seen[name] for seen in since], axis=1)
    # Steps before a row joined are nan in `loss` too, as are those after it diverged.
    steps = np.isfinite(np.concatenate([seen["loss"] for seen in since], axis=1))
    total = np.where(steps, values, 0).sum(axis=1)
    return np.where(steps.any(axis=1), total / np.maximum(steps.sum(axis=1), 1), np.nan)
