"""Means over examples, which may have to be put together from the parts of a split.

Whoever evaluates on a split returns a number for each metric. Where the split lies on no
device it is seen part by part, and of a number nobody can tell what it would be for all of
it. A mean over examples can be put together, if the sums are known:

    return {"error": means.of(wrong, number, batch), "loss": means.of(losses, number, batch)}

is a number, except within `as_sums`, where it is the `Sums` it is made of.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lottery_jax.types import Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("sums",),
    meta_fields=("number", "batch"),
)
@dataclasses.dataclass(frozen=True)
class Sums:
    """What a mean over examples is made of.

    Attributes:
      sums: of each batch, real `[..., batches]`.
      number: examples in all.
      batch: examples in a batch; the last one may have fewer.
    """

    sums: Array
    number: int
    batch: int

    @property
    def mean(self) -> Array:
        """Over all examples, `[...]`."""
        return jnp.sum(self.sums, axis=-1) / self.number


_open = contextvars.ContextVar("as_sums", default=False)


def of(sums: Array, number: int, batch: int) -> Any:
    """The mean over the examples of a split.

    Args:
      sums: of each batch of it, in order, real `[batches]`.
      number: of examples.
      batch: examples in a batch; the last one may have fewer. The same in all metrics of
        a task: the parts of a split are of whole batches, and with others the sums of
        parts are right, but not the bits of the whole.

    Returns:
      A number, or, within `as_sums`, what it is made of.
    """
    found = Sums(sums, number, batch)
    return found if _open.get() else found.mean


@contextlib.contextmanager
def as_sums() -> Iterator[None]:
    """Within, `of` returns what its mean is made of."""
    token = _open.set(True)
    try:
        yield
    finally:
        _open.reset(token)
