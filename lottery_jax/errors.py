"""How bad input is refused: `field=value; it must be ...`, before any work is lost."""

from collections.abc import Collection, Iterable
from typing import Any


def one_of(field: str, value: Any, valid: Iterable[Any]) -> None:
    """Raises a ValueError if a value is none of those that a field may have."""
    valid = tuple(valid)
    if value not in valid:
        raise ValueError(
            f"{field}={value!r}; it must be one of {', '.join(map(str, valid))}"
        )


def at_least(field: str, value: float, low: float) -> None:
    """Raises a ValueError if a value is below a bound, or no number."""
    if not value >= low:
        raise ValueError(f"{field}={value}; it must be {low} or more")


def some_different(field: str, values: Collection[Any]) -> None:
    """Raises a ValueError if there is no value, or one twice."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{field}={tuple(values)}; there must be some, all different")
