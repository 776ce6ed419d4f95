"""Pytrees: names of their leaves, whether two fit, and stacks of them.

A leaf's name is its key path as text. A *stack* is one tree whose leaves have a leading
axis, of replicas or networks, instead of many trees.
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax.types import Array, PyTree

Patterns = str | Sequence[str]


# --- key paths ------------------------------------------------------------------------


def leaf_path(path: tuple) -> str:
    """A leaf's key path as text, such as `"dense_0/kernel"`; what patterns match.

    The `value` at the end of NNX paths is dropped: it names no part of the network.
    """
    text = jax.tree_util.keystr(path, simple=True, separator="/")
    return text.removesuffix("/value").replace("/.", "/").lstrip("./")


def paths(tree: PyTree) -> list[str]:
    """The key path of every leaf, in tree order."""
    return [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves by their key paths, in tree order."""
    return dict(zip(paths(tree), jax.tree.leaves(tree)))


def matching(tree: PyTree, patterns: Patterns) -> PyTree:
    """Which leaves have a key path in which one of the regular expressions is found.

    Args:
      tree: any pytree.
      patterns: one regular expression or several, searched for in `leaf_path`.

    Returns:
      A pytree of Python bools.

    Raises:
      ValueError: a pattern matches no leaf, which is nearly always a misspelling.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    names = paths(tree)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"pattern {pattern!r} matches no leaf; there are {names}")
    found = [any(re.search(pattern, name) for pattern in patterns) for name in names]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


# --- do they fit? ---------------------------------------------------------------------


def same_structure(a: PyTree, b: PyTree) -> bool:
    """Whether two pytrees have the same structure, whatever their leaves are."""
    return bool(jax.tree.structure(a) == jax.tree.structure(b))  # type: ignore[operator]


def same(a: PyTree, b: PyTree, names: tuple[str, str] = ("a", "b")) -> None:
    """Raises a ValueError that says where two trees differ in structure or shape.

    Args:
      a: any pytree of arrays or shapes.
      b: another.
      names: what the message calls them.
    """
    first, second = by_path(a), by_path(b)
    for path in [*first, *second]:
        if path not in first or path not in second:
            has = names[0] if path in first else names[1]
            raise ValueError(f"only {has} has a leaf {path!r}; both must have the same")
        if np.shape(first[path]) != np.shape(second[path]):
            raise ValueError(
                f"leaf {path!r} has shape {np.shape(first[path])} in {names[0]} and "
                f"{np.shape(second[path])} in {names[1]}; they must be the same"
            )
    if not same_structure(a, b):
        raise ValueError(
            f"{names[0]} and {names[1]} have the same leaves in different containers: "
            f"{jax.tree.structure(a)} and {jax.tree.structure(b)}"
        )


def fitted(tree: PyTree, like: PyTree, names: tuple[str, str]) -> PyTree:
    """A tree in the structure of another with the same key paths and shapes.

    What was stored comes back as nested dicts; the task's own trees may be anything.

    Args:
      tree: any pytree of arrays.
      like: arrays or shapes in the structure that is wanted.
      names: what the message calls the two.

    Raises:
      ValueError: other key paths or shapes; names them.
    """
    leaves, wanted = by_path(tree), by_path(like)
    if leaves.keys() != wanted.keys():
        raise ValueError(
            f"{names[0]} has the leaves {sorted(leaves)}; {names[1]} are {sorted(wanted)}"
        )
    for path, leaf in wanted.items():
        if np.shape(leaves[path]) != np.shape(leaf):
            raise ValueError(
                f"leaf {path!r} of {names[0]} has shape {np.shape(leaves[path])}; it must "
                f"be {np.shape(leaf)}, as in {names[1]}"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[p] for p in wanted])


# --- stacks ---------------------------------------------------------------------------


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys."""
    return hasattr(leaf, "dtype") and bool(
        jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def host(tree: PyTree) -> PyTree:
    """NumPy arrays; typed keys stay what they are."""
    return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), tree)


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Many trees as one stack: NumPy arrays where all are, JAX arrays else."""

    def leaf(*leaves: Any) -> Any:
        on_host = all(isinstance(x, np.ndarray | np.generic) for x in leaves)
        return (np if on_host else jnp).stack(leaves)

    return jax.tree.map(leaf, *trees)


def concatenate(trees: Sequence[PyTree]) -> PyTree:
    """Several stacks as one: NumPy arrays where all are, JAX arrays else."""

    def leaf(*leaves: Any) -> Any:
        on_host = all(isinstance(x, np.ndarray) for x in leaves)
        return (np if on_host else jnp).concatenate(leaves)

    return jax.tree.map(leaf, *trees)


def rows(tree: PyTree, index: Any) -> PyTree:
    """Part of a stack: an integer for one tree, a slice or an array for several."""
    return jax.tree.map(lambda x: x[index], tree)


def count(tree: PyTree) -> int:
    """How many trees a stack holds."""
    return int(jax.tree.leaves(tree)[0].shape[0])


def combine(trees: Sequence[PyTree], weights: Array) -> PyTree:
    """The weighted sum of trees, leaf by leaf.

    Where a weight is exactly 1 and the others 0 the result equals that tree. Leaves that
    are not floating-point (counters) are those of the first tree.

    Args:
      trees: m of them, with equal structures and shapes.
      weights: float `[m]`, may be traced.
    """

    def leaf(*leaves: Array) -> Array:
        if not jnp.issubdtype(jnp.asarray(leaves[0]).dtype, jnp.inexact):
            return leaves[0]
        parts = [weights[i].astype(x.dtype) * x for i, x in enumerate(leaves)]
        return functools.reduce(jnp.add, parts)

    return jax.tree.map(leaf, *trees)


def fingerprint(*trees: PyTree) -> str:
    """A digest of every bit of some trees: tells what a folder holds from what is asked.

    Args:
      *trees: of arrays, typed keys, numbers and text.
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        values = jax.random.key_data(leaf) if is_key(leaf) else leaf
        array = np.ascontiguousarray(np.asarray(values))
        total.update(f"{leaf_path(path)} {array.dtype} {array.shape}".encode())
        # A view: copying a data set takes as long as hashing it.
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
