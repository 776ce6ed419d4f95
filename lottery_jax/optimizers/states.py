"""What belongs to which weight in an optimizer's state.

optax does not say, and wrappers group, stack and flatten. It is found from `init` itself:
`places` grows the weights and looks which parts of the state grow with them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.interpreters import partial_eval

from lottery_jax.optimizers import settings
from lottery_jax.types import PyTree


class Place(NamedTuple):
    """What one leaf of a state belongs to.

    Attributes:
      name: its path, for messages.
      shape: its shape.
      kind: "weights" for an entry per weight of one leaf of params (after any leading
        axes), "flat" for one vector of several leaves, "mixed" for what grows with
        weights in another way, "other" for what does not grow with them.
      of: positions of the leaves of params.
      beside: for "other", whether the same node of the state holds values of weights.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    of: tuple[int, ...]
    beside: bool


def places(tx: optax.GradientTransformation, shapes: PyTree) -> tuple[Place, ...]:
    """What each leaf of the state of a transformation belongs to.

    Args:
      tx: the transformation.
      shapes: of params, from `trees.shapes_of`.

    Raises:
      ValueError: the number of leaves of the state depends on the sizes of weights.
    """
    leaves, structure = jax.tree.flatten(shapes)
    return owned(*_begins(tx), structure, tuple(leaves))


def _begins(tx: optax.GradientTransformation) -> tuple[Any, tuple[str, ...]]:
    """What the states of an optimizer follow from: how each begins, whatever its values."""
    made, values = settings.apart(tx)
    return (made if values else tx.init), tuple(values)


def _init(begins: Any, names: tuple[str, ...]) -> Callable[..., PyTree]:
    """The function that makes a state, of the values by these names and of params."""
    if not names:
        return lambda values, params: begins(params)
    return lambda values, params: settings.at(begins, values).init(params)


@functools.lru_cache(maxsize=128)
def owned(
    begins: Any, names: tuple[str, ...], structure: Any, leaves: tuple[Any, ...]
) -> tuple[Place, ...]:
    """`places` by what makes the state, and the leaves of the shapes."""
    number, init = len(leaves), _init(begins, names)

    def state(by: Sequence[int]) -> list[Any]:
        params = [_grown(x, more) if more else x for x, more in zip(leaves, by)]
        params = jax.tree.unflatten(structure, params)
        made = jax.eval_shape(init, settings.like(names), params)
        return jax.tree_util.tree_flatten_with_path(made)[0]

    paths = [
        path
        for path, _ in jax.tree_util.tree_flatten_with_path(
            jax.tree.unflatten(structure, list(leaves))
        )[0]
    ]
    at = {path: i for i, path in enumerate(paths)}
    lengths = {len(path) for path in paths}
    base = state([0] * number)

    def plainly() -> list[tuple[int, ...]] | None:
        """By growing each leaf by another amount; None where that is not clear."""
        now = state(range(1, number + 1))
        found: list[tuple[int, ...]] = []
        if len(now) != len(base):
            return None
        for (path, x), (_, y) in zip(base, now):
            if x.shape == y.shape:
                found.append(())
                continue
            ends = [path[len(path) - n :] for n in lengths if n <= len(path)]
            own = [at[end] for end in ends if end in at]
            own = [i for i in own if _follows(x, y, leaves[i], i + 1)]
            if len(own) != 1:
                return None
            found.append((own[0],))
        return found

    def bit_by_bit() -> list[tuple[int, ...]]:
        """By growing many leaves at once: few initialisations, however many there are."""
        bits = max(1, (number - 1).bit_length())
        asked = [
            [grows([int((i >> b & 1) == one) for i in range(number)]) for one in (0, 1)]
            for b in range(bits)
        ]
        whole = grows([1] * number)
        alone: dict[int, np.ndarray] = {}
        found: list[tuple[int, ...]] = []
        for j in range(len(base)):
            if not whole[j]:
                found.append(())
            elif all(pair[0][j] != pair[1][j] for pair in asked):
                found.append((sum(int(p[1][j]) << b for b, p in enumerate(asked)),))
            else:
                for i in range(number):
                    if i not in alone:
                        alone[i] = grows([int(i == k) for k in range(number)])
                found.append(tuple(i for i in range(number) if alone[i][j]))
        return found

    def grows(by: Sequence[int]) -> np.ndarray:
        now = state(by)
        if len(now) != len(base):
            raise ValueError(
                "tx: the structure of its state depends on the sizes of weights; what "
                "belongs to which weight cannot be found"
            )
        return np.array([x.shape != y.shape for (_, x), (_, y) in zip(now, base)], bool)

    of = plainly()
    if of is None:
        of = bit_by_bit()
    owners = set()
    for (path, _), own in zip(base, of):
        if len(own) == 1 and path[len(path) - len(paths[own[0]]) :] == paths[own[0]]:
            path = path[: len(path) - len(paths[own[0]])]
        if own:
            owners.add(path[:-1])
    found = []
    for (path, x), own in zip(base, of):
        kind = _kind(x.shape, [leaves[i].shape for i in own])
        name = jax.tree_util.keystr(path).lstrip(".") or "state"
        found.append(Place(name, x.shape, kind, own, not own and path[:-1] in owners))
    return tuple(found)


def _grown(x: Any, by: int) -> Any:
    return jax.ShapeDtypeStruct(tuple(n + by for n in x.shape) or (1 + by,), x.dtype)


def _follows(x: Any, y: Any, leaf: Any, by: int) -> bool:
    """Whether a part of the state, before and after, grew as a leaf of params did."""
    rank = len(leaf.shape)
    before, grown = len(x.shape) - rank, _grown(leaf, by).shape
    return (
        before >= 0
        and x.shape[before:] == leaf.shape
        and y.shape == (*x.shape[:before], *grown)
    )


def _kind(shape: tuple[int, ...], of: list[tuple[int, ...]]) -> str:
    if not of:
        return "other"
    if len(of) == 1 and shape[len(shape) - len(of[0]) :] == of[0]:
        return "weights"
    if shape == (sum(int(np.prod(s)) for s in of),):
        return "flat"
    return "mixed"


def holds_weights(tx: optax.GradientTransformation, shapes: PyTree) -> tuple[bool, ...]:
    """Which leaves of a new state depend on the values of weights, not on shapes alone.

    Args:
      tx: the transformation.
      shapes: of params, from `trees.shapes_of`.
    """
    leaves, structure = jax.tree.flatten(shapes)
    return _holds_weights(*_begins(tx), structure, tuple(leaves))


@functools.lru_cache(maxsize=128)
def _holds_weights(
    begins: Any, names: tuple[str, ...], structure: Any, leaves: tuple[Any, ...]
) -> tuple[bool, ...]:
    params = jax.tree.unflatten(structure, list(leaves))
    closed = jax.make_jaxpr(_init(begins, names))(settings.like(names), params)
    number = len(closed.jaxpr.outvars)

    def reads(outs: list[bool]) -> bool:
        return any(partial_eval.dce_jaxpr(closed.jaxpr, outs)[1][len(names) :])

    if not reads([True] * number):
        return (False,) * number
    return tuple(reads([i == j for i in range(number)]) for j in range(number))
