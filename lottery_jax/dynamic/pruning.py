"""Rules that take weights away: by magnitude or at random, gradually, once or again.

Counts are exact at every step: what each density of a schedule means in weights, or in
groups, is worked out in whole numbers when the rule is first used on a tree.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, masks, prune, schedules, scores
from lottery_jax.dynamic.rules import (
    MaskUpdate,
    StartMask,
    drawn_from,
    index_of,
    with_leaves,
)
from lottery_jax.granularity import Granularity, NofM
from lottery_jax.masks import Patterns, PrunableLike
from lottery_jax.prune import Scope
from lottery_jax.types import Array, Key, Mask, Params, PyTree, Scores


class Cut(NamedTuple):
    """How a density is reached: the options of `prune.to_density`.

    Attributes:
      scope: ranked over all layers, or shared out among them first.
      granularity: what lives and dies together.
      prunable: which leaves count; None for those of the task, or of `masks.prunable`.
      exclude: patterns of leaves that count and are never cut; () for those of the task.
    """

    scope: Scope = "global"
    granularity: Granularity = None
    prunable: PrunableLike = None
    exclude: Patterns = ()

    @property
    def is_open(self) -> bool:
        """Whether the leaves are those of the task, or some of what is said of them."""
        return self.prunable is None or not self.exclude

    def on(self, prunable: PrunableLike, exclude: Patterns) -> "Cut":
        """What is not said here is as in a task.

        Args:
          prunable: which leaves count there.
          exclude: which of them are never cut there.
        """
        if self.prunable is not None:
            prunable = self.prunable
        return self._replace(prunable=prunable, exclude=self.exclude or exclude)


def gradual_magnitude(
    final_density: float,
    begin: int,
    end: int,
    every: int = 100,
    *,
    initial_density: float = 1.0,
    scope: Scope = "global",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> MaskUpdate:
    """Gradual magnitude pruning: the baseline that prunes within one training run.

    At every `every` steps the smallest weights go, until the density of the cubic
    schedule is reached. Masks are nested, but under `transforms.straight_through`.

    Args:
      final_density: in (0, 1).
      begin: first step of the schedule.
      end: step at which the final density is reached; a multiple of `every`.
      every: steps between updates.
      initial_density: in (0, 1].
      scope: see `prune.to_density`.
      granularity: what lives and dies together. Of n of m more are kept until the end.
      prunable: which leaves count; None for those of the task, or of `masks.prunable`.
      exclude: patterns of leaves that count and are never cut; () for those of the task.

    Raises:
      ValueError: steps or densities that make no schedule; names them.

    Example:
      >>> gradual_magnitude(0.1, begin=100, end=500).steps()
      [100, 200, 300, 400, 500]
      >>> from lottery_jax.granularity import NofM
      >>> rule = gradual_magnitude(0.5, 0, 500, granularity=NofM(2, 4), exclude="head")

    References:
      Zhu and Gupta 2017, section 3; the baseline of Gale et al. 2019.
    """
    cut = Cut(scope, granularity, prunable, exclude)
    times = _cubic(final_density, initial_density, begin, end, every)
    return _pruning(_magnitude, times, cut)


def gradual_random(
    final_density: float,
    begin: int,
    end: int,
    every: int = 100,
    *,
    initial_density: float = 1.0,
    scope: Scope = "global",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> MaskUpdate:
    """Gradual pruning at random: the control of `gradual_magnitude`.

    Args:
      final_density: in (0, 1).
      begin: first step of the schedule.
      end: step at which the final density is reached; a multiple of `every`.
      every: steps between updates.
      initial_density: in (0, 1].
      scope: see `prune.to_density`.
      granularity: what lives and dies together. Of n of m more are kept until the end.
      prunable: which leaves count; None for those of the task, or of `masks.prunable`.
      exclude: patterns of leaves that count and are never cut; () for those of the task.

    Raises:
      ValueError: steps or densities that make no schedule; names them.

    References:
      Gale et al. 2019, section 3 (random pruning).
    """
    cut = Cut(scope, granularity, prunable, exclude)
    times = _cubic(final_density, initial_density, begin, end, every)
    return _pruning(_random, times, cut)


def gradual_saliency(
    final_density: float,
    begin: int,
    end: int,
    every: int = 100,
    *,
    initial_density: float = 1.0,
    scope: Scope = "global",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> MaskUpdate:
    """Gradual pruning by `|w g|`, of the gradient of the step at which it acts.

    Args:
      final_density: in (0, 1).
      begin: first step of the schedule.
      end: step at which the final density is reached; a multiple of `every`.
      every: steps between updates.
      initial_density: in (0, 1].
      scope: see `prune.to_density`.
      granularity: what lives and dies together. Of n of m more are kept until the end.
      prunable: which leaves count; None for those of the task, or of `masks.prunable`.
      exclude: patterns of leaves that count and are never cut; () for those of the task.

    Raises:
      ValueError: steps or densities that make no schedule; names them.

    References:
      Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, equation 8.
    """
    cut = Cut(scope, granularity, prunable, exclude)
    times = _cubic(final_density, initial_density, begin, end, every)
    return _pruning(_saliency, times, cut)


def one_shot_magnitude(
    density: float,
    step: int,
    *,
    scope: Scope = "global",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> MaskUpdate:
    """Prunes once, at one step; what is left trains on.

    Args:
      density: in (0, 1).
      step: before which the smallest weights go.
      scope: see `prune.to_density`.
      granularity: what lives and dies together.
      prunable: which leaves count; None for those of the task, or of `masks.prunable`.
      exclude: patterns of leaves that count and are never cut; () for those of the task.

    Raises:
      ValueError: no density, or no step.
    """
    errors.whole("step", step, 0)
    times = _constant(density, step, step, max(1, step))
    return _pruning(_magnitude, times, Cut(scope, granularity, prunable, exclude))


def periodic_magnitude(
    density: float,
    begin: int,
    end: int,
    every: int = 100,
    *,
    scope: Scope = "global",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> MaskUpdate:
    """Keeps the largest weights, again and again: for `transforms.straight_through`.

    There the mask follows the dense weights. Under any other optimizer weights off the
    mask are 0, so that what is done first stays.

    Args:
      density: in (0, 1).
      begin: first step at which it may act.
      end: last one.
      every: it acts at multiples of this.
      scope: see `prune.to_density`.
      granularity: what lives and dies together.
      prunable: which leaves count; None for those of the task, or of `masks.prunable`.
      exclude: patterns of leaves that count and are never cut; () for those of the task.

    Raises:
      ValueError: no density, or no step at which it acts.

    Example:
      >>> import optax
      >>> from lottery_jax import dynamic, transforms
      >>> rule = periodic_magnitude(0.1, begin=0, end=900)
      >>> tx = dynamic.masked(transforms.straight_through(optax.adam(1e-3)), rule)
    """
    times = _constant(density, begin, end, every)
    return _pruning(_magnitude, times, Cut(scope, granularity, prunable, exclude))


def static_sparse(
    density: float,
    *,
    scope: Scope = "erk",
    granularity: Granularity = None,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> MaskUpdate:
    """A random mask from the start that never changes: what SET and RigL must beat.

    Args:
      density: in (0, 1).
      scope: "erk" or "uniform" share the weights out among the layers; "global" draws
        from all at once. n of m has the same density everywhere, so "uniform" there.
      granularity: what lives and dies together.
      prunable: which leaves count; None for those of the task, or of `masks.prunable`.
      exclude: patterns of leaves that count and are never cut; () for those of the task.

    Raises:
      ValueError: no density.

    Example:
      >>> import lottery_jax as lj
      >>> params = {"kernel": jnp.ones((4, 8))}
      >>> rule = static_sparse(0.25, scope="uniform")
      >>> mask = rule.start(lj.keys.of_seed(0), params, masks.ones_like(params))
      >>> int(masks.count(mask))
      8

    References:
      Evci et al. 2020, section 4 ("Static").
    """
    return _static(density, Cut(scope, granularity, prunable, exclude))


def _static(density: float, cut: Cut) -> MaskUpdate:
    start = random_start("static_sparse", density, cut)

    def on(*, prunable: PrunableLike, exclude: Patterns) -> MaskUpdate:
        return _static(density, cut.on(prunable, exclude))

    rule = MaskUpdate(_unchanged, 1, 1, 0, start)
    return with_leaves(rule, on) if cut.is_open else rule


def _unchanged(
    key: Key, step: Array, params: Params, gradients: Params, mask: Mask
) -> Mask:
    return mask


def random_start(rule: str, density: float, cut: Cut) -> StartMask:
    """Random masks of a density.

    Args:
      rule: who starts with one, for messages.
      density: in (0, 1).
      cut: how it is reached.

    Raises:
      ValueError: no density.
    """
    errors.share("density", density)

    def start(key: Key, params: Params, mask: Mask) -> Mask:
        drawn = scores.random(drawn_from(key, rule), params)
        return prune.to_density(drawn, mask, density, **cut._asdict())

    return start


# --- schedules and what they count ----------------------------------------------------


class _Times(NamedTuple):
    """When a rule acts, and the density that it leaves at each of its steps."""

    every: int
    begin: int
    end: int
    densities: tuple[Fraction, ...]


def _cubic(final: float, initial: float, begin: int, end: int, every: int) -> _Times:
    every = errors.whole("every", every, 1)
    if errors.whole("end", end, 0) % every:
        raise ValueError(
            f"end={end} must be a multiple of every={every}, which is 1 or more"
        )
    schedules.cubic(begin, begin, end, final, initial)  # validates
    first, last = masks.exact(initial), masks.exact(final)
    steps = _acting(begin, end, every)
    left = [1 - Fraction(max(0, step - begin), end - begin) for step in steps]
    densities = tuple(last + (first - last) * x**3 for x in left)
    return _Times(every, begin, end, densities)


def _constant(density: float, begin: int, end: int, every: int) -> _Times:
    errors.share("density", density)
    every = errors.whole("every", every, 1)
    begin, end = errors.whole("begin", begin, 0), errors.whole("end", end, 0)
    steps = _acting(begin, end, every)
    return _Times(every, begin, end, (masks.exact(density),) * len(steps))


def _acting(begin: int, end: int, every: int) -> list[int]:
    steps = MaskUpdate(_unchanged, every, begin, end).steps()
    if not steps:
        raise ValueError(
            f"every={every}, begin={begin}, end={end}; there must be a multiple of every "
            "from begin to end: it would never act"
        )
    return steps


def _magnitude(key: Key, params: Params, gradients: Params) -> Scores:
    return scores.magnitude(params)


def _saliency(key: Key, params: Params, gradients: Params) -> Scores:
    return scores.taylor(params, gradients)


def _random(key: Key, params: Params, gradients: Params) -> Scores:
    return scores.random(drawn_from(key, "gradual_random"), params)


def _pruning(
    score: Callable[[Key, Params, Params], Scores], times: _Times, cut: Cut
) -> MaskUpdate:
    """A rule that keeps what scores highest, as much as its schedule leaves."""

    def update(
        key: Key, step: Array, params: Params, gradients: Params, mask: Mask
    ) -> Mask:
        table = jnp.asarray(_counts(mask, times.densities, cut))
        counts = table[index_of(step, times.every, times.begin)]
        return prune.to_counts(
            score(key, params, gradients), mask, counts, **cut._asdict()
        )

    def on(*, prunable: PrunableLike, exclude: Patterns) -> MaskUpdate:
        return _pruning(score, times, cut.on(prunable, exclude))

    rule = MaskUpdate(update, times.every, times.begin, times.end)
    return with_leaves(rule, on) if cut.is_open else rule


def _counts(tree: PyTree, densities: Sequence[Fraction], cut: Cut) -> np.ndarray:
    """What is kept at each density, int32 `[steps, counts]`."""
    options = cut._asdict()
    last = prune.keep_counts(tree, densities[-1], **options)  # or it raises
    rows: list[tuple[int, ...]]
    if isinstance(cut.granularity, NofM):
        m = cut.granularity.m
        rows = [(max(last[0], math.ceil(d * m)),) for d in densities]
    else:
        rows = [prune.keep_counts(tree, d, **options) for d in densities[:-1]]
        rows.append(last)
    # Shares that are rounded may go up by one in a layer where the density goes down.
    return np.maximum.accumulate(np.array(rows, np.int32)[::-1])[::-1].copy()
