"""Pruning during training: rules that change a mask while a network trains.

    rule = lj.dynamic.gradual_magnitude(0.1, begin=500, end=2000, every=100)
    done = lj.train(task, optax.adam(1e-3), steps=3000, replicas=5, rule=rule)

Each method is a pure rule from weights, gradients and a mask to a new mask, and the steps
at which it acts. The runner lets it act on all replicas between compiled segments; in a
loop of one's own `masked` does, around any optimizer of optax.

rules        what a rule is, what is asked of one, what it does
pruning      rules that take weights away
regrowth     rules that drop and grow: SET and RigL
loops        an optimizer with a rule, for loops of one's own

Straight-through estimates are an optimizer, `transforms.straight_through`, under which
rules by magnitude choose among all weights.
"""

from lottery_jax.dynamic.loops import MaskedState as MaskedState
from lottery_jax.dynamic.loops import masked as masked
from lottery_jax.dynamic.pruning import gradual_magnitude as gradual_magnitude
from lottery_jax.dynamic.pruning import gradual_random as gradual_random
from lottery_jax.dynamic.pruning import gradual_saliency as gradual_saliency
from lottery_jax.dynamic.pruning import one_shot_magnitude as one_shot_magnitude
from lottery_jax.dynamic.pruning import periodic_magnitude as periodic_magnitude
from lottery_jax.dynamic.pruning import static_sparse as static_sparse
from lottery_jax.dynamic.regrowth import drop_counts as drop_counts
from lottery_jax.dynamic.regrowth import rigl as rigl
from lottery_jax.dynamic.regrowth import sparse_evolutionary as sparse_evolutionary
from lottery_jax.dynamic.rules import MaskUpdate as MaskUpdate
from lottery_jax.dynamic.rules import UpdateMask as UpdateMask
from lottery_jax.dynamic.rules import check as check
