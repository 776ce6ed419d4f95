"""Sentences, or pairs of them, with a class or a number each: fine-tuning of an encoder.

Wang et al., GLUE: A Multi-Task Benchmark, 2019; Devlin et al. 2019, section 4.1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from flax import linen as nn

from lottery_jax import activations
from lottery_jax.data.text import Texts
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
class _Sentences:
    """The static part of the task; its methods are the Task's functions."""

    model: _models.Model
    drawn: _texts.Sequences
    num_classes: int | None

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
        said, model_state = self.model.apply(
            params,
            model_state,
            self.drawn.tokens(batch),
            train=True,
            key=key,
            weights=batch["weight"],
        )
        share = batch["weight"] / jnp.sum(batch["weight"])
        said = activations.wide(said)
        loss = jnp.sum(self._losses(said, batch["label"]) * share)
        found = {"loss": loss}
        if self.num_classes is not None:
            wrong = jnp.argmax(said, axis=-1) != batch["label"]
            found["error"] = jnp.sum(wrong * share)
        return loss, (model_state, stream_state, found)

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        label = data[split]["label"]
        said = self._said(params, model_state, data, split)
        loss = jnp.mean(self._losses(said, label))
        if self.num_classes is None:
            number = said[:, 0]
            return {
                "loss": loss,
                "pearson": metrics.pearson(number, label),
                "spearman": metrics.spearman(number, label),
            }
        classes = jnp.argmax(said, axis=-1)
        found = {
            "loss": loss,
            "error": jnp.mean((classes != label).astype(jnp.float32)),
            "matthews": metrics.matthews(classes, label, self.num_classes),
        }
        if self.num_classes == 2:
            found["f1"] = metrics.f1(classes, label)
        return found

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Array:
        said = self._said(params, model_state, data, split)
        return jnp.argmax(said, axis=-1).astype(jnp.int32)

    def outputs(self, params: Params, model_state: ModelState, batch: Batch) -> Array:
        tokens = self.drawn.tokens(batch)
        return self.model.apply(params, model_state, tokens, train=False)[0]

    def _losses(self, said: Array, label: Array) -> Array:
        """Of each example: cross-entropy in nats, or the squared difference."""
        if self.num_classes is None:
            return jnp.square(said[:, 0] - label)
        return optax.softmax_cross_entropy_with_integer_labels(said, label)

    def _said(
        self, params: Params, model_state: ModelState, data: PyTree, split: str
    ) -> Array:
        """What the network says of a split, `[N, C]`."""
        arrays = data[split]
        found = self.drawn.each(
            arrays, lambda batch: self.outputs(params, model_state, batch)
        )
        found = activations.wide(found)
        return found.reshape(-1, found.shape[-1])[: arrays["label"].shape[0]]


def _measured(num_classes: int | None) -> tuple[str, ...]:
    """The names of what is measured of networks; see `_Sentences.evaluate`."""
    if num_classes is None:
        return ("loss", "pearson", "spearman")
    return ("loss", "error", "matthews", *(["f1"] if num_classes == 2 else []))


def sentences(
    texts: Texts,
    model: nn.Module | None = None,
    *,
    init: Callable[..., Any] | None = None,
    apply: Callable[..., Any] | None = None,
    batch_size: int,
    drop_last: bool = False,
    evaluation_batch: int = 200,
    prunable: Callable[[Params], PyTree] | None = None,
    exclude: tuple[str, ...] = (),
    head: tuple[str, ...] = _texts.HEAD,
) -> Task:
    """Classification of sentences or pairs of them, or regression.

    Args:
      texts: from `data.text.sentences`. With `num_classes` None its labels are numbers.
      model: a Linen module, `model.apply(variables, tokens)` gives logits `[batch,
        classes]`, or numbers `[batch, 1]`, such as `models.Bert(head="classes")`.
      init: instead of a model, with `apply`; see `classification`.
      apply: `apply(params, tokens, ...)`, with a `data.text.Tokens`.
      batch_size: examples per step.
      drop_last: whether an epoch leaves out a last batch that is not full; otherwise it
        is padded with examples of weight 0.
      evaluation_batch: examples evaluated at once.
      prunable: which leaves count; None for the model's `prunable_patterns` (the dense
        kernels of the layers of `models.Bert`), or what `masks.prunable` finds.
      exclude: patterns of leaves that count as prunable and are never cut.
      head: patterns of the leaves that transfer replaces.

    Returns:
      A Task whose `evaluate` has, of classes, `loss` (nats), `error`, `matthews` and, of
      two, `f1` of class 1; of numbers, `loss` (mean squared difference), `pearson` and
      `spearman`. The last three are those of the whole split, see `tasks.metrics`.

    Raises:
      ValueError: texts that `data.text.check` refuses, a metric that is not one of
        these, or a model that does not fit.
    """
    texts = _texts.checked(texts, "ids", "label")
    _texts.check_metric(texts, _measured(texts.num_classes))
    drawn = _texts.sequences(
        texts,
        batch_size=batch_size,
        drop_last=drop_last,
        evaluation_batch=evaluation_batch,
    )
    length, classes = texts.arrays["train"]["ids"].shape[1], texts.num_classes
    fitted = _texts.fit(
        texts,
        model,
        (init, apply),
        drawn,
        _texts.shape(length),
        (1 if classes is None else classes,),
        f"[examples, {'a number' if classes is None else f'classes of {texts.name}'}]",
        prunable=prunable,
        exclude=exclude,
        head=head,
    )
    static = _Sentences(fitted.model, drawn, classes)
    return _texts.task(texts, drawn, fitted, static, predicts=classes is not None)
