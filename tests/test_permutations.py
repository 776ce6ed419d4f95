"""Permutations one place at a time: bijections, uniform, independent of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lottery_jax import masks, permutations

KEYS = jax.random.split(jax.random.key(0), 20_000)
LEAST = 1e-4
"""The smallest p value that passes: a test makes some hundred."""


def whole(key, number):
    return permutations.at(key, jnp.arange(number, dtype=jnp.int32), number)


def places(number, positions, keys=KEYS):
    """Where some positions lead under many keys, `[keys, positions]`."""
    at = jnp.array(positions, jnp.int32)
    draw = jax.jit(jax.vmap(lambda key: permutations.at(key, at, number)))
    return np.asarray(draw(keys))


# --- bijections -----------------------------------------------------------------------


def test_every_number_up_to_4096_is_permuted():
    everywhere = jnp.arange(4096, dtype=jnp.int32)

    @jax.jit
    def one(number):  # traced: one program for all
        return permutations.at(jax.random.key(number), everywhere, number)

    for number in range(1, 4097):
        found = np.asarray(one(jnp.int32(number)))[:number]
        assert (np.bincount(found, minlength=number) == 1).all(), number


@pytest.mark.parametrize("number", [1, 2, 7, 128, 129, 4095, 50_021, 55_000, 235_200])
def test_a_known_number_is_permuted(number):
    found = np.asarray(jax.jit(whole, static_argnums=1)(jax.random.key(1), number))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(np.sort(found), np.arange(number))


@pytest.mark.parametrize("number", [2_359_296, 14_715_584])
def test_a_large_number_is_permuted(number):
    found = np.asarray(jax.jit(whole, static_argnums=1)(jax.random.key(1), number))
    assert (np.bincount(found, minlength=number) == 1).all()


@pytest.mark.parametrize("number", [2**24 + 1, 10**9 + 7, 2**31 - 1])
def test_places_of_a_permutation_too_large_to_write_down_differ(number):
    first = np.arange(100_000)
    last = number - 1 - first
    at = jnp.array(np.concatenate([first, last]), jnp.int32)
    found = np.asarray(jax.jit(permutations.at, static_argnums=2)(KEYS[0], at, number))
    traced = jax.jit(permutations.at)(KEYS[0], at, jnp.int32(number))
    for one in (found, np.asarray(traced)):
        assert len(np.unique(one)) == len(at)
        assert 0 <= one.min() < number / 100 and number * 0.99 < one.max() < number


def test_places_beyond_the_last_count_as_the_last():
    for number in (5, 300):
        at = jnp.array([-1, 0, number - 1, number, 10**6])
        found = permutations.at(KEYS[0], at, number)
        assert found[0] == found[1] and found[2] == found[3] == found[4]


@pytest.mark.parametrize("number", [0, -1, 2**31])
def test_other_numbers_are_refused(number):
    with pytest.raises(ValueError, match=rf"number={number}; it must be in \[1, 2"):
        permutations.at(KEYS[0], jnp.arange(3), number)


# --- uniform --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [5, 100, 129, 150, 1000])
def test_every_place_leads_everywhere_equally_often(number):
    for column in places(number, [0, 1, number // 2, number - 1]).T:
        assert stats.chisquare(np.bincount(column, minlength=number)).pvalue > LEAST


@pytest.mark.parametrize("number", [5, 100, 129, 150, 1000])
def test_pairs_of_places_lead_to_every_pair_equally_often(number):
    found = places(number, [0, 1, number // 2, number - 1])
    bins = min(number, 12)
    size = np.bincount(np.arange(number) * bins // number, minlength=bins)
    expected = np.outer(size, size) - np.diag(size)
    expected = expected.ravel() * (len(found) / (number * (number - 1)))
    possible = expected > 0
    for a, b in ((0, 1), (1, 2), (0, 3)):
        x, y = found[:, a] * bins // number, found[:, b] * bins // number
        seen = np.bincount(x * bins + y, minlength=bins**2)
        assert not seen[~possible].any()
        assert stats.chisquare(seen[possible], expected[possible]).pvalue > LEAST
        apart = np.bincount((found[:, a] - found[:, b]) % number, minlength=number)
        assert stats.chisquare(apart[1:]).pvalue > LEAST


def test_a_traced_number_is_permuted_as_uniformly():
    keys = KEYS[:8000]
    at = jnp.array([0, 1], jnp.int32)
    draw = jax.jit(
        lambda number: jax.vmap(lambda key: permutations.at(key, at, number))(keys)
    )
    for number in (3, 20, 150, 700):
        for column in np.asarray(draw(jnp.int32(number))).T:
            seen = np.bincount(column, minlength=number)
            assert stats.chisquare(seen).pvalue > LEAST


def test_all_orders_of_four_are_equally_likely():
    found = places(4, [0, 1, 2, 3]) @ np.array([64, 16, 4, 1])
    _, seen = np.unique(found, return_counts=True)
    assert len(seen) == 24 and stats.chisquare(seen).pvalue > LEAST


def correlation(a, b):
    """Pearson's r of two permutations, in standard deviations of independent ones."""
    return np.corrcoef(a, b)[0, 1] * np.sqrt(len(a))


