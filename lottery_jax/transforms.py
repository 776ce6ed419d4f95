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

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import errors, masks, trees
from lottery_jax.optimizers import settings
from lottery_jax.optimizers.clocks import clocks
from lottery_jax.optimizers.names import name_of
from lottery_jax.optimizers.settings import is_traced
from lottery_jax.optimizers.states import holds_weights, places
from lottery_jax.optimizers.trials import mixes, verdict
from lottery_jax.optimizers.updates import kept_part, masked_update, update_with
from lottery_jax.types import Array, Mask, Params, PyTree

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
      A transformation with the state of `inner`. Where `init` keeps values of weights (as
      `optax.contrib.dog` does) and does not know the mask, the state also says whether
      the first update has come, which then begins from masked weights.

      What goes to `update` by name is masked as gradients and weights are: trees like
      params, and functions of weights (`value_fn`, `grad_fn`, ...).

    Raises:
      ValueError: unknown anchor; in `init` and `update`: an optimizer that does not move
        the surviving weights as if there were no others, see `check`; in `update`: no
        mask, no params, a mask that does not fit, params that are no tree like the
        gradients.

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
    if settings.through(inner) is not None:
        if anchor != "zero":
            must = (
                "'zero' for straight_through(tx), which trains the weights off the mask"
            )
            raise errors.wrong("anchor", repr(anchor), must)
        return inner if mask is None else _bound(inner, mask)

    def init(params):
        check(inner, params)
        if bound is not None:
            return inner.init(masks.apply(bound, params))
        state = inner.init(params)
        if any(holds_weights(inner, trees.shapes_of(params))):
            return FromDense(state, jnp.asarray(False))
        return state

    def update(updates, state, params=None, *, mask=None, **extra):
        mask = _one_mask(bound, mask)
        if params is None:
            raise ValueError("masked: pass params to update")
        if not trees.same_structure(updates, params):
            raise ValueError(
                "masked: gradients and params differ in structure, as they do in "
                "optax.lookahead, whose params are two networks. Mask the optimizer "
                "inside, and start from masked weights: optax.lookahead(masked(optimizer, "
                "mask), sync_period, slow_step_size)"
            )
        masks.check(mask, params)
        masks.check(mask, updates, "gradients")
        check(inner, params)
        begun = _begun(inner, state, params, mask)
        updates, new = masked_update(inner, mask, updates, begun, params, extra)
        if isinstance(state, FromDense):
            new = FromDense(new, jnp.ones_like(state.begun))
        return last.update(updates, optax.EmptyState(), params, mask=mask)[0], new

    init.inner = inner  # type: ignore[attr-defined]
    return optax.GradientTransformationExtraArgs(init, update)


