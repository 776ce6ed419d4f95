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

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import time
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax.types import PyTree

FORMAT = 2
KEEP = 2
"""Complete checkpoints that are kept: the newest and one to fall back on."""

_MANIFEST = "manifest.json"
_METADATA = "metadata.json"
_LEAVES = "leaves.bin"
_LARGEST = 99_999_999
_NUMBERED = re.compile(r"\d{8}")
_TEMPORARY = re.compile(r"\.tmp-(\d+)-[0-9a-f]+-(.*)")
_DAY = 24 * 3600.0


class CorruptCheckpointError(ValueError):
    """There are checkpoints, and none of them is as it was written."""


def save(
    folder: str | os.PathLike,
    index: int,
    tree: PyTree,
    metadata: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a checkpoint, and removes those that are no longer needed.

    Whatever happens, be it a kill or a full disk, the checkpoints that were there stay
    intact until this one is complete. Then the newest two are kept.

    Args:
      folder: of the run's checkpoints; made if need be.
      index: whole number above that of the newest complete checkpoint, at most 8
        digits; say, the number of segments done. Damaged checkpoints at or above it are
        replaced.
      tree: any pytree of JAX or NumPy arrays of any numeric or bool dtype, typed PRNG
        keys and Python numbers. Bits are kept. JAX arrays may be sharded over the
        devices of this process; they are gathered on the host, where the leaves' bytes
        must fit twice.
      metadata: JSON-able; comes back as JSON returns it.

    Returns:
      The folder of the new checkpoint.

    Raises:
      ValueError: the index is not above the newest, a leaf cannot be stored (names it),
        or the metadata is not JSON-able.
      OSError: the checkpoint could not be written (a full disk, say); the others are
        untouched.
    """
    folder = pathlib.Path(folder)
    if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
        raise ValueError(f"index is {index!r}; valid: a whole number")
    if not 0 <= index <= _LARGEST:
        raise ValueError(f"index is {index}; valid: 0 to {_LARGEST}")
    records, buffer = _pack(tree)
    header = {
        "format": FORMAT,
        "index": int(index),
        "leaves": records,
        "metadata": _jsonable(metadata or {}),
    }
    for path in _numbered(folder):
        if int(path.name) < index:
            break
        if not _problems(path):
            raise ValueError(
                f"index is {index}, and {folder} has a complete checkpoint"
                f" {int(path.name)}; valid: {int(path.name) + 1} or more"
            )

    final = folder / f"{index:08d}"
    temporary = _temporary(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        _write(temporary, header, buffer)
        if final.exists():  # Damaged, as was found above.
            _remove(final)
        os.rename(temporary, final)
        _sync(folder)
    except Exception as error:
        message = (
            f"could not write checkpoint {index} to {folder}; earlier checkpoints are"
            f" untouched: {error}"
        )
        raise OSError(getattr(error, "errno", None) or errno.EIO, message) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
      ValueError: `like` differs from what was saved (names the leaf), or the format is
        newer.
    """
    path = _newest(pathlib.Path(folder))
    if path is None:
        return None
    header = json.loads((path / _METADATA).read_bytes())
    if header["format"] != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {header['format']}; valid: {FORMAT}. Another"
            " version of lottery-jax wrote it: go on with that one, or start anew"
        )
    _check_like(path, header["leaves"], like)
    buffer = np.fromfile(path / _LEAVES, np.uint8)
    return _unpack(header["leaves"], buffer, like), header["metadata"]


