"""Optax transformations that keep a mask.

`masked(tx)` is what to wrap around an optimizer: gradients and weights are masked before
it (so that norms, moments and trust ratios see the subnetwork alone) and its update is
corrected after it, so that `params + update` is exactly 0 off the mask, whatever the
optimizer does (momentum, weight decay, Adam, clipping). `keep_masked` is the last step
alone, for a chain of one's own.

The mask is an argument of `update`, so that a compiled step serves all masks:

    tx = lj.transforms.masked(optax.adam(1e-3))
    updates, opt_state = tx.update(gradients, opt_state, params, mask=mask)

or bound once, for loops that cannot pass it: `masked(tx, mask)`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from lottery_jax import masks, trees
from lottery_jax.types import Array, Mask, PyTree

Anchor = Literal["zero", "frozen"]


def keep_masked(
    mask: Mask | None = None, anchor: Anchor = "zero"
) -> optax.GradientTransformationExtraArgs:
    """Pins the weights off the mask; to be the last transformation of a chain.

    Args:
      mask: the mask, or None if it is passed to `update` as `mask=`.
      anchor: "zero" makes the update off the mask `-params`, so that the weight is
        exactly 0 after it (an infinite or nan weight would stay nan: apply the mask
        once before training, as `training.start` does). "frozen" makes the update 0, so
        that the weight stays what it was; set such weights once, before training.

    Raises:
      ValueError: unknown anchor; in `update`: no mask, no params, a mask that does not
        fit.
    """
    if anchor not in ("zero", "frozen"):
        raise ValueError(f"anchor={anchor!r}; it must be 'zero' or 'frozen'")
    bound = mask

    def update(updates, state, params=None, *, mask=None, **_):
        mask = _one_mask(bound, mask)
        if params is None:
            raise ValueError("keep_masked: pass params to update")
        masks.check(mask, params)
        if anchor == "zero":
            # -p, not 0 - p: p + (-p) is exactly 0 in every dtype.
            pinned = jax.tree.map(
                lambda m, u, p: jnp.where(m, u, -p), mask, updates, params
            )
        else:
            pinned = jax.tree.map(
                lambda m, u: jnp.where(m, u, jnp.zeros_like(u)), mask, updates
            )
        return pinned, state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def masked(
    inner: optax.GradientTransformation,
    mask: Mask | None = None,
    anchor: Anchor = "zero",
) -> optax.GradientTransformationExtraArgs:
    """Wraps any optimizer so that it trains the subnetwork and nothing else.

    Not `optax.masked`: that one chooses whole leaves that are transformed at all.

    Args:
      inner: the optimizer.
      mask: the mask, or None if it is passed to `update` as `mask=`.
      anchor: see `keep_masked`.

    Returns:
      A transformation with the state of `inner`.

    Example:
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> mask = {"kernel": jnp.array([[True, False], [True, True]])}
      >>> tx = masked(optax.sgd(0.5, momentum=0.9))
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params, mask=mask)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[0.5, 0.0], [1.5, 2.0]]
    """
    inner = optax.with_extra_args_support(inner)
    last = keep_masked(anchor=anchor)
    bound = mask

    def update(updates, state, params=None, *, mask=None, **extra):
        mask = _one_mask(bound, mask)
        if params is None:
            raise ValueError("masked: pass params to update")
        # Decay and trust ratios read the weights: what is frozen off the mask is no
        # part of the subnetwork.
        seen = masks.apply(mask, params)
        updates, state = inner.update(masks.apply(mask, updates), state, seen, **extra)
        return last.update(updates, optax.EmptyState(), params, mask=mask)[0], state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _one_mask(bound: Mask | None, passed: Mask | None) -> Mask:
    if (bound is None) == (passed is None):
        raise ValueError(
            "pass a mask either when building the transformation or to update"
        )
    return passed if bound is None else bound


# --- the state of an optimizer --------------------------------------------------------


def mask_state(opt_state: PyTree, mask: Mask) -> PyTree:
    """Sets moments off the mask to 0, in every part of the state shaped like params."""

    def like_params(node: PyTree) -> bool:
        return trees.same_structure(node, mask)

    def zero(node: PyTree) -> PyTree:
        if not like_params(node):
            return node
        # Factored moments have params' structure and other shapes: left alone.
        return jax.tree.map(
            lambda m, x: (
                jnp.where(m, x, jnp.zeros_like(x)) if m.shape == x.shape else x
            ),
            mask,
            node,
        )

    if trees.same_structure(mask, 0):  # params are one array: match by shape
        return jax.tree.map(zero, opt_state)
    return jax.tree.map(zero, opt_state, is_leaf=like_params)


def at_schedule_step(opt_state: PyTree, step: Array | int) -> PyTree:
    """Moves every learning-rate schedule of a state to `step`.

    A level starts with fresh moments and with the schedule where it was at the rewind
    step; in optax both are state, so the counters of the schedules are set and those of
    the moments (Adam's bias correction) are not.

    Args:
      opt_state: state of any optax chain.
      step: int, may be traced.
    """

    def is_schedule(node: PyTree) -> bool:
        return isinstance(
            node, optax.ScaleByScheduleState | optax.InjectStatefulHyperparamsState
        )

    def move(node: PyTree) -> PyTree:
        if not is_schedule(node):
            return node
        count = jnp.asarray(step, node.count.dtype)
        node = node._replace(count=jnp.broadcast_to(count, node.count.shape))
        if isinstance(node, optax.InjectStatefulHyperparamsState):
            states = jax.tree.map(
                lambda c: jnp.broadcast_to(count, c.shape), node.hyperparams_states
            )
            inner = at_schedule_step(node.inner_state, step)
            node = node._replace(hyperparams_states=states, inner_state=inner)
        return node

    return jax.tree.map(move, opt_state, is_leaf=is_schedule)
