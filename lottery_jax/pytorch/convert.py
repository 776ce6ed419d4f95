"""Tickets from state dicts and state dicts from tickets, leaf by leaf, bit for bit."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, masks, trees, units
from lottery_jax.keys import of_seed
from lottery_jax.pytorch.names import check_same_function, modules
from lottery_jax.storage.state_dicts import StateDict
from lottery_jax.storage.tickets import Ticket
from lottery_jax.types import PyTree

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_COUNTER = "num_batches_tracked"


class Exported(NamedTuple):
    """A ticket as PyTorch has it.

    Attributes:
      weights: the state dict, float32 (and int64 counters); 0 off the mask.
      mask: int32 of 0 and 1 for the weight of every dense and convolutional layer.
    """

    weights: StateDict
    mask: StateDict


# --- what belongs to what -------------------------------------------------------------


class _Leaf(NamedTuple):
    """A leaf here and the tensor there."""

    ours: str  # its key path
    theirs: str
    shape: tuple[int, ...]  # here
    channels: int = 1  # that a kernel reads; a flattened image has pixels beside them

    @property
    def shape_there(self) -> tuple[int, ...]:
        *window, last = self.shape
        if not window:
            return (last,)
        return (last, window[-1], *window[:-1])

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        if array.ndim == 2:
            # [pixels, channels, out]: a flattened image is read channel by channel there.
            array = array.reshape(-1, self.channels, array.shape[-1]).transpose(2, 1, 0)
        elif array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        return np.ascontiguousarray(array).reshape(self.shape_there)

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        if array.ndim == 2:
            array = array.reshape(len(array), self.channels, -1).transpose(2, 1, 0)
        elif array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        return np.ascontiguousarray(array).reshape(self.shape)


class _Plan(NamedTuple):
    """A model here and there."""

    params: PyTree  # shapes
    model_state: PyTree
    leaves: list[_Leaf]  # of both, in PyTorch's order
    counters: dict[str, str]  # of batches: the tensor there, whose norm it is here

    @property
    def kernels(self) -> list[_Leaf]:
        return [leaf for leaf in self.leaves if len(leaf.shape) > 1]


def _plan(model: Any, shape: Any, names: Any) -> _Plan:
    found = modules(model, names)
    shape = errors.wholes("shape", shape, 1)
    if len(shape) not in (1, 3):
        must = "that of one input, (features,) or (height, width, channels)"
        raise errors.wrong("shape", shape, must)
    check_same_function(model, shape, names)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    try:
        variables = dict(jax.eval_shape(model.init, jax.eval_shape(of_seed, 0), x))
    except Exception as error:
        must = f"that of an input of {type(model).__name__}: {error}"
        raise errors.wrong("shape", shape, must) from error
    params = variables.pop("params")
    shapes = trees.by_path(params) | trees.by_path(variables)
    # A statistic is found by its norm's name, without that of its collection.
    paths = {path.partition("/")[2]: path for path in trees.paths(variables)}
    paths |= {path: path for path in trees.paths(params)}
    axes = units.of_params(model, params)
    leaves, counters = [], {}
    for layer, module in found.items():
        for leaf, name in _LEAVES.items():
            if path := paths.get(f"{layer}/{leaf}"):
                size, channels = shapes[path].shape, 1
                if leaf == "kernel":
                    reads = axes[path][-2]
                    of_input = reads.group is None
                    channels = shape[-1] if of_input else size[-2] // reads.repeats
                leaves.append(_Leaf(path, f"{module}.{name}", size, channels))
                if leaf == "var":
                    counters[f"{module}.{_COUNTER}"] = layer
    if rest := shapes.keys() - {leaf.ours for leaf in leaves}:
        must = f"one without {sorted(rest)}, of which PyTorch's networks have none"
        raise errors.wrong("model", type(model).__name__, must)
    return _Plan(params, variables, leaves, counters)


# --- import and export ----------------------------------------------------------------


def import_ticket(
    weights: Mapping[str, Any],
    mask: Mapping[str, Any] | None = None,
    *,
    model: Any,
    shape: Sequence[int],
    names: str | Mapping[str, str] = "open_lth",
    metadata: Mapping[str, Any] | None = None,
) -> Ticket:
    """A ticket of this library, from a state dict of PyTorch and its masks.

    Weights off the mask become 0, whatever they are there: open_lth masks weights before
    it computes and not after it updates, so its files can hold pruned weights that are
    not 0. How many were is noted.

    Args:
      weights: the state dict, float32: `read("model_ep160_it0.pth")`.
      mask: 0 or 1, of any dtype, for the weight of **every** dense and convolutional
        layer, as open_lth has it: `read("mask.pth")`. None for a dense network.
      model: the same network here: `lj.models.make("resnet-20", 10)`.
      shape: of one input here: `(height, width, channels)`, or `(features,)` for what is
        flat on both sides, in one order.
      names: one of `CONVENTIONS`, or the module of every layer (`modules`, `sequential`).
      metadata: where the ticket comes from, JSON-able; `tickets.provenance` builds it.

    Returns:
      The ticket, NumPy arrays in the structure of the model's variables. Its metadata are
      those given and `"pytorch"`: the names, the counters of batches that BatchNorm has
      there, and the number of weights off the mask that were not 0.

    Raises:
      ValueError: a tensor that is missing (counters may be), left over, of another shape
        or dtype or not finite, a variance below 0, a mask that does not fit or is not of
        0 and 1, a model that computes something else; names it there and here.
    """
    plan = _plan(model, shape, names)
    _check_names("weights", weights, plan.leaves, tuple(plan.counters))
    values = {leaf.ours: leaf.to_ours(_values(leaf, weights)) for leaf in plan.leaves}
    steps = {
        norm: _count(f"weights[{name!r}]", weights[name])
        for name, norm in plan.counters.items()
        if name in weights
    }
    kept: dict[str, np.ndarray] = {}
    if mask is not None:
        _check_names("mask", mask, plan.kernels)
        kept = {leaf.ours: leaf.to_ours(_kept(leaf, mask)) for leaf in plan.kernels}
    tree = trees.map_by_path(
        lambda p, x: kept.get(p, np.ones(x.shape, bool)), plan.params
    )
    zero = np.float32(0)
    off = sum(int(np.count_nonzero(values[path][~m])) for path, m in kept.items())
    params = trees.map_by_path(lambda p, m: np.where(m, values[p], zero), tree)
    state = trees.map_by_path(lambda p, _: values[p], plan.model_state)
    note = {
        "names": names if isinstance(names, str) else dict(names),
        _COUNTER: steps,
        "nonzero_off_mask": off,
    }
    return Ticket(tree, params, state, {**(metadata or {}), "pytorch": note})


def export_ticket(
    ticket: Ticket,
    *,
    model: Any,
    shape: Sequence[int],
    names: str | Mapping[str, str] = "open_lth",
) -> Exported:
    """The state dict and the masks of a ticket, to `write` and to load in PyTorch.

    open_lth reads them from `model_epE_itI.pth` and `mask.pth`. What was imported comes
    out bit for bit, but for weights off the mask, which are 0, and for counters of batches
    that were missing, which are 0 as well. A file of PyTorch has no place for
    `ticket.metadata`: keep them beside it.

    Args:
      ticket: of the model: `tickets.load(path)`.
      model: the network that it is a ticket of.
      shape: of one input here: `(height, width, channels)`, or `(features,)` for what is
        flat on both sides, in one order.
      names: one of `CONVENTIONS`, or the module of every layer (`modules`).

    Raises:
      ValueError: a ticket with other leaves, shapes or dtypes than the model, weights that
        are not finite, a mask with anything but kernels pruned, a model that computes
        something else there; names the leaf.
    """
    plan = _plan(model, shape, names)
    label = "the model's variables"
    params = trees.fitted(ticket.params, plan.params, ("ticket.params", label))
    mask = trees.fitted(ticket.mask, plan.params, ("ticket.mask", label))
    state = trees.fitted(
        ticket.model_state, plan.model_state, ("ticket.model_state", label)
    )
    masks.check(mask, params, "ticket.params")
    kept = {path: np.asarray(leaf) for path, leaf in trees.by_path(mask).items()}
    kernels = [leaf.ours for leaf in plan.kernels]
    for path, own in kept.items():
        if path not in kernels and not own.all():
            must = "all True: PyTorch's masks are those of kernels alone"
            raise errors.wrong(f"ticket.mask[{path!r}]", "False in places", must)
    values = trees.by_path(params) | trees.by_path(state)
    note = ticket.metadata.get("pytorch")
    steps = note.get(_COUNTER, {}) if isinstance(note, Mapping) else {}
    weights = {}
    for leaf in plan.leaves:
        array = np.asarray(values[leaf.ours])
        _check_numbers(f"ticket[{leaf.ours!r}]", array, leaf, f"{leaf.theirs!r} there")
        array = np.where(kept.get(leaf.ours, True), array, np.float32(0))
        weights[leaf.theirs] = leaf.to_theirs(array)
        module, _, name = leaf.theirs.rpartition(".")
        if name == "running_var":
            counter = f"{module}.{_COUNTER}"
            count = steps.get(plan.counters[counter], 0)
            weights[counter] = np.array(count, np.int64)
    return Exported(
        weights,
        {p.theirs: p.to_theirs(kept[p.ours]).astype(np.int32) for p in plan.kernels},
    )


def _check_names(
    field: str, given: Any, leaves: Sequence[_Leaf], more: Sequence[str] = ()
) -> None:
    """Raises a ValueError unless there is a tensor for every leaf and nothing else."""
    errors.is_a(field, given, Mapping, "a dict of arrays by name")
    wanted = {leaf.theirs: leaf.ours for leaf in leaves}
    lacks = [f"{name!r} ({wanted[name]})" for name in wanted if name not in given]
    extra = [repr(name) for name in given if name not in wanted and name not in more]
    if lacks or extra:
        raise ValueError(
            f"{field} lacks {', '.join(lacks) or 'nothing'} and has "
            f"{', '.join(extra) or 'nothing'} too much; it must have the tensors of the "
            "model, by the names there (and here)"
        )


def _values(leaf: _Leaf, weights: Mapping[str, Any]) -> np.ndarray:
    field = f"weights[{leaf.theirs!r}]"
    array = _array(field, weights[leaf.theirs])
    _check_numbers(field, array, leaf, f"{leaf.ours!r} here", leaf.shape_there)
    return array


def _kept(leaf: _Leaf, mask: Mapping[str, Any]) -> np.ndarray:
    field = f"mask[{leaf.theirs!r}]"
    array, other = _array(field, mask[leaf.theirs]), f"{leaf.ours!r} here"
    if array.shape != leaf.shape_there:
        raise errors.wrong(
            f"{field}.shape", array.shape, f"{leaf.shape_there}, {other}"
        )
    _check_all(field, array, (array == 0) | (array == 1), f"0 or 1, {other}")
    return array == 1


def _check_numbers(
    field: str,
    array: np.ndarray,
    leaf: _Leaf,
    other: str,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Raises a ValueError unless an array can be the leaf's; `shape` is the wanted one."""
    if shape is not None and array.shape != shape:
        raise errors.wrong(f"{field}.shape", array.shape, f"{shape}, {other}")
    if array.dtype != np.float32:
        raise errors.wrong(f"{field}.dtype", array.dtype, f"float32, {other}")
    _check_all(field, array, np.isfinite(array), f"finite, {other}")
    if leaf.theirs.endswith(".running_var"):
        _check_all(field, array, array >= 0, f"a variance, 0 or more, {other}")


def _check_all(field: str, array: np.ndarray, good: np.ndarray, must: str) -> None:
    if not good.all():
        place = tuple(map(int, np.argwhere(~good)[0]))
        raise errors.wrong(f"{field}{list(place)}", array[place], must)


def _count(field: str, value: Any) -> int:
    array = _array(field, value)
    if array.shape != () or array.dtype.kind not in "iu" or array < 0:
        raise errors.wrong(field, array, "a number of batches, a whole number []")
    return int(array)


def _array(field: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except Exception as error:
        must = f"an array that NumPy can read ({error})"
        raise errors.wrong(field, type(value).__name__, must) from error
    if array.dtype.kind not in "biuf":
        raise errors.wrong(field, errors.shown(value), "an array of numbers")
    return array
