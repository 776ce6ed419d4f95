"""Which of some random numbers are kept, so that their sum comes close to a number.

    single        one of them, the nearest                        Malach et al. 2020
    golden        at most one in each of a falling row of         Orseau et al. 2020
                  intervals, by the golden ratio
    subset_sums   the best of all subsets                         Pensia et al. 2020
    programme     the same as an integer programme                Pensia et al. 2020

All take candidates `[B, n]` and targets `[B, T]`, B blocks of their own, and return what is
kept, bool `[B, T, n]`. A candidate of exactly 0 fills a block up and is never kept.

The best subset is found by meeting in the middle: the sums of the subsets of one part of
the candidates are sorted, and for each sum of the others the nearest is looked up in them.
The sorted part is made once for all targets of a block, and is the larger the more there
are. Sums are of whole multiples of a power of two, int32: exact, in any order, on any
device.

References:
  Malach, Yehudai, Shalev-Shwartz and Shamir, Proving the Lottery Ticket Hypothesis: Pruning
    is All You Need, 2020, section 2; https://arxiv.org/abs/2002.00585
  Orseau, Hutter and Rivasplata, Logarithmic Pruning is All You Need, 2020;
    https://arxiv.org/abs/2006.12156
  Pensia, Rajput, Nagle, Vishwakarma and Papailiopoulos, Optimal Lottery Tickets via
    SubsetSum, 2020; https://arxiv.org/abs/2006.07990
  Horowitz and Sahni, Computing Partitions with Applications to the Knapsack Problem, 1974.
"""

import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lottery_jax import errors
from lottery_jax.types import Array

GOLDEN = (math.sqrt(5) - 1) / 2
"""Each interval of `golden` is this much lower than the one before: 0.618."""

MOST = 40
"""Candidates of which all subsets are compared: 2^20 sums of each half."""

_BITS = 30  # of the largest sum that may come up, so that differences fit into int32
_AT_ONCE = 2**18  # sums that are looked up together
_BLOCKS = 1024  # in one call


def _checked(candidates: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, ...]:
    """Both in float64, of shapes that belong together."""
    numbers = np.asarray(candidates, np.float64), np.asarray(targets, np.float64)
    for name, found in zip(("candidates", "targets"), numbers):
        if found.ndim != 2 or not found.shape[1]:
            raise errors.wrong(f"{name}.shape", found.shape, "two axes: [blocks, some]")
        if not np.isfinite(found).all():
            at = tuple(map(int, np.argwhere(~np.isfinite(found))[0]))
            raise errors.wrong(f"{name}{list(at)}", found[at], "a finite number")
    if len(numbers[0]) != len(numbers[1]):
        must = f"{len(numbers[0])}, the number of blocks of candidates"
        raise errors.wrong("len(targets)", len(numbers[1]), must)
    return numbers


def single(candidates: ArrayLike, targets: ArrayLike) -> np.ndarray:
    """The nearest candidate, one of them (Malach et al. 2020).

    Args:
      candidates: `[B, n]`; 0 for none.
      targets: `[B, T]`.

    Returns:
      bool `[B, T, n]`, one True in each row, the first of equally near ones; none in a
      block without candidates.

    Raises:
      ValueError: wrong shapes, or numbers that are not finite.
    """
    c, z = _checked(candidates, targets)
    far = np.where(c == 0, np.inf, 0.0)
    kept = np.zeros((*z.shape, c.shape[1]), bool)
    blocks = np.arange(len(c))
    some = np.any(c != 0, axis=1)
    for t in range(z.shape[1]):
        best = np.argmin(np.abs(c - z[:, t, None]) + far, 1)
        kept[blocks, t, best] = some
    return kept


def golden_steps(eps: float) -> int:
    """How many intervals bring every number in [-1, 1] within eps: 2.08 ln(1/eps).

    Raises:
      ValueError: eps outside of (0, 1).
    """
    errors.share("eps", eps)
    return math.ceil(math.log(eps) / math.log(GOLDEN))


