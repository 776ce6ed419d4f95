"""Branching: one trunk per initialisation, and many continuations under other noise.

    trunk = branches.train_trunk(task, tx, keys.init, keys.noise, steps=(0, 100, 300))
    starts, joins = branches.starts(trunk)                      # [steps * replicas]
    ends = branches.train(task, tx, starts, joins, noise, stop=3000)

A trunk is trained once, and the whole training state is kept at every rewind step. All
branches then train as one batch: each joins when the common step counter reaches its own
rewind step, so nothing is computed twice. Branches of one state differ in the noise key
(data order, augmentation) and in nothing else: weights, statistics, optimizer state and
position in the schedule are those of the trunk, bit for bit.

On a CPU a row costs only the steps it trains. Where rows are vmapped (`chunk` other than
1) rows that have not joined are computed and thrown away.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import arms, engine, replicas, training
from lottery_jax.connectivity import points
from lottery_jax.engine import Curves, Running, Timeline
from lottery_jax.replicas import Execution, check_execution, default_execution
from lottery_jax.storage import checkpoints
from lottery_jax.types import Key, Network, Task, TrainState


class Trunk(NamedTuple):
    """Networks on their way, kept at the rewind steps.

    Attributes:
      steps: the rewind steps, rising.
      states: the whole training state at each, leading axes `[steps, replicas]`.
    """

    steps: tuple[int, ...]
    states: TrainState

    def at(self, step: int) -> TrainState:
        """The states at a step, `[replicas]`.

        Raises:
          ValueError: this step was not kept; says which were.
        """
        if step not in self.steps:
            raise ValueError(f"step {step} was not kept; there are {self.steps}")
        index = self.steps.index(step)
        return jax.tree.map(lambda x: x[index], self.states)


class Branches(NamedTuple):
    """Networks at the end of training.

    Attributes:
      networks: leading axis `[S]`.
      curves: training loss and error by segment, see `engine.Curves`; `first_nan` is the
        step at which a branch diverged, nan for one that did not.
      execution: the settings that were used.
    """

    networks: Network
    curves: Curves
    execution: Execution


Watcher: TypeAlias = Callable[[int, int, int, bool], None]
"""Called with (step, last step, rows, whether taken up from a checkpoint just now)."""


def branch_keys(noise: Key, number: int) -> Key:
    """The noise keys of a replica's branches, `[number]`, apart from its trunk's.

    Args:
      noise: the replica's noise key.
      number: of branches.
    """
    # Roles 0 to 3 of the key itself are taken by `training`.
    root = jax.random.fold_in(noise, 0x0B4A)
    return jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(number))


def train_trunk(
    task: Task,
    tx: optax.GradientTransformation,
    init: Key,
    noise: Key,
    steps: Sequence[int],
    *,
    execution: Execution | None = None,
    every: int = 1000,
    folder: pathlib.Path | str | None = None,
    watch: Watcher | None = None,
) -> Trunk:
    """Trains one dense network per replica to the last rewind step, and keeps all states.

    Args:
      task: what is trained.
      tx: the optimizer, with its schedule.
      init: init keys, `[R]`.
      noise: noise keys, `[R]`.
      steps: the rewind steps; 0 is the initialisation.
      execution: devices and chunk; None for the platform's default.
      every: length of the longest segment.
      folder: where a checkpoint is written at every rewind step. A folder with one is
        continued from there.
      watch: called after each segment.

    Raises:
      ValueError: no steps, or negative ones; a checkpoint of another trunk.
      checkpoints.CorruptCheckpointError: the folder holds no intact checkpoint.
    """
    wanted = tuple(sorted(set(steps)))
    if not wanted or wanted[0] < 0:
        raise ValueError(f"steps={tuple(steps)}; there must be some, 0 or more")
    execution = check_execution(execution or default_execution())
    number = init.shape[0]

    def first(key: Key) -> TrainState:
        params, model_state, stream_state = task.init(key)
        mask = jax.tree.map(lambda p: jnp.ones(p.shape, jnp.bool_), params)
        network = Network(params, model_state)
        return training.start(tx, network, stream_state, mask)

    rows = np.minimum(np.arange(replicas.padded(number, execution)), number - 1)
    drawn = replicas.parallel(first, (0,), execution)(
        replicas.place(init[rows], execution)
    )
    state = jax.tree.map(lambda x: x[:number], _host(drawn))
    kept = [state] * (wanted[0] == 0)
    after = None
    store = None if folder is None else pathlib.Path(folder)
    own: dict[str, Any] = {"steps": list(wanted), "number": number}
    own["keys"] = points.fingerprint(init, noise)
    if store is not None and (found := checkpoints.metadata(store)) is not None:
        _check_same(store, found, own, "a trunk")
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((found["kept"], *x.shape), x.dtype), state
        )
        restored = checkpoints.restore(store, like)
        assert restored is not None
        stacked = _host(restored[0])
        kept = [
            jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(found["kept"])
        ]
        state, after = kept[-1], wanted[len(kept) - 1]
        if watch:
            watch(after, wanted[-1], number, True)
    if len(kept) < len(wanted):
        joins = np.zeros(number, np.int32)
        for step, getter, _ in _train(
            task,
            tx,
            state,
            joins,
            noise,
            wanted[-1],
            execution,
            every,
            wanted,
            watch,
            after=after or None,
        ):
            if step not in wanted:
                continue
            kept.append(getter())
            if store is not None:
                metadata = own | {"kept": len(kept)}
                checkpoints.save(store, _stack(kept), metadata)
    return Trunk(wanted, _stack(kept))


def _stack(states: Sequence[TrainState]) -> TrainState:
    def stack(*leaves: Any) -> Any:
        return (jnp if _is_key(leaves[0]) else np).stack(leaves)

    return jax.tree.map(stack, *states)


def _is_key(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def _host(tree: Any) -> Any:
    """NumPy arrays; typed keys, which a stream state may hold, stay what they are."""
    return jax.tree.map(lambda x: x if _is_key(x) else np.asarray(x), tree)


def _check_same(
    store: pathlib.Path, found: Any, own: dict[str, Any], what: str
) -> None:
    """Raises a ValueError if a folder holds something of another kind; names the field."""
    for name, value in own.items():
        if found.get(name) != value:
            raise ValueError(
                f"{store} holds {what} with {name}={found.get(name)}, not {value}; "
                "continue it with what it began with, or choose another folder"
            )


def train(
    task: Task,
    tx: optax.GradientTransformation,
    starts: TrainState,
    joins: Sequence[int] | np.ndarray,
    noise: Key,
    stop: int,
    *,
    execution: Execution | None = None,
    every: int = 1000,
    folder: pathlib.Path | str | None = None,
    checkpoint_seconds: float = 30.0,
    watch: Watcher | None = None,
) -> Branches:
    """Trains branches to the end, all as one batch of rows.

    Args:
      task: what is trained.
      tx: the optimizer, with its schedule; where a branch stands in it is part of its
        state.
      starts: the states that branches start from, leading axis `[S]`; each row's mask
        stays what it is.
      joins: the step at which each row starts, int `[S]`.
      noise: noise keys, `[S]`.
      stop: the step at which all end.
      execution: devices and chunk; None for the stored ones or the platform's default.
      every: length of the longest segment; a column of the curves each.
      folder: where checkpoints go. A folder with one is continued from there.
      checkpoint_seconds: time between checkpoints.
      watch: called after each segment.

    Raises:
      ValueError: arguments that do not fit each other, or a checkpoint of other branches.
      checkpoints.CorruptCheckpointError: the folder holds no intact checkpoint.
    """
    joins = np.asarray(joins, np.int32)
    number = jax.tree.leaves(starts.params)[0].shape[0]
    if joins.shape != (number,) or noise.shape != (number,):
        raise ValueError(
            f"joins has shape {joins.shape} and noise {noise.shape}; both must be "
            f"({number},), one for each start"
        )
    if joins.min() < 0 or joins.max() >= stop:
        raise ValueError(
            f"joins={joins.max() if joins.max() >= stop else joins.min()}; rows must "
            f"start in [0, {stop}), the steps of a training run"
        )
    store = None if folder is None else pathlib.Path(folder)
    found = None if store is None else checkpoints.metadata(store)
    if execution is None and found is not None:
        stored = Execution(**found["execution"])
        execution = stored if stored.devices <= jax.local_device_count() else None
    execution = check_execution(execution or default_execution())
    timeline = Timeline(joins, np.zeros_like(joins), stop, every, ())
    state, curves = (
        starts,
        engine.empty_curves(number, len(timeline.validation_steps())),
    )
    after = None
    own: dict[str, Any] = {"joins": joins.tolist(), "stop": stop, "every": every}
    own["keys"] = points.fingerprint(noise, starts.params)
    if store is not None and found is not None:
        _check_same(store, found, own, "branches")
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, curves)
        )
        restored = checkpoints.restore(store, like)
        assert restored is not None
        # On the host, where curves are written to.
        (state, curves), after = _host(restored[0]), found["step"]
        if watch:
            watch(after, stop, number, True)
    last = time.monotonic()
    if after != stop:
        segments = _train(
            task,
            tx,
            state,
            joins,
            noise,
            stop,
            execution,
            every,
            (),
            watch,
            curves,
            after,
        )
        for step, getter, recorded in segments:
            # Not within a column of the curves: its mean would begin anew.
            due = step == stop or (
                store is not None
                and step % every == 0
                and time.monotonic() - last >= checkpoint_seconds
            )
            if not due:
                continue
            state, curves = getter(), recorded
            if store is not None:
                metadata = own | {"step": step, "execution": execution._asdict()}
                checkpoints.save(store, (state, curves), metadata)
                last = time.monotonic()
    network = Network(state.params, state.model_state)
    return Branches(jax.tree.map(np.asarray, network), curves, execution)


def _train(
    task: Task,
    tx: optax.GradientTransformation,
    states: TrainState,
    joins: np.ndarray,
    noise: Key,
    stop: int,
    execution: Execution,
    every: int,
    marks: tuple[int, ...],
    watch: Watcher | None,
    curves: Curves | None = None,
    after: int | None = None,
):
    """Yields (step, a function that returns the states in order, curves) by segment."""
    number = len(joins)
    deal, back = dealt(joins, execution)
    put = functools.partial(replicas.place, execution=execution)
    # Copies of rows, made for the devices' sake, never join.
    real = np.isin(np.arange(len(deal)), back)
    join = np.where(real, joins[deal], stop).astype(np.int32)
    timeline = Timeline(join, np.zeros_like(join), stop, every, marks)
    epochs, capacity = training.epochs_of(task, stop), min(every, stop)
    programs = _programs(task.functions, tx, execution, epochs, capacity)
    take = programs.take
    keys = put(noise[deal])
    zeros = np.zeros(len(deal), np.int32)
    all_keys = arms.ReplicaKeys(*[keys] * len(arms.ReplicaKeys._fields))
    rows = engine.Rows(zeros, zeros, zeros, len(deal), all_keys)
    data = jax.device_put(task.data, replicas.shared(execution))
    order = programs.order(keys)
    nothing: Any = ()  # branches are not validated, so there is no best one
    running = Running(take(states, deal), nothing, nothing, nothing)
    if curves is None:
        columns = len(timeline.validation_steps())
        curves = engine.empty_curves(number, columns)
    for step, reached, recorded in engine.run_level(
        programs,
        rows,
        data,
        order,
        keys,
        timeline,
        running,
        Curves(*(x[deal] for x in curves)),
        execution,
        after,
        validates=False,
    ):
        if watch:
            watch(step, stop, number, False)

        yield (
            step,
            functools.partial(_in_order, reached, back),
            Curves(*(x[back] for x in recorded)),
        )


@functools.lru_cache(maxsize=8)
def _programs(
    functions: Task,
    tx: optax.GradientTransformation,
    execution: Execution,
    epochs: int,
    capacity: int,
) -> engine.Programs:
    """Built once, so that a second call with equal shapes compiles nothing."""
    return engine.compile_programs(
        functions,
        tx,
        execution,
        epochs=epochs,
        capacity=capacity,
        keep_optimizer=False,
    )


def _in_order(running: Running, back: np.ndarray) -> TrainState:
    """The rows' states on the host, copies dropped: fetched only where they are kept."""
    return jax.tree.map(lambda x: x[back], _host(running.state))


