"""Optimizers in the runner: where levels and branches stand, what updates are told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import toys

import lottery_jax as lj
from lottery_jax import imp, keys, training, transforms
from lottery_jax.connectivity import branches
from lottery_jax.execution import Execution, Where
from lottery_jax.optimizers.interpreted import interpreted
from lottery_jax.optimizers.updates import loss_arguments, update_with
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

WHERE = Where(execution=Execution(devices=1, chunk=1))


def task():
    return toys.classification(lj.models.make("mlp-6", 4))


# --- where levels and branches stand --------------------------------------------------


SCHEDULE = optax.cosine_decay_schedule(0.1, 15)
FOUR = optax.MultiSteps(optax.sgd(SCHEDULE, 0.9), 4).gradient_transformation()


@pytest.mark.parametrize("optimizer", ["reset", "rewind"])
@pytest.mark.parametrize("k", [40, 42])
def test_levels_stand_at_the_update_of_the_rewind_step(k, optimizer):
    """After 40 or 42 of 60 steps, 4 to an update: updates 10 to 14, phase 0 or 2."""
    seen = {}

    def watch(progress):
        state = progress.states().opt_state
        schedule = state.inner_opt_state[1].count
        found = (state.gradient_step, state.mini_step, schedule)
        accumulated = any(np.any(x) for x in jax.tree.leaves(state.acc_grads))
        seen[progress.level, progress.done] = (*(int(x[0]) for x in found), accumulated)

    plan = imp.Plan(
        steps=60,
        rewind_step=k,
        arms=("ticket",),
        level_optimizer=optimizer,
        validate_every=20,
    )
    where = dataclasses.replace(WHERE, watch=watch)
    imp.run(task(), FOUR, plan, levels=1, replicas=(0,), where=where)
    assert [step for level, step in seen if level == 1] == [k, 60]
    for (level, step), (update, phase, position, accumulated) in seen.items():
        assert (update, phase, position) == (step // 4, step % 4, step // 4)
        # A new optimizer has not seen the first two gradients of its update.
        new = (level, step, optimizer) == (1, k, "reset")
        assert accumulated == (phase > 0 and not new)


@pytest.mark.slow
def test_branches_go_on_where_the_trunk_was_and_restart_at_the_beginning():
    one, own = task(), keys.of_replicas(0, np.array([0], np.int32))
    trunk = branches.train_trunk(one, FOUR, own.init, own.noise, (0, 6), where=WHERE)
    runs = branches.of_trunk(trunk, own.noise, 2)
    state = runs.state.opt_state
    assert state.gradient_step.tolist() == [0, 0, 1, 1]
    assert state.mini_step.tolist() == [0, 0, 2, 2]
    gathered = [
        np.abs(x).max(axis=tuple(range(1, x.ndim)))
        for x in jax.tree.leaves(state.acc_grads)
    ]
    assert (np.max(gathered, axis=0) > 0).tolist() == [False, False, True, True]
    fresh = branches.restarted(FOUR, runs).state.opt_state
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(fresh))


def test_what_follows_from_losses_is_kept_or_refused():
    """A schedule that goes by the loss: only its own state says where it stands."""
    tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    plan = imp.Plan(steps=4, rewind_step=2, arms=("ticket",))
    with pytest.raises(
        ValueError, match="reduce_on_plateau.*plateau_count.*level_optimizer='rewind'"
    ):
        imp.run(task(), tx, plan, levels=1, replicas=(0,), where=WHERE)
    plan = imp.Plan(steps=4, rewind_step=2, arms=("ticket",), level_optimizer="rewind")
    study = imp.run(task(), tx, plan, levels=1, replicas=(0,), where=WHERE)
    assert np.isfinite(study.dataset()["test_loss"]).all()


def test_what_is_wrong_under_a_mask_is_refused_before_anything_is_trained():
    for tx, message in (
        (optax.contrib.muon(0.1), "tx=.*scale_by_muon.*orthogonalises whole matrices"),
        (optax.adafactor(0.1), "multiply_by_parameter_scale=False"),
    ):
        plan = imp.Plan(steps=4, arms=("ticket",))
        with pytest.raises(ValueError, match=message):
            imp.run(task(), tx, plan, levels=1, replicas=(0,), where=WHERE)
        with pytest.raises(ValueError, match=message):
            lj.train(task(), tx, 4, 1, where=WHERE)


# --- what updates are told ------------------------------------------------------------


def test_a_plateau_goes_by_the_loss_of_each_step():
    tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(rtol=1e-6))
    done = lj.train(task(), tx, 6, 1, validate_every=1, where=WHERE)
    best = done.state.opt_state[1].best_value[0]
    losses = done.curves.values["train_loss"][0]
    np.testing.assert_allclose(best, losses.min(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(6)),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.02), opaque_mode=True),
        optax.chain(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.02))),
        optax.contrib.sophia(0.01, update_interval=2),
        optax.polyak_sgd(max_learning_rate=0.1),
    ],
    ids=["linesearch", "opaque SAM", "SAM in a chain", "sophia", "polyak"],
)
def test_optimizers_that_ask_for_losses_train(tx):
    done = lj.train(task(), tx, 8, 1, validate_every=4, where=WHERE)
    losses = done.curves.values["validation_loss"][0]
    assert losses[-1] < losses[0]


PARAMS = {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3)}
MASK = {"kernel": jnp.array([[True, False, True], [False, True, True]])}


@pytest.mark.parametrize(
    "tx", [optax.sgd(0.1, 0.9), optax.adam(0.1)], ids=["sgd", "adam"]
)
def test_what_is_not_asked_for_is_not_computed(tx):
    """The same program as without further arguments."""
    masked = transforms.masked(tx)
    state = tx.init(PARAMS)

    def loss(params):
        raise AssertionError("nobody asks for it")

    def told(gradients, state, params, mask):
        extra = loss_arguments(loss, jnp.float32(1.0), gradients) | {"mask": mask}
        return update_with(masked, gradients, state, params, extra)

    def bare(gradients, state, params, mask):
        return masked.update(gradients, state, params, mask=mask)

    args = PARAMS, state, PARAMS, MASK
    assert str(jax.make_jaxpr(told)(*args)) == str(jax.make_jaxpr(bare)(*args))


def test_functions_see_and_return_the_subnetwork():
    seen = {}

    def update(updates, state, params, *, grad_fn, value_and_grad, grad):
        seen["grad_fn"] = grad_fn(params + jnp.float32(1.0))
        seen["both"] = value_and_grad(params)
        seen["grad"] = grad
        return updates, state

    tx = transforms.masked(optax.GradientTransformationExtraArgs(lambda p: (), update))
    params, mask = PARAMS["kernel"], MASK["kernel"]
    with pytest.warns(RuntimeWarning, match="cannot be tried"):
        tx.update(
            params,
            (),
            params,
            mask=mask,
            grad_fn=lambda p: 2 * p + 1,
            value_and_grad=lambda p: (p.sum(), p + 1),
            grad=params,
        )
    alive = np.asarray(mask)
    np.testing.assert_array_equal(seen["grad_fn"], np.where(alive, 2 * params + 3, 0))
    assert float(seen["both"][0]) == float(np.where(alive, params, 0).sum())
    np.testing.assert_array_equal(seen["both"][1], np.where(alive, params + 1, 0))
    np.testing.assert_array_equal(seen["grad"], np.where(alive, params, 0))


# --- params that are no plain tree ----------------------------------------------------


def test_lookahead_takes_the_mask_inside_and_says_so():
    outside = transforms.masked(optax.lookahead(optax.sgd(0.1), 2, 0.5))
    pair = optax.LookaheadParams.init_synced(lj.masks.apply(MASK, PARAMS))
    with pytest.raises(ValueError, match=r"optax.lookahead\(masked\(optimizer, mask\)"):
        outside.init(PARAMS)
    with pytest.raises(ValueError, match="gradients and params differ in structure"):
        outside.update(PARAMS, (), pair, mask=MASK)
    tx = optax.lookahead(transforms.masked(optax.sgd(0.1, 0.9), MASK), 2, 0.5)
    state = tx.init(pair)
    for _ in range(5):
        updates, state = tx.update(PARAMS, state, pair)
        pair = optax.apply_updates(pair, updates)
        for tree in pair:
            assert not np.asarray(tree["kernel"])[~np.asarray(MASK["kernel"])].any()
            assert np.asarray(tree["kernel"])[np.asarray(MASK["kernel"])].all()


def test_messages_call_gradients_gradients():
    tx = transforms.masked(optax.sgd(0.1))
    wrong = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"gradients have \(2, 2\)"):
        tx.update(wrong, tx.init(PARAMS), PARAMS, mask=MASK)


# --- states that keep weights, and steps that differ by row ---------------------------


@pytest.mark.parametrize("dense", [False, True])
def test_the_first_step_from_dense_weights_is_that_from_masked_ones(dense):
    """DoG's first step goes by the norm of the weights: of those that are there."""
    params = {"kernel": jnp.where(MASK["kernel"], PARAMS["kernel"], 1e6 * dense)}
    tx = transforms.masked(optax.contrib.dog())
    state = transforms.at_schedule_step(tx, tx.init(params), params, 3)
    updates, state = tx.update(PARAMS, state, params, mask=MASK)
    survivors = np.asarray(PARAMS["kernel"])[np.asarray(MASK["kernel"])]
    # r = 1e-6 (1 + |w|), and the step r g / |g| where g = w.
    step = (
        1e-6 * (1 + np.linalg.norm(survivors)) * survivors / np.linalg.norm(survivors)
    )
    found = np.asarray(updates["kernel"])[np.asarray(MASK["kernel"])]
    np.testing.assert_allclose(found, -step, rtol=1e-5)
    assert state.begun and not optax.apply_updates(params, updates)["kernel"][0, 1]


