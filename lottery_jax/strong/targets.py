"""Target networks: a chain of matrices with ReLU between them, and no biases.

    f(x) = W_L' relu(... relu(W_1' x)),   W_l of shape [d_(l-1), d_l], as Flax has kernels

Biases are matrices, too, once the inputs have a constant 1 beside them: `constant=True`
adds a row to every matrix, and hands the 1 on from layer to layer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lottery_jax import errors, trees
from lottery_jax.types import Array, Params

Layers = tuple[np.ndarray, ...]

_PROBES = 64


def layers(
    params: Params | Sequence[Any],
    *,
    constant: bool = False,
    apply: Callable[..., Any] | None = None,
) -> Layers:
    """The matrices of a target network, in order; says what does not fit.

    Args:
      params: a list of matrices `[in, out]`, or a dict of layers, each a dict of `kernel`
        and perhaps `bias`, as `lottery_jax.models.MLP` has them. Layers are in the order of
        their names, numbers by their value.
      constant: whether biases become weights of a constant input, the last one: the
        target then takes `with_constant(x)`.
      apply: the network that they belong to, `apply(params, x) -> outputs`: what it says
        of some random inputs is compared with a chain of ReLU layers.

    Returns:
      float32 `[in, out]` each.

    Raises:
      ValueError: no dense layers, shapes that do not chain, numbers that are not finite,
        biases without `constant`, or an `apply` that computes something else; names it.
    """
    errors.flag("constant", constant)
    kernels, biases = _taken(params)
    for name, kernel in kernels.items():
        if kernel.ndim != 2 or not kernel.size:
            raise errors.wrong(
                f"{name}.shape", kernel.shape, "[in, out], none of them 0"
            )
        if not np.isfinite(kernel).all():
            raise errors.wrong(name, "nan or an infinity", "finite numbers alone")
    pairs = list(kernels.items())
    for (before, a), (name, b) in zip(pairs, pairs[1:]):
        if b.shape[0] != a.shape[1]:
            must = f"{a.shape[1]}, the outputs of {before}: layers are in a row"
            raise errors.wrong(f"{name}.shape[0]", b.shape[0], must)
    for name, bias in biases.items():
        if bias.shape != (kernels[name].shape[1],):
            must = f"{(kernels[name].shape[1],)}, that of its layer"
            raise errors.wrong(f"bias of {name}: shape", bias.shape, must)
        if not np.isfinite(bias).all():
            raise errors.wrong(
                f"bias of {name}", "nan or an infinity", "finite numbers"
            )
        if bias.any() and not constant:
            must = (
                "0: pass constant=True, which makes biases weights of a constant input"
            )
            raise errors.wrong(
                f"bias of {name}", f"up to {np.abs(bias).max():.3g}", must
            )
    out = tuple(kernels.values())
    if constant:
        zeros = {name: np.zeros(k.shape[1], np.float32) for name, k in pairs}
        out = _with_constant(out, list((zeros | biases).values()))
    if apply is not None:
        _same_function(params, out, constant, apply)
    return out


def _taken(params: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Kernels and biases by the names of their layers, in order."""
    trees.check_arrays(params, "params")
    if isinstance(params, Mapping):
        if set(params) == {"params"}:
            params = params["params"]
        names = sorted(params, key=_natural)
        for name in names:
            own = params[name]
            if not isinstance(own, Mapping) or not {"kernel"} <= set(own) <= {
                "kernel",
                "bias",
            }:
                found = sorted(own) if isinstance(own, Mapping) else errors.shown(own)
                must = "a dense layer: a dict of kernel and perhaps bias"
                raise errors.wrong(f"params[{name!r}]", found, must)
        kernels = {name: params[name]["kernel"] for name in names}
        biases = {n: params[n]["bias"] for n in names if "bias" in params[n]}
    else:
        must = "a list of matrices, or a dict of dense layers"
        given = errors.several("params", params, must)
        kernels = {f"params[{i}]": matrix for i, matrix in enumerate(given)}
        biases = {}
    if not kernels:
        raise errors.wrong("params", "empty", "one layer or more")
    return tuple(  # type: ignore[return-value]
        {name: np.asarray(x, np.float32) for name, x in some.items()}
        for some in (kernels, biases)
    )


