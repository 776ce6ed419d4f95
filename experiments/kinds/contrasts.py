"""Contrastive pre-training, from a recipe: images, and a network with a projection."""

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from experiments.kinds import images
from lottery_jax import errors, tasks
from lottery_jax.data import Views
from lottery_jax.types import Task

if TYPE_CHECKING:
    from experiments.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Contrasting:
    """What contrastive pre-training alone is told by; the defaults are SimCLR's for CIFAR."""

    temperature: float = 0.5
    """Temperature of the contrastive loss."""
    projection: int = 64
    """Numbers of a projection, which are what is compared."""
    projection_hidden: int = 128
    """Units of the hidden layer of the projection head."""
    smallest_crop: float = 0.08
    """The smallest share of an image that a view shows; the largest is all of it."""
    colour_strength: float = 0.5
    """Strength s of the colour jitter: brightness, contrast and saturation change by up
    to 0.8 s, the hue by 0.2 s turns."""
    grey_probability: float = 0.2
    """Probability of a view without colours."""
    blur_probability: float = 0.0
    """Probability of a blurred view."""


FIELDS = tuple(field.name for field in dataclasses.fields(Contrasting))
"""The names of these fields."""


def make_views(recipe: Any) -> Views:
    """How the views of a recipe are made.

    Raises:
      ValueError: a field out of range; names it.
    """
    if not 0 < recipe.smallest_crop <= 1:
        raise errors.wrong("smallest_crop", recipe.smallest_crop, "in (0, 1]")
    for field in ("grey_probability", "blur_probability"):
        errors.within(field, getattr(recipe, field), 0, 1)
    strength = recipe.colour_strength
    errors.within("colour_strength", strength, 0, 2.5)  # half a turn of the hue
    return Views(
        scale=(recipe.smallest_crop, 1.0),
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        grey=recipe.grey_probability,
        blur=recipe.blur_probability,
    )


def make_model(recipe: Any) -> nn.Module:
    """The model of a recipe: the classifier's, with a projection as its head.

    Raises:
      ValueError: an unknown name or choice, or sizes that make no sense.
    """
    for field in ("projection", "projection_hidden"):
        errors.whole(field, getattr(recipe, field), 1)
    return images.make_model(
        recipe, recipe.projection, head="projection", hidden=recipe.projection_hidden
    )


def make_contrastive(recipe: "Recipe") -> Task:
    """Contrastive pre-training, of a recipe with the fields of `Contrasting`.

    Raises:
      ValueError: an unknown name or a field out of range.
      FileNotFoundError: data that are not prepared; says how to.
    """
    own: Any = recipe
    return tasks.contrastive(
        images.load_data(recipe),
        make_model(recipe),
        batch_size=recipe.batch_size,
        temperature=own.temperature,
        views=make_views(recipe),
        exclude=recipe.exclude,
    )
