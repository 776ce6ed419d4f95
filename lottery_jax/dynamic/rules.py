"""Rules that change a mask during training, between its compiled segments.

`training.train(..., rule=gradual_magnitude(...))` trains, prunes, goes on and resumes over
all replicas. A rule sees weights, the dense gradient of the step that comes next, the mask
and the optimizer's state, and returns a new mask and a state. The runner then clears what
the state holds of weights off the new mask; in a loop of one's own `transforms.mask_state`
does.
"""

from typing import NamedTuple, Protocol

import jax.numpy as jnp

from lottery_jax import masks, prune, schedules, scores
from lottery_jax.masks import Patterns, PrunableLike
from lottery_jax.types import Array, Key, Mask, Params, PyTree


class UpdateMask(Protocol):
    """Changes the mask between compiled segments of training."""

    def __call__(
        self,
        key: Key,
        step: Array,
        params: Params,
        gradients: Params,
        mask: Mask,
        opt_state: PyTree,
        /,
    ) -> tuple[Mask, PyTree]: ...


class MaskUpdate(NamedTuple):
    """A rule and the steps at which it acts.

    Attributes:
      update: the rule.
      every: it acts at multiples of this step that are at least `begin` ...
      begin: ...
      end: ... and at most `end`.
    """

    update: UpdateMask
    every: int
    begin: int
    end: int

    def steps(self) -> list[int]:
        """The steps at which the rule acts."""
        first = -(-self.begin // self.every) * self.every
        return list(range(first, self.end + 1, self.every))


def gradual_magnitude(
    final_density: float,
    begin: int,
    end: int,
    every: int = 100,
    *,
    initial_density: float = 1.0,
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> MaskUpdate:
    """Gradual magnitude pruning: the baseline that prunes within one training run.

    At every `every` steps the smallest weights go, until the density of the cubic
    schedule is reached. Masks are nested.

    Args:
      final_density: in (0, 1).
      begin: first step of the schedule.
      end: step at which the final density is reached; a multiple of `every`.
      every: steps between updates.
      initial_density: in (0, 1].
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.

    References:
      Zhu and Gupta 2017, section 3; the baseline of Gale et al. 2019.
    """
    if every < 1 or end % every:
        raise ValueError(
            f"end={end} must be a multiple of every={every}, which is 1 or more"
        )
    schedules.cubic(begin, begin, end, final_density, initial_density)  # validates

    def update(key, step, params, gradients, mask, opt_state):
        target = schedules.cubic(step, begin, end, final_density, initial_density)
        total = masks.total(mask, prunable)
        last = masks.exact_round(masks.exact(final_density) * total)
        # Between updates float32 is good enough; the last count is exact.
        keep = jnp.where(step >= end, last, jnp.round(target * total).astype(jnp.int32))
        mask = prune.global_topk(
            scores.magnitude(params),
            mask,
            keep=keep,
            prunable=prunable,
            exclude=exclude,
        )
        return mask, opt_state

    return MaskUpdate(update, every, begin, end)
