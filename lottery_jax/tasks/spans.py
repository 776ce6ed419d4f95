"""Answers as spans of a text: the first and the last token of each are found.

Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, 2016;
Devlin et al. 2019, section 4.2.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from flax import linen as nn

from lottery_jax import activations, errors
from lottery_jax.data.text import Texts, Tokens
from lottery_jax.keys import settled
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


@dataclasses.dataclass(frozen=True)
class _Spans:
    """The static part of the task; its methods are the Task's functions."""

    model: _models.Model
    drawn: _texts.Sequences
    separator: int | None
    longest: int

    @settled
    def init(self, key: Key) -> tuple[Params, ModelState, StreamState]:
        return *self.model.init(key), ()

    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        tokens = self.drawn.tokens(batch)
        scores, model_state = self.model.apply(
            params, model_state, tokens, train=True, key=key, weights=batch["weight"]
        )
        share = batch["weight"] / jnp.sum(batch["weight"])
        loss = jnp.sum(self._losses(scores, tokens, batch["answers"]) * share)
        return loss, (model_state, stream_state, {"loss": loss})

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        def sums(batch: Batch) -> tuple[Array, Array, Array]:
            tokens, answers = self.drawn.tokens(batch), batch["answers"]
            scores = self.outputs(params, model_state, batch)
            losses = self._losses(scores, tokens, answers)
            span = self._best(scores, tokens)
            f1, exact = metrics.span_overlap(*span, answers)
            return tuple(jnp.sum(x * batch["weight"]) for x in (losses, f1, exact))  # type: ignore[return-value]

        arrays = data[split]
        parts = self.drawn.each(arrays, sums)
        number = arrays["ids"].shape[0]
        loss, f1, exact = (jnp.sum(part) / number for part in parts)
        return {"loss": loss, "error": 1 - exact, "exact_match": exact, "f1": f1}

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Array:
        arrays = data[split]
        length = arrays["ids"].shape[1]

        def spans(batch: Batch) -> Array:
            scores = self.outputs(params, model_state, batch)
            first, last = self._best(scores, self.drawn.tokens(batch))
            return (first * length + last).astype(jnp.int32)

        return self.drawn.each(arrays, spans).reshape(-1)[: arrays["ids"].shape[0]]

    def outputs(self, params: Params, model_state: ModelState, batch: Batch) -> Array:
        tokens = self.drawn.tokens(batch)
        return self.model.apply(params, model_state, tokens, train=False)[0]

    def _losses(self, scores: Array, tokens: Tokens, answers: Array) -> Array:
        """The mean of two cross-entropies over the tokens that are there, in nats."""
        scores = activations.wide(scores)
        least = jnp.finfo(scores.dtype).min
        scores = jnp.where(tokens.present[..., None], scores, least)
        both = optax.softmax_cross_entropy_with_integer_labels(
            jnp.swapaxes(scores, 1, 2), answers[:, 0]
        )
        return jnp.mean(both, axis=-1)

    def _best(self, scores: Array, tokens: Tokens) -> tuple[Array, Array]:
        context = tokens.present & (tokens.types == 1)
        if self.separator is not None:
            context &= tokens.ids != self.separator
        return metrics.best_span(activations.wide(scores), context, self.longest)


def spans(
    texts: Texts,
    model: nn.Module | None = None,
    *,
    init: Callable[..., Any] | None = None,
    apply: Callable[..., Any] | None = None,
    batch_size: int,
    longest: int = 30,
    drop_last: bool = False,
    evaluation_batch: int = 100,
    prunable: Callable[[Params], PyTree] | None = None,
    exclude: tuple[str, ...] = (),
    head: tuple[str, ...] = _texts.HEAD,
) -> Task:
    """Extraction of answers: which tokens of a text answer a question.

    Training knows the first accepted answer; in evaluation the best of all counts. F1 and
    exact match are those of tokens: the official ones of SQuAD are of words, without case,
    articles and punctuation, and a little higher.

    Args:
      texts: from `data.text.squad`.
      model: a Linen module, `model.apply(variables, tokens)` gives scores of every token
        as the first and as the last of the answer, `[batch, L, 2]`, such as
        `models.Bert(head="span")`.
      init: instead of a model, with `apply`; see `classification`.
      apply: `apply(params, tokens, ...)`, with a `data.text.Tokens`.
      batch_size: questions per step.
      longest: tokens of the longest answer that is given, 1 or more.
      drop_last: whether an epoch leaves out a last batch that is not full; otherwise it
        is padded with examples of weight 0.
      evaluation_batch: questions evaluated at once.
      prunable: which leaves count; None for the model's `prunable_patterns` (the dense
        kernels of the layers of `models.Bert`), or what `masks.prunable` finds.
      exclude: patterns of leaves that count as prunable and are never cut.
      head: patterns of the leaves that transfer replaces.

    Returns:
      A Task whose `evaluate` has `loss` (nats), `f1`, `exact_match`, and `error`, 1 less
      the exact matches. `predict` numbers the spans: first token times L, plus last.

    Raises:
      ValueError: texts that `data.text.check` refuses, a metric that is not one of
        these, or a model that does not fit.
    """
    texts = _texts.checked(texts, "ids", "types", "answers")
    _texts.check_metric(texts, ("loss", "error", "exact_match", "f1"))
    longest = errors.whole("longest", longest, 1)
    drawn = _texts.sequences(
        texts,
        batch_size=batch_size,
        drop_last=drop_last,
        evaluation_batch=evaluation_batch,
    )
    length = texts.arrays["train"]["ids"].shape[1]
    fitted = _texts.fit(
        texts,
        model,
        (init, apply),
        drawn,
        _texts.shape(length),
        (length, 2),
        "[questions, tokens, first and last]",
        prunable=prunable,
        exclude=exclude,
        head=head,
    )
    static = _Spans(fitted.model, drawn, texts.vocabulary.separator, longest)
    return _texts.task(texts, drawn, fitted, static)
