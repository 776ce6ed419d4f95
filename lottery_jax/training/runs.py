"""Many runs through time: the one runner, for everything that is trained.

A *run* is one network in training. `train` carries many of them from their own first step
to a common last one, in compiled segments on all devices:

    runs = training.fresh(task, tx, keys.init, keys.noise)
    done = training.train(task, tx, runs, stop=3000, every=100, validate=True)
    done.networks, done.curves.values["validation_error"]

Runs that join late wait for their step; a run's numbers do not depend on the others. What
happens between segments is here and nowhere else: curves, the first nan, validation and
the best network so far, states that are kept, a rule that changes masks, checkpoints and
going on from them, fewer runs at once on a device that is full, and who is told of it.
What runs start from (`imp.arms`, `connectivity.branches`) and what is made of them is the
business of others.
"""

import contextlib
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lottery_jax import dynamic, errors, masks, streams, trees
from lottery_jax import keys as keys_
from lottery_jax.dynamic import MaskUpdate
from lottery_jax.dynamic.rules import of_leaves
from lottery_jax.execution import Execution, Progress, Where, default_execution, memory
from lottery_jax.execution.deadline import BETWEEN
from lottery_jax.optimizers import settings
from lottery_jax.optimizers.settings import Optimizer, at
from lottery_jax.storage import checkpoints, records
from lottery_jax.training import checked, identity, loop, measured, windows
from lottery_jax.training.programs import program
from lottery_jax.training.rows import of_rows
from lottery_jax.training.segment import (
    Best,
    Change,
    Moment,
    Runs,
    Work,
    first_moment,
    stored_part,
)
from lottery_jax.types import (
    Array,
    Curves,
    Key,
    Mask,
    Network,
    StreamState,
    Task,
    TrainState,
)

if TYPE_CHECKING:
    import xarray as xr


class Trained(NamedTuple):
    """Runs at their last step.

    Attributes:
      rows: their states on the devices, padded, in the order in which they were dealt.
      places: at which row each run lies, int `[R]`.
      best: by validation loss, in the order of `rows`; None without validation. Under a
        rule that prunes it may be one of before, with more weights.
      curves: what was recorded, in the order of the runs.
      kept: states at the steps `keep`, on the host, `[R, K, ...]`; None if none was kept.
      execution: the settings that were used, at the end.
      changes: when they became so, if they were not from the start.
      hyper: values of the runs by the names of hyperparameters, float32 `[R]`.
      axes: which run is which, for `train_replicas`: names with their values, whose
        combinations the runs are, in order (the last name's values vary fastest).
    """

    rows: TrainState
    places: np.ndarray
    best: Best | None
    curves: Curves
    kept: TrainState | None
    execution: Execution
    changes: tuple[Change, ...] = ()
    hyper: Mapping[str, np.ndarray] = {}
    axes: Mapping[str, tuple[float, ...]] = {}

    @property
    def state(self) -> TrainState:
        """The states on the host, `[R]`."""
        return trees.rows(trees.host(self.rows), self.places)

    @property
    def networks(self) -> Network:
        """The networks on the host, `[R]`."""
        return trees.rows(trees.host(self.rows.network), self.places)

    def dataset(self, **attributes: Any) -> "xr.Dataset":
        """The curves, and `first_nan`, as a labelled `xarray.Dataset`.

        Its axes are those of a sweep by their names, `replica` and `step`; `run` and `step`
        for runs of `training.train`, with their hyperparameters as coordinates.

        Args:
          **attributes: JSON-able, beside those that say what was run.

        Raises:
          ImportError: xarray is missing; names the extra.
        """
        names = tuple(self.axes) or ("run",)
        shape = tuple(map(len, self.axes.values())) or (len(self.places),)

        def of(x: np.ndarray, *further: str) -> tuple[tuple[str, ...], np.ndarray]:
            return (*names, *further), x.reshape(*shape, *x.shape[1:])

        found = {name: of(x, "step") for name, x in self.curves.values.items()}
        found |= {"first_nan": of(self.curves.first_nan)}
        found |= {"step": (("step",), self.curves.steps)}
        labels: dict[str, Any] = {name: list(x) for name, x in self.axes.items()}
        if not labels:
            labels = {name: ("run", x) for name, x in self.hyper.items()}
        own = records.environment() | {"execution": self.execution._asdict()}
        return records.dataset(found, labels, own | attributes)


