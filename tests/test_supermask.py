"""Masks that are trained: gradients by hand, exact counts, and a task like any other."""

import doctest
import functools
import math

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import toys
from flax import nnx

import lottery_jax as lj
from lottery_jax import keys, masks, prune, supermask, training, trees
from lottery_jax.execution import Execution, Where
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = keys.of_seed(0)
ONE = Where(Execution(devices=1, chunk=1))
METHODS = {
    "drawn": supermask.bernoulli(samples=3),
    "rescaled": supermask.bernoulli(rescale=True, samples=0),
    "popup": supermask.edge_popup(0.4),
}


def weights(seed=0, dtype=np.float32):
    """Two layers, of which one has a bias, and a norm."""
    rng = np.random.default_rng(seed)
    return {
        "a": {"kernel": jnp.asarray(rng.normal(size=(30, 20)), dtype)},
        "b": {
            "kernel": jnp.asarray(rng.normal(size=(20, 5)), dtype),
            "bias": jnp.asarray(rng.normal(size=5), dtype),
        },
        "norm": {"scale": jnp.asarray(rng.normal(size=20), dtype)},
    }


def some_scores(seed=1):
    return jax.tree.map(lambda w: w.astype(jnp.float32), weights(seed))


KERNELS = (("a", "kernel"), ("b", "kernel"))


def of_kernels(tree):
    return [np.asarray(tree[layer][name], np.float64) for layer, name in KERNELS]


# --- what is applied, and its gradients -----------------------------------------------


@functools.cache
def pulled(name):
    """A method's weights, and what a cotangent becomes in scores and weights."""
    method, scores, frozen = METHODS[name], some_scores(), weights()
    cotangent = weights(2)

    @quick.jit
    def both(scores, frozen):
        made, back = jax.vjp(lambda s, w: method.params(s, w, key=KEY), scores, frozen)
        return made, back(cotangent)

    return scores, frozen, cotangent, *both(scores, frozen)


@pytest.mark.parametrize("name", METHODS)
def test_straight_through_gradients_are_those_written_out(name):
    scores, frozen, cotangent, made, (of_scores, of_weights) = pulled(name)
    parts = zip(
        *map(of_kernels, (scores, frozen, cotangent, made, of_scores, of_weights))
    )
    for s, w, c, out, gradient, own in parts:
        kept = out != 0
        assert 0 < kept.sum() < kept.size
        if name == "popup":
            slope, factor = np.sign(s), 1.0
            lowest = np.sort(np.abs(s).ravel())[-round(0.4 * s.size)]
            np.testing.assert_array_equal(kept, np.abs(s) >= lowest)
        else:
            p = 1 / (1 + np.exp(-s))
            slope = p * (1 - p)
            # The factor of the mask that was drawn is a constant of the gradient.
            factor = kept.size / kept.sum() if name == "rescaled" else 1.0
        np.testing.assert_allclose(out, np.where(kept, w * factor, 0), rtol=1e-6)
        np.testing.assert_allclose(gradient, c * w * factor * slope, rtol=2e-5)
        np.testing.assert_allclose(own, np.where(kept, c * factor, 0), rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_without_a_mask_weights_stay_and_scores_have_no_gradient(name):
    scores, frozen, _, made, (of_scores, _) = pulled(name)
    for layer, leaf in (("b", "bias"), ("norm", "scale")):
        np.testing.assert_array_equal(made[layer][leaf], frozen[layer][leaf])
        assert not np.any(of_scores[layer][leaf])


@pytest.mark.parametrize("name", METHODS)
def test_derivatives_go_both_ways_and_twice(name):
    method, scores, frozen = METHODS[name], some_scores(), weights()
    direction = some_scores(3)

    def loss(scores):
        made = method.params(scores, frozen, key=KEY)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(made))

    @quick.jit
    def all_ways(scores):
        gradient, change = jax.jvp(jax.grad(loss), (scores,), (direction,))
        along = jax.jvp(loss, (scores,), (direction,))[1]
        return gradient, change, along

    gradient, change, along = all_ways(scores)
    dots = jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, direction)
    assert float(along) == pytest.approx(float(sum(jax.tree.leaves(dots))), rel=1e-4)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(change))
    assert np.any(change["a"]["kernel"])


