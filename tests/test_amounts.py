"""Amounts and seeds: one meaning each, and everything else refused by name."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import toys

import lottery_jax as lj
from lottery_jax import imp, keys, masks, prune, schedules, scores, training
from lottery_jax.connectivity import alignment, analysis
from lottery_jax.data import perturb

PARAMS = {
    "dense": {"kernel": jnp.arange(1.0, 13.0).reshape(3, 4)},
    "head": {"kernel": jnp.arange(13.0, 21.0).reshape(4, 2)},
}
TASK = toys.classification(lj.models.make("mlp-3", 4))
SCORES, MASK, TOTAL = scores.magnitude(PARAMS), masks.ones_like(PARAMS), 20


# --- numbers of weights ---------------------------------------------------------------


@pytest.mark.parametrize(
    "keep", [-3, 0.2, 3.0, True, np.True_, "3", math.nan, np.float32(3), [3], None]
)
def test_a_number_of_weights_is_an_integer(keep):
    if keep is None:
        with pytest.raises(ValueError, match="give exactly one of"):
            prune.global_topk(SCORES, MASK)
        return
    with pytest.raises(ValueError, match=r"keep=.*; it must be .*0 or more"):
        prune.global_topk(SCORES, MASK, keep=keep)
    with pytest.raises(ValueError, match=r"keep\[1\]=.*; it must be .*0 or more"):
        prune.layerwise_topk(SCORES, MASK, keep=[3, keep])


@pytest.mark.parametrize(
    "keep", [7, np.int64(7), np.uint8(7), jnp.int32(7), jnp.asarray(7, jnp.int8)]
)
def test_integers_of_any_kind_mean_the_same(keep):
    assert int(masks.count(prune.global_topk(SCORES, MASK, keep=keep))) == 7
    by_layer = prune.layerwise_topk(SCORES, MASK, keep=[keep, keep])
    assert int(masks.count(by_layer)) == 14


def test_more_than_there_are_changes_nothing_and_a_traced_one_is_clipped():
    assert int(masks.count(prune.global_topk(SCORES, MASK, keep=2**40))) == TOTAL
    cut = jax.jit(lambda n: masks.count(prune.global_topk(SCORES, MASK, keep=n)))
    assert [int(cut(n)) for n in (-3, 0, 7, 99)] == [0, 0, 7, TOTAL]
    with pytest.raises(ValueError, match=r"keep=float32\[\]; it must be an integer"):
        cut(0.2)


def test_no_fewer_are_kept_than_live_in_excluded_leaves():
    with pytest.raises(ValueError, match="keep=5; it must be 8 or more: .*excluded"):
        prune.global_topk(SCORES, MASK, keep=5, exclude="head")
    kept = prune.global_topk(SCORES, MASK, keep=8, exclude="head")
    assert int(masks.count(kept)) == 8


@pytest.mark.parametrize("n, m", [(True, 2), (1.0, 2), (1, 2.0), ("1", 2), (0, 2)])
def test_groups_are_counted_in_integers(n, m):
    with pytest.raises(ValueError, match=r"[nm]=.*; it must be"):
        prune.n_of_m(SCORES, MASK, n, m)


# --- shares ---------------------------------------------------------------------------

NO_SHARE = [0.0, 1.0, -0.1, 20, math.nan, math.inf, True, "0.2", None, [0.2], 1j]


@pytest.mark.parametrize("share", NO_SHARE, ids=repr)
@pytest.mark.parametrize(
    "field, call",
    [
        ("fraction", lambda x: prune.layerwise_topk(SCORES, MASK, fraction={".": x})),
        ("density", lambda x: prune.to_density(SCORES, MASK, x)),
        ("fraction", lambda x: schedules.geometric(100, 2, x)),
        ("of_original", lambda x: schedules.linear(100, 2, x)),
        ("density", lambda x: schedules.one_shot(100, [x])),
        ("fraction", lambda x: schedules.levels_to(0.5, x)),
        ("fraction", lambda x: plan_of(imp.Geometric(x))),
        ("of_original", lambda x: plan_of(imp.Linear(x))),
    ],
    ids=[
        *("layerwise_topk", "to_density", "geometric", "linear", "one_shot"),
        *("levels_to", "Geometric", "Linear"),
    ],
)
def test_a_share_is_a_number_between_0_and_1(field, call, share):
    with pytest.raises(ValueError, match=rf"{field}=.*; it must be .*\(0, 1\)"):
        call(share)


def plan_of(densities):
    chain = imp.Chain(densities=densities)
    return imp.plan.check(imp.Plan(steps=5, chains=(chain,)))


@pytest.mark.parametrize("density", [0.0, 1.5, math.nan, True, "1", None])
def test_a_density_is_a_number_up_to_1(density):
    for call in (
        lambda: masks.random(jax.random.key(0), PARAMS, density),
        lambda: masks.layer_counts([(3, 4)], density),
        lambda: schedules.levels_to(density),
    ):
        with pytest.raises(ValueError, match="density=.*; it must be"):
            call()
    assert masks.layer_counts([(3, 4)], 1) == [12]


@pytest.mark.parametrize(
    "share",
    [0.2, np.float64(0.2), np.float32(0.2), np.float16(0.2)]
    + [jnp.float32(0.2), Fraction(1, 5)],
)
def test_narrow_floats_mean_the_decimal_that_they_print(share):
    assert masks.exact(share) == Fraction(1, 5)
    total = 11_799_990  # where float32's 0.2 would be another number of weights
    assert schedules.geometric(total, 1, share)[1] == total - round(total / 5)
    assert int(prune._share_of(share, np.int32(total), "round")) == round(total / 5)


def test_a_traced_fraction_is_refused():
    with pytest.raises(ValueError, match="fraction=traced; it must be known .*keep="):
        jax.jit(lambda f: prune.global_topk(SCORES, MASK, fraction=f))(0.2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: schedules.geometric(100, 2.5), "levels=2.5; .*whole"),
        (lambda: schedules.geometric(100.0, 2), "total=100.0; .*whole"),
        (lambda: schedules.linear(100, True), "levels=True; .*whole"),
        (lambda: schedules.one_shot(100, 0.5), r"densities=0.5; .*\(0, 1\)"),
        (lambda: schedules.cubic(0, 0.5, 5, 0.1), "begin=0.5; .*whole"),
        (lambda: schedules.cubic(0, 0, 5, "0.1"), "final_density='0.1'"),
    ],
)
def test_schedules_count_in_integers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- open_lth's counts ----------------------------------------------------------------

COUNTS = np.unique(
    np.concatenate(
        [
            np.arange(1, 1001),
            2 ** np.arange(31),
            2**31 - 1 - np.arange(20),
            10 ** np.arange(1, 10),
            20 * np.random.default_rng(0).integers(1, 10**8, 300),  # 0.55 * 20 n
            np.random.default_rng(1).integers(1, 2**31 - 1, 300),
        ]
    )
)


@pytest.mark.slow
def test_counts_of_open_lth_are_those_of_float64_at_every_fraction():
    fractions = [k / 100 for k in range(1, 100)] + [k / 1000 for k in range(1, 1000, 9)]
    fractions += [1 - k / 100 for k in range(1, 100, 3)]

    @quick.jit
    def traced(counts):
        return jnp.stack([prune._share_of(f, counts, "ceil") for f in fractions])

    expected = [np.ceil(f * COUNTS).astype(np.int64) for f in fractions]
    np.testing.assert_array_equal(traced(jnp.asarray(COUNTS, jnp.int32)), expected)
    # So the test can fail: the exact product has another ceiling for many.
    exact = [math.ceil(Fraction(55, 100) * int(n)) for n in COUNTS]
    assert np.sum(np.array(exact) != expected[fractions.index(0.55)]) > 100
    for n in COUNTS[:100]:
        assert int(prune._share_of(0.55, n, "ceil")) == math.ceil(0.55 * int(n))


def test_open_lth_keeps_43_of_100_at_a_fraction_of_55_percent():
    weights = {"kernel": jnp.arange(100.0).reshape(10, 10)}
    mask = masks.ones_like(weights)

    def cut(mask):
        return prune.global_topk(weights, mask, fraction=0.55, rule="open_lth")

    assert int(masks.count(cut(mask))) == int(masks.count(jax.jit(cut)(mask))) == 43


# --- seeds ----------------------------------------------------------------------------

NO_SEED = [-1, 2**32, 2**40, 0.0, 1.5, True, np.False_, "0", None, math.nan]


@pytest.mark.parametrize("seed", NO_SEED, ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        keys.of_seed,
        lambda seed: keys.replica_keys(seed, 0),
        lambda seed: keys.of_replicas(seed, [0]),
        lambda seed: imp.plan.check(imp.Plan(steps=5, seed=seed)),
        lambda seed: analysis.check(analysis.Plan(steps=5, seed=seed)),
        lambda seed: training.train_replicas(TASK, optax.sgd(0.1), 5, [0], seed=seed),
        lambda seed: perturb.randomize_labels(np.zeros(4, np.int32), 0.5, 2, seed),
        lambda seed: alignment.match({"w": ()}, {"w": 1.0}, {"w": 1.0}, seed=seed),
    ],
)
def test_a_seed_is_an_integer_of_32_bits(call, seed):
    with pytest.raises(ValueError, match=r"seed=.*; it must be .*0 and 4294967295"):
        call(seed)


@pytest.mark.parametrize("seed", [0, 5, 2**31 - 1, 2**31, 2**32 - 1])
def test_seeds_of_any_integer_type_are_the_seeds_of_jax(seed):
    expected = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    kinds = [seed, np.int64(seed), np.uint32(seed)]
    kinds += [jnp.uint32(seed)] + ([np.int32(seed)] if seed < 2**31 else [])
    for kind in kinds:
        np.testing.assert_array_equal(jax.random.key_data(keys.of_seed(kind)), expected)
    own = jax.random.key_data(keys.of_replicas(seed, [3]).init[0])
    np.testing.assert_array_equal(
        own, jax.random.key_data(keys.replica_keys(seed, 3).init)
    )


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_that_depend_on_their_neighbours_are_refused_by_name(impl):
    foreign = jax.random.split(jax.random.key(0, impl=impl), 2)
    own = lj.keys.of_replicas(0, [0, 1])
    for init, noise, field in (
        (foreign, own.noise, "init"),
        (own.init, foreign, "noise"),
    ):
        with pytest.raises(ValueError, match=rf"{field}=key<.*; .* threefry2x32"):
            training.fresh(TASK, optax.sgd(0.1), init, noise)
