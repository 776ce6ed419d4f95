"""`scores`: one battery over every score by name, and the formulas in NumPy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lottery_jax import masks, prune, scores

pytestmark = pytest.mark.usefixtures("compiled_quickly")

NUMBER, BATCH = 3, 8  # batches for gradients
SIZES = {"dense": (5, 7), "head": (7, 2)}


def params_of(seed):
    rng = np.random.default_rng(seed)
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=shape[-1:]), jnp.float32),
        }
        for name, shape in SIZES.items()
    }


def mask_of(seed):
    rng = np.random.default_rng(seed)
    return {
        name: {
            "kernel": jnp.asarray(rng.random(shape) < 0.7),
            "bias": jnp.ones(shape[-1:], bool),
        }
        for name, shape in SIZES.items()
    }


def outputs(params, model_state, batch):
    hidden = jnp.tanh(
        batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"][None]
    )
    return hidden @ params["head"]["kernel"] + params["head"]["bias"][None]


def loss(params, model_state, batch, key):
    out = outputs(params, model_state, batch)
    return model_state * jnp.mean((out - batch["y"]) ** 2)


def inputs_of(seed):
    rng = np.random.default_rng(100 + seed)
    batches = {
        "x": jnp.asarray(rng.normal(size=(NUMBER, BATCH, 5)), jnp.float32),
        "y": jnp.asarray(rng.normal(size=(NUMBER, BATCH, 2)), jnp.float32),
    }
    # The loss is a function, so it is left out here and put back inside jit and vmap.
    return scores.Inputs(
        trained=params_of(seed),
        mask=mask_of(seed),
        initial=params_of(seed + 1),
        rewind=params_of(seed + 2),
        model_state=jnp.float32(1.5),
        batches=batches,
    )


def call(name):
    score = scores.by_name(name)
    return lambda key, inputs: score(key, inputs._replace(loss=loss, outputs=outputs))


cut = jax.jit(lambda s, m: prune.global_topk(s, m, fraction=0.4))


def stack(*trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def assert_close(a, b, rtol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, 1e-6), a, b)


# --- every score ----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(scores.SCORES))
def test_every_score(name, getkey):
    """Structure, dtype, finite; compiled, vmapped = looped; prunes; ignores the dead."""
    score, keys = call(name), [getkey(), getkey()]
    several = [inputs_of(0), inputs_of(10)]
    found = score(keys[0], several[0])
    trained = several[0].trained
    assert jax.tree.structure(found) == jax.tree.structure(trained)
    for s, p in zip(jax.tree.leaves(found), jax.tree.leaves(trained)):
        assert s.shape == p.shape and s.dtype == p.dtype
        assert np.isfinite(s).all() and np.std(s) > 0
    compiled = jax.jit(score)
    assert_close(compiled(keys[0], several[0]), found)
    looped = [compiled(k, i) for k, i in zip(keys, several)]
    assert_close(
        jax.jit(jax.vmap(score))(stack(*keys), stack(*several)), stack(*looped)
    )

    mask = several[0].mask
    after = cut(found, mask)
    assert masks.is_subset(after, mask)
    alive = int(masks.count(mask))
    assert int(masks.count(after)) == alive - round(0.4 * alive)

    # Which weights survive does not depend on what lies off the mask.
    dirty = jax.tree.map(lambda m, p: jnp.where(m, p, 1e3), mask, several[0].trained)
    other = compiled(keys[0], several[0]._replace(trained=dirty))
    again = cut(other, mask)
    jax.tree.map(np.testing.assert_array_equal, again, after)


def test_scores_are_named_and_documented():
    assert {"magnitude", "movement", "gradient", "taylor", "snip", "random"} <= set(
        scores.SCORES
    )
    for name in scores.SCORES:
        assert list(inspect.signature(scores.by_name(name)).parameters) == [
            "key",
            "inputs",
        ]
    with pytest.raises(ValueError, match="score='magnitud'; .*'magnitude'"):
        scores.by_name("magnitud")


# --- the formulas ---------------------------------------------------------------------


def test_functions_of_arrays_against_numpy(getkey):
    a, b = params_of(0), params_of(1)
    pairs = [
        (scores.magnitude(a), lambda x, y: np.abs(x)),
        (scores.movement(a, b), lambda x, y: np.abs(x - y)),
        (scores.magnitude_increase(a, b), lambda x, y: np.abs(x) - np.abs(y)),
        (scores.gradient(a), lambda x, y: np.abs(x)),
        (scores.taylor(a, b), lambda x, y: np.abs(x * y)),
    ]
    for found, formula in pairs:
        as_numpy = [jax.tree.map(np.asarray, tree) for tree in (a, b)]
        assert_close(found, jax.tree.map(formula, *as_numpy))
    draws = scores.random(getkey(), a)
    for leaf in jax.tree.leaves(draws):
        assert (leaf >= 0).all() and (leaf < 1).all()
    same_shape = {"a": jnp.zeros((9, 9)), "b": jnp.zeros((9, 9))}
    draws = scores.random(getkey(), same_shape)
    assert (draws["a"] != draws["b"]).all()


def _order(of, alive=None):
    """The weights of a layer from the first to go to the last, by NumPy."""
    alive = np.ones(of.shape, bool) if alive is None else np.asarray(alive)
    ranked = np.argsort(np.where(alive, of, -np.inf), axis=None, kind="stable")
    return [place for place in ranked if alive.reshape(-1)[place]]


def both_beyond(final, initial, keep):
    """The highest common percentile beyond which both lie for `keep` weights or more."""
    ranks = []
    for of in (final, initial):
        rank = np.empty(of.size, int)
        rank[_order(of)] = np.arange(of.size)
        ranks.append(rank)
    for percentile in range(of.size, -1, -1):
        kept = (ranks[0] >= percentile) & (ranks[1] >= percentile)
        if kept.sum() >= keep:
            return kept.reshape(of.shape)


@pytest.mark.parametrize("side", [1, -1])
def test_both_large_means_beyond_a_common_percentile_at_every_density(side):
    function = {1: scores.large_init_large_final, -1: scores.small_init_small_final}
    trained, initial = params_of(0), params_of(1)
    found = function[side](trained, initial)
    for name in SIZES:
        f, i = (np.asarray(p[name]["kernel"]) for p in (trained, initial))
        score = np.asarray(found[name]["kernel"])
        assert len(np.unique(score)) == score.size  # nothing is left to accident
        for keep in range(1, f.size + 1):
            both = both_beyond(side * np.abs(f), side * np.abs(i), keep)
            best = np.zeros(f.size, bool)
            best[_order(score)[-keep:]] = True
            assert best.sum() == keep and not (best.reshape(f.shape) & ~both).any()
            # Of two weights that share the percentile one is over, and never more.
            assert both.sum() - keep in (0, 1)


def test_percentiles_are_of_the_survivors_and_dead_weights_are_last():
    trained, initial, mask = params_of(0), params_of(1), mask_of(2)
    found = scores.large_init_large_final(trained, initial, mask)
    for name in SIZES:
        f, i, m, s = (
            np.asarray(t[name]["kernel"]) for t in (trained, initial, mask, found)
        )
        alone = scores.large_init_large_final({"w": f[m]}, {"w": i[m]})["w"]
        np.testing.assert_array_equal(s[m], alone)
        assert (s[~m] == 0).all() and (s[m] > 0).all() and s.max() <= 1
    # A nan has no rank, and is the first to go.
    f = {"w": jnp.array([1.0, np.nan, 3.0])}
    found = scores.large_init_large_final(f, {"w": jnp.array([2.0, 9.0, 3.0])})
    kept = prune.global_topk(found, masks.ones_like(f), keep=2, prunable={"w": True})
    assert kept["w"].tolist() == [True, False, True]
    with pytest.raises(ValueError, match="mask: leaf 'w' has shape"):
        scores.large_init_large_final(f, f, {"w": jnp.ones(2, bool)})
    with pytest.raises(ValueError, match="w.*initial"):
        scores.small_init_small_final(f, {"w": jnp.ones(2)})


def test_small_and_large_are_opposites_in_numpy():
    f, i = params_of(0), params_of(1)
    size = lambda tree: jax.tree.map(lambda x: np.abs(np.asarray(x)), tree)  # noqa: E731
    assert_close(scores.small_final(f), jax.tree.map(np.negative, size(f)))
    assert_close(scores.large_init(i), size(i))
    assert_close(scores.small_init(i), jax.tree.map(np.negative, size(i)))


def signed(name):
    """One sign class by its criterion, the other from the nearest to 0 on, by NumPy."""

    def order(f, i):
        kept_sign = (f * i > 0).reshape(-1)
        wanted = kept_sign if name.endswith("same_sign") else ~kept_sign
        size = np.abs(f) - (np.abs(i) if name.startswith("magnitude") else 0)
        first = [place for place in _order(-np.abs(f)) if not wanted[place]]
        return first + [place for place in _order(size) if wanted[place]]

    return order


@pytest.mark.parametrize("name", [n for n in scores.SCORES if n.endswith("_sign")])
def test_one_sign_class_is_ranked_and_the_other_comes_last(name, getkey):
    inputs = inputs_of(4)
    found = scores.by_name(name)(getkey(), inputs)
    for layer in SIZES:
        f, i = (
            np.asarray(t[layer]["kernel"]) for t in (inputs.trained, inputs.initial)
        )
        s = np.asarray(found[layer]["kernel"])
        assert _order(s) == signed(name)(f, i)
        assert len(np.unique(s)) == s.size
        kept = (f * i > 0) == name.endswith("same_sign")
        assert 0 < kept.sum() < kept.size and s[kept].min() > s[~kept].max()


@pytest.mark.parametrize(
    "name, formula",
    [
        ("magnitude", lambda i: scores.magnitude(i.trained)),
        ("movement", lambda i: scores.movement(i.trained, i.initial)),
        (
            "magnitude_increase",
            lambda i: scores.magnitude_increase(i.trained, i.initial),
        ),
        ("small_final", lambda i: scores.small_final(i.trained)),
        ("large_init", lambda i: scores.large_init(i.initial)),
        ("small_init", lambda i: scores.small_init(i.initial)),
        (
            "large_init_large_final",
            lambda i: scores.large_init_large_final(i.trained, i.initial, i.mask),
        ),
        (
            "small_init_small_final",
            lambda i: scores.small_init_small_final(i.trained, i.initial, i.mask),
        ),
    ],
)
def test_names_stand_for_the_functions(name, formula, getkey):
    inputs = inputs_of(3)
    assert_close(scores.by_name(name)(getkey(), inputs), formula(inputs))


def one_big_batch(inputs, params):
    """The gradient at the masked weights of the mean over all examples at once."""
    joined = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), inputs.batches)
    masked = jax.tree.map(lambda m, p: jnp.where(m, p, 0), inputs.mask, params)
    return jax.grad(loss)(masked, inputs.model_state, joined, None), masked


def test_gradients_are_means_over_the_batches(getkey):
    inputs = inputs_of(0)._replace(loss=loss)
    for params in (inputs.trained, inputs.initial):
        expected, masked = one_big_batch(inputs, params)
        assert_close(scores.mean_gradient(getkey(), inputs, params), expected)
    gradients, trained = one_big_batch(inputs, inputs.trained)
    found = scores.by_name("gradient")(getkey(), inputs)
    assert_close(found, jax.tree.map(jnp.abs, gradients))
    # |w g| and SNIP's score where the weight is alive; elsewhere it does not matter.
    alive = lambda tree: masks.apply(inputs.mask, tree)  # noqa: E731
    found = scores.by_name("taylor")(getkey(), inputs)
    assert_close(alive(found), scores.taylor(trained, gradients))
    gradients, initial = one_big_batch(inputs, inputs.initial)
    found = scores.by_name("snip")(getkey(), inputs)
    assert_close(alive(found), scores.taylor(initial, gradients))


def test_gradients_against_differences():
    """The one reference that does not use automatic differentiation."""
    inputs = inputs_of(0)._replace(loss=loss)
    mean = scores.mean_gradient(jax.random.key(0), inputs, inputs.trained)
    params = masks.apply(inputs.mask, inputs.trained)

    def at(weight):
        head = params["head"]
        moved = head | {"kernel": head["kernel"].at[2, 1].set(weight)}
        moved = params | {"head": moved}
        values = [
            loss(moved, 1.5, jax.tree.map(lambda x, i=i: x[i], inputs.batches), None)
            for i in range(NUMBER)
        ]
        return np.mean(values)

    weight, h = (
        float(params["head"]["kernel"][2, 1]),
        0.05,
    )  # the loss is quadratic here
    slope = (at(weight + h) - at(weight - h)) / (2 * h)
    np.testing.assert_allclose(mean["head"]["kernel"][2, 1], slope, rtol=1e-3)


def test_each_batch_has_a_key_of_its_own(getkey):
    """A loss that adds noise gets other noise for each batch."""

    def noisy(params, model_state, batch, key):
        return jnp.sum(params["kernel"] * jax.random.normal(key, (4, 3)))

    params = {"kernel": jnp.ones((4, 3))}
    inputs = scores.Inputs(
        params, masks.ones_like(params), loss=noisy, batches=jnp.zeros((500, 1))
    )
    mean = scores.mean_gradient(getkey(), inputs, params)["kernel"]
    assert np.abs(mean).max() < 5 / np.sqrt(500)  # one key would leave it near 1


@pytest.mark.parametrize("name", ["gradient", "taylor", "snip"])
def test_missing_inputs_are_named(name, getkey):
    with pytest.raises(ValueError, match="inputs.loss and inputs.batches"):
        scores.by_name(name)(getkey(), inputs_of(0))


@pytest.mark.parametrize(
    "name", ["movement", "magnitude_increase", "snip", "large_init", "small_init"]
)
def test_a_missing_initial_network_is_named(name, getkey):
    inputs = inputs_of(0)._replace(initial=None, loss=loss)
    with pytest.raises(ValueError, match="inputs.initial"):
        scores.by_name(name)(getkey(), inputs)
