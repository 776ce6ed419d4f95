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

import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import keys as keys_
from lottery_jax import masks, trees
from lottery_jax.dynamic import MaskUpdate, UpdateMask
from lottery_jax.errors import at_least
from lottery_jax.execution import Execution, Progress, Where, default_execution, memory
from lottery_jax.storage import checkpoints
from lottery_jax.training import loop
from lottery_jax.training.programs import Program, program, remembered
from lottery_jax.types import (
    Array,
    Curves,
    Key,
    Metrics,
    Network,
    PyTree,
    Task,
    TrainState,
)


class Runs(NamedTuple):
    """Runs about to be trained.

    Attributes:
      state: the training states; a stack of R, or longer: what follows is padding.
      noise: noise keys, `[R]`.
      joins: the step at which each run starts, int32 `[R]`.
      offset: added to the step for a run's position in its noise and in what the state of
        its optimizer counts, int32 `[R]`.
    """

    state: TrainState
    noise: Key
    joins: np.ndarray
    offset: np.ndarray


class Best(NamedTuple):
    """The networks at their minimum of validation loss so far, `[R]`.

    Attributes:
      network: those networks.
      loss: that loss, float32; infinite before the first validation.
      step: its step, int32.
    """

    network: Network
    loss: Array | np.ndarray
    step: Array | np.ndarray


class Change(NamedTuple):
    """A moment from which on runs were executed in another way.

    Attributes:
      step: the last step that was made in the old way.
      execution: the new way.
    """

    step: int
    execution: Execution


class Trained(NamedTuple):
    """Runs at their last step.

    Attributes:
      rows: their states on the devices, padded, in the order in which they were dealt.
      places: at which row each run lies, int `[R]`.
      best: by validation loss, in the order of `rows`; None without validation.
      curves: what was recorded, in the order of the runs.
      kept: states at the steps `keep`, on the host, `[R, K, ...]`; None if none was kept.
      execution: the settings that were used, at the end.
      changes: when they became so, if they were not from the start.
    """

    rows: TrainState
    places: np.ndarray
    best: Best | None
    curves: Curves
    kept: TrainState | None
    execution: Execution
    changes: tuple[Change, ...] = ()

    @property
    def state(self) -> TrainState:
        """The states on the host, `[R]`."""
        return trees.rows(trees.host(self.rows), self.places)

    @property
    def networks(self) -> Network:
        """The networks on the host, `[R]`."""
        return trees.rows(trees.host(self.rows.network), self.places)


class Joining(NamedTuple):
    """Where runs lie on the devices, and when they train.

    Attributes:
      deal: which run lies at each row, int `[P]`; further rows hold copies.
      places: at which row each run lies, int `[R]`.
      joins: of each row; a copy never joins.
      offset: of each row.
    """

    deal: np.ndarray
    places: np.ndarray
    joins: np.ndarray
    offset: np.ndarray


class Moment(NamedTuple):
    """Runs on their way: all that the next segment needs. A segment makes a new one.

    Attributes:
      step: that was reached.
      rows: the states, `[P]`, in the order in which they were dealt.
      best: by validation loss, likewise; None without validation.
      curves: what was recorded, likewise.
      kept: states at the steps that are kept, in the order of the runs, on the host.
      since: metrics of each segment since the last recorded step, `[P, steps]`.
    """

    step: int
    rows: TrainState
    best: Best | None
    curves: Curves
    kept: TrainState | None
    since: tuple[dict[str, np.ndarray], ...]


