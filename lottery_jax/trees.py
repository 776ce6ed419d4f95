"""Pytrees: names of their leaves, whether two fit, where they lie, and stacks of them.

A leaf's name is its key path as text. A *stack* is one tree whose leaves have a leading
axis, of replicas or networks, instead of many trees.
"""

import collections
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors
from lottery_jax.types import Array, PyTree

Patterns = str | Sequence[str]


# --- key paths ------------------------------------------------------------------------


def leaf_path(path: tuple) -> str:
    """A leaf's key path as text, such as `"dense_0/kernel"`; what patterns match.

    The attribute `value` at the end of NNX paths is dropped: it names no part of the
    network.
    """
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _names(tree: PyTree) -> list[str]:
    """The key path of every leaf, in tree order; two may be the same."""
    found = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    # How many leaves there are below each node. An NNX variable has one, its `value`; with
    # others beside it, as in an attention of query, key and value, the word is a name.
    below = collections.Counter(
        jax.tree_util.keystr(path[:i]) for path in found for i in range(len(path))
    )
    return [
        leaf_path(path)
        if below[jax.tree_util.keystr(path[:-1])] == 1
        else jax.tree_util.keystr(path, simple=True, separator="/")
        for path in found
    ]


def name_of(tree: PyTree, index: int) -> str:
    """The key path of one leaf, by its number in tree order: for messages."""
    return _names(tree)[index]