def _natural(name: str) -> list[Any]:
    """`dense_10` after `dense_9`, and `head` after both."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)]


def _with_constant(kernels: Sequence[np.ndarray], biases: Sequence[Any]) -> Layers:
    out = []
    for i, (kernel, bias) in enumerate(zip(kernels, biases)):
        rows = np.concatenate([kernel, bias[None].astype(np.float32)])
        if i + 1 < len(kernels):  # the 1 is handed on
            column = np.zeros((len(rows), 1), np.float32)
            column[-1] = 1.0
            rows = np.concatenate([rows, column], 1)
        out.append(rows)
    return tuple(out)


def with_constant(x: Any) -> np.ndarray:
    """Inputs `[B, d]` with a 1 beside them, `[B, d + 1]`, in their dtype."""
    x = np.asarray(x)
    return np.concatenate([x, np.ones((len(x), 1), x.dtype)], 1)


def forward(matrices: Sequence[Any], x: Any) -> Any:
    """A chain of matrices with ReLU between them.

    Args:
      matrices: `[in, out]` each.
      x: `[B, in]`. NumPy's arrays are multiplied by NumPy, in their own precision.

    Returns:
      `[B, out]`.
    """
    relu = jax.nn.relu if isinstance(x, jax.Array) else _positive
    for i, matrix in enumerate(matrices):
        x = x @ matrix
        if i + 1 < len(matrices):
            x = relu(x)
    return x


def _positive(x: Any) -> Any:
    return x.clip(0)


def _same_function(
    params: Any, chain: Layers, constant: bool, apply: Callable[..., Any]
) -> None:
    """Whether a network is the chain of ReLU layers that it is taken for."""
    inputs = chain[0].shape[0] - constant
    random = np.random.default_rng(0)
    x = random.standard_normal((_PROBES, inputs)).astype(np.float32)
    found = np.asarray(apply(params, x), np.float64)
    x64 = np.asarray(with_constant(x) if constant else x, np.float64)
    expected = forward([m.astype(np.float64) for m in chain], x64)
    if found.shape != expected.shape:
        raise errors.wrong("apply(params, x).shape", found.shape, f"{expected.shape}")
    # Rounding is relative to the sizes of what is added up.
    size = forward([np.abs(m.astype(np.float64)) for m in chain], np.abs(x64))
    if (far := np.abs(found - expected) > 1e-3 * size + 1e-6).any():
        at = tuple(map(int, np.argwhere(far)[0]))
        raise errors.wrong(
            f"apply(params, x)[{at[0]}, {at[1]}]",
            f"{found[at]:.4g}",
            f"{expected[at]:.4g}, what its matrices with ReLU between them say: the "
            "constructions know dense layers and ReLU alone",
        )


def from_params(params: Mapping[str, Mapping[str, Array]]) -> list[Array]:
    """The kernels of a dict of layers in their order, as they are."""
    return [params[name]["kernel"] for name in sorted(params, key=_natural)]


def as_params(matrices: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """A dict of layers, `dense_0`, ... and `head`, of `kernel` each."""
    names = [f"dense_{i}" for i in range(len(matrices) - 1)] + ["head"]
    return {name: {"kernel": matrix} for name, matrix in zip(names, matrices)}


def apply(params: Params, x: Any) -> Array:
    """A dense ReLU network without biases: what it says of `x`.

    Args:
      params: a dict of layers with a `kernel` each, as `as_params` makes them.
      x: `[B, ...]`; axes after the first are flattened.

    Returns:
      `[B, out]`.
    """
    x = jax.numpy.asarray(x)
    return forward(from_params(params), x.reshape(x.shape[0], -1))
