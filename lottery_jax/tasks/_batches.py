"""Batches of a labelled data set: shared by all tasks that draw from one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from lottery_jax import data as datasets
from lottery_jax import errors, trees
from lottery_jax.types import Array, Batch, Key, PyTree

AUGMENTATIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("flip",),
    ("crop",),
    ("flip", "crop"),
    ("resized_crop",),
    ("resized_crop", "flip"),
)
"""What images may be augmented by, in this order."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """How labelled examples are drawn and gone through; `order` is a function of a Task.

    Attributes:
      num_train: training examples.
      batch_size: examples per step.
      drop_last: whether an epoch leaves out a last batch that is not full; otherwise it
        is padded, with weight 0 and real examples again.
      evaluation_batch: examples gone through at once.
    """

    num_train: int
    batch_size: int
    drop_last: bool
    evaluation_batch: int

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has."""
        return datasets.steps_per_epoch(
            self.num_train, self.batch_size, drop_last=self.drop_last
        )

    @property
    def padded(self) -> bool:
        """Whether the last batch of an epoch is padded."""
        return self.num_train % self.batch_size > 0 and not self.drop_last

    def order(self, noise_key: Key, step: Array) -> Array:
        return datasets.shuffled(
            noise_key, step, self.num_train, self.batch_size, drop_last=self.drop_last
        )

    def gathered(self, data: PyTree, indices: Array) -> Batch:
        """The training examples of one step, as they are stored."""
        return datasets.gather(data["train"], indices, full=not self.padded)

    def at_once(self, number: int) -> int:
        """Examples in a batch of evaluation, of a split of so many."""
        return min(self.evaluation_batch, number)

    def each(self, arrays: PyTree, measure: Callable[[Batch], PyTree]) -> PyTree:
        """`measure(batch)` of each batch of a split, in stored order, stacked.

        The last one may be padded, with weight 0.
        """
        number = trees.count(arrays)
        size = self.at_once(number)

        def some(rows: Array) -> PyTree:
            return measure(self.shown(datasets.gather(arrays, rows)))

        return jax.lax.map(some, datasets.sequential(number, size))

    def shown(self, batch: Batch) -> Batch:
        """A batch as a model is given it in evaluation."""
        return batch


@dataclasses.dataclass(frozen=True)
class Batches(Drawn):
    """Images, augmented and normalised; made by `of`. `batch` is a function of a Task.

    Attributes:
      num_train: see `Drawn`.
      batch_size: likewise.
      drop_last: likewise.
      evaluation_batch: likewise.
      augment: one of `AUGMENTATIONS`.
      crop: pixels of a side of the square that networks see; None for images, or other
        examples, as they are stored.
      shape: of an example as networks see it.
      mean: see `Dataset`.
      std: see `Dataset`.
    """

    augment: tuple[str, ...]
    crop: int | None
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def batch(self, data: PyTree, indices: Array, noise_key: Key, step: Array) -> Batch:
        batch = self.gathered(data, indices)
        images = batch["image"]
        if self.augment:
            key = jax.random.fold_in(noise_key, step)
            images = self._augmented(key, images)
        return self.shown(batch | {"image": images})

    def _augmented(self, key: Key, images: Array) -> Array:
        match self.augment:
            case ("flip",):
                return datasets.flip(key, images)
            case ("crop",):
                return datasets.shift_crop(key, images)
            case ("flip", "crop"):
                return datasets.flip_and_crop(key, images)
        assert self.crop is not None
        if self.augment == ("resized_crop",):
            return datasets.random_resized_crop(key, images, self.crop)
        return datasets.resized_crop_and_flip(key, images, self.crop)

    def shown(self, batch: Batch) -> Batch:
        image = batch["image"]
        if self.crop is not None and image.shape[1:] != self.shape:
            image = datasets.center_crop(image, self.crop)
        image = datasets.normalize(image, self.mean, self.std)
        return batch | {"image": image}


def of(
    dataset: datasets.Dataset,
    *,
    batch_size: int,
    drop_last: bool,
    augment: tuple[str, ...],
    evaluation_batch: int,
    crop: int | None = None,
) -> Batches:
    """The batches of a data set; refuses what does not fit it (ValueError)."""
    drawn = of_examples(
        dataset.arrays["train"],
        dataset.name,
        batch_size=batch_size,
        drop_last=drop_last,
        evaluation_batch=evaluation_batch,
    )
    if augment not in AUGMENTATIONS:
        raise ValueError(
            f"augment={augment!r}; it must be of 'flip' and 'crop', or of 'resized_crop' "
            "and 'flip', in this order"
        )
    for field, value in (("augment", augment), ("crop", crop)):
        nothing: Any = None if field == "crop" else ()
        if value != nothing and len(dataset.shape) != 3:
            raise ValueError(
                f"{field}={value!r}; it must be {nothing}, since it needs images and "
                f"{dataset.name} has examples of shape {dataset.shape}"
            )
    crop = _side(dataset, augment, crop)
    shape = dataset.shape if crop is None else (crop, crop, dataset.shape[-1])
    own = dataclasses.asdict(drawn)
    return Batches(
        **own,
        augment=augment,
        crop=crop,
        shape=shape,
        mean=dataset.mean,
        std=dataset.std,
    )


def _side(
    dataset: datasets.Dataset, augment: tuple[str, ...], crop: int | None
) -> int | None:
    """Pixels of a side that networks see; refuses what fits no image (ValueError)."""
    resizes = "resized_crop" in augment
    if crop is None:
        if not resizes:
            return None
        height, width, _ = dataset.shape
        if height != width:
            must = (
                f"a number: 'resized_crop' makes squares, and images of {dataset.name} have "
                f"{height} x {width} pixels"
            )
            raise errors.wrong("crop", None, must)
        return height
    side = min(dataset.shape[:2])
    crop = errors.whole("crop", crop, 1, side, f"a side of images of {dataset.name}")
    if "crop" in augment:
        must = (
            f"None with augment={augment!r}, which leaves images as large as they are; "
            "'resized_crop' does not"
        )
        raise errors.wrong("crop", crop, must)
    return crop


def of_examples(
    arrays: PyTree,
    name: str,
    *,
    batch_size: int,
    drop_last: bool,
    evaluation_batch: int,
) -> Drawn:
    """How a training split is drawn; refuses what does not fit it (ValueError).

    Args:
      arrays: of the training split, `[N, ...]`.
      name: of the data set.
      batch_size: examples per step.
      drop_last: see `Drawn`.
      evaluation_batch: examples evaluated at once.
    """
    number = trees.count(arrays)
    of = f"the number of training examples of {name}"
    batch_size = errors.whole("batch_size", batch_size, 1, number, of)
    errors.flag("drop_last", drop_last)
    evaluation_batch = errors.whole("evaluation_batch", evaluation_batch, 1)
    return Drawn(number, batch_size, drop_last, evaluation_batch)
