"""Tickets that travel: a mask and its weights, taken to another task.

    found = imp.tickets_of(study)                        # or tickets.load, from files
    there = transfer.grafted(found, target, seed=plan.seed, replicas=3)
    study = imp.retrain(target, tx, plan, there, level=1, replicas=3)

What is carried is one of two things, each an arm of what is trained on the target:

| carried | arm of the target's plan | |
|---|---|---|
| ticket | `ticket` | the mask with its weights at the rewind step |
| structure | `reinit` | the mask alone, on a fresh draw of the target's law |

The control is `random_ticket`: a random mask on a fresh draw. Everything else that a run
starts from is said by `imp.arms`; here is only how a ticket of one task becomes one of
another. The output layer (`Task.head`) stays behind: its classes mean something else.

References:
  Morcos et al., One ticket to win them all, 2019, sections 2 and 3.
  Sabatelli et al., On the Transferability of Winning Tickets in Non-Natural Image
  Datasets, 2020.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from lottery_jax import errors, keys, masks, trees
from lottery_jax.storage.tickets import Ticket
from lottery_jax.training import checked, measured
from lottery_jax.types import Key, Mask, Network, PyTree, Task

CARRIED: Mapping[str, str] = {
    "ticket": "ticket",
    "structure": "reinit",
    "random ticket": "random_ticket",
}
"""What is carried to a target, and the arm of `imp` that trains it there."""


def graft(ticket: Ticket, task: Task, key: Key) -> tuple[Network, Mask]:
    """A ticket of one task as a network and a mask of another.

    All leaves are the ticket's but those of `task.head`: they are a fresh draw of the
    task's initialisation, and nothing of them is pruned. Leaves of the ticket that are
    called like a head's are dropped.

    Args:
      ticket: from a file (`tickets.load`) or a study (`imp.tickets_of`); its trees may be
        of any containers.
      task: where it goes; its `head` may be (), for a task that differs in its data alone.
      key: draws the head.

    Returns:
      The network, 0 off the mask, and the mask, in the task's own tree structures.

    Raises:
      ValueError: leaves that only one of the two has and that are no head, or of another
        shape or dtype: all of them are named. Pruned leaves that do not count as prunable
        there; patterns of `task.head` that match nothing.
    """
    must = "a lottery_jax.tickets.Ticket, from tickets.load or imp.tickets_of"
    errors.is_a("ticket", ticket, Ticket, must)
    measured.check(task)
    keys.check("key", key)
    _check(ticket, task)
    return _onto(ticket, task, _drawn(task, key))


def grafted(
    found: Sequence[Sequence[Ticket]],
    task: Task,
    *,
    seed: int = 0,
    replicas: int | Sequence[int],
) -> list[list[Ticket]]:
    """Tickets of many chains and replicas, each grafted: what `imp.retrain` takes.

    A replica's head is the one that its own networks begin with on that task, and the same
    for all chains.

    Args:
      found: a ticket for each chain and replica.
      task: where they go.
      seed: of the plan that they are trained with.
      replicas: the ids of the replicas; or how many, from 0.

    Returns:
      Tickets, on the host; their metadata stay.

    Raises:
      ValueError: not as many tickets as replicas, or as `graft`.
    """
    ids = checked.replicas(replicas)
    measured.check(task)
    must = "a list of tickets for each chain, such as [[ticket, ticket]]"
    rows = [
        errors.several("found", row, must)
        for row in errors.several("found", found, must)
    ]
    for row in rows:
        if len(row) != len(ids):
            raise ValueError(
                f"found: a chain has {len(row)} tickets; it must be {len(ids)}, one for "
                "each replica"
            )
        for one in row:
            errors.is_a("found", one, Ticket, must)
            _check(one, task)
    init = keys.of_replicas(seed, ids).init
    draws = [_drawn(task, init[i]) for i in range(len(ids))]

    def at(ticket: Ticket, drawn: Network) -> Ticket:
        network, mask = _onto(ticket, task, drawn)
        return Ticket(mask, network.params, network.model_state, ticket.metadata)

    return [[at(one, drawn) for one, drawn in zip(row, draws)] for row in rows]


def mask_onto(mask: Mask, task: Task) -> Mask:
    """A mask of one task as a mask of another, whose head it leaves whole.

    For tickets whose weights are the same wherever they go, such as those of one
    pre-trained encoder.

    Args:
      mask: of one network, of any containers.
      task: where it goes.

    Returns:
      The mask in the task's own tree structure, on the host.

    Raises:
      ValueError: as `graft`, of the mask alone.
    """
    measured.check(task)
    like = trees.shapes_of(task.shapes[0], np.bool_)
    _check_mask(mask, task)
    whole = jax.tree.map(lambda x: np.ones(x.shape, np.bool_), like)
    return _joined(mask, whole, task.head)


def _drawn(task: Task, key: Key) -> Network:
    """A draw of the task's initialisation, on the host."""
    params, model_state, _ = task.init(key)
    return trees.host(Network(params, model_state))


