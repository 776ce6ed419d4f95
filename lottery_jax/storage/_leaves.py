"""Leaves of trees as bytes and JSON, to the bit; and whether a template fits them.

A stored leaf has a *record*: its `dtype` and `shape` and, where it is an array of PRNG
keys, `impl`, the name of their kind; dtype and shape are then those of the keys' data.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, trees
from lottery_jax.types import PyTree


def named(field: str, tree: PyTree) -> dict[str, Any]:
    """The leaves by the `keystr` of their key paths, in tree order.

    Raises:
      ValueError: two leaves have one name; `field` says in what.
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if name in found:
            raise errors.wrong(f"{field}{name}", "two leaves", "one")
        found[name] = leaf
    return found


def encode(name: str, leaf: Any) -> tuple[dict[str, Any], np.ndarray]:
    """A leaf as its record and a NumPy array.

    Args:
      name: what errors call it.
      leaf: JAX or NumPy array of any numeric or bool dtype, typed PRNG keys, or a
        Python number.

    Raises:
      ValueError: it is something else, or this process cannot read all of it.
    """
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise errors.wrong(
            name, "an array that other processes hold too", "gathered in this one"
        )
    record: dict[str, Any] = {}
    if isinstance(leaf, jax.Array) and trees.is_key(leaf):
        record["impl"] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMm" or array.dtype.names is not None:
        raise errors.wrong(
            name,
            f"{type(leaf).__name__} of dtype {array.dtype}",
            "a numeric or bool array, PRNG keys or a number; filter other leaves out",
        )
    array = array.astype(np.dtype(array.dtype.name), copy=False)
    return record | {"dtype": array.dtype.name, "shape": list(array.shape)}, array


def decode(record: Mapping[str, Any], data: bytes | memoryview) -> Any:
    """The array or the PRNG keys of a record.

    Args:
      record: of the leaf.
      data: its bytes, in the order of C; they are copied.
    """
    array = np.frombuffer(data, np.dtype(record["dtype"]))
    array = array.reshape(record["shape"]).copy()
    if "impl" in record:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=record["impl"])
    return array


def check_fits(
    field: str,
    leaves: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any]],
    source: str,
) -> None:
    """Raises a ValueError unless leaves have the names, dtypes and shapes of records.

    Args:
      field: what the caller calls the tree of the leaves.
      leaves: arrays, numbers or `jax.ShapeDtypeStruct`, from `named`.
      records: by the names that there must be.
      source: what holds them.
    """
    lacks = [name for name in records if name not in leaves]
    extra = [name for name in leaves if name not in records]
    if lacks or extra:
        raise ValueError(
            f"{field} lacks {lacks or 'nothing'} and has {extra or 'nothing'} too much;"
            f" it must have the leaves of {source}"
        )
    for name, leaf in leaves.items():
        found, wanted = _kind(leaf), _kind_of(records[name])
        if found != wanted:
            raise errors.wrong(f"{field}{name}", found, f"{wanted}, as in {source}")


def _kind(leaf: Any) -> str:
    """A leaf's dtype and shape, such as `float32[2, 3]`."""
    if isinstance(leaf, bool | int | float | complex):
        leaf = np.asarray(leaf)
    return f"{getattr(leaf, 'dtype', type(leaf).__name__)}{list(np.shape(leaf))}"


def _kind_of(record: Mapping[str, Any]) -> str:
    dtype, shape = record["dtype"], record["shape"]
    if "impl" in record:
        # A key's shape is that of its data without the last axis.
        keys = jax.eval_shape(lambda: jax.random.key(0, impl=record["impl"]))
        dtype, shape = keys.dtype, shape[:-1]
    return f"{dtype}{list(shape)}"


def jsonable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's metadata as a dict, once it is sure that JSON can hold it.

    Raises:
      ValueError: it cannot; names the field.
    """
    for field, value in metadata.items():
        if not isinstance(field, str):
            raise errors.wrong("metadata", f"{{{field!r}: ...}}", "named by text")
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            must = f"what JSON can hold ({error})"
            raise errors.wrong(f"metadata[{field!r}]", repr(value), must) from error
    return dict(metadata)
