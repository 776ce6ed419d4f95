"""The lowest of many, exactly and without sorting: counts find the value where to cut.

    drop_lowest(scores, alive, 53_240)    # mask without these many, the lowest of the alive
    keep_highest(scores, 1_000)           # mask of these many

Scores become unsigned integers of their width in the same order. How many of them lie below
a guess is one pass over memory; two guesses a pass, one in the middle of what is left and
one where the cut would lie if what is left were spread evenly, find the place of a cut in
about 9 passes, and in no more than the integers have bits. It is found as soon as the count
is right, so the value itself need not be. What ties there is cut by position, which is found
in the same way. A sort of 235,200 takes as long as 3,000 such passes.

The order: a nan is equal to -inf and lowest of all, -0.0 equals 0.0, and of equal scores the
first in row-major order is the lower one. Subnormal numbers of float32, bfloat16 and float64
count as 0 on every device, as XLA compares them on a CPU and a TPU; those of float16 do not.
Integers and bools are compared as they are, as float32 they would be rounded from 2^24 on.

All of it is pure and runs under `jit`, `vmap` and in loops; numbers may be traced, and
differ from row to row under `vmap`. Bounds are not checked here: what is more than there is
counts as all, less than 0 as none.

References:
  Alabi, Blanchard, Gordon and Steinbach, Fast k-selection algorithms for graphics
    processing units, 2012, section 3 (bisection)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lottery_jax.types import Array

_FEW = 32
"""Up to so many are ranked by comparing each with each: groups are small, and many."""

_FLUSHED = (jnp.float32, jnp.bfloat16, jnp.float64)  # subnormal numbers of these are 0


@jax.jit
def drop_lowest(scores: Array, alive: Array, number: Array | int) -> Array:
    """A mask of the alive without the lowest of them.

    Args:
      scores: real, any dtype and shape.
      alive: bool, of the shape of the scores; what is dead stays dead.
      number: how many to drop, an integer `[]`.

    Returns:
      bool, of the shape of the scores: `max(alive - number, 0)` are True.
    """
    keys = _ordered(scores.reshape(-1))
    return _without(keys, alive.reshape(-1), number).reshape(scores.shape)


@jax.jit
def keep_highest(scores: Array, number: Array | int) -> Array:
    """A mask of the highest scores; of equal ones the last are taken.

    Args:
      scores: real, any dtype and shape.
      number: how many to keep, an integer `[]`.

    Returns:
      bool, of the shape of the scores: `number` are True, or all if there are fewer.
    """
    keys = _ordered(scores.reshape(-1))
    number = keys.size - jnp.minimum(jnp.asarray(number, jnp.int32), keys.size)
    return _without(keys, None, number).reshape(scores.shape)


@jax.jit
def above_rank(scores: Array, alive: Array, rank: Array | int) -> Array:
    """A mask of the alive that score more than the one of a rank: ties go together.

    Args:
      scores: real, any dtype and shape.
      alive: bool, of the shape of the scores.
      rank: among the alive from the lowest, which is 0; an integer `[]`.

    Returns:
      bool, of the shape of the scores; none where fewer than `rank` are alive.
    """
    keys, flat = _ordered(scores.reshape(-1)), alive.reshape(-1)
    keys = jnp.where(flat, keys, _top(keys))
    cut, _, _ = _cut_of_keys(keys, flat, jnp.maximum(jnp.asarray(rank, jnp.int32), 0))
    # The cut may lie below the value of that rank, with nothing in between.
    value = jnp.min(jnp.where(keys >= cut, keys, _top(keys)))
    return (flat & (keys > value)).reshape(scores.shape)


def _without(keys: Array, alive: Array | None, number: Array | int) -> Array:
    """`drop_lowest` of flat keys; without a mask all are alive."""
    number = jnp.maximum(jnp.asarray(number, jnp.int32), 0)
    if keys.size <= _FEW:
        kept = _ranks(keys, alive) >= number
        return kept if alive is None else alive & kept
    if alive is not None:
        keys = jnp.where(alive, keys, _top(keys))
    cut, below, span = _cut_of_keys(keys, alive, number)
    places = lax.iota(jnp.uint32, keys.size)

    def ties(a: Array, b: Array) -> tuple[Array, Array]:
        tied = (keys == cut) if alive is None else alive & (keys == cut)
        return _sums(tied & (places < a), tied & (places < b))

    zero, end = jnp.uint32(0), jnp.uint32(keys.size)
    first, _ = _cut(ties, zero, end, span - below, number - below)
    kept = (keys > cut) | ((keys == cut) & (places >= first))
    return kept if alive is None else alive & kept


def _ranks(keys: Array, alive: Array | None) -> Array:
    """How many of the alive are lower than each, int32 `[n]`; quadratic."""
    places = jnp.arange(keys.size)
    lower = (keys[None] < keys[:, None]) | (
        (keys[None] == keys[:, None]) & (places[None] < places[:, None])
    )
    if alive is not None:
        lower &= alive[None]
    return jnp.sum(lower, axis=1, dtype=jnp.int32)


def _cut_of_keys(
    keys: Array, alive: Array | None, number: Array
) -> tuple[Array, Array, Array]:
    """Where to cut, how many lie below, and how many below the next key, about.

    The dead have the largest key there is.
    """
    low, high, total = _span(keys, alive)

    def below(a: Array, b: Array) -> tuple[Array, Array]:
        return _sums(keys < a, keys < b)

    cut, found = _cut(below, low, high, total, number)
    return cut, found, total


class _Bracket(NamedTuple):
    """Where a cut may lie: in [low, high], with `under` below low and `over` in all."""

    low: Array
    high: Array
    under: Array
    over: Array


def _cut(
    below: Callable[[Array, Array], tuple[Array, Array]],
    low: Array,
    high: Array,
    total: Array,
    number: Array,
) -> tuple[Array, Array]:
    """The largest cut in [low, high] below which no more than a number lie.

    Or any below which exactly that number lies.

    Args:
      below: how many lie below each of two guesses in (low, high].
      low: unsigned, nothing lies below it.
      high: unsigned.
      total: how many there are; a guess will do.
      number: how many shall lie below.

    Returns:
      The cut, and how many lie below.
    """

    def unsettled(state: _Bracket) -> Array:
        return (state.low < state.high) & (state.under != number)

    def closer(state: _Bracket) -> _Bracket:
        low, high, under, over = state
        width = high - low
        share = (number - under) / jnp.maximum(over - under, 1).astype(jnp.float32)
        even = (width.astype(jnp.float32) * share).astype(width.dtype)
        even = jnp.where(share < 1, jnp.clip(even, 1, width), width)
        guesses = low + (width - width // 2), low + even
        for guess, count in zip(guesses, below(*guesses)):
            up = (count <= number) & (guess > low)
            down = (count > number) & (guess <= high)
            low, under = jnp.where(up, guess, low), jnp.where(up, count, under)
            high, over = jnp.where(down, guess - 1, high), jnp.where(down, count, over)
        return _Bracket(low, high, under, over)

    state = _Bracket(low, high, jnp.zeros_like(number), jnp.asarray(total, jnp.int32))
    state = lax.while_loop(unsettled, closer, state)
    return state.low, state.under


# --- one pass over memory each --------------------------------------------------------


def _sums(a: Array, b: Array) -> tuple[Array, Array]:
    """How many are True in each of two `[n]`, int32 `[]`.

    Both in one reduction: on a CPU XLA vectorises that of a pair, and takes five times as
    long over a single one.
    """
    zero, axes = jnp.int32(0), (0,)
    pair = a.astype(jnp.int32), b.astype(jnp.int32)
    return lax.reduce(pair, (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), axes)


def _span(keys: Array, alive: Array | None) -> tuple[Array, Array, Array]:
    """The smallest and the largest key of the alive, and how many are alive."""
    low, high = _top(keys), jnp.zeros((), keys.dtype)
    tops = keys if alive is None else jnp.where(alive, keys, high)
    found = lax.reduce(
        (keys, tops),
        (low, high),
        lambda x, y: (lax.min(x[0], y[0]), lax.max(x[1], y[1])),
        (0,),
    )
    if alive is None:
        return *found, jnp.int32(keys.size)
    return *found, _sums(alive, alive)[0]


def _top(keys: Array) -> Array:
    return jnp.array(jnp.iinfo(keys.dtype).max, keys.dtype)


def _ordered(scores: Array) -> Array:
    """Scores as unsigned integers of the same width, in the same order."""
    dtype = jnp.dtype(scores.dtype)
    if dtype == jnp.bool_:
        return scores.astype(jnp.uint8)
    if not jnp.issubdtype(dtype, jnp.floating):
        if jnp.iinfo(dtype).bits < 8:
            dtype = jnp.dtype(jnp.promote_types(dtype, jnp.int8))
        if jnp.issubdtype(dtype, jnp.unsignedinteger):
            return scores.astype(dtype)
        unsigned = jnp.dtype(f"uint{jnp.iinfo(dtype).bits}")
        bits = lax.bitcast_convert_type(scores.astype(dtype), unsigned)
        return bits ^ jnp.array(1 << (jnp.iinfo(dtype).bits - 1), unsigned)
    if dtype not in (*_FLUSHED, jnp.float16):
        dtype = jnp.dtype(jnp.float32)  # narrower ones, exactly
    unsigned = jnp.dtype(f"uint{jnp.finfo(dtype).bits}")
    bits = lax.bitcast_convert_type(scores.astype(dtype), unsigned)
    sign = jnp.array(1 << (jnp.finfo(dtype).bits - 1), unsigned)
    infinite = lax.bitcast_convert_type(jnp.array(jnp.inf, dtype), unsigned)
    tiny = lax.bitcast_convert_type(jnp.finfo(dtype).tiny, unsigned)
    size = bits & ~sign
    bits = jnp.where(size > infinite, infinite | sign, bits)
    smallest = tiny if dtype in _FLUSHED else jnp.ones((), unsigned)
    bits = jnp.where(size < smallest, jnp.zeros((), unsigned), bits)
    return jnp.where(bits >= sign, ~bits, bits | sign)
