"""The one input adapter: images of any size and colour as 28x28 grey ones."""

import numpy as np

from lottery_jax import errors
from lottery_jax.data.perturb import resized
from lottery_jax.data.sets import Dataset, moments

SIDE = 28
"""Pixels of a side, as in MNIST."""

_BLOCK = 4096


def grey28(dataset: Dataset) -> Dataset:
    """A data set as 28x28 grey images, so that networks fit others of another shape.

    Colours become luminance, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601). A side of more
    than 28 pixels is resized, by a triangle filter; a smaller one is padded with black on
    both sides. Images keep statistics of their own: mean and standard deviation of the
    training images that come out.

    Args:
      dataset: uint8 images `[N, H, W, 1]` or `[N, H, W, 3]`.

    Returns:
      The data set with uint8 images `[N, 28, 28, 1]`; labels and name stay.

    Raises:
      ValueError: examples that are no such images.

    Example:
      >>> set_ = grey28(lj.data.load("cifar10"))
      >>> task = lj.tasks.classification(set_, lj.models.make("lenet-300-100", 10), ...)
    """
    errors.is_a("dataset", dataset, Dataset, "a lottery_jax.data.Dataset")
    shape, dtype = dataset.shape, dataset.arrays["train"]["image"].dtype
    if len(shape) != 3 or shape[-1] not in (1, 3) or dtype != np.uint8:
        raise errors.wrong(
            f"dataset: examples of {dataset.name}",
            f"{dtype} of shape {tuple(shape)}",
            "uint8 images [H, W, 1] or [H, W, 3], to become 28x28 grey ones",
        )
    arrays = {
        split: fields | {"image": _adapted(np.asarray(fields["image"]))}
        for split, fields in dataset.arrays.items()
    }
    mean, std = moments(arrays["train"]["image"].reshape(-1))
    return dataset._replace(
        arrays=arrays, shape=(SIDE, SIDE, 1), mean=(mean,), std=(std,)
    )


def _adapted(images: np.ndarray) -> np.ndarray:
    out = np.zeros((len(images), SIDE, SIDE, 1), np.uint8)
    for start in range(0, len(images), _BLOCK):  # bounds the memory of the copies
        part = _grey(images[start : start + _BLOCK])
        height, width = (min(SIDE, side) for side in part.shape[1:3])
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        out[start : start + _BLOCK, top : top + height, left : left + width] = resized(
            part, height, width
        )
    return out


def _grey(images: np.ndarray) -> np.ndarray:
    if images.shape[-1] == 1:
        return images
    weighted = images.astype(np.uint32) @ np.array([299, 587, 114], np.uint32)
    return ((weighted + 500) // 1000).astype(np.uint8)[..., None]
