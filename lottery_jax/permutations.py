"""Random permutations, one place at a time: position -> index, a pure function of a key.

    at(key, positions, 55_000)       # some places of a permutation of 55,000

Nothing is sorted or stored: each place is computed by itself, where it is needed. The
numbers [0, n) are laid out as a rectangle of about sqrt(n) by sqrt(n); a Feistel network
adds to the row a hash of the column, then to the column one of the row, and so on, each
step of which can be undone, so that the whole is a bijection of the rectangle. Where the
rectangle is a little larger than n, what lands outside is sent round again until it does
not (cycle walking), which leaves a bijection of [0, n). The bits depend on the key's words
alone, whatever JAX's settings are.

Not for secrets: six rounds of a hash that is quick, not strong.

References:
  Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, sections 4 and 5.
"""

import functools
import math

import jax
import jax.numpy as jnp

from lottery_jax import errors
from lottery_jax.types import Array, Key

_ROUNDS = 6
_FEW = 128
"""Up to here by sorting hashes: so few places mix badly in six rounds."""

_WIDEST = 2**16  # a side of the rectangle, so that products fit into 32 bits
_STRIDE = 0x9E3779B9  # 2^32 over the golden ratio


def at(
    key: Key, positions: Array, number: Array | int, stream: Array | int = 0
) -> Array:
    """Where some places of a random permutation lead.

    Args:
      key: the permutation's, `[]`.
      positions: int32 `[...]` in [0, number); others count as the nearest of these.
      number: n, how many are permuted, in [1, 2^31); may be traced.
      stream: which of the key's permutations, 0 or more; may be traced. Cheaper inside a
        training step than a key of its own.

    Returns:
      int32 of the shape of positions: over all n of them, each index in [0, n) once.

    Raises:
      ValueError: a number below 1.
    """
    words = [*_words(key), jnp.asarray(stream, jnp.uint32)]
    if not isinstance(number, jax.core.Tracer):
        known = int(number)
        if not 1 <= known < 2**31:
            raise errors.wrong("number", known, "in [1, 2**31)")
        positions = jnp.clip(positions, 0, known - 1).astype(jnp.int32)
        if known <= _FEW:
            return _sorted(words, known, known)[positions]
        return _walked(words, positions, known, *_sides(known))
    # float32 may miss the root by a little, which the other side makes up for.
    some = jnp.maximum(number, 1)
    positions = jnp.clip(positions, 0, some - 1).astype(jnp.int32)
    rows = jnp.ceil(jnp.sqrt(some.astype(jnp.float32))).astype(jnp.int32)
    far = _walked(words, positions, some, rows, (some - 1) // rows + 1)
    near = _sorted(words, some, _FEW)[jnp.minimum(positions, _FEW - 1)]
    return jnp.where(some <= _FEW, near, far)


def _words(key: Key) -> list[Array]:
    data = jax.random.key_data(key)
    return [data[i] for i in range(data.shape[0])]


def _sorted(words: list[Array], number: Array | int, size: int) -> Array:
    """A permutation of the first `number` of `size` places; the others stay."""
    places = jnp.arange(size, dtype=jnp.uint32)
    draws = _keyed(words, places)
    # A stable sort with the places beyond n behind all others.
    return jnp.lexsort((draws, places >= number)).astype(jnp.int32)


def _walked(
    words: list[Array],
    positions: Array,
    number: Array | int,
    rows: Array | int,
    columns: Array | int,
) -> Array:
    """The network on a rectangle of rows by columns that holds `number` places."""
    exact = isinstance(rows, int) and rows * columns == number
    keys = [_keyed(words, jnp.uint32(i)) for i in range(_ROUNDS)]
    rows, columns, number = (
        jnp.asarray(x, jnp.uint32) for x in (rows, columns, number)
    )

    def once(x: Array) -> Array:
        row, column = jnp.divmod(x, columns)
        for i, own in enumerate(keys):
            if i % 2 == 0:
                row = _added(row, _hash(column * jnp.uint32(_STRIDE) ^ own), rows)
            else:
                column = _added(column, _hash(row * jnp.uint32(_STRIDE) ^ own), columns)
        return row * columns + column

    found = once(positions.astype(jnp.uint32))
    if not exact:
        found = jax.lax.while_loop(
            lambda x: jnp.any(x >= number),
            lambda x: jnp.where(x >= number, once(x), x),
            found,
        )
    return found.astype(jnp.int32)


@functools.lru_cache(maxsize=1024)
def _sides(number: int) -> tuple[int, int]:
    """A rectangle that holds `number` places and few more, about as high as wide."""
    root = math.isqrt(number - 1) + 1
    lowest = max(1, -(-number // _WIDEST), root - max(root // 3, 1), root - 4096)
    sides = ((rows, -(-number // rows)) for rows in range(root, lowest - 1, -1))
    return min(sides, key=lambda side: side[0] * side[1])


def _added(x: Array, drawn: Array, modulus: Array) -> Array:
    """x + floor(modulus * drawn / 2^32), modulo the modulus, which is 2^16 at most."""
    low = (drawn & jnp.uint32(0xFFFF)) * modulus
    share = ((drawn >> 16) * modulus + (low >> 16)) >> 16
    total = x + share
    return jnp.where(total >= modulus, total - modulus, total)


def _keyed(words: list[Array], number: Array) -> Array:
    """Draws of 32 bits for some numbers, from all words of a key."""
    drawn = number * jnp.uint32(_STRIDE)
    for word in words:
        drawn = _hash(drawn + word + jnp.uint32(_STRIDE))
    return drawn


def _hash(x: Array) -> Array:
    """Mixes 32 bits: a bijection whose output bits depend on all input bits.

    Its constants are those of `lowbias32` (C. Wellons, Prospecting for Hash Functions).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
