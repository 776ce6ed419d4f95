"""Subnetworks at every (rewind step, level, arm, replica), trained under several noises.

Iterative pruning finds the masks, one chain per rewind step, all in one program. Every
subnetwork of interest is then started again from its rewind step, in branches that differ
in SGD noise alone, and all branches train as one batch. From them follow the error, the
instability between branches, and the barrier between successive levels.
"""

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments import cost, display, recipes
from experiments.recipes import Setup
from lottery_jax import imp, keys, masks, tickets, training, trees
from lottery_jax.connectivity import Measure, branches, distances, evaluation, linear
from lottery_jax.execution import Execution, Where, default_execution
from lottery_jax.imp import arms
from lottery_jax.types import Mask, Network, TrainState


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


def find(setup: Setup, plan: imp.Plan, ids: Sequence[int], where: Where) -> imp.Study:
    """Runs iterative pruning, or what is missing of it; tickets lie in the folder."""
    last = max(setup.cfg.levels)
    with display.watched(where, names=display.names(plan, ids), last=last) as place:
        return imp.run(
            setup.task,
            setup.tx,
            plan,
            levels=last,
            replicas=ids,
            metadata=recipes.ticket_metadata(setup.cfg, "rewinding"),
            where=place,
        )


def cells(
    setup: Setup,
    ids: Sequence[int],
    wanted: Sequence[tuple[int, int, str]],
    where: Where,
    stored: Callable[[int], tuple[pathlib.Path | str, str]] | None = None,
) -> Cells:
    """What each subnetwork starts from.

    Args:
      setup: with the plan that found the tickets, one chain per rewind step.
      ids: of the replicas.
      wanted: (rewind step, level, arm), for all replicas each.
      where: the folder is the one in which `find` put the tickets.
      stored: of a rewind step the folder and the chain of its tickets, where another
        study found them; None for those of `find`.
    """
    task, tx, plan = setup.task, setup.tx, setup.plan
    own = keys.of_replicas(plan.seed, ids)
    steps = sorted({step for step, _, _ in wanted})
    at = [(*cell, replica) for cell in wanted for replica in range(len(ids))]
    like = task.shapes[:2]

    def of_find(step: int) -> tuple[pathlib.Path | str, str]:
        assert where.folder is not None
        return where.folder, chain_name(step)

    def ticket(step: int, level: int, replica: int) -> tickets.Ticket:
        place = (stored or of_find)(step)
        return tickets.load(imp.ticket_path(*place, level, ids[replica]), like)

    found = [ticket(step, level, r) for step, level, _, r in at]
    dense = [ticket(step, 0, r) for step, _, _, r in at]
    chain = trees.stack([Network(one.params, one.model_state) for one in dense])
    fresh = chain
    if any(arm == "reinit" for _, _, arm in wanted):
        trunk = branches.train_trunk(
            task, tx, own.fresh_init, own.fresh_noise, steps, where=where.below("fresh")
        )
        fresh = trees.stack(
            [trees.rows(trunk.at(step).network, r) for step, _, _, r in at]
        )
    step, level, arm, replica = (np.array(column) for column in zip(*at))
    mask = trees.stack([one.mask for one in found])
    drawn = training.fresh(task, tx, own.init, own.noise, where=where).state
    stream = trees.host(drawn.stream_state)
    rows = arms.Rows(
        np.array([arms.index(name) for name in arm.tolist()], np.int32),
        step.astype(np.int32),
        arms.Given(trees.rows(own, replica), mask, chain, fresh),
        trees.rows(stream, replica),
    )
    execution = (where.execution or default_execution()).check()
    spread = execution.spread(rows)
    states = arms.starts(task, tx, spread, execution, plan.random_scope, where=where)
    flags = masks.of_task(task)
    total = masks.total(task.shapes[0], flags)
    counts = [int(masks.count(one.mask, flags)) for one in found]
    return Cells(
        step.astype(np.int32),
        level.astype(np.int32),
        arm,
        replica.astype(np.int32),
        np.array(counts) / total,
        execution.gather(states, len(at)),
    )


def work_of_draws(of: cost.Of, steps: Sequence[int], replicas: int) -> cost.Work:
    """What the fresh draws of reinit cost.

    Args:
      of: what is trained.
      steps: the rewind steps.
      replicas: how many.
    """
    kept = len(set(steps))
    return cost.trained("fresh draws", of, replicas, max(steps), kept=kept)


