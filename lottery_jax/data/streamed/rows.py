"""Streamed splits in arrays, in memory or mapped from files."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, streams
from lottery_jax.data import reading
from lottery_jax.data.maps import Map
from lottery_jax.data.streamed.sources import SAMPLED, Options, Source, spaced

COPIED = 1 << 22
"""Bytes of arrays that one thread copies at a time."""


class Rows(Source):
    """Rows of arrays, in memory or mapped from files: no Python for each example.

    The digest sees shapes, dtypes, all labels, `SAMPLED` evenly spread images, and the
    size of a mapped file; not the other images.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        name: str,
        num_classes: int,
        options: Options,
    ):
        """Takes arrays; refuses (ValueError) what are no images and their labels.

        Args:
          images: uint8 or real, `[N, ...]`. More than float32 holds becomes float32.
          labels: integers `[N]`.
          name: see `Source`.
          num_classes: see `Source`.
          options: see `Options`; images are of one shape, so `side` and `channels` must
            be what they have.
        """
        super().__init__(name, num_classes, options)
        images = images if isinstance(images, np.ndarray) else np.asarray(images)
        real = jnp.issubdtype(images.dtype, jnp.floating)
        if images.dtype != np.uint8 and not real:
            must = "uint8, or real such as float32"
            raise errors.wrong(f"{name}: images.dtype", images.dtype, must)
        labels = checked_labels(name, labels, num_classes)
        if images.ndim < 2 or len(images) != len(labels):
            must = f"[{len(labels)}, ...], as many as labels"
            raise errors.wrong(f"{name}: images.shape", images.shape, must)
        shape = images.shape[1:]
        for field, value, own in (
            ("side", options.side, set(shape[:-1])),
            ("channels", options.channels, {shape[-1]}),
        ):
            if value is not None and (len(shape) != 3 or own != {value}):
                must = f"None: images of {name} are stored as {shape}"
                raise errors.wrong(field, value, must)
        wide = real and images.dtype.itemsize > 4
        self._image = jax.ShapeDtypeStruct(
            shape, jnp.float32 if wide else images.dtype.newbyteorder("=")
        )
        self._images, self.labels = images, labels
        # Of other arrays `take` makes a whole copy first.
        self._plain = (
            images.flags.c_contiguous
            and images.flags.aligned
            and images.dtype == self._image.dtype
        )

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, rows: np.ndarray, image: np.ndarray, label: np.ndarray) -> None:
        self._check_file()
        assert self.labels is not None
        label[:] = self.labels[rows]

        def copy(first: int, end: int) -> None:
            into, wanted = image[first:end], rows[first:end]
            if self._plain:
                # Any other mode than "raise" writes without a buffer; numbers are checked.
                np.take(self._images, wanted, axis=0, out=into, mode="clip")
            else:
                with np.errstate(over="ignore"):  # looked at next
                    into[:] = self._images[wanted]
            if into.dtype != np.uint8:
                self._check_finite(wanted, into)

        at_once = max(1, COPIED // max(1, image[:1].nbytes))
        reading.spread(copy, len(rows), at_once, self.options.workers)

    def _check_finite(self, rows: np.ndarray, images: np.ndarray) -> None:
        bad = ~np.isfinite(images.reshape(len(images), -1)).all(axis=1)
        if bad.any():
            number = int(rows[np.argmax(bad)])
            raise streams.SourceError(
                f"{self.called(number)} has a pixel that is not finite in float32"
            )

    def _check_file(self) -> None:
        """A map of a file that has become shorter would end the process at a touch."""
        file = getattr(self._images, "filename", None)
        if file is None or not os.path.exists(file):
            return
        wanted = self._images.offset + self._images.nbytes  # type: ignore[attr-defined]
        if os.path.getsize(file) < wanted:
            raise streams.SourceError(
                f"{file} has {os.path.getsize(file)} bytes; it must have {wanted} or more, "
                f"as when {self.name} was opened"
            )

    def _seen(self) -> Iterator[bytes]:
        file = getattr(self._images, "filename", None)
        if file is not None:
            yield f"{os.path.getsize(file)} ".encode()
        yield f"{len(self)} ".encode()
        assert self.labels is not None
        yield self.labels.tobytes()
        yield streams.read(self, spaced(len(self), SAMPLED))["image"].tobytes()


class Mapped(Rows):
    """A split of a map that was prepared.

    The digest sees that of the map, which is of its sums; not the file.
    """

    def __init__(self, split: Map, name: str, num_classes: int, options: Options):
        """Takes what was opened.

        Args:
          split: from `maps.open`.
          name: see `Source`.
          num_classes: see `Source`.
          options: see `Options`.
        """
        super().__init__(split.images, split.labels, name, num_classes, options)
        self._split = split

    @property
    def replaced(self) -> Mapping[str, str]:
        """By the names of images that were corrupt when the map was written, others."""
        return self._split.replaced

    def _seen(self) -> Iterator[bytes]:
        yield self._split.digest.encode()


def checked_labels(name: str, labels: Any, num_classes: int | None) -> np.ndarray:
    """Labels as int32 `[N]`.

    Args:
      name: of the split, in errors.
      labels: integers `[N]` in [0, num_classes), N 1 or more.
      num_classes: None if any number of classes will do.

    Raises:
      ValueError: other labels; names the first.
    """
    found = np.asarray(labels)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer) or not len(found):
        given = f"{found.dtype} of shape {found.shape}"
        raise errors.wrong(f"{name}: labels", given, "integers [N], one class each")
    bad = found < 0
    if num_classes is not None:
        bad |= found >= num_classes
    if bad.any():
        at = int(np.argmax(bad))
        must = "0 or more" if num_classes is None else f"in [0, {num_classes})"
        raise errors.wrong(f"{name}: labels[{at}]", found[at], must)
    return found.astype(np.int32)
