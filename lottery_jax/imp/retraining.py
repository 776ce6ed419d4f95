"""One stored level again: under another task, optimizer, length or arm."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import training, trees
from lottery_jax.execution import Where, default_execution
from lottery_jax.imp import arms, levels, results, store
from lottery_jax.imp.levels import Bench, Kept
from lottery_jax.imp.plan import Plan, check
from lottery_jax.imp.results import Moment, Study
from lottery_jax.storage import tickets
from lottery_jax.types import Task


def retrain(
    task: Task,
    tx: optax.GradientTransformation,
    plan: Plan,
    found: Sequence[Sequence[tickets.Ticket]],
    *,
    level: int,
    replicas: Sequence[int],
    dense: Sequence[Sequence[tickets.Ticket]] | None = None,
    where: Where | None = None,
) -> Study:
    """Trains one level of tickets again.

    Args:
      task: what is trained now; its networks must have the shapes of the tickets.
      tx: the optimizer.
      plan: the protocol; its chains name the tickets, and levels start with a reset
        optimizer.
      found: a ticket for each chain and replica.
      level: which level they are; at least 1 for arms other than "ticket" to differ.
      replicas: the ids of the replicas, for their keys.
      dense: the tickets of level 0 of the same chains and replicas. The arm "random_mask"
        needs them: it trains weights that `found` has not kept.
      where: devices, who watches; checkpoints go into its folder.

    Returns:
      Records with the one level.

    Raises:
      ValueError: tickets that do not fit the task, or a plan that does not fit them.
    """
    plan = check(dataclasses.replace(plan, level_optimizer="reset"))
    ids, where = tuple(replicas), where or Where()
    _check(plan, ids, found, level, dense)
    execution = (where.execution or default_execution()).check()
    bench = levels.set_up(task, tx, plan, ids, execution)
    mask, networks = store.stack(task, found)
    if dense is not None:
        rest = store.stack(task, dense)[1].params
        params = jax.tree.map(
            lambda m, p, r: np.where(m, p, r), mask, networks.params, rest
        )
        networks = networks._replace(params=params)
    mask, networks = execution.spread((mask, networks))
    kept = _trunks_of_fresh_draws(bench, levels.first_kept(bench), where)
    kept = kept._replace(mask=mask)
    done = training.train(
        task,
        tx,
        levels.starts(bench, kept, max(level, 1), networks),
        plan.steps,
        every=plan.validate_every,
        validate=task.validates,
        where=where.renamed(level=level),
    )
    kept, measured = levels.end(bench, kept, done, max(level, 1), where)
    records = results.add(bench, results.blank(bench, 0), measured)
    changes = tuple(results.Change(level, *change) for change in done.changes)
    bench = bench._replace(execution=done.execution)
    moment = Moment(level + 1, kept, records, changes)
    return results.outcome(bench, moment, networks)


def _check(
    plan: Plan,
    ids: tuple[int, ...],
    found: Sequence[Sequence[tickets.Ticket]],
    level: int,
    dense: Sequence[Sequence[tickets.Ticket]] | None,
) -> None:
    for name, given in (("found", found), ("dense", found if dense is None else dense)):
        if [len(row) for row in given] != [len(ids)] * len(plan.chains):
            raise ValueError(
                f"{name}: there must be a ticket for each of {len(plan.chains)} chains and "
                f"each of {len(ids)} replicas; got {[len(row) for row in given]}"
            )
    lost = [one.name for one in arms.ARMS if one.lost and one.name in plan.arms]
    if level == 0 or not lost:
        return
    if any(chain.keeps_weights for chain in plan.chains):
        raise ValueError(
            f"arms: {lost[0]!r} trains weights that no ticket of a chain with "
            "retrain='lr_rewind' or 'finetune' has kept; leave it out"
        )
    if dense is None:
        raise ValueError(
            f"dense: the arm {lost[0]!r} needs the tickets of level 0, for weights that "
            "the others have not kept"
        )


def _trunks_of_fresh_draws(bench: Bench, kept: Kept, where: Where) -> Kept:
    """Trains fresh draws densely to the rewind step, for the arms that begin there."""
    rows, steps = bench.rows, bench.rewind_steps
    trained = rows.having("fresh") & ~rows.having("untrained")
    trained &= ~rows.having("from_step_0") & (steps > 0)
    at = np.flatnonzero(trained[: rows.number])
    if not len(at):
        return kept
    dense = levels.starts(bench, kept, 0)
    some = training.Runs(
        trees.rows(trees.host(dense.state), at),
        jnp.asarray(dense.noise)[at],
        dense.joins[at],
        dense.offset[at],
    )
    done = training.train(
        bench.task,
        bench.tx,
        some,
        int(steps[at].max()),
        every=bench.plan.validate_every,
        keep=steps[at][:, None],
        where=where.below("fresh").renamed(stage="fresh draws"),
    )
    assert done.kept is not None

    # Which of them belongs to a row; the other rows keep what they have.
    index = np.zeros(len(rows.arm), np.int32)
    index[at] = np.arange(len(at))
    trained[rows.number :] = False
    state = trees.rows(jax.tree.map(lambda x: x[:, 0], done.kept), index)
    return kept._replace(
        trunk=levels.where_rows(trained, state.network, kept.trunk),
        stream=levels.where_rows(trained, state.stream_state, kept.stream),
    )
