"""How many weights are left: per level of a chain, or per step of gradual pruning.

The level schedules return exact numbers of surviving weights, level 0 first, computed
with rationals on the host: `counts[l] / total` is the density at level l.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from lottery_jax import errors, masks
from lottery_jax.types import Array


def geometric(total: int, levels: int, fraction: float = 0.2) -> list[int]:
    """Removes a share of the *remaining* weights at each level (Frankle and Carbin 2019).

    Args:
      total: number of prunable weights.
      levels: number of prunings after level 0.
      fraction: share of the surviving weights removed at each level, in (0, 1).

    Returns:
      `levels + 1` counts; each removes `round(fraction * alive)`, half to even.

    Example:
      >>> geometric(1000, 3)
      [1000, 800, 640, 512]
    """
    _check(total, levels, fraction=fraction)
    counts = [total]
    for _ in range(levels):
        removed = masks.exact_round(masks.exact(fraction) * counts[-1])
        counts.append(counts[-1] - removed)
    return counts


def linear(total: int, levels: int, of_original: float = 0.1) -> list[int]:
    """Removes a share of the *original* weights at each level (BERT tickets, Chen 2020).

    Args:
      total: number of prunable weights.
      levels: number of prunings after level 0.
      of_original: share of the original weights removed at each level, in (0, 1).

    Raises:
      ValueError: the levels would remove everything.

    Example:
      >>> linear(1000, 3)
      [1000, 900, 800, 700]
    """
    _check(total, levels, of_original=of_original)
    if masks.exact(of_original) * levels >= 1:
        raise ValueError(
            f"levels={levels} with of_original={of_original} remove all weights; levels "
            f"can be at most {math.ceil(1 / masks.exact(of_original)) - 1}"
        )
    share = masks.exact(of_original)
    return [
        total - masks.exact_round(share * level * total) for level in range(levels + 1)
    ]


def one_shot(total: int, densities: Sequence[float]) -> list[int]:
    """The dense network, then each density, pruned from the dense network at once.

    Args:
      total: number of prunable weights.
      densities: one or several targets in (0, 1).

    Example:
      >>> one_shot(1000, [0.5, 0.1])
      [1000, 500, 100]
    """
    _check_total(total)
    for density in errors.several("densities", densities, "shares in (0, 1)"):
        errors.share("density", density)
    return [total] + [masks.exact_round(masks.exact(d) * total) for d in densities]


def levels_to(density: float, fraction: float = 0.2) -> int:
    """How many geometric levels it takes until the density is at most `density`.

    The `while` of iterative pruning: 99% sparsity at 20% per level takes 21 levels.

    Example:
      >>> levels_to(0.01)
      21
    """
    errors.at_least("density", density, 0)
    if not 0 < density <= 1:
        raise errors.wrong("density", density, "in (0, 1]")
    _check(1, 0, fraction=fraction)
    left, levels = masks.exact(1.0), 0
    while left > masks.exact(density):
        left, levels = left * (1 - masks.exact(fraction)), levels + 1
    return levels


def cubic(
    step: Array | int,
    begin: int,
    end: int,
    final_density: float,
    initial_density: float = 1.0,
) -> Array:
    """The density at a step of gradual pruning, float32; fast at first, then slower.

    `d_f + (d_i - d_f) (1 - t)^3` with t running from 0 at `begin` to 1 at `end`.

    Args:
      step: may be traced.
      begin: the first step of pruning.
      end: the step at which the final density is reached, after `begin`.
      final_density: in (0, 1).
      initial_density: in (0, 1].

    References:
      Zhu and Gupta, To prune, or not to prune, 2017, equation 1.
    """
    for field, given in (("begin", begin), ("end", end)):
        errors.whole(field, given, 0)
    for field, share in (
        ("final_density", final_density),
        ("initial_density", initial_density),
    ):
        errors.within(field, share, 0, 1)
    if not begin < end:
        raise ValueError(f"begin={begin}, end={end}; begin < end must hold")
    if not 0 < final_density < initial_density <= 1:
        raise ValueError(
            f"final_density={final_density}, initial_density={initial_density}; "
            "0 < final < initial <= 1 must hold"
        )
    passed = (jnp.asarray(step) - begin).astype(jnp.float32)
    t = jnp.clip(passed / (end - begin), 0.0, 1.0)
    return final_density + (initial_density - final_density) * (1.0 - t) ** 3


def _check(total: int, levels: int, **share: float) -> None:
    for field, value in share.items():
        errors.share(field, value)
    errors.whole("levels", levels, 0)
    _check_total(total)


def _check_total(total: int) -> None:
    errors.whole("total", total, 1, of="the prunable weights")
