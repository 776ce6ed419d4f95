"""Pruning during training: rules that change a mask while a network trains.

    rule = lj.dynamic.gradual_magnitude(0.1, begin=500, end=2000, every=100)
    done = lj.train(task, optax.adam(1e-3), steps=3000, replicas=5, rule=rule)

Each method is a pure rule from weights, gradients and a mask to a new mask, and the steps
at which it acts. The runner lets it act on all replicas between compiled segments.
"""

from lottery_jax.dynamic import early_bird as early_bird
from lottery_jax.dynamic.rules import MaskUpdate as MaskUpdate
from lottery_jax.dynamic.rules import UpdateMask as UpdateMask
from lottery_jax.dynamic.rules import gradual_magnitude as gradual_magnitude