def paths(tree: PyTree) -> list[str]:
    """The key path of every leaf, in tree order.

    Raises:
      ValueError: two leaves have one name; says where they are.
    """
    found = _names(tree)
    for name, times in collections.Counter(found).items():
        if times > 1:
            where = [
                jax.tree_util.keystr(path)
                for other, (path, _) in zip(
                    found, jax.tree_util.tree_leaves_with_path(tree)
                )
                if other == name
            ]
            raise ValueError(
                f"{name!r} is the name of the leaves {' and '.join(where)}; it must be "
                "that of one leaf: rename a key"
            )
    return found


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves by their key paths, in tree order.

    Raises:
      ValueError: two leaves have one name.
    """
    return dict(zip(paths(tree), jax.tree.leaves(tree)))


def map_by_path(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """Maps over the leaves of a tree and their key paths."""
    leaves = [function(path, leaf) for path, leaf in by_path(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def matching(tree: PyTree, patterns: Patterns) -> PyTree:
    """Which leaves have a key path in which one of the regular expressions is found.

    Args:
      tree: any pytree.
      patterns: one regular expression or several, searched for in `leaf_path`.

    Returns:
      A pytree of Python bools.

    Raises:
      ValueError: no patterns; one that matches no leaf, which is nearly always a
        misspelling.
    """
    if isinstance(patterns, str):
        patterns = (patterns,)
    patterns = errors.names("patterns", patterns)
    names = paths(tree)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"pattern {pattern!r} matches no leaf; there are {names}")
    found = [any(re.search(pattern, name) for pattern in patterns) for name in names]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def pattern(name: str, names: Sequence[str]) -> str:
    """A pattern that finds one leaf and no other."""
    escaped = re.escape(name)
    alone = sum(re.search(escaped, other) is not None for other in names) == 1
    return escaped if alone else f"^{escaped}$"


# --- do they fit? ---------------------------------------------------------------------


def same_structure(a: PyTree, b: PyTree) -> bool:
    """Whether two pytrees have the same structure, whatever their leaves are."""
    return bool(jax.tree.structure(a) == jax.tree.structure(b))  # type: ignore[operator]


def fit(a: PyTree, b: PyTree, names: tuple[str, str]) -> None:
    """Raises a ValueError that says where the structures of two trees differ.

    Args:
      a: any pytree.
      b: another; what the leaves of the two are does not matter.
      names: what the message calls them.
    """
    if same_structure(a, b):
        return
    first, second = _names(a), _names(b)
    if first != second:
        raise ValueError(
            f"{names[0]}: its leaves {first} are not those of {names[1]}, {second}; "
            f"{_difference(a, b, names)}"
        )
    raise ValueError(
        f"{names[0]}: it has the leaves of {names[1]} in different containers: "
        f"{_difference(a, b, names)}"
    )


def _difference(a: PyTree, b: PyTree, names: tuple[str, str], at: tuple = ()) -> str:
    """The first node in which two structures differ, as a sentence; "" if none does."""
    where = f"at {jax.tree_util.keystr(at)}" if at else "at the top"
    kinds = _kind(a), _kind(b)
    if type(a) is not type(b) and kinds != ("a leaf", "a leaf"):
        if kinds[0] == kinds[1]:  # classes of one name
            kinds = repr(type(a)), repr(type(b))
        return f"{where}, {names[0]}: {kinds[0]}, {names[1]}: {kinds[1]}"
    if kinds[0] == "a leaf":
        return ""
    first, second = _children(a), _children(b)
    only = [
        f"{', '.join(map(jax.tree_util.keystr, extra))} only in {name}"
        for own, other, name in ((first, second, names[0]), (second, first, names[1]))
        if (extra := [key for key in own if key not in other])
    ]
    if only:
        return f"{where}, {' and '.join(only)}"
    for key, child in first.items():
        found = _difference(child, second[key], names, at + key)
        if found:
            return found
    if same_structure(a, b):
        return ""
    return f"{where}, static fields of {kinds[0]} are not the same in both"


def _kind(node: PyTree) -> str:
    if node is None:
        return "None"
    if jax.tree_util.all_leaves([node]):
        return "a leaf"
    return type(node).__name__


def _children(node: PyTree) -> dict[tuple, PyTree]:
    """What a node holds, one level down, by its key paths."""
    pairs = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
    return dict(pairs)


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
            f"{_difference(a, b, names)}"
        )


def check_arrays(tree: PyTree, field: str) -> None:
    """Raises a ValueError that names the first leaf that is no array of numbers.

    Args:
      tree: any pytree.
      field: what the caller calls it.
    """
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        typed = hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not is_key(leaf)
        if not typed and not isinstance(leaf, float | complex):
            if is_key(leaf):
                what = "an array of PRNG keys"
            elif callable(leaf):
                what = f"the function {getattr(leaf, '__name__', type(leaf).__name__)}"
            else:
                what = repr(leaf)
            raise ValueError(
                f"{field}: leaf {name_of(tree, i)!r} is {what}; it must be an array. Filter "
                "other leaves out first: eqx.filter(model, eqx.is_inexact_array) in "
                "Equinox, nnx.split(model, nnx.Param, ...) in NNX"
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


# --- where do they lie? ---------------------------------------------------------------


def gathered(*trees: PyTree) -> tuple[PyTree, ...]:
    """The same trees with every leaf whole, and all in one place.

    For whatever reshapes leaves or puts several into one array: JAX does neither with
    leaves that lie on different devices, or are spread over a mesh with explicit axes.
    Where all lie on one device nothing is done.

    Args:
      *trees: of arrays; may be traced.

    Raises:
      ValueError: traced leaves of several meshes, of which JAX compiles no one array.
    """
    leaves, structure = jax.tree.flatten(trees)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in arrays)
    if not traced and len({d for leaf in arrays for d in leaf.devices()}) <= 1:
        return trees
    if traced:
        shared = {_mesh(jax.typeof(leaf).sharding) for leaf in arrays} - {None}
        if len(shared) > 1:
            raise ValueError(
                "leaves are spread over meshes with the axes "
                f"{sorted(mesh.axis_names for mesh in shared)}; inside jit it must be one "
                "mesh: call this outside of it"
            )
        return jax.tree.map(_whole, trees)
    meshes = {_mesh(_place(leaf)) for leaf in arrays if _place(leaf) is not None}
    if len(meshes) == 1 and None not in meshes:
        return jax.tree.map(_whole, trees)
    device = min(arrays[0].devices(), key=lambda device: device.id)
    whole = [
        jax.device_put(leaf, device) if isinstance(leaf, jax.Array) else leaf
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, whole)


def placed(tree: PyTree, *like: PyTree) -> PyTree:
    """Bool arrays, placed as the leaves of other trees are: `gathered` undone.

    Args:
      tree: bool arrays; may be traced.
      *like: arrays or shapes, in the structure and shapes of the tree. Of each leaf the
        first counts that was put somewhere.
    """

    def leaf(x: Any, *models: Any) -> Any:
        for model in models:
            place = _place(model)
            if place is not None:
                x = put(x, place)
                if isinstance(model, jax.core.Tracer):
                    # A program does not know of the devices of what it makes no use of.
                    x = x ^ ((model != model) & False)
                break
        return x

    return jax.tree.map(leaf, tree, *like)


def spread(leaf: Any) -> jax.sharding.Sharding | None:
    """How a leaf is spread over several devices; None for one that is not."""
    place = _place(leaf)
    return place if place is not None and place.num_devices > 1 else None


def put(x: Array, place: jax.sharding.Sharding | None) -> Array:
    """An array, where `spread` says; may be traced."""
    if place is None:
        return x
    if isinstance(x, jax.core.Tracer) or _is_abstract(place):
        return x if _mesh(place) is None else jax.sharding.reshard(x, place)
    there = isinstance(x, jax.Array) and x.committed and x.sharding == place
    return x if there else jax.device_put(x, place)


def _place(leaf: Any) -> jax.sharding.Sharding | None:
    """The sharding of a leaf, if somebody chose it."""
    if isinstance(leaf, jax.core.Tracer):
        # Axes that the compiler shares out are not in it.
        sharding = jax.typeof(leaf).sharding
        return sharding if any(axis is not None for axis in sharding.spec) else None
    if isinstance(leaf, jax.Array):
        return leaf.sharding if leaf.committed or len(leaf.devices()) > 1 else None
    sharding = getattr(leaf, "sharding", None)  # of a shape
    return None if _is_abstract(sharding) else sharding


def _is_abstract(place: Any) -> bool:
    return isinstance(getattr(place, "mesh", None), jax.sharding.AbstractMesh)


def _mesh(place: Any) -> Any:
    """The mesh of a sharding over explicit axes; None for any other."""
    mesh = getattr(place, "mesh", None)
    explicit = jax.sharding.AxisType.Explicit
    return mesh if mesh is not None and explicit in mesh.axis_types else None


def _whole(leaf: Any) -> Any:
    mesh = _mesh(_place(leaf))
    if mesh is None:
        return leaf
    nowhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.sharding.reshard(leaf, nowhere)


# --- stacks ---------------------------------------------------------------------------


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys."""
    return hasattr(leaf, "dtype") and bool(
        jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def shapes_of(tree: PyTree, dtype: Any = None) -> PyTree:
    """Shapes and dtypes of a tree of arrays, such as params or a mask.

    Args:
      tree: of arrays.
      dtype: of all; None for each its own.
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype), tree)


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

    Summed in float32 at least and rounded once, to the dtype of the leaf. Where a weight
    is exactly 1 and the others 0 the result equals that tree. Leaves that are not
    floating-point (counters) are those of the first tree.

    Args:
      trees: m of them, with equal structures and shapes.
      weights: float `[m]`, may be traced.
    """

    def leaf(*leaves: Array) -> Array:
        dtype = jnp.asarray(leaves[0]).dtype
        if not jnp.issubdtype(dtype, jnp.inexact):
            return leaves[0]
        wide = jnp.promote_types(dtype, jnp.float32)
        parts = [
            weights[i].astype(wide) * jnp.asarray(x).astype(wide)
            for i, x in enumerate(leaves)
        ]
        return functools.reduce(jnp.add, parts).astype(dtype)

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