def golden(candidates: ArrayLike, targets: ArrayLike, eps: float) -> np.ndarray:
    """A sum of falling candidates, one at most in each golden interval (Orseau et al. 2020).

    With g the golden ratio 0.618, the intervals are (g^(k+1), g^k] for k = 1 ... K. From
    each the first candidate of the target's sign is taken if it is no larger than what is
    left of the target. What is left is at most g^(k-1) before, hence at most g^k after it:
    if the candidate is not taken, less than it; if it is, at most
    g^(k-1) - g^(k+1) = g^k. After K steps it is at most g^K <= eps.

    Args:
      candidates: `[B, n]`; 0 for none.
      targets: `[B, T]`, in [-1, 1].
      eps: in (0, 1); K = `golden_steps(eps)`.

    Returns:
      bool `[B, T, n]`. Where an interval is empty it is passed over, and the error may be
      larger than eps.

    Raises:
      ValueError: wrong shapes, numbers that are not finite, a target outside of [-1, 1],
        or eps outside of (0, 1).
    """
    c, z = _checked(candidates, targets)
    steps = golden_steps(eps)
    outside = np.abs(z) > 1
    if outside.any():
        at = tuple(map(int, np.argwhere(outside)[0]))
        raise errors.wrong(f"targets{list(at)}", z[at], "in [-1, 1]")
    kept = np.zeros((*z.shape, c.shape[1]), bool)
    blocks = np.arange(len(c))[:, None]
    for sign in (1.0, -1.0):
        left = np.where(sign * z > 0, sign * z, 0.0)
        for k in range(1, steps + 1):
            inside = (sign * c > GOLDEN ** (k + 1)) & (sign * c <= GOLDEN**k)
            first = inside.argmax(1)[:, None]
            value = sign * c[blocks, first]
            take = np.any(inside, axis=1, keepdims=True) & (left >= value)
            kept[blocks, np.arange(z.shape[1]), first] |= take
            left = left - np.where(take, value, 0.0)
    return kept


# --- all subsets ----------------------------------------------------------------------


def subset_sums(
    candidates: ArrayLike, targets: ArrayLike, limit: int = 20
) -> np.ndarray:
    """The subset whose sum is nearest, of all 2^n (Pensia et al. 2020).

    Numbers are rounded to whole multiples of a power of two, 2^-30 of the largest sum in
    their block or less; among these sums the nearest is found exactly. Of equally near
    ones it is that of the lowest number, its candidates read as binary digits, the first
    the lowest.

    Args:
      candidates: `[B, n]`; 0 for none.
      targets: `[B, T]`.
      limit: of so many candidates all subsets are compared, in [1, 40]; time and memory
        double with every second one. Of more these are the first ones of either sign by
        turns; before, each of the others is kept if that brings the sum nearer.

    Returns:
      bool `[B, T, n]`.

    Raises:
      ValueError: wrong shapes, numbers that are not finite, or a limit out of range.
    """
    c, z = _checked(candidates, targets)
    limit = min(errors.whole("limit", limit, 1, MOST), c.shape[1])
    kept = np.zeros((*z.shape, c.shape[1]), bool)
    order = None
    if limit < c.shape[1]:
        # Whatever is left over has either sign: so must what it is made of.
        turn = np.where(c > 0, np.cumsum(c > 0, 1), np.cumsum(c < 0, 1))
        order = np.argsort(np.where(c == 0, c.shape[1], turn), 1, kind="stable")
        c = np.take_along_axis(c, order, 1)
    for k in range(limit, c.shape[1]):
        left = z - c[:, k, None]
        kept[..., k] = np.abs(left) < np.abs(z)
        z = np.where(kept[..., k], left, z)
    c = c[:, :limit]
    size = np.abs(c).sum(1, keepdims=True) + np.abs(z).max(1, keepdims=True)
    power = _BITS - np.frexp(size)[1]
    whole = [np.rint(np.ldexp(x, power)).astype(np.int32) for x in (c, z)]
    codes, low = _nearest_of_all(*whole)
    for k in range(limit):
        second, position = (0, k) if k < low else (1, k - low)
        kept[..., k] = codes[second] >> position & 1
    if order is None:
        return kept
    back = np.argsort(order, 1, kind="stable")
    return np.take_along_axis(kept, back[:, None], 2)


def _nearest_of_all(
    candidates: np.ndarray, targets: np.ndarray
) -> tuple[list[np.ndarray], int]:
    """`_nearest` in blocks of few shapes, so that little is compiled.

    Returns:
      Both numbers, and `low`.
    """
    (blocks, n), wanted = candidates.shape, targets.shape[1]
    few = _BLOCKS if blocks >= _BLOCKS else 1 << (blocks - 1).bit_length()
    more = min(-n % 4, MOST - n)
    low = _low(n + more, wanted)
    # Blocks and candidates of zeros: none of these is ever kept.
    c = np.pad(candidates, ((0, -blocks % few), (0, more)))
    z = np.pad(targets, ((0, -blocks % few), (0, 0)))
    parts = [
        _nearest(c[i : i + few], z[i : i + few], low) for i in range(0, len(c), few)
    ]
    return [np.concatenate(part)[:blocks] for part in zip(*parts)], low


