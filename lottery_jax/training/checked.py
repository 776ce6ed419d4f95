"""What every entrance asks of its arguments, before anything is compiled.

A `Task` may be written by hand, too; what its functions return is seen by `measured`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, streams, transforms, trees
from lottery_jax.execution import Where
from lottery_jax.optimizers import settings, trials
from lottery_jax.types import Network, Task

_MUST = ("init", "order", "batch", "loss", "evaluate")
_MAY = ("statistics", "pool", "predict", "outputs", "prunable", "narrow")

_LARGEST_ID = 2**31 - 1


def fields(task: Task) -> None:
    """Raises a ValueError that names the field of a task that holds a wrong thing."""
    errors.is_a(
        "task", task, Task, "a lottery_jax.Task, as tasks.classification(...) makes"
    )
    for path, leaf in trees.by_path(task.data).items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise errors.wrong(f"task.data[{path!r}]", errors.shown(leaf), "an array")
        if leaf.dtype == np.dtype(object):
            raise errors.wrong(
                f"task.data[{path!r}].dtype", "object", "that of numbers"
            )
    streams.streamed(task.data)
    for field in (*_MUST, *_MAY):
        value = getattr(task, field)
        if not callable(value) and (field in _MUST or value is not None):
            other = "" if field in _MUST else " or None"
            raise errors.wrong(
                f"task.{field}", errors.shown(value), f"a function{other}"
            )
    errors.whole("task.steps_per_epoch", task.steps_per_epoch, 1)
    errors.flag("task.validates", task.validates)
    for field, value in task.functions._asdict().items():
        try:
            hash(value)
        except TypeError as error:
            must = f"hashable, a tuple say: programs are kept by it ({error})"
            raise errors.wrong(f"task.{field}", errors.shown(value), must) from None


def place(where: Where | None) -> Where:
    """Where something runs; refuses what is no `Where`."""
    if where is None:
        return Where()
    must = "a lottery_jax.Where, such as Where(folder='runs/one')"
    errors.is_a("where", where, Where, must)
    return where


def replicas(given: int | Sequence[int], field: str = "replicas") -> tuple[int, ...]:
    """The ids of replicas: those given, or the first so many.

    Args:
      given: how many, or ids, all different, in [0, 2**31).
      field: what the caller calls it.

    Raises:
      ValueError: anything else, or none.
    """
    if not isinstance(given, tuple | list | range) and not np.ndim(given):
        number = errors.whole(field, given, 1, of="how many, or a tuple of ids")
        return tuple(range(number))
    ids = errors.wholes(field, given, 0, _LARGEST_ID)
    errors.some_different(field, ids)
    return ids


def networks(field: str, given: Any, task: Task) -> int:
    """How many networks a stack holds.

    Args:
      field: what the caller calls it.
      given: a `Network` whose leaves have one leading axis in common.
      task: whose networks they must be, by key paths and shapes; in any containers.

    Raises:
      ValueError: no such stack; names the leaf.
    """
    errors.is_a(field, given, Network, "a lottery_jax.Network, a stack of many")
    found = trees.by_path(given)
    number: int | None = None
    for path, leaf in found.items():
        length = leaf.shape[0] if getattr(leaf, "ndim", 0) else None
        number = length if number is None else number
        if length is None or length != number:
            shape = getattr(leaf, "shape", errors.shown(leaf))
            must = "a stack: all leaves with the same number of networks first"
            raise errors.wrong(f"{field}: leaf {path!r}", f"{shape}", must)
    if not number:
        raise errors.wrong(
            field, errors.shown(given), "a stack of one network at least"
        )
    like = trees.by_path(Network(*task.shapes[:2]))
    for path in [*like, *found]:
        if path not in found or path not in like:
            there = "missing" if path not in found else "one too many"
            raise ValueError(
                f"{field}: leaf {path!r} is {there}; the networks of this task have "
                f"{list(like)}"
            )
        shape, wanted = found[path].shape[1:], like[path].shape
        if shape != wanted:
            must = f"{wanted} behind the first axis, as this task has it"
            raise errors.wrong(f"{field}: shape of leaf {path!r}", shape, must)
    return number


def start(given: Any, task: Task, number: int) -> None:
    """Raises a ValueError that names the leaf in which given weights do not fit a task.

    Args:
      given: a `Network`, each leaf of which has the shape of one network's, for all
        replicas, or a leading axis of them.
      task: what is trained.
      number: of replicas.
    """
    must = "a lottery_jax.Network(params, model_state), or None"
    errors.is_a("start", given, Network, must)
    like = Network(*task.shapes[:2])
    if not trees.same_structure(given, like):
        raise ValueError(
            f"start: its leaves {trees.paths(given)} are not those of the task, "
            f"{trees.paths(like)}"
        )
    for (path, leaf), one in zip(trees.by_path(given).items(), jax.tree.leaves(like)):
        shape = np.shape(leaf)
        if shape not in (one.shape, (number, *one.shape)):
            raise ValueError(
                f"start: leaf {path!r} has shape {shape}; it must be {one.shape}, or "
                f"{(number, *one.shape)} with one entry per replica"
            )
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        same_kind = any(
            jnp.issubdtype(dtype, kind) and jnp.issubdtype(one.dtype, kind)
            for kind in (jnp.floating, jnp.integer)
        )
        if dtype != one.dtype and not same_kind:
            raise ValueError(
                f"start: leaf {path!r} has dtype {dtype}; it must be {one.dtype}"
            )


def optimizer(
    task: Task, tx: settings.Optimizer, hyper: Mapping[str, np.ndarray]
) -> None:
    """Raises a ValueError if runs cannot be trained by an optimizer at their settings.

    Args:
      task: what is trained.
      tx: the optimizer; or a function of hyperparameters, where there are any.
      hyper: their values by name, `[R]`.
    """
    settings.check(tx, tuple(hyper))
    if not hyper:
        return
    shapes = task.shapes[0]
    trials.check_traced(tx, tuple(hyper), shapes)
    for one in settings.each(tx, hyper):
        transforms.check(one, shapes)


def hyperparameters(
    hyper: Mapping[str, Sequence[float] | np.ndarray], number: int
) -> dict[str, np.ndarray]:
    """The values of hyperparameters of so many runs, float32.

    Args:
      hyper: by name, a value for each run.
      number: of runs.

    Raises:
      ValueError: others than finite numbers, or not one for each run.
    """
    must = f"values [{number}] by the names of hyperparameters, one for each run"
    errors.is_a("hyper", hyper, Mapping, must)
    found = {}
    for name, values in hyper.items():
        field = f"hyper[{name!r}]"
        given = errors.several(field, values, must)
        errors.finite(field, given)
        found[name] = np.array(given, np.float32)
        if len(given) != number:
            raise errors.wrong(f"{field}.shape", f"({len(given)},)", f"({number},)")
    return found


def function(field: str, value: Callable[..., Any] | None) -> None:
    """Raises a ValueError if a value is neither a function nor None."""
    if value is not None and not callable(value):
        raise errors.wrong(field, errors.shown(value), "a function or None")
