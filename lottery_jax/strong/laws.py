"""Laws that random networks are drawn from, and how many neurons a construction needs.

Every law is symmetric about 0; draws are float32, and the same bits under every setting of
JAX.
"""

import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lottery_jax import errors
from lottery_jax.keys import settled
from lottery_jax.strong import choices
from lottery_jax.types import Array, Key


class Law(Protocol):
    """A symmetric law of single weights."""

    def draw(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Independent weights, float32."""
        ...


class Uniform(NamedTuple):
    """U[-1, 1], the law of Malach et al. and of Pensia et al."""

    @settled
    def draw(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Independent weights, float32."""
        return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)


class Hyperbolic(NamedTuple):
    """|w| has a density proportional to 1 / |w| on [low, high]; Orseau et al. 2020.

    Attributes:
      low: above 0.
      high: above low.
    """

    low: float
    high: float

    @settled
    def draw(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Independent weights, float32.

        Raises:
          ValueError: bounds that are no rising positive numbers.
        """
        if not 0 < self.low < self.high < math.inf:
            raise errors.wrong("law", self, "0 < low < high, both finite")
        of_size, of_sign = jax.random.split(key)
        ends = math.log(self.low), math.log(self.high)
        size = jnp.exp(jax.random.uniform(of_size, shape, jnp.float32, *ends))
        return jnp.where(jax.random.bernoulli(of_sign, 0.5, shape), size, -size)


def hyperbolic(eps: float) -> Hyperbolic:
    """The law whose products of two fill the intervals of `choices.golden`.

    The intervals reach from g^(K+1) to g, in logarithms a length D = K log(1/g). Both
    factors are drawn with logarithms in an interval of length D, so that the density of
    their product's is a triangle over 2 D; the intervals are its middle half, in which it is
    at least half of its peak: a product falls into a given one with probability 1 / (2 K) or
    more.

    Args:
      eps: in (0, 1).

    Raises:
      ValueError: eps outside of (0, 1).
    """
    steps = choices.golden_steps(eps)
    # Middle of the intervals: g^(1 + K / 2), split evenly between the factors.
    middle, half = (1 + steps / 2) / 2, steps / 2
    return Hyperbolic(
        choices.GOLDEN ** (middle + half), choices.GOLDEN ** (middle - half)
    )


# --- how many -------------------------------------------------------------------------

# P(the error of a weight of 1 exceeds eps) = exp(_AT + _PER_EPS ln(1/eps) - _PER m): m
# neurons of U[-1, 1], fitted to 32,768 draws each of m = 32 ... 64, eps = 0.1 ... 0.0001,
# 20 candidates compared. What fails is mostly reach: too few large ones of one sign.
_AT, _PER_EPS, _PER = 1.25, 0.2, 0.13


def neurons(method: str, eps: float, weights: int, delta: float = 0.05) -> int:
    """Hidden neurons per input that bring every weight within eps.

    With this many, all of some weights anywhere in [-1, 1] are within eps with a
    probability of 1 - delta. From a union bound over weights (and intervals); for
    `subset_sums` with a constant that is fitted. Weights well inside of [-1, 1] need
    fewer.

    Args:
      method: "single" (of order 1/eps^2 for weights at the ends of [-1, 1], 1/eps inside),
        "golden" (log(1/eps)), each times log(weights / delta), "subset_sums" or
        "programme" (log(1/eps) plus log(weights / delta)).
      eps: in (0, 1).
      weights: of the target.
      delta: in (0, 1).

    Raises:
      ValueError: an unknown method, or a number out of range.
    """
    errors.one_of("method", method, ("single", "golden", "subset_sums", "programme"))
    errors.share("eps", eps)
    errors.share("delta", delta)
    blocks = 2 * errors.whole("weights", weights, 1)  # of both signs
    if method in ("subset_sums", "programme"):
        rare = math.log(blocks / delta) + _AT + _PER_EPS * math.log(1 / eps)
        return math.ceil(rare / _PER)
    if method == "single":
        # Half of the neurons have the sign; |a| b lies within eps of 1, at the end of its
        # range, with this probability.
        hit, needs = (eps + (1 - eps) * math.log1p(-eps)) / 4, 1
    else:
        needs = choices.golden_steps(eps)
        hit = 1 / (8 * needs)
    return math.ceil(math.log(needs * blocks / delta) / -math.log1p(-hit))


def compared(eps: float | None) -> int:
    """Candidates of which all subsets are to be compared: log2(1/eps) and six, or 20.

    Args:
      eps: the error that is wanted; None where none is.
    """
    if eps is None:
        return 20
    errors.share("eps", eps)
    return min(choices.MOST, max(20, 6 + math.ceil(math.log2(1 / eps))))
