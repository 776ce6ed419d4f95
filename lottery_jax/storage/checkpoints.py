"""Checkpoints: a run in progress, written so that a kill at any instant is harmless.

    FOLDER/00000007/leaves.bin     the bytes of all leaves, one after another
    FOLDER/00000007/metadata.json  where each leaf lies in them, and the caller's metadata
    FOLDER/00000007/manifest.json  SHA-256 of every file above, written last

A checkpoint counts only if its manifest does, and every restore hashes every file first:
one flipped byte would come back as other numbers. All is written in a temporary folder and
renamed once complete; the checkpoint before is kept, as something to fall back on. One
process writes to a folder at a time; any number may read.

Not by Orbax: in a job of several processes it writes the host arrays of the first one
alone, and each process here has a folder of its own.
"""

import hashlib
import json
import os
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import disk, errors
from lottery_jax.storage import _leaves
from lottery_jax.types import PyTree

FORMAT = 4
KEEP = 2
"""Complete checkpoints that are kept: the newest and one to fall back on."""

_MANIFEST = "manifest.json"
_METADATA = "metadata.json"
_LEAVES = "leaves.bin"
_LARGEST = 99_999_999
_NUMBERED = re.compile(r"\d{8}")


class CorruptCheckpointError(ValueError):
    """There are checkpoints, and none of them is as it was written."""


def save(
    folder: str | os.PathLike,
    tree: PyTree,
    metadata: Mapping[str, Any] | None = None,
    *,
    index: int | None = None,
) -> pathlib.Path:
    """Writes a checkpoint, and removes those that are no longer needed.

    Whatever happens, be it a kill or a full disk, the checkpoints that were there stay
    intact until this one is complete. Then the newest two are kept.

    Args:
      folder: of the run's checkpoints; made if need be.
      tree: any pytree of JAX or NumPy arrays of any numeric or bool dtype, typed PRNG
        keys and Python numbers. Bits are kept. JAX arrays may be sharded over the
        devices of this process; they are gathered on the host, where the leaves' bytes
        must fit twice.
      metadata: JSON-able; comes back as JSON returns it.
      index: whole number above that of the newest complete checkpoint, at most 8
        digits; damaged checkpoints at or above it are replaced. None is the next number
        that no checkpoint has, complete or not, counted from 1: the one way that need
        not read what is there.

    Returns:
      The folder of the new checkpoint, whose name is the index in 8 digits.

    Raises:
      ValueError: the index is not above the newest, a leaf cannot be stored (names it),
        or the metadata is not JSON-able.
      OSError: the checkpoint could not be written (a full disk, say); the others are
        untouched.
    """
    folder = errors.on_disk("folder", folder)
    there = _numbered(folder)
    if index is None:
        index = int(there[0].name) + 1 if there else 1
    if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
        raise errors.wrong("index", repr(index), "a whole number")
    errors.within("index", index, 0, _LARGEST)
    records, buffer = _pack(tree)
    header = {
        "format": FORMAT,
        "index": int(index),
        "leaves": records,
        "metadata": _leaves.jsonable(metadata or {}),
    }
    for path in there:
        number = int(path.name)
        if number < index:
            break
        if not _problems(path):
            must = f"{number + 1} or more: {folder} has a complete checkpoint {number}"
            raise errors.wrong("index", index, must)

    final = folder / f"{index:08d}"
    try:
        with disk.replacing(final) as temporary:
            _write(temporary, header, buffer)
            if final.exists():  # Damaged, as was found above.
                disk.remove(final)
    except OSError as error:
        what = f"checkpoint {index} to {folder} (earlier ones are untouched)"
        raise disk.cannot_write(what, error) from error
    _prune(folder, final)
    return final


def restore(
    folder: str | os.PathLike, like: PyTree
) -> tuple[PyTree, dict[str, Any]] | None:
    """Reads the newest complete checkpoint, after checking every byte of it.

    Args:
      folder: of the run's checkpoints; may be missing.
      like: template with the structure, shapes and dtypes of what was saved; its values
        are not looked at. A leaf comes back as what the template has there: a JAX array
        (or `jax.ShapeDtypeStruct`) on the template's sharding, a NumPy array, or a
        Python number. Restoring onto other devices than those of the writer is fine.

    Returns:
      `(tree, metadata)`, or None where no checkpoint has ever been completed.

    Warns:
      RuntimeWarning: a newer checkpoint is damaged; names the files.

    Raises:
      CorruptCheckpointError: there are checkpoints and all of them are damaged; names
        the files, and what to delete in order to start anew.
      ValueError: `like` differs from what was saved (names the leaf), or another version
        wrote it in another format (names both, and the ways out).
    """
    if (newest := _newest(errors.on_disk("folder", folder))) is None:
        return None
    path, header = newest
    records = {record["path"]: record for record in header["leaves"]}
    templates = _leaves.named("like", like)
    _leaves.check_fits("like", templates, records, str(path))
    buffer = np.fromfile(path / _LEAVES, np.uint8)
    found = _unpack(records, buffer)
    leaves = [_as_template(found[name], leaf) for name, leaf in templates.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), header["metadata"]


