"""Many replicas: vmapped = looped = sharded, padding, independence, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import replicas, training
from lottery_jax.replicas import Execution
from lottery_jax.types import Network

STEPS, NUMBER = 8, 6
CHUNKS = {"looped": 1, "chunks of 2": 2, "vmapped": 0}


@functools.cache
def trained(devices, chunk, first=0, number=NUMBER):
    """Networks after 8 steps of Adam under one placement, and their losses."""
    execution = Execution(devices, chunk)
    task = toys.classification(lj.models.make("mlp-8", 4))
    tx = optax.adam(0.01)

    def one(data, key, active):
        bound = task._replace(data=data)
        params, model_state, stream = task.init(jax.random.fold_in(key, 0))
        mask = jax.tree.map(lambda p: jnp.abs(p) > 0.1, params)
        state = training.start(tx, Network(params, model_state), stream, mask)
        order = training.orders(bound, key, training.epochs_of(bound, STEPS))
        return training.train(
            bound, tx, state, key, order, 0, STEPS, capacity=STEPS, active=active
        )

    program = replicas.parallel(one, (None, 0, 0), execution)
    ids = jnp.arange(first, first + number)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(ids)
    # One of them waits throughout.
    keys, active = replicas.place((keys, np.asarray(ids) != 1), execution)
    data = jax.device_put(task.data, replicas.shared(execution))
    out = program(data, keys, active)
    program(data, *replicas.place((keys, np.ones(number, bool)), execution))
    assert program._cache_size() == 1
    return jax.tree.map(np.asarray, out), program, (data, keys, active)


def test_sharded_equals_looped_bit_for_bit():
    toys.assert_equal(trained(2, 1)[0], trained(1, 1)[0])


@pytest.mark.parametrize(("devices", "chunk"), [(1, 0), (2, 2)])
def test_vmapped_equals_looped(devices, chunk):
    # After 8 steps from one state; rounding grows without bound later on. Three replicas
    # of a device in chunks of two leave a rest.
    toys.assert_close(trained(devices, chunk)[0], trained(1, 1)[0], atol=1e-5)


def test_a_replica_equals_itself_in_other_company():
    together, alone = trained(1, 1)[0], trained(1, 1, first=3, number=2)[0]
    toys.assert_equal(jax.tree.map(lambda x: x[3:5], together), alone)


def test_replicas_that_wait_cost_nothing_where_they_run_one_by_one():
    # A real branch; under vmap it becomes a selection after both sides have run.
    looped, vmapped = trained(1, 1), trained(1, 0)
    assert " cond[" in str(jax.make_jaxpr(looped[1])(*looped[2]))
    assert " cond[" not in str(jax.make_jaxpr(vmapped[1])(*vmapped[2]))
    assert np.isnan(looped[0][1]["loss"][1]).all()
    assert np.isfinite(looped[0][1]["loss"][2]).all()


@pytest.mark.parametrize("number", [1, 3, 9])
@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize("devices", [1, 2])
def test_any_number_of_replicas_after_padding(number, devices, chunk):
    execution = Execution(devices, chunk)
    size = replicas.padded(number, execution)
    assert size >= number and size % devices == 0 and size - number < devices
    x = np.arange(size * 3, dtype=np.float32).reshape(size, 3)
    program = replicas.parallel(
        lambda x, shared, i: {"y": x * shared + i, "i": i}, (0, None, 0), execution
    )
    place = functools.partial(replicas.place, execution=execution)
    out = program(place(x), np.float32(2), place(np.arange(size, dtype=np.int32)))
    np.testing.assert_array_equal(out["y"], x * 2 + np.arange(size)[:, None])
    np.testing.assert_array_equal(out["i"], np.arange(size))
    assert out["y"].sharding == replicas.sharded(execution)
    assert len(out["y"].sharding.device_set) == devices


def test_what_devices_do_not_divide_is_refused():
    execution = Execution(2, 1)
    program = replicas.parallel(lambda x: x, (0,), execution)
    with pytest.raises(ValueError, match="3"):
        program(np.zeros((3, 2), np.float32))


@pytest.mark.parametrize("in_axes", [(0, 1), (None, None), (-1,), ()])
def test_in_axes_that_make_no_sense(in_axes):
    with pytest.raises(ValueError, match="in_axes="):
        replicas.parallel(lambda *x: x, in_axes, Execution(1, 1))


@pytest.mark.parametrize(
    ("execution", "field"),
    [
        (Execution(0, 1), "devices=0"),
        (Execution(3, 1), "devices=3; it must be between 1 and 2"),
        (Execution(1, -1), "chunk=-1"),
    ],
)
def test_executions_that_do_not_fit(execution, field):
    with pytest.raises(ValueError, match=field):
        replicas.check_execution(execution)
    with pytest.raises(ValueError, match=field):
        replicas.parallel(lambda x: x, (0,), execution)


def test_on_a_cpu_replicas_run_one_by_one_on_every_core():
    assert replicas.default_execution() == Execution(devices=2, chunk=1)
    assert replicas.check_execution(Execution(2, 1)) == Execution(2, 1)
