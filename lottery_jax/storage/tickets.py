"""Tickets on disk: mask, weights and model state at the rewind step, in one file.

A ticket is a safetensors file. Mask leaves are bit-packed; a weight matrix that is
pruned stores only its survivors, so a ticket at density 5% takes about 8% of the dense
weights' bytes. Names, dtypes, shapes, contents and metadata are covered by a SHA-256
digest that is checked on every load: a damaged file is refused, never half read. The
digest guards against accidents; it does not say who wrote the file. Loading parses
JSON and copies bytes, and never executes anything.

Layout, format 1: tensors `mask/PATH` (uint8, big-endian bit order), `params/PATH`,
`model_state/PATH`, where PATH is `jax.tree_util.keystr` of the leaf; one metadata
entry, "lottery_jax.ticket", with the leaves' key paths, dtypes and shapes, the
caller's metadata and the digest. Dtypes that safetensors lacks are stored as bytes.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax.types import Mask, ModelState, Params, PyTree

FORMAT = 1
_ENTRY = "lottery_jax.ticket"
_TREES = ("mask", "params", "model_state")
_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}


class CorruptTicketError(ValueError):
    """A file is not a ticket, or is not the ticket that was written."""


class Ticket(NamedTuple):
    """A sub-network that can be trained again, and where it comes from.

    Attributes:
      mask: structure and shapes of `params`, bool; True = the weight survives.
      params: the weights at the rewind step; 0 off the mask.
      model_state: what belongs to the network and is not trained, at the rewind step.
      metadata: JSON-able; `provenance` builds the usual one.
    """

    mask: Mask
    params: Params
    model_state: ModelState
    metadata: dict[str, Any]


def provenance(
    *,
    model: str,
    task: str,
    rewind_step: int,
    density: float,
    level: int,
    init: Any,
    found: str,
    **more: Any,
) -> dict[str, Any]:
    """The metadata a ticket should carry, with the versions of what made it.

    Args:
      model: name of the architecture.
      task: name of the task and data set.
      rewind_step: step the stored weights are from.
      density: share of the prunable weights that survive, in [0, 1].
      level: pruning rounds behind this mask.
      init: law or key of the initialisation, JSON-able (`jax.random.key_data(key)
        .tolist()` for a key).
      found: how the mask was found, in words or as the name of a procedure.
      **more: anything else that is JSON-able.

    Returns:
      A JSON-able dict.

    Raises:
      ValueError: `rewind_step` or `level` is negative, or `density` outside [0, 1].
    """
    for name, count in (("rewind_step", rewind_step), ("level", level)):
        if count < 0:
            raise ValueError(f"{name} is {count}; valid: 0 or more")
    if not 0 <= density <= 1:
        raise ValueError(f"density is {density}; valid: between 0 and 1")
    versions = {"python": platform.python_version()}
    for package in ("lottery-jax", "jax", "jaxlib", "flax", "optax", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "model": model,
        "task": task,
        "rewind_step": int(rewind_step),
        "density": float(density),
        "level": int(level),
        "init": init,
        "found": found,
        "versions": versions,
        **more,
    }


def save(path: str | os.PathLike, ticket: Ticket) -> None:
    """Writes a ticket; the file appears complete or not at all.

    The same ticket makes the same bytes. Weights off the mask are not stored, whatever
    they are, and load as 0. Leaves may be JAX or NumPy arrays of any numeric or bool
    dtype, or typed PRNG keys (in `model_state`); their bits are kept.

    Args:
      path: file to write or replace, usually `*.safetensors`; its folder is made.
      ticket: mask of bool leaves with the structure and shapes of `params`. Metadata
        comes back as JSON returns it: tuples as lists, keys as strings.

    Raises:
      ValueError: mask and params differ in structure or shape (names the leaf), a leaf
        is not an array this process can read, or the metadata is not JSON-able.
      OSError: the file could not be written (a full disk, say); what was at `path` is
        untouched.
      ImportError: safetensors is not installed.
    """
    path = pathlib.Path(path)
    masks = _leaves("mask", ticket.mask)
    params = _leaves("params", ticket.params)
    _check_mask(masks, params)
    records: dict[str, list[dict[str, Any]]] = {"params": [], "model_state": []}
    tensors: dict[str, np.ndarray] = {}

    for name, (keys, leaf) in params.items():
        mask = np.asarray(masks[name][1])
        record, values = _encode(f"params{name}", keys, leaf)
        if "impl" in record:
            raise ValueError(f"params{name} is a PRNG key; valid: weights")
        tensors[f"mask/{name}"] = np.packbits(mask.reshape(-1))
        record["pruned"] = not bool(mask.all())
        if record["pruned"]:
            values = values[mask]
        tensors[f"params/{name}"] = _storable(values)
        records["params"].append({"path": name, **record})
    for name, (keys, leaf) in _leaves("model_state", ticket.model_state).items():
        record, values = _encode(f"model_state{name}", keys, leaf)
        tensors[f"model_state/{name}"] = _storable(values)
        records["model_state"].append({"path": name, **record})

    header = {"format": FORMAT, "metadata": _jsonable(ticket.metadata), **records}
    # What json.loads returns is what a reader hashes, so that is what is hashed here.
    header = json.loads(json.dumps(header))
    described = {
        name: (_CODES[array.dtype.name], list(array.shape), array.tobytes())
        for name, array in tensors.items()
    }
    entry = json.dumps({"sha256": _digest(described, header), **header})
    _write(path, _safetensors().numpy.save(tensors, {_ENTRY: entry}))


def load(path: str | os.PathLike, like: tuple[PyTree, PyTree] | None = None) -> Ticket:
    """Reads and verifies a ticket.

    Args:
      path: a file that `save` wrote.
      like: `(params, model_state)` template whose structure the ticket gets: any
        pytrees (NamedTuples, NNX states, Equinox modules) with arrays or
        `jax.ShapeDtypeStruct` as leaves. Without it everything becomes nested dicts,
        which is exact for dicts (but for empty ones) and a readable stand-in for the
        rest: attributes become their names, positions their numbers.

    Returns:
      The ticket, with NumPy leaves (typed PRNG keys stay keys). `mask` has the
      structure of `params`.

    Raises:
      CorruptTicketError: the file is not a complete, unaltered ticket.
      ValueError: `like` differs in paths, shapes or dtypes (names them), or the file
        has a newer format.
      FileNotFoundError: there is no such file.
      ImportError: safetensors is not installed.
    """
    if like is not None and not (isinstance(like, tuple) and len(like) == 2):
        raise ValueError(
            f"like is a {type(like).__name__}; valid: the pair (params, model_state)"
        )
    safetensors = _safetensors()
    data = pathlib.Path(path).read_bytes()
    try:
        header, tensors = _verified(safetensors, data)
    except Exception as error:
        raise CorruptTicketError(
            f"{path} is not a complete, unaltered ticket: {error}"
        ) from error
    if header["format"] != FORMAT:
        raise ValueError(
            f"{path} has ticket format {header['format']}; valid: {FORMAT}. A newer"
            " lottery-jax wrote it"
        )
    try:
        decoded = _decode(header, tensors)
    except Exception as error:
        raise CorruptTicketError(f"{path} contradicts itself: {error}") from error

    if like is None:
        mask, params, model_state = (_nested(header, t, decoded[t]) for t in _TREES)
    else:
        for tree, template in zip(("params", "model_state"), like):
            _check_like(path, tree, template, header[tree])
        mask = _filled(like[0], decoded["mask"])
        params = _filled(like[0], decoded["params"])
        model_state = _filled(like[1], decoded["model_state"])
    return Ticket(mask, params, model_state, header["metadata"])


def _leaves(tree_name: str, tree: PyTree) -> dict[str, tuple[list, Any]]:
    """Key path as text -> (key path as JSON, leaf), in the order of the tree."""
    found: dict[str, tuple[list, Any]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path)
        if name in found:
            raise ValueError(f"{tree_name} has two leaves at {name!r}; valid: one")
        found[name] = ([_plain_key(tree_name, name, key) for key in path], leaf)
    return found


def _plain_key(tree_name: str, name: str, key: Any) -> str | int:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            plain = getattr(key, attribute)
            if isinstance(plain, (str, int)):
                return plain
    raise ValueError(
        f"{tree_name}{name} has the key {key!r}; valid: text or whole numbers"
    )


def _check_mask(
    masks: dict[str, tuple[list, Any]], params: dict[str, tuple[list, Any]]
) -> None:
    for name in params.keys() - masks.keys():
        raise ValueError(f"mask has no leaf at {name!r}; valid: every leaf of params")
    for name in masks.keys() - params.keys():
        raise ValueError(f"mask has a leaf at {name!r} that params lacks")
    for name, (_, mask) in masks.items():
        shape, dtype = np.shape(mask), getattr(mask, "dtype", type(mask).__name__)
        if dtype != np.bool_:
            raise ValueError(f"mask{name} has dtype {dtype}; valid: bool")
        if shape != np.shape(params[name][1]):
            raise ValueError(
                f"mask{name} has shape {shape}; valid: {np.shape(params[name][1])},"
                " that of params"
            )


def _encode(name: str, keys: list, leaf: Any) -> tuple[dict[str, Any], np.ndarray]:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(
            f"{name} spans devices that this process cannot read; valid: arrays of this"
            " process, or gathered ones"
        )
    record: dict[str, Any] = {"keys": keys}
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    ):
        record["impl"] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMm" or array.dtype.names is not None:
        raise ValueError(
            f"{name} is {type(leaf).__name__} of dtype {array.dtype}; valid: numeric or"
            " bool arrays. Filter other leaves out first"
        )
    array = array.astype(np.dtype(array.dtype.name), copy=False)
    return record | {"dtype": array.dtype.name, "shape": list(array.shape)}, array


def _storable(array: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(array)
    if array.dtype.name in _CODES:
        return flat.reshape(array.shape)
    return flat.reshape(-1).view(np.uint8)


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


def _digest(
    tensors: Mapping[str, tuple[str, list[int], bytes]], header: Mapping[str, Any]
) -> str:
    total = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(tensors):
        code, shape, data = tensors[name]
        total.update(json.dumps([name, code, shape, len(data)]).encode())
        total.update(data)
    return total.hexdigest()


def _verified(
    safetensors: Any, data: bytes
) -> tuple[dict[str, Any], dict[str, tuple[str, list[int], bytes]]]:
    tensors = {
        name: (entry["dtype"], list(entry["shape"]), bytes(entry["data"]))
        for name, entry in safetensors.deserialize(data)
    }
    # deserialize drops the metadata; it has checked the length of the header before.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])["__metadata__"]
    header = json.loads(header[_ENTRY])
    stated = header.pop("sha256")
    actual = _digest(tensors, header)
    if stated != actual:
        raise ValueError(f"its SHA-256 is {actual}, and should be {stated}")
    return header, tensors


def _decode(
    header: Mapping[str, Any], tensors: Mapping[str, tuple[str, list[int], bytes]]
) -> dict[str, dict[str, Any]]:
    decoded: dict[str, dict[str, Any]] = {tree: {} for tree in _TREES}
    for record in header["params"]:
        name, shape = record["path"], record["shape"]
        packed = np.frombuffer(tensors[f"mask/{name}"][2], np.uint8)
        count = int(np.prod(shape, dtype=np.int64))
        mask = np.unpackbits(packed, count=count).astype(bool).reshape(shape)
        stored = np.frombuffer(tensors[f"params/{name}"][2], np.dtype(record["dtype"]))
        if record["pruned"]:
            values = np.zeros(shape, stored.dtype)
            values[mask] = stored
        else:
            values = stored.reshape(shape).copy()
        decoded["mask"][name], decoded["params"][name] = mask, _typed(record, values)
    for record in header["model_state"]:
        name = record["path"]
        stored = np.frombuffer(
            tensors[f"model_state/{name}"][2], np.dtype(record["dtype"])
        )
        decoded["model_state"][name] = _typed(
            record, stored.reshape(record["shape"]).copy()
        )
    return decoded


def _typed(record: Mapping[str, Any], values: np.ndarray) -> Any:
    if "impl" in record:
        return jax.random.wrap_key_data(jnp.asarray(values), impl=record["impl"])
    return values


def _nested(header: Mapping[str, Any], tree: str, leaves: Mapping[str, Any]) -> PyTree:
    root: dict[Any, Any] = {}
    for record in header["params" if tree == "mask" else tree]:
        if not record["keys"]:
            return leaves[record["path"]]
        node = root
        for key in record["keys"][:-1]:
            node = node.setdefault(key, {})
        node[record["keys"][-1]] = leaves[record["path"]]
    return root


def _filled(template: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[jax.tree_util.keystr(path)], template
    )


def _check_like(
    path: str | os.PathLike, tree: str, template: PyTree, records: list[dict[str, Any]]
) -> None:
    stored = {record["path"]: record for record in records}
    wanted = {name: leaf for name, (_, leaf) in _leaves(tree, template).items()}
    missing = [name for name in wanted if name not in stored]
    surplus = [name for name in stored if name not in wanted]
    if missing or surplus:
        raise ValueError(
            f"like has another structure than {tree} of {path}: the ticket lacks"
            f" {missing or 'nothing'}, and the template lacks {surplus or 'nothing'}"
        )
    for name, leaf in wanted.items():
        record = stored[name]
        if "impl" in record:
            # A key's shape is that of its data without the last axis.
            shape, dtype = tuple(record["shape"][:-1]), None
        else:
            shape, dtype = tuple(record["shape"]), record["dtype"]
        if np.shape(leaf) != shape:
            raise ValueError(
                f"like has shape {np.shape(leaf)} at {tree}{name}; the ticket {path} has"
                f" {shape}"
            )
        actual = getattr(leaf, "dtype", None)
        if dtype is not None and actual is not None and str(actual) != dtype:
            raise ValueError(
                f"like has dtype {actual} at {tree}{name}; the ticket {path} has {dtype}"
            )


def _write(path: pathlib.Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        message = f"could not write the ticket {path}: {error.strerror or error}"
        raise OSError(error.errno, message) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename survive a power cut; only POSIX can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "tickets are stored with safetensors: pip install 'lottery-jax[results]'"
        ) from error
    return safetensors
