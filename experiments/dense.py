"""Dense networks of which something is taken: before their training, and after."""

from typing import NamedTuple

from experiments import cost
from experiments.recipes import Setup
from lottery_jax import keys, training, trees
from lottery_jax.execution import Where
from lottery_jax.types import Network


class Dense(NamedTuple):
    """Dense networks of some replicas, `[R, ...]`, on the host.

    Attributes:
      setup: of the study, with an `imp.Plan`.
      ids: of the replicas.
      initial: before training.
      trained: at its end.
    """

    setup: Setup
    ids: list[int]
    initial: Network
    trained: Network


def train(setup: Setup, ids: list[int], where: Where) -> Dense:
    """Trains the networks of a study's replicas, in a folder of their own.

    Args:
      setup: of the study; its plan has the seed and the steps.
      ids: of the replicas.
      where: it runs.
    """
    _, task, tx, plan = setup
    own = keys.of_replicas(plan.seed, ids)
    runs = training.fresh(task, tx, own.init, own.noise, where=where)
    # Rows beyond the replicas fill up the devices.
    initial = trees.rows(trees.host(runs.state.network), slice(len(ids)))
    done = training.train(
        task,
        tx,
        runs,
        plan.steps,
        every=plan.validate_every,
        stage="dense networks",
        where=where.below("dense"),
    )
    return Dense(setup, ids, initial, trees.host(done.networks))


def work(setup: Setup) -> cost.Work:
    """What `train` costs, and a test of each network."""
    of, replicas = cost.of_setup(setup), setup.cfg.replicas
    return cost.trained("dense networks", of, replicas, setup.plan.steps, tests=1)
