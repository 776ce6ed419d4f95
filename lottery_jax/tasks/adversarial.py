"""Adversarial training of a classifier: an attack inside of the loss, and a measured one.

    attack = lj.tasks.Attack.pgd(0.1, steps=7)
    task = lj.tasks.adversarial(task, dataset, attack)

An attack moves every pixel by at most a radius, such that the loss rises: sign steps,
each projected to the ball around the image and to [0, 1] (PGD, Madry et al. 2018), or one
step of the radius itself (FGSM, Goodfellow et al. 2015). Radius and steps are in pixels of
[0, 1]. The images of a task are normalised, channel by channel, which is affine: there the
step is step / std, the ball radius / std, and the box (0 - mean) / std to (1 - mean) / std.
So nothing is turned back into pixels, and the network is attacked as it is trained.

Any classification task can be wrapped, one of any library, and an anchored one. Training
minimises the inner task's own loss, on the attacked images. The attack costs gradients in
the images alone: none in the weights are made for it.

References:
  Goodfellow, Shlens and Szegedy, Explaining and Harnessing Adversarial Examples, 2015,
    section 4; https://arxiv.org/abs/1412.6572
  Madry, Makelov, Schmidt, Tsipras and Vladu, Towards Deep Learning Models Resistant to
    Adversarial Attacks, 2018, section 2.1; https://arxiv.org/abs/1706.06083
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import activations, errors, keys, streams, trees
from lottery_jax import data as datasets
from lottery_jax.tasks import _batches
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

BatchNorm: TypeAlias = Literal["train", "evaluation"]
"""What BatchNorm normalises by inside of the attack of a training step."""

# Far from the roles of the noise: an attack's start, of the key that the loss has.
_START = 0xA77AC


@dataclasses.dataclass(frozen=True)
class Attack:
    """Sign steps up the loss, within a radius of each pixel; hashable.

    Attributes:
      radius: how far a pixel may move, in (0, 1], of pixels in [0, 1].
      step_size: of a step, of such pixels, in [radius / steps, 2 * radius]: shorter ones
        cannot reach the edge of the ball, longer ones end there from wherever they begin.
      steps: how many, 1 or more.
      random_start: whether the first step begins at a uniform draw of the ball, cut to
        [0, 1], instead of the image.
      restarts: how many draws are tried, 1 or more; of each example the worst counts.
        They need a random start, for without one all would be the same.

    Raises:
      ValueError: a field that is out of range; names it.
    """

    radius: float
    step_size: float
    steps: int = 1
    random_start: bool = False
    restarts: int = 1

    def __post_init__(self) -> None:
        """Refuses what is no attack."""
        errors.within("radius", self.radius, 0, 1)
        if not self.radius > 0:
            raise errors.wrong("radius", self.radius, "in (0, 1], of pixels in [0, 1]")
        steps = errors.whole("steps", self.steps, 1)
        errors.flag("random_start", self.random_start)
        restarts = errors.whole("restarts", self.restarts, 1)
        errors.within("step_size", self.step_size, 0, 2 * self.radius)
        reach = steps * float(self.step_size)
        if reach < self.radius * (1 - 1e-6):
            must = (
                f"{self.radius / steps:g} or more: steps={steps} of it do not reach the "
                f"edge of the ball, radius={self.radius}"
            )
            raise errors.wrong("step_size", self.step_size, must)
        if restarts > 1 and not self.random_start:
            must = "1 without a random start: all restarts would be the same"
            raise errors.wrong("restarts", restarts, must)
        own = {
            "radius": float(self.radius),
            "step_size": float(self.step_size),
            "steps": steps,
            "random_start": bool(self.random_start),
            "restarts": restarts,
        }
        for field, value in own.items():
            object.__setattr__(self, field, value)

    @classmethod
    def fgsm(cls, radius: float) -> "Attack":
        """The fast gradient sign method: one step of the radius, from the image.

        Goodfellow et al. (2015), section 4.

        Args:
          radius: in (0, 1].

        Raises:
          ValueError: no such radius.
        """
        return cls(radius, radius)

    @classmethod
    def pgd(
        cls,
        radius: float,
        steps: int,
        step_size: float | None = None,
        *,
        random_start: bool = True,
        restarts: int = 1,
    ) -> "Attack":
        """Projected gradient descent on the negative loss; Madry et al. (2018), section 2.1.

        Args:
          radius: in (0, 1].
          steps: how many, 1 or more.
          step_size: see `Attack`; None for 2.5 * radius / steps, but no more than the
            radius: every point of the ball can be reached from every other, and steps are
            left over.
          random_start: see `Attack`.
          restarts: see `Attack`.

        Raises:
          ValueError: a value that is out of range; names it.
        """
        if step_size is None:
            errors.within("radius", radius, 0, 1)
            steps = errors.whole("steps", steps, 1)
            step_size = min(radius, 2.5 * radius / steps)
        return cls(radius, step_size, steps, random_start, restarts)


def attacked(
    gradient: Callable[[Array], Array],
    images: Array,
    attack: Attack,
    offset: Array | None = None,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Array:
    """Images after one run of an attack, without restarts.

    Args:
      gradient: of the loss in images, `[B, ...]` to `[B, ...]`; its signs are used.
      images: normalised, float32 `[B, ..., C]`.
      attack: what is done.
      offset: where it starts, in [-1, 1] of the radius, of the images' shape; None for
        the images themselves.
      mean: what was subtracted from pixels in [0, 1]: one number, or one per channel.
      std: what they were divided by after that.

    Returns:
      Images of the same shape: within the radius and within [0, 1], to rounding.
    """
    axes = (1,) * (images.ndim - 1) + (-1,)
    center, scale = (np.asarray(x, np.float32).reshape(axes) for x in (mean, std))
    radius = attack.radius / scale
    low = jnp.maximum(images - radius, (0 - center) / scale)
    high = jnp.minimum(images + radius, (1 - center) / scale)
    step = attack.step_size / scale

    def up(_: Array, found: Array) -> Array:
        return jnp.clip(found + step * jnp.sign(gradient(found)), low, high)

    start = images
    if offset is not None:
        start = jnp.clip(images + radius * offset, low, high)
    return jax.lax.fori_loop(0, attack.steps, up, start)


@keys.settled
def _offset(key: Key, shape: tuple[int, ...]) -> Array:
    """Where an attack starts, of a whole batch."""
    return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class _Adversarial:
    """The static part of the task; its methods are the Task's functions."""

    inner: Task
    batches: _batches.Batches
    attack: Attack | None
    measured: Attack
    examples: int
    batch_norm: BatchNorm
    classes: int
    white: int

    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        if self.attack is not None:
            fixed = jax.lax.stop_gradient(params)

            def of_images(images: Array) -> Array:
                shown = batch | {"image": images}
                if self.batch_norm == "evaluation":
                    return jnp.sum(
                        self._losses(fixed, model_state, shown)[0] * batch["weight"]
                    )
                # The same key: dropout drops what it drops in the loss itself. What the
                # attack leaves in the states is thrown away.
                return self.inner.loss(fixed, model_state, stream_state, shown, key)[0]

            images, offset = batch["image"], None
            if self.attack.random_start:
                offset = _offset(jax.random.fold_in(key, _START), images.shape)
            found = self._attacked(of_images, images, self.attack, offset)
            batch = batch | {"image": jax.lax.stop_gradient(found)}
        return self.inner.loss(params, model_state, stream_state, batch, key)

    def _attacked(
        self,
        loss: Callable[[Array], Array],
        images: Array,
        attack: Attack,
        offset: Array | None,
    ) -> Array:
        scale = 255 / self.white
        mean = tuple(scale * x for x in self.batches.mean)
        std = tuple(scale * x for x in self.batches.std)
        gradient = jax.grad(loss)
        return attacked(gradient, images, attack, offset, mean=mean, std=std)

    def _losses(
        self, params: Params, model_state: ModelState, batch: Batch
    ) -> tuple[Array, Array]:
        """Cross-entropy and answer of each example, in evaluation mode."""
        assert self.inner.outputs is not None
        logits = activations.wide(self.inner.outputs(params, model_state, batch))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses, jnp.argmax(logits, axis=-1)

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        number = min(self.examples, trees.count(data[split]))
        arrays = {name: x[:number] for name, x in data[split].items()}
        # An example's starts are its own, whatever else is in its batch.
        arrays["row"] = jnp.arange(number, dtype=jnp.int32)
        attack, start = self.measured, keys.of_seed(_START)

        def sums(batch: Batch) -> dict[str, Array]:
            images, label, weight = batch["image"], batch["label"], batch["weight"]

            def losses(images: Array) -> tuple[Array, Array]:
                return self._losses(params, model_state, batch | {"image": images})

            def restart(i: Array, worst: tuple[Array, Array]) -> tuple[Array, Array]:
                offset = None
                if attack.random_start:
                    of_restart = jax.random.fold_in(start, i)
                    own = jax.vmap(lambda row: jax.random.fold_in(of_restart, row))(
                        batch["row"]
                    )
                    offset = jax.vmap(lambda key: _offset(key, images.shape[1:]))(own)
                found = self._attacked(
                    lambda x: jnp.sum(losses(x)[0]), images, attack, offset
                )
                loss, answer = losses(found)
                return jnp.maximum(worst[0], loss), worst[1] | (answer != label)

            clean, answer = losses(images)
            # The image itself is in the ball, so it counts as well.
            before = (clean, answer != label)
            loss, wrong = jax.lax.fori_loop(0, attack.restarts, restart, before)
            answers = jax.nn.one_hot(answer, self.classes, dtype=jnp.float32)
            return {
                "loss": jnp.sum(loss * weight),
                "error": jnp.sum(wrong * weight),
                "clean_error": jnp.sum(before[1] * weight),
                "answers": jnp.sum(answers * weight[:, None], axis=0),
            }

        found = jax.tree.map(
            lambda x: jnp.sum(x, axis=0) / number, self.batches.each(arrays, sums)
        )
        return found | {"commonest_answer": jnp.max(found.pop("answers"))}


