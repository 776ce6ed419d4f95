"""In which dtype layers store and pass on what they compute.

    with activations.stored_as("bfloat16"):
        logits = model.apply(variables, images)

Half the bytes between layers, which is what bounds the speed of narrow networks on an
accelerator. What is added up stays float32: sums of products and of normalisation,
weights and their gradients, logits. The layers of `lottery_jax.models` read the setting
here, others know nothing of it.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from lottery_jax.errors import one_of
from lottery_jax.types import Array

Activations: TypeAlias = Literal["float32", "bfloat16"]
"""What layers store and pass on; "float32" changes no dtype at all."""

ACTIVATIONS: tuple[Activations, ...] = get_args(Activations)

# Part of the key under which JAX caches what it traced and compiled.
_NAME = jax.make_user_context("float32")


@contextlib.contextmanager
def stored_as(name: Activations) -> Iterator[None]:
    """Says what the layers that are traced within store and pass on.

    Args:
      name: one of `ACTIVATIONS`.

    Raises:
      ValueError: another name.
    """
    one_of("activations", name, ACTIVATIONS)
    with _NAME(name):
        yield


def stored(x: Array) -> Array:
    """What a layer passes on: a result, rounded once where activations are narrow."""
    return x.astype(jnp.bfloat16) if _NAME.value == "bfloat16" else x


def precision() -> str | None:
    """What operands of a layer's products are rounded to; None: whatever is asked for.

    Narrow activations are one operand; the other, the weights, is rounded like them.
    """
    return "bfloat16" if _NAME.value == "bfloat16" else None


def wide(x: Array) -> Array:
    """What is added up, or is no activation: float32 where activations are narrow."""
    return x.astype(jnp.float32) if _NAME.value == "bfloat16" else x
