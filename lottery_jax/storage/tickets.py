"""Tickets on disk: mask, weights and model state at the rewind step, in one file.

A ticket is a safetensors file. Mask leaves are bit-packed; a weight matrix that is
pruned stores only its survivors, so a ticket at density 5% takes about 8% of the dense
weights' bytes. Where many tickets share one start, a file may hold the SHA-256 of its
weights instead, and is then about 3% of them. Names, dtypes, shapes, contents and
metadata are covered by a SHA-256 digest that is checked on every load: a damaged file is
refused, never half read. The digest guards against accidents; it does not say who wrote
the file. Loading parses JSON and copies bytes, and never executes anything.

Layout, format 1: tensors `mask/PATH` (uint8, big-endian bit order), `params/PATH`,
`model_state/PATH`, where PATH is `jax.tree_util.keystr` of the leaf; one metadata
entry, "lottery_jax.ticket", with the leaves' key paths, dtypes and shapes, the
caller's metadata and the digest. Dtypes that safetensors lacks are stored as bytes.
Format 2 has no tensors `params/PATH`, but their SHA-256 in the entry.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lottery_jax import disk, errors
from lottery_jax.storage import _leaves, records
from lottery_jax.types import Mask, ModelState, Params, PyTree

FORMAT = 1
_FORMAT_OF_DIGESTS = 2
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


_Tensor = tuple[str, list[int], bytes]
"""A tensor of the file: the code of its dtype, its shape, its bytes."""


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


class Contents(NamedTuple):
    """What a file says without the weights, which it may not hold.

    Attributes:
      mask: as in `Ticket`, in nested dicts.
      metadata: likewise.
      weights: "stored", or "digest" if `load` needs the start.
    """

    mask: Mask
    metadata: dict[str, Any]
    weights: Literal["stored", "digest"]


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
    errors.at_least("rewind_step", rewind_step, 0)
    errors.at_least("level", level, 0)
    errors.within("density", density, 0, 1)
    return {
        "model": model,
        "task": task,
        "rewind_step": int(rewind_step),
        "density": float(density),
        "level": int(level),
        "init": init,
        "found": found,
        "versions": records.versions(),
        **more,
    }


def save(
    path: str | os.PathLike,
    ticket: Ticket,
    *,
    weights: Literal["stored", "digest"] = "stored",
) -> None:
    """Writes a ticket; the file appears complete or not at all.

    The same ticket makes the same bytes. Weights off the mask are not stored, whatever
    they are, and load as 0. Leaves may be JAX or NumPy arrays of any numeric or bool
    dtype, or typed PRNG keys (in `model_state`); their bits are kept.

    Args:
      path: file to write or replace, usually `*.safetensors`; its folder is made.
      ticket: mask of bool leaves with the structure and shapes of `params`. Metadata
        comes back as JSON returns it: tuples as lists, keys as strings.
      weights: "stored", or "digest" for the SHA-256 of each leaf's surviving weights
        alone; `load` then needs the start that they were masked from. Masks and model
        state are stored either way.

    Raises:
      ValueError: mask and params differ in structure or shape (names the leaf), a leaf
        is not an array this process can read, or the metadata is not JSON-able.
      OSError: the file could not be written (a full disk, say); what was at `path` is
        untouched.
      ImportError: safetensors is not installed.
    """
    path = errors.on_disk("path", path)
    errors.one_of("weights", weights, ("stored", "digest"))
    params = _encoded("params", ticket.params)
    state = _encoded("model_state", ticket.model_state)
    masks = _leaves.named("mask", ticket.mask)
    shapes = {name: r | {"dtype": "bool"} for name, (r, _) in params.items()}
    _leaves.check_fits("mask", masks, shapes, "params")

    tensors: dict[str, np.ndarray] = {}
    for name, (record, values) in params.items():
        if "impl" in record:
            raise errors.wrong(f"params{name}", "PRNG keys", "weights")
        mask = _leaves.encode(f"mask{name}", masks[name])[1]
        tensors[f"mask/{name}"] = np.packbits(mask.reshape(-1))
        record["pruned"] = not bool(mask.all())
        survivors = values[mask] if record["pruned"] else values
        if weights == "stored":
            tensors[f"params/{name}"] = _storable(survivors)
        else:
            record["sha256"] = _sha256(survivors)
    for name, (_, values) in state.items():
        tensors[f"model_state/{name}"] = _storable(values)

    header = {
        "format": FORMAT if weights == "stored" else _FORMAT_OF_DIGESTS,
        "metadata": _leaves.jsonable(ticket.metadata),
        "params": [record for record, _ in params.values()],
        "model_state": [record for record, _ in state.values()],
    }
    # What json.loads returns is what a reader hashes, so that is what is hashed here.
    header = json.loads(json.dumps(header))
    described = {
        name: (_CODES[array.dtype.name], list(array.shape), array.tobytes())
        for name, array in tensors.items()
    }
    entry = json.dumps({"sha256": _digest(described, header), **header})
    content = _safetensors().numpy.save(tensors, {_ENTRY: entry})
    disk.write(path, content)


def load(
    path: str | os.PathLike,
    like: tuple[PyTree, PyTree] | None = None,
    *,
    start: Params | None = None,
) -> Ticket:
    """Reads and verifies a ticket.

    Args:
      path: a file that `save` wrote.
      like: `(params, model_state)` template whose structure the ticket gets: any
        pytrees (NamedTuples, NNX states, Equinox modules) with arrays or
        `jax.ShapeDtypeStruct` as leaves. Without it everything becomes nested dicts,
        which is exact for dicts (but for empty ones) and a readable stand-in for the
        rest: attributes become their names, positions their numbers, and an NNX
        variable its array.
      start: the weights that those of the ticket were masked from, with the key paths,
        shapes and dtypes of `params`. A file with digests needs it, and checks it; any
        other has weights of its own and does not look at it.

    Returns:
      The ticket, with NumPy leaves (typed PRNG keys stay keys). `mask` has the
      structure of `params`.

    Raises:
      CorruptTicketError: the file is not a complete, unaltered ticket.
      ValueError: `like` differs in paths, shapes or dtypes (names them), `start` is
        missing or holds other weights (names the leaf), or the file has a newer format.
      FileNotFoundError: there is no such file.
      ImportError: safetensors is not installed.
    """
    path = errors.on_disk("path", path)
    if like is not None and not (isinstance(like, tuple) and len(like) == 2):
        raise errors.wrong("like", type(like), "the pair (params, model_state)")
    header, decoded = _read(path)
    if header["format"] == _FORMAT_OF_DIGESTS:
        decoded["params"] = _from_start(path, header, decoded["mask"], start)

    if like is None:
        mask, params, model_state = (_nested(header, t, decoded[t]) for t in _TREES)
    else:
        for i, tree in enumerate(("params", "model_state")):
            records = {record["path"]: record for record in header[tree]}
            leaves = _leaves.named(f"like[{i}]", like[i])
            _leaves.check_fits(f"like[{i}]", leaves, records, f"the {tree} of {path}")
        mask = _filled(like[0], decoded["mask"])
        params = _filled(like[0], decoded["params"])
        model_state = _filled(like[1], decoded["model_state"])
    return Ticket(mask, params, model_state, header["metadata"])


def contents(path: str | os.PathLike) -> Contents:
    """Reads and verifies a ticket, but for its weights: also one with their digests alone.

    Args:
      path: a file that `save` wrote.

    Raises:
      CorruptTicketError: the file is not a complete, unaltered ticket.
      ValueError: the file has a newer format.
      FileNotFoundError: there is no such file.
      ImportError: safetensors is not installed.
    """
    header, decoded = _read(errors.on_disk("path", path))
    mask = _nested(header, "mask", decoded["mask"])
    stored = header["format"] == FORMAT
    return Contents(mask, header["metadata"], "stored" if stored else "digest")


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The verified header of a file, and what `_decode` makes of the rest."""
    safetensors = _safetensors()
    data = path.read_bytes()
    try:
        header, tensors = _verified(safetensors, data)
    except Exception as error:
        raise CorruptTicketError(
            f"{path} is not a complete, unaltered ticket: {error}"
        ) from error
    if header["format"] not in (FORMAT, _FORMAT_OF_DIGESTS):
        must = f"{FORMAT} or {_FORMAT_OF_DIGESTS}. A newer lottery-jax wrote it"
        raise errors.wrong(f"{path}: format", header["format"], must)
    try:
        return header, _decode(header, tensors)
    except Exception as error:
        raise CorruptTicketError(f"{path} contradicts itself: {error}") from error


