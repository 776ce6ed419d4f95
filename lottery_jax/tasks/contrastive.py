"""Contrastive pre-training: two views of an image are alike, those of others are not."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lottery_jax import activations, errors, masks, models, trees
from lottery_jax import data as datasets
from lottery_jax.data import views as seen
from lottery_jax.data.views import Views
from lottery_jax.keys import of_seed, settled
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
    Prunable,
    PyTree,
    StreamState,
    Task,
)

Viewer: TypeAlias = Callable[[Key, Array], tuple[Array, Array]]
"""`(key, images) -> (first, second)`: views of one's own. Images are float32 `[B, ...]`,
uint8 divided by 255; both views have their shape."""

_EVALUATION = 0x7E575
"""The seed of the views that networks are evaluated on."""

_SHORTEST = 1e-12
"""The least squared length that a projection is divided by, as its root."""


def nt_xent(first: Array, second: Array, temperature: float) -> tuple[Array, Array]:
    """The normalised temperature-scaled cross-entropy of two views of each example.

    Each of the 2 B projections, divided by its length, guesses its partner among the
    2 B - 1 others by their cosines over the temperature; the loss is the mean of the
    negative logarithms of the partners' probabilities. (Chen et al. 2021 train with the
    logarithm of their mean instead; this is not that.)

    Args:
      first: projections of the first views, float `[B, d]`, B at least 2.
      second: those of the second ones.
      temperature: above 0.

    Returns:
      The loss, and the contrastive error: the share of projections that are closer to
      another than to their partner. Both `[]`.

    Raises:
      ValueError: views of other shapes, a batch of one, or a temperature that is not
        above 0.

    References:
      Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
        2020, equation 1 and algorithm 1.
    """
    if first.ndim != 2 or first.shape != second.shape:
        must = f"[B, d], and that of the second views, {second.shape}"
        raise errors.wrong("first.shape", first.shape, must)
    if len(first) < 2:
        must = "2 or more: each view is told from those of other examples"
        raise errors.wrong("len(first)", len(first), must)
    _check_temperature(temperature)
    number = len(first)
    z = jnp.concatenate([first, second])
    squares = jnp.sum(z * z, axis=-1, keepdims=True)
    z = z * jax.lax.rsqrt(jnp.maximum(squares, _SHORTEST))
    # In full precision: a temperature magnifies what is rounded.
    cosines = jnp.einsum("id,jd->ij", z, z, precision="highest")
    places = jnp.arange(2 * number, dtype=jnp.int32)
    itself = places[:, None] == places[None, :]
    scores = jnp.where(itself, -jnp.inf, cosines / temperature)
    partners = jnp.roll(places, number)
    right = jnp.take_along_axis(scores, partners[:, None], axis=1)[:, 0]
    losses = jax.nn.logsumexp(scores, axis=1) - right
    wrong = jnp.argmax(scores, axis=1).astype(jnp.int32) != partners
    return jnp.mean(losses), jnp.mean(wrong.astype(losses.dtype))


@dataclasses.dataclass(frozen=True)
class _Outside:
    """The leaves that count: those that `masks.prunable` finds, but for the head's."""

    head: tuple[str, ...]

    def __call__(self, params: Params) -> Prunable:
        return masks.prunable(params, exclude=self.head)


