"""Given weights as the start of a task's networks."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lottery_jax import errors, keys, masks, trees
from lottery_jax.execution import Execution, Where, default_execution
from lottery_jax.pretrained.folders import Pretrained
from lottery_jax.training import checked
from lottery_jax.training.programs import program
from lottery_jax.types import Key, ModelState, Network, Params, Task

_POOLER = "pooler/kernel"


class Fit(NamedTuple):
    """How given weights and the networks of a task go together, by key paths.

    Attributes:
      taken: leaves of the task, and the given leaf that each begins with.
      fresh: leaves of the task that are not given, and are drawn.
      left: given leaves that the task has no place for: of another head.
    """

    taken: dict[str, str]
    fresh: tuple[str, ...]
    left: tuple[str, ...]


def fit(found: Pretrained, task: Task) -> Fit:
    """Which leaves of a task begin with given weights; nothing is drawn.

    A given pooler becomes that of the task: `head/pooler`, or `pooler` where the encoder
    has it (`Bert(pooler="pruned")`).

    Args:
      found: from `load`.
      task: its model is a `models.Bert` of `found.shape`, or has its key paths.

    Raises:
      ValueError: leaves of the task that are not given and belong to no head, given ones
        that the task has not, or of another shape (a vocabulary of another size, say):
        all of them are named.
    """
    errors.is_a("found", found, Pretrained, "what pretrained.load returns")
    checked.fields(task)
    given, own = trees.by_path(found.params), trees.by_path(task.shapes[0])
    taken, fresh, wrong = {}, [], []
    for path, leaf in own.items():
        source = path if path in given else re.sub("^head/pooler/", "pooler/", path)
        if source not in given:
            if not _may_be_fresh(path, task):
                wrong.append(f"{path!r} is missing among the weights")
            fresh.append(path)
            continue
        taken[path] = source
        if given[source].shape != leaf.shape:
            wrong.append(
                f"{source!r} has shape {given[source].shape}; the task's is {leaf.shape}"
            )
    used = set(taken.values())
    left = [path for path in given if path not in used]
    wrong += [f"{path!r} is no leaf of the task" for path in left if _is_body(path)]
    if wrong:
        raise ValueError(
            f"found: the weights of {found.folder} must fit the task in all but its head "
            f"{task.head}: {'; '.join(wrong)}. Make its model of found.shape, and its texts "
            "with the tokeniser of the folder"
        )
    return Fit(taken, tuple(fresh), tuple(left))


def start(
    found: Pretrained,
    task: Task,
    *,
    seed: int = 0,
    replicas: int | Sequence[int],
    where: Where | None = None,
) -> Network:
    """What networks of a task begin with: `imp.run(start=)` takes it.

    Given leaves are those of one network, which all replicas share. What is not given, a
    new head, is drawn by the task's law, for each replica with its own init key: as its
    networks would begin without a start, up to rounding.

    A pooler that counts among the prunable weights is a trap: in many files its weights
    are so small that global magnitude removes it whole, and every classifier that reads it
    is constant. Chen et al. (2020) count it; here it is the head's unless asked for.

    Args:
      found: from `load`.
      task: see `fit`.
      seed: of the plan that they are trained with.
      replicas: the ids of the replicas; or how many, from 0.
      where: the devices that draw.

    Returns:
      Params in the task's own tree: NumPy arrays, those drawn with a leading axis of
      replicas. A model state, if the task has one, is drawn, too.

    Raises:
      ValueError: as `fit`.

    Warns:
      RuntimeWarning: leaves were drawn: names them. Or the pooler counts as prunable: says
        how much of it global magnitude would keep at 30% density.
    """
    own, ids = fit(found, task), checked.replicas(replicas)
    given = trees.by_path(found.params)
    shapes, state, _ = task.shapes
    drawn: dict[str, Any] = {}
    if own.fresh or jax.tree.leaves(state):
        init = keys.of_replicas(seed, ids).init
        drawn, state = _draw(task, init, own.fresh, checked.place(where))
    if own.fresh:
        warnings.warn(
            f"{found.folder} has no {list(own.fresh)}: drawn afresh for each replica",
            RuntimeWarning,
            stacklevel=2,
        )
    params = trees.map_by_path(
        lambda path, _: drawn[path] if path in drawn else given[own.taken[path]], shapes
    )
    _warn_of_the_pooler(task, params)
    return Network(params, state)


def _is_head(path: str, task: Task) -> bool:
    return any(re.search(pattern, path) for pattern in task.head)


def _may_be_fresh(path: str, task: Task) -> bool:
    """A head, or a pooler that many files lack: masked-LM trees in particular."""
    return _is_head(path, task) or path.startswith("pooler/")


def _is_body(path: str) -> bool:
    return not path.startswith(("head/", "pooler/"))


def _draw(
    task: Task, init: Key, paths: tuple[str, ...], where: Where
) -> tuple[dict[str, Any], ModelState]:
    """Leaves of draws by their key paths, and the model states, on the host."""
    execution = (where.execution or default_execution()).check()
    rows = execution.spread(init)

    def attempt(execution: Execution) -> Any:
        return program(_some_leaves, task.functions, execution, paths)(rows)

    number = len(init)
    made, _ = where.room.run("the draw of new heads", execution, number, attempt)
    return trees.host(execution.gather(made, number))


def _some_leaves(
    functions: Task, execution: Execution, paths: tuple[str, ...]
) -> Callable[..., Any]:
    def one(key: Key) -> tuple[dict[str, Any], ModelState]:
        # What is not returned is not drawn.
        params, state, _ = functions.init(key)
        own = trees.by_path(params)
        return {path: own[path] for path in paths}, state

    return execution.parallel(one, (0,))


def _warn_of_the_pooler(task: Task, params: Params) -> None:
    leaves = trees.by_path(params)
    flags = dict(zip(leaves, masks.resolve(task.shapes[0], masks.of_task(task))))
    if not flags.get(_POOLER):
        return
    sizes = {path: np.abs(leaf) for path, leaf in leaves.items() if flags[path]}
    # Of a leaf with an axis of replicas, the first.
    plain = trees.by_path(task.shapes[0])
    flat = {p: x.reshape(-1, *plain[p].shape)[0].reshape(-1) for p, x in sizes.items()}
    threshold = np.quantile(np.concatenate(list(flat.values())), 0.7)
    kept = float(np.mean(flat[_POOLER] > threshold))
    warnings.warn(
        f"{_POOLER!r} counts among the prunable weights: global magnitude at 30% density "
        f"would keep {kept:.2%} of it. A classifier on an empty pooler is constant; with "
        "pooler='head' it is the head's, and never pruned",
        RuntimeWarning,
        stacklevel=3,
    )