def _low(n: int, targets: int) -> int:
    """How many candidates the sorted part has: it is made once for all targets."""
    half = (n + math.log2(targets)) / 2
    return min(n, math.ceil(half), max(MOST // 2, n // 2))


def _sums(numbers: Array) -> Array:
    """The sums of all subsets `[2^n]`; the first of n numbers is the lowest digit."""
    out = jnp.zeros(1, jnp.int32)
    for k in range(numbers.shape[0]):
        out = jnp.concatenate([out, out + numbers[k]])
    return out


@functools.partial(jax.jit, static_argnames="low")
def _nearest(candidates: Array, targets: Array, low: int) -> tuple[Array, Array]:
    """The best subset of each block and target, as two binary numbers.

    Args:
      candidates: int32 `[B, n]`; sums fit into 30 bits.
      targets: int32 `[B, T]`.
      low: how many candidates the sorted part has.

    Returns:
      int32 `[B, T]` each, of the first `low` candidates and of the others.
    """
    high = candidates.shape[1] - low
    targets_at_once = max(1, min(targets.shape[1], _AT_ONCE >> high))
    blocks_at_once = max(1, _AT_ONCE // max(targets_at_once << high, 1 << low))

    def block(both: tuple[Array, Array]) -> Any:
        own, wanted = both
        places = jnp.arange(1 << low, dtype=jnp.int32)
        sums, order = jax.lax.sort((_sums(own[:low]), places), num_keys=1)
        # Of equal sums each stands for the first: that of the lowest number.
        new = jnp.concatenate([jnp.ones(1, bool), sums[1:] != sums[:-1]])
        order = order[jax.lax.cummax(jnp.where(new, places, 0))]
        others = _sums(own[low:])

        def nearest(target: Array) -> tuple[Array, Array]:
            left = target - others
            above = jnp.searchsorted(sums, left).astype(jnp.int32)
            sides = [jnp.clip(above - i, 0, (1 << low) - 1) for i in (0, 1)]
            distance = [jnp.abs(left - sums[side]) for side in sides]
            best = jnp.argmin(jnp.minimum(*distance)).astype(jnp.int32)
            least = jnp.minimum(distance[0][best], distance[1][best])
            codes = [
                jnp.where(d[best] == least, order[side[best]], 1 << low)
                for d, side in zip(distance, sides)
            ]
            return jnp.minimum(*codes), best

        return jax.lax.map(nearest, wanted, batch_size=targets_at_once)

    return jax.lax.map(block, (candidates, targets), batch_size=blocks_at_once)


def programme(
    candidates: ArrayLike, targets: ArrayLike, seconds: float = 60.0
) -> np.ndarray:
    """The nearest sum as an integer programme, by SciPy's HiGHS, one target after another.

    Least e with -e <= z - sum of x_k c_k <= e and x_k in {0, 1}. HiGHS is content within
    1e-6 of the least error. For more candidates than `subset_sums` can compare; for
    fewer that is exact, and quicker by orders of magnitude.

    Args:
      candidates: `[B, n]`; 0 for none.
      targets: `[B, T]`.
      seconds: for each target; then the best that was found is taken, with a warning.

    Returns:
      bool `[B, T, n]`.

    Raises:
      ValueError: wrong shapes, numbers that are not finite, or seconds not above 0.
    """
    import scipy.optimize

    c, z = _checked(candidates, targets)
    if not seconds > 0:
        raise errors.wrong("seconds", seconds, "above 0")
    kept = np.zeros((*z.shape, c.shape[1]), bool)
    aim = np.append(np.zeros(c.shape[1]), 1.0)
    late = 0
    for b, t in np.ndindex(*z.shape):
        # e last; a candidate that is none stays 0.
        upper = np.append(c[b] != 0, np.inf)
        rows = np.stack([np.append(c[b], 1.0), np.append(c[b], -1.0)])
        found = scipy.optimize.milp(
            aim,
            integrality=np.append(np.ones(c.shape[1]), 0),
            bounds=scipy.optimize.Bounds(0, upper),
            constraints=scipy.optimize.LinearConstraint(
                rows, [z[b, t], -np.inf], [np.inf, z[b, t]]
            ),
            options={"time_limit": float(seconds), "mip_rel_gap": 0.0},
        )
        late += found.status != 0
        if found.x is not None:  # or there was time for no sum but the empty one
            kept[b, t] = found.x[:-1] > 0.5
    if late:
        warnings.warn(
            f"seconds={seconds}: of {late} of {z.size} targets the nearest sum was not "
            "found, or not known to be, in that time",
            stacklevel=2,
        )
    return kept
