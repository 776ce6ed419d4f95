"""Masked language modelling: tokens are hidden anew at every step, and guessed.

Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2019, section 3.1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from lottery_jax import activations, errors
from lottery_jax.data.text import Texts, Vocabulary
from lottery_jax.keys import of_seed, settled
from lottery_jax.tasks import _models, _texts, metrics
from lottery_jax.types import (
    Array,
    Batch,
    Key,
    Metrics,
    ModelState,
    Params,
    PyTree,
    StreamState,
    Task,
)


class Hidden(NamedTuple):
    """Windows of which some tokens are to be guessed.

    Attributes:
      ids: the tokens, some of them replaced, int32 `[B, L]`.
      positions: of those to be guessed, int32 `[B, P]`.
      labels: what they were, int32 `[B, P]`.
      counts: 1 for each of them; 0 where a window has not as many, float32 `[B, P]`.
    """

    ids: Array
    positions: Array
    labels: Array
    counts: Array


@settled
def hide(key: Key, ids: Array, vocabulary: Vocabulary, number: int) -> Hidden:
    """Chooses tokens to be guessed: of 10, 8 become [MASK], 1 a random one, 1 stays.

    Args:
      key: of all draws.
      ids: whole windows, int32 `[B, L]`.
      vocabulary: special and unknown tokens are never to be guessed.
      number: how many of each window, P in [1, L].
    """
    assert vocabulary.mask is not None
    ids = jnp.asarray(ids)
    choose, replace, draw = jax.random.split(key, 3)
    never = [*vocabulary.special, vocabulary.unknown]
    allowed = jnp.ones(ids.shape, jnp.bool_)
    for one in never:
        if one is not None:
            allowed &= ids != one
    place = jax.random.uniform(choose, ids.shape, jnp.float32)
    drawn, positions = jax.lax.top_k(jnp.where(allowed, place, -1.0), number)
    counts = drawn >= 0
    labels = jnp.take_along_axis(ids, positions, axis=1)
    what = jax.random.uniform(replace, labels.shape, jnp.float32)
    other = jax.random.randint(draw, labels.shape, 0, vocabulary.size, jnp.int32)
    put = jnp.where(what < 0.8, vocabulary.mask, jnp.where(what < 0.9, other, labels))
    put = jnp.where(counts, put, labels)
    rows = jnp.arange(len(ids))[:, None]
    hidden = ids.at[rows, positions].set(put.astype(ids.dtype), unique_indices=True)
    return Hidden(hidden, positions, labels, counts.astype(jnp.float32))


_EVALUATION = 0x3A5C


@dataclasses.dataclass(frozen=True)
class _MaskedLM:
    """The static part of the task; its methods are the Task's functions."""

    model: _models.Model
    drawn: _texts.Sequences
    vocabulary: Vocabulary
    number: int

    @settled
    def init(self, key: Key) -> tuple[Params, ModelState, StreamState]:
        return *self.model.init(key), ()

    def batch(self, data: PyTree, indices: Array, noise_key: Key, step: Array) -> Batch:
        batch = self.drawn.gathered(data, indices)
        key = jax.random.fold_in(noise_key, step)
        return batch | self._hidden(key, batch["ids"])

    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        logits, model_state = self.model.apply(
            params,
            model_state,
            self.drawn.tokens(batch),
            train=True,
            key=key,
            weights=batch["weight"],
        )
        loss, wrong, number = _sums(logits, batch)
        number = jnp.maximum(number, 1.0)
        found = {"loss": loss / number, "error": wrong / number}
        return loss / number, (model_state, stream_state, found)

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        def sums(batch: Batch) -> tuple[Array, Array, Array]:
            return _sums(self.outputs(params, model_state, batch), batch)

        parts = self.drawn.each(self._fixed(data, split), sums)
        loss, wrong, number = (jnp.sum(part) for part in parts)
        loss = loss / number
        return {
            "loss": loss,
            "error": wrong / number,
            "perplexity": jnp.exp(loss),
        }

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Array:
        arrays = self._fixed(data, split)

        def guesses(batch: Batch) -> Array:
            logits = self.outputs(params, model_state, batch)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)

        found = self.drawn.each(arrays, guesses)
        return found.reshape(-1)[: arrays["labels"].size]

    def outputs(self, params: Params, model_state: ModelState, batch: Batch) -> Array:
        tokens = self.drawn.tokens(batch)
        return self.model.apply(params, model_state, tokens, train=False)[0]

    def _hidden(self, key: Key, ids: Array) -> Batch:
        return hide(key, ids, self.vocabulary, self.number)._asdict()

    def _fixed(self, data: PyTree, split: str) -> PyTree:
        """A split with the same tokens to be guessed for every network."""
        return self._hidden(of_seed(_EVALUATION), data[split]["ids"])