def metadata(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The caller's metadata of the checkpoint that `restore` would read, or None.

    What it says (number of levels, layout) is what a template for `restore` is made from.

    Args:
      folder: of the run's checkpoints; may be missing.

    Warns:
      RuntimeWarning: a newer checkpoint is damaged; names the files.

    Raises:
      CorruptCheckpointError: there are checkpoints and all of them are damaged.
    """
    path = _newest(pathlib.Path(folder))
    if path is None:
        return None
    return json.loads((path / _METADATA).read_bytes())["metadata"]


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
    """
    path = _newest(pathlib.Path(folder))
    return None if path is None else int(path.name)


def _numbered(folder: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoint folders, newest first, complete or not."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NUMBERED.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
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
            return path
        damaged.append(path)
        problems += here
    if damaged:
        raise CorruptCheckpointError(
            f"all checkpoints in {folder} are damaged: {'; '.join(problems)}. To start"
            f" anew, delete {', '.join(map(str, damaged))}"
        )
    return None


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
            elif _sha256(path / name) != expected["sha256"]:
                problems.append(f"{path / name} has another SHA-256 than was written")
        except OSError as error:
            problems.append(f"{path / name} cannot be read ({error.strerror})")
    return problems


def _manifest(files: Mapping[str, Any]) -> bytes:
    """The only text that describes these files, with a digest of its own."""
    listing = json.dumps(files, sort_keys=True)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return f'{{"files": {listing}, "sha256": "{digest}"}}\n'.encode()


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: pathlib.Path, header: Mapping[str, Any], buffer: np.ndarray) -> None:
    path.mkdir(parents=True)
    (path / _LEAVES).write_bytes(buffer.data)
    (path / _METADATA).write_text(json.dumps(header))
    files = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            files[file.relative_to(path).as_posix()] = {
                "bytes": file.stat().st_size,
                "sha256": _sha256(file),
            }
        _sync(file)
    part = path / f"{_MANIFEST}.part"
    part.write_bytes(_manifest(files))
    _sync(part)
    os.replace(part, path / _MANIFEST)
    _sync(path)


def _sync(path: pathlib.Path) -> None:
    """Makes a file or a folder survive a power cut; only POSIX syncs folders."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _temporary(folder: pathlib.Path) -> pathlib.Path:
    name = f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{socket.gethostname()}"
    return folder / name


def _remove(path: pathlib.Path) -> None:
    """Renames before deleting, so that a kill leaves no half a checkpoint behind."""
    temporary = _temporary(path.parent)
    with contextlib.suppress(OSError):
        os.rename(path, temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_stale(folder: pathlib.Path) -> None:
    """Removes temporary folders whose writers are dead."""
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _alive(path, int(match[1]), match[2]):
            shutil.rmtree(path, ignore_errors=True)


def _alive(path: pathlib.Path, pid: int, host: str) -> bool:
    if host != socket.gethostname() or os.name != "posix":
        # Its processes cannot be asked, so only age tells.
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime < _DAY
        return False
    if pid == os.getpid():
        # Nothing of ours is being written yet: a dead process had our number.
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _prune(folder: pathlib.Path, newest: pathlib.Path) -> None:
    """Removes all but the newest complete ones; `newest` was written just now."""
    complete = 0
    for path in _numbered(folder):
        if path == newest or (
            path.name < newest.name and complete < KEEP and not _problems(path)
        ):
            complete += 1
        elif path.name > newest.name or complete >= KEEP:
            _remove(path)


def _pack(tree: PyTree) -> tuple[list[dict[str, Any]], np.ndarray]:
    """All leaves as one uint8 array, with a record of each, in the tree's order."""
    records, arrays = [], []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(
                f"the leaf {name!r} spans devices that this process cannot read; valid:"
                " arrays of this process, or gathered ones"
            )
        record: dict[str, Any] = {"path": name}
        if _is_key(leaf):
            record |= {"key": str(leaf.dtype), "impl": str(jax.random.key_impl(leaf))}
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        if array.dtype.kind in "OSUMm" or array.dtype.names is not None:
            raise ValueError(
                f"the leaf {name!r} is {type(leaf).__name__} of dtype {array.dtype};"
                " valid: numeric or bool arrays, PRNG keys and Python numbers"
            )
        record |= {"dtype": array.dtype.name, "shape": list(array.shape)}
        records.append(record)
        arrays.append(array.astype(np.dtype(array.dtype.name), copy=False))
    buffer = np.zeros(sum(array.nbytes for array in arrays), np.uint8)
    start = 0
    for array in arrays:
        part = buffer[start : start + array.nbytes]
        part[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        start += array.nbytes
    return records, buffer


def _unpack(records: list[dict[str, Any]], buffer: np.ndarray, like: PyTree) -> PyTree:
    templates, structure = jax.tree.flatten(like)
    leaves, start = [], 0
    for record, template in zip(records, templates):
        dtype = np.dtype(record["dtype"])
        length = dtype.itemsize * int(np.prod(record["shape"], dtype=np.int64))
        # A copy, so that no leaf keeps the whole buffer alive or lies unaligned.
        array = buffer[start : start + length].copy().view(dtype)
        leaves.append(_as_template(record, array.reshape(record["shape"]), template))
        start += length
    return jax.tree.unflatten(structure, leaves)


def _as_template(record: Mapping[str, Any], array: np.ndarray, template: Any) -> Any:
    if isinstance(template, np.ndarray):
        return array
    if isinstance(template, np.generic):
        return array[()]
    if not isinstance(template, (jax.Array, jax.ShapeDtypeStruct)):
        return type(template)(array.item())
    value: Any = array
    if "impl" in record:
        value = jax.random.wrap_key_data(jnp.asarray(array), impl=record["impl"])
    sharding = template.sharding
    # What was not bound to a device stays so, lest it clash with what is.
    if isinstance(template, jax.Array) and not template.committed:
        sharding = None
    return jnp.asarray(value) if sharding is None else jax.device_put(value, sharding)


def _check_like(
    path: pathlib.Path, records: list[dict[str, Any]], like: PyTree
) -> None:
    templates = {
        jax.tree_util.keystr(keys): leaf
        for keys, leaf in jax.tree_util.tree_flatten_with_path(like)[0]
    }
    stored = [record["path"] for record in records]
    if stored != list(templates):
        missing = sorted(templates.keys() - set(stored))
        surplus = sorted(set(stored) - templates.keys())
        raise ValueError(
            f"like has another structure than {path}: the checkpoint lacks"
            f" {missing or 'nothing'}, and the template lacks {surplus or 'nothing'}"
        )
    for record, (name, leaf) in zip(records, templates.items()):
        shape = tuple(record["shape"])
        dtype = record["dtype"]
        if "key" in record:
            # A key's shape is that of its data without the last axis.
            shape, dtype = shape[:-1], record["key"]
        if isinstance(leaf, (bool, int, float, complex)):
            expected = str(np.asarray(leaf).dtype)
        else:
            expected = str(getattr(leaf, "dtype", type(leaf).__name__))
        if (np.shape(leaf), expected) != (shape, dtype):
            raise ValueError(
                f"like has {expected}{list(np.shape(leaf))} at {name!r}; the checkpoint"
                f" {path} has {dtype}{list(shape)}"
            )


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _jsonable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    for field, value in metadata.items():
        if not isinstance(field, str):
            raise ValueError(f"metadata has the key {field!r}; valid: text")
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"metadata[{field!r}] is {value!r}; valid: what JSON can hold ({error})"
            ) from error
    return dict(metadata)
