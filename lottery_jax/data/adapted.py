"""The input adapters: images of any size and colour in one shape."""

from collections.abc import Callable

import numpy as np

from lottery_jax import errors
from lottery_jax.data.checked import in_memory
from lottery_jax.data.decode import luminance
from lottery_jax.data.perturb import resized
from lottery_jax.data.sets import Dataset, moments

SIDE = 28
"""Pixels of a side of a grey image, as in MNIST."""

COLOUR_SIDE = 32
"""Pixels of a side of a colour image, as in CIFAR."""

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
      ValueError: examples that are no such images, or streamed.

    Example:
      >>> set_ = grey28(lj.data.load("cifar10"))
      >>> task = lj.tasks.classification(set_, lj.models.make("lenet-300-100", 10), ...)
    """
    return _adapted(dataset, _grey, (SIDE, SIDE, 1), "28x28 grey ones")


def colour32(dataset: Dataset) -> Dataset:
    """A data set as 32x32 colour images, so that networks for CIFAR fit others.

    Grey images are repeated over three channels. Sides are treated as by `grey28`: more
    than 32 pixels are resized, fewer are padded with black on both sides, 28 of MNIST as
    well as 16 of USPS, whose digits stay as small as they are. Statistics are those of
    the training images that come out, of each channel.

    Args:
      dataset: uint8 images `[N, H, W, 1]` or `[N, H, W, 3]`.

    Returns:
      The data set with uint8 images `[N, 32, 32, 3]`; labels and name stay.

    Raises:
      ValueError: examples that are no such images, or streamed.
    """
    shape = (COLOUR_SIDE, COLOUR_SIDE, 3)
    return _adapted(dataset, _coloured, shape, "32x32 colour ones")


def _adapted(
    dataset: Dataset,
    recoloured: Callable[[np.ndarray], np.ndarray],
    wanted: tuple[int, int, int],
    what: str,
) -> Dataset:
    """A data set with images of a shape, once their channels are those of that shape."""
    errors.is_a("dataset", dataset, Dataset, "a lottery_jax.data.Dataset")
    in_memory(dataset, "every image is adapted (data.stream takes side and channels)")
    shape, dtype = dataset.shape, dataset.arrays["train"]["image"].dtype
    if len(shape) != 3 or shape[-1] not in (1, 3) or dtype != np.uint8:
        raise errors.wrong(
            f"dataset: examples of {dataset.name}",
            f"{dtype} of shape {tuple(shape)}",
            f"uint8 images [H, W, 1] or [H, W, 3], to become {what}",
        )
    arrays = {
        split: fields
        | {"image": _framed(np.asarray(fields["image"]), recoloured, wanted)}
        for split, fields in dataset.arrays.items()
    }
    train = arrays["train"]["image"]
    each = [moments(train[..., c].reshape(-1)) for c in range(wanted[-1])]
    mean, std = zip(*each)
    return dataset._replace(arrays=arrays, shape=wanted, mean=mean, std=std)


def _framed(
    images: np.ndarray,
    recoloured: Callable[[np.ndarray], np.ndarray],
    wanted: tuple[int, int, int],
) -> np.ndarray:
    out = np.zeros((len(images), *wanted), np.uint8)
    for start in range(0, len(images), _BLOCK):  # bounds the memory of the copies
        part = recoloured(images[start : start + _BLOCK])
        height, width = (min(m, n) for m, n in zip(wanted, part.shape[1:3]))
        top, left = (wanted[0] - height) // 2, (wanted[1] - width) // 2
        out[start : start + _BLOCK, top : top + height, left : left + width] = resized(
            part, height, width
        )
    return out


def _coloured(images: np.ndarray) -> np.ndarray:
    return np.broadcast_to(images, (*images.shape[:-1], 3))


def _grey(images: np.ndarray) -> np.ndarray:
    if images.shape[-1] == 1:
        return images
    return luminance(images)
