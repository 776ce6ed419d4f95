"""Carries a run folder to another machine, where the same command goes on.

    python -m experiments.carry pack FOLDER --out DIR
    python -m experiments.carry unpack DIR FOLDER

DIR gets parts of a size that travels, and a list of their sums. Packed is what the run
needs to go on, and what it has found: of checkpoints the newest that is intact, of a
pruning study none of levels that are over, and none at all of replicas that are done, but
what further levels would start from.
"""

import gzip
import pathlib
import re
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
import tyro

from experiments import launch
from lottery_jax import checkpoints, disk, errors, imp, records
from lottery_jax.storage import parts
from lottery_jax.storage.parts import Readable, Writable

_NUMBERED = re.compile(r"\d{8}")


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Packs a run folder into parts."""

    folder: tyro.conf.Positional[str]
    """The run folder."""
    out: str
    """Where the parts go: a new folder, or an empty one."""
    part_mib: float = 60.0
    """Size of the largest part in MiB."""


@dataclass(frozen=True, kw_only=True)
class Unpack:
    """Makes a run folder of parts."""

    parts: tyro.conf.Positional[str]
    """The folder of the parts."""
    folder: tyro.conf.Positional[str]
    """The run folder: a new one, or an empty one."""


def pack(command: Pack) -> None:
    """Packs a run folder, and says how large it is.

    Args:
      command: what, and where to.

    Raises:
      ValueError: no run folder, one with a symbolic link in it (names it), a size that
        makes no sense, or the parts would go into a folder that is not empty.
      checkpoints.CorruptCheckpointError: of a checkpoint no intact one is there.

    Warns:
      RuntimeWarning: a checkpoint is damaged; the one before is packed.
    """
    folder = errors.on_disk("folder", command.folder)
    if records.read_config(folder) is None:
        must = "a run folder, with a config.json"
        raise errors.wrong("folder", repr(command.folder), must)
    errors.at_least("part_mib", command.part_mib, 2**-10)
    out, most = errors.on_disk("out", command.out), int(command.part_mib * 2**20)
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise errors.wrong("out", repr(command.out), "outside of the run folder")
    files = needed(folder)
    whole = sum((folder / path).stat().st_size for path in files)
    about = {"files": len(files), "bytes": whole}
    with parts.writing(out, most, about) as target:
        _write(folder, files, target)
    there = [path.stat().st_size for path in sorted(out.glob("part-*.bin"))]
    print(
        f"{folder}: {len(files)} files of {_mib(whole)} are {_mib(sum(there))} in "
        f"{len(there)} part{'s' * (len(there) > 1)} of at most {command.part_mib:g} MiB "
        f"in {out}"
    )


def unpack(command: Unpack) -> None:
    """Makes a run folder of parts; it appears once all is there.

    Args:
      command: from where, and where to.

    Raises:
      FileNotFoundError: a part is missing, or their list; names them.
      ValueError: a part is damaged, names it; or the folder is not empty.
    """
    source = errors.on_disk("parts", command.parts)
    folder = errors.on_disk("folder", command.folder)
    parts.must_be_empty("folder", folder)
    about = parts.contents(source)
    with parts.reading(source) as packed, disk.replacing(folder) as temporary:
        _read(packed, temporary)
    print(f"{folder}: {about['files']} files of {_mib(about['bytes'])}")


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


# --- what is packed -------------------------------------------------------------------


def needed(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a run folder that travel, by their paths within it.

    Args:
      folder: of the run.

    Raises:
      ValueError: a symbolic link, which would lead nowhere on another machine; names it.
      checkpoints.CorruptCheckpointError: of a checkpoint no intact one is there.
    """
    found, left = [], [folder]
    while left:
        here = left.pop()
        skipped = _superfluous(here, folder)
        for path in here.iterdir():
            # What is hidden belongs to processes: half-written files, meetings.
            if path.name.startswith(".") or path in skipped:
                continue
            if path.is_symlink():
                must = "a file or folder of its own, not a symbolic link, to travel"
                raise errors.wrong("folder", repr(str(path)), must)
            if path.is_dir():
                left.append(path)
            else:
                found.append(path.relative_to(folder))
    return sorted(found)