def test_neighbouring_keys_give_unrelated_permutations():
    draw = jax.jit(lambda key: whole(key, 5000))
    root = jax.random.key(0)
    found = [np.asarray(draw(jax.random.fold_in(root, i))) for i in range(12)]
    scores = [correlation(a, b) for i, a in enumerate(found) for b in found[:i]]
    assert np.abs(scores).max() < 4.5 and 0.7 < np.std(scores) < 1.3
    # Two unrelated permutations agree in one place on average.
    same = [(a == b).sum() for i, a in enumerate(found) for b in found[:i]]
    assert abs(np.mean(same) - 1) < 4.5 / np.sqrt(len(same))
    # Nor does a permutation keep neighbours together.
    for one in found:
        assert abs(correlation(one[1:], one[:-1])) < 4.5


@pytest.mark.parametrize("number", [5, 150, 1000])
def test_a_place_in_successive_streams_leads_to_every_pair_equally_often(number):
    streams = jnp.arange(3, dtype=jnp.int32)

    def one(key):
        at = jnp.int32(number // 3)
        return jax.vmap(lambda i: permutations.at(key, at, number, i))(streams)

    found = np.asarray(jax.jit(jax.vmap(one))(KEYS))
    bins = min(number, 12)
    size = np.bincount(np.arange(number) * bins // number, minlength=bins) / number
    expected = np.outer(size, size).ravel() * len(found)
    binned = found * bins // number
    for a, b in ((0, 1), (1, 2), (0, 2)):
        seen = np.bincount(binned[:, a] * bins + binned[:, b], minlength=bins**2)
        assert stats.chisquare(seen, expected).pvalue > LEAST
    same = (found[:, 0] == found[:, 1]).mean() * number
    assert abs(same - 1) < 4.5 * np.sqrt(number / len(found))


def test_streams_of_one_key_are_unrelated_permutations():
    at = jnp.arange(5000, dtype=jnp.int32)
    draw = jax.jit(lambda stream: permutations.at(KEYS[0], at, 5000, stream))
    found = [np.asarray(draw(i)) for i in range(12)]
    scores = [correlation(a, b) for i, a in enumerate(found) for b in found[:i]]
    assert np.abs(scores).max() < 4.5 and 0.7 < np.std(scores) < 1.3


def test_layers_of_equal_size_are_shuffled_apart():
    mask = {
        name: {"kernel": jnp.arange(3000).reshape(60, 50) < 1500} for name in "abcd"
    }
    found = masks.shuffle(jax.random.key(5), mask)
    flat = [np.asarray(found[n]["kernel"]).ravel().astype(float) for n in "abcd"]
    for i, a in enumerate(flat):
        assert a.sum() == 1500
        for b in flat[:i]:
            assert abs(correlation(a, b)) < 4.5


# --- the same bits everywhere ---------------------------------------------------------


def test_one_by_one_at_once_and_under_vmap_are_the_same():
    at = jnp.arange(300, dtype=jnp.int32)
    for number in (100, 300):
        together = np.asarray(permutations.at(KEYS[3], at[:number], number))
        one = jax.jit(lambda i, number=number: permutations.at(KEYS[3], i, number))
        np.testing.assert_array_equal([one(i) for i in range(number)], together)
        many = jax.jit(jax.vmap(lambda key, n=number: permutations.at(key, at[:n], n)))(
            KEYS[:5]
        )
        np.testing.assert_array_equal(many[3], together)


def test_bits_do_not_depend_on_settings():
    # Written down once: another number would mean that stored studies begin otherwise.
    wanted = {10: [1, 0, 3, 8], 1000: [405, 714, 719, 423]}
    for number, expected in wanted.items():
        found = places(number, [0, 1, 2, 3], KEYS[:1])[0].tolist()
        with jax.threefry_partitionable(False), jax.enable_x64(True):
            again = places(number, [0, 1, 2, 3], KEYS[:1])[0].tolist()
        assert found == again == expected
