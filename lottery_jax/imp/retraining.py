"""One stored level again: under another task, optimizer, length or arm."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import masks, training, trees
from lottery_jax.errors import is_a, several, whole, wrong
from lottery_jax.execution import Where, default_execution
from lottery_jax.imp import arms, levels, results, store
from lottery_jax.imp.levels import Bench, Kept
from lottery_jax.imp.plan import Plan, check, swept
from lottery_jax.imp.results import Moment, Study
from lottery_jax.imp.study import check_task
from lottery_jax.optimizers import settings
from lottery_jax.storage import tickets
from lottery_jax.training import checked
from lottery_jax.types import Mask, Network, Task


def retrain(
    task: Task,
    tx: settings.Optimizer,
    plan: Plan,
    found: Sequence[Sequence[tickets.Ticket]],
    *,
    level: int,
    replicas: int | Sequence[int],
    dense: Sequence[Sequence[tickets.Ticket]] | Network | None = None,
    sweep: settings.Sweep | None = None,
    where: Where | None = None,
) -> Study:
    """Trains one level of tickets again.

    Args:
      task: what is trained now; its networks must have the shapes of the tickets.
      tx: the optimizer; for a sweep, a function of its hyperparameters that makes it of
        traced values.
      plan: the protocol; its chains name the tickets, and levels start with a reset
        optimizer. Its arms may be controls alone.
      found: a ticket for each chain and replica.
      level: which level they are; at least 1 for arms other than "ticket" to differ.
      replicas: the ids of the replicas, for their keys; or how many, from 0.
      dense: the tickets of level 0 of the same chains and replicas, or the networks that
        the tickets of all chains are parts of, `[R, ...]`. Arms need them that begin from
        weights which `found` has not kept: "random_mask" trains them, and "constant" and
        "constant_signed" look at all of a layer.
      sweep: values by the names of hyperparameters: the same tickets are trained at all
        settings, which are chains of the outcome (`swept`).
      where: devices, who watches; checkpoints go into its folder.

    Returns:
      Records with the one level.

    Raises:
      ValueError: an argument or field that makes no sense, tickets that do not fit the
        task, or a plan that does not fit them; before anything is compiled.
      MemoryError: not even one network fits on a device, or not all of their weights.

    Warns:
      RuntimeWarning: a device ran out of memory; what follows runs fewer networks at
        once, which `changes` records. Or layers have no weight; see `run`.
    """
    plan = dataclasses.replace(check(plan, tickets=False), level_optimizer="reset")
    ids, where = checked.replicas(replicas), checked.place(where)
    level = whole("level", level, 0)
    swept_ = plan if sweep is None else swept(plan, sweep, tickets=False)
    check_task(task, plan, 0)
    checked.optimizer(task, tx, swept_.hyper)
    found = _by_chain("found", found)
    if isinstance(dense, Network):
        if (number := checked.networks("dense", dense, task)) != len(ids):
            must = f"a stack of {len(ids)}, one for each replica"
            raise wrong("dense", f"{number} networks", must)
    elif dense is not None:
        dense = _by_chain("dense", dense)
    _check(plan, ids, found, level, dense)
    if sweep is not None:
        plan, number = swept_, swept_.settings
        found = [row for row in found for _ in range(number)]
        if dense is not None and not isinstance(dense, Network):
            dense = [row for row in dense for _ in range(number)]
    execution = (where.execution or default_execution()).check()
    bench = levels.set_up(task, tx, plan, ids, execution, where=where)
    mask, networks = store.stack(task, found)
    own = None if dense is None else _whole(task, dense, len(plan.chains))
    if own is not None:
        params = jax.tree.map(
            lambda m, p, r: np.where(m, p, r), mask, networks.params, own.params
        )
        networks = networks._replace(params=params)
    mask, networks = execution.spread((mask, networks))
    kept = _trunks_of_fresh_draws(bench, levels.first_kept(bench, where), where)
    kept = kept._replace(mask=mask)
    if own is not None:
        # The dense networks are the rows' own, but where these are fresh draws.
        fresh, of_rows = bench.rows.having("fresh"), trees.rows(own, bench.rows.pair)
        kept = kept._replace(trunk=levels.where_rows(fresh, kept.trunk, of_rows))
    runs = levels.starts(bench, kept, max(level, 1), where, networks)
    bench, early = results.settled(bench, where, level, 0)
    done = training.train(
        task,
        tx,
        runs,
        plan.steps,
        every=plan.validate_every,
        validate=task.validates,
        where=where.renamed(level=level),
    )
    kept, measured = levels.end(bench, kept, done, max(level, 1), where)
    bench = bench._replace(execution=done.execution)
    bench, late = results.settled(bench, where, level, plan.steps)
    before = results.blank(bench, 0)
    results.warn_of_emptied(bench, before, measured, level)
    records = results.add(bench, before, measured)
    changes = (results.Change(level, *change) for change in done.changes)
    moment = Moment(level + 1, kept, records, (*early, *changes, *late))
    about = results.about(task, given=True)
    return results.outcome(bench, moment, networks, about)


def tickets_from(
    found: Sequence[Mask],
    networks: Network | Sequence[Network],
    metadata: Mapping[str, Any] | None = None,
) -> list[list[tickets.Ticket]]:
    """Masks and networks in memory as tickets: what `retrain` takes, without a study.

        found = imp.tickets_from([mask_of_one_criterion, mask_of_another], initial)
        study = imp.retrain(task, tx, plan, found, level=1, replicas=3)

    Args:
      found: a mask for each chain, of all replicas: bool leaves `[R, ...]`.
      networks: what the tickets start from, unmasked, `[R, ...]`: for all chains, or one
        stack for each.
      metadata: of every ticket; JSON-able.

    Returns:
      Tickets by chain and replica, on the host. Their weights are 0 off the mask.

    Raises:
      ValueError: no masks, or a mask that does not fit its networks; names the leaf.
    """
    must = "a mask for each chain, such as [mask, mask]"
    chains = several("found", found, must)
    each = several(
        "networks",
        (networks,) * len(chains) if isinstance(networks, Network) else networks,
        "a lottery_jax.Network for all chains, or a list with one for each",
    )
    if not chains or len(each) != len(chains):
        raise ValueError(
            f"networks: there are {len(each)} for the {len(chains)} masks of `found`; "
            "there must be some masks, and one stack of networks for all or for each"
        )

    def of_chain(mask: Mask, network: Network) -> list[tickets.Ticket]:
        is_a("networks", network, Network, "a lottery_jax.Network(params, model_state)")
        masks.check(mask, network.params)
        mask, (params, state) = trees.host((mask, network))
        params = jax.tree.map(
            lambda m, p: np.where(m, p, np.zeros_like(p)), mask, params
        )

        def ticket(i: int) -> tickets.Ticket:
            own_mask, weights, model_state = trees.rows((mask, params, state), i)
            return tickets.Ticket(own_mask, weights, model_state, dict(metadata or {}))

        return [ticket(i) for i in range(trees.count(mask))]

    return [of_chain(mask, network) for mask, network in zip(chains, each)]


def _by_chain(field: str, given: object) -> tuple[tuple[tickets.Ticket, ...], ...]:
    """Tickets by chain and replica, as tuples."""
    must = "a list of tickets for each chain, such as [[ticket, ticket]]"
    rows = tuple(several(field, row, must) for row in several(field, given, must))
    for row in rows:
        for one in row:
            is_a(field, one, tickets.Ticket, must)
    return rows


def _whole(
    task: Task, dense: Sequence[Sequence[tickets.Ticket]] | Network, chains: int
) -> Network:
    """The dense networks of all tickets, `[chain * replica, ...]`, on the host."""
    if not isinstance(dense, Network):
        return store.stack(task, dense)[1]
    number = trees.count(dense.params)
    stacks = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((number, *x.shape), x.dtype),
        Network(*task.shapes[:2]),
    )
    fitted = trees.fitted(trees.host(dense), stacks, ("dense", "the task's"))
    return trees.rows(fitted, np.tile(np.arange(number), chains))


def _check(
    plan: Plan,
    ids: tuple[int, ...],
    found: Sequence[Sequence[tickets.Ticket]],
    level: int,
    dense: Sequence[Sequence[tickets.Ticket]] | Network | None,
) -> None:
    level_0 = found if dense is None or isinstance(dense, Network) else dense
    for name, given in (("found", found), ("dense", level_0)):
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
            f"arms: {lost[0]!r} begins from weights that no ticket of a chain with "
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
    dense = levels.starts(bench, kept, 0, where)
    some = training.Runs(
        trees.rows(trees.host(dense.state), at),
        jnp.asarray(dense.noise)[at],
        *trees.rows((dense.joins, dense.offset, dense.hyper), at),
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
