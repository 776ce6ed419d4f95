"""The data sets by name, their splits and their statistics."""

import os
import pathlib
import shlex
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from lottery_jax import errors
from lottery_jax.data import generated, perturb, prepared, usps
from lottery_jax.data._random import random_state
from lottery_jax.data.cache import Arrays

Normalization: TypeAlias = Literal["dataset", "imagenet", "none", "unit_l2"]


class Dataset(NamedTuple):
    """A data set on the host, and what a model and a Task must know of it.

    One of your own is checked where it is used (`data.check`).

    Attributes:
      arrays: `{"train": {"image", "label"}, "validation": ..., "test": ...}`; images as
        they are stored, uint8 `[N, H, W, C]` or float32 (MNIST-1D: `[N, 40]`), labels
        int32 `[N]`. This is what goes onto the device, but for a streamed split, which
        has `streams.Column`s (`data.stream`). Without a validation split, which has to be
        asked for, that entry is absent.
      num_classes: labels lie in [0, num_classes).
      shape: shape of one example.
      mean: per channel, to be subtracted on the device (`data.normalize`) from images
        scaled to [0, 1] (uint8) or taken as they are (float).
      std: per channel, to divide by after that.
      name: as given to `load`.
      note: how this copy differs from the published set, to be stated beside a result;
        None where it does not.
    """

    arrays: dict[str, dict[str, np.ndarray]]
    num_classes: int
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    note: str | None = None


class _Set(NamedTuple):
    tfds: str | None
    num_classes: int
    shape: tuple[int, ...]
    validation: int
    mean: tuple[float, ...] | None = None
    """None: computed from the training set."""
    std: tuple[float, ...] | None = None
    maximum: int = 255


_GRAY, _COLOR = (28, 28, 1), (32, 32, 3)

