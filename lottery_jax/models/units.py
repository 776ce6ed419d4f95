"""Which axes of which parameters belong to the same units, and narrower networks.

A unit is a neuron or a channel. It is one index of the kernel, bias and norm that produce
it and of every kernel that reads it; a residual stream ties the units of a whole stage.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax.models.conv import ConvNet
from lottery_jax.models.mlp import MLP, ResidualMLP
from lottery_jax.models.resnet import ResNet
from lottery_jax.models.vgg import VGG
from lottery_jax.types import Mask, ModelState, Params


class Axis(NamedTuple):
    """One axis of a parameter.

    Attributes:
      group: name of the group of units that it indexes, or None for inputs, classes and
        the window of a convolution.
      repeats: how often the group is repeated along the axis; unit u of n is found at u,
        n + u, 2n + u ... (a flattened image has one repeat per pixel).
    """

    group: str | None
    repeats: int = 1


Axes = dict[str, tuple[Axis, ...]]
"""The axes of every parameter, by its key path."""

Plan = list[tuple[str, str | None, str | None]]
"""(layer, units it reads, units it makes); None for inputs and classes."""


def units(model: nn.Module, params: Params) -> Axes:
    """The axes of all parameters of a model of this package.

    Args:
      model: an `MLP`, `ResidualMLP`, `ConvNet`, `VGG` or `ResNet`.
      params: its parameters or their shapes.

    Returns:
      For each parameter one `Axis` per dimension.

    Raises:
      ValueError: another kind of model.
    """
    plan: Plan
    match model:
        case ResidualMLP():
            plan = [("dense_0", None, "stream"), ("dense_1", "stream", "stream")]
            plan.append(("head", "stream", None))
        case MLP() | ConvNet() | VGG():
            names = sorted(
                (n for n in params if n != "head" and not n.startswith("norm_")),
                key=lambda n: (n.startswith("dense_"), int(n.rsplit("_", 1)[1])),
            )
            plan = [(n, before, n) for before, n in zip([None, *names], names)]
            plan.append(("head", names[-1] if names else None, None))
        case ResNet():
            plan = _residual(params)
        case _:
            raise ValueError(
                f"units: {type(model).__name__} is no model of lottery_jax"
            )
    return _axes(params, plan)


def state_units(model: nn.Module, params: Params, model_state: ModelState) -> Axes:
    """The axes of all leaves of a model state: those of the norm each belongs to.

    Args:
      model: see `units`.
      params: its parameters or their shapes.
      model_state: its BatchNorm statistics or their shapes, `{"batch_stats": {...}}`; may
        be empty.

    Returns:
      For each leaf one `Axis` per dimension, by the state's own key paths
      ("batch_stats/stem_norm/mean").

    Raises:
      ValueError: another kind of model, or a leaf that is no statistic of a norm.
    """
    axes = units(model, params)
    found: Axes = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(model_state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        collection, _, rest = name.partition("/")
        norm, _, statistic = rest.rpartition("/")
        known = collection == "batch_stats" and statistic in ("mean", "var")
        if not known or f"{norm}/scale" not in axes:
            raise ValueError(
                f"state_units: model_state leaf {name!r} is no statistic of a norm of "
                "params; valid are batch_stats/NORM/mean and batch_stats/NORM/var, with "
                "a NORM that has a scale in params"
            )
        found[name] = axes[f"{norm}/scale"]
    return found


def _residual(params: Params) -> Plan:
    """(layer, units it reads, units it makes) for every convolution and the head."""
    plan: Plan = [("stem", None, "stem")]
    stream = "stem"
    blocks = sorted(
        (n for n in params if n.startswith("stage_")),
        key=lambda n: tuple(int(i) for i in re.findall(r"\d+", n)),
    )
    for block in blocks:
        after = f"{block}" if "shortcut" in params[block] else stream
        convs = sorted(n for n in params[block] if n.startswith("conv_"))
        inner = [stream, *(f"{block}/{n}" for n in convs[:-1]), after]
        plan += [(f"{block}/{n}", a, b) for n, a, b in zip(convs, inner, inner[1:])]
        if "shortcut" in params[block]:
            plan.append((f"{block}/shortcut", stream, after))
        stream = after
    return [*plan, ("head", stream, None)]


def _axes(params: Params, plan: Plan) -> Axes:
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    axes: Axes = {}
    sizes = {out: leaves[f"{name}/kernel"].shape[-1] for name, _, out in plan}
    for name, before, after in plan:
        shape = leaves[f"{name}/kernel"].shape
        repeats = shape[-2] // sizes[before] if before is not None else 1
        window = [Axis(None)] * (len(shape) - 2)
        axes[f"{name}/kernel"] = (*window, Axis(before, repeats), Axis(after))
        norm = re.sub(r"conv_(\d+)$", r"norm_\1", name)
        if norm == name:
            norm = f"{name}_norm"
        for path in (f"{name}/bias", f"{norm}/scale", f"{norm}/bias"):
            if path in leaves:
                axes[path] = (Axis(after),)
    return {path: axes[path] for path in leaves}


# --- narrower networks ----------------------------------------------------------------


def narrow_widths(
    axes: Axes, shapes: Mapping[str, tuple[int, ...]], count: int
) -> dict[str, int]:
    """Widths of a narrower network with about `count` weights in its kernels.

    All widths shrink by one factor; single units are then added or taken where that comes
    closest to the count.

    Args:
      axes: from `units`.
      shapes: of every parameter, by key path.
      count: number of kernel weights wanted, at least 1.

    Returns:
      The number of units of each group, between 1 and all.
    """
    kernels = {path: a for path, a in axes.items() if path.endswith("kernel")}
    full: dict[str, int] = {}
    for path, leaf_axes in axes.items():
        for axis, size in zip(leaf_axes, shapes[path]):
            if axis.group is not None:
                full[axis.group] = size // axis.repeats

    def weights(widths: Mapping[str, int]) -> int:
        return sum(
            math.prod(
                size if axis.group is None else widths[axis.group] * axis.repeats
                for axis, size in zip(leaf_axes, shapes[path])
            )
            for path, leaf_axes in kernels.items()
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


def narrow(model: nn.Module, params: Params, count: int) -> tuple[Params, Mask]:
    """A narrower dense network inside the full shapes: the first units of each layer.

    It computes what the narrow network alone computes: units beyond the widths have no
    weights in or out, so their biases and norms reach nothing. Kernels and biases are
    rescaled to the law at the narrow fan-in (and fan-out, for Glorot).

    Args:
      model: see `units`.
      params: a draw of the full network.
      count: number of kernel weights wanted.

    Returns:
      The rescaled parameters, not masked, and the mask.

    References:
      Ma et al. 2021, condition 2 (the small dense network).
    """
    axes = units(model, params)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
    shapes = {path: leaf.shape for path, (_, leaf) in zip(paths, leaves)}
    widths = narrow_widths(axes, shapes, count)
    glorot = model.choices.initializer == "glorot_normal"

    def kept(axis: Axis, size: int) -> np.ndarray:
        if axis.group is None:
            return np.ones(size, bool)
        return np.arange(size) % (size // axis.repeats) < widths[axis.group]

    out, mask = [], []
    for path, (_, leaf) in zip(paths, leaves):
        if path.endswith("kernel"):
            parts = [kept(axis, size) for axis, size in zip(axes[path], leaf.shape)]
            grid = np.ones(leaf.shape, bool)
            for i, part in enumerate(parts):
                grid &= part.reshape(-1, *[1] * (leaf.ndim - 1 - i))
            share_in, share_out = parts[-2].mean(), parts[-1].mean()
            if glorot:
                before = leaf.shape[-2] + leaf.shape[-1]
                after = leaf.shape[-2] * share_in + leaf.shape[-1] * share_out
                leaf = leaf * math.sqrt(before / after)
            else:
                leaf = leaf / math.sqrt(share_in)
            mask.append(jnp.asarray(grid))
        else:
            kernel = path.rpartition("/")[0] + "/kernel"
            if path.endswith("bias") and kernel in shapes:
                share = kept(axes[kernel][-2], shapes[kernel][-2]).mean()
                leaf = leaf / math.sqrt(share)  # U(+-1 / sqrt(fan_in)), or zeros
            mask.append(jnp.ones(leaf.shape, jnp.bool_))
        out.append(leaf)
    return jax.tree.unflatten(structure, out), jax.tree.unflatten(structure, mask)
