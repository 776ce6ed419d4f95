"""Many replicas: vmapped = looped = sharded, padding, independence, errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import toys

import lottery_jax as lj
from lottery_jax import training
from lottery_jax.execution import Execution, default_execution
from lottery_jax.models import layers
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS, NUMBER = 8, 6
PER_EXECUTION = {
    "2 devices, looped": Execution(2, 1),
    "vmapped, grouped": Execution(1, 0, "grouped"),
    "vmapped in twos, loop": Execution(1, 2, "loop"),
    "vmapped on 2 devices, tiles": Execution(2, 0, "tiles"),
    "2 devices share a batch": Execution(2, 1, data_parallel=2),
    "2 devices share a batch, vmapped": Execution(2, 0, "tiles", None, 2),
    "float32 by name": Execution(1, 1, None, "float32"),
}
CHUNKS = {"looped": 1, "chunks of 2": 2, "vmapped": 0}


@functools.cache
def trained(devices, chunk, first=0, number=NUMBER):
    """Networks after 8 steps of Adam under one placement, and their losses."""
    task = toys.classification(lj.models.make("mlp-8", 4))
    return trained_by(Execution(devices, chunk), task, first, number)


def trained_by(execution, task, first=0, number=NUMBER):
    tx = optax.adam(0.01)

    traces = []

    def one(data, key, active):
        traces.append(key)
        bound = task._replace(data=data)
        params, model_state, stream = task.init(jax.random.fold_in(key, 0))
        mask = jax.tree.map(lambda p: jnp.abs(p) > 0.1, params)
        state = training.start(tx, Network(params, model_state), stream, mask)
        return training.train_steps(
            bound, tx, state, key, 0, STEPS, capacity=STEPS, active=active
        )

    program = execution.parallel(one, (None, 0, 0))
    ids = jnp.arange(first, first + number)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(ids)
    # One of them waits throughout.
    keys, active = execution.place((keys, np.asarray(ids) != 1))
    data = execution.share(task.data)
    out = program(data, keys, active)
    before = len(traces)
    program(data, *execution.place((keys, np.ones(number, bool))))
    assert len(traces) == before
    return jax.tree.map(np.asarray, out), program, (data, keys, active)


def test_sharded_equals_looped_bit_for_bit():
    toys.assert_equal(trained(2, 1)[0], trained(1, 1)[0])


@pytest.mark.parametrize(("devices", "chunk"), [(1, 0), (2, 2)])
def test_vmapped_equals_looped(devices, chunk):
    # After 8 steps from one state; rounding grows without bound later on. Three replicas
    # of a device in chunks of two leave a rest.
    toys.assert_close(trained(devices, chunk)[0], trained(1, 1)[0], atol=1e-5)


class OnImages(nn.Module):
    """Convolution, BatchNorm, strides; its eight inputs are an image of 4 x 2 pixels."""

    @nn.compact
    def __call__(self, x, train=False, weights=None):
        x = layers.Conv(6, stride=2, use_bias=False, name="conv")(
            x.reshape(-1, 4, 2, 1)
        )
        x = lj.models.BatchNorm(name="norm")(x, train, weights)
        return layers.Dense(4, name="head")(jax.nn.relu(x).reshape(x.shape[0], -1))


@functools.cache
def on_images():
    return toys.classification(OnImages())


def trained_on_images(execution):
    with quick.compilation():
        return trained_by(execution, on_images(), number=4)[0]


@functools.cache
def images_alone():
    return trained_on_images(Execution(1, 1))


@pytest.mark.parametrize("name", PER_EXECUTION)
def test_no_way_to_execute_changes_a_result(name):
    # At most 8 steps from one state, as above; a step divides by small variances.
    got = trained_on_images(PER_EXECUTION[name])
    toys.assert_close(got, images_alone(), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tensorfloat32", "bfloat16"])
def test_a_precision_rounds_and_does_no_more(precision):
    got = trained_on_images(Execution(2, 1, None, precision))
    want = images_alone()
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), got[1], want[1])
    losses = np.nan_to_num(got[1]["loss"] - want[1]["loss"])
    assert 1e-6 < np.abs(losses).max() < 0.1, difference


def test_devices_share_no_batch_that_they_do_not_divide():
    task = toys.classification(lj.models.make("mlp-8", 4), batch_size=5)
    with pytest.raises(ValueError, match="data_parallel=2; it must divide the 5"):
        trained_by(Execution(2, 1, data_parallel=2), task, number=2)


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
    size = execution.padded(number)
    assert size >= number and size % devices == 0 and size - number < devices
    x = np.arange(size * 3, dtype=np.float32).reshape(size, 3)
    program = execution.parallel(
        lambda x, shared, i: {"y": x * shared + i, "i": i}, (0, None, 0)
    )
    place = execution.place
    out = program(place(x), np.float32(2), place(np.arange(size, dtype=np.int32)))
    np.testing.assert_array_equal(out["y"], x * 2 + np.arange(size)[:, None])
    np.testing.assert_array_equal(out["i"], np.arange(size))
    assert out["y"].sharding == execution.sharded
    assert len(out["y"].sharding.device_set) == devices


def test_what_devices_do_not_divide_is_refused():
    execution = Execution(2, 1)
    program = execution.parallel(lambda x: x, (0,))
    with pytest.raises(ValueError, match="3"):
        program(np.zeros((3, 2), np.float32))


@pytest.mark.parametrize("in_axes", [(0, 1), (None, None), (-1,), ()])
def test_in_axes_that_make_no_sense(in_axes):
    with pytest.raises(ValueError, match="in_axes="):
        Execution(1, 1).parallel(lambda *x: x, in_axes)


@pytest.mark.parametrize(
    ("execution", "field"),
    [
        (Execution(0, 1), "devices=0"),
        (Execution(3, 1), "devices=3; it must be between 1 and 2"),
        (Execution(1, -1), "chunk=-1"),
        (Execution(2, 1, "im2col"), "convolution='im2col'; it must be one of loop"),
        (Execution(2, 1, None, "float16"), "precision='float16'; it must be one of"),
        (
            Execution(2, 1, activations="float16"),
            "activations='float16'; it must be one",
        ),
        (
            Execution(2, 1, activations=None),
            "activations=None; it must be one of float32",
        ),
        (Execution(2, 1, data_parallel=0), "data_parallel=0; it must divide devices=2"),
        (Execution(1, 1, data_parallel=2), "data_parallel=2; it must divide devices=1"),
    ],
)
def test_executions_that_do_not_fit(execution, field):
    with pytest.raises(ValueError, match=field):
        execution.check()
    with pytest.raises(ValueError, match=field):
        execution.parallel(lambda x: x, (0,))


def test_on_a_cpu_replicas_run_one_by_one_on_every_core():
    default = default_execution()
    assert default[:2] == (2, 1) and default.data_parallel == 1
    assert (default.convolution, default.precision) == ("loop", "float32")
    assert default.activations == "float32"
    assert Execution(2, 1).check() == Execution(2, 1)