def _superfluous(here: pathlib.Path, run: pathlib.Path) -> set[pathlib.Path]:
    """The folders below one that a run can do without."""
    numbered = {path for path in here.iterdir() if _NUMBERED.fullmatch(path.name)}
    if not numbered:
        return set(imp.store.levels_over(here))
    if _done(_owner(here, run)):
        return numbered
    newest = checkpoints.latest(here)
    return {path for path in numbered if int(path.name) != newest}


def _owner(here: pathlib.Path, run: pathlib.Path) -> pathlib.Path:
    """Whose checkpoints lie there: a run's, one made from it, or a group of replicas'."""
    for folder in (here, *here.parents):
        is_run = (folder / "config.json").is_file()
        if folder == run or is_run or folder.name.startswith("replicas-"):
            return folder
    return run


def _done(owner: pathlib.Path) -> bool:
    """Whether the results that its checkpoints led to are stored."""
    # A pruning study may be asked for further levels, and has results meanwhile.
    grows = (owner / imp.store.CHECKPOINTS).is_dir()
    return not grows and records.intact(owner / "results.nc")


# --- how ------------------------------------------------------------------------------

_BLOCK = 2**20


class _Planes:
    """Bytes in blocks, first the first byte of every four, then the second, ...

    Of float32 one byte in four is nearly all that compression finds: the exponents.
    """

    def __init__(self, target: Writable) -> None:
        self._target, self._waiting = target, bytearray()

    def write(self, content: bytes, /) -> int:
        self._waiting += content
        while len(self._waiting) >= _BLOCK:
            self._target.write(_turned(bytes(self._waiting[:_BLOCK]), 4))
            del self._waiting[:_BLOCK]
        return len(content)

    def close(self) -> None:
        self._target.write(_turned(bytes(self._waiting), 4))


class _FromPlanes:
    """`_Planes`, undone."""

    def __init__(self, source: Readable) -> None:
        self._source, self._ready = source, b""

    def read(self, number: int = -1, /) -> bytes:
        found = bytearray()
        while number < 0 or len(found) < number:
            if not self._ready:
                block = self._source.read(_BLOCK)
                if not block:
                    break
                self._ready = _turned(block, len(block) // 4)
            own = self._ready if number < 0 else self._ready[: number - len(found)]
            found += own
            self._ready = self._ready[len(own) :]
        return bytes(found)


def _turned(block: bytes, columns: int) -> bytes:
    """A block as a matrix of so many columns, transposed. Tar writes multiples of 512."""
    if not block:
        return b""
    return np.frombuffer(block, np.uint8).reshape(-1, columns).T.tobytes()


def _write(
    folder: pathlib.Path, files: Sequence[pathlib.Path], target: Writable
) -> None:
    # Level 1: what can be saved is saved at once, the rest is noise.
    with gzip.GzipFile("", "wb", 1, cast(IO[bytes], target), mtime=0) as zipped:
        planes = _Planes(cast(Writable, zipped))
        with tarfile.open(fileobj=cast(Any, planes), mode="w|") as tar:
            for path in files:
                tar.add(folder / path, str(path), recursive=False)
        planes.close()


def _read(source: Readable, folder: pathlib.Path) -> None:
    folder.mkdir()
    with gzip.GzipFile("", "rb", fileobj=cast(IO[bytes], source)) as zipped:
        planes = _FromPlanes(cast(Readable, zipped))
        with tarfile.open(fileobj=cast(Any, planes), mode="r|") as tar:
            # "data": no file leaves the folder, whatever the parts say.
            tar.extractall(folder, filter="data")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status. Without arguments it shows the help.

    Args:
      arguments: None for those of the command line.

    Raises:
      SystemExit: help was asked for, or the arguments are wrong; says how.
    """
    commands = {"pack": Pack, "unpack": Unpack}
    command: Pack | Unpack = launch.chosen(
        commands, "python -m experiments.carry", __doc__, arguments
    )
    if isinstance(command, Pack):
        return launch.guarded(lambda: pack(command))
    return launch.guarded(lambda: unpack(command))


if __name__ == "__main__":
    sys.exit(main())
