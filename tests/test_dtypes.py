"""Every score and every rule, over the dtypes that weights may have."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lottery_jax import dynamic, masks, prune, scores, transforms, trees
from lottery_jax.connectivity import distances, points
from lottery_jax.granularity import Block, Channel, NofM
from lottery_jax.scores import Inputs

FLOATS = ["float16", "bfloat16", "float32", "float64"]
OTHERS = ["int8", "int32", "uint8", "bool"]


def params_of(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(6, 4)), dtype),
        "head": {"kernel": jnp.asarray(rng.normal(size=(4, 4)), dtype)},
    }


def outputs(params, model_state, batch):
    return jnp.tanh(batch @ params["kernel"]) @ params["head"]["kernel"]


def loss(params, model_state, batch, key):
    out = outputs(params, model_state, batch)
    return jnp.mean(out.astype(jnp.float32) ** 2)


def inputs_of(dtype):
    params = params_of(dtype)
    batches = np.random.default_rng(2).normal(size=(3, 5, 6))
    return Inputs(
        trained=params,
        mask=masks.ones_like(params),
        initial=params_of(dtype, 1),
        loss=loss,
        batches=jnp.asarray(batches, dtype),
        outputs=outputs,
    )


RULES = {
    "global_topk": lambda s, m: prune.global_topk(s, m, fraction=0.3),
    "open_lth": lambda s, m: prune.global_topk(s, m, fraction=0.3, rule="open_lth"),
    "layerwise_topk": lambda s, m: prune.layerwise_topk(s, m, fraction=0.3),
    "to_density": lambda s, m: prune.to_density(s, m, 0.7),
    "n_of_m": lambda s, m: prune.n_of_m(s, m, 1, 2),
    "blocks": lambda s, m: prune.to_density(s, m, 0.5, granularity=Block((2, 2))),
    "largest": lambda s, m: prune.to_density(
        s, m, 0.5, granularity=Block((2, 2), pool="max")
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", sorted(scores.SCORES))
def test_scores_are_float32_at_least_and_every_rule_takes_them(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        inputs = inputs_of(dtype)
        found = scores.by_name(name)(jax.random.key(0), inputs)
        for leaf in jax.tree.leaves(found):
            wide = "float64" if dtype == "float64" and name != "random" else "float32"
            assert leaf.dtype == wide and np.isfinite(np.asarray(leaf)).all()
        ranked = np.concatenate([x.ravel() for x in jax.tree.leaves(found)])
        beyond = int((ranked > np.sort(ranked)[12]).sum())  # ties go together
        percentile = name in ("large_init_large_final", "small_init_small_final")
        assert beyond == 27 or percentile  # which weights of two layers may share
        for rule, cut in RULES.items():
            kept = cut(found, inputs.mask)
            number = {"open_lth": beyond, "n_of_m": 20}.get(rule, 28)
            number = 20 if rule in ("blocks", "largest") else number
            assert int(masks.count(kept)) == number, rule
            alive = np.concatenate([x.ravel() for x in jax.tree.leaves(kept)])
            if rule in ("global_topk", "to_density", "open_lth"):
                lowest, highest = ranked[alive].min(), ranked[~alive].max()
                assert lowest > highest or (percentile and lowest == highest)


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("name", sorted(set(scores.SCORES) - {"random"}))
def test_what_is_no_weight_is_refused_by_name(name, dtype):
    inputs = inputs_of("float32")
    kernel = jnp.asarray([[-128, 1, 0, 3]] * 4).astype(dtype)
    bad = {"kernel": inputs.trained["kernel"], "head": {"kernel": kernel}}
    inputs = inputs._replace(trained=bad, initial=bad)
    with pytest.raises(
        ValueError, match=f"leaf 'head/kernel' has dtype {dtype}; it must"
    ):
        scores.by_name(name)(jax.random.key(0), inputs)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
def test_integers_given_as_scores_are_ranked_as_they_are(dtype):
    high = {"int8": 127, "uint8": 255, "int32": 2**24 + 3, "bool": 1}[dtype]
    low = {"int8": -128, "uint8": 0, "int32": 2**24, "bool": 0}[dtype]
    rank = {"kernel": jnp.asarray([[high, low], [high, high - 1 + (dtype == "bool")]])}
    rank = jax.tree.map(lambda x: x.astype(dtype), rank)
    kept = prune.global_topk(rank, masks.ones_like(rank), keep=3)["kernel"]
    assert kept.tolist() == [[True, False], [True, True]]
    if dtype == "int32":  # of which float32 makes one number
        kept = prune.global_topk(rank, masks.ones_like(rank), keep=2)["kernel"]
        assert kept.tolist() == [[True, False], [True, False]]


def test_products_of_half_precision_do_not_underflow():
    weights = {"kernel": jnp.full((4, 4), 0.02, jnp.float16)}
    slopes = jnp.linspace(2e-7, 2e-6, 16, dtype=jnp.float32).reshape(4, 4)
    slopes = {"kernel": slopes.astype(jnp.float16)}
    assert (
        weights["kernel"] * slopes["kernel"] == 0
    ).mean() > 0.5  # in float16 they do
    found = scores.taylor(weights, slopes)["kernel"]
    wide = [np.asarray(x["kernel"], np.float64) for x in (weights, slopes)]
    np.testing.assert_allclose(found, wide[0] * wide[1], rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_mean_gradient_of_equal_batches_is_that_of_one(dtype):
    with jax.enable_x64(dtype == "float64"):
        inputs = inputs_of(dtype)
        one = inputs.batches[:1]
        many = inputs._replace(batches=jnp.repeat(one, 512, axis=0))
        key = jax.random.key(0)
        single = scores.mean_gradient(key, inputs._replace(batches=one), inputs.trained)
        mean = scores.mean_gradient(key, many, inputs.trained)
        half = dtype in ("float16", "bfloat16")
        for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(single)):
            np.testing.assert_allclose(a, b, rtol=0 if half else 2e-5)


# --- rules during training ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("granularity", [None, Block((2, 2)), Channel(), NofM(1, 2)])
def test_what_grows_is_as_much_as_drops_and_keeps_its_dtype(granularity, dtype):
    with jax.enable_x64(dtype == "float64"):
        params, slopes = params_of(dtype), params_of(dtype, 1)
        rule = dynamic.rigl(
            0.5, 4, 2, drop_fraction=0.6, scope="uniform", granularity=granularity
        )
        key, step = jax.random.key(0), jnp.int32(2)
        mask = rule.start(key, params, masks.ones_like(params))
        new = rule.update(key, step, params, slopes, mask)
        for a, b in zip(jax.tree.leaves(mask), jax.tree.leaves(new)):
            assert a.dtype == b.dtype == bool and a.sum() == b.sum() == a.size // 2
        tx = optax.adam(0.1)
        after, state = transforms.change_mask(tx, tx.init(params), params, mask, new)
        for tree in (after, state[0].mu, state[0].nu):
            assert {x.dtype.name for x in jax.tree.leaves(tree)} == {dtype}


# --- averages, interpolation, distances -----------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_of_trees_are_rounded_once(dtype):
    with jax.enable_x64(dtype == "float64"):
        trees_ = [params_of(dtype, seed) for seed in range(5)]
        weights = jnp.asarray([0.3, 0.1, 0.2, 0.3, 0.1])
        found = trees.combine(trees_, weights)
        exact = jax.tree.map(
            lambda *x: sum(
                float(w) * np.asarray(y, np.float64) for w, y in zip(weights, x)
            ),
            *trees_,
        )
        for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(exact)):
            assert got.dtype == dtype
            # Half a unit in the last place, where float32 rounds much finer.
            unit = float(jnp.finfo(dtype).eps) * 2 ** np.floor(np.log2(np.abs(want)))
            half = 0.51 if dtype in ("float16", "bfloat16") else 4
            slack = 0 if half == 0.51 else 1e-7
            assert (
                np.abs(np.asarray(got, np.float64) - want) <= half * unit + slack
            ).all()
        a, b = trees_[:2]
        for alpha, end in ((0, a), (1, b)):
            at = points.interpolate(a, b, alpha)
            jax.tree.map(np.testing.assert_array_equal, at, end)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_distances_of_half_precision_are_not_added_up_in_it(dtype):
    a = {"kernel": jnp.ones((300, 300), dtype)}
    b = {"kernel": jnp.full((300, 300), 1.5, dtype)}
    np.testing.assert_allclose(distances.l2(a, b), 150, rtol=1e-6)
    # Of two multiples; near 1 arccos is the root of what is rounded.
    assert float(distances.angle(a, b)) < 1e-3
