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
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import arms
from lottery_jax.connectivity import branches, distances, linear, points
from lottery_jax.connectivity.points import BatchNorm
from lottery_jax.replicas import Execution
from lottery_jax.types import Network, PyTree, Task, TrainState

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
      seed: all keys follow from it and the replica's id.
      every: length of the longest segment.
    """

    steps: int
    rewind_steps: tuple[int, ...] = (0,)
    branches: int = 3
    batch_norm: tuple[BatchNorm, ...] = ()
    alphas: int = linear.ALPHAS
    splits: tuple[str, ...] = points.SPLITS
    statistics_batches: int = 16
    schedules: tuple[Schedule, ...] = ("continued",)
    seed: int = 0
    every: int = 100


def check(plan: Plan) -> Plan:
    """Raises a ValueError that names the first field of a plan that makes no sense."""
    for field, least in (("steps", 1), ("every", 1), ("alphas", 2), ("branches", 2)):
        if getattr(plan, field) < least:
            raise ValueError(
                f"{field}={getattr(plan, field)}; it must be {least} or more"
            )
    steps = plan.rewind_steps
    if not steps or not all(0 <= k < plan.steps for k in steps):
        raise ValueError(
            f"rewind_steps={steps}; there must be some, each in [0, {plan.steps}), the "
            "steps of a training run"
        )
    for field, valid in (
        ("batch_norm", ("recompute", "interpolate")),
        ("schedules", ("continued", "restarted")),
    ):
        given = getattr(plan, field)
        if len(set(given)) < len(given) or set(given) - set(valid):
            raise ValueError(
                f"{field}={given}; it must be of {', '.join(valid)}, each once"
            )
    if not plan.schedules or not plan.splits:
        raise ValueError("schedules, splits: there must be one of each at least")
    return plan


def check_task(task: Task, plan: Plan) -> tuple[BatchNorm | None, ...]:
    """The BatchNorm policies that a plan means for a task.

    Raises:
      ValueError: the task has statistics and the plan does not say how to treat them, or
        the task cannot do what it says.
    """
    model_state = jax.eval_shape(task.init, jax.random.key(0))[1]
    if not points.has_statistics(model_state):
        return (None,)
    for policy in plan.batch_norm or (None,):
        points.check_policy(task, model_state, policy)
    if "recompute" in plan.batch_norm:
        points.statistics_slice(task, plan.statistics_batches)  # or it raises
    return plan.batch_norm


class Progress(NamedTuple):
    """Where an analysis is, for whoever watches it.

    Attributes:
      stage: "trunk", "branches" or "paths".
      done: steps trained, or points evaluated.
      total: of them.
      rows: how many networks train or are compared.
      resumed: whether the stage was just taken up from a checkpoint.
    """

    stage: str
    done: int
    total: int
    rows: int
    resumed: bool = False


class Analysis(NamedTuple):
    """The outcome of `run`.

    Attributes:
      records: what was measured, with axes schedule, rewind_step, replica, pair or branch,
        batch_norm, split, alpha.
      networks: the branches at the end, leading axes
        `[schedule, rewind_step, replica, branch]`.
      trunk: the states that they started from.
      execution: the settings that were used.
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
    replicas: Sequence[int] = (0, 1, 2),
    execution: Execution | None = None,
    folder: pathlib.Path | str | None = None,
    checkpoint_seconds: float = 30.0,
    watch: Callable[[Progress], None] | None = None,
) -> Analysis:
    """Runs an instability analysis.

    Args:
      task: what is trained.
      tx: the optimizer, with its schedule over [0, plan.steps).
      plan: the protocol.
      replicas: ids of the initialisations.
      execution: devices and chunk; None for the stored ones or the platform's default.
      folder: where checkpoints go; an interrupted run goes on from there.
      checkpoint_seconds: time between checkpoints.
      watch: called as it goes on.

    Raises:
      ValueError: a plan that makes no sense or does not fit the task.
    """
    check(plan)
    ids, store = tuple(replicas), None if folder is None else pathlib.Path(folder)
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"replicas={ids}; there must be some, all different")
    policies = check_task(task, plan)

    def tell(stage: str) -> branches.Watcher:
        def report(step: int, total: int, number: int, resumed: bool) -> None:
            if watch:
                watch(Progress(stage, step, total, number, resumed))

        return report

    keys = jax.vmap(lambda i: arms.replica_keys(plan.seed, i))(jnp.array(ids))
    trunk = branches.train_trunk(
        task,
        tx,
        keys.init,
        keys.noise,
        plan.rewind_steps,
        execution=execution,
        every=plan.every,
        folder=store and store / "trunk",
        watch=tell("trunk"),
    )
    starts, joins, replica, branch = branches.starts(trunk, plan.branches)
    noise = jax.vmap(lambda key: branches.branch_keys(key, plan.branches))(keys.noise)
    noise = noise[replica, branch]
    parts: list[TrainState] = []
    for schedule in plan.schedules:
        parts.append(
            starts if schedule == "continued" else branches.rewound(tx, starts)
        )
    states = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    all_joins = np.concatenate(
        [joins if s == "continued" else np.zeros_like(joins) for s in plan.schedules]
    )
    shape = (len(plan.schedules), len(trunk.steps), len(ids), plan.branches)
    trained = branches.train(
        task,
        tx,
        states,
        all_joins,
        jnp.tile(noise, len(plan.schedules)),
        plan.steps,
        execution=execution,
        every=plan.every,
        folder=store and store / "branches",
        checkpoint_seconds=checkpoint_seconds,
        watch=tell("branches"),
    )
    pairs = list(itertools.combinations(range(plan.branches), 2))
    base = np.arange(np.prod(shape[:3])) * plan.branches
    ends = (base[:, None, None] + np.array(pairs)).reshape(-1, 2)

    measured = []
    for index, policy in enumerate(policies):

        def report(done: int, total: int, index: int = index) -> None:
            if watch:
                at, all_points = index * total + done, len(policies) * total
                watch(Progress("paths", at, all_points, len(ends)))

        measured.append(
            linear.paths(
                task,
                trained.networks,
                ends,
                plan.alphas,
                batch_norm=policy,
                splits=plan.splits,
                statistics_batches=plan.statistics_batches,
                execution=trained.execution,
                folder=store and store / f"paths-{policy or 'plain'}",
                watch=report,
            )
        )
    records = _records(plan, task, trunk, trained, measured, ends, shape, policies)
    networks = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), trained.networks)
    return Analysis(records, networks, trunk, trained.execution)