def metadata(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The caller's metadata of the checkpoint that `restore` would read, or None.

    What it says (number of levels, layout) is what a template for `restore` is made from.

    Args:
      folder: of the run's checkpoints; may be missing.

    Warns:
      RuntimeWarning: a newer checkpoint is damaged; names the files.

    Raises:
      CorruptCheckpointError: there are checkpoints and all of them are damaged.
      ValueError: another version wrote it in another format.
    """
    newest = _newest(errors.on_disk("folder", folder))
    return None if newest is None else newest[1]["metadata"]


def latest(folder: str | os.PathLike) -> int | None:
    """The index of the checkpoint that `restore` would read.

    Args:
      folder: of the run's checkpoints; may be missing.

    Returns:
      The index, or None where no checkpoint has ever been completed.

    Warns:
      RuntimeWarning: a newer checkpoint is damaged; names the files.

    Raises:
      CorruptCheckpointError: there are checkpoints and all of them are damaged.
      ValueError: another version wrote it in another format.
    """
    newest = _newest(errors.on_disk("folder", folder))
    return None if newest is None else int(newest[0].name)


def _numbered(folder: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoint folders, newest first, complete or not."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NUMBERED.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _newest(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """The newest complete checkpoint, and what its metadata file says."""
    damaged: list[pathlib.Path] = []
    problems: list[str] = []
    for path in _numbered(folder):
        here = _problems(path)
        if not here:
            if problems:
                warnings.warn(
                    f"falling back to checkpoint {path}, because newer ones are"
                    f" damaged: {'; '.join(problems)}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return path, _header(path)
        damaged.append(path)
        problems += here
    if damaged:
        raise CorruptCheckpointError(
            f"all checkpoints in {folder} are damaged: {'; '.join(problems)}. To start"
            f" anew, delete {', '.join(map(str, damaged))}"
        )
    return None


def _header(path: pathlib.Path) -> dict[str, Any]:
    header = json.loads((path / _METADATA).read_bytes())
    if header["format"] != FORMAT:
        raise errors.wrong(
            f"{path}: format",
            header["format"],
            f"{FORMAT}. Another version of lottery-jax wrote it: go on with that one, or"
            f" delete {path.parent} to start anew",
        )
    return header


def _problems(path: pathlib.Path) -> list[str]:
    """What keeps this checkpoint from being complete; empty if nothing does."""
    manifest = path / _MANIFEST
    try:
        text = manifest.read_bytes()
    except OSError as error:
        return [f"{manifest} cannot be read ({error.strerror})"]
    try:
        files = json.loads(text)["files"]
        intact = text == _manifest(files)
    except Exception:
        intact = False
    if not intact:
        return [f"{manifest} is damaged"]
    problems = []
    for name, expected in files.items():
        try:
            if (path / name).stat().st_size != expected["bytes"]:
                problems.append(f"{path / name} has another length than was written")
            elif disk.sha256(path / name) != expected["sha256"]:
                problems.append(f"{path / name} has another SHA-256 than was written")
        except OSError as error:
            problems.append(f"{path / name} cannot be read ({error.strerror})")
    return problems


def _manifest(files: Mapping[str, Any]) -> bytes:
    """The only text that describes these files, with a digest of its own."""
    listing = json.dumps(files, sort_keys=True)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return f'{{"files": {listing}, "sha256": "{digest}"}}\n'.encode()


def _write(path: pathlib.Path, header: Mapping[str, Any], buffer: np.ndarray) -> None:
    contents = {
        _LEAVES: buffer.data,
        _METADATA: memoryview(json.dumps(header).encode()),
    }
    files = {}
    for name, content in contents.items():
        disk.write(path / name, content)
        digest = hashlib.sha256(content).hexdigest()
        files[name] = {"bytes": content.nbytes, "sha256": digest}
    disk.write(path / _MANIFEST, _manifest(files))


def _prune(folder: pathlib.Path, newest: pathlib.Path) -> None:
    """Removes all but the newest complete ones; `newest` was written just now."""
    complete = 0
    for path in _numbered(folder):
        if path == newest or (
            path.name < newest.name and complete < KEEP and not _problems(path)
        ):
            complete += 1
        elif path.name > newest.name or complete >= KEEP:
            disk.remove(path)


def _pack(tree: PyTree) -> tuple[list[dict[str, Any]], np.ndarray]:
    """A record of each leaf, in the tree's order, and all their bytes, uint8 `[n]`."""
    records, arrays = [], []
    for name, leaf in _leaves.named("tree", tree).items():
        record, array = _leaves.encode(f"tree{name}", leaf)
        records.append({"path": name, **record})
        arrays.append(array)
    buffer = np.zeros(sum(array.nbytes for array in arrays), np.uint8)
    start = 0
    for array in arrays:
        part = buffer[start : start + array.nbytes]
        part[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        start += array.nbytes
    return records, buffer


def _unpack(
    records: Mapping[str, Mapping[str, Any]], buffer: np.ndarray
) -> dict[str, Any]:
    """The leaves by their names: NumPy arrays and PRNG keys."""
    found, start = {}, 0
    for name, record in records.items():
        count = int(np.prod(record["shape"], dtype=np.int64))
        stop = start + np.dtype(record["dtype"]).itemsize * count
        found[name] = _leaves.decode(record, buffer[start:stop].data)
        start = stop
    return found


def _as_template(value: Any, template: Any) -> Any:
    if isinstance(template, np.ndarray):
        return value
    if isinstance(template, np.generic):
        return value[()]
    if not isinstance(template, (jax.Array, jax.ShapeDtypeStruct)):
        return type(template)(value.item())
    sharding = template.sharding
    # What was not bound to a device stays so, lest it clash with what is.
    if isinstance(template, jax.Array) and not template.committed:
        sharding = None
    return jnp.asarray(value) if sharding is None else jax.device_put(value, sharding)