def _sums(logits: Array, batch: Batch) -> tuple[Array, Array, Array]:
    """Of all tokens to be guessed: the loss, how many are wrong, how many there are."""
    logits, labels = activations.wide(logits), batch["labels"]
    counts = batch["counts"] * batch["weight"][:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    wrong = ~metrics.guessed(logits, labels)
    return jnp.sum(losses * counts), jnp.sum(wrong * counts), jnp.sum(counts)


def masked_lm(
    texts: Texts,
    model: nn.Module | None = None,
    *,
    init: Callable[..., Any] | None = None,
    apply: Callable[..., Any] | None = None,
    batch_size: int,
    rate: float = 0.15,
    drop_last: bool = True,
    evaluation_batch: int = 64,
    prunable: Callable[[Params], PyTree] | None = None,
    exclude: tuple[str, ...] = (),
    head: tuple[str, ...] = _texts.HEAD,
) -> Task:
    """Masked language modelling on windows of a text.

    The tokens to be guessed are drawn from the noise at every step; in evaluation they are
    the same for every network. They are as many in each window, so that the output layer
    is asked for them alone.

    Args:
      texts: from `data.text.windows`: `ids [N, L]`, whole windows.
      model: a Linen module, `model.apply(variables, tokens)` gives logits `[batch, P,
        vocabulary]` of the tokens at `tokens.positions`, such as `models.Bert`.
      init: instead of a model, with `apply`; see `classification`.
      apply: `apply(params, tokens, ...)`, with a `data.text.Tokens`.
      batch_size: windows per step.
      rate: share of a window's tokens that are to be guessed, in (0, 1): P of L.
      drop_last: whether an epoch leaves out a last batch that is not full.
      evaluation_batch: windows evaluated at once.
      prunable: which leaves count; None for the model's `prunable_patterns` (the dense
        kernels of the layers of `models.Bert`), or what `masks.prunable` finds.
      exclude: patterns of leaves that count as prunable and are never cut.
      head: patterns of the leaves that transfer replaces.

    Returns:
      A Task whose `evaluate` has `loss` (nats per token), `error` and `perplexity`.

    Raises:
      ValueError: texts that `data.text.check` refuses, a metric that is not one of
        these, a vocabulary without [MASK], a rate by which no token were to be guessed, or
        a model that does not fit.
    """
    texts = _texts.checked(texts, "ids")
    _texts.check_metric(texts, ("loss", "error", "perplexity"))
    arrays = texts.arrays["train"]
    if set(arrays) != {"ids"}:
        must = "ids alone, of whole windows: padding would be a text like any other"
        raise errors.wrong(f"{texts.name}: arrays of 'train'", list(arrays), must)
    if arrays["ids"].ndim != 2:
        must = "[windows, length], such as data.text.windows makes"
        raise errors.wrong(f"{texts.name}: ids.shape", arrays["ids"].shape, must)
    length = arrays["ids"].shape[1]
    if texts.vocabulary.mask is None:
        raise errors.wrong("texts.vocabulary.mask", None, "the id of [MASK]")
    errors.share("rate", rate)
    number = round(rate * length)
    if number < 1:
        must = f"at least {1 / length:.3f}, one token of the {length} of a window"
        raise errors.wrong("rate", rate, must)
    drawn = _texts.sequences(
        texts,
        batch_size=batch_size,
        drop_last=drop_last,
        evaluation_batch=evaluation_batch,
    )
    drawn = dataclasses.replace(drawn, pad=None)
    fitted = _texts.fit(
        texts,
        model,
        (init, apply),
        drawn,
        _texts.shape(length, number),
        (number, texts.vocabulary.size),
        f"[windows, tokens to be guessed, vocabulary of {texts.name}]",
        prunable=prunable,
        exclude=exclude,
        head=head,
    )
    static = _MaskedLM(fitted.model, drawn, texts.vocabulary, number)
    return _texts.task(texts, drawn, fitted, static, batch=static.batch)
