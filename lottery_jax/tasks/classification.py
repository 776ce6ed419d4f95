"""Classification of images or vectors by a Linen model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from lottery_jax import data as datasets
from lottery_jax import models
from lottery_jax.types import (
    Array,
    Batch,
    Key,
    Mask,
    Metrics,
    ModelState,
    Network,
    Params,
    PyTree,
    StreamState,
    Task,
)


@dataclasses.dataclass(frozen=True)
class _Classification:
    """The static part of the task; its methods are the Task's functions."""

    model: nn.Module
    shape: tuple[int, ...]
    num_train: int
    batch_size: int
    evaluation_batch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: tuple[str, ...]

    def init(self, key: Key) -> tuple[Params, ModelState, StreamState]:
        variables = self.model.init(key, jnp.zeros((1, *self.shape)), train=False)
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        return variables["params"], rest, ()

    def narrow(self, key: Key, count: int) -> tuple[Network, Mask]:
        params, model_state, _ = self.init(key)
        narrowed, mask = models.narrow(self.model, params, count)
        return Network(narrowed, model_state), mask

    def order(self, noise_key: Key, epoch: Array) -> Array:
        return datasets.permutation(noise_key, epoch, self.num_train, self.batch_size)

    def batch(self, data: PyTree, indices: Array, noise_key: Key, step: Array) -> Batch:
        full = self.num_train % self.batch_size == 0
        batch = datasets.gather(data["train"], indices, full=full)
        images = batch["image"]
        if self.augment:
            key = jax.random.fold_in(noise_key, step)
            if self.augment == ("flip", "crop"):
                images = datasets.flip_and_crop(key, images)
            else:
                one = (
                    datasets.flip if self.augment == ("flip",) else datasets.shift_crop
                )
                images = one(key, images)
        return batch | {"image": datasets.normalize(images, self.mean, self.std)}

    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        variables: dict[str, Any] = {"params": params, **model_state}
        weight = batch["weight"]
        out = self.model.apply(
            variables,
            batch["image"],
            train=True,
            weights=weight,
            mutable=list(model_state),
            rngs={"dropout": key},
        )
        logits, model_state = out
        share = weight / jnp.sum(weight)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        loss = jnp.sum(losses * share)
        wrong = jnp.argmax(logits, axis=-1) != batch["label"]
        metrics = {"loss": loss, "error": jnp.sum(wrong * share)}
        return loss, (model_state, stream_state, metrics)

    def _each_batch(
        self,
        params: Params,
        model_state: ModelState,
        arrays: PyTree,
        measure: Callable[[Array, PyTree], PyTree],
    ) -> PyTree:
        """`measure(logits, batch)` of each batch of a split, stacked."""
        number = arrays["label"].shape[0]
        size = min(self.evaluation_batch, number)

        def some(rows: Array) -> PyTree:
            batch = datasets.gather(arrays, rows)
            images = datasets.normalize(batch["image"], self.mean, self.std)
            variables = {"params": params, **model_state}
            logits: Any = self.model.apply(variables, images, train=False)
            return measure(logits, batch)

        return jax.lax.map(some, datasets.sequential(number, size))

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        arrays = data[split]
        number = arrays["label"].shape[0]

        def sums(logits: Array, batch: PyTree) -> tuple[Array, Array]:
            label, weight = batch["label"], batch["weight"]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            wrong = jnp.argmax(logits, axis=-1) != label
            return jnp.sum(losses * weight), jnp.sum(wrong * weight)

        loss, wrong = self._each_batch(params, model_state, arrays, sums)
        return {"loss": jnp.sum(loss) / number, "error": jnp.sum(wrong) / number}

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Array:
        arrays = data[split]

        def classes(logits: Array, batch: PyTree) -> Array:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)

        found = self._each_batch(params, model_state, arrays, classes)
        return found.reshape(-1)[: arrays["label"].shape[0]]

    def statistics(
        self, params: Params, model_state: ModelState, batch: Batch
    ) -> PyTree:
        # With momentum 0 a training pass leaves the batch's own moments behind.
        choices = dataclasses.replace(
            self.model.choices,
            momentum=0.0,
            unbiased=False,
        )
        _, state = self.model.clone(choices=choices).apply(
            {"params": params, **model_state},
            batch["image"],
            train=True,
            weights=batch["weight"],
            mutable=list(model_state),
        )
        return _each_norm(
            state,
            lambda norm: {
                "mean": norm["mean"],
                "square": norm["var"] + jnp.square(norm["mean"]),
            },
        )

    def pool(self, moments: PyTree) -> ModelState:
        return _each_norm(
            moments,
            lambda norm: {
                "mean": norm["mean"],
                "var": jnp.maximum(norm["square"] - jnp.square(norm["mean"]), 0),
            },
        )


def _each_norm(tree: PyTree, change: Callable[[PyTree], PyTree]) -> PyTree:
    """Changes every BatchNorm's dict of moments in a nested dict."""
    if "mean" in tree:
        return change(tree)
    return {name: _each_norm(inner, change) for name, inner in tree.items()}


def classification(
    dataset: datasets.Dataset,
    model: nn.Module,
    *,
    batch_size: int,
    augment: tuple[str, ...] = (),
    evaluation_batch: int = 500,
    exclude: tuple[str, ...] = (),
) -> Task:
    """A classification task: a data set, a model, cross-entropy.

    Args:
      dataset: from `lottery_jax.data.load`, or arrays of one's own in that form.
      model: `model.apply(variables, images, train=..., weights=...)` gives logits
        `[batch, classes]`; the output layer is called `head`.
      batch_size: examples per step; the last batch of an epoch is padded with examples
        of weight 0.
      augment: of "flip" and "crop" (a shift by up to 4 pixels), in this order; needs
        images.
      evaluation_batch: examples evaluated at once.
      exclude: patterns of leaves that count as prunable and are never cut.

    Raises:
      ValueError: batch_size outside [1, number of training examples], an unknown
        augmentation, or one that does not fit the data.
    """
    num_train = len(dataset.arrays["train"]["label"])
    if not 1 <= batch_size <= num_train:
        raise ValueError(
            f"batch_size={batch_size}; it must be between 1 and {num_train}, the number "
            f"of training examples of {dataset.name}"
        )
    if augment not in ((), ("flip",), ("crop",), ("flip", "crop")):
        raise ValueError(
            f"augment={augment!r}; it must be of 'flip' and 'crop', in this order"
        )
    if augment and len(dataset.shape) != 3:
        raise ValueError(
            f"augment={augment!r} needs images; {dataset.name} has examples of shape "
            f"{dataset.shape}"
        )
    static = _Classification(
        model,
        dataset.shape,
        num_train,
        batch_size,
        evaluation_batch,
        dataset.mean,
        dataset.std,
        augment,
    )
    return Task(
        data=dataset.arrays,
        init=static.init,
        order=static.order,
        batch=static.batch,
        loss=static.loss,
        evaluate=static.evaluate,
        steps_per_epoch=datasets.steps_per_epoch(num_train, batch_size),
        exclude=exclude,
        head=("(^|/)head/",),
        narrow=static.narrow,
        # A model of one's own says itself what its statistics are: Task._replace.
        statistics=static.statistics if hasattr(model, "choices") else None,
        pool=static.pool,
        predict=static.predict,
        validates="validation" in dataset.arrays,
    )
