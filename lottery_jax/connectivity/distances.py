"""The other rulers between two networks: distance, angle, disagreement.

None of them says what a path says: two networks may be far apart and connected (Frankle
et al. 2020, appendix). They are recorded beside it for comparison.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lottery_jax import keys, masks, streams, trees
from lottery_jax.connectivity import evaluation
from lottery_jax.execution import Execution, Where
from lottery_jax.training import checked, measured, windows
from lottery_jax.training.passes import in_groups
from lottery_jax.training.programs import program
from lottery_jax.training.rows import shared_data
from lottery_jax.types import Array, Mask, Network, Params, PyTree, Task


def l2(a: Params, b: Params, mask: Mask | None = None) -> Array:
    """Euclidean distance between two networks' weights, float `[]`.

    Args:
      a: weights of the first.
      b: weights of the second, of the same structure and shapes.
      mask: only these weights count; None for all.

    Raises:
      ValueError: trees that do not match; says at which leaf.
    """
    trees.same(a, b)
    difference = jax.tree.map(jnp.subtract, _wide(a), _wide(b))
    return jnp.sqrt(_inner(difference, difference, mask))


def angle(a: Params, b: Params, mask: Mask | None = None) -> Array:
    """Angle distance 2 * angle / pi, float `[]` in [0, 2].

    0 for weights that are multiples of each other, near 1 for unrelated ones (Maene et
    al. 2021, section 4). Compare networks on the mask that they share: what is 0 in both
    adds nothing.

    Args:
      a: weights of the first.
      b: weights of the second, of the same structure and shapes.
      mask: only these weights count; None for all.

    Raises:
      ValueError: trees that do not match; says at which leaf.
    """
    trees.same(a, b)
    norms = jnp.sqrt(_inner(a, a, mask) * _inner(b, b, mask))
    cosine = _inner(a, b, mask) / norms
    return 2 / jnp.pi * jnp.arccos(jnp.clip(cosine, -1, 1))


def _inner(a: Params, b: Params, mask: Mask | None) -> Array:
    if mask is not None:
        a, b = masks.apply(mask, a), masks.apply(mask, b)
    a, b = _wide(a), _wide(b)
    # Products, not `vdot`: on an accelerator its default rounds the operands.
    parts = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return functools.reduce(jnp.add, jax.tree.leaves(parts))


def _wide(tree: Params) -> Params:
    """Half precision as float32: sums over a million weights are no sums there."""

    def leaf(x: Array) -> Array:
        x = jnp.asarray(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    return jax.tree.map(leaf, tree)


def disagreement(a: ArrayLike, b: ArrayLike) -> Any:
    """Share of examples that two networks classify differently, in [0, 1].

    Args:
      a: classes, int `[..., examples]`, from `predictions`.
      b: classes of the other, of the same shape.
    """
    xp: Any = jnp if isinstance(a, jax.Array) else np
    return xp.mean(xp.asarray(a) != xp.asarray(b), axis=-1)


def predictions(
    task: Task,
    networks: Network,
    split: str = "test",
    *,
    where: Where | None = None,
) -> np.ndarray:
    """The classes that each network of a stack predicts, int32 `[N, examples]`.

    BatchNorm networks use their own running statistics.

    Args:
      task: with `predict`.
      networks: a stack, leading axis `[N]`.
      split: name of a split.
      where: the devices.

    Raises:
      ValueError: the task predicts no classes, or cannot be used; no stack of networks.
      MemoryError: not even one network fits on a device, or not all of their weights.

    Warns:
      RuntimeWarning: a device was full; fewer predict at once from then on.
    """
    where = checked.place(where)
    measured.check(task, trains=False, splits=(split,), where=where)
    number = checked.networks("networks", networks, task)
    if task.predict is None:
        raise ValueError(
            "task: it has no `predict`, so there are no classes to compare"
        )
    execution = evaluation.evaluation_execution(where.execution)
    placed = execution.spread(networks)

    def attempt(execution: Execution) -> np.ndarray:
        one = program(_predict, task.functions, execution, split)
        if split in streams.streamed(task.data):
            parts = measured.parts_of(task, execution, split, where)
            found = windows.each(parts, lambda part: one({split: part}, placed))
            return np.concatenate([np.asarray(x) for x in found], axis=1)[:number]
        return np.asarray(one(shared_data(task, execution, where), placed))[:number]

    stage = f"predictions on {split!r}"
    return where.room.run(stage, execution, number, attempt)[0]


def of_each(
    function: Callable[..., Array], *stacks: PyTree, where: Where | None = None
) -> np.ndarray:
    """A number for each of many sets of networks, a group on the devices at a time.

    Args:
      function: `l2` or `angle`, or another pure function of a tree of each stack; at
        module level, so that it is compiled once.
      *stacks: what it is given: weights of the one, weights of the other, masks that
        they share; leading axis `[N]`.
      where: the devices.

    Returns:
      Float32 `[N]`.

    Raises:
      MemoryError: not even one set fits on a device.

    Warns:
      RuntimeWarning: a device was full; fewer are compared at once from then on.
    """
    where = where or Where()

    def measure(execution: Execution) -> Callable[[PyTree], dict[str, Any]]:
        one = program(_of_each, function, execution, len(stacks))
        return lambda items: {"value": one(*items)}

    found = in_groups(
        measure,
        tuple(map(trees.host, stacks)),
        group=_PAIRS,
        execution=evaluation.evaluation_execution(where.execution),
        own={},
        stage="distances",
        rows=trees.count(stacks[0]),
        where=where.aside(),
    )
    return found["value"]


_PAIRS = 32
"""Pairs that are on the devices at the same time: there may be hundreds of them."""


def _of_each(
    function: Callable[..., Array], execution: Execution, number: int
) -> Callable[..., Any]:
    return execution.parallel(function, (0,) * number)


def _predict(functions: Task, execution: Execution, split: str) -> Callable[..., Any]:
    predict = functions.predict
    assert predict is not None

    def one(data: PyTree, network: Network) -> Array:
        return predict(
            network.params, network.model_state, data, keys.of_seed(0), split
        )

    return execution.parallel(one, (None, 0))