def _bound(
    tx: optax.GradientTransformationExtraArgs, mask: Mask
) -> optax.GradientTransformationExtraArgs:
    """A transformation that takes a mask, with one that it keeps."""

    def update(updates, state, params=None, **extra):
        _one_mask(mask, extra.pop("mask", None))
        return tx.update(updates, state, params, mask=mask, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


class FromDense(NamedTuple):
    """State of `masked` where `init` kept weights and did not know the mask.

    Attributes:
      inner: state of the optimizer.
      begun: whether the first update has come, bool `[]`.
    """

    inner: PyTree
    begun: Array


def _begun(
    inner: optax.GradientTransformation, state: PyTree, params: Params, mask: Mask
) -> PyTree:
    """The state of the optimizer; before the first update, as from masked weights."""
    if not isinstance(state, FromDense):
        return state
    held = holds_weights(inner, trees.shapes_of(params))
    old, structure = jax.tree.flatten(state.inner)

    def begin() -> list[Array]:
        new = jax.tree.leaves(inner.init(kept_part(mask, params)))
        return [x for x, own in zip(new, held) if own]

    stay = [x for x, own in zip(old, held) if own]
    chosen = iter(jax.lax.cond(state.begun, lambda: stay, begin))
    return jax.tree.unflatten(
        structure, [next(chosen) if own else x for x, own in zip(old, held)]
    )


def _one_mask(bound: Mask | None, passed: Mask | None) -> Mask:
    if (bound is None) == (passed is None):
        raise ValueError(
            "pass a mask either when building the transformation or to update"
        )
    return passed if bound is None else bound


# --- weights that go on training off the mask -----------------------------------------


class StraightThrough(NamedTuple):
    """State of `straight_through`.

    Attributes:
      inner: state of the optimizer.
      dense: all weights, as the optimizer has moved them.
    """

    inner: PyTree
    dense: Params


def straight_through(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Trains all weights by the gradient at the masked ones: the straight-through estimate.

    The network that is trained and evaluated is masked, so its weights off the mask are
    exactly 0; the gradient there, taken as if the mask were the identity, moves the dense
    weights, which lie in the state. A weight off the mask goes on training and may come
    back. With `dynamic.periodic_magnitude` or `gradual_magnitude`, which then choose among
    all weights, this is magnitude pruning by straight-through estimates.

    It goes where any optimizer does: into `training.train`, `masked`, `dynamic.masked`. The
    mask is passed to `update` as `mask=`.

    Args:
      inner: the optimizer; any one, for it sees the dense weights.

    Returns:
      A transformation whose updates lead from masked weights to masked weights, equal to
      `masks.apply(mask, state.dense)` up to a rounding of each sum.

    Raises:
      ValueError: in `update`: no mask, no params, a mask that does not fit.

    Example:
      >>> tx = straight_through(optax.sgd(0.5))
      >>> params = {"kernel": jnp.array([[0.0, 2.0]])}
      >>> mask = {"kernel": jnp.array([[False, True]])}
      >>> gradients, state = {"kernel": jnp.ones((1, 2))}, tx.init(params)
      >>> updates, state = tx.update(gradients, state, params, mask=mask)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[0.0, 1.5]]
      >>> state.dense["kernel"].tolist()
      [[-0.5, 1.5]]

    References:
      Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013;
      Lin et al., Dynamic Model Pruning with Feedback, 2020, section 3.
    """
    errors.optimizer(inner)
    wide = optax.with_extra_args_support(inner)

    def init(params):
        # Copies: a loop may donate both weights and state, and no buffer twice.
        return StraightThrough(wide.init(params), jax.tree.map(jnp.array, params))

    def update(updates, state, params=None, *, mask=None, **extra):
        mask = _one_mask(None, mask)
        if params is None:
            raise ValueError("straight_through: pass params to update")
        masks.check(mask, params)

        def at_masked(thing):
            if not callable(thing):
                return thing
            return lambda weights, *args: thing(masks.apply(mask, weights), *args)

        extra = {name: at_masked(thing) for name, thing in extra.items()}
        moves, own = update_with(wide, updates, state.inner, state.dense, extra)
        dense = optax.apply_updates(state.dense, moves)
        # -p, not 0 - p: p + (-p) is exactly 0 in every dtype.
        between = jax.tree.map(
            lambda m, d, p: jnp.where(m, d - p, -p), mask, dense, params
        )
        return between, StraightThrough(own, dense)

    init.through = inner  # type: ignore[attr-defined]
    return optax.GradientTransformationExtraArgs(init, update)


def trains_all(tx: optax.GradientTransformation) -> bool:
    """Whether an optimizer trains weights off the mask too: `straight_through`."""
    return settings.through(_plain(tx)) is not None


def trained_weights(
    tx: optax.GradientTransformation, opt_state: PyTree, params: Params, mask: Mask
) -> tuple[Params, Mask]:
    """The weights that an optimizer moves, and which of them may live: what a rule sees.

    Args:
      tx: the optimizer.
      opt_state: its state.
      params: the weights of the network, masked.
      mask: the mask.

    Returns:
      `params` and `mask`; for `straight_through` the dense weights, of which all may.
    """
    if not trains_all(tx):
        return params, mask
    return opt_state.dense, masks.ones_like(mask)


def with_weights(
    tx: optax.GradientTransformation, opt_state: PyTree, params: Params, mask: Mask
) -> PyTree:
    """A state that was kept, for weights that need not be those it was kept with.

    Args:
      tx: the optimizer.
      opt_state: its state.
      params: the weights from now on.
      mask: the mask.

    Returns:
      The state; that of `straight_through`, whose next step leads from the weights in it
      and not from `params`, with these on the mask.
    """
    if not trains_all(tx):
        return opt_state
    dense = jax.tree.map(jnp.where, mask, params, opt_state.dense)
    return opt_state._replace(dense=dense)


def change_mask(
    tx: optax.GradientTransformation,
    opt_state: PyTree,
    params: Params,
    old: Mask,
    new: Mask,
) -> tuple[Params, PyTree]:
    """The weights and the state of an optimizer after a mask was changed.

    A weight that goes is 0 from now on, and so is what the state holds of it. One that
    comes begins at 0, with what a new state holds of such a weight: moments of zero, or
    what an optimizer begins them with.

    Args:
      tx: the optimizer.
      opt_state: its state.
      params: the weights under the old mask.
      old: the mask so far.
      new: the mask from now on.

    Returns:
      The weights under the new mask, and the state. Under `straight_through` weights come
      back with their dense values, and the state stays.

    Raises:
      ValueError: as `mask_state`; masks that do not fit.

    References:
      Evci et al., Rigging the Lottery, 2020, section 3 (what grows begins at zero).
    """
    tx = _plain(tx)
    masks.check(old, params)
    if trains_all(tx):
        return masks.apply(new, opt_state.dense), opt_state
    params = masks.apply(old, masks.apply(new, params))
    if isinstance(opt_state, FromDense):
        params, inner = change_mask(tx, opt_state.inner, params, old, new)
        return params, opt_state._replace(inner=inner)
    stays = jax.tree.map(lambda n, o: o | ~n, new, old)
    fresh = jax.tree.leaves(tx.init(params))
    state = mask_state(tx, opt_state, new)
    return params, _where(tx, "change_mask", stays, state, fresh)


# --- the state of an optimizer --------------------------------------------------------


def mask_state(
    tx: optax.GradientTransformation, opt_state: PyTree, mask: Mask
) -> PyTree:
    """Sets what a state holds of weights off the mask to 0: moments, memories, weights.

    Args:
      tx: the transformation that the state is of; whatever it is made of. That of
        `straight_through` stays, for it goes on training what is off the mask.
      opt_state: its state.
      mask: a new mask.

    Raises:
      ValueError: a part of the state mixes weights, such as factored moments; a state of
        another transformation or of other weights.
    """
    tx = _plain(tx)
    if trains_all(tx):
        return opt_state
    if isinstance(opt_state, FromDense):
        return opt_state._replace(inner=mask_state(tx, opt_state.inner, mask))
    leaves = jax.tree.leaves(opt_state)
    return _where(tx, "mask_state", mask, opt_state, map(jnp.zeros_like, leaves))


def _where(
    tx: optax.GradientTransformation,
    name: str,
    mask: Mask,
    opt_state: PyTree,
    other: Iterable[Array],
) -> PyTree:
    """A state on a mask, and the leaves of another one off it.

    What does not belong to weights stays.
    """
    found = _placed(tx, opt_state, trees.shapes_of(mask, jnp.float32))
    alive, leaves = jax.tree.leaves(mask), []
    for place, x, y in zip(found, jax.tree.leaves(opt_state), other):
        if place.kind == "mixed":
            raise ValueError(f"{name}: {mixes(tx, place, trees.paths(mask))}")
        if place.kind == "weights":
            x = jnp.where(alive[place.of[0]], x, y)
        elif place.kind == "flat":
            flat = jnp.concatenate([alive[i].reshape(-1) for i in place.of])
            x = jnp.where(flat, x, y)
        leaves.append(x)
    return jax.tree.unflatten(jax.tree.structure(opt_state), leaves)


def at_schedule_step(
    tx: optax.GradientTransformation,
    opt_state: PyTree,
    params: Params,
    step: Array | int,
    *,
    kept: bool = False,
) -> PyTree:
    """Moves all that counts steps in a state to where it stands after `step` updates.

    A level starts with fresh moments, and with its schedules where they were at the rewind
    step. The counters of `tx` itself are taken through `step` updates, in the units of
    whatever wraps it: after 42 updates `optax.MultiSteps` by 4 stands at update 10, in
    phase 2. Not moved is what belongs to moments: they themselves (the accumulator of
    MultiSteps begins empty), sums beside them, and counters that only say how old they
    are, as in Adam's bias correction.

    Args:
      tx: the transformation that the state is of.
      opt_state: its state, of one network.
      params: the weights, or their shapes.
      step: number of updates, int32 `[]`, may be traced.
      kept: the state is one that a run has left, not a new one: what follows from losses
        is in it.

    Raises:
      ValueError: for a new state, where step is known and not 0: counters that depend on
        losses, or may be an age or a position; see `check_reset`.
    """
    known = not isinstance(step, jax.core.Tracer) and np.ndim(step) == 0
    if known and int(step) == 0:
        return opt_state
    tx, shapes = _plain(tx), trees.shapes_of(params)
    if (inner := settings.through(tx)) is not None:
        own = at_schedule_step(inner, opt_state.inner, params, step, kept=kept)
        return opt_state._replace(inner=own)
    if isinstance(opt_state, FromDense):
        inner = at_schedule_step(tx, opt_state.inner, params, step, kept=kept)
        return opt_state._replace(inner=inner)
    if known and not kept:
        check_reset(tx, params)
    _placed(tx, opt_state, shapes)
    leaves, structure = jax.tree.flatten(opt_state)
    found = clocks(tx, shapes)
    if found.moved:
        there = found.after(step)
        for i in found.moved:
            leaves[i] = there[i]
    return jax.tree.unflatten(structure, leaves)


def check_reset(tx: optax.GradientTransformation, params: Params) -> None:
    """Raises a ValueError if a new state of an optimizer cannot stand at a later step.

    Args:
      tx: the transformation.
      params: the weights, or their shapes.

    Raises:
      ValueError: names what of the state cannot be known without the steps before.
    """
    tx = _plain(tx)
    tx = tx if (inner := settings.through(tx)) is None else inner
    if unknown := clocks(tx, trees.shapes_of(params)).unknown:
        raise ValueError(
            f"tx={name_of(tx)}; it must be one whose position follows from the step, for a "
            f"level or branch that starts with a new optimizer at a later step than 0: "
            f"{', '.join(unknown)} of its state "
            f"{'follows' if len(unknown) == 1 else 'follow'} from the losses before, or "
            "may be an age as well as a position. Keep the optimizer of the rewind step: "
            "level_optimizer='rewind'"
        )


def _plain(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """What `masked` wraps."""
    return getattr(tx.init, "inner", tx)


def _placed(
    tx: optax.GradientTransformation, opt_state: PyTree, shapes: PyTree
) -> tuple[Any, ...]:
    """What each leaf of a state belongs to."""
    found = places(tx, shapes)
    mine, leaves = [place.shape for place in found], jax.tree.leaves(opt_state)
    if mine != [jnp.shape(x) for x in leaves]:
        wrong = next(
            (
                f"{place.name} has shape {jnp.shape(x)}, not {place.shape}"
                for place, x in zip(found, leaves)
                if place.shape != jnp.shape(x)
            ),
            f"it has {len(leaves)} leaves, not {len(mine)}",
        )
        raise ValueError(
            f"opt_state: it must be a state of tx={name_of(tx)} for these weights, without "
            f"further axes; {wrong}"
        )
    return found


# --- what is right under a mask -------------------------------------------------------


def check(tx: optax.GradientTransformation, params: Params) -> None:
    """Raises a ValueError if an optimizer does not see the subnetwork alone.

    Found by trying, once for each optimizer: some steps on a tree like params, small and
    masked, against the same steps on the surviving weights alone, as vectors. Draws are
    taken to be the same for all weights. What takes means over whole leaves, or treats
    them as matrices, moves survivors otherwise than if there were no others.

    Args:
      tx: the optimizer, not wrapped by `masked`.
      params: the weights, or their shapes.

    Raises:
      ValueError: names the optimizer, and what would be right if that is known.
    """
    trees.check_arrays(params, "params")
    leaves, structure = jax.tree.flatten(trees.shapes_of(params))
    tx = _plain(tx)
    if trains_all(tx):
        return  # all weights are seen, and moved
    # Of values that are not known here it was tried where they are.
    if not leaves or is_traced(tx):
        return
    if (wrong := verdict(tx, structure, tuple(leaves))) is not None:
        raise ValueError(wrong)
