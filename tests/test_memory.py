"""How many replicas at once: estimates, probes, and a device that runs out of memory."""

import collections
import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import toys

import lottery_jax as lj
from lottery_jax import imp, training
from lottery_jax.execution import Execution, memory, replicas
from lottery_jax.execution.memory import at_once, fewer, fitted, is_out_of_memory
from lottery_jax.training import programs

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FULL = jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."
)


@pytest.mark.parametrize(
    ("execution", "rows", "number"),
    [
        (Execution(2, 1), 9, 1),
        (Execution(2, 0), 9, 5),
        (Execution(2, 3), 9, 3),
        (Execution(2, 8), 9, 5),
        (Execution(2, 0, data_parallel=2), 9, 9),
    ],
)
def test_how_many_are_vmapped_at_once(execution, rows, number):
    assert at_once(execution, rows) == number


def test_fewer_until_it_is_one():
    chunks, execution = [], Execution(2, 0)
    while at_once(execution, 18) > 1:
        execution = fewer(execution, 18)
        chunks.append(execution.chunk)
    assert chunks == [4, 2, 1]
    with pytest.raises(MemoryError, match="one replica at a time; use fewer replicas"):
        fewer(execution, 18)
    assert fewer(Execution(1, 8), 8, 0.7).chunk == 5
    # Always fewer, and never none.
    assert fewer(Execution(1, 8), 8, 0.99).chunk == 7
    assert fewer(Execution(1, 8), 8, 0.0).chunk == 1


def test_only_a_full_device_counts_as_full():
    assert is_out_of_memory(FULL)
    assert not is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: a bug"))
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))


def wide(execution):
    """A program whose temporaries grow with the replicas at once: 1 MB each."""

    def one(x):
        # What a loop carries cannot be simplified away.
        y = jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ y), jnp.outer(x, x))
        return jnp.sum(y)

    x = execution.place(np.ones((8, 512), np.float32))
    return execution.parallel(one, (0,)), (x,)


def test_the_estimate_is_xlas_and_grows_with_the_replicas():
    fixed, one = memory.needed(*_flat(wide(Execution(1, 1))))
    same, all_ = memory.needed(*_flat(wide(Execution(1, 0))))
    assert fixed == same == 8 * 512 * 4 + 8 * 4
    assert all_ > 4 * one > 2**20


def _flat(prepared):
    program, args = prepared
    return program, *args


def test_as_many_as_an_estimate_allows():
    _, all_ = memory.needed(*_flat(wide(Execution(1, 0))))
    tried = []

    def prepare(execution):
        tried.append(execution.chunk)
        return wide(execution)

    enough = int(2 * all_)
    assert fitted(Execution(1, 0), 8, prepare, enough) == Execution(1, 0)
    found = fitted(Execution(1, 0), 8, prepare, int(0.6 * all_))
    assert 1 < found.chunk < 8
    _, chosen = memory.needed(*_flat(wide(found)))
    assert chosen < 0.6 * all_
    # Nothing is tried where there is no choice, and nothing fits into nothing.
    tried.clear()
    assert fitted(Execution(1, 1), 8, prepare, 0) == Execution(1, 1)
    assert not tried
    assert fitted(Execution(1, 0), 8, prepare, 0).chunk == 1


def test_a_probe_finds_what_the_estimate_did_not():
    ran = []

    def prepare(execution):
        program, args = wide(execution)

        def probed(*args):
            ran.append(execution.chunk)
            if execution.chunk == 0 or execution.chunk > 2:
                raise FULL
            return program(*args)

        return probed, args

    assert fitted(Execution(1, 0), 8, prepare).chunk == 2
    assert ran == [0, 4, 2]

    def broken(execution):
        def program(*args):
            raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

        return program, ()

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fitted(Execution(1, 0), 8, broken)


def test_a_compiler_that_finds_the_device_full_is_a_probe_that_failed():
    def prepare(execution):
        program, args = wide(execution)
        if execution.chunk == 0:
            raise FULL
        return program, args

    assert fitted(Execution(1, 0), 8, prepare).chunk == 4

    class Compiled:
        def __init__(self, execution):
            self.execution = execution
            self.program, _ = wide(execution)

        def lower(self, *args):
            if self.execution.chunk != 1:
                raise FULL
            return self.program.lower(*args)

    def compiled(execution):
        return Compiled(execution), wide(execution)[1]

    assert fitted(Execution(1, 0), 8, compiled, 2**40).chunk == 1


def test_a_device_may_say_late_that_it_is_full():
    class Late:
        """An array whose computation fails when it is waited for."""

        def __init__(self, chunk):
            self.chunk = chunk

        def block_until_ready(self):
            if self.chunk != 2:
                raise FULL
            return self

    late, execution = memory.with_room(Execution(1, 0), 8, lambda e: [Late(e.chunk)])
    assert late[0].chunk == execution.chunk == 2