class Trained(NamedTuple):
    """Branches of subnetworks, in the order of the cells.

    Attributes:
      cell: which cell each belongs to, int `[B]`.
      networks: leading axis `[B]`.
      masks: likewise.
      first_nan: the step at which it diverged, or nan, `[B]`.
      execution: the settings that were used.
      where: of the study, executed so.
    """

    cell: np.ndarray
    networks: Network
    masks: Mask
    first_nan: np.ndarray
    execution: Execution
    where: Where


def train(
    setup: Setup,
    subnetworks: Cells,
    numbers: Sequence[int],
    ids: Sequence[int],
    where: Where,
) -> Trained:
    """Trains the branches of all cells as one batch; `numbers` says how many of each.

    Branch b of a replica has the same noise in every cell, so cells are compared under
    the same noise.
    """
    cell = np.repeat(np.arange(len(numbers)), numbers)
    branch = np.concatenate([np.arange(n) for n in numbers])
    noise = keys.of_replicas(setup.plan.seed, ids).noise
    noise = jax.vmap(lambda key: keys.branch_keys(key, max(numbers)))(noise)
    states = trees.rows(subnetworks.states, cell)
    runs = training.Runs(
        states,
        noise[subnetworks.replica[cell], branch],
        subnetworks.step[cell],
        np.zeros_like(cell),
    )
    with display.watched(where.below("branches")) as place:
        trained = training.train(
            setup.task,
            setup.tx,
            runs,
            setup.plan.steps,
            every=setup.plan.validate_every,
            stage="branches",
            where=place,
        )
    first_nan = trained.curves.first_nan
    how = trained.execution
    networks = trained.networks
    return Trained(cell, networks, states.mask, first_nan, how, where.by(how))


def work(of: cost.Of, number: int, plan: imp.Plan, orders: int) -> cost.Work:
    """What the branches of subnetworks cost.

    Args:
      of: what is trained.
      number: of branches.
      plan: with the rewind steps.
      orders: how many noises they share.
    """
    first = min(plan.rewind_steps)
    return cost.trained("branches", of, number, plan.steps, first=first, orders=orders)


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


def measure(setup: Setup, trained: Trained, how: Measure) -> Measured:
    """Errors of all branches, and the paths between those of each cell.

    Args:
      setup: of the study; cells with fewer branches than its `branches` have no pairs.
      trained: from `train`.
      how: paths are measured.
    """
    task, number = setup.task, setup.cfg.branches
    rows = np.arange(len(trained.cell))
    ends, owners = [], []
    for cell in range(trained.cell.max() + 1):
        own = rows[trained.cell == cell]
        if len(own) == number:
            ends += list(itertools.combinations(own.tolist(), 2))
            owners.append(cell)
    pairs = np.array(ends, np.int32)
    networks = trained.networks
    with display.watched(trained.where.below("paths")) as place:
        # Branches of a cell share a mask: checked.
        path = linear.paths(
            task, networks, pairs, how, masks=trained.masks, where=place
        )
    shape = (trained.cell.max() + 1, len(pairs) // len(owners), len(how.splits))
    lii = np.full(shape, np.nan)
    lii[owners] = linear.instability(path.error).reshape(len(owners), *shape[1:])
    alone = np.ones((len(rows), 1))
    own_error = evaluation.evaluate_many(
        task, networks, rows[:, None], alone, how, where=trained.where.aside()
    )
    a, b = (trees.rows(networks.params, pairs[:, side]) for side in (0, 1))
    mask = trees.rows(trained.masks, pairs[:, 0])
    angle = np.full(shape[:2], np.nan)
    between = distances.of_each(distances.angle, a, b, mask, where=trained.where)
    angle[owners] = between.reshape(len(owners), -1)
    return Measured(own_error["error"], lii, angle)


def level_barriers(
    setup: Setup,
    subnetworks: Cells,
    trained: Trained,
    how: Measure,
    projection: linear.Projection,
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
        setup.task,
        trained.networks,
        [(first[a], first[b]) for a, b in found],
        how,
        masks=trained.masks,
        projection=projection,
        where=trained.where.aside(),
    )
    height = linear.barrier(path.error, path.alphas, reference="chord")
    return [(a, b, height[i]) for i, (a, b) in enumerate(found)]
