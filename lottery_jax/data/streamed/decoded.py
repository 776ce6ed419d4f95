"""Streamed splits that are taken and decoded one by one: anything with items, files."""

import abc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, streams
from lottery_jax.data import decode, reading
from lottery_jax.data.folders import Files
from lottery_jax.data.streamed.sources import SAMPLED, Options, Source, spaced

DECODED = 16
"""Examples that one thread takes and decodes at a time."""

ASKED = 4096
"""Files of which one thread asks the size at a time."""


class Corrupt(streams.SourceError):
    """An example that is no image, or a broken one: others may stand in for it."""


class Given(NamedTuple):
    """An example as it comes from a source.

    Attributes:
      image: whatever `decode.image` takes.
      label: a whole number.
    """

    image: Any
    label: Any


class Each(Source):
    """Examples that are taken and decoded one by one.

    With `skip_corrupt` the next example in order that can be read, the first after the
    last, stands in for a corrupt one, always the same. What cannot be reached, has a label
    that is no class or another shape is not corrupt, and stops the reading.
    """

    def __init__(self, name: str, num_classes: int, options: Options):
        super().__init__(name, num_classes, options)
        self._instead: dict[int, int] = {}

    @property
    def replaced(self) -> Mapping[str, str]:
        """By the names of corrupt examples that were asked for, those in their place."""
        pairs = sorted(self._instead.copy().items())
        return {self.called(number): self.called(other) for number, other in pairs}

    @abc.abstractmethod
    def _got(self, number: int) -> Given:
        """One example.

        Raises:
          SourceError: it cannot be reached; a Corrupt if it is broken.
        """

    def _some(self, numbers: list[int]) -> Sequence[Given | None]:
        """Several at once; None for each where they have to be taken one by one."""
        return [None] * len(numbers)

    def _look(self) -> None:
        """Reads the first example: images have its shape."""
        first, _ = self._example(0, None)
        self._image = jax.ShapeDtypeStruct(first.shape, jnp.uint8)

    def _read(self, rows: np.ndarray, image: np.ndarray, label: np.ndarray) -> None:
        def take(first: int, end: int) -> None:
            numbers = rows[first:end].tolist()
            some = self._some(numbers)
            for row, number, given in zip(range(first, end), numbers, some):
                pixels, label[row] = self._example(number, given)
                if pixels.shape != image.shape[1:]:
                    raise streams.SourceError(
                        f"{self.called(number)} has the shape {pixels.shape}; it must be "
                        f"{image.shape[1:]}, as the first of {self.name}, or side and "
                        "channels be given"
                    )
                image[row] = pixels

        reading.spread(take, len(rows), DECODED, self.options.workers)

    def _example(self, number: int, given: Given | None) -> tuple[np.ndarray, int]:
        """Pixels and label of an example, or of the one that stands in for it."""
        if number in self._instead:
            return self._whole(self._instead[number], None)
        try:
            return self._whole(number, given)
        except Corrupt as error:
            if not self.options.skip_corrupt:
                raise
            why = error
        for step in range(1, len(self)):
            other = (number + step) % len(self)
            try:
                found = self._whole(other, None)
            except Corrupt:
                continue
            self._instead[number] = other
            return found
        raise streams.SourceError(
            f"none of the {len(self)} examples of {self.name} can be read: {why}"
        ) from why

    def _whole(self, number: int, given: Given | None) -> tuple[np.ndarray, int]:
        image, label = self._got(number) if given is None else given
        return self._pixels(number, image), self._class(number, label)

    def _pixels(self, number: int, given: Any) -> np.ndarray:
        side, channels = self.options.side, self.options.channels
        if channels is None:
            channels = _channels(given)
        try:
            return decode.image(
                given, side=side, channels=channels, name=self.called(number)
            )
        except streams.SourceError as error:
            raise Corrupt(str(error)) from error

    def _class(self, number: int, given: Any) -> int:
        label = np.asarray(given)
        is_whole = label.ndim == 0 and np.issubdtype(label.dtype, np.integer)
        if is_whole and 0 <= label < self.num_classes:
            return int(label)
        raise streams.SourceError(
            f"{self.called(number)} has the label {errors.shown(given)}; it must be a whole "
            f"number in [0, {self.num_classes})"
        )

    def _chosen(self) -> bytes:
        """The options that change pixels."""
        side, channels, _, skip, _ = self.options
        try:
            by = decode.decoder()
        except ImportError:  # so that nothing but arrays can be given
            by = ""
        return f"{side} {channels} {skip} {decode.RESIZED} {by} ".encode()


def _channels(given: Any) -> int:
    """How many channels an image keeps where nothing is said: its own, 3 if encoded."""
    if isinstance(given, np.ndarray):
        return 1 if given.ndim == 2 or given.shape[-1:] == (1,) else 3
    return 3


