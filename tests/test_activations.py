"""bfloat16 activations: what is stored so, what stays float32, and what still holds."""

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
from lottery_jax import activations, training
from lottery_jax.connectivity import Measure, linear
from lottery_jax.execution import Execution, Where
from lottery_jax.models import layers
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

NARROW = Execution(2, 1, activations="bfloat16")
UNIT = 2.0**-8
"""The largest relative error of rounding to bfloat16, which keeps 8 bits."""

MODELS = {
    # One of each family: the side of its images.
    "lenet-8-6": 8,
    "residual-mlp-8": 8,
    "conv-2-4": 8,
    "vgg-11-4": 16,
    "resnet-8-4": 8,
    "imagenet-resnet-18-4": 16,
    "imagenet-resnet-50-4": 16,
    "tiny-imagenet-resnet-18-4": 8,
}


def made(name, examples=3):
    """A model, the shapes of its variables and of some images."""
    model, side = lj.models.make(name, 4), MODELS[name]
    x = jax.ShapeDtypeStruct((examples, side, side, 3), jnp.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0), x), x


def loss_of(model, variables, x, labels):
    """A training loss as a function of params."""

    def loss(params):
        logits, _ = model.apply(
            {**variables, "params": params}, x, True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


def equations(jaxpr, name):
    """All equations of a primitive, at any depth."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == name:
            yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner, name)


# --- dtypes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train"), [*((name, True) for name in MODELS), ("resnet-8-4", False)]
)
def test_every_layer_of_every_model_passes_bfloat16_on_and_logits_are_float32(
    name, train
):
    model, variables, x = made(name)

    def run(variables, x):
        return model.apply(
            variables,
            x,
            train,
            capture_intermediates=True,
            mutable=["intermediates", "batch_stats"],
        )

    with activations.stored_as("bfloat16"):
        logits, state = jax.eval_shape(run, variables, x)
    found = lj.trees.by_path(state["intermediates"])
    wide = {path for path, leaf in found.items() if leaf.dtype != jnp.bfloat16}
    assert len(found) > 3 and {leaf.dtype for leaf in found.values()} == {
        jnp.dtype("bfloat16"),
        jnp.dtype("float32"),
    }
    assert wide == {"__call__/0", "head/__call__/0"}
    assert logits.dtype == jnp.float32
    for leaf in jax.tree.leaves(state.get("batch_stats", {})):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize("name", ["lenet-8-6", "conv-2-4", "vgg-11-4", "resnet-8-4"])
def test_products_read_and_write_bfloat16_and_gradients_of_kernels_are_float32(name):
    model, variables, x = made(name)

    def gradient(variables, x, labels):
        return jax.grad(loss_of(model, variables, x, labels))(variables["params"])

    labels = jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)
    with activations.stored_as("bfloat16"):
        traced = jax.make_jaxpr(gradient)(variables, x, labels)
    products = 0
    for primitive, reads, writes in (
        ("lottery_conv", ["bfloat16", "float32"], "bfloat16"),
        ("lottery_conv_input_gradient", ["bfloat16", "float32"], "bfloat16"),
        ("lottery_conv_kernel_gradient", ["bfloat16", "bfloat16"], "float32"),
    ):
        for eqn in equations(traced.jaxpr, primitive):
            products += 1
            assert [x.aval.dtype for x in eqn.invars] == reads
            assert eqn.outvars[0].aval.dtype == writes
            assert eqn.params["precision"] == "bfloat16"
    kernels = [p for p in lj.trees.paths(variables["params"]) if p.endswith("kernel")]
    # Each but the head's in three products; the image's gradient is not asked for.
    assert products == 3 * (len(kernels) - 1) - 1
    assert {aval.dtype for aval in traced.out_avals} == {jnp.dtype("float32")}


# --- values ---------------------------------------------------------------------------


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(x):
    return np.asarray(x, jnp.bfloat16).astype(np.float64)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_a_layer_rounds_its_operands_and_what_it_stores(kind):
    if kind == "dense":
        layer, x, kernel = layers.Dense(5), normal(0, 6, 7), normal(1, 7, 5)
        product = rounded(x) @ rounded(kernel)
    else:
        layer, x = layers.Conv(5, window=1), normal(0, 6, 2, 2, 7)
        kernel = normal(1, 1, 1, 7, 5)
        product = rounded(x) @ rounded(kernel[0, 0])
    bias = normal(2, 5)
    variables = {"params": {"kernel": kernel, "bias": bias}}
    with activations.stored_as("bfloat16"):
        got = layer.apply(variables, x)
    assert got.dtype == jnp.bfloat16
    want = product + bias
    # Rounded as the result of the product, and with its bias.
    bound = UNIT * (np.abs(product) + np.abs(want)) * (1 + UNIT) + 1e-5
    assert (np.abs(np.asarray(got, np.float64) - want) <= bound).all()


def test_batch_norm_adds_up_in_float32_and_rounds_once():
    x = jnp.asarray(normal(0, 9, 4, 3) * 3 + 20, jnp.bfloat16)
    norm = lj.models.BatchNorm(unbiased=False, momentum=0.0)
    variables = norm.init(jax.random.key(0), x, False)
    with activations.stored_as("bfloat16"):
        y, after = norm.apply(variables, x, True, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64).reshape(-1, 3)
    mean, var = exact.mean(0), exact.var(0)
    stats = after["batch_stats"]
    assert y.dtype == jnp.bfloat16 and stats["mean"].dtype == jnp.float32
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    want = (np.asarray(x, np.float64) - mean) / np.sqrt(var + 1e-5)
    error = np.abs(np.asarray(y, np.float64) - want)
    assert (error <= UNIT * np.abs(want) + 1e-4).all()


def derivatives(name, kind, precision):
    """Gradient and Hessian product two ways; compiled quickly."""
    side, rng = MODELS[name], np.random.default_rng(0)
    model = lj.models.make(name, 4)
    x = jnp.asarray(rng.normal(size=(32, side, side, 3)), jnp.float32)
    variables = quick.jit(model.init)(jax.random.key(0), x)
    loss = loss_of(model, variables, x, jnp.asarray(rng.integers(0, 4, 32)))
    along = jax.tree.map(lambda p: normal(p.size, *p.shape), variables["params"])

    def run(params):
        gradient = jax.grad(loss)
        forward = jax.jvp(gradient, (params,), (along,))

        def inner(params):
            return sum(map(jnp.vdot, *map(jax.tree.leaves, (gradient(params), along))))

        return *forward, jax.grad(inner)(params)

    with activations.stored_as(kind), jax.default_matmul_precision(precision):
        return quick.jit(run)(variables["params"])


def apart(a, b):
    """The distance of b from a, relative to a."""
    square = sum(np.square(x - y).sum() for x, y in zip(*map(jax.tree.leaves, (a, b))))
    return float(square / sum(np.square(x).sum() for x in jax.tree.leaves(a))) ** 0.5


def test_derivatives_are_as_close_to_float32_as_with_bfloat16_operands():
    name = "conv-2-4"  # convolutions, pooling and dense layers
    exact = derivatives(name, "float32", "float32")
    operands = derivatives(name, "float32", "bfloat16")
    stored = derivatives(name, "bfloat16", "float32")
    for a, b, c in zip(exact, operands, stored, strict=True):
        assert UNIT / 8 < apart(a, c) < 2 * max(apart(a, b), UNIT)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(c))
    # Forward over reverse and reverse over reverse: rounded alike, added up otherwise.
    assert apart(*stored[1:]) < UNIT


# --- in training and evaluation -------------------------------------------------------


@functools.cache
def task():
    class OnImages(nn.Module):
        @nn.compact
        def __call__(self, x, train=False, weights=None):
            x = x.reshape(-1, 4, 2, 1)
            x = layers.Conv(6, stride=2, use_bias=False, name="conv")(x)
            x = lj.models.BatchNorm(name="norm")(x, train, weights)
            x = jax.nn.relu(x).reshape(x.shape[0], -1)
            return layers.Dense(4, name="head")(x)

    return toys.classification(OnImages())


STEPS = 8


def trained(ids=(0, 1, 2, 3), steps=STEPS, task=task, **where):
    """Networks with a third of their weights, after some steps."""
    tx, keys = optax.adam(0.01), lj.keys.of_replicas(0, ids)
    where = Where(**{"execution": NARROW, "checkpoint_seconds": 0.0} | where)
    runs = training.fresh(task(), tx, keys.init, keys.noise, where=where)
    mask = jax.tree.map(lambda p: np.abs(p) > 0.1, runs.state.params)
    params = jax.tree.map(lambda p, m: np.where(m, p, 0), runs.state.params, mask)
    runs = runs._replace(state=runs.state._replace(params=params, mask=mask))
    return training.train(task(), tx, runs, steps, every=4, where=where)


@functools.cache
def whole():
    return trained()


def test_all_that_is_carried_is_float32_and_weights_off_the_mask_stay_0():
    state = whole().state
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    assert len(floats) > 10 and {x.dtype for x in floats} == {jnp.dtype("float32")}
    assert all(v.dtype == np.float32 for v in whole().curves.values.values())
    off = 0
    for p, m in zip(*map(jax.tree.leaves, (state.params, state.mask))):
        off += (~np.asarray(m)).sum()
        assert (np.asarray(p)[~np.asarray(m)] == 0).all()
    assert off > 20
    assert whole().execution.activations == "bfloat16"


def test_a_replica_equals_itself_alone_to_the_bit():
    alone = trained(ids=(1, 3)).networks
    toys.assert_equal(
        jax.tree.map(lambda x: x[np.array([1, 3])], whole().networks), alone
    )


def test_an_interrupted_run_ends_in_the_same_bits_under_what_its_folder_holds(tmp_path):
    def kill(progress):
        if progress.done == STEPS:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(folder=tmp_path, watch=kill)
    again = trained(folder=tmp_path, execution=None)
    assert again.execution == NARROW
    toys.assert_equal(again.networks, whole().networks)
    toys.assert_equal(again.curves, whole().curves)


def test_evaluation_and_recomputed_statistics_are_of_the_same_activations():
    networks = whole().networks
    wide = NARROW._replace(activations="float32")
    found, otherwise = (
        training.evaluate(task(), networks, where=Where(e)) for e in (NARROW, wide)
    )
    assert found["loss"].dtype == np.float32
    assert 1e-6 < np.abs(found["loss"] - otherwise["loss"]).max() < 0.1
    batch = jax.tree.map(lambda x: x[:25], task().data["test"])
    batch["weight"] = jnp.ones(25)
    first = jax.tree.map(lambda x: x[0], networks)
    with activations.stored_as("bfloat16"):
        logits = task().outputs(*first, batch)
        moments = task().statistics(*first, batch)["batch_stats"]["norm"]
        conv = layers.Conv(6, stride=2, use_bias=False).apply(
            {"params": first.params["conv"]}, batch["image"].reshape(-1, 4, 2, 1)
        )
    assert logits.dtype == conv.dtype == jnp.bfloat16
    exact = np.asarray(conv, np.float64).reshape(-1, 6)
    np.testing.assert_allclose(moments["mean"], exact.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments["var"], exact.var(0), rtol=1e-5, atol=1e-6)
    path = linear.paths(
        task(),
        networks,
        [(0, 1)],
        Measure(2, "interpolate", ("test",)),
        where=Where(NARROW),
    )
    np.testing.assert_array_equal(path.loss[0, 0], found["loss"][:2])


# --- whom it does not reach -----------------------------------------------------------


def test_a_model_that_does_not_read_it_is_refused():
    foreign, where = toys.language_model(), Where(NARROW)
    keys, tx = lj.keys.of_replicas(0, (0, 1)), optax.sgd(0.1)
    zeros = jax.tree.map(lambda x: np.zeros((2, *x.shape)), foreign.shapes[:2])
    networks = Network(*zeros)
    for refused in (
        lambda: training.fresh(foreign, tx, keys.init, keys.noise, where=where),
        lambda: training.evaluate(foreign, networks, where=where),
        lambda: lj.train(foreign, tx, steps=2, replicas=2, where=where),
    ):
        with pytest.raises(
            ValueError, match="activations='bfloat16'; it must be float32"
        ):
            refused()
    # Of a few layers that do one is enough, and so it is around a task.
    training.check(toys.classification(), where=where)
    wrapped = lj.supermask.task(toys.classification(), lj.supermask.bernoulli())
    training.check(wrapped, where=where)


def test_a_model_that_is_narrow_by_itself_is_refused_too():
    class Narrow(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.reshape(x.shape[0], -1)
            return nn.Dense(4, dtype=jnp.bfloat16)(x).astype(jnp.float32)

    with pytest.raises(ValueError, match="activations='bfloat16'; it must be float32"):
        training.check(toys.classification(Narrow()), where=Where(NARROW))


def test_an_unknown_name_is_refused():
    with (
        pytest.raises(
            ValueError, match="activations='float16'; it must be one of float32"
        ),
        activations.stored_as("float16"),
    ):
        pass
