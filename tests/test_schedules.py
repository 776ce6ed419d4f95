"""`schedules` against published densities and formulas."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lottery_jax import masks, schedules

# Printed by Frankle and Carbin (2019), in percent, from level 1 on.
LENET = "80.0 64.1 51.3 41.1 32.9 26.3 21.1 16.9 13.5 10.8 8.7 7.0 5.6 4.5 3.6 2.9 2.3 1.9 1.5"
CONV_2 = "80.1 64.2 51.4 41.2 33.0 26.5 21.2 17.0 13.7 11.0 8.8 7.1 5.7 4.6"
GLOBAL = "80 64 51.2 41 32.8 26.2 21 16.8 13.4 10.7 8.6 6.9 5.5 4.4 3.5"

# (number of weights, fraction per level) of each layer.
LENET_LAYERS = [(784 * 300, 0.2), (300 * 100, 0.2), (100 * 10, 0.1)]
CONV_2_LAYERS = [
    (3 * 3 * 3 * 64, 0.1),
    (3 * 3 * 64 * 64, 0.1),
    (16 * 16 * 64 * 256, 0.2),
    (256 * 256, 0.2),
    (256 * 10, 0.1),
]


def percents(kept, total):
    return [100 * n / total for n in kept]


def assert_printed(found, printed):
    """Equal as far as the paper prints digits."""
    for value, text in zip(found, printed.split(), strict=True):
        digits = len(text.partition(".")[2])
        assert abs(value - float(text)) <= 0.5 * 10**-digits + 1e-9, (value, text)


@pytest.mark.parametrize(
    "layers, total, printed",
    [(LENET_LAYERS, 266_200, LENET), (CONV_2_LAYERS, 4_300_992, CONV_2)],
    ids=["lenet", "conv-2"],
)
def test_the_densities_of_the_paper_by_layer(layers, total, printed):
    levels = len(printed.split())
    assert sum(n for n, _ in layers) == total
    kept = np.sum([schedules.geometric(n, levels, f) for n, f in layers], axis=0)
    assert kept[0] == total
    assert_printed(percents(kept[1:], total), printed)


def test_the_densities_of_global_pruning():
    kept = schedules.geometric(270_896, 15)
    assert_printed(percents(kept[1:], 270_896), GLOBAL)


@pytest.mark.parametrize("fraction", [0.2, 0.1, 1 / 3, 0.5, 0.05])
def test_geometric_removes_the_rounded_share_of_what_is_left(fraction):
    meant = Fraction(fraction).limit_denominator(1000)
    kept = schedules.geometric(11_800_003, 30, fraction)
    assert len(kept) == 31 and kept[0] == 11_800_003
    for before, after in zip(kept, kept[1:]):
        assert before - after == round(meant * before)
    assert all(isinstance(n, int) for n in kept)


def test_linear_removes_a_share_of_the_original():
    total = 1_000_005
    kept = schedules.linear(total, 9, of_original=0.1)
    assert kept == [total - round(Fraction(level, 10) * total) for level in range(10)]
    assert schedules.linear(100, 2, 1 / 3) == [100, 67, 33]
    with pytest.raises(ValueError, match="levels=10 with of_original=0.1 .*at most 9"):
        schedules.linear(total, 10, 0.1)
    with pytest.raises(ValueError, match="levels=3 .*at most 2"):
        schedules.linear(total, 3, 1 / 3)


def test_one_shot_prunes_from_the_dense_network():
    assert schedules.one_shot(1001, [0.5, 0.1, 0.3]) == [1001, 500, 100, 300]
    assert schedules.one_shot(7, []) == [7]


@pytest.mark.parametrize("density", [0.99, 0.8, 0.5, 0.01, 0.015])
@pytest.mark.parametrize("fraction", [0.2, 0.1, 0.5])
def test_levels_to_is_the_first_level_at_or_below(density, fraction):
    levels = schedules.levels_to(density, fraction)
    kept = 1 - Fraction(str(fraction))
    assert kept**levels <= Fraction(str(density)) < kept ** (levels - 1)


def test_levels_to_at_the_edges():
    assert schedules.levels_to(1.0) == 0
    assert schedules.levels_to(0.64) == 2  # 0.8 ** 2 is 0.6400000000000001 in floats
    assert schedules.levels_to(0.512) == 3
    # The last level printed for LeNet and the first density below it.
    assert schedules.levels_to(0.0145) == 19


def test_cubic_is_the_formula_of_zhu_and_gupta():
    begin, end, initial, final = 100, 900, 0.9, 0.05
    steps = np.arange(0, 1200, 7)
    # Their sparsity: s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3.
    t = np.clip((steps - begin) / (end - begin), 0, 1)
    sparsity = (1 - final) + ((1 - initial) - (1 - final)) * (1 - t) ** 3
    cubic = jax.jit(lambda step: schedules.cubic(step, begin, end, final, initial))
    found = jax.vmap(cubic)(jnp.asarray(steps))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1 - sparsity, atol=2e-7)
    assert (np.diff(found) <= 0).all()
    assert cubic(0) == cubic(begin)
    assert cubic(end) == cubic(10**6) == np.float32(final)
    np.testing.assert_allclose(
        schedules.cubic(150, begin, end, final), 0.83277, atol=1e-5
    )


def test_masks_pruned_by_a_schedule_have_its_counts():
    """The same rational rule on the host and in `prune`."""
    from lottery_jax import prune

    scores = {"kernel": jnp.arange(997.0).reshape(1, -1)}
    mask = masks.ones_like(scores)
    for kept in schedules.geometric(997, 5, 0.3):
        assert int(masks.count(mask)) == kept
        mask = prune.global_topk(scores, mask, fraction=0.3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: schedules.geometric(10, 3, 0.0), r"fraction=0.0; .*\(0, 1\)"),
        (lambda: schedules.geometric(10, 3, 20), r"fraction=20; .*\(0, 1\)"),
        (lambda: schedules.geometric(10, -1), "levels=-1; it must be 0 or more"),
        (lambda: schedules.geometric(0, 1), "total=0"),
        (lambda: schedules.linear(10, 3, 1.0), "of_original=1.0"),
        (lambda: schedules.one_shot(10, [0.5, 1.0]), r"density=1.0; .*\(0, 1\)"),
        (lambda: schedules.one_shot(10, [0.0]), "density=0.0"),
        (lambda: schedules.one_shot(0, [0.5]), "total=0"),
        (lambda: schedules.levels_to(0.0), r"density=0.0; .*\(0, 1\]"),
        (lambda: schedules.levels_to(0.5, 1.0), "fraction=1.0"),
        (lambda: schedules.cubic(0, 5, 5, 0.1), "begin=5, end=5; begin < end"),
        (lambda: schedules.cubic(0, 0, 5, 0.0), "final_density=0.0"),
        (lambda: schedules.cubic(0, 0, 5, 0.5, 0.4), "initial_density=0.4"),
        (lambda: schedules.cubic(0, 0, 5, 0.5, 1.1), "initial_density=1.1"),
        (lambda: schedules.cubic(0, 0, 5, math.nan), "final_density=nan"),
    ],
)
def test_errors_name_the_argument_and_what_would_be_valid(call, message):
    with pytest.raises(ValueError, match=message):
        call()
