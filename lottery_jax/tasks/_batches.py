"""Batches of a labelled data set: shared by all tasks that draw from one."""

import dataclasses
from collections.abc import Callable

import jax

from lottery_jax import data as datasets
from lottery_jax import errors, trees
from lottery_jax.types import Array, Batch, Key, PyTree


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
      augment: of "flip" and "crop".
      mean: see `Dataset`.
      std: see `Dataset`.
    """

    augment: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def batch(self, data: PyTree, indices: Array, noise_key: Key, step: Array) -> Batch:
        batch = self.gathered(data, indices)
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
        return self.shown(batch | {"image": images})

    def shown(self, batch: Batch) -> Batch:
        image = datasets.normalize(batch["image"], self.mean, self.std)
        return batch | {"image": image}


def of(
    dataset: datasets.Dataset,
    *,
    batch_size: int,
    drop_last: bool,
    augment: tuple[str, ...],
    evaluation_batch: int,
) -> Batches:
    """The batches of a data set; refuses what does not fit it (ValueError)."""
    drawn = of_examples(
        dataset.arrays["train"],
        dataset.name,
        batch_size=batch_size,
        drop_last=drop_last,
        evaluation_batch=evaluation_batch,
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
    own = dataclasses.asdict(drawn)
    return Batches(**own, augment=augment, mean=dataset.mean, std=dataset.std)


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
