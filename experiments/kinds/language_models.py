"""Language models, from a recipe: a text, and a network that reads it."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import flax.linen as nn

from lottery_jax import errors, tasks
from lottery_jax.data import text
from lottery_jax.data.text import Texts
from lottery_jax.models import language
from lottery_jax.types import Task

if TYPE_CHECKING:
    from experiments.recipes import Recipe

UNITS: Mapping[str, Literal["character", "word"]] = {
    "tiny_shakespeare": "character",
    "wikitext2": "word",
}
"""Texts that are read from files, and what their tokens are."""

GENERATED = "markov"
"""A text that needs no download."""


def load(recipe: "Recipe") -> Texts:
    """The text of a recipe; `subset` are its first tokens for training.

    Raises:
      ValueError: an unknown name or a field out of range.
      FileNotFoundError: a text that is not there; says how to get it.
    """
    errors.one_of("data", recipe.data, (*UNITS, GENERATED))
    found = _read(recipe.data)
    arrays = dict(found.arrays)
    number = len(arrays["train"]["ids"])
    if recipe.validation is not None:
        must = "None, for the text's own split, or 0, for none"
        if recipe.validation != 0:
            raise errors.wrong("validation", recipe.validation, must)
        arrays.pop("validation", None)
    if recipe.subset is not None:
        of = f"the training tokens of {recipe.data}"
        number = errors.whole("subset", recipe.subset, 1, number, of)
        arrays["train"] = {"ids": arrays["train"]["ids"][:number]}
    return found._replace(arrays=arrays)


@functools.lru_cache(maxsize=2)
def _read(name: str) -> Texts:
    if name == GENERATED:
        return text.markov()
    return text.stream(name, unit=UNITS[name])


def make_model(recipe: "Recipe") -> nn.Module:
    """The language model of a recipe.

    Raises:
      ValueError: an unknown name, or a size that makes no sense.
    """
    errors.whole("length", recipe.length, 1)
    try:
        return language.make(
            recipe.model,
            load(recipe).vocabulary.size,
            positions=recipe.length,
            dropout=recipe.dropout,
            embeddings=recipe.embeddings,
        )
    except ValueError as error:
        raise ValueError(f"model={recipe.model!r}: {error}") from None


def make_language_model(recipe: "Recipe") -> Task:
    """Next-token prediction, of a recipe.

    Raises:
      ValueError: an unknown name or a field out of range.
      FileNotFoundError: a text that is not there; says how to get it.
    """
    return tasks.language_model(
        load(recipe),
        make_model(recipe),
        batch_size=recipe.batch_size,
        window=recipe.length,
        exclude=recipe.exclude,
    )


def note(recipe: "Recipe") -> str:
    """What must be said of the text of a recipe; may be empty."""
    return load(recipe).note or ""
