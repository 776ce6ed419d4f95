"""Recurrent language models: an embedding, layers of LSTM or GRU units, an output layer.

Hochreiter & Schmidhuber, Long Short-Term Memory, 1997, with the forget gates of Gers et
al. 2000; Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014. The
equations are PyTorch's, and so is the number of weights: the gates have a bias from the
inputs and one from the hidden state, and a GRU resets the product, not the state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from lottery_jax import activations, convolution, errors
from lottery_jax.models import initializers
from lottery_jax.models.layers import Choices, Dense, head
from lottery_jax.types import Array

_LAW = Choices(initializer="torch", bias="torch")

Carry: TypeAlias = tuple[Array, ...]
"""What a network hands on from one window to the next, float32 `[layers, B, units]` each:
`(hidden, cell)` of an LSTM, `(hidden,)` of a GRU."""


class Recurrent(nn.Module):
    """A recurrent language model, such as those of Yu et al. 2020, section 3.

    Layers: `embedding`, `layer_0`, ..., each with `input` and `hidden`, and `head`. Gates
    lie side by side in the last axis: input, forget, cell, output of an LSTM; reset,
    update, new of a GRU.

    Every leaf is drawn from U(+-1 / sqrt(units)), PyTorch's law of recurrent layers and
    of an output layer of this width; so no gate starts open or closed, those that forget
    neither. Embeddings have this law, too: of PyTorch's N(0, 1) a ranking of all weights
    by magnitude would cut none.

    Attributes:
      vocabulary: number of token ids.
      units: of each layer, and the width of the embeddings.
      layers: how many.
      cell: "lstm" or "gru".
      dropout: between layers, and nowhere else (Yu et al. 2020, section 3.1).
      tied: whether the output layer's kernel is the embeddings; `head` has a bias alone then.
      embeddings: "pruned": they count among the prunable weights; or "kept".
      biases: likewise; both are pruned in Yu et al. 2020.
    """

    vocabulary: int
    units: int = 128
    layers: int = 2
    cell: Literal["lstm", "gru"] = "lstm"
    dropout: float = 0.0
    tied: bool = False
    embeddings: Literal["pruned", "kept"] = "pruned"
    biases: Literal["pruned", "kept"] = "pruned"

    def __post_init__(self) -> None:
        """Refuses sizes that no network has (ValueError)."""
        for field in ("vocabulary", "units", "layers"):
            errors.whole(field, getattr(self, field), 1)
        errors.one_of("cell", self.cell, _CELLS)
        if not 0 <= self.dropout < 1:
            raise errors.wrong("dropout", self.dropout, "a share in [0, 1)")
        for field in ("embeddings", "biases"):
            errors.one_of(field, getattr(self, field), ("pruned", "kept"))
        super().__post_init__()

    @property
    def prunable_patterns(self) -> tuple[str, ...]:
        """Key-path patterns of the leaves that count."""
        found = [r"/kernel$"]
        found += [r"/embedding$"] if self.embeddings == "pruned" else []
        return tuple(found + ([r"/bias$"] if self.biases == "pruned" else []))

    @nn.nowrap
    def initial(self, batch: int) -> Carry:
        """What a text begins with, zeros.

        Args:
          batch: number of texts.
        """
        shape = (self.layers, batch, self.units)
        return (jnp.zeros(shape, jnp.float32),) * _CELLS[self.cell].states

    @nn.compact
    def __call__(
        self, ids: Array, carry: Carry, train: bool = False
    ) -> tuple[Array, Carry]:
        """Logits of the next token at each place.

        Args:
          ids: int32 `[B, T]`.
          carry: what the window before has left, or `initial`.
          train: whether dropout is on; its key is "dropout".

        Returns:
          Logits, float32 `[B, T, vocabulary]`, and what is carried on.
        """
        law = initializers.torch_bias(self.units)
        embed = nn.Embed(
            self.vocabulary, self.units, embedding_init=law, name="embedding"
        )
        # Time first: it is what is scanned.
        x = activations.stored(embed(ids.T))
        after = []
        for i in range(self.layers):
            if i:
                x = nn.Dropout(self.dropout)(x, deterministic=not train)
            x, last = _Layer(self.units, self.cell, name=f"layer_{i}")(
                x, tuple(state[i] for state in carry)
            )
            after.append(last)
        x = activations.wide(x.swapaxes(0, 1))
        if self.tied:
            logits = convolution.dense(x, embed.embedding.T)
            logits = _Bias(self.units, name="head")(logits)
        else:
            logits = head(x, self.vocabulary, _LAW)
        return logits, tuple(jnp.stack(states) for states in zip(*after, strict=True))

    @staticmethod
    def named_lstm(numbers: Sequence[int], **settings: Any) -> "Recurrent | None":
        """`lstm-LAYERS-UNITS`."""
        return _named("lstm", numbers, settings)

    @staticmethod
    def named_gru(numbers: Sequence[int], **settings: Any) -> "Recurrent | None":
        """`gru-LAYERS-UNITS`."""
        return _named("gru", numbers, settings)


class _Bias(nn.Module):
    """What a tied output layer has beside the embeddings."""

    units: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        law = initializers.torch_bias(self.units)
        bias = self.param("bias", law, x.shape[-1:], jnp.float32)
        return x + jnp.broadcast_to(bias, x.shape)


class _Layer(nn.Module):
    """`[T, B, C]` to `[T, B, units]`, and the states after the last step."""

    units: int
    cell: str

    @nn.compact
    def __call__(self, x: Array, carry: Carry) -> tuple[Array, Carry]:
        cell = _CELLS[self.cell]
        width = cell.gates * self.units
        # Of all steps at once: only what needs the step before is left to the scan.
        inputs = activations.wide(Dense(width, _LAW, name="input")(x))
        kernel, bias = _Hidden(self.units, width, name="hidden")()
        precision = activations.precision()

        def step(carry: Carry, inputs: Array) -> tuple[Carry, Array]:
            hidden = activations.stored(carry[0])
            recurrent = activations.wide(convolution.dense(hidden, kernel, precision))
            recurrent = recurrent + jnp.broadcast_to(bias, recurrent.shape)
            carry = cell.step(inputs, recurrent, carry)
            return carry, activations.stored(carry[0])

        carry, out = jax.lax.scan(step, carry, inputs)
        return out, carry


class _Hidden(nn.Module):
    """The weights of the hidden state; they are applied within a scan, by the layer."""

    units: int
    width: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        law = initializers.torch_bias(self.units)
        kernel = self.param("kernel", law, (self.units, self.width), jnp.float32)
        return kernel, self.param("bias", law, (self.width,), jnp.float32)


def _lstm(inputs: Array, recurrent: Array, carry: Carry) -> Carry:
    i, f, g, o = jnp.split(inputs + recurrent, 4, axis=-1)
    c = jax.nn.sigmoid(f) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru(inputs: Array, recurrent: Array, carry: Carry) -> Carry:
    (r, z, n), (hr, hz, hn) = (jnp.split(x, 3, axis=-1) for x in (inputs, recurrent))
    new = jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn)
    keep = jax.nn.sigmoid(z + hz)
    return ((1 - keep) * new + keep * carry[0],)


class _Cell(NamedTuple):
    """A kind of unit: its gates, its states, and `(inputs, recurrent, carry) -> carry`."""

    gates: int
    states: int
    step: Callable[[Array, Array, Carry], Carry]


_CELLS: Mapping[str, _Cell] = {"lstm": _Cell(4, 2, _lstm), "gru": _Cell(3, 1, _gru)}


def _named(
    cell: Literal["lstm", "gru"], numbers: Sequence[int], settings: Mapping[str, Any]
) -> Recurrent | None:
    if len(numbers) != 2:
        return None
    own = {name: x for name, x in settings.items() if name != "positions"}
    return Recurrent(layers=numbers[0], units=numbers[1], cell=cell, **own)
