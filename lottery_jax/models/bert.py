"""BERT: a Transformer encoder with a head for masked tokens, sentences, or spans.

Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2019; Vaswani et al.,
Attention Is All You Need, 2017. Norms come after the residual sums, as published.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lottery_jax import activations, errors
from lottery_jax.data.text import Tokens
from lottery_jax.models import initializers
from lottery_jax.models.attention import self_attention
from lottery_jax.models.layers import Choices, Dense
from lottery_jax.types import Array

Head = Literal["masked_lm", "classes", "span", "none"]

_LAW = Choices(initializer="normal_0.02")
"""N(0, 0.02^2) and biases of 0 (Devlin et al., appendix A.2; their code)."""

_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class BertShape:
    """The size of an encoder; the defaults are those of BERT-base, uncased.

    Attributes:
      vocabulary: number of token ids.
      width: of the hidden states.
      layers: how many.
      heads: of each attention; they divide the width.
      inner: width of the feed-forward layers.
      positions: the longest sequence.
      types: kinds of sentences.
      epsilon: of the norms.
      dropout: of embeddings, of the layers' results and in front of the output layer.
      attention_dropout: of attention weights.
      activation: "gelu", "gelu_new" (by tanh) or "relu".
      tied: whether masked tokens are guessed by the word embeddings.
    """

    vocabulary: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    tied: bool = True

    def __post_init__(self) -> None:
        """Refuses sizes that no encoder has (ValueError)."""
        for field in ("vocabulary", "width", "layers", "heads", "inner", "positions"):
            errors.whole(field, getattr(self, field), 1)
        errors.whole("types", self.types, 1)
        if self.width % self.heads:
            raise errors.wrong("heads", self.heads, f"a divisor of width={self.width}")
        for field in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise errors.wrong(field, getattr(self, field), "a share in [0, 1)")
        errors.one_of("activation", self.activation, _ACTIVATIONS)


class Attention(nn.Module):
    """Self-attention, the residual sum and its norm.

    Attributes:
      shape: of the encoder.
    """

    shape: BertShape

    @nn.compact
    def __call__(self, x: Array, present: Array, train: bool) -> Array:
        """From `[B, L, width]` to the same; `present` bool `[B, L]`."""
        own = self.shape
        y = self_attention(
            x,
            present[:, None, None, :],
            heads=own.heads,
            choices=_LAW,
            dropout=own.attention_dropout,
            train=train,
        )
        y = nn.Dropout(own.dropout)(y, deterministic=not train)
        return _norm(own, "norm")(x + y)


class Layer(nn.Module):
    """Attention and two dense layers, each with its residual sum and norm.

    Attributes:
      shape: of the encoder.
    """

    shape: BertShape

    @nn.compact
    def __call__(self, x: Array, present: Array, train: bool) -> Array:
        """From `[B, L, width]` to the same; `present` bool `[B, L]`."""
        own = self.shape
        x = Attention(own, name="attention")(x, present, train)
        y = _ACTIVATIONS[own.activation](Dense(own.inner, _LAW, name="inner")(x))
        y = Dense(own.width, _LAW, name="outer")(y)
        y = nn.Dropout(own.dropout)(y, deterministic=not train)
        return _norm(own, "norm")(x + y)


class Embeddings(nn.Module):
    """The sum of word, position and type embeddings, normalised.

    Attributes:
      shape: of the encoder.
    """

    shape: BertShape

    def setup(self) -> None:
        """Three tables and a norm."""
        own = self.shape
        law = initializers.kernel(_LAW.initializer)
        table = {
            name: nn.Embed(number, own.width, embedding_init=law, name=name)
            for name, number in (
                ("word", own.vocabulary),
                ("position", own.positions),
                ("type", own.types),
            )
        }
        self.word, self.position, self.type = table.values()
        self.norm = _norm(own, "norm")
        self.dropout = nn.Dropout(own.dropout)

    def __call__(self, tokens: Tokens, train: bool) -> Array:
        """`[B, L, width]`."""
        length = tokens.ids.shape[1]
        if length > self.shape.positions:
            must = f"at most {self.shape.positions}, the positions of the encoder"
            raise errors.wrong("length", length, must)
        x = self.word(tokens.ids) + self.type(tokens.types)
        x = self.norm(x + self.position(jnp.arange(length))[None])
        return activations.stored(self.dropout(x, deterministic=not train))


class Bert(nn.Module):
    """An encoder with a head.

    Layers: `embeddings`, `layer_0`, ..., `head`. All that belongs to one task alone is the
    head: of sentences, a pooler (a dense layer with tanh on the first token) and an output
    layer; of masked tokens, a dense layer, a norm and the decoder's bias; of spans, an
    output layer.

    Attributes:
      shape: of the encoder.
      head: "masked_lm", logits of the tokens at `positions`, `[B, P, vocabulary]`;
        "classes", numbers of a sentence, `[B, outputs]`; "span", scores of every token as
        the first and as the last of an answer, `[B, L, 2]`; "none", the hidden states,
        `[B, L, width]`.
      outputs: of the head "classes".
      pooler: "head": the pooler belongs to the head, is drawn anew with it and never
        pruned; "pruned": it belongs to the encoder, in every task, and counts among the
        prunable weights, as in Chen et al. 2020.
    """

    shape: BertShape = BertShape()
    head: Head = "masked_lm"
    outputs: int = 2
    pooler: Literal["head", "pruned"] = "head"

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return self.shape.vocabulary

    @property
    def types(self) -> int:
        """How many kinds of sentences there are."""
        return self.shape.types

    @property
    def prunable_patterns(self) -> tuple[str, ...]:
        """Key-path patterns of the leaves that count: the dense kernels of the layers."""
        layers = (r"^layer_\d+/.*kernel$",)
        return layers if self.pooler == "head" else (*layers, r"^pooler/kernel$")

    @nn.compact
    def __call__(self, tokens: Tokens, train: bool = False) -> Array:
        """What the head says of a batch; see the class."""
        own = self.shape
        errors.one_of("head", self.head, ("masked_lm", "classes", "span", "none"))
        errors.one_of("pooler", self.pooler, ("head", "pruned"))
        embeddings = Embeddings(own, name="embeddings")
        x = embeddings(tokens, train)
        for i in range(own.layers):
            x = Layer(own, name=f"layer_{i}")(x, tokens.present, train)
        pooled = None
        if self.pooler == "pruned":
            # In every task, so that all trees of one encoder are alike.
            pooled = jnp.tanh(Dense(own.width, _LAW, name="pooler")(x[:, 0]))
        if self.head == "none":
            return activations.wide(x)
        return _HEADS[self.head](own, self.outputs, name="head")(
            x, pooled, tokens.positions, embeddings.word.embedding, train
        )


class _MaskedTokens(nn.Module):
    """Logits of the tokens at some positions."""

    shape: BertShape
    outputs: int

    @nn.compact
    def __call__(
        self,
        x: Array,
        pooled: Array | None,
        positions: Array | None,
        words: Array,
        train: bool,
    ) -> Array:
        own = self.shape
        if positions is None:
            raise errors.wrong("tokens.positions", None, "those to be guessed")
        # First: the decoder of 30,522 tokens would dominate a step.
        x = jnp.take_along_axis(x, positions[..., None], axis=1)
        x = _ACTIVATIONS[own.activation](Dense(own.width, _LAW, name="transform")(x))
        x = activations.wide(_norm(own, "norm")(x))
        if own.tied:
            y = jnp.matmul(x, words.T)
        else:
            shape = (own.width, own.vocabulary)
            law = initializers.kernel(_LAW.initializer)
            y = jnp.matmul(x, self.param("decoder", law, shape, jnp.float32))
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (own.vocabulary,), jnp.float32)
        return y + jnp.broadcast_to(bias, y.shape)


class _Sentences(nn.Module):
    """Numbers of the first token's pooled state."""

    shape: BertShape
    outputs: int

    @nn.compact
    def __call__(
        self,
        x: Array,
        pooled: Array | None,
        positions: Array | None,
        words: Array,
        train: bool,
    ) -> Array:
        own = self.shape
        if pooled is None:
            pooled = jnp.tanh(Dense(own.width, _LAW, name="pooler")(x[:, 0]))
        pooled = nn.Dropout(own.dropout)(pooled, deterministic=not train)
        return _output(self.outputs)(pooled)


class _Spans(nn.Module):
    """Two scores of every token."""

    shape: BertShape
    outputs: int

    @nn.compact
    def __call__(
        self,
        x: Array,
        pooled: Array | None,
        positions: Array | None,
        words: Array,
        train: bool,
    ) -> Array:
        return _output(2)(x)


_HEADS: Mapping[str, Any] = {
    "masked_lm": _MaskedTokens,
    "classes": _Sentences,
    "span": _Spans,
}


def _output(features: int) -> Dense:
    return Dense(features, _LAW, narrows=False, stores=False, name="output")


def _norm(shape: BertShape, name: str) -> nn.LayerNorm:
    # The fast variance, a difference of mean squares, loses digits.
    return nn.LayerNorm(shape.epsilon, use_fast_variance=False, name=name)
