"""Models of one's own: whole studies of NNX, Equinox, Haiku and of Flax's own layers.

The functions below are those of the docstring of `tasks.classification`, on the toy
data of `toys`.
"""

import dataclasses
import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from flax import nnx

import lottery_jax as lj
from lottery_jax import imp
from lottery_jax.connectivity import evaluation, points

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FEATURES, CLASSES, HIDDEN = 8, 4, 16


def functions_task(init, apply, **options):
    return lj.tasks.classification(
        toys.dataset(),
        init=init,
        apply=apply,
        **{"batch_size": toys.BATCH, "evaluation_batch": 25} | options,
    )


# --- the three libraries --------------------------------------------------------------


class NnxNet(nnx.Module):
    """Dense, BatchNorm, dropout, dense."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
        self.norm = nnx.BatchNorm(HIDDEN, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)
        self.head = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x, train, key, weights):
        mask = None if weights is None else weights[:, None] > 0
        x = self.norm(self.hidden(x), use_running_average=not train, mask=mask)
        x = self.dropout(nnx.relu(x), deterministic=not train, rngs=key)
        return self.head(x)


def nnx_split(net):
    return nnx.split(net, nnx.Param, ...)


GRAPH = nnx_split(nnx.eval_shape(lambda: NnxNet(rngs=nnx.Rngs(0))))[0]


def nnx_init(key):
    return nnx_split(NnxNet(rngs=nnx.Rngs(key)))[1:]


def nnx_apply(params, model_state, images, *, train, key, weights):
    net = nnx.merge(GRAPH, params, model_state)
    logits = net(images, train, key, weights)
    return logits, nnx_split(net)[2]


def eqx_build(key):
    return eqx.nn.MLP(FEATURES, CLASSES, HIDDEN, depth=1, key=key)


STATIC = eqx.filter(eqx_build(jax.random.key(0)), eqx.is_inexact_array, inverse=True)


def eqx_init(key):
    return eqx.filter(eqx_build(key), eqx.is_inexact_array)


def eqx_apply(params, images):
    return jax.vmap(eqx.combine(params, STATIC))(images)


def hk_net(x):
    hidden = jax.nn.relu(hk.Linear(HIDDEN)(x))
    # Without a key, in evaluation, there is no dropout.
    key = hk.maybe_next_rng_key()
    hidden = hidden if key is None else hk.dropout(key, 0.1, hidden)
    return hk.Linear(CLASSES)(hidden)


HK = hk.transform(hk_net)


def hk_init(key):
    return HK.init(key, jnp.zeros((1, FEATURES)))


def hk_apply(params, images, *, key):
    return HK.apply(params, key, images)


def hk_normed(x, train):
    norm = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
    hidden = jax.nn.relu(norm(hk.Linear(HIDDEN)(x), is_training=train))
    return hk.Linear(CLASSES)(hidden)


HK_STATE = hk.transform_with_state(hk_normed)


def hk_state_init(key):
    return HK_STATE.init(key, jnp.zeros((1, FEATURES)), True)


def hk_state_apply(params, model_state, images, *, train, key):
    return HK_STATE.apply(params, model_state, key, images, train)


class FlaxNet(nn.Module):
    """Flax's own BatchNorm and dropout, and nothing that knows of padding."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.1, deterministic=not train)(x)
        x = nn.Dense(HIDDEN, name="hidden")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return nn.Dense(CLASSES, name="head")(nn.relu(x))


