"""Tickets without their dead units: smaller dense arrays, and sparse ones, for use.

A unit (a neuron, a channel) is *dead* if no path of surviving weights leads from it to the
outputs. `shrink` removes dead units with everything that indexes them: their kernels'
columns and rows, biases, norms and running statistics. `expand` puts the rest back.

**Why this is exact.** Let D be the set of dead units. Every surviving weight that reads a
unit of D makes a unit of D, else there would be a path; off the mask weights are 0.

- *Function.* A unit outside D therefore gets 0 times finite numbers from D. Biases, ReLU,
  pooling, flattening and BatchNorm act on each unit alone and a residual connection ties
  units of one group, so nothing else mixes units: what D holds reaches no output.
- *Gradients.* Outputs do not depend on what D holds, and backpropagation finds exactly
  that: the gradient in a unit of D is a sum of products with weights that are 0 or with
  gradients in other units of D, so exactly 0, beginning at the outputs. Hence the gradients
  in all that is made for D alone (incoming weights, biases, scales) are exactly 0. A
  surviving weight outside reads and makes units outside D, and its gradient is a product of
  an activation and a gradient that D does not change. (Weights *out of* D have gradients;
  they are off the mask, where `transforms.masked` drops them, or lead into D.)

Equal means equal up to the order of summation: sums over fewer terms may be rounded in
another order. Activations must be finite: 0 times infinity is nan.

**What that means for training.** One rule per weight (SGD, momentum, Adam) moves what is
left just as in the full network, if the moments are shrunk too (`units.take`). Weight decay
shrinks the incoming weights of dead units, which does not show in the function.
Clipping by the global norm adds zeros for them, unless decay is added before it. What
combines the weights of a leaf sees fewer of them: trust ratios (LARS, LAMB) and factored
or orthogonalised moments (Adafactor, Muon) are **not** reproduced.

**What stays.** A unit without incoming weights is a constant, not dead: its bias still
acts and is trained. Inputs stay, read or not, and so do outputs. A group (a layer, or the
residual stream of a stage) of which all units are dead keeps its first, so that no axis is
empty; nothing that counts reads it. What is left is as sparse as before wherever units
live: the smaller mask goes with it.

Shapes depend on the mask, so all of this runs on the host, on one network at a time; not
under `jit` or `vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import masks, trees, units
from lottery_jax.sparse import Masked as Masked
from lottery_jax.sparse import apply_bcoo as apply_bcoo
from lottery_jax.sparse import has_matrices, nbytes
from lottery_jax.sparse import to_bcoo as to_bcoo
from lottery_jax.types import Mask, ModelState, Network, Params, PyTree
from lottery_jax.units import take as take


class Subnetwork(NamedTuple):
    """A network and its mask.

    Attributes:
      params: the weights; 0 off the mask in everything that this module returns.
      mask: structure and shapes of `params`, bool; True = the weight survives.
      model_state: BatchNorm statistics, `{"batch_stats": ...}`, or empty.
    """

    params: Params
    mask: Mask
    model_state: ModelState = {}


class Compacted(NamedTuple):
    """A network without its dead units, and where it belongs.

    `model.apply({"params": small.params, **small.model_state}, x)` is the function of the
    full network, with the same model; `mask` goes to `transforms.masked`.

    Attributes:
      params: the smaller arrays; 0 off the mask.
      mask: structure and shapes of `params`, bool.
      model_state: the smaller statistics.
      kept: for each group the units that are left, ascending, int `[kept]`.
      widths: for each group the number of units in the full network.
    """

    params: Params
    mask: Mask
    model_state: ModelState
    kept: units.ByGroup
    widths: dict[str, int]


# --- which units ----------------------------------------------------------------------


def removable(axes: units.Axes, mask: Mask) -> units.ByGroup:
    """Which units are dead, and can go without changing the function or a gradient.

    Args:
      axes: of every leaf, from `units.of_params`. Leaves of two or more dimensions are
        kernels, which read the units of their last axis but one and make those of the
        last.
      mask: of one network, bool arrays. Not traced.

    Returns:
      For each group a bool array `[units]`, True = dead. At least one entry of each is
      False; where all units are dead that is the first.

    Raises:
      ValueError: axes that do not fit the mask; names the leaf.
    """
    widths = units.sizes(axes, mask)
    links: list[tuple[str | None, str | None, np.ndarray]] = []
    for path, leaf in trees.by_path(trees.host(mask)).items():
        if leaf.ndim >= 2:
            before, after = axes[path][-2:]
            # [window, repeats, units read, repeats, units made]; inputs and classes are
            # units here that no group holds.
            parts = leaf.reshape(
                -1,
                before.repeats,
                leaf.shape[-2] // before.repeats,
                after.repeats,
                leaf.shape[-1] // after.repeats,
            )
            tied = np.asarray(parts.any(axis=(0, 1, 3)))
            links.append((before.group, after.group, tied))
    # From the outputs backwards until nothing more is reached. Beginning with nothing, and
    # not with everything, finds also units that only read each other (in a residual stream).
    alive = {name: np.zeros(width, bool) for name, width in widths.items()}
    count = -1
    while count != (count := sum(int(a.sum()) for a in alive.values())):
        for reads, makes, tied in links:
            if reads is not None:
                reached = tied if makes is None else tied[:, alive[makes]]
                alive[reads] |= reached.any(axis=1)
    for group in alive.values():
        if not group.any():
            group[0] = True
    return {name: ~group for name, group in alive.items()}


# --- smaller and back -----------------------------------------------------------------


def shrink(model: nn.Module, network: Masked) -> Compacted:
    """Removes the dead units of a network: fewer weights, the same function.

    Args:
      model: a model of `lottery_jax.models`, of the full or an already smaller network.
      network: a ticket, a training state, `Subnetwork(params, mask)` ...; float arrays of
        one network, without a replica axis.

    Returns:
      The smaller network. Shrinking it again removes nothing more.

    Raises:
      ValueError: another kind of model, a mask that does not fit the weights, or leaves
        that are not those of the model; names the leaf.

    Example:
      >>> model = lj.models.make("mlp-3", num_classes=1)
      >>> ones = lambda *shape: jnp.ones(shape)
      >>> params = {
      ...     "dense_0": {"kernel": ones(4, 3), "bias": ones(3)},
      ...     "head": {"kernel": ones(3, 1), "bias": ones(1)},
      ... }
      >>> mask = lj.masks.ones_like(params)
      >>> mask["head"]["kernel"] = mask["head"]["kernel"].at[1].set(False)
      >>> small = lj.compact.shrink(model, lj.compact.Subnetwork(params, mask))
      >>> small.kept["dense_0"].tolist(), small.params["dense_0"]["kernel"].shape
      ([0, 2], (4, 2))
    """
    masks.check(network.mask, network.params)
    axes = units.of_params(model, network.params)
    state_axes = units.of_state(model, network.params, network.model_state)
    widths = units.sizes(axes, network.params)
    dead = removable(axes, network.mask)
    kept = {name: np.flatnonzero(~group) for name, group in dead.items()}
    small = _masked(
        *(
            take(axes, trees.host(tree), kept)
            for axes, tree in (
                (axes, network.params),
                (axes, network.mask),
                (state_axes, network.model_state),
            )
        )
    )
    return Compacted(*small, kept, widths)


def expand(
    model: nn.Module, compacted: Compacted, like: Masked | None = None
) -> Subnetwork:
    """Puts a smaller network back into the full shapes.

    What is left of the network (trained on or not) is copied to its places, bit for bit.
    The removed entries, which act on nothing, become those of `like`: so
    `expand(model, shrink(model, network), like=network)` is `network`, masked, bit for
    bit. Without `like` they become 0 (variances 1), and the mask there is False in
    kernels, so that weights which led nowhere no longer count as survivors, and True in
    biases and norms, as everywhere.

    Args:
      model: the one it was shrunk with.
      compacted: from `shrink`; params and model state may have changed since.
      like: the full network that the removed entries are taken from.

    Returns:
      The full network, masked.

    Raises:
      ValueError: another kind of model; a mask that does not fit the weights, or a
        network that does not fit `kept` or `like`; names the leaf.
    """
    masks.check(compacted.mask, compacted.params)
    axes = units.of_params(model, compacted.params)
    state_axes = units.of_state(model, compacted.params, compacted.model_state)
    there = units.sizes(axes, compacted.params)
    for group, kept in compacted.kept.items():
        if len(kept) != there.get(group):
            raise ValueError(
                f"kept[{group!r}] has {len(kept)} units; it must have "
                f"{there.get(group)}, as the params have"
            )

    def full(
        name: str, axes: units.Axes, filling: Callable[[str, int], bool | int]
    ) -> PyTree:
        """One tree in the full shapes: that of `like`, or one of fillings."""

        def empty(key: str, leaf: Any) -> np.ndarray:
            shape = tuple(
                size
                if axis.group is None
                else axis.repeats * compacted.widths[axis.group]
                for axis, size in zip(axes[key], leaf.shape)
            )
            return np.full(shape, filling(key, leaf.ndim), leaf.dtype)

        small = getattr(compacted, name)
        out = trees.map_by_path(empty, small)
        if like is not None:
            names = (f"like.{name}", "the full network")
            out = trees.fitted(trees.host(getattr(like, name)), out, names)
        return units.put(axes, out, compacted.kept, small)

    return _masked(
        full("params", axes, lambda path, ndim: 0),
        full("mask", axes, lambda path, ndim: ndim < 2),
        full("model_state", state_axes, lambda path, ndim: path.endswith("/var")),
    )


def _masked(params: Params, mask: Mask, model_state: ModelState) -> Subnetwork:
    """A network of NumPy arrays as one of JAX arrays, 0 off the mask.

    By NumPy, because every network is of other shapes, and for each of them a device would
    compile an operation.
    """
    params = jax.tree.map(lambda m, p: np.where(m, p, np.zeros_like(p)), mask, params)
    return Subnetwork(*jax.tree.map(jnp.asarray, (params, mask, model_state)))


class Saving(NamedTuple):
    """What removing the dead units saves, in weights of the prunable leaves.

    Attributes:
      before: prunable weights of the full network, dead and alive.
      after: those of the smaller one.
      surviving_before: weights on the mask.
      surviving_after: those on the smaller mask; the others led nowhere.
    """

    before: int
    after: int
    surviving_before: int
    surviving_after: int

    @property
    def share(self) -> float:
        """The share of the full network's prunable weights that is gone, in [0, 1)."""
        return 1 - self.after / self.before