def train(
    task: Task,
    tx: optax.GradientTransformation,
    runs: Runs,
    stop: int,
    *,
    every: int | None = None,
    marks: Sequence[int] = (),
    keep: np.ndarray | Sequence[int] | None = None,
    validate: bool = False,
    rule: MaskUpdate | None = None,
    reach: int | None = None,
    stage: str = "training",
    where: Where | None = None,
    part_of: Callable[[], None] | None = None,
) -> Trained:
    """Trains runs to their common last step, all of them at once.

    Args:
      task: what is trained.
      tx: the optimizer, unwrapped; where a run stands in its schedule is part of its state.
      runs: what each starts from; its mask stays, unless a rule changes it.
      stop: the step at which all end.
      every: what is recorded is recorded at multiples of this, and at the end; a segment
        is no longer. None for a tenth of the steps.
      marks: further steps at which a segment ends.
      keep: steps whose states are kept: `[K]` for all runs, or `[R, K]` for each its own.
      validate: evaluate the split "validation" at each recorded step, and keep the best.
      rule: changes masks at its steps, before the step is trained; the density is
        recorded.
      reach: the last step (offset included) that these runs or others of their study
        reach, so that all of them share one program; None for that of these runs.
      stage: what this is called for the watcher.
      where: devices, folder, who watches. A folder with a checkpoint is continued from.
      part_of: stores what these runs are a part of, and what they start from; called
        before their first checkpoint. Their end is then for the caller to store.

    Returns:
      The runs at the end, in an order of rows that `places` resolves.

    Raises:
      ValueError: arguments that do not fit each other; a folder with other runs.
      checkpoints.CorruptCheckpointError: the folder holds no intact checkpoint.
      MemoryError: not even one run fits on a device.

    Warns:
      RuntimeWarning: a device ran out of memory; the segment starts again with fewer runs
        at once, which `changes` records.
    """
    where = where or Where()
    every = every or max(1, stop // 10)
    runs, number = _checked(runs, stop, every)
    kept_at = _kept_steps(keep, number)
    columns = sorted({*range(every, stop, every), stop})
    cuts = {*marks, *kept_at.ravel().tolist(), *runs.joins.tolist()}
    if rule is not None:
        cuts |= set(_acting(rule, stop))
    furthest = stop + int(runs.offset.max(initial=0))
    epochs = loop.epochs_of(task, max(reach or 0, furthest))
    own = _identity(runs, stop, every, kept_at, validate, rule, where.store)
    found = _found(where.store, own)

    first = _first(task, runs, columns, kept_at, validate, rule)
    if found is not None:
        first = _restored(where, first, found)
    work = _Work(task, tx, runs, epochs, min(every, stop), validate, rule, kept_at)
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
            work.save(where.store, moment, own, changes)

    tell(moment, found is not None)
    for a, b in loop.segments(moment.step, stop, every, cuts):

        def attempt(
            execution: Execution, moment: Moment = moment, a: int = a, b: int = b
        ) -> Moment:
            if execution != work.execution:
                work.place(execution, where)
            return work.segment(moment, a, b)

        moment, fits = memory.with_room(execution, number, attempt)
        if fits != execution:
            execution = fits
            changes.append(Change(a, fits))
            warnings.warn(
                f"a device ran out of memory in {stage}, after step {a}; went on from "
                f"there with chunk={fits.chunk}",
                RuntimeWarning,
                stacklevel=2,
            )
        tell(moment)
        # Not within a column: its mean would begin anew.
        whole = not moment.since and b < stop
        if where.store and whole and where.clock.due(where.checkpoint_seconds):
            save(moment)
    stored = found is not None and found["step"] == stop
    if where.store is not None and part_of is None and not stored:
        save(moment)
    return Trained(
        moment.rows,
        work.at.places,
        moment.best,
        work.in_order(moment.curves),
        moment.kept,
        execution,
        tuple(changes),
    )


# --- what is asked for ----------------------------------------------------------------


def _checked(runs: Runs, stop: int, every: int) -> tuple[Runs, int]:
    """The runs with arrays of whole numbers, and how many they are."""
    at_least("stop", stop, 1)
    at_least("every", every, 1)
    number = runs.noise.shape[0]

    def of_each(name: str, values: np.ndarray) -> np.ndarray:
        found = np.asarray(values, np.int32)
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
    return runs._replace(joins=joins, offset=offset), number


def _kept_steps(keep: np.ndarray | Sequence[int] | None, number: int) -> np.ndarray:
    """The steps at which each run's state is kept, int32 `[R, K]`."""
    steps = np.asarray(() if keep is None else keep, np.int32)
    if steps.ndim == 1:
        steps = np.broadcast_to(steps, (number, len(steps)))
    if steps.ndim != 2 or len(steps) != number or (steps < 0).any():
        raise ValueError(
            f"keep has shape {steps.shape}; it must be steps, 0 or more, for all runs or "
            f"({number}, steps) for each"
        )
    return steps


def _acting(rule: MaskUpdate, stop: int) -> list[int]:
    """The steps at which a rule acts, all of them before the last one is trained."""
    steps = rule.steps()
    if steps and steps[-1] >= stop:
        raise ValueError(
            f"rule: acts at step {steps[-1]}; it must end before stop={stop}, so that what "
            "is left is trained"
        )
    return steps


def _identity(
    runs: Runs,
    stop: int,
    every: int,
    kept_at: np.ndarray,
    validate: bool,
    rule: MaskUpdate | None,
    store: pathlib.Path | None,
) -> dict[str, Any]:
    """What a folder must have in common with what continues there."""
    if store is None:
        return {}
    start = trees.rows(trees.host(runs.state), slice(len(runs.joins)))
    return {
        "stop": stop,
        "every": every,
        "joins": runs.joins.tolist(),
        "offset": runs.offset.tolist(),
        "keep": kept_at.tolist(),
        "validate": validate,
        "rule": None if rule is None else [rule.every, rule.begin, rule.end],
        "start": trees.fingerprint(runs.noise, start),
    }


def _found(store: pathlib.Path | None, own: dict[str, Any]) -> dict[str, Any] | None:
    """The metadata of a stored moment of the same runs."""
    found = None if store is None else checkpoints.metadata(store)
    for name, value in own.items() if found is not None else ():
        assert found is not None
        stored = found.get(name, "missing")
        if stored != value:
            raise ValueError(
                f"{store} holds other runs: {name}={stored}, not {value}; continue it "
                "with what it began with, or choose another folder"
            )
    return found


def _settled(
    where: Where,
    found: dict[str, Any] | None,
    number: int,
    work: "_Work",
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
        return chosen.check()

    def prepare(execution: Execution) -> tuple[Any, tuple[Any, ...]]:
        work.place(execution, where)
        return work.one_step(work.laid_out(first))

    fits = memory.fitted(default_execution(), number, prepare)
    if where.meeting is not None:
        most = fits.chunk or _ALL
        if (common := where.meeting.smallest("chunk", most)) < most:
            fits = fits._replace(chunk=common)
    return fits


_ALL = 2**31 - 1
"""What a chunk of 0 stands for, where chunks are compared."""


# --- a moment -------------------------------------------------------------------------


def _first(
    task: Task,
    runs: Runs,
    columns: Sequence[int],
    kept_at: np.ndarray,
    validate: bool,
    rule: MaskUpdate | None,
) -> Moment:
    """The moment before the first step, in the order of the runs."""
    number, width = kept_at.shape
    names = [f"train_{name}" for name in loss_metrics(task)]
    if validate:
        names += [f"validation_{name}" for name in metrics(task, "validation")]
    if rule is not None:
        names.append("density")

    def nan(*shape: int) -> np.ndarray:
        return np.full(shape, np.nan, np.float32)

    curves = Curves(
        np.array(columns, np.int32),
        {name: nan(number, len(columns)) for name in names},
        nan(number),
    )
    best = None
    if validate:
        network = runs.state.network
        length = trees.count(network.params)
        best = Best(
            network, np.full(length, np.inf, np.float32), np.zeros(length, "i4")
        )
    kept = None
    if width:

        def empty(x: Any) -> Any:
            shape = (number, width, *x.shape[1:])
            if trees.is_key(x):
                return jnp.broadcast_to(x[:number, None], shape)
            return np.zeros(shape, x.dtype)

        kept = jax.tree.map(empty, runs.state)
        at_start = kept_at == runs.joins[:, None]
        if at_start.any():
            kept = _put(kept, at_start, trees.host(runs.state))
    return Moment(int(runs.joins.min()), runs.state, best, curves, kept, ())


def _put(kept: TrainState, where: np.ndarray, state: TrainState) -> TrainState:
    """States of runs `[R]` at the places `[R, K]` that are True; the arrays are written."""

    def leaf(k: Any, x: Any) -> Any:
        if trees.is_key(k):
            chosen = where.reshape(*where.shape, *[1] * (k.ndim - 2))
            return jnp.where(chosen, x[: len(where), None], k)
        run, column = np.nonzero(where)
        k[run, column] = x[run]
        return k

    return jax.tree.map(leaf, kept, state)


def loss_metrics(task: Task) -> list[str]:
    """The names of the scalars of a task's loss; nothing is computed."""
    return remembered(_loss_metrics, task.functions, _shapes(task.data))


def _loss_metrics(task: Task, data: PyTree) -> list[str]:
    def one(key: Key, data: PyTree) -> Metrics:
        params, model_state, stream = task.init(key)
        order = task.order(key, jnp.int32(0))
        batch = task.batch(data, order[0], key, jnp.int32(0))
        value, (_, _, found) = task.loss(params, model_state, stream, batch, key)
        return {"loss": value} | found

    return _scalars(jax.eval_shape(one, jax.random.key(0), data))


def metrics(task: Task, split: str) -> list[str]:
    """The names of the scalars of a task's `evaluate`; nothing is computed."""
    return remembered(_metrics, task.functions, _shapes(task.data), split)


def _metrics(functions: Task, data: PyTree, split: str) -> list[str]:
    def one(key: Key, data: PyTree) -> Metrics:
        params, model_state, _ = functions.init(key)
        return functions.evaluate(params, model_state, data, key, split)

    return _scalars(jax.eval_shape(one, jax.random.key(0), data))


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _scalars(found: Metrics) -> list[str]:
    return [name for name, x in found.items() if x.shape == ()]


def _restored(where: Where, first: Moment, found: dict[str, Any]) -> Moment:
    """The stored moment, on the host."""
    assert where.store is not None
    restored = checkpoints.restore(where.store, _stored_part(first))
    assert restored is not None
    part = restored[0]
    return Moment(
        found["step"], part["state"], part["best"], part["curves"], part["kept"], ()
    )


def _stored_part(moment: Moment) -> dict[str, Any]:
    """What a checkpoint holds of a moment, in the order of the runs, without padding."""
    number = len(moment.curves.first_nan)

    def own(tree: PyTree) -> PyTree:
        return trees.rows(trees.host(tree), slice(number))

    return {
        "state": own(moment.rows),
        "best": None if moment.best is None else own(moment.best),
        "curves": moment.curves,
        "kept": moment.kept,
    }


# --- the work -------------------------------------------------------------------------


class _Work:
    """Runs laid out on devices, and the programs that carry them: what `train` drives.

    The devices may change their settings on the way, so what depends on these is placed
    by `place`; all else is fixed.
    """

    at: Joining
    execution: Execution

    def __init__(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        runs: Runs,
        epochs: int,
        capacity: int,
        validate: bool,
        rule: MaskUpdate | None,
        kept_at: np.ndarray,
    ) -> None:
        self.task, self.tx, self.runs = task, tx, runs
        self.epochs, self.capacity = epochs, capacity
        self.validates, self.rule, self.kept_at = validate, rule, kept_at

    def place(self, execution: Execution, where: Where) -> None:
        """Puts all that stays the same onto the devices, and names the programs."""
        self.execution = execution
        self.at = joining(self.runs.joins, self.runs.offset, execution)
        functions = self.task.functions
        of = (functions, execution)
        self._train = program(_train, *of, self.tx, self.capacity)
        self._validate = program(_validate, *of) if self.validates else None
        mesh = execution._replace(chunk=1, convolution=None, precision=None)
        self.data = shared_data(self.task, execution, where)
        self.noise = execution.place(self.runs.noise[self.at.deal])
        self.offset = execution.place(self.at.offset)
        drawn = np.asarray(jax.random.key_data(self.noise)).tobytes()
        orders = program(_orders, functions, mesh, self.epochs)
        self.order = where.held.get(
            ("order", orders, drawn), lambda: orders(self.noise)
        )

    def laid_out(self, first: Moment) -> Moment:
        """A moment in the order of the runs, as rows on the devices."""

        def rows(tree: PyTree) -> PyTree:
            return take(tree, self.at.deal, self.execution)

        moment = first._replace(
            rows=rows(first.rows),
            best=None if first.best is None else rows(first.best),
            curves=self._by_row(first.curves),
        )
        self._ahead(moment)
        return moment

    def _ahead(self, moment: Moment) -> None:
        """Compiles what is compiled at the first call, side by side."""
        step = jax.ShapeDtypeStruct((), np.int32)
        specs = specs_of((self.data, moment.rows, self.noise, self.order))
        active = jax.ShapeDtypeStruct(
            self.at.joins.shape, np.bool_, sharding=self.execution.sharded
        )
        if self._validate is not None:
            best = specs_of(moment.best)
            self._validate.ahead(specs[0], specs[1], best, step, active)
        self._train.ahead(*specs, step, step, specs_of(self.offset), active)

    def one_step(self, moment: Moment) -> tuple[Program, tuple[Any, ...]]:
        """The training program and the arguments of a segment of one step, to try it."""
        active = self.execution.place(
            np.isin(np.arange(len(self.at.deal)), self.at.places)
        )
        bounds = np.int32(0), np.int32(1)
        args = self.data, moment.rows, self.noise, self.order
        return self._train, (*args, *bounds, self.offset, active)

    def in_order(self, tree: PyTree) -> PyTree:
        """From rows to the order of the runs, on the host."""
        if isinstance(tree, Curves):
            values = {name: x[self.at.places] for name, x in tree.values.items()}
            return Curves(tree.steps, values, tree.first_nan[self.at.places])
        return trees.rows(tree, self.at.places)

    def _by_row(self, curves: Curves) -> Curves:
        values = {name: x[self.at.deal] for name, x in curves.values.items()}
        return Curves(curves.steps, values, curves.first_nan[self.at.deal])

    def segment(self, moment: Moment, a: int, b: int) -> Moment:
        """Trains the steps [a, b), and does what is due after them."""
        joined = self.at.joins <= a
        active = self.execution.place(joined)
        rows = moment.rows
        if self.rule is not None and a in self.rule.steps():
            update = program(
                _update_mask, self.task.functions, self.execution, self.rule.update
            )
            rows = update(
                *(self.data, rows, self.noise, self.order),
                *(np.int32(a), self.offset, active),
            )
        rows, found = self._train(
            *(self.data, rows, self.noise, self.order),
            *(np.int32(a), np.int32(b), self.offset, active),
        )
        seen = {name: np.asarray(x)[:, : b - a] for name, x in found.items()}
        curves = Curves(
            moment.curves.steps,
            {name: x.copy() for name, x in moment.curves.values.items()},
            moment.curves.first_nan.copy(),
        )
        bad = ~np.isfinite(seen["loss"]) & joined[:, None]
        new = bad.any(axis=1) & np.isnan(curves.first_nan)
        curves.first_nan[new] = (a + bad.argmax(axis=1))[new]
        since, best = (*moment.since, seen), moment.best
        if b in curves.steps:
            column = int(np.searchsorted(curves.steps, b))
            for name in seen:
                curves.values[f"train_{name}"][:, column] = _mean_since(since, name)
            since = ()
            if self._validate is not None:
                best, valued = self._validate(
                    self.data, rows, best, np.int32(b), active
                )
                for name, value in valued.items():
                    shown = np.where(joined, np.asarray(value), np.nan)
                    curves.values[f"validation_{name}"][:, column] = shown
            if self.rule is not None:
                count = program(_density, self.task.functions, self.execution)
                share = np.where(joined, np.asarray(count(rows.mask)), np.nan)
                curves.values["density"][:, column] = share
        kept = moment.kept
        if kept is not None and (now := self.kept_at == b).any():
            kept = _put(kept, now, self.in_order(trees.host(rows)))
        return Moment(b, rows, best, curves, kept, since)

    def save(
        self,
        store: pathlib.Path,
        moment: Moment,
        own: dict[str, Any],
        changes: Sequence[Change],
    ) -> None:
        """Writes a checkpoint of a moment."""
        part = _stored_part(
            moment._replace(
                rows=self.in_order(trees.host(moment.rows)),
                best=moment.best and self.in_order(trees.host(moment.best)),
                curves=self.in_order(moment.curves),
            )
        )
        metadata = own | {
            "step": moment.step,
            "execution": self.execution._asdict(),
            "changes": [(c.step, c.execution._asdict()) for c in changes],
        }
        checkpoints.save(store, part, metadata)


def _mean_since(since: Sequence[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """The mean of a metric over the steps a row trained; nan for none."""
    values = np.concatenate([seen[name] for seen in since], axis=1)
    # Steps before a row joined are nan in `loss` too, as are those after it diverged.
    steps = np.isfinite(np.concatenate([seen["loss"] for seen in since], axis=1))
    total = np.where(steps, values, 0).sum(axis=1)
    return np.where(steps.any(axis=1), total / np.maximum(steps.sum(axis=1), 1), np.nan)


def joining(joins: np.ndarray, offset: np.ndarray, execution: Execution) -> Joining:
    """An order of rows in which every device has as many early as late ones.

    Devices own contiguous rows. Runs that join early cost more, so they are dealt like
    cards; runs that join together stay in their order.

    Args:
      joins: the step at which each run starts, int `[R]`.
      offset: of each run, int `[R]`.
      execution: the devices.
    """
    number = len(joins)
    total = execution.padded(number)
    rising = np.argsort(joins, kind="stable")
    cards = np.concatenate([rising, np.repeat(rising[-1:], total - number)])
    if (joins == joins[0]).all():
        deal = cards
    else:
        hands = cards.reshape(-1, execution.groups)
        # To and fro, so that nobody is always the first.
        odd = np.arange(len(hands))[:, None] % 2
        deal = np.where(odd, hands[:, ::-1], hands).T.reshape(-1)
    places = np.zeros(number, np.int64)
    places[deal[::-1]] = np.arange(total)[::-1]  # of copies, the first place counts
    real = np.isin(np.arange(total), places)
    never = np.iinfo(np.int32).max
    own_joins = np.where(real, joins[deal], never).astype(np.int32)
    return Joining(deal, places, own_joins, offset[deal].astype(np.int32))


def specs_of(tree: PyTree) -> PyTree:
    """Shapes, dtypes and placements of arrays: what a program is compiled for."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def shared_data(task: Task, execution: Execution, where: Where) -> PyTree:
    """A task's data on the devices, shipped once for all that goes on there."""
    mesh = execution._replace(chunk=1, convolution=None, precision=None)
    leaves, structure = jax.tree.flatten(task.data)
    return where.held.get(
        ("data", *map(id, leaves), structure, mesh),
        # The arrays stay with it, so that their ids stay their own.
        lambda: (execution.share(task.data), task.data),
    )[0]


def take(tree: PyTree, index: np.ndarray, execution: Execution) -> PyTree:
    """Rows of a stack on the devices; its own placement where nothing is to be moved."""
    index = np.asarray(index)
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return tree
    if (
        all(len(x) == len(index) for x in leaves)
        and (index == np.arange(len(index))).all()
    ):
        return execution.place(tree)
    if not all(isinstance(x, jax.Array) for x in leaves):
        return execution.place(trees.rows(trees.host(tree), index))
    mesh = execution._replace(chunk=1, convolution=None, precision=None)
    return program(_take, mesh)(tree, index)


# --- programs -------------------------------------------------------------------------


def _take(execution: Execution) -> Callable[..., Any]:
    return jax.jit(trees.rows, out_shardings=execution.sharded)


def _orders(functions: Task, execution: Execution, epochs: int) -> Callable[..., Any]:
    return execution.parallel(lambda key: loop.orders(functions, key, epochs), (0,))


def _train(
    functions: Task,
    execution: Execution,
    tx: optax.GradientTransformation,
    capacity: int,
) -> Callable[..., Any]:
    def train(
        data: PyTree,
        state: TrainState,
        noise: Key,
        order: Array,
        a: Array,
        b: Array,
        offset: Array,
        active: Array,
    ) -> tuple[TrainState, Metrics]:
        task, options = (
            functions._replace(data=data),
            dict(offset=offset, active=active),
        )
        return loop.train_steps(
            task, tx, state, noise, order, a, b, capacity=capacity, **options
        )

    return execution.parallel(train, (None, 0, 0, 0, None, None, 0, 0))


def _validate(functions: Task, execution: Execution) -> Callable[..., Any]:
    def validate(
        data: PyTree, state: TrainState, best: Best, step: Array, active: Array
    ) -> tuple[Best, Metrics]:
        found = _evaluated(functions, state.network, data, "validation")
        better = active & (found["loss"] < best.loss)
        now = Best(state.network, found["loss"].astype(jnp.float32), step)
        chosen = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)
        return chosen, found

    return execution.parallel(validate, (None, 0, 0, None, 0))


def tested(functions: Task, execution: Execution, split: str) -> Callable[..., Any]:
    """Builds the program that evaluates many networks on a split, `(data, networks)`."""

    def test(data: PyTree, network: Network) -> Metrics:
        return _evaluated(functions, network, data, split)

    return execution.parallel(test, (None, 0))


def _evaluated(functions: Task, network: Network, data: PyTree, split: str) -> Metrics:
    # Evaluation has one key: it draws nothing that may differ between steps or runs.
    params, model_state = network
    found = functions.evaluate(params, model_state, data, jax.random.key(0), split)
    return {name: x for name, x in found.items() if jnp.shape(x) == ()}


def _update_mask(
    functions: Task, execution: Execution, rule: UpdateMask
) -> Callable[..., Any]:
    def update(
        data: PyTree,
        state: TrainState,
        noise: Key,
        order: Array,
        step: Array,
        offset: Array,
        active: Array,
    ) -> TrainState:
        task = functions._replace(data=data)
        new = loop.update_mask(task, rule, state, noise, order, step, offset)
        return jax.tree.map(lambda n, o: jnp.where(active, n, o), new, state)

    return execution.parallel(update, (None, 0, 0, 0, None, 0, 0))


def _density(functions: Task, execution: Execution) -> Callable[..., Any]:
    flags = masks.of_task(functions)
    return execution.parallel(lambda mask: masks.density(mask, flags), (0,))


def _start(
    functions: Task, execution: Execution, tx: optax.GradientTransformation
) -> Callable[..., Any]:
    def start(key: Key) -> TrainState:
        params, model_state, stream = functions.init(key)
        network = Network(params, model_state)
        return loop.start(tx, network, stream, masks.ones_like(params))

    return execution.parallel(start, (0,))


# --- what goes with it ----------------------------------------------------------------


def fresh(
    task: Task,
    tx: optax.GradientTransformation,
    init: Key,
    noise: Key,
    *,
    where: Where | None = None,
) -> Runs:
    """Dense networks from draws of the task's initialisation, at step 0.

    Args:
      task: what is trained.
      tx: the optimizer.
      init: init keys, `[R]`.
      noise: noise keys, `[R]`.
      where: the devices that draw.
    """
    execution = ((where and where.execution) or default_execution()).check()
    zeros = np.zeros(init.shape[0], np.int32)
    drawn = program(_start, task.functions, execution, tx)(execution.spread(init))
    return Runs(drawn, noise, zeros, zeros)


def evaluate(
    task: Task,
    networks: Network,
    split: str = "test",
    *,
    where: Where | None = None,
) -> dict[str, np.ndarray]:
    """The scalars that a task's `evaluate` returns for each of many networks.

    Args:
      task: the task.
      networks: a stack of R.
      split: name of a split.
      where: the devices; on a full one fewer networks are evaluated at once.

    Returns:
      Arrays `[R]` by name, `loss` among them.

    Raises:
      MemoryError: not even one network fits on a device.
    """
    where = where or Where()
    execution = (where.execution or default_execution()).check()
    number = trees.count(networks.params)
    placed = execution.spread(networks)
    data = shared_data(task, execution, where)

    def attempt(execution: Execution) -> dict[str, np.ndarray]:
        found = program(tested, task.functions, execution, split)(data, placed)
        return {name: np.asarray(x)[:number] for name, x in found.items()}

    return memory.with_room(execution, number, attempt)[0]


def train_replicas(
    task: Task,
    tx: optax.GradientTransformation,
    steps: int,
    replicas: int | Sequence[int] = 5,
    *,
    seed: int = 0,
    validate_every: int | None = None,
    keep: Sequence[int] = (),
    rule: MaskUpdate | None = None,
    where: Where | None = None,
) -> Trained:
    """Trains dense networks of independent initialisation and noise, all at once.

    Args:
      task: what is trained.
      tx: the optimizer, with its schedule.
      steps: how many, from step 0.
      replicas: how many, or their ids; a replica's numbers depend on its id alone.
      seed: all keys follow from it and the id.
      validate_every: steps between validations; None for a tenth of the steps.
      keep: steps whose states are kept.
      rule: prunes, or changes the mask otherwise, while they train.
      where: devices, folder, who watches.

    Example:
      >>> done = lj.train(task, optax.adam(1e-3), steps=1000, replicas=5)
      >>> done.curves.values["validation_error"][:, -1]
    """
    ids = range(replicas) if isinstance(replicas, int) else tuple(replicas)
    at_least("replicas", len(ids), 1)
    found = keys_.of_replicas(seed, ids)
    runs = fresh(task, tx, found.init, found.noise, where=where)
    return train(
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
