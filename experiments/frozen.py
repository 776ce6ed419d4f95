"""What studies of networks with frozen weights share: two recipes, and runs of both.

Beside every mask that is trained stands the network whose weights are. The fields of the
recipe are those of trained weights; masks, or the scores that they follow from, have an
optimizer, a batch size and a number of steps of their own.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from experiments import cost
from experiments.identity import FREE, UNLESS_DEFAULT, Where
from experiments.recipes import Recipe, Setup, make_optimizer, make_task, parse_step
from lottery_jax import keys, training
from lottery_jax.execution import Where as Place
from lottery_jax.training import Runs, Trained
from lottery_jax.types import Task


@dataclasses.dataclass(frozen=True)
class FrozenRecipe(Where, Recipe):
    """Networks whose weights are trained, and masks of networks whose weights are not."""

    score_optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer of the scores that masks follow from."""
    score_learning_rate: float = 0.1
    """Its peak learning rate."""
    score_momentum: float = 0.9
    """Momentum of SGD; unused by Adam."""
    score_weight_decay: float = 0.0
    """L2 penalty on scores, added to the gradient."""
    score_schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over steps."""
    score_batch_size: int = 128
    """Examples per step."""
    score_steps: str = "3000it"
    """How long masks are trained, in iterations or epochs."""
    score_warmup: str = dataclasses.field(default="0it", metadata=UNLESS_DEFAULT)
    """Linear warm-up from 0 over this many steps."""
    every: int = 500
    """Steps of a segment; validations and checkpoints come between segments."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent initialisations."""


_OF_SCORES = (
    "optimizer",
    "learning_rate",
    "momentum",
    "weight_decay",
    "schedule",
    "batch_size",
    "steps",
    "warmup",
)


def of_scores(cfg: FrozenRecipe) -> FrozenRecipe:
    """The configuration whose recipe is that of the scores."""
    own = {name: getattr(cfg, f"score_{name}") for name in _OF_SCORES}
    return dataclasses.replace(cfg, **own, drops=())


def set_up(cfg: FrozenRecipe) -> Setup:
    """Task and optimizer of a recipe.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    task = make_task(cfg)
    parse_step(cfg, "steps", task.steps_per_epoch)  # or it raises
    return Setup(cfg, task, make_optimizer(cfg, task.steps_per_epoch))


def set_up_both(cfg: FrozenRecipe) -> tuple[Setup, Setup]:
    """Task and optimizer of weights, and of scores: the task of both is the network's.

    Raises:
      ValueError: a field that makes no sense, or a task without a validation split, by
        which densities are chosen; names it.
    """
    if cfg.task != "classification":
        raise ValueError(f"task={cfg.task!r}; it must be 'classification'")
    weights = set_up(cfg)
    if not weights.task.validates:
        raise ValueError(
            f"validation={cfg.validation}; it must be 1 or more: densities are chosen by "
            "validation"
        )
    try:
        scores = set_up(of_scores(cfg))
    except ValueError as error:  # in the words of the configuration
        raise ValueError(f"score_{error}") from None
    return weights, scores


def fresh(setup: Setup, ids: Sequence[int], where: Place, task: Task) -> Runs:
    """Runs of a task from the initialisations of some replicas.

    Args:
      setup: whose optimizer they are trained by.
      ids: of the replicas.
      where: the devices that draw.
      task: the one of the setup, or one that draws other model states for it.
    """
    own = keys.of_replicas(setup.cfg.seed, ids)
    return training.fresh(task, setup.tx, own.init, own.noise, where=where.aside())


def trained(setup: Setup, runs: Runs, stage: str, where: Place) -> Trained:
    """Runs at their last step, validated on the way; in a folder of their own."""
    steps = parse_step(setup.cfg, "steps", setup.task.steps_per_epoch)
    return training.train(
        setup.task,
        setup.tx,
        runs,
        steps,
        every=setup.cfg.every,
        validate=True,
        stage=stage,
        where=where.below(stage.replace(",", "").replace(" ", "-")),
    )


def work(setup: Setup, number: int, name: str, tests: int = 1) -> cost.Work:
    """What `trained` costs.

    Args:
      setup: of the runs.
      number: of runs; those of a replica share its noise.
      name: of the stage.
      tests: how often each is measured on test data.
    """
    cfg, of = setup.cfg, cost.of_setup(setup)
    steps = parse_step(cfg, "steps", setup.task.steps_per_epoch)
    orders = min(number, cfg.replicas)
    how: dict[str, int] = dict(every=cfg.every, tests=tests, orders=orders)
    return cost.trained(name, of, number, steps, **how)


def error(task: Task, done: Trained, split: str, where: Place) -> np.ndarray:
    """The error of each run at its end, `[R]`, a fraction; nan where it diverged."""
    found = training.evaluate(task, done.networks, split, where=where.aside())
    whole = np.isnan(done.curves.first_nan)
    return np.where(whole, found["error"].astype(float), np.nan)