class Encoded(Each):
    """Files with images in a folder.

    The digest sees names and sizes of all files, and the labels; not what is in them.
    """

    def __init__(self, files: Files, name: str, num_classes: int, options: Options):
        """Takes what is listed.

        Args:
          files: the listing.
          name: see `Source`.
          num_classes: see `Source`.
          options: see `Options`.
        """
        super().__init__(name, num_classes, options)
        self._files, self.labels = files, files.labels
        self._look()

    def __len__(self) -> int:
        return len(self._files)

    def called(self, number: int) -> str:
        """The path of a file."""
        return self._files.path(number)

    def _got(self, number: int) -> Given:
        retries = self.options.retries
        try:
            return Given(*reading.retried(lambda: self._files[number], retries))
        except OSError as error:
            raise _unreachable(self.called(number), error, retries) from error

    def _seen(self) -> Iterator[bytes]:
        yield self._chosen()
        assert self.labels is not None
        yield self.labels.tobytes()
        sizes = np.zeros(len(self), np.int64)

        def ask(first: int, end: int) -> None:
            for number in range(first, end):
                path = self.called(number)
                try:
                    sizes[number] = os.stat(path).st_size
                except OSError as error:
                    raise _unreachable(path, error, 0) from error

        # On a network's file system each waits for an answer.
        reading.spread(ask, len(self), ASKED, self.options.workers)
        for name, size in zip(self._files.names, sizes.tolist()):
            yield f"{name} {size}\n".encode("utf-8", "surrogateescape")


class Items(Each):
    """Anything with a length and items: data sources of TFDS, Hugging Face's data sets.

    The digest sees the number of examples and, of a data set of Hugging Face, its
    fingerprint; of a data source of TFDS, name, version and split; of anything else the
    pixels and labels of `SAMPLED // 8` evenly spread examples.
    """

    def __init__(
        self,
        source: Any,
        name: str,
        num_classes: int,
        options: Options,
        fields: tuple[str, str] = ("image", "label"),
    ):
        """Takes a source.

        Args:
          source: has `__len__`, and `__getitem__(i)` that gives `(image, label)` or a
            dict, or `__getitems__([i, j, ...])` that gives a list of them.
          name: see `Source`.
          num_classes: see `Source`.
          options: see `Options`.
          fields: what image and label are called in a dict.
        """
        super().__init__(name, num_classes, options)
        self._source, self._fields, self._number = source, fields, len(source)
        self._look()

    def __len__(self) -> int:
        return self._number

    def _got(self, number: int) -> Given:
        retries = self.options.retries
        try:
            item = reading.retried(lambda: self._source[number], retries)
        except OSError as error:
            if _of_pillow(error):  # a source that decodes itself
                raise _broken(self.called(number), error) from error
            raise _unreachable(self.called(number), error, retries) from error
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # decoders raise any of a dozen types
            raise _broken(self.called(number), error) from error
        return self._given(number, item)

    def _some(self, numbers: list[int]) -> Sequence[Given | None]:
        if not hasattr(self._source, "__getitems__"):
            return super()._some(numbers)
        try:
            items = self._source.__getitems__(numbers)
        except Exception:
            # One by one it is known which it was.
            return super()._some(numbers)
        if len(items) != len(numbers):
            raise streams.SourceError(
                f"__getitems__ of {self.name} gave {len(items)} examples for "
                f"{len(numbers)} numbers; it must give one for each, in order"
            )
        return [self._given(number, item) for number, item in zip(numbers, items)]

    def _given(self, number: int, item: Any) -> Given:
        image, label = self._fields
        if isinstance(item, Mapping) and {image, label} <= set(item):
            return Given(item[image], item[label])
        if isinstance(item, tuple | list) and len(item) == 2:
            return Given(*item)
        is_dict = isinstance(item, Mapping)
        what = (
            f"a dict of {', '.join(map(str, item))}" if is_dict else type(item).__name__
        )
        raise streams.SourceError(
            f"{self.called(number)} is {what}; it must be (image, label), or a dict with "
            f"{image!r} and {label!r}, which `fields` names"
        )

    def _seen(self) -> Iterator[bytes]:
        yield self._chosen()
        yield f"{len(self)} {self._fields} ".encode()
        own = getattr(self._source, "_fingerprint", None)
        info = getattr(self._source, "dataset_info", None)
        full_name = getattr(info, "full_name", None)
        if isinstance(own, str):
            yield own.encode()
        elif isinstance(full_name, str):
            yield f"{full_name} {getattr(self._source, 'split', '')}".encode()
        else:
            some = streams.read(self, spaced(len(self), SAMPLED // 8))
            yield from (some["image"].tobytes(), some["label"].tobytes())


def _of_pillow(error: OSError) -> bool:
    """Whether an image is broken: such an error has no number of the system's."""
    plain = type(error) is OSError and error.errno is None
    return plain or type(error).__module__.startswith("PIL")


def _broken(name: str, error: Exception) -> Corrupt:
    return Corrupt(f"{name} cannot be read: {error!r}")


def _unreachable(name: str, error: OSError, retries: int) -> streams.SourceError:
    return streams.SourceError(
        f"{name} cannot be read, tried {retries + 1} times: {error.strerror or error}"
    )
