"""One segment of many runs: all that is done between two moments on the way.

A `Moment` is all that the next segment needs; a segment makes a new one and changes
nothing, so that it can be tried again with fewer runs at once.
"""

import pathlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import masks, streams, trees
from lottery_jax.dynamic.rules import MaskUpdate, StartMask, UpdateMask
from lottery_jax.execution import GROUP, Execution, Where
from lottery_jax.optimizers.settings import Optimizer, at
from lottery_jax.storage import checkpoints
from lottery_jax.training import loop, measured
from lottery_jax.training.measured import evaluated, loss_metrics, metrics
from lottery_jax.training.programs import Program, program
from lottery_jax.training.rows import Joining, joining, shared_data, specs_of, take
from lottery_jax.training.windows import TRAIN, Reader, Window, seen
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
      hyper: values by the names of hyperparameters, float32 `[R]`, where the optimizer is
        a function of them.
    """

    state: TrainState
    noise: Key
    joins: np.ndarray
    offset: np.ndarray
    hyper: Mapping[str, np.ndarray] = {}


class Change(NamedTuple):
    """A moment from which on runs were executed in another way.

    Attributes:
      step: the last step that was made in the old way.
      execution: the new way.
    """

    step: int
    execution: Execution


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


def first_moment(
    task: Task,
    runs: Runs,
    columns: Sequence[int],
    kept_at: np.ndarray,
    validate: bool,
    rule: MaskUpdate | None,
) -> Moment:
    """The moment before the first step, in the order of the runs.

    Args:
      task: what is trained.
      runs: what each starts from.
      columns: the steps at which something is recorded.
      kept_at: the steps at which each run's state is kept, `[R, K]`.
      validate: whether there will be a best network.
      rule: changes masks, whose density is then recorded.
    """
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


def stored_part(moment: Moment) -> dict[str, Any]:
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


class Work:
    """Runs laid out on devices, and the programs that carry them: what `train` drives.

    The devices may change their settings on the way, so what depends on these is placed
    by `place`; all else is fixed.
    """

    at: Joining
    execution: Execution
    reader: Reader | None = None

    def __init__(
        self,
        task: Task,
        tx: Optimizer,
        runs: Runs,
        capacity: int,
        validate: bool,
        rule: MaskUpdate | None,
        kept_at: np.ndarray,
    ) -> None:
        self.task, self.tx, self.runs = task, tx, runs
        self.capacity = capacity
        self.streamed = streams.streamed(task.data)
        self.validates, self.rule, self.kept_at = validate, rule, kept_at

    def place(self, execution: Execution, where: Where) -> None:
        """Puts all that stays the same onto the devices, and names the programs."""
        self.execution, self._where = execution, where
        self.at = joining(self.runs.joins, self.runs.offset, execution)
        functions, away = self.task.functions, TRAIN in self.streamed
        of = (functions, execution)
        self._train = program(train_rows, *of, self.tx, self.capacity, away)
        self._validate = None
        if self.validates and "validation" not in self.streamed:
            self._validate = program(_validate, *of)
        self.data = shared_data(self.task, execution, where)
        self.noise = execution.place(self.runs.noise[self.at.deal])
        self.offset = execution.place(self.at.offset)
        hyper = {name: x[self.at.deal] for name, x in self.runs.hyper.items()}
        self.hyper = execution.place(hyper)
        if away:
            at, longest = self.at, self.capacity
            own = self.noise, at.joins, at.offset, where.window, longest
            self.reader = Reader(self.task, execution, *own)

    def windows(
        self, segments: Sequence[tuple[int, int]]
    ) -> Generator[Window | None, None, None]:
        """The examples of each segment, of a split that is streamed; None for others."""
        if self.reader is None:
            yield from [None] * len(segments)
        else:
            yield from self.reader.windows(segments, self._where.waited)

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
        specs = specs_of((self.data, moment.rows, self.noise))
        active = jax.ShapeDtypeStruct(
            self.at.joins.shape, np.bool_, sharding=self.execution.sharded
        )
        if self._validate is not None:
            best = specs_of(moment.best)
            self._validate.ahead(specs[0], specs[1], best, step, active)
        hyper, offset = specs_of((self.hyper, self.offset))
        window = () if self.reader is None else self.reader.specs()
        self._train.ahead(*specs, step, step, hyper, offset, active, *window)

    def one_step(self, moment: Moment) -> tuple[Program, tuple[Any, ...]]:
        """The training program and the arguments of a segment of one step, to try it."""
        active = self.execution.place(
            np.isin(np.arange(len(self.at.deal)), self.at.places)
        )
        bounds = np.int32(0), np.int32(1)
        args = self.data, moment.rows, self.noise
        window = () if self.reader is None else self.reader.empty()
        return self._train, (*args, *bounds, self.hyper, self.offset, active, *window)

    def in_order(self, tree: PyTree) -> PyTree:
        """From rows to the order of the runs, on the host."""
        if isinstance(tree, Curves):
            values = {name: x[self.at.places] for name, x in tree.values.items()}
            return Curves(tree.steps, values, tree.first_nan[self.at.places])
        return trees.rows(tree, self.at.places)

    def _by_row(self, curves: Curves) -> Curves:
        values = {name: x[self.at.deal] for name, x in curves.values.items()}
        return Curves(curves.steps, values, curves.first_nan[self.at.deal])

    def segment(self, moment: Moment, a: int, b: int, window: Window | None) -> Moment:
        """Trains the steps [a, b), and does what is due after them.

        Args:
          moment: at step a.
          a: the first step.
          b: the end.
          window: their examples, where the split "train" is streamed.
        """
        own = () if window is None else window
        joined = self.at.joins <= a
        active = self.execution.place(joined)
        rows = moment.rows
        if self.rule is not None and self.rule.start is not None:
            begins = self.at.joins == a
            if begins.any():
                start = program(_start_mask, self.execution, self.tx, self.rule.start)
                place = self.execution.place
                rows = start(rows, self.noise, self.hyper, place(begins))
        if self.rule is not None and a in self.rule.steps():
            update = program(
                *(_update_mask, self.task.functions, self.execution),
                *(self.tx, self.rule.update, window is not None),
            )
            rows = update(
                *(self.data, rows, self.noise),
                *(np.int32(a), self.hyper, self.offset, active, *own),
            )
        rows, found = self._train(
            *(self.data, rows, self.noise),
            *(np.int32(a), np.int32(b), self.hyper, self.offset, active, *own),
        )
        scalars = {name: np.asarray(x)[:, : b - a] for name, x in found.items()}
        curves = Curves(
            moment.curves.steps,
            {name: x.copy() for name, x in moment.curves.values.items()},
            moment.curves.first_nan.copy(),
        )
        bad = ~np.isfinite(scalars["loss"]) & joined[:, None]
        new = bad.any(axis=1) & np.isnan(curves.first_nan)
        curves.first_nan[new] = (a + bad.argmax(axis=1))[new]
        since, best = (*moment.since, scalars), moment.best
        if b in curves.steps:
            column = int(np.searchsorted(curves.steps, b))
            for name in scalars:
                curves.values[f"train_{name}"][:, column] = _mean_since(since, name)
            since = ()
            if best is not None:
                best, valued = self._validated(rows, best, b, active)
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

    def _validated(
        self, rows: TrainState, best: Best, step: int, active: Array
    ) -> tuple[Best, Metrics]:
        """The best networks after a validation, and what was measured in it."""
        if self._validate is not None:
            return self._validate(self.data, rows, best, np.int32(step), active)
        of = self.task, self.execution, "validation", self._where
        found = measured.in_parts(*of, rows.network)
        better = program(_better, self.execution)
        return better(rows.network, best, np.int32(step), active, found), found

    def save(
        self,
        store: pathlib.Path,
        moment: Moment,
        own: dict[str, Any],
        changes: Sequence[Change],
    ) -> None:
        """Writes a checkpoint of a moment."""
        part = stored_part(
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


def train_rows(
    functions: Task,
    execution: Execution,
    tx: Optimizer,
    capacity: int,
    streamed: bool = False,
) -> Callable[..., Any]:
    """The steps of a segment of many runs, about to be compiled.

    Args:
      functions: the task without its data.
      execution: the devices.
      tx: the optimizer, or a function of settings.
      capacity: the most steps of a segment.
      streamed: whether the examples come in a window.

    Returns:
      Of data, state, noise key, step bounds a and b, settings, offset, whether the run
      trains, and, if streamed, examples and places: the state at b, and the metrics of
      each step, `[capacity]`. All but data and bounds are by run.
    """

    def train(
        data: PyTree,
        state: TrainState,
        noise: Key,
        a: Array,
        b: Array,
        hyper: Mapping[str, Array],
        offset: Array,
        active: Array,
        *window: PyTree,
    ) -> tuple[TrainState, Metrics]:
        task = functions._replace(data=data)
        if streamed:
            examples, places = window
            task = seen(functions, data, examples, places, a + offset)

        def steps(active: Array | bool) -> tuple[TrainState, Metrics]:
            return loop.train_steps(
                *(task, at(tx, hyper), state, noise, a, b),
                capacity=capacity,
                offset=offset,
                active=active,
            )

        if execution.chunk == 1:
            return steps(active)
        # A branch by replica would be none under `vmap`, and would give each replica a copy
        # of the data and bounds of its own, at which all of its state is selected anew.
        after = steps(True)
        before = state, jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), after[1])
        return jax.tree.map(lambda x, y: jnp.where(active, x, y), after, before)

    window = (GROUP, 0) if streamed else ()
    return execution.parallel(train, (None, 0, 0, None, None, 0, 0, 0, *window))


def _validate(functions: Task, execution: Execution) -> Callable[..., Any]:
    def validate(
        data: PyTree, state: TrainState, best: Best, step: Array, active: Array
    ) -> tuple[Best, Metrics]:
        found = evaluated(functions, state.network, data, "validation")
        return _best_of(state.network, best, step, active, found), found

    return execution.parallel(validate, (None, 0, 0, None, 0))


def _better(execution: Execution) -> Callable[..., Any]:
    return execution.parallel(_best_of, (0, 0, None, 0, 0))


def _best_of(
    network: Network, best: Best, step: Array, active: Array, found: Metrics
) -> Best:
    """The better of two networks by validation loss, of a run that trains."""
    better = active & (found["loss"] < best.loss)
    now = Best(network, found["loss"].astype(jnp.float32), step)
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)


def _update_mask(
    functions: Task,
    execution: Execution,
    tx: Optimizer,
    rule: UpdateMask,
    streamed: bool = False,
) -> Callable[..., Any]:
    def update(
        data: PyTree,
        state: TrainState,
        noise: Key,
        step: Array,
        hyper: Mapping[str, Array],
        offset: Array,
        active: Array,
        *window: PyTree,
    ) -> TrainState:
        task = functions._replace(data=data)
        if streamed:
            examples, places = window
            task = seen(functions, data, examples, places, step + offset)
        own = at(tx, hyper)
        new = loop.update_mask(task, own, rule, state, noise, step, offset)
        return jax.tree.map(lambda n, o: jnp.where(active, n, o), new, state)

    window = (GROUP, 0) if streamed else ()
    return execution.parallel(update, (None, 0, 0, None, 0, 0, 0, *window))


def _start_mask(
    execution: Execution, tx: Optimizer, rule: StartMask
) -> Callable[..., Any]:
    def start(
        state: TrainState, noise: Key, hyper: Mapping[str, Array], begins: Array
    ) -> TrainState:
        new = loop.start_mask(at(tx, hyper), rule, state, noise)
        return jax.tree.map(lambda n, o: jnp.where(begins, n, o), new, state)

    return execution.parallel(start, (0, 0, 0, 0))


def _density(functions: Task, execution: Execution) -> Callable[..., Any]:
    flags = masks.of_task(functions)
    return execution.parallel(lambda mask: masks.density(mask, flags), (0,))
