"""How many replicas at once: estimates, probes, and a device that runs out of memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import engine, imp, memory, replicas, resume, study
from lottery_jax.memory import at_once, fewer, fitted, is_out_of_memory
from lottery_jax.replicas import Execution

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

    x = replicas.place(np.ones((8, 512), np.float32), execution)
    return replicas.parallel(one, (0,), execution), (x,)


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


# --- in a study -----------------------------------------------------------------------

PLAN = imp.Plan(steps=12, validate_every=4, arms=("ticket", "random_mask"))


def task():
    return toys.classification(lj.models.make("mlp-6", 4))


def run(execution, **more):
    tx = optax.sgd(0.05)
    more = {"levels": 1, "replicas": (0, 1)} | more
    return imp.run(task(), tx, PLAN, execution=execution, **more)


@functools.cache
def whole():
    """The study that nothing interrupts, one replica at a time."""
    return run(Execution(1, 1))


def full_from(monkeypatch, most, first_call):
    """Devices that run out of memory with more than `most` at once, from some call on."""
    build, calls = engine.compile_programs, []

    def build_limited(task, tx, execution, **more):
        programs = build(task, tx, execution, **more)

        def train(*args):
            calls.append(execution.chunk)
            if at_once(execution, 4) > most and len(calls) >= first_call:
                raise FULL
            return programs.train(*args)

        return programs._replace(train=train)

    monkeypatch.setattr(engine, "compile_programs", build_limited)
    return calls


def test_a_full_device_restarts_the_segment_with_fewer_at_once(monkeypatch, tmp_path):
    expected = whole().records
    calls = full_from(monkeypatch, most=2, first_call=3)
    with pytest.warns(RuntimeWarning, match="level 0, after step 8; .* chunk=2"):
        found = run(Execution(1, 0), folder=tmp_path, checkpoint_seconds=0)
    # Two segments of all four, the third one twice; level 1 as it ended.
    assert calls == [0, 0, 0, 2, 2, 2, 2]
    assert found.execution == Execution(1, 2)
    assert found.changes == (study.Change(0, 8, Execution(1, 2)),)
    for name, (_, values) in expected.items():
        if values.dtype.kind == "f":
            # 24 steps of rounding; the masks are the same.
            np.testing.assert_allclose(found.records[name][1], values, atol=1e-3)
    np.testing.assert_array_equal(found.records["alive"][1], expected["alive"][1])
    # The change is stored, and what goes on from there will know it.
    assert resume.stored_execution(tmp_path) == Execution(1, 2)
    assert resume.stored_changes(tmp_path) == found.changes


def test_a_device_too_small_for_one_loses_nothing(monkeypatch, tmp_path):
    calls = full_from(monkeypatch, most=0, first_call=3)
    with pytest.raises(MemoryError, match="one replica at a time"):
        run(Execution(1, 1), folder=tmp_path, checkpoint_seconds=0)
    assert len(calls) == 3
    monkeypatch.undo()
    seen = []
    done = run(None, folder=tmp_path, watch=seen.append)
    assert (seen[0].level, seen[0].step, seen[0].resumed) == (0, 8, True)
    toys.assert_same_records(done.records, whole().records)


def test_the_platforms_choice_is_fitted_before_training(monkeypatch):
    monkeypatch.setattr(imp, "default_execution", lambda: Execution(1, 0))
    calls = full_from(monkeypatch, most=2, first_call=1)
    found = run(None, levels=0)
    # A probe that fails, one that fits, and then the three segments of a level.
    assert calls == [0, 2, 2, 2, 2]
    assert found.execution == Execution(1, 2) and found.changes == ()


def test_a_resume_under_other_settings_is_recorded(tmp_path):
    class Killed(BaseException):
        pass

    def kill(moment):
        if moment.step == 8:
            raise Killed

    with pytest.raises(Killed):
        run(Execution(2, 1), folder=tmp_path, checkpoint_seconds=0, watch=kill)
    found = run(Execution(1, 1), folder=tmp_path)
    assert found.changes == (study.Change(0, 4, Execution(1, 1)),)
