"""Subnetworks at every (rewind step, level, arm, replica), trained under several noises.

Iterative pruning finds the masks, one chain per rewind step, all in one program. Every
subnetwork of interest is then started again from its rewind step, in branches that differ
in SGD noise alone, and all branches train as one batch. From them follow the error, the
instability between branches, and the barrier between successive levels.
"""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import adapters as display
from lottery_jax import arms, imp, masks, tickets, training
from lottery_jax.connectivity import branches, distances, linear, points
from lottery_jax.connectivity.points import BatchNorm
from lottery_jax.replicas import Execution
from lottery_jax.types import Array, Mask, Network, Task, TrainState


class Cells(NamedTuple):
    """Subnetworks about to be trained; every array has a leading axis `[C]`.

    Attributes:
      step: the rewind step, int.
      level: of pruning, int.
      arm: its name.
      replica: position of the replica (not its id), int.
      density: share of the prunable weights that survive.
      states: the training states at the rewind step, with a fresh optimizer.
    """

    step: np.ndarray
    level: np.ndarray
    arm: np.ndarray
    replica: np.ndarray
    density: np.ndarray
    states: TrainState


def chain_name(step: int) -> str:
    """The chain of a rewind step."""
    return f"k{step}"


def find(
    task: Task,
    tx: optax.GradientTransformation,
    protocol: imp.Plan,
    ids: Sequence[int],
    levels: int,
    folder: pathlib.Path,
    execution: Execution | None,
    checkpoint_seconds: float,
) -> imp.Study:
    """Runs iterative pruning, or what is missing of it; tickets lie in the folder."""
    names = [
        f"{chain.name}: {arm} of replica {i}"
        for chain in protocol.chains
        for i in ids
        for arm in protocol.arms
    ]
    with display.progress(protocol, names, 0, levels, folder) as watch:
        return imp.run(
            task,
            tx,
            protocol,
            levels=levels,
            replicas=ids,
            execution=execution,
            folder=folder,
            checkpoint_seconds=checkpoint_seconds,
            watch=watch,
        )


def cells(
    task: Task,
    tx: optax.GradientTransformation,
    protocol: imp.Plan,
    ids: Sequence[int],
    wanted: Sequence[tuple[int, int, str]],
    folder: pathlib.Path,
    execution: Execution | None,
) -> Cells:
    """What each subnetwork starts from.

    Args:
      task: the task.
      tx: the optimizer.
      protocol: the plan that found the tickets, one chain per rewind step.
      ids: of the replicas.
      wanted: (rewind step, level, arm), for all replicas each.
      folder: where `find` put the tickets.
      execution: devices and chunk.
    """
    steps = sorted({step for step, _, _ in wanted})
    keys = jax.vmap(lambda i: arms.replica_keys(protocol.seed, i))(jnp.array(ids))
    fresh = None
    if any(arm == "reinit" for _, _, arm in wanted):
        fresh = branches.train_trunk(
            task,
            tx,
            keys.fresh_init,
            keys.fresh_noise,
            steps,
            execution=execution,
            folder=folder / "fresh",
        )
    template = jax.eval_shape(task.init, jax.random.key(0))[0]
    prunable = task.prunable(template) if task.prunable else masks.prunable(template)
    _, _, stream = jax.vmap(task.init)(keys.init)
    like = jax.eval_shape(task.init, jax.random.key(0))[:2]

    def ticket(step: int, level: int, replica: int) -> tickets.Ticket:
        path = imp.ticket_path(folder, chain_name(step), level, ids[replica])
        return tickets.load(path, like)

    @jax.jit
    def start(
        arm: Array,
        own_keys: arms.ReplicaKeys,
        mask: Mask,
        dense: Network,
        own: Network,
        stream: Any,
        step: Array,
    ) -> TrainState:
        network, mask = arms.begin(
            arm,
            own_keys,
            mask,
            dense,
            own,
            scope=protocol.random_scope,
            prunable=prunable,
            exclude=task.exclude,
        )
        return training.start(tx, network, stream, mask, step)

    layout, states, densities = [], [], []
    total = masks.total(template, prunable)
    for step, level, arm in wanted:
        for replica in range(len(ids)):
            found, dense = ticket(step, level, replica), ticket(step, 0, replica)
            network = Network(dense.params, dense.model_state)
            own = network
            if fresh is not None:
                state = jax.tree.map(lambda x, r=replica: x[r], fresh.at(step))
                own = Network(state.params, state.model_state)
            state = start(
                np.int32(arms.ARMS.index(arm)),
                jax.tree.map(lambda x, r=replica: x[r], keys),
                found.mask,
                network,
                own,
                jax.tree.map(lambda x, r=replica: x[r], stream),
                np.int32(step),
            )
            states.append(jax.tree.map(np.asarray, state))
            layout.append((step, level, arm, replica))
            densities.append(int(masks.count(found.mask, prunable)) / total)
    step_, level_, arm_, replica_ = zip(*layout)
    return Cells(
        np.array(step_, np.int32),
        np.array(level_, np.int32),
        np.array(arm_),
        np.array(replica_, np.int32),
        np.array(densities),
        jax.tree.map(lambda *x: np.stack(x), *states),
    )


class Trained(NamedTuple):
    """Branches of subnetworks, in the order of the cells.

    Attributes:
      cell: which cell each belongs to, int `[B]`.
      branch: its noise, int `[B]`.
      networks: leading axis `[B]`.
      masks: likewise.
      first_nan: the step at which it diverged, or nan, `[B]`.
      execution: the settings that were used.
    """

    cell: np.ndarray
    branch: np.ndarray
    networks: Network
    masks: Mask
    first_nan: np.ndarray
    execution: Execution


