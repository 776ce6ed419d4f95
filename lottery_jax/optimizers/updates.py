"""One update of an optimizer: with what it asks for, and as a subnetwork sees it."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lottery_jax import trees
from lottery_jax.types import Array, Mask, Params, PyTree


def update_with(
    tx: optax.GradientTransformation,
    updates: PyTree,
    state: PyTree,
    params: Params | None,
    extra: Mapping[str, Any],
) -> tuple[PyTree, PyTree]:
    """`tx.update` with those of some extra arguments that it takes.

    Args:
      tx: the transformation.
      updates: gradients.
      state: its state.
      params: weights.
      extra: arguments by name. Not all transformations that take some bear others.
    """
    tx, extra = optax.with_extra_args_support(tx), dict(extra)
    while True:
        try:
            return tx.update(updates, state, params, **extra)
        except TypeError as error:
            # "unexpected keyword argument 'value'", or a list of quoted names.
            surplus = set(re.findall(r"'(\w+)'", str(error))) & set(extra)
            if "nexpected keyword" not in str(error) or not surplus:
                raise
            for name in surplus:
                del extra[name]


def loss_arguments(
    loss: Callable[[Params], Array], value: Array, gradients: Params
) -> dict[str, Any]:
    """What optax's transformations ask for beside the gradients, by their names.

    Args:
      loss: of the weights, a scalar; of one step's batch and key.
      value: the loss at the weights.
      gradients: its gradients there.
    """
    return {
        "value": value,
        "grad": gradients,
        "value_fn": lambda params: loss(params),
        "obj_fn": lambda params: loss(params),
        "grad_fn": lambda params, *_: jax.grad(loss)(params),
    }


def masked_update(
    inner: optax.GradientTransformationExtraArgs,
    mask: Mask,
    updates: PyTree,
    state: PyTree,
    params: Params,
    extra: Mapping[str, Any],
) -> tuple[PyTree, PyTree]:
    """An update that sees the subnetwork alone; what it says off the mask is open.

    Args:
      inner: the optimizer.
      mask: fits the gradients and the weights.
      updates: gradients.
      state: of the optimizer.
      params: weights.
      extra: further arguments by name; trees like params, and functions of weights, are
        masked as well.
    """
    # Decay and trust ratios read the weights: what is frozen off the mask is no part of
    # the subnetwork.
    seen, kept = kept_part(mask, params), kept_part(mask, updates)
    extra = {
        name: kept if x is updates else seen_part(mask, x) for name, x in extra.items()
    }
    return inner.update(kept, state, seen, **extra)


def kept_part(mask: Mask, tree: PyTree) -> PyTree:
    """A tree like params, 0 off the mask; a mask that fits."""
    return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.zeros_like(x)), mask, tree)


def seen_part(mask: Mask, thing: Any) -> Any:
    """An argument of `update`, or what a function returned, as the subnetwork has it."""
    if callable(thing):

        @functools.wraps(thing)
        def of_subnetwork(params, *args, **kwargs):
            return seen_part(mask, thing(kept_part(mask, params), *args, **kwargs))

        return of_subnetwork
    if trees.same_structure(thing, mask):
        return jax.tree.map(
            lambda m, x: (
                jnp.where(m, x, jnp.zeros_like(x)) if jnp.shape(x) == m.shape else x
            ),
            mask,
            thing,
        )
    if type(thing) in (tuple, list):
        return type(thing)(seen_part(mask, x) for x in thing)
    return thing