def saving(
    network: Masked, compacted: Masked, prunable: masks.PrunableLike = None
) -> Saving:
    """Counts the weights before and after.

    Args:
      network: the full network.
      compacted: the smaller one.
      prunable: which leaves count; a pytree or a function, as in `masks.count`.
    """
    whole = [masks.total(n.mask, prunable) for n in (network, compacted)]
    alive = [int(masks.count(n.mask, prunable)) for n in (network, compacted)]
    return Saving(*whole, *alive)


# --- for inference --------------------------------------------------------------------


def export_dense(model: nn.Module, network: Masked) -> Network:
    """The weights and statistics to infer with: without dead units, 0 off the mask.

    Args:
      model: see `shrink`.
      network: see `shrink`.

    Returns:
      What `model.apply({"params": params, **model_state}, x)` takes.

    Raises:
      ValueError: see `shrink`.
    """
    small = shrink(model, network)
    return Network(small.params, small.model_state)


class Sizes(NamedTuple):
    """Bytes of the parameters of a network (without its model state) in several forms.

    Attributes:
      dense: full arrays, zeros included.
      compacted: arrays without the dead units.
      bcoo: sparse kernels without the dead units, indices included, and dense biases;
        None for models that are no `MLP`.
      packed: one bit per weight of the full network and the values of the survivors, which
        is what a stored ticket holds (`tickets.save`); it must be unpacked to be used.
    """

    dense: int
    compacted: int
    bcoo: int | None
    packed: int


def sizes(model: nn.Module, network: Masked, index_dtype: Any = jnp.int32) -> Sizes:
    """The bytes of a network in each form.

    Args:
      model: see `shrink`.
      network: see `shrink`.
      index_dtype: see `to_bcoo`.

    Raises:
      ValueError: see `shrink` and `to_bcoo`.
    """
    small = shrink(model, network)
    bcoo = None
    if has_matrices(model):
        bcoo = nbytes(to_bcoo(model, small, index_dtype))
    values = sum(
        int(np.sum(mask)) * leaf.dtype.itemsize
        for mask, leaf in zip(
            jax.tree.leaves(network.mask), jax.tree.leaves(network.params)
        )
    )
    return Sizes(
        nbytes(network.params),
        nbytes(small.params),
        bcoo,
        nbytes(masks.pack(network.mask).bits) + values,
    )