_SETS = {
    "mnist": _Set("mnist", 10, _GRAY, 5000, (0.1307,), (0.3081,)),
    "fashion_mnist": _Set("fashion_mnist", 10, _GRAY, 5000, (0.2860,), (0.3530,)),
    # Several pairs of numbers circulate for KMNIST: computed.
    "kmnist": _Set("kmnist", 10, _GRAY, 5000),
    "cifar10": _Set(
        "cifar10",
        10,
        _COLOR,
        5000,
        (0.4914, 0.4822, 0.4465),
        # Over all pixels. The also common 0.2023, 0.1994, 0.2010 averages the standard
        # deviations of the single images.
        (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Set(
        "cifar100",
        100,
        _COLOR,
        5000,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
    ),
    "svhn": _Set(
        "svhn_cropped",
        10,
        _COLOR,
        5000,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
    ),
    "mnist1d": _Set(None, 10, (40,), 1000),
    "digits": _Set(None, 10, (8, 8, 1), 144, maximum=16),
    "usps": _Set(None, 10, (16, 16, 1), 729),
}

NAMES: tuple[str, ...] = tuple(_SETS)
"""Every name that `load` knows."""

GENERATED: tuple[str, ...] = ("mnist1d", "digits")
"""Those that need no network: generated, or shipped with a package."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per channel of ImageNet's training images, scaled to [0, 1], as they are published."""


def load(
    name: str,
    *,
    validation: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    subset: int | None = None,
    label_noise: float = 0.0,
    blur: float | None = None,
    normalization: Normalization = "dataset",
    classes: int | None = None,
    half: Literal["a", "b"] | None = None,
    from_class: int = 0,
    seed: int = 0,
) -> Dataset:
    """Loads a data set, with a validation split carved from its training set.

    The validation split is what early stopping and choices look at; test data never
    chooses anything. Perturbations touch the training split alone, so that validation
    error estimates test error. Nothing is ever downloaded here.

    Args:
      name: one of `NAMES`. All but `GENERATED` must have been prepared
        (`python -m lottery_jax.data.prepare NAME`).
      validation: examples held out of the training set by a fixed permutation; None
        for the default: 5,000 of MNIST, Fashion-MNIST, KMNIST, CIFAR-10, CIFAR-100 and
        SVHN, 1,000 of MNIST-1D, 144 (10%) of digits, 729 of USPS. 0 leaves the split out:
        open_lth's setting.
      data_dir: TFDS's data folder; None for $TFDS_DATA_DIR or TFDS's default.
      subset: size of the training split; its first `subset` examples, so that smaller
        subsets lie within larger ones. None for all.
      label_noise: share of the training split's labels that is redrawn uniformly, in
        [0, 1] (`perturb.randomize_labels`).
      blur: factor by which training images are shrunk and enlarged again, at least 1
        (`perturb.blur`); None for none.
      normalization: what `mean` and `std` hold. "dataset": published statistics of the
        set, or those of its whole training set where none are agreed on (KMNIST,
        MNIST-1D, digits). "imagenet": ImageNet's, as open_lth uses for CIFAR. "none":
        raw values (uint8 scaled to [0, 1]). "unit_l2": each flattened image is divided
        by its Euclidean norm, as google-research/lottery_ticket_hypothesis does for
        MNIST; images are then float32, four times the memory.
      classes: keep examples of the first so many classes alone, in all splits, at least 2;
        None for all.
      half: one of two disjoint halves of the training split, equally large; None for
        both. `subset` is then of that half.
      from_class: leave out the examples of the classes below this one, too; two at least
        remain. The others are renumbered, so that labels begin with 0: with
        `from_class=5` the second half of ten classes.
      seed: fixes the split, the subset and the label noise, in [0, 2**32); no relation
        to any replica's keys.

    Returns:
      The data set, as NumPy arrays.

    Raises:
      ValueError: an unknown name, or an option that is out of range or does not fit
        the set.
      FileNotFoundError: the set is not prepared; the message says where it was looked
        for and which command prepares it.
      ImportError: a package is missing; the message names the extra.
    """
    if name not in _SETS:
        raise ValueError(f"name={name!r}; it must be one of {', '.join(NAMES)}")
    spec = _SETS[name]
    _check_normalization(normalization, spec, name)
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise={label_noise}; it must lie in [0, 1]")
    if blur is not None and len(spec.shape) != 3:
        raise ValueError(f"blur needs images, and {name!r} has shape {spec.shape}")

    stored, note = _read(name, spec, data_dir)
    _check_arrays(stored, spec, name)
    full = {"image": stored["train_image"], "label": stored["train_label"]}
    test = {"image": stored["test_image"], "label": stored["test_label"]}
    mean, std = _statistics(normalization, spec, full["image"])

    num_examples = len(full["label"])
    held_out = spec.validation if validation is None else validation
    if not 0 <= held_out < num_examples:
        raise ValueError(
            f"validation={held_out}; it must lie in [0, {num_examples - 1}] for {name!r}"
        )
    if classes is not None:
        classes = errors.whole("classes", classes, 2, spec.num_classes)
    end = classes or spec.num_classes
    from_class = errors.whole(
        "from_class", from_class, 0, end - 2, f"two of {end} classes must remain"
    )
    some = from_class > 0 or classes is not None
    errors.one_of("half", half, ("a", "b", None))

    order = random_state(seed, "split").permutation(num_examples)
    held_rows, rows = order[:held_out], order[held_out:]
    test_rows = np.arange(len(test["label"]))
    if some:
        # Afterwards, so that an example is in the same split whatever the classes are.
        held_rows, rows = (
            r[_within(full["label"][r], from_class, end)] for r in (held_rows, rows)
        )
        test_rows = test_rows[_within(test["label"], from_class, end)]
    if half is not None:
        size = len(rows) // 2
        rows = rows[:size] if half == "a" else rows[size : 2 * size]
    if subset is not None and not 1 <= subset <= len(rows):
        raise ValueError(
            f"subset={subset}; it must lie in [1, {len(rows)}] for {name!r} with "
            f"validation={held_out}"
            + (f", classes={classes}" if classes is not None else "")
            + (f", from_class={from_class}" if from_class else "")
            + (f", half={half!r}" if half is not None else "")
        )
    train = _take(full, rows[:subset])
    num_classes = end - from_class
    held = _take(full, held_rows)
    if some:
        test = _take(test, test_rows)
    if from_class:
        for split in (train, held, test):
            split["label"] = split["label"] - np.int32(from_class)
    if label_noise:
        train["label"] = perturb.randomize_labels(
            train["label"], label_noise, num_classes, seed
        )
    if blur is not None:
        train["image"] = perturb.blur(train["image"], blur)
    arrays = {"train": train, "test": test}
    if held_out:
        arrays = {"train": train, "validation": held, "test": test}
    if normalization == "unit_l2":
        for split in arrays.values():
            split["image"] = _unit_l2(split["image"])
    return Dataset(arrays, num_classes, spec.shape, mean, std, name, note)


def available(data_dir: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """The names that `load` can load now, as far as files are concerned.

    Args:
      data_dir: as in `load`.

    Returns:
      Prepared sets and `GENERATED`, in the order of `NAMES`.
    """
    folder = prepared.data_dir(data_dir)
    return tuple(name for name in NAMES if name in GENERATED or _found(name, folder))


def tfds_name(name: str) -> str:
    """What tensorflow-datasets calls a set.

    Args:
      name: one of `NAMES`, but not of `GENERATED`, nor "usps".

    Returns:
      TFDS's name: "svhn" is "svhn_cropped", the others are called the same.

    Raises:
      ValueError: any other name.
    """
    spec = _SETS.get(name)
    if spec is None or spec.tfds is None:
        valid = ", ".join(n for n, s in _SETS.items() if s.tfds is not None)
        raise ValueError(f"name={name!r}; it must be one of {valid}")
    return spec.tfds


def _read(
    name: str, spec: _Set, data_dir: str | os.PathLike[str] | None
) -> tuple[Arrays, str | None]:
    if name in GENERATED:
        return (generated.mnist1d if name == "mnist1d" else generated.digits)(), None
    folder = prepared.data_dir(data_dir)
    own = _found(name, folder)
    if own is None:
        raise FileNotFoundError(_not_prepared(name, spec.tfds, folder, data_dir))
    arrays = usps.read(own) if spec.tfds is None else prepared.read(own)
    return arrays, prepared.note(own)


def _found(name: str, folder: pathlib.Path) -> pathlib.Path | None:
    """Where a set that must be prepared lies in a data folder; None if it is not."""
    tfds = _SETS[name].tfds
    return usps.find(folder) if tfds is None else prepared.find(tfds, folder)


def _not_prepared(
    name: str,
    tfds_name: str | None,
    folder: pathlib.Path,
    data_dir: str | os.PathLike[str] | None,
) -> str:
    command = f"python -m lottery_jax.data.prepare {name}"
    if data_dir is not None:
        command += f" --data-dir {shlex.quote(os.fspath(data_dir))}"
    others = prepared.versions(tfds_name, folder) if tfds_name else []
    extra = "lottery-jax[data-prepare]" if tfds_name else "lottery-jax"
    unreadable = "".join(
        f"\n{path} holds {form} files, which cannot be read without TensorFlow: move "
        "that folder away first."
        for path, form in others
    )
    ready = [n for n in available(data_dir) if n not in GENERATED]
    return (
        f"{name!r} is not prepared in {folder} (looked up in this order: data_dir, "
        "$TFDS_DATA_DIR, ~/tensorflow_datasets). To prepare it once, with a network:\n\n"
        f"    pip install '{extra}'\n    {command}\n{unreadable}\n"
        f"Prepared there: {', '.join(ready) or 'nothing'}. "
        f"Available without a network: {', '.join(GENERATED)}."
    )


def _check_normalization(normalization: str, spec: _Set, name: str) -> None:
    if normalization not in get_args(Normalization):
        raise ValueError(
            f"normalization={normalization!r}; it must be one of "
            f"{', '.join(get_args(Normalization))}"
        )
    if normalization == "imagenet" and spec.shape != _COLOR:
        raise ValueError(
            f"normalization='imagenet' needs three colour channels, and {name!r} has "
            f"shape {spec.shape}"
        )


def _check_arrays(stored: Arrays, spec: _Set, name: str) -> None:
    """The one check of what a reader or a cache delivered."""
    for split in ("train", "test"):
        images, labels = stored[f"{split}_image"], stored[f"{split}_label"]
        if images.shape != (len(labels), *spec.shape) or len(labels) == 0:
            raise ValueError(
                f"the {split} split of {name!r} holds images of shape {images.shape} "
                f"and {len(labels)} labels, not [N, {', '.join(map(str, spec.shape))}]"
            )
        if labels.min() < 0 or labels.max() >= spec.num_classes:
            raise ValueError(
                f"the {split} split of {name!r} holds labels in [{labels.min()}, "
                f"{labels.max()}], not in [0, {spec.num_classes})"
            )


def _statistics(
    normalization: str, spec: _Set, images: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = spec.shape[-1] if len(spec.shape) == 3 else 1
    if normalization == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    if normalization == "none":
        return (0.0,) * channels, (spec.maximum / 255,) * channels
    if normalization == "unit_l2":
        return (0.0,) * channels, (1.0,) * channels
    if spec.mean is not None and spec.std is not None:
        return spec.mean, spec.std
    each = [moments(images.reshape(-1, channels)[:, c]) for c in range(channels)]
    return tuple(m for m, _ in each), tuple(s for _, s in each)


def moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation, of uint8 values after scaling to [0, 1]."""
    if values.dtype != np.uint8:
        return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    # From the histogram: exact, and without a float64 copy of the images.
    share = np.bincount(values, minlength=256) / len(values)
    levels = np.arange(256) / 255
    mean = share @ levels
    return float(mean), float(np.sqrt(share @ (levels - mean) ** 2))


def _take(split: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {field: array[rows] for field, array in split.items()}


def _within(labels: np.ndarray, first: int, end: int) -> np.ndarray:
    return (labels >= first) & (labels < end)


def _unit_l2(images: np.ndarray) -> np.ndarray:
    images = images.astype(np.float32)
    norms = np.linalg.norm(images.reshape(len(images), -1), axis=1)
    norms[norms == 0] = 1  # an empty image stays empty
    images /= norms.reshape((-1,) + (1,) * (images.ndim - 1))
    return images
