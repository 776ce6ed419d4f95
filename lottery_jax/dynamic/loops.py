"""An optimizer with a rule, for loops of one's own."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lottery_jax import errors, keys, masks, transforms
from lottery_jax.dynamic.rules import MaskUpdate, act, check
from lottery_jax.optimizers.updates import update_with
from lottery_jax.types import Array, Key, Mask, Params, PyTree


class MaskedState(NamedTuple):
    """State of `masked`.

    Attributes:
      inner: state of the optimizer.
      mask: the mask so far, bool.
      step: updates so far, int32 `[]`.
      key: what the rule draws from; None if it draws nothing.
    """

    inner: PyTree
    mask: Mask
    step: Array
    key: Key | None


def masked(
    inner: optax.GradientTransformation,
    rule: MaskUpdate,
    *,
    key: Key | None = None,
    steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer under a mask that a rule changes: `transforms.masked` for a rule.

    The gradients that come are those of the masked weights, for all weights: the loop masks
    nothing. At a step at which the rule acts it sees these weights and this gradient, as in
    the runner; the step is then made with the same gradient under the new mask, where the
    runner takes it anew at the weights that are left. Each update leads to weights that are
    0 off the mask.

    Between these steps it costs what a mask costs, also under `jax.vmap`: while no
    replica's step has come, no mask is computed.

    A rule that begins with a mask of its own makes it in `init`. The weights at that moment
    are the caller's: with `masks.apply(state.mask, params)` one begins as the runner does;
    else the first gradient is that of the dense network.

    Args:
      inner: the optimizer, not wrapped; or `transforms.straight_through(tx)`.
      rule: changes the mask.
      key: what the rule draws from, if it draws: a noise key, of each replica its own. It
        draws as in the runner.
      steps: how many steps are trained, for the check that the rule ends before; None if
        that is not known.

    Returns:
      A transformation whose state is a `MaskedState`.

    Raises:
      ValueError: no optimizer, a rule that does not fit (`check`), one that lets weights
        come back before the first update; in `init`: leaves that
        the rule cannot cut, a rule that draws and has no key, an optimizer that does not
        see the subnetwork alone; in `update`: no params.

    Example:
      >>> from lottery_jax.dynamic import gradual_magnitude
      >>> rule = gradual_magnitude(0.5, begin=0, end=4, every=2)
      >>> tx = masked(optax.adam(0.1), rule, steps=8)
      >>> params = {"kernel": jnp.arange(1.0, 9.0).reshape(2, 4)}
      >>> state = tx.init(params)
      >>> for _ in range(8):
      ...     updates, state = tx.update(params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> state.mask["kernel"].tolist()
      [[False, False, False, False], [True, True, True, True]]
    """
    errors.optimizer(inner)
    check(rule, steps=steps, tx=inner)
    tx = transforms.masked(inner)
    acting = rule.steps()
    if rule.grows and acting[:1] == [0]:
        must = (
            "1 or more in a loop of one's own: before the first update weights off the "
        )
        raise errors.wrong("rule.begin", rule.begin, must + "mask need not be 0")

    def init(params: Params) -> MaskedState:
        check(rule, params)
        own = None if key is None else keys.check("key", key)
        mask = masks.ones_like(params)
        if acting and own is None:
            # A rule that draws says so itself, here and not at its first step.
            draw: Any = functools.partial(rule.update, *(None,))  # type: ignore[arg-type]
            jax.eval_shape(draw, jnp.int32(0), params, params, mask)
        if rule.start is not None:
            drawn: Any = None if own is None else keys.noise_keys(own).rule_start
            mask = rule.start(drawn, params, mask)
        return MaskedState(tx.init(params), mask, jnp.int32(0), own)

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("dynamic.masked: pass params to update")
        mask, opt_state = state.mask, state.inner
        if acting:
            due = _is_due(state.step, rule)

            def change(mask: Mask, opt_state: PyTree) -> tuple[Mask, PyTree]:
                drawn = _drawn(state.key, state.step)
                _, *new = act(
                    *(rule.update, inner, drawn, state.step, params, updates),
                    *(mask, opt_state),
                )
                own = mask, opt_state
                return jax.tree.map(lambda n, o: jnp.where(due, n, o), tuple(new), own)

            # A loop of one round or none: its state stays in place, and a branch copies it.
            _, mask, opt_state = jax.lax.while_loop(
                lambda carry: carry[0],
                lambda carry: (jnp.zeros_like(carry[0]), *change(*carry[1:])),
                (_any(due), mask, opt_state),
            )
        extra["mask"] = mask
        updates, opt_state = update_with(tx, updates, opt_state, params, extra)
        return updates, MaskedState(opt_state, mask, state.step + 1, state.key)

    return optax.GradientTransformationExtraArgs(init, update)


def _drawn(key: Key | None, step: Array) -> Any:
    """What a rule draws from at a step, as in the runner."""
    return None if key is None else jax.random.fold_in(keys.noise_keys(key).rule, step)


def _is_due(step: Array, rule: MaskUpdate) -> Array:
    """Whether a rule acts after so many updates, bool `[]`."""
    within = (step >= rule.begin) & (step <= rule.end)
    return within & (step % rule.every == 0)


@jax.custom_batching.custom_vmap
def _any(due: Array) -> Array:
    """Whether any replica under `vmap` is due: one bool for all, so a real branch."""
    return due


@_any.def_vmap
def _(axis_size: int, in_batched: list[bool], due: Array) -> tuple[Array, bool]:
    return _any(jnp.any(due) if in_batched[0] else due), False