def test_all_that_shares_a_where_shares_what_fits():
    at = lj.Where(Execution(1, 0), watch=lambda _: None)
    with pytest.warns(
        RuntimeWarning, match="in a test; went on from there with chunk=3"
    ):
        at.room.run("a test", Execution(1, 0), 6, _fails_beyond(3))
    for same in (
        at.below("x"),
        at.by(Execution(1, 8)),
        at.renamed(level=1),
        at.aside(),
    ):
        assert same.room is at.room
    assert at.aside().watch is None and lj.Where(folder="x").aside().folder is None
    # Fewer than fit stay as they are; more, and all, become as many as fit.
    for chunk, within in ((0, 3), (1, 1), (3, 3), (8, 3)):
        assert at.room.within(Execution(2, chunk, "loop")) == Execution(
            2, within, "loop"
        )
    done, execution = at.room.run("another", Execution(1, 4), 6, _fails_beyond(3))
    assert (done, execution) == (3, Execution(1, 3))
    assert lj.Where().room.within(Execution(1, 0)) == Execution(1, 0)


def _fails_beyond(most):
    def attempt(execution):
        if at_once(execution, 6) > most:
            raise FULL
        return execution.chunk

    return attempt


@pytest.mark.parametrize(
    ("place", "size"),
    [
        (lambda: Execution(2, 0).place(np.ones((4, 2**19), np.float32)), "4.0"),
        (lambda: Execution(2, 0).share(np.ones((4, 2**19), np.float32)), "8.0"),
        (
            lambda: lj.train(task(), TX, 12, 2, validate_every=4, where=where(0)),
            "0.0",
        ),
        (
            lambda: training.evaluate(task(), dense_at_rest().networks, where=where(0)),
            "0.0",
        ),
    ],
)
def test_what_lies_on_a_device_as_a_whole_is_refused_by_name(place, size, monkeypatch):
    dense_at_rest()

    def put(*_):
        raise FULL

    monkeypatch.setattr(jax, "device_put", put)
    with pytest.raises(MemoryError, match=f"no room for arrays of {size} MiB that lie"):
        place()


# --- wherever something is trained ----------------------------------------------------

PLAN = imp.Plan(steps=12, validate_every=4, arms=("ticket", "random_mask"))
TX = optax.sgd(0.05)


@functools.cache
def task():
    return toys.classification(lj.models.make("mlp-6", 4))


def where(chunk, **more):
    execution = None if chunk is None else Execution(1, chunk)
    return lj.Where(execution, **more)


def study(where, levels=1):
    return imp.run(task(), TX, PLAN, levels=levels, replicas=(0, 1), where=where)


def retrained(where):
    found = study_at_rest()
    tickets = imp.tickets_of(found)
    plan = dataclasses.replace(PLAN, arms=("ticket", "reinit"))
    return imp.retrain(task(), TX, plan, tickets, level=1, replicas=(0, 1), where=where)


@functools.cache
def study_at_rest():
    """The study that nothing interrupts, one replica at a time."""
    return study(where(1))


@functools.cache
def dense_at_rest():
    return lj.train(task(), TX, 12, 4, validate_every=4, where=where(1))


class Limited:
    """A program on a device that is full with more than `most` networks at once."""

    def __init__(self, inner, most, calls, first_call, execution):
        self.inner, self.most, self.calls = inner, most, calls
        self.first_call, self.execution = first_call, execution

    def __call__(self, data, state, *args):
        self.calls.append(self.execution.chunk)
        rows = len(jax.tree.leaves(state)[0])
        over = at_once(self.execution, rows) > self.most
        if over and len(self.calls) >= self.first_call:
            raise FULL
        return self.inner(data, state, *args)

    def lower(self, *args):
        return self.inner.lower(*args)


@pytest.fixture
def full(monkeypatch):
    """`full(most)`: devices with room for so many networks; gives the calls to them."""

    def limit(most, first_call=1, only="train", quickly=True):
        parallel, calls = Execution.parallel, []

        def limited(self, function, in_axes):
            made = parallel(self, function, in_axes)
            if function.__name__ != only:
                return made
            return Limited(made, most, calls, first_call, self)

        monkeypatch.setattr(Execution, "parallel", limited)
        # Programs of a device with more room are forgotten.
        monkeypatch.setattr(programs, "_made", collections.OrderedDict())
        if quickly:
            compiling.enter_context(quick.compilation())
        return calls

    with contextlib.ExitStack() as compiling:
        yield limit


