"""The strong lottery ticket: sums of random numbers, and the networks built of them."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lottery_jax import keys, masks, models, strong
from lottery_jax.strong import choices, distance, laws, targets

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def random(seed=0):
    return np.random.default_rng(seed)


def all_sums(numbers):
    """The sums of all subsets in the order of their binary numbers, by a plain loop."""
    out = []
    for code in range(2 ** len(numbers)):
        out.append(sum(c for k, c in enumerate(numbers) if code >> k & 1))
    return np.array(out, float)


def code_of(kept):
    return sum(2**k for k, one in enumerate(kept) if one)


# --- which numbers are kept -----------------------------------------------------------


@pytest.mark.parametrize("n, wanted", [(1, 3), (2, 1), (5, 1), (7, 40), (10, 6)])
def test_the_subset_is_the_first_best_of_all_where_many_are_equally_near(n, wanted):
    """Small whole numbers: sums are exact, and often equal or equally far."""
    draw = random(n)
    c = draw.integers(-4, 5, (6, n)) / 4.0
    z = draw.integers(-9, 10, (6, wanted)) / 8.0
    kept = strong.subset_sums(c, z)
    assert kept.shape == (6, wanted, n) and kept.dtype == bool
    ties = 0
    for i, t in np.ndindex(*z.shape):
        distances = np.abs(all_sums(c[i]) - z[i, t])
        ties += np.count_nonzero(distances == distances.min()) > 1
        assert code_of(kept[i, t]) == np.argmin(distances)
    assert ties or n < 5


@pytest.mark.parametrize("low", range(8))
def test_the_best_subset_does_not_depend_on_how_it_is_split(low):
    draw = random(1)
    c = draw.integers(-50, 51, (4, 7)).astype(np.int32)
    z = draw.integers(-150, 151, (4, 3)).astype(np.int32)
    first, second = map(np.asarray, choices._nearest(c, z, low))
    for i, t in np.ndindex(*z.shape):
        best = np.argmin(np.abs(all_sums(c[i]) - z[i, t]))
        assert first[i, t] + (int(second[i, t]) << low) == best


def test_the_best_subset_of_real_numbers_is_as_near_as_brute_force():
    draw = random(2)
    c = draw.uniform(0, 1, (5, 12)) * draw.uniform(-1, 1, (5, 12))
    z = draw.uniform(-1, 1, (5, 4))
    kept = strong.subset_sums(c, z)
    error = np.abs((kept * c[:, None]).sum(-1) - z)
    least = np.stack([np.abs(all_sums(a)[:, None] - b).min(0) for a, b in zip(c, z)])
    size = np.abs(c).sum(1) + np.abs(z).max(1)
    rounded = 13 * size[:, None] * 2.0**-29  # each number to a multiple of 2^-30
    assert (error >= least - 1e-15).all() and (error <= least + rounded).all()


def test_of_more_candidates_the_rest_is_taken_greedily():
    """Written out: either sign by turns is compared, the others first come."""
    draw = random(3)
    c, z = draw.uniform(-1, 1, (8, 11)), draw.uniform(-1, 1, (8, 2))
    c[0, 3:], c[1] = 0.0, np.abs(c[1])
    kept = strong.subset_sums(c, z, limit=6)
    for i, t in np.ndindex(*z.shape):
        sides = [[k for k in range(11) if s * c[i, k] > 0] for s in (1, -1)]
        turns = itertools.zip_longest(*sides)
        # Of one turn, whichever is drawn first.
        order = [k for both in turns for k in sorted(x for x in both if x is not None)]
        left, expected = z[i, t], np.zeros(11, bool)
        for k in order[6:]:
            if abs(left - c[i, k]) < abs(left):
                left, expected[k] = left - c[i, k], True
        distances = np.abs(all_sums(c[i, order[:6]]) - left)
        error = abs(c[i, kept[i, t]].sum() - z[i, t])
        assert error == pytest.approx(distances.min(), abs=1e-7)
        np.testing.assert_array_equal(kept[i, t, order[6:]], expected[order[6:]])


def test_a_candidate_of_zero_is_never_kept():
    c = np.array([[0.0, 0.5, 0.0, -0.25]])
    z = np.array([[0.5, 0.25, 0.0, -0.25, 9.0]])
    for choose in (strong.subset_sums, strong.programme, strong.single):
        assert not choose(c, z)[..., [0, 2]].any()
    assert not strong.single(np.zeros((1, 2)), z).any()
    assert not strong.golden(c, z[:, :4], 0.01)[..., [0, 2]].any()


def test_the_integer_programme_agrees_with_the_sums():
    draw = random(4)
    c, z = draw.uniform(-1, 1, (3, 9)), draw.uniform(-1, 1, (3, 2))
    errors = [
        np.abs((choose(c, z) * c[:, None]).sum(-1) - z)
        for choose in (strong.subset_sums, strong.programme)
    ]
    assert (errors[1] >= errors[0] - 1e-7).all()
    np.testing.assert_allclose(errors[1], errors[0], atol=2e-6)  # HiGHS' own tolerance


def test_an_integer_programme_without_time_says_so():
    c = random(4).uniform(-1, 1, (1, 40))
    with pytest.warns(UserWarning, match="seconds=1e-06: of 1 of 1 targets"):
        kept = strong.programme(c, [[0.3]], seconds=1e-6)
    assert kept.shape == (1, 1, 40)


def test_one_pick_is_the_nearest_candidate():
    draw = random(5)
    c, z = draw.uniform(-1, 1, (6, 9)), draw.uniform(-1, 1, (6, 4))
    c[2] = 0.25  # all equal: the first
    kept = strong.single(c, z)
    for i, t in np.ndindex(*z.shape):
        assert np.flatnonzero(kept[i, t]).tolist() == [np.argmin(abs(c[i] - z[i, t]))]


def golden_rows(eps, blocks, seed=6):
    """One candidate of each sign somewhere in every interval, in any order."""
    g, steps = (math.sqrt(5) - 1) / 2, strong.golden_steps(eps)
    draw = random(seed)
    sizes = [draw.uniform(g ** (k + 1), g**k, (blocks, 2)) for k in range(1, steps + 1)]
    rows = np.concatenate([s * [1, -1] for s in sizes], 1)
    return draw.permuted(rows, axis=1)


@pytest.mark.parametrize("eps", [0.5, 0.1, 1e-3])
def test_a_candidate_in_each_golden_interval_brings_all_weights_within_eps(eps):
    c = golden_rows(eps, 40)
    z = np.broadcast_to(np.linspace(-1, 1, 41), (40, 41))
    kept = strong.golden(c, z, eps)
    error = np.abs((kept * c[:, None]).sum(-1) - z)
    assert error.max() <= eps
    assert error.max() > eps / 10  # not by chance
    assert kept.sum(-1).max() <= strong.golden_steps(eps)
    signs = np.sign(c)[:, None] * np.sign(z)[..., None]
    assert (signs[kept] == 1).all()


def test_an_empty_golden_interval_is_passed_over():
    kept = strong.golden([[0.5, 0.01]], [[0.52, 0.4]], 0.01)
    np.testing.assert_array_equal(kept[0], [[True, True], [False, True]])


def test_golden_steps_are_two_of_the_natural_logarithm():
    for eps in (0.3, 1e-2, 1e-6):
        exact = math.log(1 / eps) / math.log((1 + math.sqrt(5)) / 2)
        assert exact <= strong.golden_steps(eps) < exact + 1
    assert 2 < 1 / math.log((1 + math.sqrt(5)) / 2) < 2.1


# --- laws and numbers of neurons ------------------------------------------------------


def test_the_hyperbolic_law_is_uniform_in_the_logarithm_and_symmetric():
    law = strong.Hyperbolic(0.01, 3.0)
    w = np.asarray(law.draw(keys.of_seed(0), (20_000,)), float)
    low, high = math.log(0.01), math.log(3.0)
    uniform = scipy.stats.uniform(low, high - low)
    assert scipy.stats.kstest(np.log(np.abs(w)), uniform.cdf).pvalue > 0.01
    assert scipy.stats.binomtest(int((w > 0).sum()), len(w)).pvalue > 0.01
    # Signs do not hang together with sizes.
    halves = np.log(w[w > 0]), np.log(-w[w < 0])
    assert scipy.stats.ks_2samp(*halves).pvalue > 0.01
    other = scipy.stats.uniform(0.01, 2.99)
    assert scipy.stats.kstest(np.abs(w), other.cdf).pvalue < 1e-6  # the test can fail


def test_the_uniform_law_is_that_of_the_papers():
    w = np.asarray(strong.Uniform().draw(keys.of_seed(1), (20_000,)), float)
    assert scipy.stats.kstest(w, scipy.stats.uniform(-1, 2).cdf).pvalue > 0.01


def test_products_fall_into_golden_intervals_as_often_as_is_said():
    eps, g = 0.01, (math.sqrt(5) - 1) / 2
    steps = strong.golden_steps(eps)
    law = strong.hyperbolic(eps)
    a, b = (np.asarray(law.draw(keys.of_seed(i), (200_000,)), float) for i in (2, 3))
    for k in range(1, steps + 1):
        inside = (a * b > g ** (k + 1)) & (a * b <= g**k)
        # Half of the products are positive.
        assert 2 * inside.mean() > 0.97 / (2 * steps)


@pytest.mark.parametrize(
    "method, eps", [("subset_sums", 0.01), ("single", 0.3), ("golden", 0.1)]
)
def test_so_many_neurons_bring_weights_at_the_ends_of_the_range_within_eps(method, eps):
    target = strong.layers([np.array([[1.0, -1.0], [-0.99, 1.0]])])
    twin = strong.build(keys.of_seed(4), target, method, eps=eps)
    assert twin.largest <= eps
    assert twin.counts.neurons == strong.neurons(method, eps, 4)


def test_more_neurons_are_needed_for_less_error_more_weights_and_certainty():
    for method in strong.METHODS:
        base = strong.neurons(method, 0.01, 100)
        assert strong.neurons(method, 0.005, 100) > base
        assert strong.neurons(method, 0.01, 10_000) > base
        assert strong.neurons(method, 0.01, 100, delta=0.001) > base
    # Orders of growth: a constant for each halving, or a factor of four.
    sums = [strong.neurons("subset_sums", 2.0**-k, 100) for k in (4, 8, 12)]
    assert abs((sums[2] - sums[1]) - (sums[1] - sums[0])) <= 1
    picks = [strong.neurons("single", 2.0**-k, 100) for k in (8, 9)]
    assert picks[1] / picks[0] == pytest.approx(4, rel=0.02)


# --- networks -------------------------------------------------------------------------

X = random(9).standard_normal((50, 5)).astype(np.float32)
WAYS = {
    "subset_sums": dict(neurons=24),
    "programme": dict(neurons=10),
    "single": dict(neurons=40),
    "golden": dict(neurons=200, eps=0.5),
}


def a_target(widths=(5, 4, 3, 2), size=1.0, seed=7):
    draw = random(seed)
    pairs = zip(widths, widths[1:])
    return strong.layers([draw.uniform(-size, size, shape) for shape in pairs])


@pytest.fixture(scope="module")
def twins():
    """One of each construction."""
    made = {}

    def twin(method):
        if method not in made:
            small = a_target((5, 3)) if method == "programme" else a_target()
            key = keys.of_seed(11)
            made[method] = strong.build(key, small, method, **WAYS[method])
        return made[method]

    return twin


def in_float64(twin, x):
    """The masked network and its target written out."""
    out = []
    for matrices in (twin.target, targets.from_params(twin.params)):
        h = np.asarray(x, np.float64)
        for i, w in enumerate(matrices):
            h = h @ np.asarray(w, np.float64)
            h = np.maximum(h, 0) if i + 1 < len(matrices) else h
        out.append(h)
    return out[0], out[1] * twin.scale


@pytest.mark.parametrize("method", WAYS)
def test_the_network_is_within_its_bound_at_random_and_adversarial_inputs(
    method, twins
):
    twin = twins(method)
    bound = strong.bound(twin)
    found = strong.attack(keys.of_seed(0), twin, starts=8, steps=30, x=X)
    assert np.linalg.norm(found.x) == pytest.approx(1)
    inside = X / np.linalg.norm(X, axis=1, keepdims=True)
    x = np.concatenate([found.x[None], inside, 0.5 * inside])
    target, own = in_float64(twin, x)
    apart = np.linalg.norm(own - target, axis=1)
    assert apart[0] == pytest.approx(found.distance, rel=1e-9)
    assert apart.max() == apart[0] <= bound  # no input that was tried is worse
    assert found.distance > bound / 50  # the bound says something
    np.testing.assert_allclose(strong.outputs(twin, x), own, atol=1e-12)
    np.testing.assert_allclose(strong.differences(twin, x), apart, atol=1e-12)
    # As it is used, in float32.
    np.testing.assert_allclose(twin(x), own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", WAYS)
def test_errors_are_those_of_the_arrays(method, twins):
    """Unit inputs of either sign are sent through each pair of masked layers."""
    twin = twins(method)
    kernels = [np.asarray(k, np.float64) for k in targets.from_params(twin.params)]
    assert len(kernels) == 2 * len(twin.target)
    for i, (w, errors) in enumerate(zip(twin.target, twin.errors)):
        assert len(errors) == (2 if i == 0 else 1)
        for sign, own in zip((1, -1), errors):
            unit = sign * np.eye(len(w))
            says = np.maximum(unit @ kernels[2 * i], 0) @ kernels[2 * i + 1]
            np.testing.assert_allclose(own, says - sign * w, atol=1e-13)
    everything = np.concatenate([e.ravel() for e in twin.errors])
    assert twin.largest == np.abs(everything).max()
    close = [(np.abs(e) <= 0.05).all(0).sum() for e in twin.errors]
    assert twin.within(0.05) == sum(close) / twin.counts.target


@pytest.mark.parametrize("method", WAYS)
def test_counts_are_those_of_the_arrays(method, twins):
    twin = twins(method)
    weights, mask = jax.tree.leaves(twin.weights), jax.tree.leaves(twin.mask)
    counts, m = twin.counts, WAYS[method]["neurons"]
    assert counts.target == sum(w.size for w in twin.target)
    assert counts.neurons == m
    assert counts.random == sum(w.size for w in weights)
    widths = [len(twin.target[0]), *(w.shape[1] for w in twin.target)]
    assert counts.random == sum(m * a * (a + b) for a, b in zip(widths, widths[1:]))
    assert counts.kept == sum(int(k.sum()) for k in mask) == int(masks.count(twin.mask))
    assert counts.per_weight == counts.random / counts.target
    assert counts.density == pytest.approx(float(masks.density(twin.mask)))


def test_the_accounting_of_the_fashion_network():
    """Both: 42 candidates of a weight, and 372 weights of the network for each."""
    m, widths = 42, (784, 100, 10)
    pairs = list(zip(widths, widths[1:]))
    total = sum(m * a * (a + b) for a, b in pairs)
    counts = strong.Counts(sum(a * b for a, b in pairs), m, total, 1)
    assert counts.target == 79_400 and counts.random == 29_570_352
    assert round(counts.per_weight) == 372


def test_the_mask_only_takes_away(twins):
    twin = twins("subset_sums")
    for own, drawn, mask in zip(
        *map(jax.tree.leaves, (twin.params, twin.weights, twin.mask))
    ):
        assert drawn.dtype == jnp.float32 and mask.dtype == bool
        np.testing.assert_array_equal(own, np.where(mask, drawn, 0))
        # Nothing is drawn with the target in view.
        assert np.abs(drawn).max() <= 1
    other = strong.build(keys.of_seed(11), a_target(seed=8), **WAYS["subset_sums"])
    assert not np.array_equal(other.target[0], twin.target[0])
    jax.tree.map(np.testing.assert_array_equal, other.weights, twin.weights)


def test_blocks_belong_to_one_input_and_to_one_sign(twins):
    twin = twins("subset_sums")
    mask, drawn = map(targets.from_params, (twin.mask, twin.weights))
    for i, w in enumerate(twin.target):
        first = np.asarray(mask[2 * i]).reshape(len(w), len(w), -1)
        cross = first[~np.eye(len(w), dtype=bool)]
        assert not cross.any()
        # A neuron is there if and only if one of its outputs is.
        read = np.asarray(mask[2 * i + 1]).any(1)
        np.testing.assert_array_equal(np.asarray(mask[2 * i]).any(0), read)
        if i:  # inputs that are never negative
            assert (np.asarray(drawn[2 * i])[np.asarray(mask[2 * i])] > 0).all()


def test_a_layer_is_rescaled_exactly_and_its_outputs_back():
    small = a_target((4, 3, 2))
    large = strong.layers([8 * small[0], small[1]])
    args = dict(method="single", neurons=16, rescale="weights")
    a, b = (strong.build(keys.of_seed(3), t, **args) for t in (small, large))
    assert (a.scale, b.scale) == (1.0, 8.0)
    jax.tree.map(np.testing.assert_array_equal, a.mask, b.mask)
    np.testing.assert_array_equal(8 * a(X[:, :4]), b(X[:, :4]))
    np.testing.assert_array_equal(8 * a.errors[0], b.errors[0])
    assert strong.bound(b) == pytest.approx(8 * strong.bound(a))


def test_layers_are_rescaled_to_a_norm_of_one():
    target = strong.layers([np.ones((4, 4)) * 0.9, np.ones((4, 1)) * 1.1])
    assert strong.scales(target, "norm") == (4.0, 4.0)  # norms of 3.6 and 2.2
    assert strong.scales(target, "weights") == (1.0, 2.0)
    args = dict(method="single", neurons=30)
    twin = strong.build(keys.of_seed(3), target, rescale="norm", **args)
    assert twin.scale == 16.0


def test_the_bound_grows_as_the_ball_does(twins):
    twin = twins("subset_sums")
    one, three = strong.bound(twin), strong.bound(twin, 3.0)
    assert three == pytest.approx(3 * one)
    found = strong.attack(keys.of_seed(0), twin, 3.0, starts=2, steps=10)
    assert np.linalg.norm(found.x) == pytest.approx(3)
    assert one < found.distance * 50 and found.distance <= three


def test_the_bound_of_one_layer_is_its_norm(twins):
    twin = twins("programme")
    largest = np.linalg.norm(twin.errors[0].reshape(-1, 3), 2)
    assert strong.bound(twin) == pytest.approx(largest, rel=1e-6)
    assert strong.bound(twin) >= largest


def test_the_attack_climbs_along_the_true_gradient(twins):
    twin = twins("single")
    pairs = [w.astype(np.float64) for w in twin.target]
    x = X[:3].astype(np.float64)
    _, gradient = distance._difference(pairs, twin.errors, x)
    step, estimate = 1e-6, np.zeros_like(x)
    for i in range(x.shape[1]):
        unit = step * np.eye(x.shape[1])[i]
        up, down = (strong.differences(twin, x + s * unit) for s in (1, -1))
        estimate[:, i] = (up - down) / (2 * step)
    np.testing.assert_allclose(gradient, estimate, rtol=1e-4, atol=1e-6)
    still = strong.attack(keys.of_seed(0), twin, starts=4, steps=0)
    climbed = strong.attack(keys.of_seed(0), twin, starts=4, steps=30)
    assert climbed.distance > still.distance


def test_biases_become_weights_of_a_constant_input():
    model = models.make("mlp-4-3", 2, bias="torch")
    params = model.init(jax.random.key(0), X)["params"]
    target = strong.layers(params, constant=True)
    assert [w.shape for w in target] == [(6, 5), (5, 4), (4, 2)]
    x = strong.with_constant(X)
    says = np.asarray(model.apply({"params": params}, X))
    np.testing.assert_allclose(strong.forward(target, x), says, atol=1e-5)
    strong.layers(
        {"params": params},
        constant=True,
        apply=lambda p, x: model.apply(p, x),  # or it raises
    )
    twin = strong.build(
        keys.of_seed(1), target, "single", neurons=60, rescale="weights"
    )
    radius = float(np.linalg.norm(x, axis=1).max())
    apart = np.linalg.norm(np.asarray(twin(x)) - says, axis=1)
    assert apart.max() <= strong.bound(twin, radius) + 1e-4  # rounding in float32


def test_layers_are_in_the_order_of_their_numbers():
    widths = range(2, 15)
    pairs = list(zip(widths, widths[1:]))
    made = {f"dense_{i}": {"kernel": np.ones(p)} for i, p in enumerate(pairs[:-1])}
    shuffled = {"head": {"kernel": np.ones(pairs[-1])}} | dict(sorted(made.items()))
    assert [w.shape for w in strong.layers(shuffled)] == pairs
    assert list(targets.as_params(pairs)) == [*made, "head"]


def test_the_network_works_as_any_tree_of_params_does():
    """In a Linen model with biases of zero, say."""
    twin = strong.build(keys.of_seed(2), a_target((5, 3)), "single", neurons=8)
    model = models.make("mlp-40", 3)
    params = {
        name: {**layer, "bias": jnp.zeros(layer["kernel"].shape[1])}
        for name, layer in twin.params.items()
    }
    np.testing.assert_allclose(model.apply({"params": params}, X), twin(X), atol=1e-6)
    assert float(masks.density(twin.mask)) < 0.5


# --- what is refused ------------------------------------------------------------------

GOOD = (np.ones((2, 3)) * 0.5, np.ones((3, 1)) * 0.5)


def built(target=GOOD, method="subset_sums", **fields):
    return strong.build(keys.of_seed(0), strong.layers(list(target)), method, **fields)


def with_bias(bias):
    return {"dense_0": {"kernel": np.ones((2, 3)), "bias": np.asarray(bias)}}


def tanh(params, x):
    return np.tanh(x @ params[0]) @ params[1]


REFUSED = {
    "a weight out of range": (
        lambda: built((GOOD[0], GOOD[1] * 3), neurons=4),
        r"largest weight of layer 1=1.5; it must be 1 or less, .* rescale='weights' "
        r"divides layer 1 by 2 and multiplies the outputs by it",
    ),
    "too few neurons": (
        lambda: built(neurons=3, eps=0.001),
        rf"neurons=3; it must be about {strong.neurons('subset_sums', 0.001, 9)} for "
        r"every weight to be within eps=0.001: the largest error is",
    ),
    "no neurons": (lambda: built(neurons=0), "neurons=0; it must be 1 or more"),
    "neither neurons nor eps": (lambda: built(), "eps=None; it must be given"),
    "golden without eps": (
        lambda: built(method="golden", neurons=9),
        "eps=None; it must",
    ),
    "eps of 1": (lambda: built(eps=1.0), r"eps=1.0; it must be in \(0, 1\)"),
    "eps of 0": (lambda: built(eps=0), r"eps=0; it must be in \(0, 1\)"),
    "eps in neurons": (
        lambda: strong.neurons("single", -0.1, 5),
        r"eps=-0.1; it must be in \(0, 1\)",
    ),
    "an unknown method": (
        lambda: built(method="greedy", neurons=4),
        "method='greedy'; it must be one of single, golden, subset_sums, programme",
    ),
    "an unknown way to rescale": (
        lambda: built(neurons=4, rescale="max"),
        "rescale='max'; it must be one of weights, norm",
    ),
    "too many compared": (
        lambda: built(neurons=4, limit=41),
        "limit=41; it must be between 1 and 40",
    ),
    "shapes that do not chain": (
        lambda: strong.layers([np.ones((2, 3)), np.ones((4, 1))]),
        r"params\[1\].shape\[0\]=4; it must be 3, the outputs of params\[0\]",
    ),
    "no matrix": (
        lambda: strong.layers([np.ones((3, 3, 1, 2))]),
        r"params\[0\].shape=\(3, 3, 1, 2\); it must be \[in, out\]",
    ),
    "no layer": (lambda: strong.layers([]), "params=empty; it must be one layer"),
    "nan": (
        lambda: strong.layers([np.full((2, 2), np.nan)]),
        r"params\[0\]=nan or an infinity; it must be finite",
    ),
    "biases": (
        lambda: strong.layers(with_bias([0.0, 2.0, 0.0])),
        "bias of dense_0=up to 2; it must be 0: pass constant=True",
    ),
    "a bias of another shape": (
        lambda: strong.layers(with_bias([0.0, 2.0])),
        r"bias of dense_0: shape=\(2,\); it must be \(3,\)",
    ),
    "a norm": (
        lambda: strong.layers({"norm": {"scale": np.ones(3)}}),
        r"params\['norm'\]=\['scale'\]; it must be a dense layer",
    ),
    "another nonlinearity": (
        lambda: strong.layers(list(GOOD), apply=tanh),
        r"apply\(params, x\)\[\d+, \d\]=.*; it must be .* dense layers and ReLU alone",
    ),
    "outputs of another shape": (
        lambda: strong.layers(list(GOOD), apply=lambda p, x: x),
        r"apply\(params, x\).shape=\(64, 2\); it must be \(64, 1\)",
    ),
    "a radius of 0": (
        lambda: strong.bound(None, 0.0),
        "radius=0.0; it must be a finite number above 0",
    ),
    "one axis": (
        lambda: strong.subset_sums([1.0], [[1.0]]),
        r"candidates.shape=\(1,\); it must be two axes",
    ),
    "blocks that do not fit": (
        lambda: strong.single([[1.0]], [[1.0], [2.0]]),
        r"len\(targets\)=2; it must be 1, the number of blocks",
    ),
    "a target of nan": (
        lambda: strong.golden([[1.0]], [[np.nan]], 0.1),
        r"targets\[0, 0\]=nan; it must be a finite number",
    ),
    "a golden target out of range": (
        lambda: strong.golden([[1.0]], [[1.5]], 0.1),
        r"targets\[0, 0\]=1.5; it must be in \[-1, 1\]",
    ),
    "no time": (
        lambda: strong.programme([[1.0]], [[1.0]], seconds=0),
        "seconds=0; it must be above 0",
    ),
    "a law of no sense": (
        lambda: strong.Hyperbolic(1.0, 0.5).draw(keys.of_seed(0), (2,)),
        r"law=Hyperbolic\(.*\); it must be 0 < low < high",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError) as raised:
        call()
    assert re.match(message, str(raised.value)), str(raised.value)


def test_a_residual_network_is_no_chain():
    """Its shapes are those of one; what it computes is not."""
    model = models.make("residual-mlp-5", 3)
    params = model.init(jax.random.key(0), X)["params"]
    strong.layers(params)
    with pytest.raises(ValueError, match="know dense layers and ReLU alone"):
        strong.layers(params, apply=lambda p, x: model.apply({"params": p}, x))


def test_eps_beyond_what_was_fitted_compares_more_candidates():
    assert laws.compared(None) == laws.compared(0.01) == 20
    assert laws.compared(2.0**-20) == 26
    assert laws.compared(1e-300) == choices.MOST
