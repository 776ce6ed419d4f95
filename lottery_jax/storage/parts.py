"""Something large as files of limited size that travel, each with its sum.

FOLDER/part-000.bin ...   the bytes, one part after another
FOLDER/parts.json         length and SHA-256 of each, and what they hold

with parts.writing(folder, most=60 * 2**20, about={"run": "a"}) as file:
    file.write(content)
with parts.reading(folder) as file:            # every part is checked first
    content = file.read(10)
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Protocol

from lottery_jax import disk, errors

_LIST = "parts.json"
FORMAT = 1


class Writable(Protocol):
    """Something that bytes are written to."""

    def write(self, content: bytes, /) -> int:
        """Takes bytes; returns how many."""


class Readable(Protocol):
    """Something that bytes are read from."""

    def read(self, number: int = -1, /) -> bytes:
        """The next bytes, at most so many, or all; none at the end."""


@contextlib.contextmanager
def writing(
    folder: pathlib.Path, most: int, about: Mapping[str, Any] | None = None
) -> Iterator[Writable]:
    """Gives something to write to, whose bytes become the parts of a new folder.

    The folder appears once all is written.

    Args:
      folder: of the parts; missing, or empty.
      most: bytes of a part, 1 or more.
      about: JSON-able, comes back from `contents`.

    Raises:
      ValueError: the folder is not empty, or parts of no bytes.
      OSError: it cannot be written.
    """
    most = errors.whole("most", most, 1)
    must_be_empty("folder", folder)
    with disk.replacing(folder) as temporary:
        temporary.mkdir()
        writer = _Writer(temporary, most)
        yield writer
        writer.close()
        listing = {"format": FORMAT, "parts": writer.written, "about": about or {}}
        disk.write(temporary / _LIST, _signed(listing))


def contents(folder: pathlib.Path) -> dict[str, Any]:
    """What was said of the parts in a folder when they were written.

    Raises:
      FileNotFoundError: there is no list of parts.
      ValueError: the list is damaged, or of another format.
    """
    return _listing(folder)["about"]


@contextlib.contextmanager
def reading(folder: pathlib.Path) -> Iterator[Readable]:
    """Gives the bytes of all parts in a folder, one after another, once all are checked.

    Args:
      folder: that `writing` has written, or its files.

    Raises:
      FileNotFoundError: the list or a part is missing; names them.
      ValueError: the list or a part is damaged; names them.
    """
    listing = _listing(folder)
    missing, damaged = [], []
    for part in listing["parts"]:
        path = folder / part["name"]
        if not path.is_file():
            missing.append(path.name)
        elif path.stat().st_size != part["bytes"] or (
            disk.sha256(path) != part["sha256"]
        ):
            damaged.append(path.name)
    number = len(listing["parts"])
    if missing:
        raise FileNotFoundError(
            f"{folder}: of {number} parts there is no {', '.join(missing)}"
        )
    if damaged:
        raise ValueError(
            f"{folder}: of {number} parts {', '.join(damaged)} is not what was written; "
            "bring it again"
        )
    reader = _Reader([folder / part["name"] for part in listing["parts"]])
    try:
        yield reader
    finally:
        reader.close()


def must_be_empty(field: str, folder: pathlib.Path) -> None:
    """Raises a ValueError if something lies where a new folder is to be."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.wrong(field, repr(str(folder)), "a new folder, or an empty one")


def _signed(listing: Mapping[str, Any]) -> bytes:
    """The only text of a list: with a digest of its own."""
    text = json.dumps(listing, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**listing, "sha256": digest}, indent=1).encode() + b"\n"


def _listing(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / _LIST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: there is no {_LIST}, so no parts to read")
    try:
        text = path.read_bytes()
        found = json.loads(text)
        rest = {name: value for name, value in found.items() if name != "sha256"}
        intact = text == _signed(rest)
    except (ValueError, AttributeError):  # no JSON, or no mapping
        intact = False
    if not intact:
        raise ValueError(f"{path} is not what was written; bring it again")
    if found["format"] != FORMAT:
        raise errors.wrong(f"{path}: format", found["format"], str(FORMAT))
    return found


class _Writer:
    """Cuts what is written into files of at most so many bytes."""

    def __init__(self, folder: pathlib.Path, most: int) -> None:
        self.folder, self.most = folder, most
        self.written: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None

    def write(self, content: bytes, /) -> int:
        left = memoryview(content)
        while left.nbytes:
            if self._file is None:
                name = f"part-{len(self.written):03d}.bin"
                self._file = (self.folder / name).open("wb")
                self._sum, self._size = hashlib.sha256(), 0
            own = left[: self.most - self._size]
            self._file.write(own)
            self._sum.update(own)
            self._size += own.nbytes
            left = left[own.nbytes :]
            if self._size == self.most:
                self.close()
        return len(content)

    def flush(self) -> None:
        """Nothing waits but in the file, which `close` syncs."""

    def close(self) -> None:
        """Ends the part that is being written."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name, self._file = pathlib.Path(self._file.name).name, None
        digest = self._sum.hexdigest()
        self.written.append({"name": name, "bytes": self._size, "sha256": digest})


class _Reader:
    """The bytes of files, one after another."""

    def __init__(self, paths: list[pathlib.Path]) -> None:
        self._left = list(paths)
        self._file: BinaryIO | None = None

    def read(self, number: int = -1, /) -> bytes:
        found = bytearray()
        while number < 0 or len(found) < number:
            if self._file is None:
                if not self._left:
                    break
                self._file = self._left.pop(0).open("rb")
            own = self._file.read(-1 if number < 0 else number - len(found))
            if not own:
                self.close()
            found += own
        return bytes(found)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
