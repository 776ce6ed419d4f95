"""Every random key of a study, and what each is for: one table.

    seed, replica id  ->  ReplicaKeys   init, noise, fresh_init, fresh_noise, ...
    a noise key       ->  NoiseKeys     order, batch, loss, rule; and those of branches

All are derived by `fold_in`, so a replica's numbers depend on its own id alone, and each
key has one use. Whoever needs a further role appends it to the tuple that it belongs to:
the numbers that are there never change their meaning.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax.types import Array, Key

DRAWS = 2
"""How numbers are drawn from keys; another number, other draws from equal seeds.

It is part of what a folder must have in common with what continues there.
"""

# Far from the roles of a noise key, which count from 0.
_BRANCHES = 0x0B4A

# The order of an epoch is drawn from fold_in(key, epoch); a task that uses one key for
# order and augmentation would otherwise draw epoch 3 and step 3 from the same key.
_EPOCH_ORDER = 0x0DE5


class ReplicaKeys(NamedTuple):
    """The keys of one replica, by what they are for.

    Attributes:
      init: the initialisation of its tickets.
      noise: the noise that they are trained under.
      fresh_init: that of arms with a fresh draw.
      fresh_noise: the noise that fresh draws are trained under.
      mask_shuffle: the permutation of a random mask, one for all levels.
      weight_shuffle: that of shuffled weights.
      score: scores that draw.
    """

    init: Key
    noise: Key
    fresh_init: Key
    fresh_noise: Key
    mask_shuffle: Key
    weight_shuffle: Key
    score: Key


class NoiseKeys(NamedTuple):
    """A noise key by what it is used for.

    Attributes:
      order: the data order.
      batch: augmentation.
      loss: what the loss itself draws: dropout, attack starts, actions.
      rule: what a rule draws that changes a mask during training.
    """

    order: Key
    batch: Key
    loss: Key
    rule: Key


def replica_keys(seed: int, replica: int | Array) -> ReplicaKeys:
    """The keys of one replica: init and noise apart, so that each can be varied alone."""
    root = jax.random.fold_in(jax.random.key(seed), replica)
    roles = range(len(ReplicaKeys._fields))
    return ReplicaKeys(*(jax.random.fold_in(root, role) for role in roles))


def of_replicas(seed: int, ids: Sequence[int] | np.ndarray) -> ReplicaKeys:
    """The keys of several replicas, `[R]` each."""
    # One small program: made one by one, the keys took seconds of a run's start.
    return _of_replicas(seed, jnp.asarray(ids, jnp.int32))


@jax.jit
def _of_replicas(seed: Array, ids: Array) -> ReplicaKeys:
    return jax.vmap(lambda replica: replica_keys(seed, replica))(ids)  # type: ignore[arg-type]


def noise_keys(noise: Key) -> NoiseKeys:
    """The keys of each role of a noise key."""
    roles = range(len(NoiseKeys._fields))
    return NoiseKeys(*(jax.random.fold_in(noise, role) for role in roles))


def branch_keys(noise: Key, number: int) -> Key:
    """The noise keys of a replica's branches, `[number]`, apart from its trunk's.

    Args:
      noise: the replica's noise key.
      number: of branches.
    """
    root = jax.random.fold_in(noise, _BRANCHES)
    return jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(number))


def epoch_key(key: Key, epoch: Array | int) -> Key:
    """The key of one epoch's data order.

    Args:
      key: of the order.
      epoch: int `[]`, may be traced.
    """
    return jax.random.fold_in(jax.random.fold_in(key, epoch), _EPOCH_ORDER)
