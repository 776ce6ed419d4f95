"""Branching: one trunk per initialisation, and many continuations under other noise.

    trunk = branches.train_trunk(task, tx, keys.init, keys.noise, steps=(0, 100, 300))
    runs = branches.of_trunk(trunk, keys.noise, number=3)      # [steps * replicas * 3]
    done = training.train(task, tx, runs, stop=3000)

A trunk is trained once, and the whole training state is kept at every rewind step. All
branches then train as one batch: each joins when the common step counter reaches its own
rewind step, so nothing is computed twice. Branches of one state differ in the noise key
(data order, augmentation) and in nothing else: weights, statistics, optimizer state and
position in the schedule are those of the trunk, bit for bit.

On a CPU a row costs only the steps it trains. Where rows are vmapped (`chunk` other than
1) rows that have not joined are computed and thrown away.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import keys, training, trees
from lottery_jax.errors import whole, wholes
from lottery_jax.execution import Where
from lottery_jax.training.runs import Runs
from lottery_jax.types import Key, Network, Task, TrainState


class Trunk(NamedTuple):
    """Networks on their way, kept at the rewind steps.

    Attributes:
      steps: the rewind steps, rising.
      states: the whole training state at each, on the host, `[steps, replicas, ...]`.
    """

    steps: tuple[int, ...]
    states: TrainState

    def at(self, step: int) -> TrainState:
        """The states at a step, `[replicas]`.

        Raises:
          ValueError: this step was not kept; says which were.
        """
        if step not in self.steps:
            raise ValueError(f"step={step}; it must be one of those kept, {self.steps}")
        return trees.rows(self.states, self.steps.index(step))


def train_trunk(
    task: Task,
    tx: optax.GradientTransformation,
    init: Key,
    noise: Key,
    steps: Sequence[int],
    *,
    start: Network | None = None,
    every: int = 1000,
    where: Where | None = None,
) -> Trunk:
    """Trains one dense network per replica to the last rewind step, and keeps all states.

    Args:
      task: what is trained.
      tx: the optimizer, with its schedule.
      init: init keys, `[R]`.
      noise: noise keys, `[R]`.
      steps: the rewind steps; 0 is the initialisation.
      start: weights to start from instead of a draw; see `training.fresh`.
      every: length of the longest segment.
      where: devices, folder, who watches.

    Raises:
      ValueError: no steps, or negative ones; a start that does not fit the task; a
        folder with another trunk.
      checkpoints.CorruptCheckpointError: the folder holds no intact checkpoint.
      MemoryError: not even one network fits on a device, or not the data or all states.

    Warns:
      RuntimeWarning: a device ran out of memory; what follows runs fewer at once.
    """
    wanted = tuple(sorted(set(wholes("steps", steps))))
    if not wanted or wanted[0] < 0:
        raise ValueError(f"steps={tuple(steps)}; there must be some, 0 or more")
    every = whole("every", every, 1)
    runs = training.fresh(task, tx, init, noise, start=start, where=where)
    if wanted == (0,):
        first = trees.rows(trees.host(runs.state), slice(init.shape[0]))
        return Trunk(wanted, jax.tree.map(lambda x: x[None], first))
    done = training.train(
        task, tx, runs, wanted[-1], every=every, keep=wanted, stage="trunk", where=where
    )
    assert done.kept is not None
    return Trunk(wanted, jax.tree.map(lambda x: x.swapaxes(0, 1), done.kept))


class Layout(NamedTuple):
    """Which branch each run is; in the order rewind step, replica, branch.

    Attributes:
      step: its rewind step, int32 `[S]`.
      replica: the position of its replica, int `[S]`.
      branch: its number among those of its state, int `[S]`.
    """

    step: np.ndarray
    replica: np.ndarray
    branch: np.ndarray


def layout(trunk: Trunk, number: int) -> Layout:
    """The branches of a trunk.

    Args:
      trunk: K rewind steps of R replicas.
      number: of branches from each state, B; in all there are K * R * B.

    Raises:
      ValueError: no branch.
    """
    number = whole("number", number, 1)
    replicas = jax.tree.leaves(trunk.states.params)[0].shape[1]
    grid = np.indices((len(trunk.steps), replicas, number))
    step, replica, branch = (x.reshape(-1) for x in grid)
    return Layout(np.array(trunk.steps, np.int32)[step], replica, branch)


def of_trunk(trunk: Trunk, noise: Key, number: int) -> Runs:
    """The runs of all branches of a trunk, in the order of `layout`.

    Args:
      trunk: K rewind steps of R replicas.
      noise: the replicas' noise keys, `[R]`; branches have keys apart from the trunk's.
      number: of branches from each state.
    """
    at = layout(trunk, number)
    index = np.searchsorted(trunk.steps, at.step)
    own = jax.vmap(lambda key: keys.branch_keys(key, number))(noise)
    states = trees.rows(trunk.states, (index, at.replica))
    return Runs(states, own[at.replica, at.branch], at.step, np.zeros_like(at.step))


def restarted(
    tx: optax.GradientTransformation, runs: Runs, *, where: Where | None = None
) -> Runs:
    """The same runs from step 0 of the schedule, with a fresh optimizer.

    Args:
      tx: the optimizer.
      runs: from `of_trunk`.
      where: the devices.
    """
    state = runs.state
    given = state.network, state.stream_state, state.mask
    states = training.start_many(tx, *given, where=where)
    return runs._replace(state=states, joins=np.zeros_like(runs.joins))


def together(parts: Sequence[Runs]) -> Runs:
    """Several sets of runs as one."""
    return Runs(
        trees.concatenate([trees.host(part.state) for part in parts]),
        jnp.concatenate([part.noise for part in parts]),
        np.concatenate([part.joins for part in parts]),
        np.concatenate([part.offset for part in parts]),
    )