def adversarial(
    task: Task,
    dataset: datasets.Dataset,
    attack: Attack | None,
    *,
    measured: Attack | None = None,
    examples: int = 1000,
    batch_norm: BatchNorm = "train",
    white: int = 255,
    evaluation_batch: int = 500,
) -> Task:
    """A classification task whose networks are trained, and measured, under attack.

    Its training loss is the task's own on attacked images, and so are the metrics of
    training: `error` there is that under attack. A random start is drawn from the key
    of the loss. Padding of a last batch stays what it is: of weight 0.

    Its `evaluate` measures, of the first `examples` of a split and in evaluation mode:
    `error`, the share of examples that are wrong as they are or after any restart of the
    measured attack; `loss`, the mean of each example's highest among these; `clean_error`,
    without an attack; and `commonest_answer`, the share of the clean answers that are the
    commonest class: 1 for a network that has collapsed to one. Starts are drawn from a
    fixed key for each example and restart, the same for all networks. What else the task
    has (`predict`, `outputs`, statistics) is of clean images, as it was.

    Args:
      task: classifies the images of `dataset`: from `tasks.classification`, or a wrapper of
        such a task.
      dataset: the same data set, of uint8 images, whose pixels are in [0, 1] when they are
        scaled. Its `mean` and `std` say what a pixel is to the network.
      attack: of training, with one start; None to train on images as they are.
      measured: of evaluation; None for PGD with 10 steps and two restarts at the radius of
        `attack`, which must then be given.
      examples: of a split, the first ones, that networks are measured on; 1 or more.
      batch_norm: whether BatchNorm normalises by the batch inside of the attack of a
        training step ("train": the attack climbs the loss that is then trained; what it
        leaves in the running statistics is thrown away), or by its running statistics
        ("evaluation", without dropout).
      white: the stored pixel that is 1, in [1, 255]: 16 for "digits". Radius, steps and the
        box are in pixels of [0, 1] between 0 and this one.
      evaluation_batch: examples attacked at once.

    Raises:
      ValueError: a task that is none, that has no `outputs` or other data; a data set
        that is streamed, or whose pixels have no known range; an attack that is none; a
        number out of range.
    """
    errors.is_a("task", task, Task, "a lottery_jax.Task, as tasks.classification makes")
    if attack is not None:
        errors.is_a("attack", attack, Attack, "a tasks.Attack, or None for none")
        if attack.restarts > 1:
            must = "1 in training: restarts are for what is measured"
            raise errors.wrong("attack.restarts", attack.restarts, must)
    if measured is None:
        if attack is None:
            must = "a tasks.Attack: without one in training it has no radius"
            raise errors.wrong("measured", None, must)
        measured = Attack.pgd(attack.radius, 10, restarts=2)
    errors.is_a("measured", measured, Attack, "a tasks.Attack, or None")
    examples = errors.whole("examples", examples, 1)
    errors.one_of("batch_norm", batch_norm, ("train", "evaluation"))
    white = errors.whole("white", white, 1, 255)
    dataset = _with_range(dataset, white)
    _check_data(task, dataset)
    batches = _batches.of(
        dataset,
        batch_size=1,
        drop_last=False,
        augment=(),
        evaluation_batch=evaluation_batch,
    )
    _check_task(task, dataset)
    static = _Adversarial(
        task.functions,
        batches,
        attack,
        measured,
        examples,
        batch_norm,
        dataset.num_classes,
        white,
    )
    return task._replace(loss=static.loss, evaluate=static.evaluate)


