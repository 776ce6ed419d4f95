"""Instability analysis: from which step on does the noise of SGD no longer matter?

    for each initialisation: train a trunk, keep its state at every rewind step k
    from each state: train branches under different noise to the end
    on the line between each two branches: error, at each alpha

All replicas, rewind steps and branches train in one batch, and all paths are evaluated in
one pass.

References:
  Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020.
"""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
import optax

from lottery_jax import errors, training, trees
from lottery_jax import keys as keys_
from lottery_jax.connectivity import branches, distances, linear, points
from lottery_jax.connectivity.measure import ALPHAS, SPLITS, BatchNorm, Measure
from lottery_jax.errors import one_of, some_different, whole
from lottery_jax.execution import Execution, Progress, Where
from lottery_jax.training import checked
from lottery_jax.types import Network, PyTree, Task

Schedule: TypeAlias = Literal["continued", "restarted"]

Records: TypeAlias = dict[str, tuple[tuple[str, ...], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """An instability analysis; with task and optimizer it determines all numbers.

    Attributes:
      steps: length T of a training run.
      rewind_steps: the steps k that branches start from, each in [0, steps).
      branches: continuations of each state under different noise, at least 2.
      batch_norm: how statistics are treated on paths, one or both policies; () for
        networks without a model state.
      alphas: evenly spaced points of a path, at least 2.
      splits: where error and loss are measured.
      statistics_batches: batches of training data for "recompute".
      schedules: "continued" branches train from k to T with the trunk's optimizer state;
        "restarted" ones train T further steps from the start of the schedule with a fresh
        optimizer, the paper's control for the number of steps that are left.
      seed: all keys follow from it and the replica's id; an integer in [0, 2**32).
      every: length of the longest segment.
    """

    steps: int
    rewind_steps: tuple[int, ...] = (0,)
    branches: int = 3
    batch_norm: tuple[BatchNorm, ...] = ()
    alphas: int = ALPHAS
    splits: tuple[str, ...] = SPLITS
    statistics_batches: int = 16
    schedules: tuple[Schedule, ...] = ("continued",)
    seed: int = 0
    every: int = 100

    def measure(self, policy: BatchNorm | None) -> Measure:
        """What is measured on the paths, under one of the policies."""
        return Measure(self.alphas, policy, self.splits, self.statistics_batches)


def check(plan: Plan) -> Plan:
    """The plan with Python's own numbers and tuples.

    Raises:
      ValueError: names the first field of a plan that makes no sense.
    """
    must = "a connectivity.Plan, such as connectivity.Plan(steps=1000)"
    errors.is_a("plan", plan, Plan, must)
    made: dict[str, Any] = {
        field: whole(field, getattr(plan, field), least)
        for field, least in (
            ("steps", 1),
            ("every", 1),
            ("alphas", 2),
            ("branches", 2),
            ("statistics_batches", 1),
        )
    }
    steps = tuple(
        whole("rewind_steps", k)
        for k in errors.several("rewind_steps", plan.rewind_steps, "a tuple of steps")
    )
    made["seed"] = keys_.check_seed(plan.seed)
    if not steps or not all(0 <= k < plan.steps for k in steps):
        raise ValueError(
            f"rewind_steps={steps}; there must be some, each in [0, {plan.steps}), the "
            "steps of a training run"
        )
    made["rewind_steps"] = steps
    for field, valid in (
        ("batch_norm", ("recompute", "interpolate")),
        ("schedules", ("continued", "restarted")),
    ):
        made[field] = errors.several(
            field, getattr(plan, field), f"a tuple of {', '.join(valid)}"
        )
        for value in made[field]:
            one_of(field, value, valid)
        if made[field]:
            some_different(field, made[field])
    some_different("schedules", made["schedules"])
    made["splits"] = errors.names("splits", plan.splits)
    some_different("splits", made["splits"])
    return dataclasses.replace(plan, **made)


def check_task(task: Task, plan: Plan) -> tuple[BatchNorm | None, ...]:
    """The BatchNorm policies that a plan means for a task.

    Raises:
      ValueError: a task that cannot be used, or not on these splits; it has statistics and
        the plan does not say how to treat them, or it cannot do what the plan says.
    """
    training.check(task, splits=plan.splits)
    model_state = task.shapes[1]
    if not points.has_statistics(model_state):
        return (None,)
    for policy in plan.batch_norm or (None,):
        points.check_policy(task, model_state, policy)
    if "recompute" in plan.batch_norm:
        points.statistics_slice(task, plan.statistics_batches)  # or it raises
    return plan.batch_norm


class Analysis(NamedTuple):
    """The outcome of `run`.

    Attributes:
      records: what was measured, with axes schedule, rewind_step, replica, pair or branch,
        batch_norm, split, alpha.
      networks: the branches at the end, leading axes
        `[schedule, rewind_step, replica, branch]`.
      trunk: the states that they started from.
      execution: the settings that were used, at the end.
    """

    records: Records
    networks: Network
    trunk: branches.Trunk
    execution: Execution


def run(
    task: Task,
    tx: optax.GradientTransformation,
    plan: Plan,
    *,
    replicas: int | Sequence[int] = (0, 1, 2),
    start: Network | None = None,
    where: Where | None = None,
) -> Analysis:
    """Runs an instability analysis.

    Args:
      task: what is trained.
      tx: the optimizer, with its schedule over [0, plan.steps).
      plan: the protocol.
      replicas: ids of the initialisations, or how many.
      start: weights that the trunks start from instead of a draw, such as pre-trained
        ones: each leaf with the shape of one network's, or with a leading axis of the
        replicas. Where these share all of it they differ in their noise alone.
      where: devices, folder, who watches. What is interrupted goes on from its folder.

    Raises:
      ValueError: a plan or a start that makes no sense or does not fit the task; a folder
        with another analysis, such as one from another start.
      MemoryError: not even one network or point fits on a device, or not the data or all
        states.

    Warns:
      RuntimeWarning: a device ran out of memory; what follows runs fewer at once. Or all
        branches of a state are equal: nothing is drawn while they train.

    Example:
      >>> plan = Plan(steps=200, rewind_steps=(0, 50), branches=2, alphas=11)
      >>> found = run(task, optax.adam(2e-3), plan, replicas=range(3))
      >>> axes, lii = found.records["lii"]
      >>> linear.is_stable(lii.mean(axis=(2, 3)))
    """
    plan, ids = check(plan), checked.replicas(replicas)
    where, policies = checked.place(where), check_task(task, plan)
    errors.optimizer(tx)
    if start is not None:
        checked.start(start, task, len(ids))
    keys = keys_.of_replicas(plan.seed, ids)
    trunk = branches.train_trunk(
        task,
        tx,
        keys.init,
        keys.noise,
        plan.rewind_steps,
        start=start,
        every=plan.every,
        where=where.below("trunk"),
    )
    continued = branches.of_trunk(trunk, keys.noise, plan.branches)
    trained = training.train(
        task,
        tx,
        branches.together(
            [
                continued
                if kind == "continued"
                else branches.restarted(tx, continued, where=where)
                for kind in plan.schedules
            ]
        ),
        plan.steps,
        every=plan.every,
        stage="branches",
        where=where.below("branches"),
    )
    where, networks = where.by(trained.execution), trained.networks
    shape = (len(plan.schedules), len(trunk.steps), len(ids), plan.branches)
    pairs = list(itertools.combinations(range(plan.branches), 2))
    base = np.arange(np.prod(shape[:3])) * plan.branches
    ends = (base[:, None, None] + np.array(pairs)).reshape(-1, 2)

    measured = []
    for index, policy in enumerate(policies):
        below = _counted(
            where.below(f"paths-{policy or 'plain'}"), index, len(policies)
        )
        measured.append(
            linear.paths(task, networks, ends, plan.measure(policy), where=below)
        )
    found = _Found(trunk, networks, trained.curves, measured, ends, shape)
    records = _records(plan, task, found, policies, where)
    if not np.any(records["l2"][1]):
        warnings.warn(
            "the branches of every state are equal, bit for bit: nothing of this task is "
            "drawn in training (the order of a recurrent language model is fixed, and its "
            "dropout may be 0), so that an instability of 0 says nothing of networks",
            RuntimeWarning,
            stacklevel=2,
        )
    shaped = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), networks)
    # Paths may have needed more room than training.
    execution = where.room.within(trained.execution)
    return Analysis(records, shaped, trunk, execution)