TASKS = {
    "nnx": lambda: functions_task(nnx_init, nnx_apply),
    "equinox": lambda: functions_task(eqx_init, eqx_apply),
    "haiku": lambda: functions_task(hk_init, hk_apply),
    "haiku with a state": lambda: functions_task(
        hk_state_init, hk_state_apply, drop_last=True
    ),
    "linen": lambda: toys.classification(FlaxNet()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_whole_study(name, tmp_path):
    task = TASKS[name]()
    plan = imp.Plan(steps=30, rewind_step=3, arms=("ticket",))
    study = imp.run(
        task,
        optax.adam(0.03),
        plan,
        levels=2,
        replicas=(0, 1),
        where=lj.Where(folder=tmp_path),
    )
    record = {name: values for name, (_, values) in study.records.items()}
    alive = [192, 154, 123]  # 8 x 16 + 16 x 4, less 20% each time
    assert (record["alive"] == alive).all()
    np.testing.assert_allclose(record["density"][0, 0, 0], np.array(alive) / 192)
    # Chance is 3/4.
    assert not record["diverged"].any() and (record["test_error"] < 0.5).all()

    like = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0))[:2]
    prunable = jax.tree.leaves(lj.masks.prunable(like[0]))
    for replica in (0, 1):
        before = None
        for level in range(3):
            path = imp.ticket_path(tmp_path, "imp", level, replica)
            ticket = lj.tickets.load(path, like=like)
            masks = [np.asarray(m) for m in jax.tree.leaves(ticket.mask)]
            for mask, weight in zip(masks, jax.tree.leaves(ticket.params)):
                assert (np.asarray(weight)[~mask] == 0).all()
            assert all(m.all() for m, flag in zip(masks, prunable) if not flag)
            cut = [mask for mask, flag in zip(masks, prunable) if flag]
            assert sum(mask.sum() for mask in cut) == alive[level]
            assert before is None or all((a <= b).all() for a, b in zip(cut, before))
            before = cut


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx", "haiku", "linen"])
def test_dropout_draws_from_the_key_of_training_alone(name):
    task = TASKS[name]()
    params, state, stream = jax.jit(task.init)(jax.random.key(0))
    indices = task.order(jax.random.key(1), jnp.int32(0))
    batch = task.batch(task.data, indices, jax.random.key(2), jnp.int32(0))
    loss = jax.jit(task.loss)
    one, same, other = (
        loss(params, state, stream, batch, jax.random.key(i))[0] for i in (0, 0, 1)
    )
    assert one == same != other
    evaluate = jax.jit(task.evaluate, static_argnums=4)
    one, other = (
        evaluate(params, state, task.data, jax.random.key(i), "test") for i in (0, 1)
    )
    toys.assert_equal(one, other)
    predict = jax.jit(task.predict, static_argnums=4)
    predicted = predict(params, state, task.data, jax.random.key(0), "test")
    wrong = np.mean(np.asarray(predicted) != task.data["test"]["label"])
    np.testing.assert_allclose(one["error"], wrong, rtol=1e-6)


@pytest.mark.parametrize("name", ["nnx", "linen"])
def test_padding_enters_no_statistics(name):
    task = TASKS[name]()
    params, state, stream = jax.jit(task.init)(jax.random.key(0))
    indices = toys.order_of(task, jax.random.key(3))[-1]
    batch = task.batch(task.data, indices, jax.random.key(0), jnp.int32(4))
    real = int(batch["weight"].sum())
    assert 0 < real < toys.BATCH
    spoilt = batch | {"image": batch["image"].at[real:].set(1e3)}
    loss = jax.jit(task.loss)
    one = loss(params, state, stream, batch, jax.random.key(0))
    toys.assert_equal(one, loss(params, state, stream, spoilt, jax.random.key(0)))
    moved = [
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(*map(jax.tree.leaves, (state, one[1][0])))
    ]
    assert any(moved)


# --- statistics of Flax's BatchNorm ---------------------------------------------------


class TwoNorms(nn.Module):
    """Norms of two momenta, one over groups of four inputs, inside a module inside `remat`."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, deterministic):
        x = x.reshape(x.shape[0], -1, 4)
        x = nn.remat(Block, static_argnums=(2,))(name="block")(x, deterministic)
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        x = nn.relu(x).reshape(x.shape[0], -1)
        x = nn.BatchNorm(deterministic, name="last", axis=1)(x)
        return nn.Dense(CLASSES, name="head")(x)


class Block(nn.Module):
    """A dense layer and a norm."""

    @nn.compact
    def __call__(self, x, deterministic):
        x = nn.Dense(5, name="hidden")(x)
        return nn.BatchNorm(deterministic, momentum=0.7, name="norm")(x)


def by_numpy(params, images):
    """Mean and variance of the activations that each norm sees, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = np.asarray(images, np.float64).reshape(len(images), -1, 4)
    x = x @ params["block"]["hidden"]["kernel"] + params["block"]["hidden"]["bias"]
    mean, var = x.mean((0, 1)), x.var((0, 1))
    own = params["block"]["norm"]
    x = (x - mean) / np.sqrt(var + 1e-5) * own["scale"] + own["bias"]
    x = np.maximum(x, 0).reshape(len(images), -1)
    return (mean, var), (x.mean(0), x.var(0))


