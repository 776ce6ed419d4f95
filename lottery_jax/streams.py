"""Splits that lie on no device: their examples are read, by number, while runs train.

A task's data is a dict of splits, a split a dict of arrays `[N, ...]`. Where a split is
streamed, `Column`s stand in the place of these arrays: they have a shape and a dtype, and
instead of values the `Examples` that are read. Tasks never see one: whatever they compute
with holds the examples of a *window*, a range of steps of training or a part of a split.

    data = {"train": streams.columns(examples), "test": {"image": ..., "label": ...}}
    streams.streamed(data)      # {"train": examples}
    streams.resident(data)      # {"test": ...}: what lies on the devices

Where examples come from, and what of them is corrupt, is the business of `data`.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lottery_jax import errors
from lottery_jax.types import PyTree


class SourceError(RuntimeError):
    """Examples cannot be read, or are no such examples; says which, and why."""


class Examples(abc.ABC):
    """Examples that are read by their numbers, 0 to `len` - 1.

    The same number is the same example at all times. Two are equal if they read the same.
    """

    @property
    @abc.abstractmethod
    def fields(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of what one example has, by the names that a task looks up."""

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """Tells these examples from others, by names and sizes, say: it should be cheap.

        A run that goes on from a folder is refused where it has changed.
        """

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, indices: np.ndarray, into: Mapping[str, np.ndarray]) -> None:
        """Reads examples into arrays.

        Whoever trains or measures calls it from one thread at a time, which is not the
        main one; `streams.read` from where it is called itself.

        Args:
          indices: int64 `[n]` in [0, len); the same one may be there twice.
          into: for each field an array `[n, ...]` of its dtype, which is written.

        Raises:
          SourceError: an example cannot be read; names it.
        """

    @property
    def replaced(self) -> Mapping[str, str]:
        """By the names of corrupt examples met so far, those that were read instead."""
        return {}

    @property
    def nbytes(self) -> int:
        """Bytes of one example."""
        return sum(x.size * x.dtype.itemsize for x in self.fields.values())


@dataclasses.dataclass(frozen=True)
class Column:
    """A field of streamed examples, in the place of an array `[N, ...]`: a leaf.

    A slice of it, or its rows at given numbers, is a column of those examples.

    Attributes:
      examples: what is read.
      field: which of its fields.
    """

    examples: Examples
    field: str

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, ...)`."""
        return (len(self.examples), *self.examples.fields[self.field].shape)

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return np.dtype(self.examples.fields[self.field].dtype)

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> "Column":
        return Column(part(self.examples, rows), self.field)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        # Not a silent read of a terabyte.
        raise TypeError(
            f"{self.field!r} is streamed: it has no values until it is read; a stack of "
            "some examples is streams.read(column.examples, indices)"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Part(Examples):
    """Some of other examples, under new numbers.

    Attributes:
      whole: the others.
      rows: for each number, that of the example among the others, int64 `[n]`.
    """

    whole: Examples
    rows: np.ndarray

    @property
    def fields(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """See `Examples`; so are all others."""
        return self.whole.fields

    @property
    def digest(self) -> str:
        """Of the others, and of which of them these are."""
        rows = hashlib.sha256(self.rows.tobytes()).hexdigest()
        return hashlib.sha256(f"{self.whole.digest} {rows}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: np.ndarray, into: Mapping[str, np.ndarray]) -> None:
        """See `Examples.read`.

        Args:
          indices: numbers of these examples, int64 `[n]`.
          into: what is written, by field.
        """
        self.whole.read(self.rows[indices], into)

    @property
    def replaced(self) -> Mapping[str, str]:
        """Of all the others."""
        return self.whole.replaced

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Part)
            and self.whole == other.whole
            and np.array_equal(self.rows, other.rows)
        )

    def __hash__(self) -> int:
        return hash((self.whole, self.rows.tobytes()))


def part(examples: Examples, rows: slice | Sequence[int] | np.ndarray) -> Examples:
    """Some examples, in the order given.

    Args:
      examples: of which.
      rows: a slice, or numbers in [0, len), int `[n]`.

    Raises:
      ValueError: a number that is none of them, or none at all.
    """
    number = len(examples)
    if isinstance(rows, slice):
        rows = np.arange(*rows.indices(number))
    found = np.asarray(rows)
    if found.ndim != 1 or not len(found) or not np.issubdtype(found.dtype, np.integer):
        must = f"numbers of examples, [n], or a slice of the {number}"
        raise errors.wrong("rows", errors.shown(rows), must)
    if found.min() < 0 or found.max() >= number:
        wrong = found.min() if found.min() < 0 else found.max()
        raise errors.wrong("rows", wrong, f"in [0, {number})")
    if isinstance(examples, Part):
        return Part(examples.whole, examples.rows[found])
    return Part(examples, found.astype(np.int64))


def read(
    examples: Examples, indices: Sequence[int] | np.ndarray
) -> dict[str, np.ndarray]:
    """Some examples as arrays `[n, ...]` by field.

    Args:
      examples: of which.
      indices: their numbers, int `[n]`.
    """
    at = np.asarray(indices, np.int64)
    into = {
        name: np.empty((len(at), *x.shape), x.dtype)
        for name, x in examples.fields.items()
    }
    examples.read(at, into)
    return into


def columns(examples: Examples) -> dict[str, Column]:
    """A split of these examples."""
    return {name: Column(examples, name) for name in examples.fields}


# --- a task's data --------------------------------------------------------------------


def streamed(data: PyTree) -> dict[str, Examples]:
    """The splits of a task's data that are streamed, by name; mostly none.

    Raises:
      ValueError: a column that stands where no split can be, or beside others that are
        not of the same examples; names it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(data)
    found: dict[str, Examples] = {}
    for path, leaf in leaves:
        if not isinstance(leaf, Column):
            continue
        where = f"data[{jax.tree_util.keystr(path, simple=True, separator='/')!r}]"
        key = path[0] if path else None
        if len(path) != 2 or not isinstance(key, jax.tree_util.DictKey):
            must = "a field of a split, data[split][field]"
            raise errors.wrong(where, "a streamed column", must)
        split = str(key.key)
        if found.setdefault(split, leaf.examples) != leaf.examples:
            raise errors.wrong(where, "of other examples", "as the rest of its split")
    for path, leaf in leaves if found else ():
        key = path[0]
        own = isinstance(key, jax.tree_util.DictKey) and str(key.key) in found
        if own and not isinstance(leaf, Column):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise errors.wrong(
                f"data[{where!r}]", "an array", "streamed, as the rest of its split"
            )
    return found


def check_whole(data: PyTree, by: str, instead: str, split: str | None = None) -> None:
    """Raises a ValueError where a split is streamed, for what is compiled as a whole.

    Args:
      data: of a task.
      by: what is called.
      instead: what will do.
      split: that it looks at; None for any.
    """
    for name in streamed(data):
        if split in (None, name):
            must = f"arrays for {by}, which sees all of a split at once; {instead}"
            raise errors.wrong(f"task.data[{name!r}]", "streamed", must)


def resident(data: PyTree) -> PyTree:
    """A task's data without the splits that are streamed."""
    away = streamed(data)
    if not away:
        return data
    return {name: split for name, split in data.items() if name not in away}
