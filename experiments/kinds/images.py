"""Classification of images or vectors, from a recipe: a data set, and a network."""

import contextlib
import contextvars
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import data, errors, models, streams, tasks
from lottery_jax.data import maps
from lottery_jax.keys import of_seed
from lottery_jax.types import Task

if TYPE_CHECKING:
    from experiments.recipes import Recipe

_DATA_FIELDS = (
    "data",
    "validation",
    "subset",
    "label_noise",
    "blur",
    "normalization",
    "classes",
    "half",
    "from_class",
    "side",
    "skip_corrupt",
)

_IN_MEMORY = (
    "subset",
    "label_noise",
    "blur",
    "inputs",
    "classes",
    "half",
    "from_class",
)
"""Fields for which the examples must lie in memory."""

ADAPTED: Mapping[str, Callable[[data.Dataset], data.Dataset]] = {
    "own": lambda dataset: dataset,
    "grey28": data.grey28,
    "colour32": data.colour32,
}
"""Shapes of images, by the names of `Recipe.inputs`."""


class Size(NamedTuple):
    """What is known of a data set without having it.

    Attributes:
      train: training examples, those that are held out among them.
      validation: of these held out by default.
      test: test examples.
      num_classes: classes.
      shape: of an example.
    """

    train: int
    validation: int
    test: int
    num_classes: int
    shape: tuple[int, ...]


_GREY, _COLOUR = (28, 28, 1), (32, 32, 3)

STREAMED: Mapping[str, Size] = {
    "imagenet": Size(1_281_167, 0, 50_000, 1000, (256, 256, 3)),
    "places365": Size(1_803_460, 0, 36_500, 365, (256, 256, 3)),
    "tiny_imagenet": Size(100_000, 0, 10_000, 200, (64, 64, 3)),
}
"""Sets that are read while runs train, as they are prepared. The published validation
split is what networks are tested on: the labels of the others are not published."""

SIZES: Mapping[str, Size] = {
    "mnist": Size(60_000, 5_000, 10_000, 10, _GREY),
    "fashion_mnist": Size(60_000, 5_000, 10_000, 10, _GREY),
    "kmnist": Size(60_000, 5_000, 10_000, 10, _GREY),
    "cifar10": Size(50_000, 5_000, 10_000, 10, _COLOUR),
    "cifar100": Size(50_000, 5_000, 10_000, 100, _COLOUR),
    "svhn": Size(73_257, 5_000, 26_032, 10, _COLOUR),
    "usps": Size(7_291, 729, 2_007, 10, (16, 16, 1)),
    **STREAMED,
}
"""Sets that have to be prepared, by name."""


def load_data(recipe: "Recipe") -> data.Dataset:
    """The data set of a recipe; the last ones are kept.

    Raises:
      ValueError: an unknown name or a field out of range.
      FileNotFoundError: data that are not prepared; says how to.
    """
    errors.one_of("inputs", recipe.inputs, ADAPTED)
    if recipe.inputs != "own" and recipe.normalization != "dataset":
        raise ValueError(
            f"normalization={recipe.normalization!r}; it must be 'dataset' with "
            f"inputs={recipe.inputs!r}, whose images have statistics of their own"
        )
    if streamed(recipe):
        _check_streamed(recipe)
    elif recipe.side is not None:
        must = "None: only images that are decoded while runs train are resized"
        raise errors.wrong("side", recipe.side, must)
    elif recipe.skip_corrupt:
        must = "False: only images that are decoded while runs train are skipped"
        raise errors.wrong("skip_corrupt", True, must)
    fields = (getattr(recipe, name) for name in _DATA_FIELDS)
    absent = _BY_SIZE.get() and not there(recipe)
    return _load_data(absent, recipe.inputs, *fields)


@functools.lru_cache(maxsize=2)
def _load_data(absent: bool, inputs: str, name: str, *options: Any) -> data.Dataset:
    own = dict(zip(_DATA_FIELDS[1:], options))
    if name in STREAMED or is_folder(name):
        return _of_size(name, inputs, own) if absent else _streamed(name, own)
    if name not in data.NAMES:
        valid = ", ".join((*data.NAMES, *STREAMED))
        raise ValueError(f"data={name!r}; it must be one of {valid}, or a folder")
    if absent:
        return _of_size(name, inputs, own)
    del own["side"], own["skip_corrupt"]
    return ADAPTED[inputs](data.load(name, **own))


