"""Which examples make up which batch, as a pure function of (noise key, step).

Each step computes the indices of its own batch (`lottery_jax.permutations`): no order of
an epoch is drawn beforehand or stored. The last partial batch is kept, as in open_lth
(391 batches of 128 from 50,000), padded with index -1 and example weight 0.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from lottery_jax import permutations
from lottery_jax.types import Array, Key

PADDING = -1
"""The index of an empty slot in a last partial batch."""


def steps_per_epoch(
    num_examples: int, batch_size: int, *, drop_last: bool = False
) -> int:
    """How many batches hold every example once: ceil(num_examples / batch_size).

    Args:
      num_examples: at least 1.
      batch_size: at least 1; may exceed `num_examples`.
      drop_last: whether a last batch that is not full is left out.

    Returns:
      The number of batches.

    Raises:
      ValueError: either is below 1.
    """
    for field, value in (("num_examples", num_examples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{field}={value}; it must be 1 or more")
    if drop_last:
        return num_examples // batch_size
    return -(-num_examples // batch_size)


def shuffled(
    key: Key,
    step: Array | int,
    num_examples: int,
    batch_size: int,
    *,
    drop_last: bool = False,
) -> Array:
    """The examples of one step's batch: in each epoch every example exactly once.

    Epochs are permuted independently of each other.

    Args:
      key: of the data order, `[]`.
      step: int `[]`, at least 0, counted from the first epoch on; may be traced.
      num_examples: examples in the training set, static.
      batch_size: examples in a batch, static.
      drop_last: whether an epoch leaves out a last batch that is not full.

    Returns:
      Indices, int32 `[batch_size]`, in [0, num_examples); the last slots of an epoch's
      last batch are -1 where batch_size does not divide num_examples.

    Raises:
      ValueError: `num_examples` or `batch_size` is below 1, or no batch is full and
        such are left out.
    """
    steps = steps_per_epoch(num_examples, batch_size, drop_last=drop_last)
    if not steps:
        raise ValueError(
            f"batch_size={batch_size}; it must be {num_examples} or less, the number of "
            "examples, where batches that are not full are left out"
        )
    epoch, row = jnp.divmod(jnp.asarray(step, jnp.int32), steps)
    places = row * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    found = permutations.at(key, places, num_examples, stream=epoch)
    if steps * batch_size <= num_examples:
        return found
    return jnp.where(places < num_examples, found, PADDING)


def sequential(num_examples: int, batch_size: int) -> Array:
    """All examples in their stored order, for evaluation.

    Args:
      num_examples: examples in the split.
      batch_size: examples in a batch.

    Returns:
      Indices, int32 `[ceil(N / B), B]`, padded with -1.

    Raises:
      ValueError: `num_examples` or `batch_size` is below 1.
    """
    steps = steps_per_epoch(num_examples, batch_size)
    empty = steps * batch_size - num_examples
    numbers = jnp.arange(num_examples, dtype=jnp.int32)
    padded = jnp.pad(numbers, (0, empty), constant_values=PADDING)
    return padded.reshape(steps, batch_size)


def gather(
    arrays: Mapping[str, Array], indices: Array, *, full: bool = False
) -> dict[str, Array]:
    """One batch: the examples at `indices`, with a weight for each.

    An empty slot (index -1) has weight 0 and repeats the real examples of its own batch
    in turn, so that batch statistics that know nothing of weights stay sensible.

    Args:
      arrays: a split of a data set, `{"image": [N, ...], "label": [N]}`; every array
        is gathered along its first axis.
      indices: int32 `[B]`, from `shuffled`, or one row of `sequential`; the empty slots
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
