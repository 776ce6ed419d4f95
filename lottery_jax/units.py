"""Units: which axes of which arrays belong to the same neurons or channels.

A unit is one index of the kernel, bias and norm that make it and of every kernel that
reads it; a residual stream ties the units of a whole stage. Units that are tied form a
*group*. Who knows the groups can renumber units (`connectivity.alignment`), remove them
(`compact`), or keep the first ones of each layer (`narrow`), and the arrays still fit.

A model declares its layers beside itself, by a method `unit_plan()`; `of_params` and
`of_state` make of that the axes of every leaf. Axes written by hand do as well: nothing
here needs a model.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, trees
from lottery_jax.types import Mask, ModelState, Params, PyTree


class Axis(NamedTuple):
    """One axis of a leaf.

    Attributes:
      group: name of the group of units that it indexes, or None for inputs, classes and
        the window of a convolution.
      repeats: how often the group is repeated along the axis; unit u of n is found at u,
        n + u, 2n + u ... (a flattened image has one repeat per pixel).
    """

    group: str | None
    repeats: int = 1

    def places(self, units: Any, size: int) -> np.ndarray:
        """Where units are found along this axis, repeat by repeat.

        Args:
          units: int `[m]`, in [0, size / repeats).
          size: of the axis.

        Returns:
          int `[repeats * m]`.
        """
        starts = np.arange(self.repeats)[:, None] * (size // self.repeats)
        return (starts + np.asarray(units)).ravel()


Axes: TypeAlias = Mapping[str, Sequence[Axis]]
"""For each leaf, by its key path (`trees.paths`), one `Axis` per dimension."""

ByGroup: TypeAlias = dict[str, np.ndarray]
"""For each group of units one array."""


class Layer(NamedTuple):
    """A layer of a model; its parameters are `NAME/kernel` and, if it has one, `NAME/bias`.

    Attributes:
      name: key path of the layer.
      reads: the group of units that the last axis but one of its kernel reads; None for
        inputs.
      makes: the group that the last axis makes; None for classes. Layers whose outputs
        are added make the same group.
      norm: key path of the norm of what it makes, with `scale` and `bias`, or None.
    """

    name: str
    reads: str | None
    makes: str | None
    norm: str | None = None


Layers: TypeAlias = Sequence[Layer]
"""All layers of a model, in any order."""


def in_sequence(layers: Sequence[tuple[str, str | None]]) -> Layers:
    """Layers that follow one another, and then `head`.

    Args:
      layers: (name, its norm or None); the units of each are a group of that name.
    """
    names = [None, *(name for name, _ in layers)]
    found = [
        Layer(name, reads, name, norm) for reads, (name, norm) in zip(names, layers)
    ]
    return [*found, Layer("head", names[-1], None)]


# --- of a model -----------------------------------------------------------------------


def of_params(model: Any, params: Params) -> dict[str, tuple[Axis, ...]]:
    """The axes of all parameters of a model.

    Args:
      model: a model of `lottery_jax.models`, or any other with a method `unit_plan()`
        that returns its `Layers`.
      params: its parameters, full or without their dead units, or their shapes.

    Returns:
      For each parameter, by its key path, one `Axis` per dimension.

    Raises:
      ValueError: a model that does not declare its units, or parameters that are not
        those of its layers; names the leaf.
    """
    if not hasattr(model, "unit_plan"):
        raise ValueError(
            f"model={type(model).__name__}; it must declare its units by a method "
            "unit_plan(), as every model of lottery_jax does"
        )
    layers: Layers = model.unit_plan()
    leaves = trees.by_path(params)
    for layer in layers:
        if f"{layer.name}/kernel" not in leaves:
            raise ValueError(
                f"params={list(leaves)}; there must be '{layer.name}/kernel', of a layer "
                "of the model"
            )
    made = {layer.makes: leaves[f"{layer.name}/kernel"].shape[-1] for layer in layers}
    axes: dict[str, tuple[Axis, ...]] = {}
    for layer in layers:
        *window, reads, _ = leaves[f"{layer.name}/kernel"].shape
        repeats = 1 if layer.reads is None else max(1, reads // made[layer.reads])
        axes[f"{layer.name}/kernel"] = (
            *(Axis(None) for _ in window),
            Axis(layer.reads, repeats),
            Axis(layer.makes),
        )
        per_unit = [f"{layer.name}/bias"]
        if layer.norm is not None:
            per_unit += [f"{layer.norm}/scale", f"{layer.norm}/bias"]
        axes |= {path: (Axis(layer.makes),) for path in per_unit}
    for path in leaves:
        if path not in axes:
            raise ValueError(
                f"params: leaf {path!r}; it must be the kernel, bias or norm of one of "
                f"the model's layers, {[layer.name for layer in layers]}"
            )
    return {path: axes[path] for path in leaves}


def of_state(
    model: Any, params: Params, model_state: ModelState
) -> dict[str, tuple[Axis, ...]]:
    """The axes of all leaves of a model state: those of the norm each belongs to.

    Args:
      model: see `of_params`.
      params: see `of_params`.
      model_state: its BatchNorm statistics or their shapes, `{"batch_stats": {...}}`; may
        be empty.

    Returns:
      For each leaf one `Axis` per dimension, by the state's own key paths
      ("batch_stats/stem_norm/mean").

    Raises:
      ValueError: see `of_params`; or a leaf that is no statistic of a norm.
    """
    axes = of_params(model, params)
    found = {}
    for path in trees.paths(model_state):
        collection, _, rest = path.partition("/")
        norm, _, statistic = rest.rpartition("/")
        known = collection == "batch_stats" and statistic in ("mean", "var")
        if not known or f"{norm}/scale" not in axes:
            raise ValueError(
                f"model_state: leaf {path!r}; it must be batch_stats/NORM/mean or "
                "batch_stats/NORM/var, with a NORM that has a scale in params"
            )
        found[path] = axes[f"{norm}/scale"]
    return found


# --- of any tree ----------------------------------------------------------------------


def sizes(axes: Axes, tree: PyTree) -> dict[str, int]:
    """The number of units of every group that occurs in a tree.

    Args:
      axes: of every leaf of the tree (of others, too, if you like).
      tree: arrays or shapes, of one network; may be traced.

    Raises:
      ValueError: axes that do not fit the tree, or leaves that do not agree; names the
        leaf.
    """
    found: dict[str, int] = {}
    for path, leaf in trees.by_path(tree).items():
        shape = np.shape(leaf)
        if path not in axes:
            raise ValueError(
                f"axes={list(axes)}; there must be those of leaf {path!r}, too"
            )
        if len(axes[path]) != len(shape):
            raise ValueError(
                f"axes[{path!r}] has {len(axes[path])} entries; it must have one for each "
                f"dimension of {shape} (one network at a time, without a replica axis)"
            )
        for i, (axis, size) in enumerate(zip(axes[path], shape)):
            if axis.group is None:
                continue
            n, rest = divmod(size, axis.repeats)
            if rest:
                raise ValueError(
                    f"axes[{path!r}][{i}].repeats={axis.repeats}; it must divide {size}, "
                    "the size of that axis"
                )
            if found.setdefault(axis.group, n) != n:
                raise ValueError(
                    f"leaf {path!r} has shape {shape}, {n} units of group "
                    f"{axis.group!r}; it must have {found[axis.group]}, like the leaves "
                    "before it"
                )
    return found


def take(axes: Axes, tree: PyTree, units: Mapping[str, Any]) -> PyTree:
    """The part of a tree that belongs to some units, in their order.

    For parameters, a mask, a model state, or a part of an optimizer's state with the
    structure of params (`opt_state[0].mu` of Adam). All units in another order renumber a
    network; some of them in their old order make it smaller.

    Args:
      axes: of every leaf of the tree.
      tree: arrays of one network, NumPy's or JAX's; may be traced. Any dtype.
      units: for each group that occurs in the tree the units to take, int `[m]`, not
        traced.

    Returns:
      The tree with `out[i] = in[units[i]]` along every axis of a group, in each repeat.
      Structure and dtypes stay; JAX arrays stay JAX arrays.

    Raises:
      ValueError: axes that do not fit the tree, or a group without units or with some
        that it does not have.
    """
    _check_units(units, sizes(axes, tree))

    def leaf(path: str, x: Any) -> Any:
        for i, axis in enumerate(axes[path]):
            if axis.group is not None:
                places = axis.places(units[axis.group], x.shape[i])
                x = (np if isinstance(x, np.ndarray) else jnp).take(x, places, axis=i)
        return x

    return _on_host(leaf, tree)


def put(axes: Axes, tree: PyTree, units: Mapping[str, Any], part: PyTree) -> PyTree:
    """The tree with a part of it replaced: the way back from `take`.

    Args:
      axes: of every leaf of the tree.
      tree: the full arrays, NumPy's or JAX's; not traced.
      units: for each group the units that the part holds, int `[m]`, all different.
      part: structure of the tree; the arrays of those units.

    Returns:
      The tree `out` with `take(axes, out, units)` equal to the part, bit for bit, and
      everything else as it was. Dtypes are the tree's.

    Raises:
      ValueError: axes that do not fit the tree, units that a group does not have, or a
        part of another structure or of other shapes; names the leaf.
    """
    _check_units(units, sizes(axes, tree))

    def places(path: str, shape: Sequence[int]) -> list[np.ndarray]:
        return [
            np.arange(size)
            if axis.group is None
            else axis.places(units[axis.group], size)
            for axis, size in zip(axes[path], shape)
        ]

    def room(path: str, x: Any) -> jax.ShapeDtypeStruct:
        found = places(path, np.shape(x))
        return jax.ShapeDtypeStruct(tuple(map(len, found)), x.dtype)

    wanted = trees.map_by_path(room, tree)
    trees.same(part, wanted, ("the part", "its place in the tree"))
    new = trees.by_path(part)

    def leaf(path: str, x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[np.ix_(*places(path, x.shape))] = np.asarray(new[path])
        return x

    return _on_host(leaf, tree)


def _on_host(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """Maps over (key path, leaf), by NumPy unless it is traced.

    Every leaf has another shape, and for each a device would compile an operation.
    """

    def leaf(name: str, x: Any) -> Any:
        if isinstance(x, jax.core.Tracer):
            return function(name, x)
        out = function(name, np.asarray(x))
        return jnp.asarray(out) if isinstance(x, jax.Array) else out

    return trees.map_by_path(leaf, tree)


def _check_units(units: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    for group, n in counts.items():
        if group not in units:
            raise ValueError(
                f"units={list(units)}; there must be those of group {group!r}, too"
            )
        index = np.asarray(units[group])
        whole = index.ndim == 1 and index.dtype.kind in "iu"
        if not whole or index.size and not 0 <= index.min() <= index.max() < n:
            raise ValueError(
                f"units[{group!r}]={index.tolist()}; it must be a list of integers of "
                f"[0, {n})"
            )


# --- narrower networks ----------------------------------------------------------------


def narrow(
    axes: Axes,
    params: Params,
    count: int,
    *,
    fan: Literal["fan_in", "fan_avg"] = "fan_in",
) -> tuple[Params, Mask]:
    """A narrower dense network inside the full shapes: the first units of each group.

    It computes what the narrow network alone computes: units beyond the widths have no
    weights in or out, so their biases and norms reach nothing. Kernels and biases are
    rescaled to their law at the narrow fans.

    All widths shrink by one factor; single units are then added or taken where that comes
    closest to the count.

    Args:
      axes: from `of_params`.
      params: a draw of the full network.
      count: number of kernel weights wanted. At least one unit of each group stays.
      fan: what the variance of a kernel is divided by, "fan_in" or "fan_avg" (the mean of
        fan-in and fan-out: Glorot). Biases are U(+-1 / sqrt(fan_in)), or zeros.

    Returns:
      The rescaled parameters, not masked, and the mask.

    Raises:
      ValueError: axes that do not fit params, or another fan.

    References:
      Ma et al. 2021, condition 2 (the small dense network).
    """
    errors.one_of("fan", fan, ("fan_in", "fan_avg"))
    leaves = trees.by_path(params)
    widths = _narrow_widths(axes, params, count)

    def present(axis: Axis, size: int) -> np.ndarray:
        out = np.ones(size, bool)
        if axis.group is not None:
            out[:] = False
            out[axis.places(np.arange(widths[axis.group]), size)] = True
        return out

    def share(path: str, dimension: int) -> float:
        found = present(axes[path][dimension], leaves[path].shape[dimension])
        return float(found.mean())

    def rescaled(path: str, leaf: Any) -> Any:
        if _is_kernel(path):
            if fan == "fan_in":
                return leaf / math.sqrt(share(path, -2))
            before = leaf.shape[-2] + leaf.shape[-1]
            after = leaf.shape[-2] * share(path, -2) + leaf.shape[-1] * share(path, -1)
            return leaf * math.sqrt(before / after)
        kernel = path.rpartition("/")[0] + "/kernel"
        if path.endswith("bias") and kernel in leaves:
            return leaf / math.sqrt(share(kernel, -2))
        return leaf

    def kept(path: str, leaf: Any) -> Any:
        grid = np.ones(leaf.shape, bool)
        if _is_kernel(path):
            for i, (axis, size) in enumerate(zip(axes[path], leaf.shape)):
                grid &= present(axis, size).reshape(-1, *[1] * (leaf.ndim - 1 - i))
        return jnp.asarray(grid)

    structure = jax.tree.structure(params)
    out, mask = (
        jax.tree.unflatten(structure, [f(path, leaf) for path, leaf in leaves.items()])
        for f in (rescaled, kept)
    )
    return out, mask


def _is_kernel(path: str) -> bool:
    return path.endswith("kernel")


def _narrow_widths(axes: Axes, params: Params, count: int) -> dict[str, int]:
    """The number of units of each group, between 1 and all, with about `count` weights."""
    full = sizes(axes, params)
    kernels = {
        path: np.shape(leaf)
        for path, leaf in trees.by_path(params).items()
        if _is_kernel(path)
    }

    def weights(widths: Mapping[str, int]) -> int:
        return sum(
            math.prod(
                size if axis.group is None else widths[axis.group] * axis.repeats
                for axis, size in zip(axes[path], shape)
            )
            for path, shape in kernels.items()
        )

    def scaled(factor: float) -> dict[str, int]:
        return {g: min(n, max(1, round(factor * n))) for g, n in full.items()}

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if weights(scaled(middle)) <= count else (low, middle)
        )
    widths = scaled(low)
    while True:
        moves = [{**widths, g: widths[g] + d} for g in widths for d in (-1, 1)]
        if len(full) <= 8:  # in shallow networks one unit is many weights
            steps = (-3, -2, -1, 0, 1, 2, 3)
            moves = [
                {**widths, g: widths[g] + d, h: widths[h] + e}
                for g, h in itertools.combinations_with_replacement(widths, 2)
                for d, e in itertools.product(steps, steps)
            ]
        moves = [m for m in moves if all(1 <= m[g] <= full[g] for g in full)]
        best = min(moves, key=lambda w: abs(weights(w) - count), default=widths)
        if abs(weights(best) - count) >= abs(weights(widths) - count):
            return widths
        widths = best
