"""Names of networks, "conv-2-8" say: a family, and its numbers."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

Families = Mapping[str, tuple[str, Callable[..., nn.Module | None]]]
"""For each family the form of its names, and `(numbers, **settings) -> model`, which is
None for numbers that the family does not have."""


def forms(families: Families) -> str:
    """The names that there are, for messages."""
    return ", ".join(form for form, _ in families.values())


def named(name: str, families: Families, settings: Mapping[str, Any]) -> nn.Module:
    """The model of a name.

    Args:
      name: a family and its numbers, with dashes between them.
      families: those that there are.
      settings: what the family is given beside the numbers.

    Raises:
      ValueError: the name is none of these.
    """
    family, numbers = _parse(name)
    model = families[family][1](numbers, **settings) if family in families else None
    if model is None:
        raise ValueError(f"name={name!r}; it must be one of {forms(families)}")
    return model


def _parse(name: str) -> tuple[str, list[int]]:
    parts = name.split("-")
    words = [part for part in parts if not part.isdecimal()]
    numbers = [int(part) for part in parts[len(words) :] if part.isdecimal()]
    if parts[: len(words)] != words or 0 in numbers:
        return name, []
    return "-".join(words), numbers
