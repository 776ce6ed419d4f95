"""Iterative magnitude pruning: train, prune, rewind, with its controls.

    for level in range(levels + 1):
        train every arm from the rewind step     # all arms and replicas together
        record them
        mask = prune(score of the ticket's trained weights, mask)
        rewind                                   # weights, schedule, noise, statistics

A *chain* is a procedure with its own sequence of masks (iterative or one-shot; weight
rewinding, learning-rate rewinding or fine-tuning); its *arms* are the controls of
`lottery_jax.arms`. `run` trains a whole study; with a folder it stores checkpoints and
tickets there and continues what it finds. `retrain` trains one stored level again under
another task, optimizer or arm.

References:
  Frankle and Carbin, The Lottery Ticket Hypothesis, 2019, section 1.
  Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020.
  Renda et al., Comparing Rewinding and Fine-tuning in Neural Network Pruning, 2020.
"""

import dataclasses
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import engine, processes, resume, study
from lottery_jax import memory as device_memory
from lottery_jax.chains import Chain as Chain
from lottery_jax.chains import Plan as Plan
from lottery_jax.chains import check as check
from lottery_jax.chains import keep_counts as keep_counts
from lottery_jax.chains import prune_chain as prune_chain
from lottery_jax.engine import Curves, Timeline
from lottery_jax.replicas import Execution, check_execution, default_execution, place
from lottery_jax.resume import ticket_path as ticket_path
from lottery_jax.setting import Setting, set_up, timeline_of, with_chunk
from lottery_jax.storage import tickets
from lottery_jax.study import Change as Change
from lottery_jax.study import Records as Records
from lottery_jax.study import Snapshot
from lottery_jax.study import Study as Study
from lottery_jax.types import Network, Task


class Moment(NamedTuple):
    """Where a run is, for whoever watches it.

    Attributes:
      level: the level in training.
      step: the step that was reached.
      start: the first step of this level.
      stop: its last step.
      rows: how many networks train.
      curves: what was recorded in this level so far.
      resumed: whether the run was just taken up from a checkpoint here.
    """

    level: int
    step: int
    start: int
    stop: int
    rows: int
    curves: Curves
    resumed: bool = False


Watcher = Callable[[Moment], None]


