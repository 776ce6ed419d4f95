"""How bad input is refused: `field=value; it must be ...`, before any work is lost.

What is checked is given back as it is used from there on: a NumPy integer as an int, a
list as a tuple. A value of a wrong kind is a ValueError like one out of range.
"""

import math
import numbers
import os
import pathlib
import re
import reprlib
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

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


def shown(value: Any) -> str:
    """A value in a message: short, also where it is a function, an array or a data set."""
    kind = type(value).__name__
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{kind} of shape {value.shape}"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    if isinstance(value, str | numbers.Number | None) or type(value) in (tuple, list):
        return _SHORT.repr(value)
    return f"a {kind}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = 200


# --- kinds ----------------------------------------------------------------------------


def whole(
    field: str,
    value: Any,
    low: int | None = None,
    high: int | None = None,
    of: str = "",
) -> int:
    """A whole number as an int; not a bool, nor a float that happens to be whole.

    Args:
      field: what the caller calls it.
      value: what was given.
      low: the lowest that is allowed; None for no bound.
      high: the highest; None for no bound.
      of: what the highest is, for the message.

    Raises:
      ValueError: anything else.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    above = is_whole and (low is None or value >= low)
    if above and (high is None or value <= high):
        return int(value)
    bounds = [] if is_whole else ["a whole number"]
    if low is not None:
        bounds.append(f"{low} or more" if high is None else f"between {low} and {high}")
    raise wrong(field, shown(value), ", ".join(bounds + ([of] if of else [])))


def wholes(
    field: str, values: Any, low: int | None = None, high: int | None = None
) -> tuple[int, ...]:
    """Whole numbers as a tuple: of a sequence, a range or a flat array.

    Raises:
      ValueError: no sequence, or one of its numbers is refused by `whole`.
    """
    return tuple(whole(field, value, low, high) for value in several(field, values))


def several(field: str, values: Any, must: str = "a tuple") -> tuple[Any, ...]:
    """A sequence as a tuple; text, a mapping or a single thing is none.

    Args:
      field: what the caller calls it.
      values: what was given.
      must: what it must be.

    Raises:
      ValueError: no sequence.
    """
    named = isinstance(values, tuple) and hasattr(values, "_fields")
    flat = getattr(values, "ndim", 1) == 1
    if isinstance(values, tuple | list | range) and not named:
        return tuple(values)
    if hasattr(values, "ndim") and hasattr(values, "tolist") and flat:
        return tuple(values.tolist())
    raise wrong(field, shown(values), must)


def names(field: str, values: Any) -> tuple[str, ...]:
    """Names as a tuple of text; one name alone is refused, for it is several letters.

    Raises:
      ValueError: anything else.
    """
    must = "a tuple of names, such as ('train', 'test')"
    found = several(field, values, must)
    for value in found:
        if not isinstance(value, str):
            raise wrong(field, shown(found), must)
    return found


def is_a(field: str, value: Any, kind: type | tuple[type, ...], must: str) -> None:
    """Raises a ValueError if a value is not of a kind.

    Args:
      field: what the caller calls it.
      value: what was given.
      kind: a class or several.
      must: what it must be, completing "it must be".
    """
    if not isinstance(value, kind):
        raise wrong(field, shown(value), must)


def flag(field: str, value: Any) -> None:
    """Raises a ValueError if a value is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise wrong(field, shown(value), "True or False")


def optimizer(value: Any) -> None:
    """Raises a ValueError if `tx` is no gradient transformation."""
    made = not isinstance(value, type)
    if not made or not all(
        callable(getattr(value, n, None)) for n in ("init", "update")
    ):
        must = "an optax.GradientTransformation, as optax.adam(1e-3) makes"
        if callable(value):
            must += "; a function that makes one needs a sweep of its hyperparameters"
        raise wrong("tx", shown(value), must)


# --- values ---------------------------------------------------------------------------


def one_of(field: str, value: Any, valid: Iterable[Any]) -> None:
    """Raises a ValueError if a value is none of those that a field may have."""
    valid = tuple(valid)
    if not any(isinstance(value, type(one)) and value == one for one in valid):
        text = repr(value) if isinstance(value, str) else shown(value)
        raise wrong(field, text, f"one of {', '.join(map(str, valid))}")


def at_least(field: str, value: float, low: float) -> None:
    """Raises a ValueError if a value is below a bound, or no number."""
    if not _number(value):
        raise wrong(field, shown(value), f"a number, {low} or more")
    if not value >= low:
        raise wrong(field, value, f"{low} or more")


def within(field: str, value: float, low: float, high: float) -> None:
    """Raises a ValueError if a value is outside two bounds, or no number."""
    if not _number(value):
        raise wrong(field, shown(value), f"a number between {low} and {high}")
    if not low <= value <= high:
        raise wrong(field, value, f"between {low} and {high}")


def share(field: str, value: float) -> None:
    """Raises a ValueError if a value is no fraction between 0 and 1, both excluded."""
    if not _number(value):
        raise wrong(field, shown(value), "a number in (0, 1)")
    if not 0 < value < 1:
        raise wrong(field, value, "in (0, 1)")


def _number(value: Any) -> bool:
    """Whether a value is a real number, and no bool."""
    if isinstance(value, bool):
        return False
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()


def finite(field: str, values: Collection[float]) -> None:
    """Raises a ValueError that names the first of some numbers that is not finite."""
    for position, value in enumerate(values):
        if not _number(value) or not math.isfinite(value):
            raise wrong(f"{field}[{position}]", shown(value), "a finite number")


def some_different(field: str, values: Collection[Any]) -> None:
    """Raises a ValueError if there is no value, or one twice."""
    values = several(field, values)
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