def train(
    task: Task,
    tx: optax.GradientTransformation,
    subnetworks: Cells,
    numbers: Sequence[int],
    seed: int,
    ids: Sequence[int],
    stop: int,
    *,
    every: int,
    execution: Execution | None,
    folder: pathlib.Path,
    checkpoint_seconds: float,
    what: str = "",
) -> Trained:
    """Trains the branches of all cells as one batch; `numbers` says how many of each.

    Branch b of a replica has the same noise in every cell, so cells are compared under
    the same noise.
    """
    cell = np.repeat(np.arange(len(numbers)), numbers)
    branch = np.concatenate([np.arange(n) for n in numbers])
    keys = jax.vmap(lambda i: arms.replica_keys(seed, i))(jnp.array(ids))
    noise = jax.vmap(lambda key: branches.branch_keys(key, max(numbers)))(keys.noise)
    states = jax.tree.map(lambda x: x[cell], subnetworks.states)
    with display.stages(what) as watch:
        trained = branches.train(
            task,
            tx,
            states,
            subnetworks.step[cell],
            noise[subnetworks.replica[cell], branch],
            stop,
            execution=execution,
            every=every,
            folder=folder / "branches",
            checkpoint_seconds=checkpoint_seconds,
            watch=display.branch_watcher(watch),
        )
    return Trained(
        cell,
        branch,
        trained.networks,
        states.mask,
        trained.curves.first_nan,
        trained.execution,
    )


class Measured(NamedTuple):
    """What was measured of the cells.

    Attributes:
      error: of each branch, `[B, splits]`.
      lii: instability of each pair of branches of a cell, `[C, pairs, splits]`; nan for
        cells with fewer branches.
      angle: angle distance between them, on the mask they share, `[C, pairs]`.
    """

    error: np.ndarray
    lii: np.ndarray
    angle: np.ndarray


def measure(
    task: Task,
    trained: Trained,
    number: int,
    *,
    alphas: int,
    splits: tuple[str, ...],
    batch_norm: BatchNorm | None,
    statistics_batches: int,
    folder: pathlib.Path,
    what: str = "",
) -> Measured:
    """Errors of all branches, and the paths between those of each cell.

    Args:
      task: the task.
      trained: from `train`.
      number: branches of the cells that are measured; the others have fewer.
      alphas: points of a path.
      splits: names of splits.
      batch_norm: the policy.
      statistics_batches: for "recompute".
      folder: where checkpoints go.
      what: for the progress bar.
    """
    options: dict[str, Any] = dict(
        batch_norm=batch_norm,
        splits=splits,
        statistics_batches=statistics_batches,
        execution=trained.execution,
    )
    rows = np.arange(len(trained.cell))
    ends, owners = [], []
    for cell in range(trained.cell.max() + 1):
        own = rows[trained.cell == cell]
        if len(own) == number:
            ends += list(itertools.combinations(own.tolist(), 2))
            owners.append(cell)
    pairs = np.array(ends, np.int32)
    with display.stages(what) as watch:
        path = linear.paths(
            task,
            trained.networks,
            pairs,
            alphas,
            # Branches of a cell share a mask: checked.
            masks=trained.masks,
            folder=folder / "paths",
            watch=display.points_watcher(watch, len(pairs)),
            **options,
        )
    lii = np.full(
        (trained.cell.max() + 1, len(pairs) // len(owners), len(splits)), np.nan
    )
    lii[owners] = linear.instability(path.error).reshape(len(owners), -1, len(splits))
    own = points.evaluate_many(
        task, trained.networks, rows[:, None], np.ones((len(rows), 1)), **options
    )
    a, b = (
        jax.tree.map(lambda x, s=side: x[pairs[:, s]], trained.networks.params)
        for side in (0, 1)
    )
    mask = jax.tree.map(lambda x: x[pairs[:, 0]], trained.masks)
    angle = np.full(lii.shape[:2], np.nan)
    angle[owners] = np.asarray(jax.jit(jax.vmap(distances.angle))(a, b, mask)).reshape(
        len(owners), -1
    )
    return Measured(own["error"], lii, angle)


def level_barriers(
    task: Task,
    subnetworks: Cells,
    trained: Trained,
    *,
    projection: linear.Projection,
    alphas: int,
    splits: tuple[str, ...],
    batch_norm: BatchNorm | None,
    statistics_batches: int,
) -> list[tuple[int, int, np.ndarray]]:
    """Barriers between the tickets of successive levels, under the same noise.

    Returns:
      (cell of the earlier level, cell of the later one, barrier above the chord
      `[splits]`) for each two successive ones of a replica and rewind step.
    """
    first = {c: i for i, c in reversed(list(enumerate(trained.cell.tolist())))}
    chains: dict[tuple[int, int], list[int]] = {}
    for c in range(len(subnetworks.step)):
        if subnetworks.arm[c] == "ticket":
            at = (int(subnetworks.step[c]), int(subnetworks.replica[c]))
            chains.setdefault(at, []).append(c)
    found = []
    for cells_ in chains.values():
        ordered = sorted(cells_, key=lambda c: subnetworks.level[c])
        found += list(itertools.pairwise(ordered))
    path = linear.paths(
        task,
        trained.networks,
        [(first[a], first[b]) for a, b in found],
        alphas,
        masks=trained.masks,
        projection=projection,
        batch_norm=batch_norm,
        splits=splits,
        statistics_batches=statistics_batches,
        execution=trained.execution,
    )
    height = linear.barrier(path.error, path.alphas, reference="chord")
    return [(a, b, height[i]) for i, (a, b) in enumerate(found)]
