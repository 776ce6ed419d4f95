"""Surviving weights as sparse matrices, for networks of dense layers, and what they take.

Part of `lottery_jax.compact`, which removes dead units first.
"""

import math
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import masks, models
from lottery_jax.types import Array, Mask, ModelState, Params, PyTree


class Masked(Protocol):
    """Anything with weights and a mask: a `tickets.Ticket`, a `TrainState`, a `Subnetwork`.

    Weights off the mask count as 0, whatever they are.
    """

    @property
    def params(self) -> Params:
        """The weights."""

    @property
    def mask(self) -> Mask:
        """Which of them survive."""

    @property
    def model_state(self) -> ModelState:
        """BatchNorm statistics, `{"batch_stats": ...}`, or empty."""


class SparseMLP(NamedTuple):
    """An MLP with sparse kernels, from `to_bcoo`; a pytree.

    Attributes:
      kernels: of each layer, the output layer last: BCOO matrices `[C_in, C_out]` with one
        entry per surviving weight, in row-major order.
      biases: dense, `[C_out]` each.
    """

    kernels: tuple[Any, ...]
    biases: tuple[Array, ...]


def to_bcoo(
    model: nn.Module, network: Masked, index_dtype: Any = jnp.int32
) -> SparseMLP:
    """The surviving weights of an MLP as sparse matrices (`jax.experimental.sparse`).

    Dead units are not removed: give it the result of `compact.shrink` for that.

    Args:
      model: an `MLP`.
      network: its weights and mask, full or shrunk.
      index_dtype: of the two indices per entry, an integer type.

    Returns:
      The network for `apply_bcoo`. An entry takes the bytes of its weight and of two
      indices: with float32 and int32 a kernel above a density of a third takes more bytes
      than the dense one.

    Raises:
      ValueError: a model that is no `MLP` (kernels of convolutions have four dimensions,
        BCOO products two), a mask that does not fit, or an index type that cannot hold the
        indices of a layer; names it.
    """
    from jax.experimental import sparse

    if not has_matrices(model):
        raise ValueError(
            f"model={type(model).__name__}; it must be an MLP with a linear head, whose "
            "kernels are matrices (convolutions and residual connections: export_dense)"
        )
    masks.check(network.mask, network.params)
    kernels, biases = [], []
    for name in [*(f"dense_{i}" for i in range(len(model.widths))), "head"]:
        kernel, mask = (
            np.asarray(tree[name]["kernel"]) for tree in (network.params, network.mask)
        )
        largest = max(kernel.shape) - 1
        if largest > jnp.iinfo(index_dtype).max:
            raise ValueError(
                f"index_dtype={jnp.dtype(index_dtype)}; it must hold {largest}, the "
                f"largest index of {name}/kernel"
            )
        places = np.argwhere(mask).astype(index_dtype)
        kernels.append(
            sparse.BCOO(
                (jnp.asarray(kernel[mask]), jnp.asarray(places)),
                shape=kernel.shape,
                indices_sorted=True,
                unique_indices=True,
            )
        )
        bias, mask = (
            np.asarray(tree[name]["bias"]) for tree in (network.params, network.mask)
        )
        biases.append(jnp.asarray(np.where(mask, bias, np.zeros_like(bias))))
    return SparseMLP(tuple(kernels), tuple(biases))


def apply_bcoo(network: SparseMLP, x: Array) -> Array:
    """The function of the MLP, by sparse products; works under `jit` and `vmap`.

    Args:
      network: from `to_bcoo`.
      x: `[B, ...]`, float.

    Returns:
      Logits `[B, num_classes]`.
    """
    x = x.reshape(x.shape[0], -1)
    for i, (kernel, bias) in enumerate(zip(network.kernels, network.biases)):
        x = jax.nn.relu(x) if i else x
        x = x @ kernel
        x = x + jnp.broadcast_to(bias, x.shape)
    return x


def has_matrices(model: nn.Module) -> bool:
    """Whether `to_bcoo` takes a model: whether it is an `MLP` with a linear head."""
    return isinstance(model, models.MLP) and model.choices.head == "linear"


def nbytes(tree: PyTree) -> int:
    """Bytes of all arrays of a pytree: of params, of a `SparseMLP`, of a packed mask."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )
