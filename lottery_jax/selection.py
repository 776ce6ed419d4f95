"""The lowest of many, exactly and without sorting: counts find the value where to cut.

    drop_lowest(scores, alive, 53_240)    # mask without these many, the lowest of the alive
    keep_highest(scores, 1_000)           # mask of these many

Scores become unsigned integers of their width in the same order. How many of them lie below
a guess is one pass over memory; two guesses a pass, one in the middle of what is left and
one where the cut would lie if what is left were spread evenly, find the place of a cut in
about 9 passes, and in no more than the integers have bits. It is found as soon as the count
is right, so the value itself need not be. What ties there is cut by position, which is found
in the same way.

The order: a nan is equal to -inf and lowest of all, -0.0 equals 0.0, and of equal scores the
first in row-major order is the lower one. Subnormal numbers of float32, bfloat16 and float64
count as 0 on every device, as XLA compares them on a CPU; those of float16 do not. Integers
and bools are compared as they are: as float32 they would be rounded from 2^24 on.

All of it is pure and runs under `jit`, `vmap` and in loops; numbers may be traced, and
differ from row to row under `vmap`. Bounds are not checked here: what is more than there is
counts as all, less than 0 as none.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lottery_jax.types import Array

_FEW = 16
"""Up to so many are ranked by comparing each with each: such groups are many, as in n:m."""

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
    rank = jnp.maximum(jnp.asarray(rank, jnp.int32), 0)
    cut = _cut_of_keys(keys, flat, rank).low
    # The cut may lie below the value of that rank, with nothing in between.
    value = jnp.min(jnp.where(keys >= cut, keys, _top(keys)))
    return (flat & (keys > value)).reshape(scores.shape)


class _Bracket(NamedTuple):
    """Where a cut may lie: in [low, high].

    `under` lie below low, and `over` below or on high.
    """

    low: Array
    high: Array
    under: Array
    over: Array


@jax.jit
def joined(parts: Sequence[Array]) -> Array:
    """Vectors one after another.

    Each is copied whole: XLA fuses a concatenation with what follows, and then asks of every
    number which vector it comes from. On a CPU 0.5 ms become 5 so in a pruning step of LeNet.

    Args:
      parts: one at least; of several dtypes the result has the one that holds all.
    """
    if not all(jax.typeof(x).sharding.mesh.empty for x in parts):
        return jnp.concatenate(parts)  # a new vector would lie on no mesh
    out = jnp.zeros(sum(x.size for x in parts), jnp.result_type(*parts))
    start = 0
    for x in parts:
        out = lax.dynamic_update_slice(out, x.astype(out.dtype), (start,))
        start += x.size
    return out


def _without(keys: Array, alive: Array | None, number: Array | int) -> Array:
    """`drop_lowest` of flat keys; without a mask all are alive."""
    number = jnp.maximum(jnp.asarray(number, jnp.int32), 0)
    if keys.size <= _FEW:
        kept = _ranks(keys, alive) >= number
        return kept if alive is None else alive & kept
    if alive is not None:
        keys = jnp.where(alive, keys, _top(keys))
    cut, _, below, through = _cut_of_keys(keys, alive, number)

    def ties(a: Array, b: Array) -> tuple[Array, Array]:
        tied = (keys == cut) if alive is None else alive & (keys == cut)
        # Made anew in each pass, the places take no memory.
        places = lax.iota(jnp.uint32, keys.size)
        return _sums(tied & (places < a), tied & (places < b))

    zero, end = jnp.uint32(0), jnp.uint32(keys.size)
    first = _cut(ties, zero, end, through - below, number - below).low
    late = lax.iota(jnp.uint32, keys.size) >= first
    kept = (keys > cut) | ((keys == cut) & late)
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


def _cut_of_keys(keys: Array, alive: Array | None, number: Array) -> _Bracket:
    """Where to cut flat keys; those of the dead are the largest there is."""
    low, high, total = _span(keys, alive)

    def below(a: Array, b: Array) -> tuple[Array, Array]:
        return _sums(keys < a, keys < b)

    return _cut(below, low, high, total, number)


def _cut(
    below: Callable[[Array, Array], tuple[Array, Array]],
    low: Array,
    high: Array,
    total: Array,
    number: Array,
) -> _Bracket:
    """The largest cut in [low, high] below which no more than a number lie.

    Or any below which exactly that number lies.

    Args:
      below: how many lie below each of two guesses in (low, high].
      low: unsigned, nothing lies below it.
      high: unsigned.
      total: how many there are; a guess will do.
      number: how many shall lie below.

    Returns:
      The cut as `low`, how many lie below it as `under`, and if the cut is the only one
      left, how many lie below or on it as `over`.
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
    return lax.while_loop(unsettled, closer, state)


# --- one pass over memory each --------------------------------------------------------


def _sums(a: Array, b: Array) -> tuple[Array, Array]:
    """How many are True in each of two `[n]`, int32 `[]`.

    Both in one reduction, which XLA vectorises on a CPU. A single sum it turns into a tree
    of windows, which takes five times as long, and as much memory again.
    """
    zero, axes = jnp.int32(0), (0,)
    pair = a.astype(jnp.int32), b.astype(jnp.int32)
    return lax.reduce(pair, (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), axes)


def _span(keys: Array, alive: Array | None) -> tuple[Array, Array, Array]:
    """The smallest and the largest key of the alive, and how many are alive."""
    living = jnp.ones(keys.shape, jnp.bool_) if alive is None else alive
    zero = jnp.zeros((), keys.dtype)
    return lax.reduce(
        (keys, jnp.where(living, keys, zero), living.astype(jnp.int32)),
        (_top(keys), zero, jnp.int32(0)),
        lambda x, y: (lax.min(x[0], y[0]), lax.max(x[1], y[1]), x[2] + y[2]),
        (0,),
    )


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