def train(
    task: Task,
    tx: Optimizer,
    runs: Runs,
    stop: int,
    *,
    every: int | None = None,
    marks: Sequence[int] = (),
    keep: np.ndarray | Sequence[int] | None = None,
    validate: bool = False,
    rule: MaskUpdate | None = None,
    stage: str = "training",
    where: Where | None = None,
    part_of: Callable[[], None] | None = None,
) -> Trained:
    """Trains runs to their common last step, all of them at once.

    Args:
      task: what is trained.
      tx: the optimizer, unwrapped; where a run stands in its schedule is part of its state.
        Where `runs.hyper` has names, a function of these that makes it.
      runs: what each starts from; its mask stays, unless a rule changes it.
      stop: the step at which all end.
      every: what is recorded is recorded at multiples of this, and at the end; a segment
        is no longer. None for a tenth of the steps.
      marks: further steps at which a segment ends.
      keep: steps whose states are kept: `[K]` for all runs, or `[R, K]` for each its own.
      validate: evaluate the split "validation" at each recorded step, and keep the best.
      rule: changes masks at its steps, before the step is trained; the density is
        recorded. One that starts with a mask of its own makes it when a run joins. States
        that are kept at its steps are those before.
      stage: what this is called for the watcher.
      where: devices, folder, who watches. A folder with a checkpoint is continued from.
      part_of: stores what these runs are a part of, and what they start from; called
        before their first checkpoint. Their end is then for the caller to store.

    Returns:
      The runs at the end, in an order of rows that `places` resolves.

    Raises:
      ValueError: arguments that do not fit each other; a folder with other runs.
      checkpoints.CorruptCheckpointError: the folder holds no intact checkpoint.
      MemoryError: not even one run fits on a device, or not the data or all states.
      execution.OutOfTimeError: the deadline is near. All is stored, and the same call
        goes on.
      streams.SourceError: an example of a streamed split cannot be read; names it. What was
        reached is stored if it was just recorded; else the last checkpoint stays. The same
        call goes on.

    Warns:
      RuntimeWarning: a device ran out of memory; the segment starts again with fewer runs
        at once, which `changes` records. A run joins after the last step at which the
        rule acts.
    """
    where = checked.place(where)
    errors.flag("validate", validate)
    errors.is_a("stage", stage, str, "text")
    checked.function("part_of", part_of)
    splits = ("validation",) if validate else ()
    measured.check(task, splits=splits, where=where)
    stop = errors.whole("stop", stop, 1)
    every = max(1, stop // 10) if every is None else errors.whole("every", every, 1)
    marks = errors.wholes("marks", marks, 0)
    runs, number = _checked(runs, stop, task)
    checked.optimizer(task, tx, runs.hyper)
    kept_at = _kept_steps(keep, number, int(runs.joins.min()), stop)
    columns = loop.recorded_steps(stop, every)
    cuts = {*marks, *kept_at.ravel().tolist(), *runs.joins.tolist()}
    if rule is not None:
        rule = _fitting(rule, task, tx, runs.hyper, stop)
        cuts |= set(rule.steps())
        _warn_of_late(rule, runs.joins)
    own = _identity(task, tx, runs, stop, every, kept_at, validate, rule, where)
    found = _found(where.store, own)
    begins = f"the start of {stage}"
    where.ended(BETWEEN)
    if where.ending(begins, stage):
        if part_of is not None and found is None:
            part_of()
        raise where.stopped()

    first = first_moment(task, runs, columns, kept_at, validate, rule)
    if found is not None:
        first = _restored(where, first, found)
    longest = min(every, stop)
    if where.window is not None and windows.TRAIN in streams.streamed(task.data):
        longest = min(longest, where.window)
    work = Work(task, tx, runs, longest, validate, rule, kept_at)
    execution = _settled(where, found, number, work, first)
    work.place(execution, where)
    moment = work.laid_out(first)
    changes = [Change(s, Execution(**e)) for s, e in (found or {}).get("changes", ())]
    if found is not None and Execution(**found["execution"]) != execution:
        changes.append(Change(moment.step, execution))

    def tell(moment: Moment, resumed: bool = False) -> None:
        where.tell(
            Progress(
                stage,
                moment.step,
                stop,
                number,
                int(runs.joins.min()),
                resumed=resumed,
                curves=work.in_order(moment.curves),
                states=lambda: work.in_order(trees.host(moment.rows)),
            )
        )

    part_of_stored = found is not None

    def save(moment: Moment) -> None:
        nonlocal part_of_stored
        assert where is not None and where.store is not None
        with where.clock:
            if part_of is not None and not part_of_stored:
                part_of()
                part_of_stored = True
            work.save(where.store, moment, identity.stored(own), changes)
        where.written(stage)

    saved = found is not None and found["step"] == stop
    tell(moment, found is not None)
    if work.reader is not None:
        cuts |= set(range(0, stop, work.reader.layout.steps))
    segments = loop.segments(moment.step, stop, every, cuts)

    def advance(
        read: Iterator[windows.Window | None], moment: Moment, a: int, b: int
    ) -> tuple[Moment, Execution]:
        # A function, so that nothing holds a window when the next but one is read.
        def attempt(execution: Execution) -> Moment:
            if execution != work.execution:
                work.place(execution, where)
            return work.segment(moment, a, b, window)

        try:
            window = next(read)
            at = f"{stage}, after step {a}"
            return where.room.run(at, execution, number, attempt)
        except streams.SourceError:
            if where.store is not None and not saved and not moment.since:
                save(moment)
            raise

    with contextlib.closing(work.windows(segments)) as read:
        for a, b in segments:
            moment, fits = advance(read, moment, a, b)
            if fits != execution:
                execution = fits
                changes.append(Change(a, fits))
            tell(moment)
            # Not within a column: its mean would begin anew. So a piece is a whole column.
            if moment.since:
                continue
            where.ended(begins if begins else stage)
            begins = ""
            saved = where.unmeasured(stage) or (b < stop and where.due())
            if saved:
                save(moment)
            if where.ending(stage if b < stop else BETWEEN, stage):
                if not saved:
                    save(moment)
                raise where.stopped()
    if where.store is not None and part_of is None and not saved:
        save(moment)
    return Trained(
        moment.rows,
        work.at.places,
        moment.best,
        work.in_order(moment.curves),
        moment.kept,
        execution,
        tuple(changes),
        runs.hyper,
    )


# --- what is asked for ----------------------------------------------------------------


def _checked(runs: Runs, stop: int, task: Task) -> tuple[Runs, int]:
    """The runs with arrays of whole numbers, and how many they are."""
    errors.is_a("runs", runs, Runs, "a training.Runs, as training.fresh(...) makes")
    errors.is_a("runs.state", runs.state, TrainState, "a TrainState, a stack of many")
    number = _keys("runs.noise", runs.noise)
    checked.networks("runs.state", runs.state.network, task)

    def of_each(name: str, values: np.ndarray) -> np.ndarray:
        found = _steps(name, values)
        if found.shape not in ((), (number,)):
            raise ValueError(
                f"{name} has shape {found.shape}; it must be a step for each of the runs, "
                f"({number},)"
            )
        return np.broadcast_to(found, (number,))

    joins, offset = of_each("joins", runs.joins), of_each("offset", runs.offset)
    if not number or trees.count(runs.state.params) < number:
        raise ValueError(
            f"runs: {trees.count(runs.state.params)} states for {number} noise keys; there "
            "must be some, and a state for each"
        )
    if joins.min() < 0 or joins.max() >= stop:
        wrong = joins.max() if joins.max() >= stop else joins.min()
        raise ValueError(
            f"joins={wrong}; runs must start in [0, {stop}), the steps of a training run"
        )
    hyper = checked.hyperparameters(runs.hyper, number)
    return runs._replace(joins=joins, offset=offset, hyper=hyper), number


def _keys(field: str, keys: Any) -> int:
    """How many typed keys there are in a flat array of them."""
    if not trees.is_key(keys) or keys.ndim != 1:
        must = "typed keys [R], as keys.of_replicas(seed, ids) makes"
        raise errors.wrong(field, errors.shown(keys), must)
    return int(keys_.check(field, keys).shape[0])


def _steps(field: str, values: Any) -> np.ndarray:
    """Steps as int32; other numbers than whole ones are refused."""
    try:
        found = np.asarray(values)
    except ValueError:  # rows of several lengths
        found = np.asarray(None)
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise errors.wrong(field, errors.shown(values), "steps, whole numbers")
    return found.astype(np.int32)


def _kept_steps(
    keep: np.ndarray | Sequence[int] | None, number: int, first: int, stop: int
) -> np.ndarray:
    """The steps at which each run's state is kept, int32 `[R, K]`."""
    steps = _steps("keep", () if keep is None else keep)
    if steps.ndim == 1:
        steps = np.broadcast_to(steps, (number, len(steps)))
    if steps.ndim != 2 or len(steps) != number or (steps < 0).any():
        raise ValueError(
            f"keep has shape {steps.shape}; it must be steps, 0 or more, for all runs or "
            f"({number}, steps) for each"
        )
    # At a step that no run reaches there is nothing to keep.
    for step in steps[(steps < first) | (steps > stop)]:
        raise errors.wrong("keep", step, f"in [{first}, {stop}], the steps of the runs")
    return steps


def _fitting(
    rule: MaskUpdate,
    task: Task,
    tx: Optimizer,
    hyper: Mapping[str, np.ndarray],
    stop: int,
) -> MaskUpdate:
    """A rule on the leaves of the task, which fits them, the optimizer and the steps."""
    dynamic.check(rule, steps=stop)
    rule = of_leaves(rule, masks.of_task(task), task.exclude)
    dynamic.check(rule, task.shapes[0])  # traces it, so once for all settings
    for own in settings.each(tx, hyper):
        dynamic.check(rule, tx=own)
    return rule


def _warn_of_late(rule: MaskUpdate, joins: np.ndarray) -> None:
    """Warns of runs for which a rule comes too early; a pruned one may go on so."""
    acting = rule.steps()
    if rule.start is None and acting and joins.max() > acting[-1]:
        warnings.warn(
            f"joins={joins.max()}: a run that joins after step {acting[-1]}, the last one "
            "at which the rule acts, keeps the mask that it comes with",
            RuntimeWarning,
            stacklevel=3,
        )


def _identity(
    task: Task,
    tx: Optimizer,
    runs: Runs,
    stop: int,
    every: int,
    kept_at: np.ndarray,
    validate: bool,
    rule: MaskUpdate | None,
    where: Where,
) -> identity.Fields:
    """What a folder must have in common with what continues there."""
    if where.store is None:
        return {}
    names = ["order", "batch", "loss", "steps_per_epoch"]
    if rule is not None:
        names.append("prunable")  # of the density that is recorded
    start = trees.rows(trees.host(runs.state), slice(len(runs.joins)))
    hyper = runs.hyper
    return (
        {
            "kind": "runs",
            "stop": stop,
            "every": every,
            "joins": runs.joins.tolist(),
            "offset": runs.offset.tolist(),
            "keep": kept_at.tolist(),
            "validate": validate,
        }
        | {f"hyper.{name}": [*map(settings.plain, x)] for name, x in hyper.items()}
        | identity.of_rule(task, tx, rule, tuple(hyper))
        | identity.of_draws()
        | identity.of_task(task, names, ("validation",) if validate else ())
        | identity.of_data(task, where)
        | identity.of_optimizer(task, tx, tuple(hyper))
        | identity.of_arrays(noise=runs.noise)
        | identity.of_arrays(
            **{f"start.{name}": part for name, part in start._asdict().items()}
        )
    )


def _found(store: pathlib.Path | None, own: identity.Fields) -> dict[str, Any] | None:
    """The metadata of a stored moment of the same runs."""
    found = None if store is None else checkpoints.metadata(store)
    if store is not None and found is not None:
        identity.check(store, "other runs", found, own)
    return found


def _restored(where: Where, first: Moment, found: dict[str, Any]) -> Moment:
    """The stored moment, on the host."""
    assert where.store is not None
    restored = checkpoints.restore(where.store, stored_part(first))
    assert restored is not None
    part = restored[0]
    return Moment(
        found["step"], part["state"], part["best"], part["curves"], part["kept"], ()
    )


def _settled(
    where: Where,
    found: dict[str, Any] | None,
    number: int,
    work: Work,
    first: Moment,
) -> Execution:
    """How the runs are executed: as asked, as stored, or as many at once as fit.

    The same in all processes that meet.
    """
    chosen = where.execution
    if chosen is None and found is not None:
        stored = Execution(**found["execution"])
        # On a machine with fewer devices they go on from their exact state all the same.
        chosen = stored if stored.devices <= jax.local_device_count() else None
    if chosen is not None:
        chosen = where.room.within(chosen.check())
        # Others have nothing stored, it may be, and ask for it.
        if where.meeting is not None:
            where.meeting.offer("chunk", chosen.chunk or _ALL)
        return chosen

    def prepare(execution: Execution) -> tuple[Any, tuple[Any, ...]]:
        work.place(execution, where)
        return work.one_step(work.laid_out(first))

    fits = memory.fitted(where.room.within(default_execution()), number, prepare)
    if where.meeting is not None:
        most = fits.chunk or _ALL
        if (common := where.meeting.smallest("chunk", most)) < most:
            fits = fits._replace(chunk=common)
    return fits


_ALL = 2**31 - 1
"""What a chunk of 0 stands for, where chunks are compared."""


# --- what goes with it ----------------------------------------------------------------


def fresh(
    task: Task,
    tx: Optimizer,
    init: Key,
    noise: Key,
    *,
    start: Network | None = None,
    hyper: Mapping[str, Sequence[float]] = {},
    where: Where | None = None,
) -> Runs:
    """Dense networks at step 0: drawn from the task's initialisation, or given.

    Args:
      task: what is trained.
      tx: the optimizer; or a function of hyperparameters that makes it.
      init: init keys, `[R]`.
      noise: noise keys, `[R]`.
      start: weights to start from instead of a draw, such as pre-trained ones: each leaf
        with the shape of one network's, which all runs then share, or with a leading axis
        of the runs, `[R]`. The state of the noise is drawn all the same.
      hyper: values of these for each run, `[R]`, by name.
      where: the devices that draw.

    Raises:
      ValueError: no task or optimizer that can be used, no keys, or not as many of both;
        a start that does not fit the task, which names the leaf.
      MemoryError: not even one draw fits on a device, or not all of them.

    Warns:
      RuntimeWarning: a device was full; fewer are drawn, and trained, at once.
    """
    where = checked.place(where)
    measured.check(task, where=where)
    number = _keys("init", init)
    own = checked.hyperparameters(hyper, number)
    checked.optimizer(task, tx, own)
    if _keys("noise", noise) != number:
        raise errors.wrong("noise.shape", noise.shape, f"({number},), as that of init")
    given: Network | tuple[()] = ()
    if start is not None:
        checked.start(start, task, number)
        given = of_rows(start, task, np.arange(number))
    execution = (where.execution or default_execution()).check()
    values, given, keys = execution.spread((own, given, init))

    def draw(execution: Execution) -> TrainState:
        return program(_start, task.functions, execution, tx)(values, given, keys)

    drawn, _ = where.room.run("the draw of networks", execution, number, draw)
    zeros = np.zeros(number, np.int32)
    return Runs(drawn, noise, zeros, zeros, own)


def _start(functions: Task, execution: Execution, tx: Optimizer) -> Callable[..., Any]:
    def start(
        hyper: Mapping[str, Array], given: Network | tuple[()], key: Key
    ) -> TrainState:
        params, model_state, stream = functions.init(key)
        network = given if isinstance(given, Network) else Network(params, model_state)
        full = masks.ones_like(network.params)
        return loop.start(at(tx, hyper), network, stream, full)

    return execution.parallel(start, (0, 0, 0))


def concatenate(runs: Sequence[Runs]) -> Runs:
    """Several batches of runs as one: they train side by side, in one program.

    For tasks that differ in nothing but what their runs start from: any of these tasks
    will do for `train`.

    Args:
      runs: batches, from `fresh` say, of one task and optimizer, or of such as have equal
        trees and shapes.

    Returns:
      The runs in that order, their states on the host.

    Raises:
      ValueError: none, or one whose states have other leaves or shapes; names the leaf.
    """
    runs = errors.several("runs", runs, "a sequence of training.Runs")
    if not runs:
        raise errors.wrong("runs", (), "a sequence of one training.Runs at least")
    parts: list[Runs] = []
    for i, own in enumerate(runs):
        field = f"runs[{i}]"
        errors.is_a(field, own, Runs, "a training.Runs, as training.fresh(...) makes")
        number = _keys(f"{field}.noise", own.noise)
        state = trees.rows(trees.host(own.state), slice(number))
        if parts:
            names = "runs[0].state", f"{field}.state"
            trees.same(trees.rows(parts[0].state, 0), trees.rows(state, 0), names)
        joins, offset = (np.broadcast_to(x, (number,)) for x in (own.joins, own.offset))
        hyper = checked.hyperparameters(own.hyper, number)
        if parts and list(hyper) != list(parts[0].hyper):
            must = f"{list(parts[0].hyper)}, as those of runs[0]"
            raise errors.wrong(f"{field}.hyper", list(hyper), must)
        parts.append(Runs(state, own.noise, joins, offset, hyper))
    return trees.concatenate(parts)


def start_many(
    tx: Optimizer,
    networks: Network,
    stream_state: StreamState,
    mask: Mask,
    *,
    hyper: Mapping[str, Sequence[float]] = {},
    where: Where | None = None,
) -> TrainState:
    """What many networks start training from: `training.start` of each.

    Args:
      tx: the optimizer; or a function of hyperparameters that makes it.
      networks: a stack of R.
      stream_state: of each, or ().
      mask: of each.
      hyper: values of hyperparameters for each, `[R]`, by name.
      where: the devices.

    Returns:
      The states, on the host.

    Raises:
      MemoryError: not even one fits on a device, or not all of their weights.

    Warns:
      RuntimeWarning: a device was full; fewer run at once from then on.
    """
    where = where or Where()
    execution = (where.execution or default_execution()).check()
    number = trees.count(networks.params)
    own = checked.hyperparameters(hyper, number)
    settings.check(tx, tuple(own))
    placed = execution.spread((own, networks, stream_state, mask))

    def start(execution: Execution) -> TrainState:
        return program(_start_given, execution, tx)(*placed)

    found, _ = where.room.run("the start of networks", execution, number, start)
    return execution.gather(found, number)


def _start_given(execution: Execution, tx: Optimizer) -> Callable[..., Any]:
    def start(
        hyper: Mapping[str, Array], network: Network, stream: StreamState, mask: Mask
    ) -> TrainState:
        return loop.start(at(tx, hyper), network, stream, mask)

    return execution.parallel(start, (0, 0, 0, 0))


def train_replicas(
    task: Task,
    tx: Optimizer,
    steps: int,
    replicas: int | Sequence[int] = 5,
    *,
    seed: int = 0,
    validate_every: int | None = None,
    keep: Sequence[int] = (),
    rule: MaskUpdate | None = None,
    start: Network | None = None,
    sweep: settings.Sweep | None = None,
    where: Where | None = None,
) -> Trained:
    """Trains dense networks of independent initialisation and noise, all at once.

    Args:
      task: what is trained.
      tx: the optimizer, with its schedule; for a sweep, a function of its hyperparameters
        that makes it of traced values.
      steps: how many, from step 0.
      replicas: how many, or their ids; a replica's numbers depend on its id alone.
      seed: all keys follow from it and the id; an integer in [0, 2**32).
      validate_every: steps between validations; None for a tenth of the steps.
      keep: steps whose states are kept.
      rule: prunes, or changes the mask otherwise, while they train.
      start: weights to start from instead of a draw, such as pre-trained ones: each leaf
        with the shape of one network's, or with a leading axis of the replicas.
      sweep: values by the names of hyperparameters. Each combination trains all replicas,
        from the same initialisations and under the same noise; `Trained.dataset` has an
        axis of each name.
      where: devices, folder, who watches.

    Raises:
      ValueError: an argument that makes no sense; names it. And see `train`.

    Example:
      >>> done = lj.train(task, optax.adam(1e-3), steps=1000, replicas=5)
      >>> done.curves.values["validation_error"][:, -1]
      >>> rates = {"learning_rate": [1e-3, 3e-3]}
      >>> done = lj.train(task, optax.adam, steps=1000, replicas=5, sweep=rates)
      >>> done.dataset()["validation_error"].sel(learning_rate=3e-3).isel(step=-1)
    """
    ids, where = checked.replicas(replicas), checked.place(where)
    axes = {} if sweep is None else settings.axes(sweep)
    grid = settings.settings(sweep) if sweep is not None else [{}]
    settings.check(tx, tuple(axes))
    steps = errors.whole("steps", steps, 1)
    if validate_every is not None:
        validate_every = errors.whole("validate_every", validate_every, 1)
    _kept_steps(keep, len(ids), 0, steps)
    if rule is not None:
        dynamic.check(rule, steps=steps)
    measured.check(task, where=where)
    if task.validates:
        measured.metrics(task, "validation")
    if start is not None:
        checked.start(start, task, len(ids))
        start = of_rows(start, task, np.tile(np.arange(len(ids)), len(grid)))
    hyper = {name: [s[name] for s in grid for _ in ids] for name in axes}
    if rule is not None:  # before networks are drawn
        own = checked.hyperparameters(hyper, len(ids) * len(grid))
        _fitting(rule, task, tx, own, steps)
    found = keys_.of_replicas(seed, np.tile(ids, len(grid)))
    runs = fresh(
        task, tx, found.init, found.noise, start=start, hyper=hyper, where=where
    )
    done = train(
        task,
        tx,
        runs,
        steps,
        every=validate_every,
        keep=keep,
        validate=task.validates,
        rule=rule,
        where=where,
    )
    return done._replace(axes={**axes, "replica": ids})
