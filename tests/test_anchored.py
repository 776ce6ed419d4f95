"""Pruned weights that are frozen at values of their own: tasks of networks with anchors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import imp, tasks, training
from lottery_jax.connectivity import points
from lottery_jax.tasks.anchored import ACTIONS, effective
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS = 12
OPTIMIZERS = {
    "momentum": optax.sgd(0.05, momentum=0.9),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "lion": optax.lion(1e-3, weight_decay=0.1),
}


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.fixture(scope="module")
def parts():
    """Weights before and after some training by hand, and a mask of the larger ones."""
    params, state, _ = toys.classification().init(jax.random.key(0))
    rng = np.random.default_rng(1)
    moved = jax.tree.map(
        lambda p: p + 0.4 * rng.normal(size=p.shape).astype(np.float32), params
    )
    mask = lj.masks.ones_like(params)
    for name in ("hidden", "head"):
        mask[name]["kernel"] = jnp.abs(moved[name]["kernel"]) > 0.3
    return Network(params, state), moved, mask


@pytest.mark.parametrize("action", ACTIONS)
def test_the_actions_in_numpy(parts, action):
    network, trained, mask = parts
    found = tasks.anchor(network, mask, action, trained)
    assert found.model_state.inner is network.model_state
    seen = set()
    for m, i, f, start, anchor in zip(
        *map(
            jax.tree.leaves,
            numpy((mask, network.params, trained, found[0], found[1].anchor)),
        ),
        strict=True,
    ):
        towards_zero = np.abs(f) < np.abs(i)
        frozen = {
            "zero": np.zeros_like(i),
            "freeze": i,
            "freeze_grown": np.where(towards_zero, 0, i),
            "freeze_grown_all": np.where(towards_zero, 0, i),
        }[action]
        kept = np.where(towards_zero, 0, i) if action == "freeze_grown_all" else i
        np.testing.assert_array_equal(anchor, np.where(m, 0, frozen))
        np.testing.assert_array_equal(start, np.where(m, kept, 0))
        seen |= set(zip(m.ravel().tolist(), towards_zero.ravel().tolist()))
    assert len(seen) == 4  # weights of every kind were there


def train(task, tx, network, mask):
    """A plain loop over one network."""
    key = jax.random.key(5, impl="threefry2x32")
    state = training.start(tx, network, (), mask, step=0)
    end, _ = jax.jit(
        lambda s: training.train_steps(task, tx, s, key, 0, STEPS, capacity=STEPS)
    )(state)
    return end


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_anchored_weights_never_move_and_the_others_do(parts, name):
    network, trained, mask = parts
    task = tasks.anchored(toys.classification())
    start = tasks.anchor(network, mask, "freeze_grown", trained)
    end = train(task, OPTIMIZERS[name], start, mask)
    weights = effective(end.params, end.model_state)
    for m, w, before, p, a in zip(
        *map(
            jax.tree.leaves,
            numpy((mask, weights, start[0], end.params, start[1].anchor)),
        )
    ):
        np.testing.assert_array_equal(w[~m], a[~m])
        np.testing.assert_array_equal(w[m], p[m])
        assert (p[~m] == 0).all() and (p[m] != before[m]).mean() > 0.5
    toys.assert_equal(end.model_state.anchor, start.model_state.anchor)
    # Frozen weights take part: without them other ones are found.
    zero = tasks.anchor(network, mask, "zero")
    assert float(jnp.max(jnp.abs(start[1].anchor["hidden"]["kernel"]))) > 0
    loss = [
        float(task.evaluate(*n, task.data, jax.random.key(0), "test")["loss"])
        for n in (start, zero)
    ]
    assert loss[0] != loss[1]


def test_an_anchor_of_zero_is_the_plain_task_bit_for_bit(parts):
    network, _, mask = parts
    task, tx = toys.classification(), OPTIMIZERS["momentum"]
    plain = train(
        task, tx, network._replace(params=lj.masks.apply(mask, network[0])), mask
    )
    start = tasks.anchor(network, mask, "zero")
    found = train(tasks.anchored(task), tx, start, mask)
    toys.assert_equal(found.params, plain.params)
    toys.assert_equal(found.model_state.inner, plain.model_state)
    toys.assert_equal(found.opt_state, plain.opt_state)


@pytest.mark.slow
def test_studies_run_on_it_and_are_those_of_the_plain_task():
    task = toys.classification(lj.models.make("mlp-6", 4))._replace(narrow=None)
    plan = imp.Plan(steps=4, validate_every=2)
    both = [
        imp.run(one, optax.sgd(0.1), plan, levels=1, replicas=2)
        for one in (task, tasks.anchored(task))
    ]
    for name, (_, values) in both[0].records.items():
        np.testing.assert_array_equal(both[1].records[name][1], values, err_msg=name)


def test_what_is_asked_of_the_network_is_asked_of_its_effective_weights(parts):
    network, _, mask = parts
    inner = toys.classification()
    task = tasks.anchored(inner)
    params, state = tasks.anchor(network, mask, "freeze")
    # Frozen at their initial values under any mask: the network before training.
    indices = toys.order_of(task, jax.random.key(3))[0]
    batch = task.batch(task.data, indices, jax.random.key(0), jnp.int32(0))
    toys.assert_equal(
        task.outputs(params, state, batch), inner.outputs(*network, batch)
    )
    rest = (task.data, jax.random.key(0), "test")
    toys.assert_equal(
        task.predict(params, state, *rest), inner.predict(*network, *rest)
    )
    toys.assert_equal(
        task.evaluate(params, state, *rest), inner.evaluate(*network, *rest)
    )
    rows = points.statistics_slice(task, 2)
    found = points.recompute(task, params, state, rows)
    toys.assert_equal(found.anchor, state.anchor)
    toys.assert_equal(found.inner, points.recompute(inner, *network, rows))
    for name in ("prunable", "exclude", "head", "order", "steps_per_epoch"):
        assert getattr(task, name) == getattr(inner, name)
    hash(task.functions)


def test_what_does_not_fit_is_refused(parts):
    network, trained, mask = parts

    def refused(match, call, *arguments):
        with pytest.raises(ValueError, match=match):
            call(*arguments)

    refused("task=.*; it must be a lottery_jax.Task", tasks.anchored, network)
    refused(
        "network=a dict; it must be a lottery_jax.Network",
        tasks.anchor,
        {},
        mask,
        "zero",
    )
    refused(
        "action='frieze'; it must be one of zero", tasks.anchor, network, mask, "frieze"
    )
    refused(
        "trained=None; .*'freeze_grown' asks",
        tasks.anchor,
        network,
        mask,
        "freeze_grown",
    )
    cut = jax.tree.map(lambda x: x[:2], mask)
    refused("mask: leaf 'head/bias' has shape", tasks.anchor, network, cut, "freeze")
    small = jax.tree.map(lambda x: x[:2], trained)
    refused(
        "head/bias.*initial", tasks.anchor, network, mask, "freeze_grown_all", small
    )
    state = tasks.anchor(network, mask, "freeze")[1]
    wrong = state._replace(anchor=small)
    refused("head/bias.*", effective, network.params, wrong)
    refused("model_state=a dict; .*Anchored", effective, network.params, {})
    task = tasks.anchored(toys.classification())
    plan = imp.Plan(steps=2, arms=("ticket",))
    stack = lambda tree: jax.tree.map(lambda x: jnp.stack([x]), tree)  # noqa: E731
    found = imp.tickets_from(
        [stack(mask)], Network(stack(network.params), stack(wrong))
    )
    with pytest.raises(ValueError, match="found: the model_state of a ticket"):
        imp.retrain(task, optax.sgd(0.1), plan, found, level=1, replicas=1)