@functools.cache
def two_norms(dropout=0.0):
    """The task, a network that is no fresh draw, and its statistics from 3 batches."""
    task = toys.classification(TwoNorms(dropout))
    params, state, _ = jax.jit(task.init)(jax.random.key(0))
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.2 * rng.normal(size=x.shape).astype(np.float32),
        params,
    )
    rows = points.statistics_slice(task, 3)
    recomputed = jax.jit(lambda p, s: points.recompute(task, p, s, rows))
    return task, lj.Network(params, state), rows, recomputed


def test_recomputed_statistics_are_the_moments_of_the_batches():
    task, network, rows, recomputed = two_norms()
    found = recomputed(*network)
    images = task.data["train"]["image"]
    each = [by_numpy(network.params, images[np.asarray(row)]) for row in rows]
    for name, i in (("block", 0), ("last", 1)):
        mean = np.mean([batch[i][0] for batch in each], axis=0)
        square = np.mean([batch[i][1] + batch[i][0] ** 2 for batch in each], axis=0)
        own = found["batch_stats"][name]
        own = own["norm"] if name == "block" else own
        np.testing.assert_allclose(own["mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own["var"], square - mean**2, rtol=1e-4, atol=1e-6)
    shapes = jax.tree.map(np.shape, (found, network.model_state))
    toys.assert_equal(*shapes)
    other = jax.tree.map(lambda x: x + 3, network.model_state)
    toys.assert_equal(recomputed(network.params, other), found)


def test_a_training_pass_moves_running_statistics_as_flax_does():
    task, (params, state), _, _ = two_norms()
    loss = jax.jit(task.loss)
    order = toys.order_of(task, jax.random.key(3))
    images = task.data["train"]["image"]
    for row in (order[0], order[-1]):
        batch = task.batch(task.data, row, jax.random.key(0), jnp.int32(0))
        _, (after, _, _) = loss(params, state, (), batch, jax.random.key(0))
        real = np.asarray(row)[np.asarray(row) >= 0]
        first, last = by_numpy(params, images[real])
        stats = after["batch_stats"]
        for own, (mean, var), keep in (
            (stats["block"]["norm"], first, 0.7),
            (stats["last"], last, 0.99),
        ):
            np.testing.assert_allclose(
                own["mean"], (1 - keep) * mean, rtol=1e-4, atol=1e-6
            )
            np.testing.assert_allclose(own["var"], keep + (1 - keep) * var, rtol=1e-5)


def test_recomputing_with_dropout_draws_for_each_batch():
    with_dropout, (params, state), _, recomputed = two_norms(dropout=0.5)
    one = recomputed(params, state)["batch_stats"]
    plain = two_norms()[3](params, state)["batch_stats"]
    toys.assert_equal(one["block"], plain["block"])
    # Dropout keeps the mean of what it drops, and adds to the variance.
    assert (one["last"]["var"] > plain["last"]["var"]).mean() > 0.8
    measure = jax.jit(with_dropout.statistics)
    batch, again = (
        with_dropout.batch(with_dropout.data, row, jax.random.key(0), jnp.int32(0))
        for row in toys.order_of(with_dropout, jax.random.key(0))[:2]
    )
    mixed = again | {"image": batch["image"]}
    first, other = (measure(params, state, b)["batch_stats"] for b in (batch, mixed))
    toys.assert_equal(first["block"], other["block"])
    assert (first["last"]["mean"] != other["last"]["mean"]).any()


def test_a_path_between_networks_with_flax_s_batch_norm_and_dropout():
    task, network, _, recomputed = two_norms(dropout=0.5)
    found = evaluation.evaluate_many(
        task,
        jax.tree.map(lambda x: jnp.stack([x, -x]), network),
        np.array([[0, 1]] * 2),
        np.array([[1.0, 0.0], [0.5, 0.5]]),
        lj.connectivity.Measure(
            batch_norm="recompute", splits=("test",), statistics_batches=3
        ),
    )
    own = recomputed(*network)
    predicted = task.predict(network.params, own, task.data, jax.random.key(0), "test")
    wrong = np.mean(np.asarray(predicted) != task.data["test"]["label"])
    np.testing.assert_allclose(found["error"][0, 0], wrong, rtol=1e-6)
    assert np.isfinite(found["loss"]).all()


# --- what is refused ------------------------------------------------------------------


class Counting(nn.Module):
    """A state that is no BatchNorm's."""

    @nn.compact
    def __call__(self, x, train=False):
        seen = self.variable("seen", "mean", jnp.zeros, (1, FEATURES))
        if train:
            seen.value = x.mean(0, keepdims=True)
        return nn.Dense(CLASSES, name="head")(x - jnp.broadcast_to(seen.value, x.shape))


class Folded(nn.Module):
    """A BatchNorm whose input has no axis of examples."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(-1, 2))
        return nn.Dense(CLASSES, name="head")(x.reshape(-1, FEATURES))


def no_state(params, model_state, images):
    return images @ params


def grows(params, model_state, images):
    return images @ params, {"a": jnp.zeros(3)}


def pair(key):
    return jnp.zeros((FEATURES, CLASSES)), {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: functions_task(None, None),
            "given are .*; it must be either model, or",
        ),
        (lambda: functions_task(eqx_init, None), r"given are \['init'\]; it must be"),
        (
            lambda: lj.tasks.classification(
                toys.dataset(), FlaxNet(), init=pair, apply=grows, batch_size=10
            ),
            r"given are \['model', 'init', 'apply'\]; it must be",
        ),
        (lambda: functions_task(pair, lambda x: x), "apply=.*; it must be apply"),
        (lambda: functions_task(pair, lambda *x: x), "apply=.*; it must be apply"),
        (
            lambda: functions_task(hk_state_init, hk_state_apply),
            "batch_size=32; it must divide 150, .* drop_last",
        ),
        (lambda: toys.classification(Counting()), "batch_size=32; it must divide 150"),
        (lambda: toys.classification(Folded()), "batch_size=32; .*BatchNorm_0"),
        (
            lambda: functions_task(pair, no_state, batch_size=50),
            r"apply returns .*; it must be \(logits, model_state\)",
        ),
        (
            lambda: functions_task(eqx_init, grows, batch_size=50),
            r"init returns MLP; it must be \(params, model_state\)",
        ),
        (lambda: functions_task(pair, grows, batch_size=50), "only the one that apply"),
        (
            lambda: functions_task(
                lambda key: jnp.zeros(3), lambda params, images: images
            ),
            r"logits have shape \(32, 8\); it must be \(32, 4\)",
        ),
        (
            lambda: toys.classification(evaluation_batch=0),
            "evaluation_batch=0; it must",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("model", [Counting(), Folded()])
def test_without_padding_any_model_will_do(model):
    for options in ({"batch_size": 50}, {"drop_last": True}):
        task = toys.classification(model, **options)
        assert (task.statistics is None) == (task.pool is None)
        assert (task.statistics is None) == isinstance(model, Counting)


def test_an_epoch_without_its_last_batch():
    task = toys.classification(drop_last=True)
    order = np.asarray(toys.order_of(task, jax.random.key(0), 1))
    assert order.shape == (toys.TRAIN // toys.BATCH, toys.BATCH)
    assert task.steps_per_epoch == len(order)
    assert len(np.unique(order)) == order.size and order.min() >= 0
    whole = toys.order_of(toys.classification(), jax.random.key(0), 1)
    np.testing.assert_array_equal(order, whole[:-1])


def test_prunable_leaves_and_the_head_can_be_named():
    def hidden_only(params):
        return lj.masks.prunable(params, include="layers/0/weight")

    task = functions_task(
        eqx_init, eqx_apply, prunable=hidden_only, head=("layers/1/",)
    )
    params = jax.eval_shape(task.init, jax.random.key(0))[0]
    assert sum(jax.tree.leaves(task.prunable(params))) == 1
    assert task.head == ("layers/1/",) and task.narrow is None


def arrays_in(thing):
    """Arrays in the fields of a dataclass, in what they hold, and in closures."""
    if isinstance(thing, jax.Array | np.ndarray):
        return [thing]
    inner = [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        inner += [getattr(thing, field.name) for field in dataclasses.fields(thing)]
    return [array for one in inner for array in arrays_in(one)]


@pytest.mark.parametrize("name", TASKS)
def test_the_functions_of_a_task_are_hashable_and_hold_no_arrays(name):
    functions = TASKS[name]().functions
    hash(functions)
    for function in filter(callable, functions):
        assert not arrays_in(getattr(function, "__self__", function))