# --- read while runs train ------------------------------------------------------------


def is_folder(name: str) -> bool:
    """Whether `Recipe.data` is a path, of a map or of class folders."""
    return "/" in name or os.sep in name


def streamed(recipe: "Recipe") -> bool:
    """Whether the examples of a recipe are read while runs train."""
    return recipe.data in STREAMED or is_folder(recipe.data)


def _check_streamed(recipe: "Recipe") -> None:
    """Raises a ValueError for a field that streamed examples cannot do; names it."""
    usual = {"inputs": "own", "label_noise": 0.0, "from_class": 0}
    for field in _IN_MEMORY:
        if (value := getattr(recipe, field)) != usual.get(field):
            must = (
                f"{usual.get(field)!r}: data={recipe.data!r} is read while runs train"
            )
            raise errors.wrong(field, repr(value), must)
    if recipe.normalization == "unit_l2":
        must = f"another: data={recipe.data!r} is read while runs train"
        raise errors.wrong("normalization", repr(recipe.normalization), must)
    if recipe.data in STREAMED and recipe.side is not None:
        must = "None: the map has the side that it was prepared with"
        raise errors.wrong("side", recipe.side, must)


def _streamed(name: str, own: Mapping[str, Any]) -> data.Dataset:
    """A set by name, from its map; or a folder: a map, or class folders."""
    folder = maps.folder(name) if name in STREAMED else pathlib.Path(name).expanduser()
    plain = own["normalization"] == "none"
    how: dict[str, Any] = {
        "validation": own["validation"] or 0,
        "mean": 0.0 if plain else None,
        "std": 1.0 if plain else None,
    }
    if (folder / maps.DESCRIPTION).is_file():
        if own["side"] is not None:
            must = f"None: {folder} is a map, of the side that it was prepared with"
            raise errors.wrong("side", own["side"], must)
        if own["skip_corrupt"]:
            must = (
                f"False: corrupt images of the map {folder} were met as it was prepared"
            )
            raise errors.wrong("skip_corrupt", True, must)
        return data.stream(folder, name=name if name in STREAMED else None, **how)
    if name in STREAMED:
        side = STREAMED[name].shape[0]
        raise FileNotFoundError(
            f"{name!r} is not prepared in {folder} (looked up below $TFDS_DATA_DIR, or "
            "~/tensorflow_datasets). To prepare it once, from a folder that has its images "
            "unpacked in class folders, train/CLASS/FILE and val/CLASS/FILE:\n\n"
            "    pip install 'lottery-jax[data]'\n"
            f"    python -m lottery_jax.data.prepare {name} --from FOLDER --side {side}\n\n"
            "Or train straight from that folder: --data FOLDER --side "
            f"{side}"
        )
    if not folder.is_dir():
        must = "a folder that is there, of a map or of class folders"
        raise errors.wrong("data", repr(name), must)
    how |= {"side": own["side"], "skip_corrupt": own["skip_corrupt"]}
    return data.stream(folder, **how)


# --- by size, where the data are not there --------------------------------------------

_BY_SIZE = contextvars.ContextVar("by_size", default=False)


@contextlib.contextmanager
def by_size() -> Iterator[None]:
    """Within, sets that are not there are made of their sizes: for what only counts."""
    token = _BY_SIZE.set(True)
    try:
        yield
    finally:
        _BY_SIZE.reset(token)


def there(recipe: "Recipe") -> bool:
    """Whether the images of a recipe can be read here."""
    if recipe.data in STREAMED:
        return (maps.folder(recipe.data) / maps.DESCRIPTION).is_file()
    return recipe.data not in SIZES or recipe.data in data.available()


