"""Which examples make up which batch, as a pure function of (noise key, epoch).

Indices are made once per epoch, outside the training loop: a permutation of 50,000
costs more than a small network's step. The last partial batch is kept, as in open_lth
(391 batches of 128 from 50,000), padded with index -1 and example weight 0.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lottery_jax.keys import epoch_key
from lottery_jax.types import Array, Key

PADDING = -1
"""The index of an empty slot in a last partial batch."""


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """How many batches hold every example once: ceil(num_examples / batch_size).

    Args:
      num_examples: at least 1.
      batch_size: at least 1; may exceed `num_examples`.

    Returns:
      The number of rows of `permutation` and `sequential`.

    Raises:
      ValueError: either is below 1.
    """
    for field, value in (("num_examples", num_examples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{field}={value}; it must be 1 or more")
    return -(-num_examples // batch_size)


def permutation(
    key: Key, epoch: Array | int, num_examples: int, batch_size: int
) -> Array:
    """The data order of one epoch: every example exactly once.

    Args:
      key: of the data order, `[]`.
      epoch: int scalar, at least 0, may be traced.
      num_examples: examples in the training set, static.
      batch_size: examples in a batch, static.

    Returns:
      Indices, int32 `[steps_per_epoch, batch_size]`, in [0, num_examples); the last
      slots of the last row are -1 where batch_size does not divide num_examples.

    Raises:
      ValueError: `num_examples` or `batch_size` is below 1.
    """
    steps = steps_per_epoch(num_examples, batch_size)
    numbers = jnp.arange(num_examples, dtype=jnp.int32)
    indices = jax.random.permutation(epoch_key(key, epoch), numbers)
    return _rows(indices, steps, batch_size)


def sequential(num_examples: int, batch_size: int) -> Array:
    """All examples in their stored order, for evaluation.

    Args:
      num_examples: examples in the split.
      batch_size: examples in a batch.

    Returns:
      Indices as `permutation` returns them, int32 `[ceil(N / B), B]`, padded with -1.

    Raises:
      ValueError: `num_examples` or `batch_size` is below 1.
    """
    steps = steps_per_epoch(num_examples, batch_size)
    return _rows(jnp.arange(num_examples, dtype=jnp.int32), steps, batch_size)


def gather(
    arrays: Mapping[str, Array], indices: Array, *, full: bool = False
) -> dict[str, Array]:
    """One batch: the examples at `indices`, with a weight for each.

    An empty slot (index -1) has weight 0 and repeats the real examples of its own batch
    in turn, so that batch statistics that know nothing of weights stay sensible.

    Args:
      arrays: a split of a data set, `{"image": [N, ...], "label": [N]}`; every array
        is gathered along its first axis.
      indices: int32 `[B]`, one row of `permutation` or `sequential`; the empty slots
        come last.
      full: promises that no slot is empty, which saves a small network's step a few
        percent; weights are then all 1.

    Returns:
      The gathered arrays under their names, and `"weight"`, float32 `[B]`, 1 for an
      example and 0 for an empty slot.

    Raises:
      ValueError: `indices` has not one axis, or an array is already named "weight".
    """
    if indices.ndim != 1:
        raise ValueError(f"indices must be [B], got shape {indices.shape}")
    if "weight" in arrays:
        raise ValueError('arrays must not hold "weight": gather makes it')
    if full:
        batch = {
            n: jnp.asarray(a).at[indices].get(mode="promise_in_bounds")
            for n, a in arrays.items()
        }
        return batch | {"weight": jnp.ones(indices.shape, jnp.float32)}
    real = indices >= 0
    turn = jnp.arange(len(indices)) % jnp.maximum(real.sum(), 1)
    filled = jnp.where(real, indices, indices[turn])
    batch = {
        name: jnp.take(array, filled, axis=0, mode="clip")
        for name, array in arrays.items()
    }
    return batch | {"weight": real.astype(jnp.float32)}


def _rows(indices: Array, steps: int, batch_size: int) -> Array:
    empty = steps * batch_size - len(indices)
    padded = jnp.pad(indices, (0, empty), constant_values=PADDING)
    return padded.reshape(steps, batch_size)
