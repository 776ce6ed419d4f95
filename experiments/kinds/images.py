"""Classification of images or vectors, from a recipe: a data set, and a network."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lottery_jax import data, errors, models, tasks
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
)

ADAPTED: Mapping[str, Callable[[data.Dataset], data.Dataset]] = {
    "own": lambda dataset: dataset,
    "grey28": data.grey28,
    "colour32": data.colour32,
}
"""Shapes of images, by the names of `Recipe.inputs`."""


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
    fields = (getattr(recipe, name) for name in _DATA_FIELDS)
    return _load_data(recipe.inputs, *fields)


@functools.lru_cache(maxsize=2)
def _load_data(inputs: str, name: str, *options: Any) -> data.Dataset:
    if name not in data.NAMES:
        raise ValueError(f"data={name!r}; it must be one of {', '.join(data.NAMES)}")
    return ADAPTED[inputs](data.load(name, **dict(zip(_DATA_FIELDS[1:], options))))


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
    return (recipe.data in data.NAMES and load_data(recipe).note) or ""
