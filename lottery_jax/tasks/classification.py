"""Classification of images or vectors: cross-entropy, by a model of any library."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from lottery_jax import activations, errors, means, models
from lottery_jax import data as datasets
from lottery_jax.keys import settled
from lottery_jax.tasks import _batches, _models
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

    model: _models.Model
    batches: _batches.Batches
    label_smoothing: float

    @settled
    def init(self, key: Key) -> tuple[Params, ModelState, StreamState]:
        params, model_state = self.model.init(key)
        return params, model_state, ()

    @settled
    def narrow(self, key: Key, count: int) -> tuple[Network, Mask]:
        assert isinstance(self.model, _models.Linen)
        params, model_state = self.model.init(key)
        narrowed, mask = models.narrow(self.model.module, params, count)
        return Network(narrowed, model_state), mask

    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        weight = batch["weight"]
        logits, model_state = self.model.apply(
            params, model_state, batch["image"], train=True, key=key, weights=weight
        )
        logits, share = activations.wide(logits), weight / jnp.sum(weight)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        if self.label_smoothing:
            losses = _smoothed(losses, logits, self.label_smoothing)
        loss = jnp.sum(losses * share)
        wrong = jnp.argmax(logits, axis=-1) != batch["label"]
        metrics = {"loss": loss, "error": jnp.sum(wrong * share)}
        return loss, (model_state, stream_state, metrics)

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

        def sums(batch: Batch) -> tuple[Array, Array]:
            logits = activations.wide(self.outputs(params, model_state, batch))
            label, weight = batch["label"], batch["weight"]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            wrong = jnp.argmax(logits, axis=-1) != label
            return jnp.sum(losses * weight), jnp.sum(wrong * weight)

        loss, wrong = self.batches.each(arrays, sums)
        size = self.batches.at_once(number)
        return {
            "loss": means.of(loss, number, size),
            "error": means.of(wrong, number, size),
        }

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Array:
        arrays = data[split]

        def classes(batch: Batch) -> Array:
            logits = self.outputs(params, model_state, batch)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)

        found = self.batches.each(arrays, classes)
        return found.reshape(-1)[: arrays["label"].shape[0]]

    def outputs(self, params: Params, model_state: ModelState, batch: Batch) -> Array:
        return self.model.apply(params, model_state, batch["image"], train=False)[0]


def _smoothed(losses: Array, logits: Array, smoothing: float) -> Array:
    """Cross-entropies with labels of which a share is spread over all classes.

    Args:
      losses: cross-entropies with the labels, `[B]`.
      logits: `[B, classes]`.
      smoothing: the share.
    """
    spread = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
    return (1 - smoothing) * losses + smoothing * spread


def classification(
    dataset: datasets.Dataset,
    model: nn.Module | None = None,
    *,
    init: Callable[..., Any] | None = None,
    apply: Callable[..., Any] | None = None,
    batch_size: int,
    drop_last: bool = False,
    augment: tuple[str, ...] = (),
    crop: int | None = None,
    label_smoothing: float = 0.0,
    evaluation_batch: int = 500,
    prunable: Callable[[Params], PyTree] | None = None,
    exclude: tuple[str, ...] = (),
    head: tuple[str, ...] = ("(^|/)head/",),
) -> Task:
    """A classification task: a data set, a model, cross-entropy.

    The model is a Linen module, or two pure functions, which any library can give:

        init(key) -> params                     apply(params, images) -> logits
        init(key) -> (params, model_state)      apply(params, model_state, images)
                                                    -> (logits, model_state)

    `apply` may have further parameters, each of which is given if it is there: `train`,
    a bool; `key`, for what training draws (dropout), None in evaluation; `weights`,
    float32 `[batch]`, 0 for the padding of a last batch, None in evaluation. Both are
    functions of a module. An array that they use and that is no argument becomes a
    constant of every compiled program: a table may be, data and weights may not.

    Flax NNX (the graph definition holds no arrays; dropout is given its key):

        def split(net): return nnx.split(net, nnx.Param, ...)

        GRAPH = split(nnx.eval_shape(lambda: Net(rngs=nnx.Rngs(0))))[0]

        def init(key):
            return split(Net(rngs=nnx.Rngs(key)))[1:]

        def apply(params, model_state, images, *, train, key, weights):
            net = nnx.merge(GRAPH, params, model_state)
            logits = net(images, train, key, weights)
            return logits, split(net)[2]

    Equinox (the static part holds no arrays):

        def build(key): return eqx.nn.MLP(784, 10, 300, depth=2, key=key)

        def init(key): return eqx.filter(build(key), eqx.is_inexact_array)

        STATIC = eqx.filter(build(jax.random.key(0)), eqx.is_inexact_array, inverse=True)

        def apply(params, images):
            net = eqx.combine(params, STATIC)
            return jax.vmap(net)(images.reshape(len(images), -1))

    Haiku, without a state and with one:

        NET = hk.transform(forward)  # draws with `hk.maybe_next_rng_key`: no key, no noise

        def init(key): return NET.init(key, jnp.zeros((1, 784)))

        def apply(params, images, *, key): return NET.apply(params, key, images)

        NET = hk.transform_with_state(forward)  # forward(images, train)

        def init(key): return NET.init(key, jnp.zeros((1, 784)), True)

        def apply(params, model_state, images, *, train, key):
            return NET.apply(params, model_state, key, images, train)

    Args:
      dataset: from `lottery_jax.data.load`, or arrays of one's own in that form, which
        `data.check` looks at.
      model: a Linen module, `model.apply(variables, images)` gives logits `[batch,
        classes]`. If its `__call__` has them, it is given `train` (or `training`,
        `is_training`, `deterministic`, `use_running_average`) and `weights`. Flax's own
        `nn.Dropout` and `nn.BatchNorm` work: padding does not enter the statistics, and
        they can be recomputed, by training passes with dropout, whose masks are a
        function of the batch and the same for all networks. Collections that keep their
        shapes are its state (statistics, SpectralNorm's vectors, counters); those that
        grow with every call or with the batch (`self.sow`, `self.perturb`) are left out.
      init: instead of a model, with `apply`: draws what a network starts from.
      apply: see above; images are float32 `[batch, *dataset.shape]`, or
        `[batch, crop, crop, C]`, normalised.
      batch_size: examples per step, in [1, training examples].
      drop_last: whether an epoch leaves out a last batch that is not full. By default it
        is padded with examples of weight 0. A model state that cannot know them, since
        the model has no parameter `weights`, is refused.
      augment: of "flip" and "crop" (a shift by up to 4 pixels), in this order; or of
        "resized_crop" (`data.random_resized_crop`, a window of 8% to 100% of the area)
        and "flip"; needs images.
      crop: pixels of a side of the square that networks see: of a resized crop in
        training, of the middle of an image wherever none is made, in evaluation and in
        training without one. None for images as they are stored.
      label_smoothing: the share of each label that is spread over all classes in the
        training loss, in [0, 1) (Szegedy et al. 2016, section 7); networks are measured
        by the cross-entropy with the labels themselves.
      evaluation_batch: examples evaluated at once.
      prunable: `params -> Prunable`, which leaves count; None for those that
        `masks.prunable` finds.
      exclude: patterns of leaves that count as prunable and are never cut.
      head: patterns of the output layer's leaves.

    Raises:
      ValueError: a data set that `data.check` refuses; not one of model and (init, apply);
        no params to train; logits that are no real array [batch, classes]; a model state
        that changes its structure, shapes or dtypes; a padded batch that would enter the
        model state; random numbers in evaluation; batch_size or evaluation_batch out of
        range, an unknown augmentation, or one that does not fit the data; a crop larger
        than the images, or of what is no image, or with an augmentation that has a size
        of its own; label_smoothing out of range; patterns of `exclude` that match
        nothing. All of it before anything is compiled.

    References:
      Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016.
    """
    dataset = datasets.check(dataset)
    batches = _batches.of(
        dataset,
        batch_size=batch_size,
        drop_last=drop_last,
        augment=augment,
        evaluation_batch=evaluation_batch,
        crop=crop,
    )
    errors.within("label_smoothing", label_smoothing, 0, 1)
    if label_smoothing == 1:
        must = "below 1: nothing would be left of the labels"
        raise errors.wrong("label_smoothing", label_smoothing, must)
    _models.check_prunable(prunable)
    exclude, head = _models.patterns("exclude", exclude), _models.patterns("head", head)
    used = _models.of(model, init, apply, batches.shape, batches.padded)
    own = isinstance(used, _models.Linen)
    # Only when it was traced is it known what training leaves in the state.
    foreign = used.foreign
    if foreign and batches.padded and "weights" not in used.options:
        raise ValueError(
            f"batch_size={batch_size}; it must divide {batches.num_train}, the number of "
            f"training examples of {dataset.name}, or drop_last be True: the last batch of "
            "an epoch is padded, which would enter the model state. (A model with a "
            "parameter `weights` can leave out examples of weight 0.)"
        )
    static = _Classification(used, batches, float(label_smoothing))
    images = _models.batched(batches.shape, batches.batch_size)
    wanted = (batches.batch_size, dataset.num_classes)
    params = _models.check(
        used, images, wanted, f"[examples, classes of {dataset.name}]"
    )
    _models.check_found(params, exclude=exclude)
    return Task(
        data=dataset.arrays,
        init=static.init,
        order=batches.order,
        batch=batches.batch,
        loss=static.loss,
        evaluate=static.evaluate,
        steps_per_epoch=batches.steps_per_epoch,
        prunable=prunable,
        exclude=exclude,
        head=head,
        narrow=static.narrow if own else None,
        # Of other states the user says what to average: Task._replace.
        statistics=used.statistics
        if isinstance(used, _models.Linen) and not foreign
        else None,
        pool=_models.pool if own and not foreign else None,
        predict=static.predict,
        outputs=static.outputs,
        validates="validation" in dataset.arrays,
    )
