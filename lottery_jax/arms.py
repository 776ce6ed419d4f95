"""The controls of a pruning study: what each arm starts a level from.

| arm | mask | weights at the rewind step k |
|---|---|---|
| ticket | the chain's | the chain's own |
| reinit | the chain's | a fresh draw of the initialisation, trained densely to k |
| reinit_raw | the chain's | a fresh draw, untrained, at schedule step k (open_lth) |
| random_mask | the chain's, permuted | the chain's own |
| shuffled_weights | the chain's | the chain's surviving ones, permuted in each layer |
| small_dense | a dense narrower network of as many weights | a fresh draw, from step 0 |

Level 0 is the dense network for every arm: nothing is permuted there, so random_mask and
shuffled_weights repeat the ticket. Layers that are counted but never cut keep their mask
in every arm; shuffled_weights permutes their weights all the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lottery_jax import masks
from lottery_jax.masks import Patterns, PrunableLike
from lottery_jax.types import Array, Key, Mask, Network, Params

ARMS = (
    "ticket",
    "reinit",
    "reinit_raw",
    "random_mask",
    "shuffled_weights",
    "small_dense",
)

FRESH = ("reinit", "reinit_raw", "small_dense")
"""Arms with an initialisation and a noise of their own."""


class ReplicaKeys(NamedTuple):
    """The keys of one replica, by what they are for; all by `fold_in` of its id."""

    init: Key
    noise: Key
    fresh_init: Key
    fresh_noise: Key
    mask_shuffle: Key
    weight_shuffle: Key
    score: Key


def replica_keys(seed: int, replica: int) -> ReplicaKeys:
    """The keys of one replica: init and noise apart, so that each can be varied alone."""
    root = jax.random.fold_in(jax.random.key(seed), replica)
    roles = range(len(ReplicaKeys._fields))
    return ReplicaKeys(*(jax.random.fold_in(root, role) for role in roles))


def shuffle_surviving(
    key: Key, params: Params, mask: Mask, prunable: PrunableLike = None
) -> Params:
    """Permutes the surviving weights among the surviving places of each prunable leaf.

    Args:
      key: draws the permutation.
      params: weights.
      mask: which survive.
      prunable: leaves that take part; the others are returned as they are.
    """
    leaves, structure = jax.tree.flatten(params)
    flags = masks.resolve(params, prunable)
    out = []
    for i, (p, m, take) in enumerate(zip(leaves, jax.tree.leaves(mask), flags)):
        if take:
            p = _shuffle_leaf(jax.random.fold_in(key, i), p, m)
        out.append(p)
    return jax.tree.unflatten(structure, out)


def _shuffle_leaf(key: Key, p: Array, m: Array) -> Array:
    """Survivors in random order are dealt to the surviving places in order."""
    flat, alive = p.reshape(-1), m.reshape(-1)
    draws = jax.random.uniform(key, flat.shape)
    dealt = jnp.argsort(jnp.where(alive, draws, jnp.inf))
    rank = jnp.cumsum(alive, dtype=jnp.int32) - 1
    return jnp.where(alive, flat[dealt[rank]], flat).reshape(p.shape)


def begin(
    arm: Array,
    keys: ReplicaKeys,
    mask: Mask,
    chain: Network,
    own: Network,
    *,
    scope: str = "layerwise",
    prunable: PrunableLike = None,
    exclude: Patterns = (),
) -> tuple[Network, Mask]:
    """What an arm starts a level from, unmasked.

    Args:
      arm: index into `ARMS`, int32 `[]`.
      keys: of the replica; the same at every level, so random masks are nested.
      mask: the chain's.
      chain: the chain's network at the start of the level.
      own: the row's own network at the rewind step, for fresh draws.
      scope: how a random mask is permuted, "layerwise" or "global".
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.
    """

    def random_mask() -> tuple[Network, Mask]:
        shuffled = masks.shuffle(keys.mask_shuffle, mask, scope, prunable, exclude)  # type: ignore[arg-type]
        return chain, shuffled

    def shuffled_weights() -> tuple[Network, Mask]:
        params = shuffle_surviving(keys.weight_shuffle, chain.params, mask, prunable)
        return chain._replace(params=params), mask

    branches = {
        "ticket": lambda: (chain, mask),
        "reinit": lambda: (own, mask),
        "reinit_raw": lambda: (own, mask),
        "random_mask": random_mask,
        "shuffled_weights": shuffled_weights,
        "small_dense": lambda: (own, mask),
    }
    return jax.lax.switch(arm, [branches[name] for name in ARMS])
