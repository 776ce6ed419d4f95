"""Every random key of a study, and what each is for: one table.

    seed, replica id  ->  ReplicaKeys   init, noise, fresh_init, fresh_noise, ...
    a noise key       ->  NoiseKeys     order, batch, loss, rule, ...; and those of branches
    seed              ->  the key of a data order that all replicas share

All are derived by `fold_in`, so a replica's numbers depend on its own id alone, and each
key has one use. All are keys of threefry, whatever JAX's default is: draws of others (rbg)
depend on what is vmapped beside them, and on the platform. Draws are the same bits under
every setting of JAX: dtypes are named, and bits are made in one way (`settled`).

Whoever needs a further role appends it to the tuple that it belongs to: the numbers that
are there never change their meaning.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors
from lottery_jax.types import Array, Key

DRAWS = 2
"""How numbers are drawn from keys; another number, other draws from equal seeds.

It is part of what a folder must have in common with what continues there.
"""

IMPL = "threefry2x32"
"""The implementation of every key of this library."""

P = ParamSpec("P")
R = TypeVar("R")

# Far from the roles of a noise key, which count from 0.
_BRANCHES = 0x0B4A

# No replica's id, which are below 2**31.
_OF_ALL = 0x8000_0000


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
      signs: the random signs of constants.
    """

    init: Key
    noise: Key
    fresh_init: Key
    fresh_noise: Key
    mask_shuffle: Key
    weight_shuffle: Key
    score: Key
    signs: Key


class NoiseKeys(NamedTuple):
    """A noise key by what it is used for.

    Attributes:
      order: the data order.
      batch: augmentation.
      loss: what the loss itself draws: dropout, attack starts, actions.
      rule: what a rule draws that changes a mask during training.
      rule_start: what it draws for the mask that a run begins with.
    """

    order: Key
    batch: Key
    loss: Key
    rule: Key
    rule_start: Key


def of_seed(seed: int | np.integer | Array) -> Key:
    """The key of a seed, `[]`: that of `jax.random.key(seed)` under JAX's defaults.

    Args:
      seed: in [0, 2**32), see `check_seed`; a traced one is uint32.

    Raises:
      ValueError: no such number.
    """
    # Not `jax.random.key`: it has a default implementation and an offset of its own.
    words: Any
    if isinstance(seed, jax.core.Tracer):
        words = jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)])
    else:
        words = np.array([0, check_seed(seed)], np.uint32)
    return jax.random.wrap_key_data(words, impl=IMPL)


def check_seed(seed: Any, field: str = "seed") -> int:
    """A seed as an integer.

    Args:
      seed: Python's or NumPy's integer, or an array of one.
      field: what the caller calls it.

    Raises:
      ValueError: no integer (a bool is none), or one outside [0, 2**32): longer ones would
        be cut short, and two studies be one.
    """
    if getattr(seed, "shape", None) == ():
        seed = seed.item()
    return errors.whole(field, seed, 0, 2**32 - 1)


def check(field: str, keys: Any) -> Key:
    """Keys that replicas may be given, as they are.

    Args:
      field: what the caller calls them.
      keys: an array of keys.

    Raises:
      ValueError: no typed keys, or those of another implementation, whose draws depend on
        what is vmapped beside them.
    """
    typed = isinstance(keys, jax.Array) and jnp.issubdtype(
        keys.dtype, jax.dtypes.prng_key
    )
    if typed and str(jax.random.key_impl(keys)) == IMPL:
        return keys
    found = keys.dtype if hasattr(keys, "dtype") else type(keys).__name__
    must = f"keys of {IMPL}: jax.random.key(seed, impl={IMPL!r})"
    raise errors.wrong(field, found, must)


def settled(function: Callable[P, R]) -> Callable[P, R]:
    """A function that draws: the same bits whatever `jax_threefry_partitionable` is.

    Args:
      function: draws from keys; may be traced.
    """

    @functools.wraps(function)
    def draws(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.threefry_partitionable(True):
            return function(*args, **kwargs)

    return draws


def replica_keys(seed: int, replica: int | Array) -> ReplicaKeys:
    """The keys of one replica: init and noise apart, so that each can be varied alone.

    Args:
      seed: see `of_seed`.
      replica: its id, 0 or more.

    Raises:
      ValueError: no such seed.
    """
    root = jax.random.fold_in(of_seed(seed), replica)
    roles = range(len(ReplicaKeys._fields))
    return ReplicaKeys(*(jax.random.fold_in(root, role) for role in roles))


def of_replicas(seed: int, ids: Sequence[int] | np.ndarray) -> ReplicaKeys:
    """The keys of several replicas, `[R]` each.

    Args:
      seed: see `of_seed`.
      ids: of the replicas, 0 or more.

    Raises:
      ValueError: no such seed.
    """
    # One small program: made one by one, the keys took seconds of a run's start.
    return _of_replicas(np.uint32(check_seed(seed)), jnp.asarray(ids, jnp.int32))


@jax.jit
def _of_replicas(seed: Array, ids: Array) -> ReplicaKeys:
    return jax.vmap(lambda replica: replica_keys(seed, replica))(ids)  # type: ignore[arg-type]


def noise_keys(noise: Key) -> NoiseKeys:
    """The keys of each role of a noise key."""
    roles = range(len(NoiseKeys._fields))
    return NoiseKeys(*(jax.random.fold_in(noise, role) for role in roles))


def shared_order(seed: int) -> Key:
    """The key of a data order that all replicas have, `[]`, apart from those of each.

    Args:
      seed: see `of_seed`.
    """
    return jax.random.fold_in(of_seed(seed), np.uint32(_OF_ALL))


def branch_keys(noise: Key, number: int) -> Key:
    """The noise keys of a replica's branches, `[number]`, apart from its trunk's.

    Args:
      noise: the replica's noise key.
      number: of branches.
    """
    root = jax.random.fold_in(noise, _BRANCHES)
    return jax.vmap(lambda i: jax.random.fold_in(root, i))(
        jnp.arange(number, dtype=jnp.int32)
    )