def test_off_the_mask_infinite_weights_are_zero():
    method, scores = supermask.edge_popup(0.5), some_scores()
    kept = method.mask(scores)
    wild = jax.tree.map(lambda m, w: jnp.where(m, w, jnp.inf), kept, weights())
    made = method.params(scores, wild)
    toys.assert_equal(made, masks.apply(kept, weights()))


# --- counts ---------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0101, 0.025, 1 / 3, 0.745, 0.999])
def test_every_layer_keeps_its_exact_count_at_every_density(density):
    method, scores = supermask.edge_popup(density), some_scores()
    mask = method.mask(scores)
    counts = method.counts(scores)
    share = masks.exact(density)
    assert counts == (round(share * 600), round(share * 100))
    assert [int(m.sum()) for m in of_kernels(mask)] == list(counts)
    assert mask["b"]["bias"].all()
    size = jax.tree.map(jnp.abs, scores)
    full = masks.ones_like(scores)
    toys.assert_equal(mask, prune.layerwise_topk(size, full, keep=counts))


@pytest.mark.parametrize("values", ["equal", "few", "zero"])
def test_of_equal_scores_the_first_are_left_out(values):
    rng = np.random.default_rng(0)
    made = {
        "equal": np.full((6, 7), -0.5, np.float32),
        "few": rng.choice([-1.0, 1.0, 0.5], size=(6, 7)).astype(np.float32),
        "zero": np.where(rng.random((6, 7)) < 0.5, -0.0, 0.0).astype(np.float32),
    }[values]
    scores = {"kernel": jnp.asarray(made)}
    for keep in (1, 13, 20, 41):
        kept = supermask.edge_popup(0.5).mask(scores, keep=(keep,))["kernel"]
        order = np.lexsort((np.arange(42), np.abs(made).ravel()))
        expected = np.zeros(42, bool)
        expected[order[42 - keep :]] = True
        np.testing.assert_array_equal(kept.ravel(), expected)


def test_the_numbers_kept_may_be_traced_and_differ_between_runs():
    method, scores, frozen = supermask.edge_popup(0.5), some_scores(), weights()
    keep = jnp.array([[1, 2], [300, 50], [599, 99]], jnp.int32)
    made = quick.jit(jax.vmap(lambda k: method.params(scores, frozen, k)))(keep)
    for own, kept in zip(of_kernels(made), keep.T):
        assert [int((x != 0).sum()) for x in own] == kept.tolist()
    toys.assert_equal(
        masks.apply(method.mask(scores, keep[1]), frozen), trees.rows(made, 1)
    )


# --- draws ----------------------------------------------------------------------------


def coins(probability, number, draws=1, seed=0):
    """Draws of `number` weights of one probability, `[draws, number]`."""
    scores = {"kernel": jnp.full((1, number), jax.scipy.special.logit(probability))}
    ones = {"kernel": jnp.ones((1, number))}
    method = supermask.bernoulli(prunable=lambda tree: {"kernel": True})
    drawn = quick.jit(jax.vmap(lambda key: method.params(scores, ones, key=key)))
    made = drawn(jax.random.split(keys.of_seed(seed), draws))["kernel"]
    return np.asarray(made)[:, 0] != 0


@pytest.mark.parametrize("probability", [0.0031, 0.4999, 0.7312])
def test_weights_are_kept_as_often_as_their_probability_says(probability):
    # None of them is a multiple of 1/256, which eight bits alone would give.
    drawn = coins(probability, 1000, draws=400)
    p = float(jax.nn.sigmoid(jax.scipy.special.logit(jnp.float32(probability))))
    deviation = math.sqrt(p * (1 - p) / drawn.size)
    assert abs(drawn.mean() - p) < 4 * deviation
    # Each weight for itself, over the draws; and the number of a draw.
    each = math.sqrt(p * (1 - p) / len(drawn))
    assert abs(drawn.mean(axis=0).std() / each - 1) < 0.15
    whole = math.sqrt(p * (1 - p) / 1000)
    assert abs(drawn.mean(axis=1).std() / whole - 1) < 0.15