# --- what can be attacked -------------------------------------------------------------


def _with_range(dataset: datasets.Dataset, white: int) -> datasets.Dataset:
    """The data set, if its pixels have this range; else a ValueError that names it."""
    dataset = datasets.check(dataset)
    datasets.in_memory(dataset, "the largest pixel of all splits is looked for")
    images = dataset.arrays["train"]["image"]
    if images.dtype != np.uint8:
        must = "a data set of uint8 images: a radius is in pixels of a known range"
        raise errors.wrong("dataset", f"{dataset.name!r} ({images.dtype})", must)
    largest = max(int(np.max(own["image"])) for own in dataset.arrays.values())
    if not largest <= white < 2 * largest:
        must = f"{largest} or a little more, the largest pixel of {dataset.name!r}"
        raise errors.wrong("white", white, must)
    return dataset


def _check_data(task: Task, dataset: datasets.Dataset) -> None:
    """Raises a ValueError if a task does not have the arrays of a data set."""
    must = f"made of the data set that is attacked, {dataset.name!r}"
    errors.is_a("task.data", task.data, Mapping, f"a dict of splits, {must}")
    for split, fields in dataset.arrays.items():
        own = task.data.get(split, {})
        for name, array in fields.items():
            there = own.get(name) if isinstance(own, Mapping) else None
            if there is array:
                continue
            unseen = there is None or isinstance(there, streams.Column)
            if unseen or not np.array_equal(np.asarray(there), array):
                where = f"task.data[{split!r}][{name!r}]"
                raise errors.wrong(where, errors.shown(there), must)


