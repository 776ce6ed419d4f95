"""Training segments: splits, masks, schedules, noise, and parity with NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

import lottery_jax as lj
from lottery_jax import training
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS = 20


def half_of(params, prunable=None):
    """A mask that keeps half of the weights of each prunable leaf."""
    rng = np.random.default_rng(2)
    flags = lj.masks.resolve(params, prunable)
    leaves = [
        rng.permutation(p.size).reshape(p.shape) < (p.size // 2 if take else p.size)
        for p, take in zip(jax.tree.leaves(params), flags)
    ]
    return jax.tree.unflatten(
        jax.tree.structure(params), list(map(jnp.asarray, leaves))
    )


def setting(kind="classification", tx_name="sgd"):
    """A task, its jitted `train_steps`, a state with a half-empty mask, a key."""
    return _setting(kind, tx_name)


@functools.cache
def _setting(kind, tx_name):
    task = {
        "classification": toys.classification,
        "language_model": toys.language_model,
        "policy_gradient": toys.policy_gradient,
    }[kind]()
    tx = OPTIMIZERS[tx_name]
    key = jax.random.key(7)
    params, model_state, stream = jax.jit(task.init)(jax.random.key(1))
    mask = half_of(params, task.prunable(params) if task.prunable else None)
    state = training.start(tx, Network(params, model_state), stream, mask)

    @jax.jit
    def train(state, key, a, b, active=True, offset=0):
        return training.train_steps(
            task,
            tx,
            state,
            key,
            a,
            b,
            capacity=STEPS,
            active=active,
            offset=offset,
        )

    return task, tx, train, state, key


OPTIMIZERS = {
    "sgd": optax.sgd(toys.SCHEDULE, momentum=0.9),
    "nesterov with weight decay": optax.chain(
        optax.add_decayed_weights(1e-2), optax.sgd(0.1, momentum=0.9, nesterov=True)
    ),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "clipped adam": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
    "lamb": optax.lamb(0.01, weight_decay=0.1),
}


# --- segments and steps ---------------------------------------------------------------


@given(
    st.integers(0, 200),
    st.integers(0, 200),
    st.integers(1, 60),
    st.lists(st.integers(-5, 250), max_size=4),
)
def test_segments_cover_the_steps_and_stop_where_asked(start, length, every, marks):
    stop = start + length
    pieces = training.segments(start, stop, every, marks)
    assert [i for a, b in pieces for i in range(a, b)] == list(range(start, stop))
    assert all(0 < b - a <= every for a, b in pieces)
    ends = {b for _, b in pieces}
    wanted = {m for m in [*marks, *range(0, stop, every)] if start < m < stop}
    assert wanted <= ends
    assert ends - {stop} == wanted  # and nowhere else


@pytest.mark.parametrize(
    ("arguments", "field"), [((0, 5, 0), "every=0"), ((5, 4, 1), "stop=4")]
)
def test_segments_refuse_nonsense(arguments, field):
    with pytest.raises(ValueError, match=field):
        training.segments(*arguments)


@pytest.mark.parametrize(
    ("text", "step"), [("500it", 500), ("2ep", 10), ("7", 7), (7, 7), ("0ep", 0)]
)
def test_parse_step(text, step):
    assert training.parse_step(text, steps_per_epoch=5) == step


@pytest.mark.parametrize("text", ["2 epochs", "-3it", "1.5ep", "ep", "", -1])
def test_parse_step_refuses_what_is_no_step(text):
    with pytest.raises(ValueError, match="is no step"):
        training.parse_step(text, steps_per_epoch=5)


def test_orders_hold_every_example_once_per_epoch():
    task = toys.classification()
    key = jax.random.key(0)
    order = np.stack([toys.order_of(task, key, epoch) for epoch in range(3)])
    assert order.shape == (3, task.steps_per_epoch, toys.BATCH)
    for epoch in order:
        real = np.sort(epoch[epoch >= 0])
        np.testing.assert_array_equal(real, np.arange(toys.TRAIN))
    assert (order[0] != order[1]).any() and (order[1] != order[2]).any()
    assert (order[0] != toys.order_of(task, jax.random.key(1))).any()


# --- resuming -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["classification", "language_model", "policy_gradient"]
)
@pytest.mark.parametrize("cuts", [(19,), (7,), (1, 2, 6, 13), tuple(range(1, 20))])
def test_any_split_gives_the_same_bits(kind, cuts):
    _, _, train, state, key = setting(kind)
    whole, metrics = train(state, key, 0, STEPS)
    parts = []
    for a, b in zip((0, *cuts), (*cuts, STEPS)):
        state, part = train(state, key, a, b)
        parts.append({name: x[: b - a] for name, x in part.items()})
    toys.assert_equal(state, whole)
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    toys.assert_equal(joined, metrics)
    assert all(np.isfinite(x).all() for x in metrics.values())


def test_one_compilation_serves_segments_and_masks():
    task, tx, _, state, key = setting()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def train(state, key, a, b):
        return training.train_steps(task, tx, state, key, a, b, capacity=STEPS)

    for a, b in ((0, 1), (1, 20), (3, 3)):
        state, _ = train(state, key, a, b)
    full = jax.tree.map(jnp.ones_like, state.mask)
    train(state._replace(mask=full), key, 0, 4)


def test_metrics_are_nan_beyond_the_segment():
    _, _, train, state, key = setting()
    _, whole = train(state, key, 0, STEPS)
    _, metrics = train(state, key, 0, 6)
    assert {"loss", "error"} <= metrics.keys()
    for name, values in metrics.items():
        assert values.shape == (STEPS,) and values.dtype == jnp.float32
        np.testing.assert_array_equal(values[:6], whole[name][:6])
        assert np.isnan(values[6:]).all()


def test_the_loss_is_recorded_for_tasks_that_do_not_report_it():
    task, tx, train, state, key = setting()

    def silent(*args):
        value, (model_state, stream, _) = task.loss(*args)
        return value, (model_state, stream, {})

    quiet = task._replace(loss=silent)
    _, metrics = jax.jit(
        lambda state: training.train_steps(quiet, tx, state, key, 0, 3, capacity=3)
    )(state)
    expected = train(state, key, 0, 3)[1]["loss"][:3]
    toys.assert_close(metrics, {"loss": expected})


def test_segments_that_do_not_fit_are_refused():
    task, tx, _, state, key = setting()
    with pytest.raises(ValueError, match="capacity=4"):
        training.train_steps(task, tx, state, key, 0, 5, capacity=4)


# --- replicas that wait, and replicas that break --------------------------------------


def test_an_inactive_replica_stays_as_it_is():
    _, _, train, state, key = setting()
    same, metrics = train(state, key, 0, 8, False)
    toys.assert_equal(same, state)
    assert all(np.isnan(x).all() for x in metrics.values())


def test_under_vmap_the_inactive_wait_and_nan_stays_where_it_is():
    _, _, train, state, key = setting()
    keys = jnp.stack([key, jax.random.key(8), key])
    many = jax.tree.map(lambda x: jnp.stack([x] * 3), state)
    vmapped = jax.jit(
        jax.vmap(lambda state, key, active: train(state, key, 0, 6, active))
    )

    def broken(x):
        return x.at[0].set(jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x

    sick = many._replace(params=jax.tree.map(broken, many.params))
    active = jnp.array([True, False, True])
    healthy, metrics = vmapped(many, keys, active)
    other, nan_metrics = vmapped(sick, keys, active)

    def at(tree, i):
        return jax.tree.map(lambda x: x[i], tree)

    for after in (healthy, other):
        toys.assert_equal(at(after, 1), state)
    assert np.isnan(nan_metrics["loss"][0]).all()
    toys.assert_equal(at(other, 2), at(healthy, 2))
    toys.assert_equal(at(nan_metrics, 2), at(metrics, 2))
    toys.assert_close(at(healthy, 2), train(state, key, 0, 6)[0])


# --- masks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_and_moments_off_the_mask_are_exactly_zero(name):
    _, tx, train, state, key = setting("language_model", name)
    assert any((~np.asarray(m)).any() for m in jax.tree.leaves(state.mask))
    first = state
    for a, b in ((0, 1), (1, 2), (2, 20)):
        state, _ = train(state, key, a, b)
        for m, p in zip(jax.tree.leaves(state.mask), jax.tree.leaves(state.params)):
            assert (np.asarray(p)[~np.asarray(m)] == 0).all()
            assert np.isfinite(p).all()
    cleared = lj.transforms.mask_state(tx, state.opt_state, state.mask)
    toys.assert_equal(state.opt_state, cleared)
    toys.assert_equal(state.mask, first.mask)
    moved = jax.tree.map(
        lambda a, b: (np.asarray(a) != b).any(), state.params, first.params
    )
    assert all(jax.tree.leaves(moved))


def test_start_masks_and_refuses_masks_that_do_not_fit():
    task, tx, _, state, _ = setting()
    params, model_state, stream = jax.jit(task.init)(jax.random.key(1))
    network = Network(params, model_state)
    for m, p, q in zip(*map(jax.tree.leaves, (state.mask, state.params, params))):
        np.testing.assert_array_equal(p, np.where(m, q, 0))
    wrong = state.mask | {"head": {"kernel": jnp.ones((3, 4), bool)}}
    with pytest.raises(ValueError, match="mask: "):
        training.start(tx, network, stream, wrong)


def test_update_mask_zeroes_what_it_removes():
    task, tx, train, state, key = setting("language_model", "adamw")
    state, _ = train(state, key, 0, 3)
    rule = lj.dynamic.gradual_magnitude(
        0.1,
        begin=0,
        end=4,
        every=2,
        initial_density=0.5,
        prunable=task.prunable,
    )
    after = jax.jit(
        lambda state: training.update_mask(task, tx, rule.update, state, key, 4)
    )(state)
    assert bool(lj.masks.is_subset(after.mask, state.mask))
    total = 16 * 24 + 24 * toys.VOCABULARY
    assert int(lj.masks.count(after.mask, task.prunable)) == round(0.1 * total)
    toys.assert_equal(after.params, lj.masks.apply(after.mask, state.params))
    expected = lj.transforms.mask_state(tx, state.opt_state, after.mask)
    toys.assert_equal(after.opt_state, expected)


# --- the schedule and the noise -------------------------------------------------------


def test_a_level_starts_with_the_learning_rate_of_the_rewind_step():
    task, tx, train, state, key = setting()
    k, stop = 6, 9
    at_k = training.start(
        tx, Network(state.params, state.model_state), (), state.mask, k
    )
    got, _ = train(at_k, key, k, stop)

    gradient = jax.jit(functools.partial(training.step_gradient, task))
    params, running = state.params, state
    momentum = jax.tree.map(np.zeros_like, params)
    for step in range(k, stop):
        rate = 0.1 * 0.5 ** (step / 10)
        running = running._replace(params=params)
        gradients, running, _ = gradient(running, key, jnp.int32(step))
        momentum = jax.tree.map(
            lambda v, g, m: 0.9 * v + np.where(m, g, 0), momentum, gradients, state.mask
        )
        params = jax.tree.map(lambda p, v, r=rate: p - r * v, params, momentum)
    toys.assert_close(got.params, params, atol=1e-6)
    # The check can fail: at the schedule of step 0 the weights would be elsewhere.
    wrong, _ = train(state, key, k, stop)
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), wrong.params, params)
    assert max(jax.tree.leaves(difference)) > 1e-3


def test_a_level_of_adam_starts_with_the_schedule_but_without_moments():
    tx = optax.adam(toys.SCHEDULE)
    task, _, _, state, _ = setting()
    network = Network(state.params, state.model_state)
    started = training.start(tx, network, (), state.mask, 6)
    fresh = tx.init(state.params)
    toys.assert_equal(started.opt_state[0], fresh[0])  # moments, bias correction
    assert int(started.opt_state[1].count) == 6


def test_noise_is_a_function_of_key_and_step():
    task, tx, train, state, key = setting("language_model")
    other = jax.random.key(99)
    one = train(state, key, 0, 5)
    toys.assert_equal(one, train(state, key, 0, 5))
    # Order alone, dropout alone: both are noise, and each makes a difference.
    others = lj.keys.noise_keys(other)
    for changed in (
        task._replace(order=lambda _, step: task.order(others.order, step)),
        task._replace(loss=lambda *args: task.loss(*args[:-1], others.loss)),
    ):
        found, _ = jax.jit(
            lambda state, key, task=changed: training.train_steps(
                task, tx, state, key, 0, 5, capacity=STEPS
            )
        )(state, key)
        differ = jax.tree.map(lambda a, b: (a != b).any(), found.params, one[0].params)
        assert any(map(bool, jax.tree.leaves(differ)))
    keys = lj.keys.noise_keys(key)
    data = {tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in keys}
    assert len(data) == len(keys) == 5


def test_an_offset_moves_the_position_in_the_noise():
    _, _, train, state, key = setting("language_model")
    moved = train(state, key, 2, 6, True, 12)
    toys.assert_equal(moved, train(state, key, 14, 18))
    there = train(state, key, 2, 6)[0].params.layers["output"]
    assert (moved[0].params.layers["output"] != there).any()


def test_environments_go_on_where_they_were():
    task, _, train, state, key = setting("policy_gradient")
    walked, _ = train(state, key, 0, 3)
    assert (walked.stream_state["cell"] != state.stream_state["cell"]).any()
    moved = state._replace(stream_state=walked.stream_state)
    there = train(moved, key, 0, 3)[0]
    assert any(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(there.params), jax.tree.leaves(walked.params))
    )


# --- parity ---------------------------------------------------------------------------


def _numpy_training(params, mask, batches, optimizer):
    """Masked training of an MLP in float64: forward, backward, optimizer, written out."""
    names = ("dense_0", "dense_1", "head")
    flat = {
        (n, k): np.array(params[n][k], np.float64) for n in names for k in params[n]
    }
    keep = {(n, k): np.asarray(mask[n][k]) for n in names for k in params[n]}
    flat = {name: np.where(keep[name], w, 0) for name, w in flat.items()}
    first = {name: np.zeros_like(w) for name, w in flat.items()}
    second = {name: np.zeros_like(w) for name, w in flat.items()}
    losses = []
    for t, (x, y, weight) in enumerate(batches, start=1):
        inputs, h = [], x.astype(np.float64)
        for n in names:
            inputs.append(h)
            h = h @ flat[n, "kernel"] + flat[n, "bias"]
            if n != "head":
                h = np.maximum(h, 0)
        shifted = h - h.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        share = weight / weight.sum()
        losses.append(-(log_p[np.arange(len(y)), y] * share).sum())
        delta = np.exp(log_p)
        delta[np.arange(len(y)), y] -= 1
        delta *= share[:, None]
        gradients = {}
        for n, before in zip(names[::-1], inputs[::-1]):
            gradients[n, "kernel"] = before.T @ delta
            gradients[n, "bias"] = delta.sum(axis=0)
            delta = (delta @ flat[n, "kernel"].T) * (before > 0)
        for name, g in gradients.items():
            g = np.where(keep[name], g, 0)
            if optimizer == "momentum":
                first[name] = 0.9 * first[name] + g
                step = 0.1 * first[name]
            else:
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g**2
                m, v = first[name] / (1 - 0.9**t), second[name] / (1 - 0.999**t)
                step = 0.01 * m / (np.sqrt(v) + 1e-8)
            flat[name] = np.where(keep[name], flat[name] - step, 0)
    return {n: {k: flat[n, k] for k in params[n]} for n in names}, losses


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_training_equals_numpy(optimizer):
    model = lj.models.make("mlp-12-9", 4, bias="torch")
    task = toys.classification(model)
    tx = optax.sgd(0.1, momentum=0.9) if optimizer == "momentum" else optax.adam(0.01)
    key = jax.random.key(4)
    params, model_state, stream = jax.jit(task.init)(jax.random.key(5))
    mask = half_of(params)
    order = np.asarray(toys.order_of(task, lj.keys.noise_keys(key).order))
    state = training.start(tx, Network(params, model_state), stream, mask)
    state, metrics = jax.jit(
        functools.partial(training.train_steps, task, tx, capacity=5, start=0, stop=5)
    )(state, key)

    images, labels = task.data["train"]["image"], task.data["train"]["label"]
    batches = []
    for row in order:  # the last one is partial
        real = row >= 0
        batches.append((images[row], labels[row], real.astype(np.float64)))
    assert not real.all()
    expected, losses = _numpy_training(params, mask, batches, optimizer)
    # float32 against float64 after 5 steps; Adam divides by small roots.
    atol = 2e-6 if optimizer == "momentum" else 2e-5
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    toys.assert_close(state.params, expected, atol=atol)
