"""Which optimizers move a subnetwork as if there were no other weights: by trying."""

import concurrent.futures
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import errors, trees
from lottery_jax.optimizers import settings
from lottery_jax.optimizers.interpreted import interpreted
from lottery_jax.optimizers.names import name_of, reasons
from lottery_jax.optimizers.states import Place, places
from lottery_jax.optimizers.updates import (
    kept_part,
    loss_arguments,
    masked_update,
    update_with,
)
from lottery_jax.types import Array, Params, PyTree

_STEPS, _MOVES = 64, 6
"""A trial ends when weights have moved so often; some wait before they act."""


@functools.lru_cache(maxsize=128)
def verdict(tx: Any, structure: Any, leaves: tuple[Any, ...]) -> str | None:
    """What is wrong with an optimizer under a mask, or None."""
    whole = jax.tree.unflatten(structure, leaves)
    name = f"tx={name_of(tx)}"
    for place in places(tx, whole):
        if place.kind == "mixed":
            return mixes(tx, place, trees.paths(whole))
    ranks = tuple((len(x.shape), x.dtype) for x in leaves)
    try:
        differs = _elsewhere(lambda: _trial(tx, structure, ranks))
    except Exception as error:
        # It may be made for weights of these sizes, or take arguments of its own.
        try:
            state = jax.eval_shape(tx.init, whole)
            jax.eval_shape(functools.partial(_any_update, tx), whole, state)
        except Exception as again:
            lacks = isinstance(again, TypeError) and "missing" in str(again)
            if not lacks:
                return (
                    f"{name} does not run on weights like these: {again}{reasons(tx)}"
                )
        warnings.warn(
            f"{name} cannot be tried on small weights ({error}); whether it moves a "
            "subnetwork as if there were no other weights is not known",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    if differs is None:
        return None
    return (
        f"{name}; it must be one that moves the surviving weights as if there were no "
        f"others: under a mask it differs from the same optimizer on the surviving "
        f"weights alone, from step {differs} on{reasons(tx)}"
    )


def _elsewhere(run: Callable[[], Any]) -> Any:
    """The result of a function that computes, also while something is being traced."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def _any_update(
    tx: optax.GradientTransformation, params: Params, state: PyTree
) -> None:
    extra = loss_arguments(_bowl(params), jnp.float32(1.0), params)
    updates, new = update_with(tx, params, state, params, extra)
    trees.same(updates, params, ("updates", "weights"))
    if not trees.same_structure(new, state):
        raise ValueError("its state changes its structure in an update")


def check_traced(tx: Any, names: Sequence[str], shapes: PyTree) -> None:
    """Raises a ValueError if an optimizer cannot be made of values that are not known.

    Args:
      tx: a function of the names.
      names: of the hyperparameters.
      shapes: of the weights.
    """

    leaves, structure = jax.tree.flatten(shapes)
    if (wrong := _untraced(tx, tuple(names), structure, tuple(leaves))) is not None:
        raise errors.wrong("tx", errors.shown(tx), wrong)


@functools.lru_cache(maxsize=128)
def _untraced(
    tx: Any, names: tuple[str, ...], structure: Any, leaves: tuple[Any, ...]
) -> str | None:
    """What an optimizer must be to be made of traced values, or None if it is."""

    def start_and_step(values: PyTree, params: Params) -> None:
        made = settings.at(tx, values)
        made = settings.through(made) or made  # which takes a mask, and no other number
        _any_update(made, params, made.init(params))

    shapes = jax.tree.unflatten(structure, leaves)
    try:
        jax.eval_shape(start_and_step, settings.like(names), shapes)
    except TypeError as error:  # those of JAX, and of what takes no tracer
        said = str(error).partition("\n")[0]
        return (
            "one function for all settings, of traced values: without `if`, float() or "
            f"int() of {', '.join(names)} in it, or in what it calls; write jnp.where or "
            f"jnp.minimum ({said})"
        )
    return None


def _bowl(slope: Params) -> Callable[[Params], Array]:
    """A loss with a slope and a little curvature."""

    def loss(params: Params) -> Array:
        terms = jax.tree.map(
            lambda s, p: jnp.sum((s * p + 0.015 * p * p).real), slope, params
        )
        return sum(jax.tree.leaves(terms), start=jnp.float32(1.0))

    return loss


def _trial(tx: Any, structure: Any, ranks: tuple[tuple[int, Any], ...]) -> int | None:
    """The first step at which survivors move otherwise than on their own, or None."""
    rng = np.random.default_rng(0)
    kept, start, noise = [], [], []
    for rank, dtype in ranks:
        shape = ((), (4,), (4, 3))[rank] if rank < 3 else (2,) * (rank - 2) + (3, 2)
        size = int(np.prod(shape))
        alive = np.arange(size) < max(1, (size + 1) // 2)
        kept.append(rng.permutation(alive).reshape(shape))
        kind = (
            np.complex64 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float32
        )
        start.append(rng.normal(size=shape).astype(kind))
        drawn = rng.normal(size=(_STEPS, *shape)).astype(kind)
        # Small and large ones: thresholds let small gradients pass as they are.
        scales = np.resize(np.array([0.3, 30.0, 0.003, 3000.0], "f4"), _STEPS)
        noise.append(drawn * scales.reshape(-1, *[1] * len(shape)))

    def survivors(leaves: list[Any]) -> list[Any]:
        """One vector of each leaf; of the same rank, which many look at."""
        found = []
        for x, m, (rank, _) in zip(leaves, kept, ranks):
            before = x.shape[: x.ndim - rank]
            found.append(
                x[..., m].reshape(*before, -1, *[1] * (rank - 1)) if rank else x
            )
        return found

    def tree(leaves: Any) -> PyTree:
        return jax.tree.unflatten(structure, list(leaves))

    mask, extended = tree(kept), optax.with_extra_args_support(tx)

    def of_survivors(updates, state, params, **extra):
        updates, state = masked_update(extended, mask, updates, state, params, extra)
        return kept_part(mask, updates), state

    def trial(update: Callable[..., Any], params: Params, noise: list[Any]) -> Any:
        own = optax.GradientTransformationExtraArgs(tx.init, update)

        def step(
            params: Params, state: PyTree, slope: Params, gradients: Params, value: Any
        ) -> Any:
            extra = loss_arguments(_bowl(slope), value, gradients)
            updates, state = update_with(own, gradients, state, params, extra)
            trees.same(updates, params, ("updates", "weights"))
            return optax.apply_updates(params, updates), state

        def told(i: int, params: Params) -> tuple[Params, Params, Any]:
            slope = [x[i] for x in noise]
            terms = list(zip(slope, jax.tree.leaves(params)))
            value = 1 + sum((s * p + 0.015 * p * p).real.sum() for s, p in terms)
            gradients = tree(np.asarray(s + 0.03 * p, s.dtype) for s, p in terms)
            return tree(slope), gradients, np.float32(value)

        state = interpreted(tx.init, params)(params)
        one = interpreted(step, params, state, *told(0, params))
        for i in range(_STEPS):
            params, state = one(params, state, *told(i, params))
            yield jax.tree.leaves(params)

    def flat(leaves: list[Any]) -> np.ndarray:
        return np.concatenate([np.asarray(x).reshape(-1) for x in leaves])

    dead = [np.where(m, x, 0 * x) for m, x in zip(kept, start)]
    first, moves = flat(survivors(start)), 0
    slopes = [np.where(m, x, 0 * x) for m, x in zip(kept, noise)]
    runs = zip(
        trial(of_survivors, tree(dead), slopes),
        trial(extended.update, tree(survivors(start)), survivors(noise)),
    )
    before = first
    for i, (found, expected) in enumerate(runs):
        a, b = flat(survivors(found)), flat(expected)
        largest = np.abs(b).max()
        if not (np.isfinite(largest) and largest < 1e6):
            return None  # it runs away, and rounding with it
        if not np.abs(a - b).max() <= 1e-2 * np.abs(b - first).max() + 1e-5 * largest:
            return i
        moves += bool((b != before).any())
        before = b
        if moves == _MOVES:
            break
    return None


def mixes(tx: optax.GradientTransformation, place: Place, paths: list[str]) -> str:
    """A sentence on a part of a state that belongs to no single weights."""
    of = ", ".join(repr(paths[i]) for i in place.of[:3])
    return (
        f"{place.name} in the state of tx={name_of(tx)}, of shape {place.shape}, mixes "
        f"weights of {of}; a weight that is gone cannot be taken out of it"
        f"{reasons(tx)}"
    )