def _counted(where: Where, index: int, passes: int) -> Where:
    """The same, whose watcher sees several passes over all points as one."""

    def watch(progress: Progress) -> None:
        if index and not progress.done:
            return  # the pass before has ended here
        done = index * progress.total + progress.done
        where.tell(progress._replace(done=done, total=passes * progress.total))

    return dataclasses.replace(where, watch=watch)


class _Found(NamedTuple):
    """What records are made of."""

    trunk: branches.Trunk
    networks: Network
    curves: training.Curves
    measured: Sequence[linear.Path]
    ends: np.ndarray
    shape: tuple[int, int, int, int]


def _records(
    plan: Plan,
    task: Task,
    found: _Found,
    policies: Sequence[BatchNorm | None],
    where: Where,
) -> Records:
    """Named axes: schedule, rewind_step, replica, then pair or branch."""
    trunk, networks, curves, measured, ends, shape = found
    lead = ("schedule", "rewind_step", "replica")
    pairs = (*shape[:3], -1)
    out: Records = {}
    for name in sorted(measured[0].values):
        value = np.stack([path.values[name] for path in measured], axis=1)
        value = value.reshape(*shape[:3], -1, *value.shape[1:])
        axes = (*lead, "pair", "batch_norm", "split")
        out[name] = ((*axes, "alpha"), value)
        high = linear.instability(value)
        out["lii" if name == "error" else f"lii_{name}"] = (axes, high)

    def of_branches(states: PyTree) -> PyTree:
        """States `[rewind_step or 1, replica]` as a stack of the branches."""
        return jax.tree.map(
            lambda x: np.broadcast_to(
                x[None, :, :, None], (*shape, *x.shape[2:])
            ).reshape(-1, *x.shape[2:]),
            states,
        )

    of_each = functools.partial(distances.of_each, where=where)
    a, b = (trees.rows(networks.params, ends[:, side]) for side in (0, 1))
    out["l2"] = ((*lead, "pair"), of_each(distances.l2, a, b).reshape(pairs))
    out["angle"] = ((*lead, "pair"), of_each(distances.angle, a, b).reshape(pairs))
    started = trunk.states.params
    travel = of_each(distances.l2, networks.params, of_branches(started))
    out["travel"] = ((*lead, "branch"), travel.reshape(shape))
    if trunk.steps[0] == 0:
        initial = of_branches(trees.rows(started, slice(1)))
        whole = of_each(distances.l2, networks.params, initial)
        out["travel_from_init"] = ((*lead, "branch"), whole.reshape(shape))
    if task.predict is not None:
        for split in plan.splits:
            classes = distances.predictions(task, networks, split, where=where)
            differ = distances.disagreement(classes[ends[:, 0]], classes[ends[:, 1]])
            out[f"disagreement_{split}"] = ((*lead, "pair"), differ.reshape(pairs))
    nan = curves.first_nan.reshape(shape)
    out["first_nan"] = ((*lead, "branch"), nan)
    out["train_loss"] = (
        (*lead, "branch", "step"),
        curves.values["train_loss"].reshape(*shape, -1),
    )
    out["alpha"] = (("alpha",), measured[0].alphas)
    out["split"] = (("split",), np.array(plan.splits))
    out["schedule"] = (("schedule",), np.array(plan.schedules))
    out["rewind_step"] = (("rewind_step",), np.array(trunk.steps, np.int32))
    out["batch_norm"] = (
        ("batch_norm",),
        np.array([policy or "none" for policy in policies]),
    )
    return out
