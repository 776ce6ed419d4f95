"""A decoder-only Transformer: a language model in which tokens see those before them.

Vaswani et al., Attention Is All You Need, 2017; Radford et al., Language Models are
Unsupervised Multitask Learners, 2019 (GPT-2), section 2.3: norms stand in front of
attention and dense layers, and after the last one.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lottery_jax import activations, errors
from lottery_jax.models import initializers
from lottery_jax.models.attention import self_attention
from lottery_jax.models.layers import Choices, Dense, head
from lottery_jax.types import Array

_LAW = Choices(initializer="normal_0.02")


class Decoder(nn.Module):
    """A decoder-only Transformer with learned positions.

    Layers: `embeddings`, `layer_0`, ..., `norm`, and `head` if it is not tied. All kernels
    and embeddings are drawn from N(0, 0.02^2), biases are 0; GPT-2 draws what adds to the
    residual sums smaller, by the root of their number, and this does not.

    Attributes:
      vocabulary: number of token ids.
      width: of the hidden states.
      layers: how many.
      heads: of each attention; they divide the width.
      positions: the longest text.
      inner: width of the feed-forward layers; None for four times `width`.
      dropout: of embeddings, attention weights and the layers' results.
      tied: whether the output layer's kernel is the word embeddings, without a bias.
      embeddings: "pruned": those of words and positions count among the prunable weights,
        beside all kernels; or "kept".
    """

    vocabulary: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    positions: int = 64
    inner: int | None = None
    dropout: float = 0.1
    tied: bool = True
    embeddings: Literal["pruned", "kept"] = "pruned"

    def __post_init__(self) -> None:
        """Refuses sizes that no decoder has (ValueError)."""
        for field in ("vocabulary", "width", "layers", "heads", "positions"):
            errors.whole(field, getattr(self, field), 1)
        if self.inner is not None:
            errors.whole("inner", self.inner, 1)
        if self.width % self.heads:
            raise errors.wrong("heads", self.heads, f"a divisor of width={self.width}")
        if not 0 <= self.dropout < 1:
            raise errors.wrong("dropout", self.dropout, "a share in [0, 1)")
        errors.one_of("embeddings", self.embeddings, ("pruned", "kept"))
        super().__post_init__()

    @property
    def prunable_patterns(self) -> tuple[str, ...]:
        """Key-path patterns of the leaves that count."""
        kernels = (r"/kernel$",)
        return (*kernels, r"/embedding$") if self.embeddings == "pruned" else kernels

    @nn.compact
    def __call__(self, ids: Array, train: bool = False) -> Array:
        """Logits of the next token at each place, float32 `[B, T, vocabulary]`.

        Args:
          ids: int32 `[B, T]`.
          train: whether dropout is on; its key is "dropout".

        Raises:
          ValueError: longer texts than there are positions.
        """
        embeddings = _Embeddings(
            self.vocabulary, self.width, self.positions, name="embeddings"
        )
        x = activations.stored(embeddings(ids))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        inner = 4 * self.width if self.inner is None else self.inner
        for i in range(self.layers):
            x = _Layer(self.heads, inner, self.dropout, name=f"layer_{i}")(x, train)
        x = activations.wide(_norm("norm")(x))
        if self.tied:
            return jnp.matmul(x, embeddings.word.embedding.T)
        return head(x, self.vocabulary, _LAW)

    @staticmethod
    def named(numbers: Sequence[int], **settings: Any) -> "Decoder | None":
        """`transformer-LAYERS-WIDTH-HEADS`."""
        if len(numbers) != 3:
            return None
        own = {name: x for name, x in settings.items() if name != "biases"}
        return Decoder(layers=numbers[0], width=numbers[1], heads=numbers[2], **own)


class _Embeddings(nn.Module):
    """The sum of word and position embeddings."""

    vocabulary: int
    width: int
    positions: int

    def setup(self) -> None:
        law = initializers.kernel(_LAW.initializer)
        self.word = nn.Embed(self.vocabulary, self.width, embedding_init=law)
        self.position = nn.Embed(self.positions, self.width, embedding_init=law)

    def __call__(self, ids: Array) -> Array:
        length = ids.shape[1]
        if length > self.positions:
            must = f"at most {self.positions}, the positions of the decoder"
            raise errors.wrong("window", length, must)
        return self.word(ids) + self.position(jnp.arange(length))[None]


class _Layer(nn.Module):
    """Attention and two dense layers, each with its norm before it and residual sum."""

    heads: int
    inner: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        dropped = nn.Dropout(self.dropout, deterministic=not train)
        y = _Attention(self.heads, self.dropout, name="attention")(x, train)
        x = x + dropped(y)
        y = activations.stored(_norm("norm")(x))
        y = jax.nn.gelu(Dense(self.inner, _LAW, name="inner")(y))
        y = Dense(x.shape[-1], _LAW, name="outer")(y)
        return x + dropped(y)


class _Attention(nn.Module):
    """The norm, and attention to oneself and what comes before."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        length = x.shape[1]
        before = jnp.tril(jnp.ones((length, length), jnp.bool_))
        return self_attention(
            activations.stored(_norm("norm")(x)),
            before[None, None],
            heads=self.heads,
            choices=_LAW,
            dropout=self.dropout,
            train=train,
        )


def _norm(name: str) -> nn.LayerNorm:
    # The fast variance, a difference of mean squares, loses digits.
    return nn.LayerNorm(1e-5, use_fast_variance=False, name=name)