def test_a_full_device_restarts_the_segment_with_fewer_at_once(full):
    expected = dense_at_rest()
    calls = full(most=2, first_call=3)
    with pytest.warns(RuntimeWarning, match="in training, after step 8; .* chunk=2"):
        done = lj.train(task(), TX, 12, 4, validate_every=4, where=where(0))
    assert calls == [0, 0, 0, 2]
    assert done.execution == Execution(1, 2)
    assert done.changes == (training.Change(8, Execution(1, 2)),)
    toys.assert_close(done.networks, expected.networks, atol=1e-4)
    toys.assert_close(done.curves.values, expected.curves.values, atol=1e-4)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_full_device_evaluates_fewer_at_once(full, split):
    networks = dense_at_rest().networks
    expected = training.evaluate(task(), networks, split, where=where(1))
    calls = full(most=1, only="test")
    at = where(0)
    with pytest.warns(RuntimeWarning, match=f"the evaluation on '{split}'; .* chunk=1"):
        found = training.evaluate(task(), networks, split, where=at)
    assert calls == [0, 2, 1]
    # What follows does not fail again.
    training.evaluate(task(), networks, split, where=at.below("x").by(Execution(1, 4)))
    assert calls == [0, 2, 1, 1]
    toys.assert_close(found, expected)
    with pytest.raises(MemoryError, match="one replica at a time"):
        full(most=0, only="test")
        training.evaluate(task(), networks, split, where=where(0))


def test_a_full_device_in_validation_is_survived_too(full):
    full(most=2, only="validate")
    with pytest.warns(RuntimeWarning, match="in training, after step 0; .* chunk=2"):
        done = lj.train(task(), TX, 12, 4, validate_every=4, where=where(0))
    assert done.changes == (training.Change(0, Execution(1, 2)),)
    toys.assert_close(done.curves.values, dense_at_rest().curves.values, atol=1e-4)


@pytest.mark.slow
def test_a_full_device_in_a_study(full, tmp_path):
    expected = study_at_rest().records
    calls = full(most=2, first_call=3)
    with pytest.warns(RuntimeWarning, match="after step 8; .* chunk=2"):
        found = study(where(0, folder=tmp_path, checkpoint_seconds=0))
    # Two segments of all four, the third one twice; level 1 as it ended.
    assert calls == [0, 0, 0, 2, 2, 2, 2]
    assert found.execution == Execution(1, 2)
    assert found.changes == (imp.Change(0, 8, Execution(1, 2)),)
    for name, (_, values) in expected.items():
        if values.dtype.kind == "f":
            # 24 steps of rounding; the masks are the same.
            np.testing.assert_allclose(found.records[name][1], values, atol=1e-3)
    np.testing.assert_array_equal(found.records["alive"][1], expected["alive"][1])
    # The change is stored, and what goes on from there knows it.
    again = study(where(None, folder=tmp_path))
    assert (again.execution, again.changes) == (found.execution, found.changes)


def test_a_full_device_in_a_study_that_is_retrained(full):
    expected = retrained(where(1))
    full(most=2, first_call=2)
    with pytest.warns(RuntimeWarning, match="after step 4; .* chunk=2"):
        found = retrained(where(0))
    assert found.changes == (imp.Change(1, 4, Execution(1, 2)),)
    assert found.execution == Execution(1, 2)
    for name in ("test_error", "test_loss", "train_loss"):
        np.testing.assert_allclose(
            found.records[name][1], expected.records[name][1], atol=1e-3
        )


def test_a_device_too_small_for_one_loses_nothing(full, tmp_path, monkeypatch):
    with (
        monkeypatch.context(),
        pytest.raises(MemoryError, match="one replica at a time"),
    ):
        calls = full(most=0, first_call=3, quickly=False)
        study(where(1, folder=tmp_path, checkpoint_seconds=0))
    assert len(calls) == 3
    monkeypatch.undo()
    seen = []
    done = study(where(None, folder=tmp_path, watch=seen.append))
    assert (seen[0].level, seen[0].done, seen[0].resumed) == (0, 8, True)
    toys.assert_same_records(done.records, study_at_rest().records)


def test_the_platforms_choice_is_fitted_before_training(full, monkeypatch):
    monkeypatch.setitem(replicas._OF_PLATFORM, "cpu", (0, "loop", "float32"))
    calls = full(most=1)
    done = lj.train(task(), TX, 12, 4, validate_every=4)
    # A probe that fails, and, as one at a time needs none, the three segments.
    assert calls == [0, 1, 1, 1]
    assert done.execution.chunk == 1 and done.changes == ()


def test_processes_agree_on_the_smallest_number(full, monkeypatch):
    full(most=9)
    monkeypatch.setitem(replicas._OF_PLATFORM, "cpu", (0, "loop", "float32"))

    class Meeting:
        def smallest(self, name, value):
            assert (name, value) == ("chunk", 2**31 - 1)
            return 1

    done = lj.train(
        task(), TX, 12, 4, validate_every=4, where=where(None, meeting=Meeting())
    )
    assert done.execution.chunk == 1


def test_a_resume_under_other_settings_is_recorded(tmp_path):
    class Killed(BaseException):
        pass

    def kill(progress):
        if progress.done == 8:
            raise Killed

    with pytest.raises(Killed):
        study(lj.Where(Execution(2, 1), tmp_path, checkpoint_seconds=0, watch=kill))
    found = study(where(1, folder=tmp_path))
    assert found.changes == (imp.Change(0, 4, Execution(1, 1)),)
