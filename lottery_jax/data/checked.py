"""A data set of one's own is looked at once, on the host, before anything is compiled.

A label that is no class gives a loss all the same, clipped or nan, and more labels than
images are counted all the same: nothing later would say so.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, streams
from lottery_jax.data.sets import Dataset
from lottery_jax.data.streamed.sources import known_labels
from lottery_jax.errors import wrong

_SPLITS = ("train", "validation", "test")
_FIELDS = ("image", "label")


def check(dataset: Dataset) -> Dataset:
    """Raises a ValueError that names what of a data set makes no sense, and where.

    Sound are: the split "train", and "validation" and "test" if there are, each with
    arrays "image" and "label" alone, as many of one as of the other, at least one. Images
    are uint8 or real, finite, `[N, *shape]`, of one dtype in all splits; labels are
    integers `[N]` in [0, num_classes). There are two classes at least. `mean` and `std`
    hold one number, or one for each entry of the last axis of an image; `std` is positive.

    It reads all labels, and all images that are not uint8: for 60,000 images of MNIST a
    millisecond, and 0.1 s as float32. Of a streamed split (`data.stream`) it reads neither,
    but looks at the labels of arrays and class folders; the others when they are read.

    Args:
      dataset: on the host, or on a device.

    Returns:
      The same data set, in dicts, tuples and numbers of Python; arrays are not copied.
    """
    errors.is_a("dataset", dataset, Dataset, "a lottery_jax.data.Dataset")
    name = dataset.name
    errors.is_a("name", name, str, "text")
    classes = errors.whole("num_classes", dataset.num_classes, 2)
    shape = errors.wholes("shape", dataset.shape, 1)
    arrays = dataset.arrays
    errors.is_a("arrays", arrays, Mapping, "a dict of splits")
    for split in arrays:
        errors.one_of("arrays: split", split, _SPLITS)
    if "train" not in arrays:
        raise wrong("arrays", list(arrays), "a dict with a split train")
    for split, fields in arrays.items():
        _check_split(f"arrays[{split!r}]", fields, shape, classes, name)
    streams.streamed({split: dict(fields) for split, fields in arrays.items()})
    dtype = np.dtype(arrays["train"]["image"].dtype)
    for split, fields in arrays.items():
        if fields["image"].dtype != dtype:
            raise wrong(
                f"arrays[{split!r}]['image'].dtype",
                fields["image"].dtype,
                f"{dtype}, as in train: images are scaled by their dtype",
            )
    channels = shape[-1] if shape else 1
    mean = _channels("mean", dataset.mean, channels)
    std = _channels("std", dataset.std, channels)
    for position, value in enumerate(std):
        if not value > 0:
            raise wrong(f"std[{position}]", value, "above 0: images are divided by it")
    arrays = {split: dict(fields) for split, fields in arrays.items()}
    return Dataset(arrays, classes, shape, mean, std, name, dataset.note)


def in_memory(dataset: Dataset, why: str) -> None:
    """Raises a ValueError if a split of a data set is streamed, where values are needed.

    Args:
      dataset: in the form that `check` gives.
      why: what they are needed for, completing "in memory, as data.load gives it:".
    """
    for split in streams.streamed(dataset.arrays):
        must = f"in memory, as data.load gives it: {why}"
        raise wrong(f"arrays[{split!r}] of {dataset.name}", "streamed", must)


def _check_split(
    where: str, fields: Any, shape: tuple[int, ...], classes: int, name: str
) -> None:
    errors.is_a(where, fields, Mapping, "a dict of image and label")
    if set(fields) != set(_FIELDS):
        raise wrong(where, list(fields), "a dict of image and label, and nothing else")
    for field in _FIELDS:
        errors.is_a(
            f"{where}[{field!r}]",
            fields[field],
            np.ndarray | jax.Array | streams.Column,  # type: ignore[arg-type]
            "a NumPy array, or a column of a streamed split",
        )
    image, label = fields["image"], fields["label"]
    _check_labels(f"{where}['label']", label, classes, name)
    if image.shape[1:] != shape or image.ndim == 0:
        raise wrong(
            f"{where}['image'].shape",
            image.shape,
            f"[examples, {', '.join(map(str, shape))}], since shape={shape}",
        )
    if len(image) != len(label):
        raise wrong(
            f"len({where}['label'])", len(label), f"{len(image)}, the number of images"
        )
    _check_images(f"{where}['image']", image)


def _check_labels(where: str, label: Any, classes: int, name: str) -> None:
    if not np.issubdtype(label.dtype, np.integer):
        raise wrong(
            f"{where}.dtype", label.dtype, "an integer type: labels are classes"
        )
    if label.ndim != 1:
        one_hot = label.ndim == 2 and label.shape[1] == classes
        how = (
            "argmax(axis=1) makes them of one-hot rows" if one_hot else "one class each"
        )
        raise wrong(f"{where}.shape", label.shape, f"[examples]: {how}")
    if not len(label):
        raise wrong(
            f"len({where})", 0, "1 or more: a split is left out, or has examples"
        )
    known = known_labels(label.examples) if isinstance(label, streams.Column) else label
    if known is None:
        return
    values = np.asarray(known)
    if values.min() >= 0 and values.max() < classes:
        return
    position = int(np.argmax((values < 0) | (values >= classes)))
    raise wrong(
        f"{where}[{position}]",
        values[position],
        f"in [0, {classes}), the classes of {name}: they count from 0",
    )


_BLOCK = 1 << 22
"""Values that are looked at together: what is made of them stays in the caches."""


def _check_images(where: str, image: Any) -> None:
    if image.dtype == np.uint8:
        return
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise wrong(f"{where}.dtype", image.dtype, "uint8, or real such as float32")
    if isinstance(image, streams.Column):
        return
    values = np.asarray(image)
    largest = float(np.finfo(np.float32).max)
    step = max(1, _BLOCK // max(1, math.prod(values.shape[1:])))
    for first in range(0, len(values), step):
        block = values[first : first + step]
        # nan goes through both; float64 may hold what float32 cannot.
        if float(block.min()) >= -largest and float(block.max()) <= largest:
            continue
        bad = np.argwhere(~(np.abs(block.astype(np.float64)) <= largest))[0]
        at = ", ".join(map(str, (int(bad[0]) + first, *bad[1:].tolist())))
        raise wrong(
            f"{where}[{at}]",
            block[tuple(bad)],
            "finite, also in float32: it is a pixel",
        )


def _channels(field: str, values: Any, channels: int) -> tuple[float, ...]:
    """One number, or one for each channel, as floats."""
    if np.ndim(values) == 0:
        values = (values,)
    found = errors.several(field, values, "a tuple of numbers, one for each channel")
    errors.finite(field, found)
    if len(found) not in (1, channels):
        raise wrong(
            f"len({field})", len(found), f"1, or {channels}: one for each channel"
        )
    return tuple(float(value) for value in found)