def test_rows_may_stand_at_different_steps():
    at = lambda step: transforms.at_schedule_step(FOUR, FOUR.init(PARAMS), PARAMS, step)  # noqa: E731
    state = jax.jit(jax.vmap(at))(jnp.array([0, 40, 42]))
    assert state.gradient_step.tolist() == [0, 10, 10]
    assert state.mini_step.tolist() == [0, 0, 2]
    assert state.inner_opt_state[1].count.tolist() == [0, 10, 10]


# --- programs that NumPy runs ---------------------------------------------------------


def test_interpreted_programs_say_what_compiled_ones_do():
    """Loops, choices, indices, matrices, and what only JAX knows."""

    def function(x, n):
        def body(i, carry):
            taken = jax.lax.dynamic_index_in_dim(x, i % 2, keepdims=False)
            return carry + jnp.where(i > 1, jnp.cbrt(taken), taken**2)

        total = jax.lax.fori_loop(0, n, body, jnp.zeros(3))
        chosen = jax.lax.cond(n > 2, lambda: jnp.tanh(total), lambda: -total)
        rows, last = jax.lax.scan(lambda c, r: (c + r, c @ r), total, x)
        return chosen, rows, last, jnp.linalg.norm(x), x.at[n - 3].add(1.0), n // 2

    x = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
    run, n = interpreted(function, x, np.int32(0)), np.int32(4)
    for a, b in zip(run(x, n), jax.jit(function)(x, n), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6)
    draws = interpreted(lambda key: jax.random.normal(key, (5,)), jax.random.key(0))
    assert len(set(draws(jax.random.key(1)).tolist())) == 1


def test_a_state_of_another_kind_is_refused():
    network = Network(PARAMS, {})
    tx = optax.adam(0.1)
    state = training.start(tx, network, (), MASK).opt_state
    with pytest.raises(ValueError, match="opt_state: it must be a state of tx=chain"):
        transforms.mask_state(optax.sgd(0.1, 0.9), state, MASK)