def dealt(joins: np.ndarray, execution: Execution) -> tuple[np.ndarray, np.ndarray]:
    """An order of rows in which every device has as many early as late ones.

    Devices own contiguous rows. Rows that join early cost more, so they are dealt like
    cards.

    Args:
      joins: the step at which each row starts, int `[S]`.
      execution: the devices.

    Returns:
      Which row lies at each place, `[P]` with P the padded number; and at which place
      each row lies, `[S]`. Further places hold copies of the last to join.
    """
    rising = np.argsort(joins, kind="stable")
    total = replicas.padded(len(joins), execution)
    cards = np.concatenate([rising, np.repeat(rising[-1:], total - len(joins))])
    hands = cards.reshape(-1, execution.groups)
    # To and fro, so that nobody is always the first.
    hands = np.where(np.arange(len(hands))[:, None] % 2, hands[:, ::-1], hands)
    deal = hands.T.reshape(-1)
    places = np.arange(total)
    back = np.zeros(len(joins), np.int64)
    back[deal[::-1]] = places[::-1]  # of copies, the first place counts
    return deal, back


def starts(
    trunk: Trunk, branches_per_state: int
) -> tuple[TrainState, np.ndarray, np.ndarray, np.ndarray]:
    """Lays out the branches of a trunk: rewind step, replica, branch, in this order.

    Args:
      trunk: K rewind steps of R replicas.
      branches_per_state: B.

    Returns:
      States `[K * R * B]`, and the rewind step, the replica's and the branch's position
      of each.

    Raises:
      ValueError: fewer than two branches; there would be no pair.
    """
    if branches_per_state < 2:
        raise ValueError(
            f"branches={branches_per_state}; instability compares two branches at least"
        )
    replicas_ = jax.tree.leaves(trunk.states.params)[0].shape[1]
    grid = np.indices((len(trunk.steps), replicas_, branches_per_state))
    step, replica, branch = (x.reshape(-1) for x in grid)
    states = jax.tree.map(lambda x: x[step, replica], trunk.states)
    return states, np.array(trunk.steps, np.int32)[step], replica, branch


def rewound(
    tx: optax.GradientTransformation, states: TrainState, step: int = 0
) -> TrainState:
    """States with a fresh optimizer at a step of the schedule, for each of `[S]`."""

    def one(state: TrainState) -> TrainState:
        network = Network(state.params, state.model_state)
        return training.start(tx, network, state.stream_state, state.mask, step)

    return jax.jit(jax.vmap(one))(states)