def _encoded(tree: str, leaves: PyTree) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    """Record and array of every leaf by its name, in tree order."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(leaves)]
    found = {}
    for path, (name, leaf) in zip(paths, _leaves.named(tree, leaves).items()):
        keys = [_plain_key(f"{tree}{name}", key) for key in path]
        record, array = _leaves.encode(f"{tree}{name}", leaf)
        found[name] = ({"path": name, "keys": keys, **record}, array)
    return found


def _plain_key(name: str, key: Any) -> str | int:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            plain = getattr(key, attribute)
            if isinstance(plain, (str, int)):
                return plain
    raise errors.wrong(f"the key {key!r} of {name}", key, "text or a whole number")


def _storable(array: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(array)
    if array.dtype.name in _CODES:
        return flat.reshape(array.shape)
    return flat.reshape(-1).view(np.uint8)


def _digest(tensors: Mapping[str, _Tensor], header: Mapping[str, Any]) -> str:
    total = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(tensors):
        code, shape, data = tensors[name]
        total.update(json.dumps([name, code, shape, len(data)]).encode())
        total.update(data)
    return total.hexdigest()


def _verified(
    safetensors: Any, data: bytes
) -> tuple[dict[str, Any], dict[str, _Tensor]]:
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
    header: Mapping[str, Any], tensors: Mapping[str, _Tensor]
) -> dict[str, dict[str, Any]]:
    """The leaves of each tree by their names; of weights, those that are stored."""
    decoded: dict[str, dict[str, Any]] = {tree: {} for tree in _TREES}
    for record in header["params"]:
        name, shape = record["path"], record["shape"]
        packed = np.frombuffer(tensors[f"mask/{name}"][2], np.uint8)
        count = int(np.prod(shape, dtype=np.int64))
        mask = np.unpackbits(packed, count=count).astype(bool).reshape(shape)
        decoded["mask"][name] = mask
        if header["format"] == FORMAT:
            shape = [-1] if record["pruned"] else shape
            stored = _leaves.decode(
                {**record, "shape": shape}, tensors[f"params/{name}"][2]
            )
            decoded["params"][name] = _off_mask_0(record, stored, mask)
    for record in header["model_state"]:
        name = record["path"]
        data = tensors[f"model_state/{name}"][2]
        decoded["model_state"][name] = _leaves.decode(record, data)
    return decoded


def _off_mask_0(
    record: Mapping[str, Any], survivors: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    if not record["pruned"]:
        return survivors
    values = np.zeros(mask.shape, survivors.dtype)
    values[mask] = survivors
    return values


def _from_start(
    path: str | os.PathLike,
    header: Mapping[str, Any],
    masks: Mapping[str, np.ndarray],
    start: Params | None,
) -> dict[str, np.ndarray]:
    """The weights of a file that has only their digests, by their names."""
    records = {record["path"]: record for record in header["params"]}
    if start is None:
        raise errors.wrong(
            "start",
            None,
            f"the weights that those of {path} were masked from, with the leaves "
            f"{list(records)}: the file holds their SHA-256 alone",
        )
    leaves = _leaves.named("start", start)
    _leaves.check_fits("start", leaves, records, f"the params of {path}")
    found = {}
    for name, record in records.items():
        values = _leaves.encode(f"start{name}", leaves[name])[1]
        survivors = values[masks[name]] if record["pruned"] else values.copy()
        digest = _sha256(survivors)
        if digest != record["sha256"]:
            raise errors.wrong(
                f"start{name}",
                f"weights with the SHA-256 {digest} on the mask",
                f"those that {path} was found with, {record['sha256']}",
            )
        found[name] = _off_mask_0(record, survivors, masks[name])
    return found


def _sha256(survivors: np.ndarray) -> str:
    return hashlib.sha256(survivors.tobytes()).hexdigest()


def _nested(header: Mapping[str, Any], tree: str, leaves: Mapping[str, Any]) -> PyTree:
    root: dict[Any, Any] = {}
    records = header["params" if tree == "mask" else tree]
    for record in records:
        keys = record["keys"]
        if not keys:
            return leaves[record["path"]]
        below = [r for r in records if r["keys"][: len(keys) - 1] == keys[:-1]]
        if len(keys) > 1 and record["path"].endswith(".value") and len(below) == 1:
            # What holds an NNX variable's array is no part of its name: `trees.leaf_path`.
            keys = keys[:-1]
        node = root
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaves[record["path"]]
    return root


def _filled(template: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaves[jax.tree_util.keystr(path)], template
    )


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "tickets are stored with safetensors: pip install 'lottery-jax[results]'"
        ) from error
    return safetensors
