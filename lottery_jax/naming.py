"""What the name and the shape of a leaf say of it: is it a weight matrix, and which way up?

Linen, NNX, Haiku, Equinox and PyTorch call their weights differently and lay them out
differently. What they have in common is written here once; where names and shapes do not
say, the answer is None, and whoever asks has to be told.

Names are key paths (`trees.paths`), shapes those of all leaves of the tree by their names.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

Shapes = Mapping[str, tuple[int, ...]]

_KERNEL = re.compile(
    r"(\w+_)?kernel(_\w+)?"  # Linen and NNX
    r"|w(\d+|[a-z]|_\w+)?",  # Haiku, with its w_i and w_h; w1, Wq, but not wte
    re.IGNORECASE,
)
_WEIGHT = re.compile(  # Equinox and PyTorch, with weight_ih
    r"(\w+_)?weights?(_?\d+|_[ih]h\w*)?", re.IGNORECASE
)
_NO_WEIGHT = re.compile(
    r"(\w+_)?(bias|biases|scale|scales|offset)(_?\w{1,3})?", re.IGNORECASE
)
# Biases and norm scales if a weight matrix, or the other of the two, lies beside them.
_LETTERS = re.compile(r"b(_?\w{1,2})?|beta|gamma", re.IGNORECASE)
_NORM = re.compile(r"(\w*norm(alization)?|bn|ln|gn)(_?\d+|_\w)?", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|(^|_)(emb|pos|token)|table", re.IGNORECASE)
_PROJECTION = re.compile(r"\w*proj(ection)?(_?\d+)?", re.IGNORECASE)
_PLAIN_LAYER = re.compile(
    r"(conv|dense|linear)(?!.*(general|transpose))", re.IGNORECASE
)


def is_weight(name: str, shapes: Shapes) -> bool | None:
    """Whether a leaf is a weight matrix or a kernel; None if that is not known.

    Args:
      name: of the leaf.
      shapes: of all leaves.
    """
    shape = shapes[name]
    if len(shape) < 2:
        return False
    layer, own = _last_two(name)
    beside = _beside(name, shapes)
    if _NO_WEIGHT.fullmatch(own):
        return False
    if _LETTERS.fullmatch(own):
        of_norm = {"beta", "gamma"} <= {other.lower() for other in beside}
        of_layer = any(
            len(found) > len(shape) and _is_either(other)
            for other, found in beside.items()
        )
        return False if of_norm or of_layer else None
    if not _is_either(own):
        statistic = _NORM.fullmatch(layer) and own in ("mean", "var")
        return False if statistic else None
    if _EMBEDDING.search(own):
        return None
    if own.lower() not in ("weight", "weights"):
        # A norm's weights, stacked; or weights of what is called after one.
        return None if _NORM.search(own) else True
    # Equinox calls what linear layers, norms and embeddings hold `weight`.
    bias = _bias(beside)
    if _NORM.fullmatch(layer) and bias in (None, shape):
        return False
    if bias is None:
        return True if _PROJECTION.fullmatch(layer) else None
    return None if bias == shape else True


def input_axes(name: str, shapes: Shapes) -> tuple[int, ...] | None:
    """Which axes of a weight matrix are its inputs; None if that is not known.

    - `kernel` and `w` (Flax, Haiku) have inputs before outputs: `[window, in, out]`, or
      `[in, heads, features]` in the `query`, `key` and `value` of an attention, whose
      `out` has `[heads, features, out]`: heads and features together are its inputs.
    - `weight` (Equinox, PyTorch) is `[out, in, window]`.

    Axes before these, of stacked layers, are known by the bias, which has them too. Not
    known are three dimensions without a bias, transposed convolutions, a bias that fits
    in two ways or in none, and other names.

    Args:
      name: of the leaf, of two dimensions or more.
      shapes: of all leaves.

    Returns:
      Axes that are to be read as one, slowest first.
    """
    own = _last_two(name)[1]
    if _NO_WEIGHT.fullmatch(own) or _EMBEDDING.search(own):
        return None
    if _KERNEL.fullmatch(own):
        return _inputs_first(name, shapes)
    if _WEIGHT.fullmatch(own):
        return _outputs_first(name, shapes)
    return None


class Layout(NamedTuple):
    """What the axes of a weight matrix or kernel are, each counted from the first.

    Attributes:
      stack: axes of layers that are stacked in one array.
      window: those of a convolution.
      inputs: to be read as one, slowest first.
      outputs: likewise.
    """

    stack: tuple[int, ...]
    window: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def layout(name: str, shapes: Shapes) -> Layout | None:
    """What the axes of a weight matrix are; None where `fans` is.

    Args:
      name: of the leaf, of two dimensions or more.
      shapes: of all leaves.
    """
    axes = input_axes(name, shapes)
    if axes is None:
        return None
    ndim = len(shapes[name])
    if axes[0] > 0:  # outputs first, behind those of a stack
        (at,) = axes
        return Layout(
            tuple(range(at - 1)), tuple(range(at + 1, ndim)), axes, (at - 1,)
        )
    stacked = _stacked(name, shapes, axes)
    if stacked is None:
        return None
    inputs = tuple(a % ndim for a in axes)
    return Layout(
        tuple(range(stacked)),
        tuple(range(stacked, inputs[0])),
        inputs,
        tuple(range(inputs[-1] + 1, ndim)),
    )


def fans(name: str, shapes: Shapes) -> tuple[int, int] | None:
    """Fan in and fan out of a weight matrix, as initialisers count them; None if unknown.

    Windows of convolutions count in both; layers that are stacked in one array do in
    neither. Known where `input_axes` is, but for kernels without a bias of which some
    axes may be either, of a window or of a stack: those of three dimensions that are not
    called `conv...`, of four that are called `dense...` or `linear...`, of more.

    Args:
      name: of the leaf, of two dimensions or more.
      shapes: of all leaves.
    """
    found = layout(name, shapes)
    if found is None:
        return None
    shape = shapes[name]
    window, inputs, outputs = (
        math.prod(shape[a] for a in axes) for axes in found[1:]
    )
    return inputs * window, outputs * window


def _stacked(name: str, shapes: Shapes, axes: tuple[int, ...]) -> int | None:
    """How many axes of a kernel with inputs before outputs are those of stacked layers."""
    ndim, bias = len(shapes[name]), _bias(_beside(name, shapes))
    if bias is not None:
        return len(bias) + axes[-1] + 1
    if axes != (-2,):  # of an attention, which has no window
        return ndim + axes[0]
    layer = _last_two(name)[0]
    plain = re.match("(?i)dense|linear", layer)
    window = (
        ndim == 2
        or (ndim == 3 and re.match("(?i)conv", layer))
        or (ndim == 4 and not plain)
    )
    return 0 if window else None


def _inputs_first(name: str, shapes: Shapes) -> tuple[int, ...] | None:
    shape, bias = shapes[name], _bias(_beside(name, shapes))
    ndim = len(shape)
    layer, own = _last_two(name)
    above = name.removesuffix(f"{layer}/{own}")
    # As many heads and features come out of the queries as go into the output.
    query, out = (shapes.get(f"{above}{one}/{own}", ()) for one in ("query", "out"))
    if len(query) > 2 and query[-2:] == out[-3:-1]:
        if layer == "out" and (bias is None or len(bias) == ndim - 2):
            return (-3, -2)
        if layer in ("query", "key", "value") and bias in (None, shape[-2:]):
            return (-3,)
    if bias is None:
        # Of three dimensions it may be a dense layer of heads.
        known = _PLAIN_LAYER.match(layer) or ndim != 3
        special = re.search("(?i)transpose|einsum|general", layer)
        return (-2,) if known and not special else None
    if re.search("(?i)transpose", layer) and shape[-1] == shape[-2]:
        return None
    # The axes of a stack come first in the bias, those of the outputs last.
    outputs = [
        n
        for n in range(1, len(bias) + 1)
        if ndim > len(bias) and bias == shape[: len(bias) - n] + shape[ndim - n :]
    ]
    return (-outputs[0] - 1,) if len(outputs) == 1 else None


def _outputs_first(name: str, shapes: Shapes) -> tuple[int, ...] | None:
    shape, bias = shapes[name], _bias(_beside(name, shapes))
    ndim = len(shape)
    if bias is None:
        # Of three and five dimensions it may be a stack of dense layers or convolutions.
        return (1,) if ndim in (2, 4) else None
    found = {len(bias)} if len(bias) < ndim and bias == shape[: len(bias)] else set()
    # The bias of Equinox's convolutions has an axis of 1 for each of the window.
    found |= {
        lead
        for lead in range(1, ndim - 1)
        if bias == shape[:lead] + (1,) * (ndim - lead - 1)
    }
    return (found.pop(),) if len(found) == 1 else None


def _is_either(own: str) -> bool:
    return bool(_KERNEL.fullmatch(own) or _WEIGHT.fullmatch(own))


def _last_two(name: str) -> tuple[str, str]:
    """The layer of a leaf, and what it is called there."""
    parent, _, own = name.rpartition("/")
    return parent.rpartition("/")[2], own


def _beside(name: str, shapes: Shapes) -> Shapes:
    """The leaves of the same layer, by what they are called there."""
    parent = name.rpartition("/")[0]
    return {
        other.rpartition("/")[2]: shape
        for other, shape in shapes.items()
        if other.rpartition("/")[0] == parent
    }


def _bias(beside: Shapes) -> tuple[int, ...] | None:
    return next((beside[b] for b in ("bias", "biases", "b") if b in beside), None)
