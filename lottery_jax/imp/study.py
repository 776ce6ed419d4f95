"""A whole pruning study: all chains, arms and replicas, level after level.

    train the dense network to the end, keeping the state at step k
    repeat:
        prune                                    # of the ticket's trained weights, mask
        rewind                                   # weights, schedule, noise, statistics
        train

References:
  Frankle and Carbin, The Lottery Ticket Hypothesis, 2019, section 1.
  Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020.
  Renda et al., Comparing Rewinding and Fine-tuning in Neural Network Pruning, 2020.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from lottery_jax import masks, training
from lottery_jax.errors import is_a, one_of, whole
from lottery_jax.execution import Progress, Where, default_execution
from lottery_jax.imp import results, store
from lottery_jax.imp.levels import (
    begun,
    compile_ahead,
    cut,
    end,
    first_kept,
    keep_steps,
    set_up,
    starts,
    timeline,
)
from lottery_jax.imp.plan import Plan, check, keep_counts, swept
from lottery_jax.imp.results import Change, Moment, Study
from lottery_jax.optimizers import settings
from lottery_jax.storage._leaves import jsonable
from lottery_jax.training import checked
from lottery_jax.types import Network, Task


def run(
    task: Task,
    tx: settings.Optimizer,
    plan: Plan,
    *,
    levels: int,
    replicas: int | Sequence[int] = (0, 1, 2),
    start: Network | None = None,
    metadata: Mapping[str, Any] | None = None,
    weights: Literal["stored", "digest"] = "stored",
    sweep: settings.Sweep | None = None,
    where: Where | None = None,
) -> Study:
    """Runs a pruning study.

    Args:
      task: what is trained.
      tx: the optimizer, with its schedule over the steps [0, plan.steps); for a sweep, a
        function of its hyperparameters that makes it of traced values.
      plan: the protocol.
      levels: number of prunings after level 0.
      replicas: ids, or how many; a replica's numbers depend on its id and not on the
        others.
      start: weights to start from instead of a draw of the task's initialisation, such
        as pre-trained ones: with the leaf shapes of one network, or with a leading axis
        of the replicas. Fresh draws (reinit) still come from the law.
      metadata: JSON-able, of every ticket: "model" and "task" name what is trained, and
        what else is needed to go on elsewhere may have any names but the study's own,
        `results.OWN`.
      weights: what tickets hold of them: themselves, or digests of those of `start`, where
        all chains rewind to it. `tickets.load(start=)` is then given the params of the
        replica, such as those of `training.of_replica(start, task, 0)`.
      sweep: values by the names of hyperparameters. Each chain is done at all settings, by
        the same replicas (`swept`); `Study.dataset` has an axis of each name.
      where: devices, folder, who watches. In its folder checkpoints and tickets are
        stored, and a study that is found there is continued.

    Returns:
      The records and the last masks.

    Raises:
      ValueError: an argument or field that makes no sense or does not fit the task, named
        before anything is compiled; levels at which no weight would be left; a folder
        that holds another study.
      checkpoints.CorruptCheckpointError: the folder holds no intact checkpoint.
      MemoryError: not even one replica fits on a device, or not the data or all states.

    Warns:
      RuntimeWarning: a device ran out of memory; what follows runs fewer replicas at
        once, which `changes` records. Or networks have lost the last weight of a layer,
        named once at the level where it happens (`Study.emptied` lists them). They are
        trained on.

    Example:
      >>> plan = Plan(steps=200, rewind_step=20, validate_every=50)
      >>> study = run(task, optax.adam(2e-3), plan, levels=3, replicas=range(3))
      >>> study.dataset()["test_error"].sel(arm="ticket").mean("replica")
    """
    plan, levels = check(plan), whole("levels", levels, 0)
    plan = plan if sweep is None else swept(plan, sweep)
    ids, where = checked.replicas(replicas), checked.place(where)
    metadata = _checked_metadata(metadata)
    check_task(task, plan, levels)
    checked.optimizer(task, tx, plan.hyper)
    if start is not None:
        checked.start(start, task, len(ids))
    _check_weights(weights, plan, start)
    own = store.fields(task, tx, plan, ids, start, where)
    about = results.about(task, given=start is not None, data=own.get("data"))
    at, settings_changed = store.check_same(where, own)
    folder = at.store
    execution = (at.execution or default_execution()).check()
    bench = set_up(task, tx, plan, ids, execution, start, at)
    moment = Moment(0, first_kept(bench, at), results.blank(bench, 0), ())
    resumed = False
    if (stored := store.restore(folder, bench, moment.kept)) is not None:
        moment, resumed = stored, True
        # Within a level, its own checkpoint says at which step.
        within = store.within_level(folder, moment.level)
        if settings_changed and moment.level <= levels and not within:
            change = Change(moment.level, 0, execution)
            moment = moment._replace(changes=(*moment.changes, change))

    if levels > 0 and moment.level <= levels:
        compile_ahead(bench, moment.kept, at)

    def store_moment(moment: Moment) -> None:
        if folder is not None:
            with at.clock:
                store.save(folder, bench, moment, own)

    for level in range(moment.level, levels + 1):
        before, kept = moment, moment.kept
        if level > 0:
            kept = cut(bench, kept, level, at)
        runs = starts(bench, kept, level, at)
        bench, early = results.settled(bench, at, level, 0)
        before = before._replace(changes=(*before.changes, *early))
        done = training.train(
            task,
            tx,
            runs,
            plan.steps,
            every=plan.validate_every,
            marks=plan.rewind_steps,
            keep=keep_steps(bench) if level == 0 else None,
            validate=task.validates,
            where=_within(at, level, levels, resumed, int(timeline(bench, 1)[0].min())),
            # A checkpoint within a level needs the moment that the level began with.
            part_of=partial(store_moment, before),
        )
        at, bench = at.by(done.execution), bench._replace(execution=done.execution)
        kept, measured = end(bench, kept, done, level, at)
        bench, late = results.settled(bench, at, level, plan.steps)
        during = (Change(level, *change) for change in done.changes)
        results.warn_of_emptied(bench, before.found, measured, level)
        moment = Moment(
            level + 1,
            kept,
            results.add(bench, before.found, measured),
            (*before.changes, *during, *late),
        )
        resumed = False
        if folder is not None:
            store.store_tickets(folder, bench, moment, about, metadata, weights)
        if level == levels or at.due():
            store_moment(moment)
    rewound = begun(bench, moment.kept, moment.level - 1)
    return results.outcome(bench, moment, rewound, about)


def check_task(task: Task, plan: Plan, levels: int) -> None:
    """Raises a ValueError that names what of a task, or of a plan for it, does not fit.

    Args:
      task: what is trained.
      plan: a checked one.
      levels: the last level.
    """
    training.check(task)
    splits = ("validation", "test") if task.validates else ("test",)
    training.check(task, trains=False, splits=splits)
    shapes, prunable = task.shapes[0], masks.of_task(task)
    masks.cuttable(shapes, prunable, task.exclude)
    for chain in plan.chains:
        keep_counts(chain, shapes, levels, prunable)


def _checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The caller's metadata, once it is sure that tickets can hold it."""
    if metadata is None:
        return {}
    is_a("metadata", metadata, Mapping, "a dict that JSON can hold")
    found = jsonable(metadata)
    results.check_metadata(found)
    return found


def _check_weights(weights: str, plan: Plan, start: Network | None) -> None:
    """Raises a ValueError if tickets cannot do without weights."""
    one_of("weights", weights, ("stored", "digest"))
    if weights == "stored":
        return
    kept = any(chain.keeps_weights for chain in plan.chains)
    if start is None or kept or any(plan.rewind_steps):
        raise ValueError(
            "weights='digest' needs a start, and chains that rewind to it: "
            "retrain='rewind' and rewind_step=0"
        )


def _within(where: Where, level: int, last: int, resumed: bool, again: int) -> Where:
    """Where a level is trained: in a folder of its own, its number told to who watches.

    Args:
      where: of the study.
      level: the level.
      last: the last level.
      resumed: whether the study was just taken up: said once.
      again: the step that the next levels begin at.
    """
    inside, told = where.below("levels").below(f"{level:02d}"), not resumed
    if where.watch is None:
        return inside

    def watch(progress: Progress) -> None:
        nonlocal told
        first, told = not told, True
        resumed = progress.resumed or first
        own = progress._replace(level=level, last=last, again=again)
        where.tell(own._replace(resumed=resumed))

    return dataclasses.replace(inside, watch=watch)