def test_what_is_impossible_never_happens_and_what_is_certain_always():
    assert not coins(0.0, 100_000).any()
    assert coins(1.0, 100_000).all()


def test_weights_that_share_bits_are_as_good_as_independent():
    drawn = coins(0.3017, 512, draws=3000).astype(np.float64)
    found = np.corrcoef(drawn, rowvar=False)[np.triu_indices(512, 1)]
    # Of independent ones: mean 0, spread 1 / sqrt(3000).
    assert abs(found.mean()) < 4 / math.sqrt(3000 * len(found)) + 2**-18 / 0.2107
    assert abs(found.std() * math.sqrt(3000) - 1) < 0.02


def test_draws_are_a_function_of_the_key_alone():
    method, scores, frozen = METHODS["drawn"], some_scores(), weights()
    both = keys.of_replicas(0, (0, 1)).init

    def made(key):
        return method.params(scores, frozen, key=key)

    one = quick.jit(made)
    alone = [one(key) for key in both]
    toys.assert_equal(trees.stack(alone), quick.jit(jax.vmap(made))(both))
    with jax.threefry_partitionable(False):
        toys.assert_equal(quick.jit(lambda key: made(key))(both[0]), alone[0])
    assert np.any(alone[0]["a"]["kernel"] != alone[1]["a"]["kernel"])
    # Layers of one shape draw apart.
    twice = [frozen["a"]["kernel"]] * 2
    chosen = supermask.bernoulli(prunable=[True, True])
    zeros = jax.tree.map(jnp.zeros_like, twice)
    made = quick.jit(lambda key: chosen.params(zeros, twice, key=key))(KEY)
    assert np.any(made[0] != made[1])


def test_a_learned_mask_says_its_density_and_its_probabilities():
    method, scores = METHODS["drawn"], some_scores()
    mask = method.mask(scores)
    above = [(s > 0) for s in of_kernels(scores)]
    assert float(masks.density(mask)) == pytest.approx(
        sum(map(np.sum, above)) / 700, abs=1e-6
    )
    toys.assert_equal(method.params(scores, weights()), masks.apply(mask, weights()))
    found = method.probabilities(scores)
    np.testing.assert_allclose(
        found["a"]["kernel"], 1 / (1 + np.exp(-scores["a"]["kernel"])), rtol=1e-6
    )
    assert (found["norm"]["scale"] == 1).all()
    # A layer that misses all its weights is there to be seen.
    empty = masks.layer_densities(method.mask(method.init(KEY, weights())))
    assert {name: float(x) for name, x in empty.items()} == {
        "a/kernel": 0.0,
        "b/kernel": 0.0,
    }


# --- any tree, any loop ---------------------------------------------------------------


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 6, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.hidden(x)))


def of_linen():
    net = nn.Dense(4)
    return net.init(KEY, jnp.zeros((1, 8)))["params"], lambda params, x: net.apply(
        {"params": params}, x
    )


def of_nnx():
    graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    return params, lambda params, x: nnx.merge(graph, params)(x)


def of_equinox():
    params, static = eqx.partition(
        eqx.nn.MLP(8, 4, 6, 1, key=KEY), eqx.is_inexact_array
    )
    return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)


def of_haiku():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(4)(x)))
    return net.init(KEY, jnp.zeros((1, 8))), net.apply


