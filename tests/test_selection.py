"""`selection`: the masks of a sort, bit for bit, in every dtype and every loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lottery_jax import selection

QUICKLY = pytest.mark.usefixtures("compiled_quickly")


# --- the rule by sorting, written out -------------------------------------------------


def comparable(scores):
    """Scores as NumPy can compare them without rounding: nan lowest, subnormals 0."""
    scores = np.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        return scores.astype(np.int64)
    wide = scores.astype(np.float64)
    if scores.dtype != np.float16:
        wide = np.where(np.abs(wide) < float(jnp.finfo(scores.dtype).tiny), 0.0, wide)
    return np.where(np.isnan(wide), -np.inf, wide)


def ranked(values, alive):
    """Those of the alive from the lowest, then the largest there is."""
    largest = np.inf if values.dtype.kind == "f" else np.iinfo(np.int64).max
    return np.sort(np.where(alive, values, largest))


def by_sort(scores, alive, number):
    """Below the value of that rank all go, and of the ties with it the first ones."""
    values = comparable(scores)
    order = ranked(values, alive)
    threshold = order[np.clip(number - 1, 0, order.size - 1)]
    below, ties = alive & (values < threshold), alive & (values == threshold)
    first = ties & (np.cumsum(ties) <= number - below.sum())
    return alive & ~below & ~first


def above_by_sort(scores, alive, rank):
    values = comparable(scores)
    return alive & (values > ranked(values, alive)[min(rank, values.size - 1)])


ODD = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-40, 3e-8, -6e-8]
TINIEST = {jnp.float32: 1e-45, jnp.bfloat16: 1e-40, jnp.float16: 6e-8}


def batteries(dtype, size, rng):
    """Scores of many kinds: smooth, tied, odd, of every magnitude, all alike."""
    if dtype == jnp.bool_:
        return [rng.random(size) < 0.3, np.zeros(size, bool), np.ones(size, bool)]
    if not jnp.issubdtype(dtype, jnp.floating):
        ends = jnp.iinfo(dtype)
        spread = rng.integers(ends.min, int(ends.max) + 1, size)
        few = rng.choice([ends.min, ends.max, 0, 1], size)
        return [x.astype(dtype) for x in (spread, few, np.full(size, ends.max))]
    smooth = rng.normal(size=size)
    kinds = [
        smooth,
        np.abs(smooth) + 1e4,
        rng.integers(-3, 4, size),
        rng.choice(ODD, size),
        smooth * 10.0 ** rng.integers(-44, 38, size),
        np.where(rng.random(size) < 0.5, 0, smooth),
        np.zeros(size),
        np.full(size, np.nan),
    ]
    with np.errstate(over="ignore"):  # infinite where float16 has no such number
        return [x.astype(dtype) for x in kinds]


def numbers(size, alive):
    there = int(alive.sum())
    some = {0, 1, 2, size // 5, size // 2, size - 1, size, size + 3}
    return sorted({*some, there - 1, there, there // 3} - {-1})


@jax.jit
def everything(scores, alive, number):
    return (
        selection.drop_lowest(scores, alive, number),
        selection.above_rank(scores, alive, number),
        selection.keep_highest(scores, number),
    )


# --- masks ----------------------------------------------------------------------------


def test_no_more_is_written_down_than_one_integer_for_each_score():
    size = 100_000
    scores = jax.ShapeDtypeStruct((size,), jnp.float32)
    alive = jax.ShapeDtypeStruct((size,), jnp.bool_)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    compiled = selection.drop_lowest.lower(scores, alive, number).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 5.5 * size


@QUICKLY
@pytest.mark.parametrize(
    "dtype, size",
    [
        *((jnp.float32, size) for size in (1, 2, 16, 17, 1000, 100_000)),
        *((dtype, 150) for dtype in (jnp.bfloat16, jnp.float16)),
        *((dtype, 150) for dtype in (jnp.int32, jnp.int8, jnp.uint8, jnp.bool_)),
    ],
)
def test_masks_are_those_of_a_sort(dtype, size):
    rng = np.random.default_rng(size)
    large = size > 1000
    for scores in batteries(dtype, size, rng):
        for share in (1.0, 0.6) if large else (1.0, 0.6, 0.0):
            alive = rng.random(size) < share
            for number in numbers(size, alive)[:: 5 if large else 1]:
                dropped, above, kept = everything(scores, alive, np.int32(number))
                expected = by_sort(scores, alive, number)
                np.testing.assert_array_equal(dropped, expected)
                assert dropped.sum() == max(alive.sum() - number, 0)
                expected = above_by_sort(scores, alive, number)
                np.testing.assert_array_equal(above, expected)
                expected = by_sort(scores, np.ones(size, bool), max(size - number, 0))
                np.testing.assert_array_equal(kept, expected)


@QUICKLY
def test_float64_and_unsigned_scores_are_compared_as_they_are():
    scores = 1 + np.random.default_rng(0).permutation(100) * 2.0**-52
    alive = np.ones(100, bool)
    with jax.enable_x64(True):
        for these in (scores, -scores, np.array([5e-324, 0, -5e-324, -0.0] * 25)):
            kept = selection.drop_lowest(these, alive, 37)
            np.testing.assert_array_equal(kept, by_sort(these, alive, 37))
    large = np.arange(2**32 - 100, 2**32, dtype=np.uint32)
    kept = selection.keep_highest(large, 40)
    np.testing.assert_array_equal(kept, np.arange(100) >= 60)


@QUICKLY
def test_floats_of_8_bits_are_compared_as_they_are():
    scores = np.array([0.5, -2.0, 1.0, 1.5, -0.0, 0.0]).astype(jnp.float8_e4m3fn)
    kept = selection.keep_highest(scores, 4)
    assert kept.tolist() == [True, False, True, True, False, True]


@QUICKLY
@pytest.mark.parametrize("dtype", TINIEST)
def test_subnormal_numbers_are_0_except_in_float16(dtype):
    scores = jnp.array(np.tile([TINIEST[dtype], 0.0, -TINIEST[dtype]], 8).astype(dtype))
    kept = np.asarray(selection.keep_highest(scores, 8))
    of_size = np.tile([True, False, False], 8)
    last = np.arange(24) >= 16
    np.testing.assert_array_equal(kept, of_size if dtype == jnp.float16 else last)


@QUICKLY
def test_less_than_none_is_none_and_more_than_all_is_all():
    for size in (10, 40):
        scores = np.arange(size, dtype=np.float32)
        alive = scores % 2 == 0
        np.testing.assert_array_equal(selection.drop_lowest(scores, alive, -3), alive)
        assert not selection.drop_lowest(scores, alive, 10**9).any()
        assert not selection.keep_highest(scores, -1).any()
        assert selection.keep_highest(scores, 2**31 - 1).all()
        np.testing.assert_array_equal(
            selection.above_rank(scores, alive, -1), alive & (scores > 0)
        )


@QUICKLY
def test_shapes_are_kept_and_positions_are_row_major():
    kept = selection.keep_highest(jnp.zeros((3, 4, 5), jnp.float32), 25)
    np.testing.assert_array_equal(kept, (np.arange(60) >= 35).reshape(3, 4, 5))


# --- in loops -------------------------------------------------------------------------


@QUICKLY
@pytest.mark.parametrize("size", [7, 90])
def test_rows_with_numbers_of_their_own_are_the_same_in_every_loop(size):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, size)).astype(np.float32)
    scores[1] = rng.integers(0, 3, size)
    scores[3] = np.nan
    alive = rng.random((4, size)) < 0.7
    number = np.array([0, size // 2, 1, size // 3], np.int32)
    args = scores, alive, number
    expected = np.stack([by_sort(*row) for row in zip(*args)])

    def one(row):
        return selection.drop_lowest(*row)

    def in_turn(scores, alive, number):
        def step(i, out):
            return out.at[i].set(one((scores[i], alive[i], number[i])))

        return jax.lax.fori_loop(0, 4, step, jnp.zeros_like(alive))

    def together(*rows):
        return jax.vmap(lambda *row: one(row))(*rows)

    mesh = Mesh(np.array(jax.devices()[:2]), ("rows",))
    spread = jax.shard_map(
        together,
        mesh=mesh,
        in_specs=(PartitionSpec("rows"),) * 3,
        out_specs=PartitionSpec("rows"),
        check_vma=False,
    )
    mapped = lambda *rows: jax.lax.map(one, rows)  # noqa: E731
    for loop in (together, in_turn, spread, mapped):
        np.testing.assert_array_equal(jax.jit(loop)(*args), expected)


@QUICKLY
def test_the_number_alone_may_differ_from_row_to_row():
    scores = np.random.default_rng(0).normal(size=50).astype(np.float32)
    counts = np.array([0, 3, 25, 50], np.int32)
    kept = jax.vmap(selection.keep_highest, (None, 0))(scores, counts)
    np.testing.assert_array_equal(kept.sum(1), counts)
    np.testing.assert_array_equal(kept[2], by_sort(scores, np.ones(50, bool), 25))


# --- how many passes ------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, most",
    [("smooth", 13), ("two far clusters", 32), ("one apart", 32)],
)
def test_a_pass_halves_what_is_left_at_least(kind, most, monkeypatch):
    size = 500
    scores = np.abs(np.random.default_rng(0).normal(size=size)).astype(np.float32)
    if kind == "two far clusters":
        scores[: size // 2] *= np.float32(1e-30)
    elif kind == "one apart":
        scores[1:] = np.nextafter(scores[1:] * 0 + 1, 2)
    passes = 0

    def counted(a, b):
        nonlocal passes
        passes += 1
        return jnp.sum(a, dtype=jnp.int32), jnp.sum(b, dtype=jnp.int32)

    monkeypatch.setattr(selection, "_sums", counted)
    with jax.disable_jit():
        cut = jnp.asarray(size // 4, jnp.int32)
        keys = selection._ordered(jnp.asarray(scores))
        below = selection._cut_of_keys(keys, None, cut).under
    assert 0 < passes <= most
    assert below <= cut