def _records(
    plan: Plan,
    task: Task,
    trunk: branches.Trunk,
    trained: branches.Branches,
    measured: Sequence[linear.Path],
    ends: np.ndarray,
    shape: tuple[int, int, int, int],
    policies: Sequence[BatchNorm | None],
) -> Records:
    """Named axes: schedule, rewind_step, replica, then pair or branch."""
    lead = ("schedule", "rewind_step", "replica")
    pairs = (*shape[:3], -1)
    out: Records = {}
    for name in ("error", "loss"):
        value = np.stack([getattr(path, name) for path in measured], axis=1)
        value = value.reshape(*shape[:3], -1, *value.shape[1:])
        axes = (*lead, "pair", "batch_norm", "split")
        out[name] = ((*axes, "alpha"), value)
        high = linear.instability(value)
        out["lii" if name == "error" else "lii_loss"] = (axes, high)
    networks = trained.networks
    first = jax.tree.map(lambda x: np.asarray(x)[0], trunk.states.params)
    rewound = jax.tree.map(
        lambda x: np.broadcast_to(
            np.asarray(x)[None, :, :, None], (*shape, *x.shape[2:])
        ).reshape(-1, *x.shape[2:]),
        trunk.states.params,
    )

    def of_pairs(function: Callable[[PyTree, PyTree], jax.Array]) -> np.ndarray:
        a, b = (
            jax.tree.map(lambda x, s=side: x[ends[:, s]], networks.params)
            for side in (0, 1)
        )
        return np.asarray(jax.jit(jax.vmap(function))(a, b)).reshape(pairs)

    out["l2"] = ((*lead, "pair"), of_pairs(distances.l2))
    out["angle"] = ((*lead, "pair"), of_pairs(distances.angle))
    travel = jax.jit(jax.vmap(distances.l2))(networks.params, rewound)
    out["travel"] = ((*lead, "branch"), np.asarray(travel).reshape(shape))
    if trunk.steps[0] == 0:
        initial = jax.tree.map(
            lambda x: np.broadcast_to(
                x[None, None, :, None], (*shape, *x.shape[1:])
            ).reshape(-1, *x.shape[1:]),
            first,
        )
        whole = jax.jit(jax.vmap(distances.l2))(networks.params, initial)
        out["travel_from_init"] = ((*lead, "branch"), np.asarray(whole).reshape(shape))
    if task.predict is not None:
        for split in plan.splits:
            classes = distances.predictions(
                task, networks, split, execution=trained.execution
            )
            differ = distances.disagreement(classes[ends[:, 0]], classes[ends[:, 1]])
            out[f"disagreement_{split}"] = ((*lead, "pair"), differ.reshape(pairs))
    nan = trained.curves.first_nan.reshape(shape)
    out["first_nan"] = ((*lead, "branch"), nan)
    out["train_loss"] = (
        (*lead, "branch", "step"),
        trained.curves.train_loss.reshape(*shape, -1),
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