def run(
    task: Task,
    tx: optax.GradientTransformation,
    plan: Plan,
    *,
    levels: int,
    replicas: Sequence[int] = (0, 1, 2),
    execution: Execution | None = None,
    start: Network | None = None,
    folder: pathlib.Path | str | None = None,
    checkpoint_seconds: float = 30.0,
    metadata: Mapping[str, Any] | None = None,
    watch: Watcher | None = None,
) -> Study:
    """Runs a pruning study: all chains, arms and replicas, level after level.

    Args:
      task: what is trained.
      tx: the optimizer, with its schedule over the steps [0, plan.steps).
      plan: the protocol.
      levels: number of prunings after level 0.
      replicas: ids; a replica's numbers depend on its id and not on the others.
      execution: how replicas run; None for the stored settings, or for the platform's with
        as many replicas at once as fit its memory (`lottery_jax.memory`).
      start: weights to start from instead of a draw of the task's initialisation, such
        as pre-trained ones: with the leaf shapes of one network, or with a leading axis
        of the replicas. Fresh draws (reinit) still come from the law.
      folder: where checkpoints and tickets go; None keeps everything in memory. A folder
        with a checkpoint is continued from there.
      checkpoint_seconds: write a checkpoint when so many seconds have passed since the
        last one; a kill loses no more than that.
      metadata: JSON-able; goes into the tickets.
      watch: called after every segment.

    Returns:
      The records and the last masks.

    Raises:
      ValueError: a plan, execution or start that does not fit; a folder that holds a run
        with another plan.
      checkpoints.CorruptCheckpointError: the folder holds no intact checkpoint.
      MemoryError: not even one replica fits on a device.

    Warns:
      RuntimeWarning: a device ran out of memory; the segment starts again with fewer
        replicas at once, which `Study.changes` records.
    """
    check(plan)
    if levels < 0 or not replicas or len(set(replicas)) < len(replicas):
        raise ValueError(
            f"levels={levels}, replicas={tuple(replicas)}; levels must be 0 or more, and "
            "replicas some different ids"
        )
    ids, store = tuple(replicas), None if folder is None else pathlib.Path(folder)
    if store is not None:
        resume.check_same(store, plan, ids)
    stored = resume.stored_execution(store)
    chosen = execution or stored
    check_execution(chosen or default_execution())
    rows = len(plan.chains) * len(ids) * len(plan.arms)

    def begin(execution: Execution) -> tuple[Setting, Snapshot]:
        setting = set_up(task, tx, plan, ids, execution, start)
        for chain in plan.chains:
            keep_counts(
                chain, setting.template, levels, setting.prunable
            )  # or it raises
        return setting, study.first_snapshot(setting, tx)

    setting, snapshot = _begin_fitted(begin, chosen, rows)
    first_level, after, changes = 0, None, list[Change]()
    if (
        store is not None
        and (found := resume.restore(setting, snapshot, store)) is not None
    ):
        snapshot, first_level, after = found
        changes += resume.stored_changes(store)
        if stored != setting.execution and first_level <= levels:
            changes.append(Change(first_level, after or 0, setting.execution))
        if watch and first_level <= levels:
            timeline = timeline_of(setting, first_level)
            step = after if after is not None else int(timeline.join.min())
            watch(_moment(setting, timeline, first_level, step, snapshot.curves, True))
    clock = _Clock(checkpoint_seconds)
    for level in range(first_level, levels + 1):
        if after is None:
            snapshot = study.begin_level(setting, snapshot, level)
        timeline = timeline_of(setting, level)
        columns = timeline.validation_steps()
        ended: Snapshot | None = None
        while ended is None:
            try:
                for step, running, curves in study.train_level(
                    setting, timeline, snapshot, after
                ):
                    snapshot = snapshot._replace(running=running, curves=curves)
                    after = step
                    if level == 0 and step in plan.rewind_steps:
                        memory = study.remember_trunk(
                            setting, snapshot.memory, running, step
                        )
                        snapshot = snapshot._replace(memory=memory)
                    if watch:
                        watch(_moment(setting, timeline, level, step, curves))
                    if store and step in columns and step < plan.steps and clock.due():
                        with clock:
                            resume.save(
                                setting, store, snapshot, level, step, ids, changes
                            )
                ended = study.end_level(setting, snapshot, level)
            except jax.errors.JaxRuntimeError as error:
                if not device_memory.is_out_of_memory(error):
                    raise
                fewer = device_memory.fewer(setting.execution, rows)
                reached = int(timeline.join.min()) if after is None else after
                changes.append(Change(level, reached, fewer))
                warnings.warn(
                    f"a device ran out of memory at level {level}, after step {reached}; "
                    f"going on from there with chunk={fewer.chunk}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                setting = with_chunk(setting, tx, fewer)
        snapshot, after = ended, None
        if store:
            resume.store_tickets(setting, snapshot, level, ids, store, metadata or {})
            if clock.due() or level == levels:
                with clock:
                    resume.save(setting, store, snapshot, level + 1, None, ids, changes)
    recorded = len(next(iter(snapshot.records.values())))
    rewound = study.begun(setting, snapshot.memory, recorded - 1)
    return study.outcome(setting, snapshot, rewound, tuple(changes))


_ALL = 2**31 - 1
"""What a chunk of 0 stands for, where chunks are compared."""


def _begin_fitted(
    begin: Callable[[Execution], tuple[Setting, Snapshot]],
    chosen: Execution | None,
    rows: int,
) -> tuple[Setting, Snapshot]:
    """Sets up a study with as many replicas at once as fit: the same in all processes.

    Args:
      begin: sets it up.
      chosen: settings that were asked for, or stored: they stay. None for the platform's,
        with as many replicas at once as its memory allows.
      rows: how many networks train.
    """
    made: dict[Execution, tuple[Setting, Snapshot]] = {}

    def prepare(execution: Execution) -> tuple[Any, tuple[Any, ...]]:
        made.clear()  # one at a time: they fill the devices
        made[execution] = setting, snapshot = begin(execution)
        return setting.programs.train, study.one_step(setting, snapshot)

    fits = chosen or device_memory.fitted(default_execution(), rows, prepare)
    most = fits.chunk or _ALL
    common = processes.smallest("chunk", most)
    if chosen is None and common < most:
        fits = fits._replace(chunk=common)
    if fits not in made:
        made.clear()
        made[fits] = begin(fits)
    return made[fits]


def retrain(
    task: Task,
    tx: optax.GradientTransformation,
    plan: Plan,
    found: Sequence[Sequence[tickets.Ticket]],
    *,
    level: int,
    replicas: Sequence[int],
    dense: Sequence[Sequence[tickets.Ticket]] | None = None,
    execution: Execution | None = None,
    watch: Watcher | None = None,
) -> Study:
    """Trains one stored level again: under another task, optimizer, length or arm.

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
      execution: devices and chunk; None for the platform's default.
      watch: called after every segment.

    Returns:
      Records with the one level.

    Raises:
      ValueError: tickets that do not fit the task, or a plan that does not fit them.
    """
    plan = check(dataclasses.replace(plan, optimizer="reset"))
    ids = tuple(replicas)
    for name, given in (("found", found), ("dense", found if dense is None else dense)):
        if [len(row) for row in given] != [len(ids)] * len(plan.chains):
            raise ValueError(
                f"{name}: there must be a ticket for each of {len(plan.chains)} chains and "
                f"each of {len(ids)} replicas; got {[len(row) for row in given]}"
            )
    if level > 0 and "random_mask" in plan.arms:
        if any(chain.keeps_weights for chain in plan.chains):
            raise ValueError(
                "arms: 'random_mask' trains weights that no ticket of a chain with "
                "retrain='lr_rewind' or 'finetune' has kept; leave it out"
            )
        if dense is None:
            raise ValueError(
                "dense: the arm 'random_mask' needs the tickets of level 0, for weights "
                "that the others have not kept"
            )
    execution = check_execution(execution or default_execution())
    setting = set_up(task, tx, plan, ids, execution, None)
    put = partial(place, execution=execution)
    mask, chain_networks = put(resume.stack(setting, found))
    if dense is not None:
        rest = put(resume.stack(setting, dense))[1].params
        own = chain_networks.params
        params = jax.tree.map(lambda m, p, r: jnp.where(m, p, r), mask, own, rest)
        chain_networks = chain_networks._replace(params=params)
    snapshot = study.first_snapshot(setting, tx)
    last = max(plan.rewind_steps)
    if last > 0 and setting.rows.is_arm("reinit").any():
        # Fresh draws have to be trained densely to k first; the others wait.
        join = np.where(setting.rows.is_arm("reinit"), 0, last).astype(np.int32)
        marks = tuple(sorted(set(plan.rewind_steps)))
        early = Timeline(join, np.zeros_like(join), last, plan.validate_every, marks)
        for step, running, _ in study.train_level(
            setting, early, snapshot, None, validates=False
        ):
            snapshot = snapshot._replace(running=running)
            if step in marks:
                memory = study.remember_trunk(setting, snapshot.memory, running, step)
                snapshot = snapshot._replace(memory=memory)
    memory = snapshot.memory._replace(mask=mask)
    running = study.start_rows(setting, memory, chain_networks, level)
    timeline = timeline_of(setting, max(level, 1))
    columns = len(timeline.validation_steps())
    curves = engine.empty_curves(len(setting.rows.arm), columns)
    snapshot = Snapshot(memory, running, curves, {})
    for step, running, curves in study.train_level(setting, timeline, snapshot, None):
        snapshot = snapshot._replace(running=running, curves=curves)
        if watch:
            watch(_moment(setting, timeline, level, step, curves))
    snapshot = study.end_level(setting, snapshot, level)
    return study.outcome(setting, snapshot, chain_networks)


class _Clock:
    """When to write a checkpoint: rarely enough to cost at most 5% of the time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last, self.cost = seconds, time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self.last >= max(self.seconds, 20 * self.cost)

    def __enter__(self) -> None:
        self.begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.last = time.monotonic()
        self.cost = self.last - self.begin if self.seconds else 0.0


def _moment(
    setting: Setting,
    timeline: Timeline,
    level: int,
    step: int,
    curves: Curves,
    resumed: bool = False,
) -> Moment:
    start, rows = int(timeline.join.min()), setting.rows.number
    return Moment(level, step, start, timeline.stop, rows, curves, resumed)