@dataclasses.dataclass(frozen=True)
class _Contrastive:
    """The static part of the task; its methods are the Task's functions."""

    model: _models.Model
    drawn: _batches.Drawn
    views: Views | Viewer
    temperature: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

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

    def batch(self, data: PyTree, indices: Array, noise_key: Key, step: Array) -> Batch:
        batch = self.drawn.gathered(data, indices)
        return self.viewed(jax.random.fold_in(noise_key, step), batch)

    @settled
    def viewed(self, key: Key, batch: Batch) -> Batch:
        """A batch of images as views of them, normalised."""
        images = batch.pop("image")
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        images = images.astype(jnp.float32)
        if isinstance(self.views, Views):
            pair = seen.two(key, images, self.views)
        else:
            pair = self.views(key, images)
        first, second = (datasets.normalize(x, self.mean, self.std) for x in pair)
        return batch | {"first": first, "second": second}

    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        batch = _together(batch)
        projections, model_state = self.model.apply(
            params,
            model_state,
            batch["image"],
            train=True,
            key=key,
            weights=batch["weight"],
        )
        loss, error = self.measured(projections)
        metrics = {"loss": loss, "error": error}
        return loss, (model_state, stream_state, metrics)

    def measured(self, projections: Array) -> tuple[Array, Array]:
        """Loss and error of what the model says of both views, `[2 B, d]`."""
        projections = activations.wide(projections)
        half = len(projections) // 2
        return nt_xent(projections[:half], projections[half:], self.temperature)

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        arrays = data[split]
        number = trees.count(arrays)
        size = min(self.drawn.evaluation_batch, number)
        batches = number // size

        def one(at: tuple[Array, Array]) -> tuple[Array, Array]:
            position, rows = at
            # The same views for every network that is compared.
            fixed = jax.random.fold_in(of_seed(_EVALUATION), position)
            batch = self.viewed(fixed, datasets.gather(arrays, rows, full=True))
            return self.measured(self.outputs(params, model_state, batch))

        places = jnp.arange(batches, dtype=jnp.int32)
        rows = jnp.arange(batches * size, dtype=jnp.int32).reshape(batches, size)
        loss, error = jax.lax.map(one, (places, rows))
        return {"loss": jnp.mean(loss), "error": jnp.mean(error)}

    def outputs(self, params: Params, model_state: ModelState, batch: Batch) -> Array:
        """Projections of both views, first all first ones: `[2 B, d]`."""
        images = _together(batch)["image"]
        return self.model.apply(params, model_state, images, train=False)[0]

    def statistics(
        self, params: Params, model_state: ModelState, batch: Batch
    ) -> PyTree:
        assert isinstance(self.model, _models.Linen)
        return self.model.statistics(params, model_state, _together(batch))


def _together(batch: Batch) -> Batch:
    """Both views of a batch in one, first all first ones: `[2 B, ...]`."""

    def twice(x: Array, y: Array) -> Array:
        return jnp.concatenate([x, y])

    return {
        "image": twice(batch["first"], batch["second"]),
        "label": twice(batch["label"], batch["label"]),
        "weight": twice(batch["weight"], batch["weight"]),
    }