def of_dicts():
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), "f4")}
    return params, lambda params, x: x @ params["w"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (of_linen, "popup"),
        (of_nnx, "popup"),
        (of_equinox, "rescaled"),
        (of_haiku, "popup"),
        (of_dicts, "rescaled"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_every_library_in_a_loop_of_its_own(make, name):
    frozen, apply = make()
    method = METHODS[name]
    wrapped = method.wrap(apply)
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    y = np.arange(5) % 4
    tx = optax.adamw(0.1)

    @quick.jit
    def step(scores, state, key):
        def loss(scores):
            logits = wrapped(scores, frozen, x, mask_key=key)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.mean(losses)

        updates, state = tx.update(jax.grad(loss)(scores), state, scores)
        return optax.apply_updates(scores, updates), state

    first = scores = method.init(KEY, frozen)
    assert jax.tree.structure(scores) == jax.tree.structure(frozen)
    state = tx.init(scores)
    for key in jax.random.split(KEY, 2):
        scores, state = step(scores, state, key)
    for old, new, take in zip(
        *map(jax.tree.leaves, (first, scores)), masks.resolve(frozen)
    ):
        assert np.any(np.asarray(old) != new) == take
    masked = masks.apply(method.mask(scores), frozen)
    if name == "popup":
        np.testing.assert_array_equal(wrapped(scores, frozen, x), apply(masked, x))
    else:
        assert wrapped(scores, frozen, x).shape == (5, 4)


@pytest.mark.parametrize("name", METHODS)
def test_weights_of_half_precision_stay_so_and_scores_do_not(name):
    method, frozen = METHODS[name], weights(dtype=jnp.bfloat16)
    scores = method.init(KEY, frozen)
    assert {x.dtype for x in jax.tree.leaves(scores)} == {np.dtype(np.float32)}

    def total(scores):
        made = method.params(scores, frozen, key=KEY)
        assert {x.dtype for x in jax.tree.leaves(made)} == {np.dtype(jnp.bfloat16)}
        return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(made))

    gradient = quick.jit(jax.grad(total))(scores)
    assert gradient["a"]["kernel"].dtype == jnp.float32
    assert np.any(gradient["a"]["kernel"])


# --- laws of the weights --------------------------------------------------------------


class WithConvolution(nn.Module):
    """Of a task of vectors of 8: a convolution over 4 places of 2 channels, and a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3,), name="conv")(x.reshape(-1, 4, 2))
        return nn.Dense(4, name="head")(jax.nn.relu(x).reshape(x.shape[0], -1))


FAN_IN = {"conv": 3 * 2, "head": 24}
FAN_OUT = {"conv": 3 * 6, "head": 4}


@functools.cache
def plain():
    return toys.classification(WithConvolution())


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("law", supermask.LAWS)
def test_scaled_weights_keep_their_size_at_every_density(law, density):
    method = supermask.edge_popup(density)
    make = functools.partial(supermask.task, plain(), method, law=law)
    (scores, bare, _), (again, scaled, _) = (
        make(scaled=choice).init(KEY) for choice in (False, True)
    )
    toys.assert_equal(scores, again)
    assert tuple(scaled.keep) == method.counts(scores)
    for layer, keep in zip(("conv", "head"), method.counts(scores)):
        w, wide = (x.weights[layer]["kernel"] for x in (bare, scaled))
        np.testing.assert_allclose(wide, w * math.sqrt(w.size / keep), rtol=1e-6)
        fan = FAN_IN[layer]
        variance = 2 / (fan + FAN_OUT[layer] if law == "xavier_normal" else fan)
        if law == "signed_kaiming_constant":
            np.testing.assert_allclose(np.abs(w), math.sqrt(variance), rtol=1e-6)
            applied = method.params(scores, scaled.weights)[layer]["kernel"]
            # The second moment of what is applied, to rounding: 2 / fan in.
            moment = np.mean(np.square(applied, dtype=np.float64))
            assert moment == pytest.approx(variance, rel=1e-6)
        elif law == "signed_constant":
            drawn = plain().init(KEY)[0][layer]["kernel"]
            np.testing.assert_allclose(w, np.sign(drawn) * np.std(drawn), rtol=1e-5)
    assert not np.any(scaled.weights["conv"]["bias"])


@pytest.mark.parametrize("law", ["kaiming_normal", "xavier_normal"])
def test_normal_laws_have_their_variance(law):
    wide = toys.classification(lj.models.make("mlp-400-100", 4))
    made = supermask.task(wide, supermask.bernoulli(), law=law).init(KEY)[1].weights
    w = np.asarray(made["dense_1"]["kernel"], np.float64)
    variance = 2 / (400 + 100 if law == "xavier_normal" else 400)
    # Of 40,000 numbers the mean square is known to 1%, the fourth moment to 3%.
    assert np.mean(w**2) == pytest.approx(variance, rel=0.04)
    assert np.mean(w**4) / np.mean(w**2) ** 2 == pytest.approx(3, rel=0.1)


def test_without_a_law_weights_are_those_of_the_network_that_would_be_trained():
    dense = plain().init(KEY)[0]
    made = supermask.task(plain(), METHODS["drawn"]).init(KEY)[1]
    toys.assert_equal(made.weights, dense)
    assert made.keep.shape == (0,)


def test_scores_begin_as_published():
    scores = supermask.task(plain(), METHODS["popup"]).init(KEY)[0]
    for layer, fan in FAN_IN.items():
        s = np.asarray(scores[layer]["kernel"]) * math.sqrt(fan)
        assert np.abs(s).max() <= 1
        assert np.abs(s).max() > 0.8 and s.min() < 0
        assert not np.any(scores[layer]["bias"])
    drawn = supermask.task(plain(), METHODS["drawn"]).init(KEY)[0]
    assert not any(np.any(x) for x in jax.tree.leaves(drawn))


@pytest.mark.parametrize("scale", ["ones", "uniform"])
def test_norms_are_frozen_and_by_default_as_if_they_had_no_parameters(scale):
    class Normed(nn.Module):
        affine: bool = True

        @nn.compact
        def __call__(self, x, train=False, weights=None):
            x = nn.Dense(12, name="hidden")(x)
            norm = lj.models.BatchNorm(norm_scale=scale, name="norm")
            if self.affine:
                x = norm(x, train, weights)
            else:
                mean, variance, _ = lj.models.normalization.moments(x, weights)
                mean, variance = (
                    jnp.broadcast_to(v, x.shape) for v in (mean, variance)
                )
                x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
            return nn.Dense(4, name="head")(jax.nn.relu(x))

    inner = toys.classification(Normed())
    own, method = supermask.task(inner, METHODS["popup"]), METHODS["popup"]

    @quick.jit
    def both(data):
        scores, frozen, _ = own.init(KEY)
        batch = first_batch(inner, data)
        loss, (after, _, _) = own.loss(scores, frozen, (), batch, KEY)
        params = method.params(scores, frozen.weights)
        params = {name: params[name] for name in ("hidden", "head")}
        bare = Normed(affine=False).apply(
            {"params": params}, batch["image"], True, batch["weight"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(bare, batch["label"])
        expected = jnp.sum(losses * batch["weight"]) / jnp.sum(batch["weight"])
        return frozen, after, inner.init(KEY)[0], loss, expected

    frozen, after, drawn, loss, expected = both(inner.data)
    assert (float(loss) == pytest.approx(float(expected), rel=1e-5)) == (
        scale == "ones"
    )
    # Statistics move, weights are frozen at what the task draws.
    toys.assert_equal(after.weights, frozen.weights)
    toys.assert_equal(frozen.weights["norm"], drawn["norm"])
    moved = jax.tree.map(lambda a, b: np.any(a != b), after.inner, frozen.inner)
    assert all(jax.tree.leaves(moved))


# --- a task like any other ------------------------------------------------------------


def first_batch(task, data):
    zero = jnp.int32(0)
    return task.batch(data, task.order(KEY, zero), KEY, zero)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_what_is_said_of_a_network_is_said_of_its_masked_weights(name):
    inner, method = toys.classification(), METHODS[name]
    own = supermask.task(inner, method, law="kaiming_normal")

    @quick.jit
    def all_of_it(data):
        scores, frozen, _ = own.init(KEY)
        # No first draw, for which no weight is above one half.
        scores = jax.tree.map(
            lambda s: s + 0.3 * jax.random.normal(KEY, s.shape), scores
        )
        applied = method.params(scores, frozen.weights, frozen.keep)
        network, batch = (applied, frozen.inner), first_batch(inner, data)
        moments = own.statistics(scores, frozen, batch)
        expected = inner.statistics(*network, batch)
        pooled = own.pool(trees_of(moments))
        found = {
            "outputs": own.outputs(scores, frozen, batch),
            "predict": own.predict(scores, frozen, data, KEY, "test"),
            "statistics": moments.inner,
            "pool": pooled,
            "evaluate": own.evaluate(scores, frozen, data, KEY, "test"),
        }
        wanted = {
            "outputs": inner.outputs(*network, batch),
            "predict": inner.predict(*network, data, KEY, "test"),
            "statistics": expected,
            "pool": frozen._replace(inner=inner.pool(trees_of(expected))),
        }
        draws = [None]
        if method.samples:
            own_key = jax.random.fold_in(KEY, supermask._ROLES)
            draws = list(jax.random.split(own_key, method.samples))
        each = [
            inner.evaluate(
                method.params(scores, frozen.weights, frozen.keep, draw),
                *(frozen.inner, data, KEY, "test"),
            )
            for draw in draws
        ]
        return found, wanted, each

    found, wanted, each = all_of_it(own.data)
    means = {n: np.mean([x[n] for x in each], dtype=np.float32) for n in each[0]}
    assert len({float(x["loss"]) for x in each}) == max(method.samples, 1)
    toys.assert_close(found, wanted | {"evaluate": means})


def trees_of(moments):
    """Those of two equal batches."""
    return jax.tree.map(lambda x: jnp.stack([x, x]), moments)


DECAYED = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))


@pytest.mark.parametrize(
    ("name", "tx"),
    [("drawn", optax.adam(0.02)), ("popup", DECAYED)],
    ids=["drawn", "popup"],
)
def test_training_moves_scores_and_nothing_that_is_frozen(name, tx):
    own = supermask.task(toys.classification(), METHODS[name], law="kaiming_normal")
    runs, done = trained(own, tx, 6)
    before, after = trees.host(runs.state), done.state
    old, new = (x.model_state._replace(inner=()) for x in (before, after))
    toys.assert_equal(old, new)
    means = [
        x.model_state.inner["batch_stats"]["norm"]["mean"] for x in (before, after)
    ]
    assert np.any(means[0] != means[1])
    for layer in ("hidden", "head"):
        assert np.any(before.params[layer]["kernel"] != after.params[layer]["kernel"])
        assert not np.any(after.params[layer]["bias"])
    assert not np.any(after.params["norm"]["scale"])
    if name == "popup":
        assert new.keep.tolist() == 2 * [[round(0.4 * 48), round(0.4 * 96)]]


def trained(task, tx, steps, where=ONE):
    """Two runs, before and after."""
    found = keys.of_replicas(0, (0, 1))
    runs = training.fresh(task, tx, found.init, found.noise, where=where)
    return runs, training.train(task, tx, runs, steps, where=where)


def test_weight_decay_acts_on_scores():
    own = supermask.task(plain(), METHODS["popup"])

    @quick.jit
    def both(data):
        scores, frozen, _ = own.init(KEY)
        made = []
        for tx in (
            optax.sgd(0.1),
            optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1)),
        ):
            state = training.start(
                tx, Network(scores, frozen), (), masks.ones_like(scores)
            )
            state, _ = training.train_steps(
                own._replace(data=data), tx, state, KEY, 0, 1, capacity=1
            )
            made.append(state.params["head"]["kernel"])
        return scores["head"]["kernel"], *made

    scores, plainly, decayed = both(own.data)
    np.testing.assert_allclose(decayed, plainly - 0.05 * scores, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_densities_and_laws_train_as_one_batch_as_each_does_alone():
    traces = []
    inner = toys.classification(lj.models.make("mlp-6", 4))

    def loss(*args):
        traces.append(1)
        return inner.loss(*args)

    seen = inner._replace(loss=loss)
    tx, found = optax.sgd(0.1, momentum=0.9), keys.of_replicas(0, (0, 1))
    choices = [
        (0.2, "xavier_normal"),
        (0.75, "xavier_normal"),
        (0.75, "signed_constant"),
    ]
    tasks = [
        supermask.task(seen, supermask.edge_popup(density), law=law, scaled=True)
        for density, law in choices
    ]
    runs = [training.fresh(x, tx, found.init, found.noise, where=ONE) for x in tasks]
    before = len(traces)
    done = training.train(tasks[0], tx, training.concatenate(runs), 7, where=ONE)
    spent = len(traces) - before
    # The same program for all, in any order.
    training.train(tasks[0], tx, training.concatenate(runs[::-1]), 7, where=ONE)
    assert len(traces) - before == spent
    alone = training.train(tasks[2], tx, runs[2], 7, where=ONE)
    toys.assert_equal(trees.rows(done.state, slice(4, 6)), alone.state)
    keep = done.networks.model_state.keep[::2, 0].tolist()
    assert keep == [round(density * 48) for density, _ in choices]
    assert len({x.tobytes() for x in done.networks.params["head"]["kernel"]}) == 6


def test_runs_that_are_no_batch_are_refused_by_their_leaf():
    own, tx = supermask.task(plain(), METHODS["popup"]), optax.sgd(0.1)
    found = keys.of_replicas(0, (0,))
    runs = training.fresh(own, tx, found.init, found.noise, where=ONE)
    drawn = runs.state.model_state._replace(keep=np.zeros((1, 0), np.int32))
    other = runs._replace(state=runs.state._replace(model_state=drawn))
    with pytest.raises(
        ValueError, match=r"leaf 'model_state/keep' has shape \(2,\) in"
    ):
        training.concatenate([runs, other])
    with pytest.raises(ValueError, match=r"runs=\(\); it must be a sequence of one"):
        training.concatenate([])
    with pytest.raises(ValueError, match=r"runs\[0\]=3; it must be a training.Runs"):
        training.concatenate([3])


@pytest.mark.slow
def test_a_folder_continues_its_own_runs_and_refuses_those_of_other_weights(tmp_path):
    inner = toys.classification(lj.models.make("mlp-6", 4))
    tx = optax.sgd(0.1, momentum=0.9)

    where = Where(Execution(devices=1, chunk=1), tmp_path, 0.0)

    def again(law):
        own = supermask.task(inner, METHODS["drawn"], law=law)
        return trained(own, tx, 4, where)[1]

    first = again("kaiming_normal")
    toys.assert_equal(first.state, again("kaiming_normal").state)
    with pytest.raises(ValueError, match="start.model_state"):
        again("signed_kaiming_constant")


def test_what_a_task_excludes_is_frozen_whole_and_follows_the_law():
    inner = toys.classification(exclude=("head/kernel",))
    own = supermask.task(
        inner,
        supermask.edge_popup(0.25),
        law="signed_kaiming_constant",
        scaled=True,
    )

    @quick.jit
    def all_of_it(data):
        scores, frozen, _ = own.init(KEY)
        batch = first_batch(inner, data)
        gradient = jax.grad(lambda s: own.loss(s, frozen, (), batch, KEY)[0])(scores)
        return scores, frozen, gradient

    scores, frozen, gradient = all_of_it(inner.data)
    assert frozen.keep.tolist() == [24]
    for layer, variance in (("hidden", 2 / 8 / 0.25), ("head", 2 / 12)):
        size = np.abs(frozen.weights[layer]["kernel"])
        np.testing.assert_allclose(size, math.sqrt(variance), rtol=1e-6)
    assert np.any(gradient["hidden"]["kernel"])
    assert not np.any(gradient["head"]["kernel"])
    assert own.exclude == inner.exclude and own.head == inner.head
    assert masks.total(scores, masks.of_task(own)) == 96 + 48


def test_tasks_of_other_kinds_and_trees():
    language = toys.language_model()
    inputs = {"hidden$|output$": 0}
    method = supermask.edge_popup(0.5, inputs=inputs)
    own = supermask.task(language, method, law="kaiming_normal")
    walkers = supermask.task(toys.policy_gradient(), METHODS["rescaled"])

    @quick.jit
    def both(data):
        frozen = own.init(KEY)[1]
        scores, of_walkers, stream = walkers.init(KEY)
        batch = first_batch(walkers, data)
        out = walkers.loss(scores, of_walkers, stream, batch, KEY)[1]
        return frozen, of_walkers, stream, out

    frozen, of_walkers, stream, (after, moved, _) = both(walkers.data)
    std = np.std(frozen.weights.layers["hidden"])
    assert std == pytest.approx(math.sqrt(2 / 16), rel=0.15)
    assert frozen.keep.tolist() == [192, 84]
    toys.assert_equal(of_walkers, after)
    assert np.any(stream["cell"] != moved["cell"])


def test_the_examples_of_the_docstrings_run_as_printed():
    found = doctest.testmod(supermask)
    assert found.attempted > 10 and not found.failed


# --- what is refused ------------------------------------------------------------------


ODD = {"x": {"stuff": jnp.ones((4, 3))}}
CHOSEN = {"x": {"stuff": True}}

REFUSED = {
    "axis that is none": (
        lambda: supermask.edge_popup(0.5, prunable=CHOSEN, inputs={"x": 2}).init(
            KEY, ODD
        ),
        r"inputs=\(2,\); it must be axes of 'x/stuff', whose shape is \(4, 3\)",
    ),
    "layer that keeps none": (
        lambda: supermask.edge_popup(0.004).init(KEY, weights()),
        "density=0.004; it must be above 0.005, for layer 'b/kernel' of 100 weights",
    ),
    "unknown fan": (
        lambda: supermask.edge_popup(0.5, prunable=CHOSEN).init(KEY, ODD),
        "neither the name 'x/stuff' nor .*inputs={'x/stuff': ...}",
    ),
    "scores without a leaf": (
        lambda: METHODS["popup"].params({"a": some_scores()["a"]}, weights()),
        "only weights has a leaf 'b/bias'",
    ),
    "scores of another shape": (
        lambda: METHODS["drawn"].params(
            some_scores() | {"a": {"kernel": jnp.ones((3, 20))}}, weights()
        ),
        r"leaf 'a/kernel' has shape \(30, 20\) in weights and \(3, 20\) in scores",
    ),
    "scores of integers": (
        lambda: METHODS["popup"].params(
            some_scores() | {"a": {"kernel": jnp.ones((30, 20), int)}}, weights()
        ),
        "scores: dtype of leaf 'a/kernel'=int.*; it must be floating-point",
    ),
    "weights of integers": (
        lambda: supermask.bernoulli(prunable=CHOSEN).init(
            KEY, {"x": {"stuff": np.ones((4, 3), np.int32)}}
        ),
        "weights: dtype of leaf 'x/stuff'=int32; it must be floating-point",
    ),
    "no leaf": (
        lambda: supermask.bernoulli(prunable={"x": {"stuff": False}}).init(KEY, ODD),
        r"prunable: none of the leaves \['x/stuff'\] has a mask",
    ),
    "keep": (
        lambda: METHODS["popup"].mask(some_scores(), keep=(1,)),
        r"keep=\(1,\); it must be numbers of weights for 2 leaves",
    ),
    "apply": (
        lambda: METHODS["popup"].wrap(3),
        "apply=3; it must be a function of params",
    ),
    "scaled draws": (
        lambda: supermask.task(plain(), METHODS["drawn"], scaled=True),
        "scaled=True; it must be False with bernoulli",
    ),
    "law without a fan": (
        lambda: supermask.task(
            toys.language_model(), supermask.bernoulli(), law="xavier_normal"
        ),
        "neither the name 'layers/hidden' nor",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_law_that_needs_no_fan_is_fine_where_none_is_known():
    own = supermask.task(
        toys.language_model(), supermask.bernoulli(), law="signed_constant"
    )
    assert len(set(np.abs(own.init(KEY)[1].weights.layers["output"]).ravel())) == 1
