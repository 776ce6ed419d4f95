"""Data sets whose examples are read while runs train: `stream`."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lottery_jax import errors, streams
from lottery_jax.data import decode, folders, maps, reading
from lottery_jax.data._random import random_state
from lottery_jax.data.checked import check
from lottery_jax.data.sets import IMAGENET_MEAN, IMAGENET_STD, Dataset
from lottery_jax.data.streamed.decoded import Encoded, Items
from lottery_jax.data.streamed.rows import Mapped, Rows, checked_labels
from lottery_jax.data.streamed.sources import Options

_SPLITS = ("train", "validation", "test")

_VALID = (
    "images and labels as two arrays, a folder of class folders or of a map, or anything "
    "with a length and items (image, label)"
)


def stream(
    source: Any,
    *,
    side: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    validation: int = 0,
    seed: int = 0,
    fields: tuple[str, str] = ("image", "label"),
    name: str | None = None,
    workers: int | None = None,
    skip_corrupt: bool = False,
    retries: int = 3,
) -> Dataset:
    """A data set of any size: its examples are read, by number, while runs train.

    Only the first image of each split is read here. Tasks take such a data set as
    they take one in memory, and what is trained has the same bits.

    A split is read from one of:
    - two arrays, images `[N, ...]` and integer labels `[N]`, as a pair or as a dict of
      "image" and "label"; images may be a `numpy.memmap`. They stay as they are.
    - a folder of class folders with image files, or one that `data.maps.write` has made.
    - anything with `__len__` and `__getitem__(i)` that gives `(image, label)` or a dict that
      has them: `tfds.data_source`, a data set of Hugging Face or PyTorch. If it has
      `__getitems__([i, ...])`, it is asked for several. Several threads ask at once
      (`workers=1` if they must not), and the same number is the same example at all times.

    Images are encoded bytes, images of Pillow or arrays, and become uint8 `[H, W, channels]`
    by `data.decode.image`; two arrays may also be real, of any shape.

    Args:
      source: a dict of splits (train, validation, test); or what one split is read from,
        which is then train; or a folder of splits, `train`, `val` or `validation`, and
        `test` (`data.folders.splits`), or a map of them (`data.maps.folder`). Where none
        is the split test, as of ImageNet, whose test images have no published labels, the
        validation images are: test errors are theirs.
      side: pixels of a side of the square that images are cut and resized to
        (`data.decode.RESIZED` says how). None for images that are of one shape already,
        as those of arrays and maps; another is refused.
      channels: 3, or 1 for grey. None for what arrays have, and 3 for everything else.
      num_classes: labels lie in [0, num_classes). None for the number of class folders, or
        what the source says of its labels (Hugging Face's and TFDS's features, PyTorch's
        `classes`), or one more than the largest label of arrays.
      mean: subtracted on the device from images scaled to [0, 1], as in `Dataset`. None
        for ImageNet's, of images with 3 channels, and for 0 of others.
      std: divided by after that; None if and only if `mean` is, for ImageNet's or 1.
      validation: examples held out of train, by the permutation by which `load` does it,
        so that the splits are the same; 0 for none, and for train in the source's order.
      seed: of that permutation, in [0, 2**32).
      fields: what image and label are called where an example is a dict.
      name: of the data set. None for that of the folder or of TFDS's data set, else
        "streamed".
      workers: threads that read. None for one per core that the process may use.
      skip_corrupt: whether the next readable example of the split, in order, stands in for
        one that is corrupt, with its label; `Examples.replaced` says which. It may be one
        that is held out for validation. By default,
        and whatever else is wrong, reading stops.
      retries: how often again a file that cannot be read is tried, 0 or more: after 0.1 s,
        0.4 s, 1.6 s and so on.

    Returns:
      A data set whose arrays are `streams.Column`s. While they are read, a
      `streams.SourceError` names an example that is corrupt, cannot be reached or is of
      another shape, or has a label that is no class.

    Raises:
      ValueError: an option out of range, a source that is none, splits of different
        classes or shapes, arrays that are no images and labels, or a number of classes
        that is not known.
      SourceError: the first example of a split cannot be read.
      FileNotFoundError: no such folder.
      ImportError: images are encoded, and Pillow is not installed; names the extra.

    Example:
      >>> imagenet = lj.data.stream("/data/imagenet", side=256, validation=10_000)
      >>> cifar = tfds.data_source("cifar10")
      >>> cifar = lj.data.stream(cifar, validation=5000)
      >>> pixels = np.memmap("pixels.bin", np.uint8, "r", shape=(1_281_167, 64, 64, 3))
      >>> small = lj.data.stream({"train": (pixels, labels), "test": "/data/val"}, side=64)
    """
    options = _options(side, channels, workers, skip_corrupt, retries)
    validation = errors.whole("validation", validation, 0)
    fields = _fields(fields)
    opened = _splits(source)
    name = _name(source, opened) if name is None else name
    errors.is_a("name", name, str, "text")
    num_classes = _num_classes(opened, num_classes, fields[1])
    examples = {
        split: _examples(
            own, f"the split {split} of {name}", num_classes, options, fields
        )
        for split, own in opened.items()
    }
    if validation:
        examples = _held_out(examples, validation, seed)
    shape = _one_shape(examples)
    mean, std = _statistics(mean, std, shape)
    arrays: Any = {split: streams.columns(own) for split, own in examples.items()}
    note = _note(opened, side, shape)
    return check(
        Dataset(arrays, num_classes, shape, mean, std, name, note)  # type: ignore[arg-type]
    )


def _one_shape(examples: Mapping[str, streams.Examples]) -> tuple[int, ...]:
    """The shape of the images of all splits."""
    shapes = {split: own.fields["image"].shape for split, own in examples.items()}
    for split, shape in shapes.items():
        if shape != shapes["train"]:
            must = (
                f"a number of pixels: images of train are {shapes['train']}, those of "
                f"{split} {shape}"
            )
            raise errors.wrong("side", None, must)
    return shapes["train"]


def _note(
    opened: Mapping[str, Any], side: int | None, shape: tuple[int, ...]
) -> str | None:
    """What was done to images, if they were resized."""
    if side is None and not any(isinstance(own, maps.Map) for own in opened.values()):
        return None
    return f"images have {shape[0]} x {shape[1]} pixels: {decode.RESIZED}"


def _options(
    side: int | None,
    channels: int | None,
    workers: int | None,
    skip_corrupt: bool,
    retries: int,
) -> Options:
    if side is not None:
        side = errors.whole("side", side, 1)
    errors.one_of("channels", channels, (1, 3, None))
    if workers is None:
        workers = reading.cores()
    workers = errors.whole("workers", workers, 1)
    errors.flag("skip_corrupt", skip_corrupt)
    retries = errors.whole("retries", retries, 0)
    return Options(side, channels, workers, skip_corrupt, retries)


def _fields(fields: Any) -> tuple[str, str]:
    image, *rest = errors.names("fields", fields) or ("",)
    if len(rest) != 1 or rest[0] == image:
        raise errors.wrong("fields", fields, "two names, such as ('image', 'label')")
    return image, rest[0]


def _name(source: Any, opened: Mapping[str, Any]) -> str:
    if isinstance(source, str | os.PathLike):
        return pathlib.Path(source).expanduser().resolve().name
    info = getattr(opened["train"], "dataset_info", None)
    own = getattr(info, "name", None)
    return own if isinstance(own, str) else "streamed"


# --- what a split is read from --------------------------------------------------------


class _Pair(NamedTuple):
    """Images and labels as arrays."""

    images: np.ndarray
    labels: np.ndarray


def _splits(source: Any) -> dict[str, Any]:
    """What each split is read from: a listing, a map, a pair of arrays, or items."""
    if isinstance(source, str | os.PathLike):
        found = _in_folder(errors.on_disk("source", source).expanduser())
    elif isinstance(source, Mapping) and not _is_pair(source):
        for split in source:
            errors.one_of("source: split", split, _SPLITS)
        found = {split: _opened(split, own) for split, own in source.items()}
    else:
        found = {"train": _opened("train", source)}
    if "train" not in found:
        raise errors.wrong("source", list(found), "some splits, and train among them")
    return {split: found[split] for split in _SPLITS if split in found}


def _in_folder(folder: pathlib.Path) -> dict[str, Any]:
    """The splits of a folder, which is itself that of train if it has none."""
    if (folder / maps.DESCRIPTION).is_file():
        names = maps.description(folder)["splits"]
        found: dict[str, Any] = {split: maps.open(folder, split) for split in names}
    elif (folder / "train").is_dir():
        found = dict(folders.splits(folder))
    else:
        return {"train": _opened("train", folder)}
    if "test" not in found and "validation" in found:
        # As ImageNet is used everywhere: its test images have no published labels.
        found["test"] = found.pop("validation")
    return found


def _is_pair(source: Any) -> bool:
    """Whether a source is images and labels as arrays."""
    if isinstance(source, Mapping) and set(source) == {"image", "label"}:
        source = tuple(source.values())
    is_two = isinstance(source, tuple | list) and len(source) == 2
    return is_two and all(hasattr(x, "shape") and hasattr(x, "dtype") for x in source)


def _opened(split: str, source: Any) -> Any:
    """What a split is read from, listed if it is a folder; refuses what is no source."""
    where = f"source[{split!r}]"
    if isinstance(source, str | os.PathLike):
        folder = errors.on_disk(where, source).expanduser()
        if (folder / maps.DESCRIPTION).is_file():
            return maps.open(folder, split)
        return folders.Files(folder, *folders.class_folders(folder))
    if _is_pair(source):
        if isinstance(source, Mapping):
            source = source["image"], source["label"]
        return _Pair(*source)
    sized = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if not sized or isinstance(source, Mapping | type | bytes | np.ndarray):
        raise errors.wrong(where, errors.shown(source), _VALID)
    if not len(source):
        raise errors.wrong(
            f"len({where})", 0, "1 or more: a split is left out, or has examples"
        )
    return source


def _num_classes(opened: Mapping[str, Any], given: int | None, label: str) -> int:
    """How many classes there are: what is given and what splits say must agree."""
    _check_classes(opened)
    said = {split: _said(own, label) for split, own in opened.items()}
    known = {split: number for split, number in said.items() if number is not None}
    if given is not None:
        known = {"num_classes": errors.whole("num_classes", given, 2)} | known
    for split, number in known.items():
        first, wanted = next(iter(known.items()))
        if number != wanted:
            where = f"classes of source[{split!r}]"
            raise errors.wrong(where, number, f"{wanted}, as {first}")
    if known:
        return next(iter(known.values()))
    largest = [
        int(checked_labels(split, own.labels, None).max())
        for split, own in opened.items()
        if isinstance(own, _Pair)
    ]
    if not largest:
        must = "how many classes there are, which this source does not say"
        raise errors.wrong("num_classes", None, must)
    return max(1, *largest) + 1


def _check_classes(opened: Mapping[str, Any]) -> None:
    """Raises a ValueError if splits have classes of different names; shows some."""
    named = {
        split: own.classes
        for split, own in opened.items()
        if isinstance(own, folders.Files | maps.Map) and own.classes is not None
    }
    for split, own in named.items():
        first, known = next(iter(named.items()))
        if own != known:
            where = f"classes of source[{split!r}]"
            must = (
                f"those of {first}: {folders.difference(own, known) or 'in its order'}"
            )
            raise errors.wrong(where, len(own), must)


def _said(source: Any, label: str) -> int | None:
    """The number of classes, if a source says it."""
    if isinstance(source, folders.Files):
        return len(source.classes)
    if isinstance(source, maps.Map):
        return source.num_classes
    if isinstance(source, _Pair):
        return None
    info = getattr(source, "dataset_info", None)
    features = getattr(info, "features", None) or getattr(source, "features", None)
    try:
        number = features[label].num_classes  # type: ignore[index]
    except (AttributeError, KeyError, TypeError):
        classes = getattr(source, "classes", None)
        number = len(classes) if isinstance(classes, list | tuple) else None
    return number if isinstance(number, int) else None


def _examples(
    source: Any,
    name: str,
    num_classes: int,
    options: Options,
    fields: tuple[str, str],
) -> streams.Examples:
    if isinstance(source, folders.Files):
        return Encoded(source, name, num_classes, options)
    if isinstance(source, maps.Map):
        return Mapped(source, name, num_classes, options)
    if isinstance(source, _Pair):
        return Rows(*source, name, num_classes, options)
    return Items(source, name, num_classes, options, fields)


# --- of all of them -------------------------------------------------------------------


def _held_out(
    examples: dict[str, streams.Examples], number: int, seed: int
) -> dict[str, streams.Examples]:
    """With a split of examples that are held out of train, as `load` chooses them."""
    if "validation" in examples:
        raise errors.wrong("validation", number, "0: the source has a split validation")
    train = examples["train"]
    of = f"{len(train)} examples, of which one must remain"
    errors.whole("validation", number, 1, len(train) - 1, of)
    order = random_state(seed, "split").permutation(len(train))
    parts = {
        "train": streams.part(train, order[number:]),
        "validation": streams.part(train, order[:number]),
    }
    return parts | {split: own for split, own in examples.items() if split == "test"}


def _statistics(mean: Any, std: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    if (mean is None) != (std is None):
        missing = "mean" if mean is None else "std"
        raise errors.wrong(missing, None, "given, as the other of mean and std is")
    if mean is not None:
        return mean, std
    if len(shape) == 3 and shape[-1] == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (0.0,), (1.0,)