def contrastive(
    dataset: datasets.Dataset,
    model: nn.Module | None = None,
    *,
    init: Callable[..., Any] | None = None,
    apply: Callable[..., Any] | None = None,
    batch_size: int,
    temperature: float = 0.5,
    views: Views | Viewer = seen.SIMCLR,
    evaluation_batch: int | None = None,
    prunable: Callable[[Params], PyTree] | None = None,
    exclude: tuple[str, ...] = (),
    head: tuple[str, ...] = ("(^|/)head/",),
) -> Task:
    """SimCLR: two views of each image, which are told from those of the others.

    Labels are not looked at. A network is an image model with a projection as its head:

        model = lj.models.make("resnet-8-8", 64, head="projection", hidden=128)

    Both views go through it in one batch, so BatchNorm's statistics are of both. What is
    compared is a batch of one replica: a last batch that is not full is left out, in
    training and in evaluation. Views are of the noise in training, and always the same
    ones in evaluation.

    Args:
      dataset: images, uint8 or float in [0, 1], `[N, H, W, 1]` or `[N, H, W, 3]`; they
        are normalised by its statistics after the views are taken.
      model: a Linen module that gives projections `[batch, d]`; see `classification`.
      init: instead of a model, with `apply`; see `classification`.
      apply: likewise; it gives projections.
      batch_size: images per step, of which there are 2 views each; 2 or more.
      temperature: of the loss (`nt_xent`), above 0.
      views: how views are made: settings of those of SimCLR, or a function
        `(key, images) -> (first, second)`, for which images may be anything.
      evaluation_batch: images that are told apart at once in evaluation, on which the
        metrics depend; None for `batch_size`. A smaller split is one batch.
      prunable: `params -> Prunable`, which leaves count; None for those that
        `masks.prunable` finds outside of the head, which is thrown away afterwards.
      exclude: patterns of leaves that count as prunable and are never cut.
      head: patterns of the projection's leaves, which `transfer` replaces.

    Returns:
      A Task whose `evaluate` has `loss` and `error`, the contrastive top-1 error.

    Raises:
      ValueError: images without views or a known range, a batch or a split of one, a
        temperature that is not above 0, views of another shape, a model whose outputs
        are no real array `[batch, d]`; or as `classification`.

    References:
      Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
        2020, section 2 and algorithm 1.
    """
    dataset = datasets.check(dataset)
    train = dataset.arrays["train"]
    of = f"the training images of {dataset.name}, each told from others"
    batch_size = errors.whole("batch_size", batch_size, 2, len(train["label"]), of)
    if evaluation_batch is None:
        evaluation_batch = batch_size
    evaluation_batch = errors.whole("evaluation_batch", evaluation_batch, 2)
    for split, arrays in dataset.arrays.items():
        if len(arrays["label"]) < 2:
            must = "2 or more images: each is told from others"
            raise errors.wrong(f"arrays[{split!r}]", len(arrays["label"]), must)
    _check_temperature(temperature)
    drawn = _batches.of_examples(
        train,
        dataset.name,
        batch_size=batch_size,
        drop_last=True,
        evaluation_batch=evaluation_batch,
    )
    if isinstance(views, Views):
        seen.check_shape(dataset.shape, dataset.name)
        _check_range(dataset)
    else:
        _check_viewer(views, (batch_size, *dataset.shape))
    exclude, head = _models.patterns("exclude", exclude), _models.patterns("head", head)
    used = _models.of(model, init, apply, dataset.shape, padded=False)
    both = _models.batched(dataset.shape, 2 * batch_size)
    axes = "[views, numbers of a projection]"
    params = _models.check(used, both, (2 * batch_size, None), axes)
    _models.check_prunable(prunable)
    if prunable is None:
        _models.check_found(params, head=head)
        prunable = _Outside(head)
    _models.check_found(params, exclude=exclude)
    static = _Contrastive(
        used, drawn, views, float(temperature), dataset.mean, dataset.std
    )
    own = isinstance(used, _models.Linen)
    averaged = own and not used.foreign
    return Task(
        data=dataset.arrays,
        init=static.init,
        order=drawn.order,
        batch=static.batch,
        loss=static.loss,
        evaluate=static.evaluate,
        steps_per_epoch=drawn.steps_per_epoch,
        prunable=prunable,
        exclude=exclude,
        head=head,
        narrow=static.narrow if own else None,
        statistics=static.statistics if averaged else None,
        pool=_models.pool if averaged else None,
        outputs=static.outputs,
        validates="validation" in dataset.arrays,
    )


def _check_temperature(temperature: float) -> None:
    errors.at_least("temperature", temperature, 0)
    if not 0 < temperature < math.inf:
        raise errors.wrong("temperature", temperature, "above 0, and finite")


def _check_range(dataset: datasets.Dataset) -> None:
    """Whether colours can be changed: whether images are in a range that is known."""
    if dataset.arrays["train"]["image"].dtype == np.uint8:
        return
    why = f"views of {dataset.name} need real numbers in [0, 1] (uint8 may be streamed)"
    datasets.in_memory(dataset, why)
    for split, arrays in dataset.arrays.items():
        images = np.asarray(arrays["image"])
        low, high = float(images.min()), float(images.max())
        if not 0 <= low <= high <= 1:
            raise errors.wrong(
                f"arrays[{split!r}]['image']",
                f"real numbers in [{low:g}, {high:g}]",
                f"uint8, or real in [0, 1] and not normalised: views of {dataset.name} "
                "change brightness and colours",
            )


def _check_viewer(views: Viewer, shape: tuple[int, ...]) -> None:
    """Whether a function makes two views of the images' shape."""
    must = "a lottery_jax.data.Views, or a function (key, images) -> (first, second)"
    errors.is_a("views", views, Callable, must)  # type: ignore[arg-type]
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    pair: Any = jax.eval_shape(views, jax.eval_shape(of_seed, 0), images)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise errors.wrong("views", errors.shown(views), must)
    for which, made in zip(("first", "second"), pair):
        found = getattr(made, "shape", None), getattr(made, "dtype", None)
        if found != (shape, jnp.float32):
            raise errors.wrong(
                f"views: the {which} one",
                f"{found[1]} of shape {found[0]}",
                f"float32 of shape {shape}, as the images are",
            )