class Unread(streams.Examples):
    """Examples of which only shapes and their number are known."""

    def __init__(self, name: str, number: int, shape: tuple[int, ...]) -> None:
        self.name, self.number, self.shape = name, number, shape

    @property
    def fields(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        image = jax.ShapeDtypeStruct(self.shape, jnp.uint8)
        return {"image": image, "label": jax.ShapeDtypeStruct((), jnp.int32)}

    @property
    def digest(self) -> str:
        return f"{self.name} {self.number} {self.shape}"

    def __len__(self) -> int:
        return self.number

    def read(self, indices: np.ndarray, into: Mapping[str, np.ndarray]) -> None:
        raise streams.SourceError(f"{self.name} is not there: it can only be counted")


def _of_size(name: str, inputs: str, own: Mapping[str, Any]) -> data.Dataset:
    """A set of the right shapes, without values: views of one value, or unread."""
    known = SIZES[name]
    shape = {"own": known.shape, "grey28": _GREY, "colour32": _COLOUR}[inputs]
    held = known.validation if own["validation"] is None else own["validation"]
    first = own["from_class"]
    classes = (own["classes"] or known.num_classes) - first
    # As if there were as many of each class.
    numbers = {
        split: number * classes // known.num_classes
        for split, number in (
            ("train", known.train - held),
            ("validation", held),
            ("test", known.test),
        )
        if number
    }
    if own["half"]:
        numbers["train"] //= 2
    if own["subset"] is not None:
        most = numbers["train"]
        numbers["train"] = errors.whole("subset", own["subset"], 1, most)
    arrays: dict[str, Any] = {
        split: {
            # White, which tasks that know the range of pixels look for.
            "image": np.broadcast_to(np.uint8(255), (number, *shape)),
            "label": np.broadcast_to(np.int32(0), (number,)),
        }
        for split, number in numbers.items()
    }
    if name in STREAMED:
        arrays = {
            split: streams.columns(Unread(f"the split {split} of {name}", n, shape))
            for split, n in numbers.items()
        }
    channels = shape[-1]
    mean, std = (0.0,) * channels, (1.0,) * channels
    return data.Dataset(arrays, classes, shape, mean, std, name)


def shape_of(recipe: "Recipe") -> tuple[int, ...]:
    """The shape of an example as the networks of a recipe see it.

    Raises:
      ValueError: a crop that is no number of pixels; or as `load_data`.
      FileNotFoundError: data that are not prepared; says how to.
    """
    shape = load_data(recipe).shape
    if recipe.crop is None or len(shape) != 3:
        return shape
    crop = errors.whole("crop", recipe.crop, 1)
    return crop, crop, shape[-1]


def check_whole(recipe: "Recipe", why: str) -> None:
    """Raises a ValueError for a recipe whose networks do not see images as stored."""
    if recipe.crop is not None:
        raise errors.wrong("crop", recipe.crop, f"None: {why}")


def make_model(
    recipe: "Recipe", outputs: int | None = None, **choices: Any
) -> nn.Module:
    """The model of a recipe, which fits its data.

    Args:
      recipe: the recipe.
      outputs: how many numbers its head gives; None for the number of classes.
      **choices: fields of `models.Choices` that no recipe has.

    Raises:
      ValueError: an unknown name or choice, or a model that does not fit.
    """
    dataset, shape = load_data(recipe), shape_of(recipe)
    try:
        model = models.make(
            recipe.model,
            dataset.num_classes if outputs is None else outputs,
            initializer=recipe.initializer,
            bias=recipe.bias,
            norm_scale=recipe.norm_scale,
            unbiased=recipe.unbiased_variance,
            **choices,
        )
    except ValueError as error:
        raise ValueError(f"model={recipe.model!r}: {error}") from None
    try:
        jax.eval_shape(model.init, of_seed(0), jnp.zeros((1, *shape)))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"model={recipe.model!r} does not fit data={recipe.data!r}, with examples of "
            f"shape {shape}: {error}"
        ) from None
    return model


def make_classification(recipe: "Recipe") -> Task:
    """The classification task of a recipe.

    Raises:
      ValueError: an unknown name or a field out of range.
      FileNotFoundError: data that are not prepared; says how to.
    """
    return tasks.classification(
        load_data(recipe),
        make_model(recipe),
        batch_size=recipe.batch_size,
        augment=recipe.augment,
        crop=recipe.crop,
        label_smoothing=recipe.label_smoothing,
        exclude=recipe.exclude,
    )


def note(recipe: "Recipe") -> str:
    """What must be said of the data of a recipe; may be empty."""
    known = recipe.data in data.NAMES or streamed(recipe)
    return (known and load_data(recipe).note) or ""
