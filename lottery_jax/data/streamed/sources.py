"""Images and labels that a streamed split is read from: what all kinds share.

`rows` has those in arrays, `decoded` those that are taken and decoded one by one.
"""

import abc
import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, streams

SAMPLED = 64
"""Rows of arrays that their digest sees; of items without a name, an eighth of that."""


class Options(NamedTuple):
    """How examples are read.

    Attributes:
      side: of the square that images are resized and cut to; None for none.
      channels: 1 or 3; None for what the first image has, 3 if it is encoded.
      workers: threads that read.
      skip_corrupt: whether the next readable example stands in for a corrupt one.
      retries: how often a file that cannot be read is tried again.
    """

    side: int | None = None
    channels: int | None = None
    workers: int = 1
    skip_corrupt: bool = False
    retries: int = 3


class Source(streams.Examples):
    """Images and labels of one split.

    Two are equal if their digests are. What `digest` sees is said at each kind.

    Attributes:
      name: "the split train of NAME", in errors.
      num_classes: labels are in [0, num_classes).
      options: see `Options`.
      labels: int32 `[N]` where they are known before images are read, else None.
    """

    labels: np.ndarray | None = None

    def __init__(self, name: str, num_classes: int, options: Options):
        self.name = name
        self.num_classes = num_classes
        self.options = options
        self._image: jax.ShapeDtypeStruct

    @property
    def fields(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """An image, uint8 or real, and a label, int32."""
        label = jax.ShapeDtypeStruct((), jnp.int32)
        return {"image": self._image, "label": label}

    @functools.cached_property
    def digest(self) -> str:
        """Of what is said at each kind."""
        seen = hashlib.sha256(f"{type(self).__name__} {self._image}".encode())
        for part in self._seen():
            seen.update(part)
        return seen.hexdigest()

    def called(self, number: int) -> str:
        """The name of an example."""
        return f"example {number} of {self.name}"

    def read(self, indices: np.ndarray, into: Mapping[str, np.ndarray]) -> None:
        """Reads examples into arrays, see `streams.Examples.read`."""
        wrong = indices[(indices < 0) | (indices >= len(self))]
        if len(wrong):
            raise errors.wrong("indices", wrong[0], f"in [0, {len(self)})")
        self._read(indices, into["image"], into["label"])

    @abc.abstractmethod
    def _read(self, rows: np.ndarray, image: np.ndarray, label: np.ndarray) -> None:
        """As `read`."""

    @abc.abstractmethod
    def _seen(self) -> Iterator[bytes]:
        """What the digest is of, besides the kind and an image's shape and dtype."""

    def __eq__(self, other: object) -> bool:
        same = self is other
        return same or (isinstance(other, Source) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)


def known_labels(examples: streams.Examples) -> np.ndarray | None:
    """The labels of examples, int32 `[N]`, where they are known without reading images.

    Args:
      examples: of a source, or a part of one.
    """
    if isinstance(examples, streams.Part):
        own = known_labels(examples.whole)
        return None if own is None else own[examples.rows]
    return examples.labels if isinstance(examples, Source) else None


def spaced(number: int, most: int) -> np.ndarray:
    """Numbers in [0, number) that are evenly spread, `most` of them or all: int64 `[n]`."""
    return np.unique(np.linspace(0, number - 1, most).astype(np.int64))
