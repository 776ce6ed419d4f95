"""Batches of a labelled data set: shared by all tasks that draw from one."""

import dataclasses
from collections.abc import Callable

import jax

from lottery_jax import data as datasets
from lottery_jax import errors
from lottery_jax.types import Array, Batch, Key, PyTree


@dataclasses.dataclass(frozen=True)
class Batches:
    """How examples are drawn, augmented, and gone through; made by `of`.

    `order` and `batch` are functions of a Task.

    Attributes:
      num_train: training examples.
      batch_size: examples per step.
      drop_last: whether an epoch leaves out a last batch that is not full; otherwise it
        is padded, with weight 0 and real examples again.
      augment: of "flip" and "crop".
      evaluation_batch: examples gone through at once.
      mean: see `Dataset`.
      std: see `Dataset`.
    """

    num_train: int
    batch_size: int
    drop_last: bool
    augment: tuple[str, ...]
    evaluation_batch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

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

    def batch(self, data: PyTree, indices: Array, noise_key: Key, step: Array) -> Batch:
        batch = datasets.gather(data["train"], indices, full=not self.padded)
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

    def each(self, arrays: PyTree, measure: Callable[[Batch], PyTree]) -> PyTree:
        """`measure(batch)` of each batch of a split, in stored order, stacked.

        The last one may be padded, with weight 0.
        """
        number = arrays["label"].shape[0]
        size = min(self.evaluation_batch, number)

        def some(rows: Array) -> PyTree:
            batch = datasets.gather(arrays, rows)
            images = datasets.normalize(batch["image"], self.mean, self.std)
            return measure(batch | {"image": images})

        return jax.lax.map(some, datasets.sequential(number, size))


def of(
    dataset: datasets.Dataset,
    *,
    batch_size: int,
    drop_last: bool,
    augment: tuple[str, ...],
    evaluation_batch: int,
) -> Batches:
    """The batches of a data set; refuses what does not fit it (ValueError)."""
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
            f"augment={augment!r}; it must be (), since it needs images and {dataset.name} "
            f"has examples of shape {dataset.shape}"
        )
    errors.at_least("evaluation_batch", evaluation_batch, 1)
    return Batches(
        num_train,
        batch_size,
        drop_last,
        augment,
        evaluation_batch,
        dataset.mean,
        dataset.std,
    )