_LOOKED_AT = 8
"""Examples by which the pixels of a task's batches are compared with a data set."""


def _check_task(task: Task, dataset: datasets.Dataset) -> None:
    """Raises a ValueError if a task does not classify images normalised as the data set.

    The first examples are put through the task's own `batch`: turned back into pixels,
    they must be whole numbers from 0 to 255.
    """
    if task.outputs is None:
        must = "a function: the attack needs the logits of images"
        raise errors.wrong("task.outputs", None, must)
    train = task.data["train"]
    number = min(_LOOKED_AT, trees.count(train))
    some = {name: np.asarray(x[:number]) for name, x in train.items()}
    rows = jnp.arange(number, dtype=jnp.int32)
    data = {**task.data, "train": some}
    batch = task.batch(data, rows, keys.of_seed(0), jnp.int32(0))
    must = "of one that classifies: a dict with image, label and weight"
    if not isinstance(batch, Mapping) or not {"image", "label", "weight"} <= set(batch):
        raise errors.wrong("task.batch", errors.shown(batch), must)
    mean, std = np.asarray(dataset.mean), np.asarray(dataset.std)
    images = np.asarray(batch["image"], np.float64)
    if images.shape != (number, *dataset.shape):
        must = f"{(number, *dataset.shape)}, images of {dataset.name!r}"
        raise errors.wrong("task.batch: image.shape", images.shape, must)
    pixels = 255 * (images * std + mean)
    whole = np.abs(pixels - np.round(pixels)).max() < 0.02
    if not whole or pixels.min() < -0.02 or pixels.max() > 255.02:
        found = f"values from {images.min():.3g} to {images.max():.3g}"
        must = (
            f"uint8 pixels that are normalised by mean={dataset.mean} and "
            f"std={dataset.std} of {dataset.name!r}, and flipped or shifted at most"
        )
        raise errors.wrong("task.batch: image", found, must)
    drawn = task.shapes[:2]
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(batch))
    logits = jax.eval_shape(task.outputs, *drawn, batch)
    wanted = (number, dataset.num_classes)
    if getattr(logits, "shape", None) != wanted:
        must = f"an array of shape {wanted}, [examples, classes of {dataset.name!r}]"
        raise errors.wrong("task.outputs: it returns", errors.shown(logits), must)