def _check(ticket: Ticket, task: Task) -> None:
    """Whether a ticket fits a task, before anything is drawn.

    Raises:
      ValueError: as `graft`.
    """
    params, state = task.shapes[:2]
    _check_mask(ticket.mask, task)
    _check_fit("params", ticket.params, params, task.head)
    _check_fit("model_state", ticket.model_state, state, task.head)


def _check_mask(mask: Mask, task: Task) -> None:
    """Whether the mask of a ticket fits a task.

    Raises:
      ValueError: as `graft`.
    """
    params = task.shapes[0]
    if task.head:
        try:
            trees.matching(params, task.head)
        except ValueError as error:
            raise ValueError(f"task.head: {error}") from None
    _check_fit("mask", mask, trees.shapes_of(params, np.bool_), task.head)
    alive = trees.by_path(trees.host(mask))
    flags = masks.resolve(params, masks.of_task(task))
    for path, counts in zip(trees.paths(params), flags):
        if not counts and not _is_head(path, task.head) and not alive[path].all():
            raise ValueError(
                f"ticket: leaf {path!r} is pruned, and does not count as prunable in the "
                "task; densities would be wrong. Give the task a `prunable` that counts it"
            )


def _check_fit(field: str, given: PyTree, like: PyTree, head: tuple[str, ...]) -> None:
    """Whether the leaves of a ticket are a task's in all but the head; names the others."""
    theirs, own = trees.by_path(trees.host(given)), trees.by_path(like)
    wrong = [
        f"{path!r} is no leaf of the task"
        for path in theirs
        if path not in own and not _is_head(path, head)
    ]
    for path, leaf in own.items():
        if _is_head(path, head):
            continue
        if path not in theirs:
            wrong.append(f"{path!r} is missing in the ticket")
            continue
        for word in ("shape", "dtype"):
            there, here = getattr(theirs[path], word), getattr(leaf, word)
            if there != here:
                wrong.append(f"{path!r} has {word} {there}; the task's is {here}")
    if wrong:
        raise ValueError(
            f"ticket.{field} must fit the task in all but its head {head}: "
            f"{'; '.join(wrong)}. Source and target need the same model and inputs of one "
            "shape, which data.grey28 gives images"
        )


def _onto(ticket: Ticket, task: Task, drawn: Network) -> tuple[Network, Mask]:
    """A ticket that fits in the trees of a task, with the head of a draw."""
    full = jax.tree.map(lambda x: np.ones(x.shape, np.bool_), drawn.params)
    mask = _joined(ticket.mask, full, task.head)
    params = _joined(ticket.params, drawn.params, task.head)
    state = _joined(ticket.model_state, drawn.model_state, task.head)
    params = jax.tree.map(lambda m, p: np.where(m, p, np.zeros_like(p)), mask, params)
    return Network(params, state), mask


def _joined(given: PyTree, drawn: PyTree, head: tuple[str, ...]) -> PyTree:
    """The leaves of a ticket in the structure of a draw, whose head stays."""
    theirs = trees.by_path(trees.host(given))
    return trees.map_by_path(
        lambda path, leaf: leaf if _is_head(path, head) else theirs[path], drawn
    )


def _is_head(path: str, head: tuple[str, ...]) -> bool:
    """Whether a leaf is one of the output layer's."""
    return any(re.search(pattern, path) for pattern in head)
