"""How bad input is refused: `field=value; it must be ...`, before any work is lost."""

import os
import pathlib
import re
from collections.abc import Collection, Iterable
from typing import Any

# `pathlib` makes one slash of two. A scheme of one letter would be a drive.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def wrong(field: str, value: Any, must: str) -> ValueError:
    """The error to raise for a value.

    Args:
      field: what the caller calls it.
      value: what it is, printed as it stands.
      must: what it must be, completing "it must be".
    """
    return ValueError(f"{field}={value}; it must be {must}")


def one_of(field: str, value: Any, valid: Iterable[Any]) -> None:
    """Raises a ValueError if a value is none of those that a field may have."""
    valid = tuple(valid)
    if value not in valid:
        raise wrong(field, repr(value), f"one of {', '.join(map(str, valid))}")


def at_least(field: str, value: float, low: float) -> None:
    """Raises a ValueError if a value is below a bound, or no number."""
    if not value >= low:
        raise wrong(field, value, f"{low} or more")


def within(field: str, value: float, low: float, high: float) -> None:
    """Raises a ValueError if a value is outside two bounds, or no number."""
    if not low <= value <= high:
        raise wrong(field, value, f"between {low} and {high}")


def some_different(field: str, values: Collection[Any]) -> None:
    """Raises a ValueError if there is no value, or one twice."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{field}={tuple(values)}; there must be some, all different")


def on_disk(field: str, path: str | os.PathLike[str]) -> pathlib.Path:
    """A path that files can be read from and written to.

    Raises:
      ValueError: it is an address (`gs://bucket/run`), which would be taken for a folder
        of that name below the current one.
    """
    if _ADDRESS.match(os.fspath(path)):
        must = "a path on a mounted file system; mount what is there, or copy it"
        raise wrong(field, repr(os.fspath(path)), must)
    return pathlib.Path(path)
