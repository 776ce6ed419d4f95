"""`transforms`: no optimizer moves a weight off the mask, or lets it matter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lottery_jax import masks, transforms

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS = 20
SHAPES = {
    "dense": {"kernel": (6, 5), "bias": (5,)},
    "head": {"kernel": (5, 3), "bias": (3,)},
}


def tree_of(make):
    return {
        layer: {name: make(shape) for name, shape in leaves.items()}
        for layer, leaves in SHAPES.items()
    }


def normals(seed, *axes):
    rng = np.random.default_rng(seed)
    return tree_of(lambda s: jnp.asarray(rng.normal(size=axes + s), jnp.float32))


def some_mask(seed=0, density=0.5):
    rng = np.random.default_rng(seed)
    return tree_of(
        lambda s: jnp.asarray(
            rng.random(s) < density if len(s) > 1 else np.ones(s, bool)
        )
    )


MASK, START, NOISE = some_mask(), normals(1), normals(2, STEPS)
SCHEDULE = optax.cosine_decay_schedule(0.1, 30)

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "nadam": optax.nadam(SCHEDULE),
    "amsgrad": optax.amsgrad(0.01),
    "rmsprop": optax.rmsprop(0.01, centered=True, momentum=0.9),
    "adagrad": optax.adagrad(0.1),
    "lion": optax.lion(0.01, weight_decay=0.1),
    "lamb": optax.lamb(0.01, weight_decay=0.1),
    "lars": optax.lars(0.1, weight_decay=0.1),
    "adafactor": optax.adafactor(
        0.1,
        factored=False,
        multiply_by_parameter_scale=False,
        clipping_threshold=None,
        weight_decay_rate=0.01,
        momentum=0.9,
    ),
    "fromage": optax.fromage(0.01),
    "noisy": optax.noisy_sgd(0.1, key=0),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9)),
    "decay_last": optax.chain(optax.adam(0.01), optax.add_decayed_weights(-0.1)),
    "multi_steps": optax.MultiSteps(optax.adam(0.1), 3).gradient_transformation(),
    "sam": optax.contrib.sam(
        optax.sgd(0.1), optax.sgd(0.05), sync_period=2, opaque_mode=False
    ),
    "injected": optax.inject_hyperparams(optax.adamw)(SCHEDULE, weight_decay=0.1),
}


def runner(transform):
    """All weights after each of 20 steps, from gradients that depend on the weights."""

    def run(params, noise, mask):
        def step(carry, noise):
            params, state = carry
            gradients = jax.tree.map(lambda n, p: n + 0.3 * p, noise, params)
            updates, state = transform.update(gradients, state, params, mask=mask)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, transform.init(params)), noise)[1]

    return run


def bits(x):
    return np.asarray(x).view(np.uint32)


def off(mask, history):
    """The bits off the mask, [steps, weights]."""
    return np.concatenate(
        [
            bits(h)[:, ~np.asarray(m)]
            for m, h in zip(jax.tree.leaves(mask), jax.tree.leaves(history))
        ],
        axis=1,
    )


def on(mask, history):
    return np.concatenate(
        [
            np.asarray(h)[:, np.asarray(m)]
            for m, h in zip(jax.tree.leaves(mask), jax.tree.leaves(history))
        ],
        axis=1,
    )


def poisoned(mask, noise, value=jnp.nan):
    return jax.tree.map(
        lambda m, n: np.where(np.asarray(m)[None], n, np.float32(value)), mask, noise
    )


def one_step(tree):
    """A history of one entry."""
    return jax.tree.map(lambda x: np.asarray(x)[None], tree)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- the invariant, for many optimizers -----------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_moves_off_the_mask_and_nothing_there_matters(name):
    """Both anchors after every step; nan gradients off the mask; frozen weights."""
    inner = OPTIMIZERS[name]
    zero = runner(transforms.masked(inner))
    frozen = runner(transforms.masked(inner, anchor="frozen"))
    both = jax.jit(lambda p, n, m: (zero(masks.apply(m, p), n, m), frozen(p, n, m)))
    at_zero, at_start = both(START, NOISE, MASK)

    assert (off(MASK, at_zero) == 0).all()  # bits: -0.0 would not do
    initial = off(MASK, one_step(START))
    np.testing.assert_array_equal(off(MASK, at_start), np.tile(initial, (STEPS, 1)))
    assert initial.all()

    alive = on(MASK, at_zero)
    assert np.isfinite(alive).all()
    moved = alive[-1] != on(MASK, one_step(START))[0]
    assert moved.all()  # the subnetwork does train
    # What is frozen off the mask takes no part: decay, trust ratios, scales.
    np.testing.assert_allclose(on(MASK, at_start), alive, rtol=1e-4, atol=1e-6)

    again = both(START, poisoned(MASK, NOISE), MASK)
    assert_same(again, (at_zero, at_start))


@pytest.mark.parametrize(
    "name", ["momentum", "adamw", "rmsprop", "lamb", "lars", "clipped", "fromage"]
)
def test_the_subnetwork_trains_as_if_it_were_all_there_is(name):
    """Against the plain optimizer on the surviving weights alone, gathered."""
    inner = OPTIMIZERS[name]
    plain = optax.GradientTransformationExtraArgs(
        inner.init, lambda u, s, p, mask=None: inner.update(u, s, p)
    )
    gather = lambda x, m: np.asarray(x)[..., np.asarray(m)]  # noqa: E731
    start, noise = (jax.tree.map(gather, tree, MASK) for tree in (START, NOISE))
    alone = jax.jit(runner(plain))(start, noise, None)
    whole = jax.jit(runner(transforms.masked(inner)))(
        masks.apply(MASK, START), NOISE, MASK
    )
    expected = np.concatenate(jax.tree.leaves(alone), axis=1)
    np.testing.assert_allclose(on(MASK, whole), expected, rtol=1e-4, atol=1e-6)


def test_the_battery_can_fail():
    """Masked gradients alone let warm momentum and decay move dead weights."""
    inner = optax.adamw(0.01, weight_decay=0.1)

    def update(updates, state, params, mask):
        return inner.update(masks.apply(mask, updates), state, params)

    gradients_only = optax.GradientTransformationExtraArgs(inner.init, update)
    history = jax.jit(runner(gradients_only))(START, NOISE, MASK)
    assert (off(MASK, history) != 0).any()
    assert (off(MASK, history)[-1] != off(MASK, history)[0]).any()


def test_a_mask_may_be_passed_or_bound():
    start = masks.apply(MASK, START)
    passed = jax.jit(runner(transforms.masked(optax.adamw(0.01))))(start, NOISE, MASK)
    for anchor in ("zero", "frozen"):
        bound = transforms.masked(optax.adamw(0.01), MASK, anchor)
        history = jax.jit(runner(bound))(start, NOISE, None)
        assert (off(MASK, history) == 0).all()
        np.testing.assert_allclose(on(MASK, history), on(MASK, passed), rtol=1e-5)


@pytest.mark.parametrize("bound", [False, True])
def test_keep_masked_is_the_last_of_ones_own_chain(bound):
    """Whatever came before it; a warm momentum included."""
    last = transforms.keep_masked(MASK) if bound else transforms.keep_masked()
    chain = optax.chain(
        optax.adamw(0.01, weight_decay=0.1), optax.add_noise(0.1, 0.5, key=0), last
    )
    history = jax.jit(runner(chain))(START, NOISE, None if bound else MASK)
    assert (off(MASK, history) == 0).all()
    assert np.isfinite(on(MASK, history)).all() and (on(MASK, history)[-1] != 0).all()

    frozen = optax.chain(optax.adamw(0.01), transforms.keep_masked(anchor="frozen"))
    history = jax.jit(runner(frozen))(START, NOISE, MASK)
    np.testing.assert_array_equal(off(MASK, history)[-1], off(MASK, one_step(START))[0])


def test_weights_that_were_dense_are_set_to_zero_by_the_first_step():
    """The mask changes under a warm optimizer: dead weights do not come back."""
    tx = transforms.masked(optax.sgd(0.1, momentum=0.9))
    run = jax.jit(runner(tx))
    history = run(START, NOISE, MASK)
    assert (off(MASK, history) == 0).all()
    smaller = jax.tree.map(np.logical_and, MASK, some_mask(5))
    full = jax.tree.map(np.ones_like, MASK)
    gradients = jax.tree.map(lambda n: np.asarray(n)[0], NOISE)

    @jax.jit
    def step(params, state, mask):
        updates, state = tx.update(gradients, state, params, mask=mask)
        return optax.apply_updates(params, updates), state

    params, state = START, jax.jit(tx.init)(START)
    for mask in (full, smaller):
        params, state = step(params, state, mask)
    assert (off(smaller, one_step(params)) == 0).all()


def test_clipping_sees_the_subnetwork_alone():
    tx = transforms.masked(optax.clip_by_global_norm(0.5))
    gradients = jax.tree.map(lambda n: n[0], poisoned(MASK, NOISE, 1e6))
    start = jax.tree.map(np.where, MASK, START, jax.tree.map(np.zeros_like, START))
    step = jax.jit(lambda g, p: tx.update(g, tx.init(p), p, mask=MASK)[0])
    updates = step(gradients, start)
    alive = jax.tree.map(lambda m, g: np.where(m, g, 0), MASK, gradients)
    norm = np.sqrt(sum((g.astype(float) ** 2).sum() for g in jax.tree.leaves(alive)))
    assert norm > 0.5
    found = on(MASK, one_step(updates))
    expected = on(MASK, jax.tree.map(lambda x: x[None] * 0.5 / norm, alive))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_masked_is_the_same_vmapped():
    several = [some_mask(seed, 0.4) for seed in range(3)]
    run = runner(transforms.masked(optax.adamw(0.01)))
    stacked = jax.tree.map(lambda *m: jnp.stack(m), *several)
    together = jax.jit(jax.vmap(run, (None, None, 0)))(START, NOISE, stacked)
    compiled = jax.jit(run)
    for i, mask in enumerate(several):
        alone = compiled(START, NOISE, mask)
        mine = jax.tree.map(lambda x, i=i: x[i], together)
        assert (off(mask, mine) == 0).all()
        np.testing.assert_allclose(
            on(mask, mine), on(mask, alone), rtol=1e-5, atol=1e-6
        )


def test_half_precision_and_extra_arguments():
    params = {"kernel": jnp.full((2, 4), 0.7, jnp.bfloat16)}
    mask = {"kernel": np.tile([[True, False]], (2, 2))}
    tx = transforms.masked(optax.polyak_sgd())  # asks for value=
    gradients = {"kernel": jnp.full((2, 4), 0.3, jnp.bfloat16)}

    @jax.jit
    def step(params, value):
        state = tx.init(params)
        updates, _ = tx.update(gradients, state, params, mask=mask, value=value)
        return optax.apply_updates(params, updates)["kernel"]

    after = step(params, 2.0)
    assert after.dtype == jnp.bfloat16
    assert (np.asarray(after, float)[~np.asarray(mask["kernel"])] == 0).all()
    assert (np.asarray(after, float)[np.asarray(mask["kernel"])] != 0.7).all()


# --- the state of an optimizer --------------------------------------------------------


def warm_state(tx, steps=4):
    """The state after some steps on dense gradients."""

    def step(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    first = jax.tree.map(lambda n: n[:steps], NOISE)
    run = jax.jit(lambda: jax.lax.scan(step, (START, tx.init(START)), first))
    return run()[0][1]


def test_mask_state_sets_moments_to_zero_and_nothing_else():
    tx = optax.inject_hyperparams(
        lambda lr: optax.chain(optax.clip(1.0), optax.adam(lr))
    )
    state = warm_state(tx := tx(SCHEDULE))
    after = transforms.mask_state(tx, state, MASK)
    adam, before = after.inner_state[1][0], state.inner_state[1][0]
    for found, old in ((adam.mu, before.mu), (adam.nu, before.nu)):
        assert_same(found, masks.apply(MASK, old))
        assert all(np.asarray(x).all() for x in jax.tree.leaves(old))
    unmasked = after._replace(
        inner_state=(
            after.inner_state[0],
            (adam._replace(mu=before.mu, nu=before.nu), *after.inner_state[1][1:]),
        )
    )
    assert_same(unmasked, state)  # counts and hyperparameters are as they were


def test_mask_state_finds_every_moment():
    for name in ("rmsprop", "lamb", "multi_steps"):
        state = warm_state(OPTIMIZERS[name])
        mask_state = partial(transforms.mask_state, OPTIMIZERS[name])
        after = jax.jit(mask_state)(state, MASK)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        kernels = [
            (x, MASK[layer]["kernel"])
            for x in jax.tree.leaves(after)
            for layer in SHAPES
            if x.shape == SHAPES[layer]["kernel"]
        ]
        assert kernels
        for x, mask in kernels:
            assert (np.asarray(x)[~np.asarray(mask)] == 0).all()
            assert (np.asarray(x)[np.asarray(mask)] != 0).any()


def test_mask_state_refuses_factored_moments():
    """Means of rows and columns belong to all weights."""
    tx = optax.adafactor(0.1, min_dim_size_to_factor=2)
    with pytest.raises(
        ValueError, match=r"v_row\['dense'\]\['kernel'\].*factored=False"
    ):
        transforms.mask_state(tx, tx.init(START), MASK)


def test_mask_state_where_params_are_one_array():
    tx = optax.adam(0.1)
    mask, params = np.array([[True, False, True]]), jnp.ones((1, 3))
    step = jax.jit(lambda p: tx.update(2 * p, tx.init(p), p)[1])
    after = jax.jit(partial(transforms.mask_state, tx))(step(params), mask)
    moments = np.asarray(after[0].mu)
    assert (moments[~mask] == 0).all() and (moments[mask] != 0).all()
    assert after[0].count == 1


def learning_rates(tx, step, number=2):
    """What a fresh state, moved to a step, answers a constant gradient of 1 with."""
    zeros, ones = ({"kernel": np.full((1, 1), x, np.float32)} for x in (0, 1))

    @jax.jit
    def run(step):
        state = transforms.at_schedule_step(tx, tx.init(zeros), zeros, step)
        rates = []
        for _ in range(number):
            updates, state = tx.update(ones, state, zeros)
            rates.append(-updates["kernel"][0, 0])
        return jnp.stack(rates), state

    rates, state = run(step)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(zeros))
    return rates


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(SCHEDULE),
        optax.sgd(SCHEDULE, momentum=0.0),
        optax.chain(optax.clip(5.0), optax.sgd(SCHEDULE)),
        optax.inject_hyperparams(optax.sgd)(SCHEDULE),
        optax.chain(optax.inject_hyperparams(optax.sgd)(learning_rate=SCHEDULE)),
        optax.inject_hyperparams(
            lambda b: optax.chain(optax.scale(b), optax.sgd(SCHEDULE))
        )(1.0),
        optax.adam(SCHEDULE, b1=0.0, b2=0.0, eps=0.0),
        optax.partition(
            {"all": optax.sgd(SCHEDULE)}, lambda p: jax.tree.map(lambda _: "all", p)
        ),
    ],
    ids=[
        "sgd",
        "momentum",
        "chain",
        "inject",
        "inject_in_chain",
        "inject_around",
        "adam",
        "partition",
    ],
)
def test_schedules_move_to_the_step(tx):
    expected = [SCHEDULE(17), SCHEDULE(18)]
    np.testing.assert_allclose(learning_rates(tx, 17), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [optax.adam(SCHEDULE), optax.inject_hyperparams(optax.adam)(SCHEDULE)],
    ids=["adam", "inject"],
)
def test_the_bias_correction_does_not_move(tx):
    """A fresh Adam at schedule step 17 takes a first step of the rate at 17."""
    at = jax.jit(partial(transforms.at_schedule_step, tx, params=START))
    state = at(tx.init(START), step=17)
    adam = [n for n in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(n)]
    assert [int(node.count) for node in adam] == [0]
    # mu and nu are corrected to 1 each; a moved count would answer 3.2 times as much.
    np.testing.assert_allclose(learning_rates(tx, 17, 1), [SCHEDULE(17)], rtol=1e-5)
    warm = at(warm_state(tx), step=5)
    adam = [n for n in jax.tree.leaves(warm, is_leaf=is_adam) if is_adam(n)]
    assert [int(node.count) for node in adam] == [4]


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_schedules_move_by_replica():
    """One step for each under vmap."""
    tx = optax.sgd(SCHEDULE)
    several = jax.tree.map(lambda x: jnp.stack([x, x]), tx.init(START))
    at = lambda state, step: transforms.at_schedule_step(tx, state, START, step)  # noqa: E731
    moved = jax.vmap(at)(several, jnp.array([3, 8]))
    assert moved[1].count.tolist() == [3, 8]
    with pytest.raises(
        ValueError, match=r"opt_state.*count has shape \(2,\), not \(\)"
    ):
        at(several, 4)


def test_a_state_without_schedules_stays():
    state = warm_state(tx := optax.adam(0.1))
    assert_same(transforms.at_schedule_step(tx, state, START, 9), state)


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: transforms.masked(optax.sgd(1.0), anchor="init"),
            "anchor='init'.*'zero'",
        ),
        (lambda: transforms.keep_masked(anchor="one"), "anchor='one'.*'frozen'"),
        (lambda: update(transforms.masked(optax.sgd(1.0))), "pass a mask either"),
        (
            lambda: update(transforms.masked(optax.sgd(1.0), MASK), mask=MASK),
            "pass a mask either",
        ),
        (lambda: update(transforms.keep_masked()), "pass a mask either"),
        (
            lambda: transforms.masked(optax.sgd(1.0)).update(START, (), mask=MASK),
            "pass params to update",
        ),
        (
            lambda: update(transforms.masked(optax.sgd(1.0)), mask=MASK["head"]),
            "mask: its leaves .*dense/kernel",
        ),
        (
            lambda: update(transforms.keep_masked(), mask=START),
            "'dense/bias' has dtype float32, not bool",
        ),
    ],
)
def test_errors_name_the_argument_and_what_would_be_valid(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def update(transform, **arguments):
    return transform.update(START, transform.init(START), START, **arguments)
