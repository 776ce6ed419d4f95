"""Self-attention, of encoders and decoders alike.

Vaswani et al., Attention Is All You Need, 2017, section 3.2.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lottery_jax import activations
from lottery_jax.models.layers import Choices, Dense
from lottery_jax.types import Array


def self_attention(
    x: Array,
    seen: Array,
    *,
    heads: int,
    choices: Choices,
    dropout: float,
    train: bool,
) -> Array:
    """What each token gathers from those that it sees.

    To be called within a compact method: the layers `query`, `key`, `value` and `output`
    become those of its module.

    Args:
      x: `[B, L, width]`.
      seen: bool, broadcast to `[B, heads, L, L]`: whether a token, the third axis, sees
        another, the last one. One that sees none gathers the mean of all.
      heads: they divide the width.
      choices: the law of the layers.
      dropout: of the shares.
      train: whether it is on.

    Returns:
      `[B, L, width]`.
    """
    width = x.shape[-1]
    size = width // heads

    def split(name: str) -> Array:
        y = Dense(width, choices, name=name)(x)
        return y.reshape(*y.shape[:-1], heads, size)

    query, key, value = (split(name) for name in ("query", "key", "value"))
    precision = activations.precision()
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=precision)
    scores = activations.wide(scores) / math.sqrt(size)
    # Not -inf: of a sequence without tokens no nan must come.
    least = jnp.finfo(scores.dtype).min
    shares = jax.nn.softmax(jnp.where(seen, scores, least), axis=-1)
    shares = nn.Dropout(dropout)(shares, deterministic=not train)
    mixed = jnp.einsum(
        "bhqk,bkhd->bqhd", activations.stored(shares), value, precision=precision
    )
    return Dense(width, choices, name="output")(mixed.reshape(x.shape))
