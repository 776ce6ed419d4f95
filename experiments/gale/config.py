"""What the comparison is determined by: the fields, the rules, the lengths of training."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from experiments import recipes
from experiments.identity import FREE, Where
from experiments.recipes import Recipe, Setup, make_optimizer, make_task, parse_step
from lottery_jax import dynamic, errors, imp, masks
from lottery_jax.types import Task

RATE = "learning_rate"
"""What is swept of the dense network, and nothing else."""


@dataclasses.dataclass(frozen=True)
class Config(Where, Recipe):
    """Everything that a study is determined by, and where and how it runs."""

    sweep_learning_rate: tuple[float, ...] = (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2)
    """Peak rates of the dense network; `learning_rate`, at which all else is trained, must
    be among them."""
    levels: tuple[int, ...] = (2, 3, 4, 5)
    """Levels of iterative pruning, rising: what they keep is what all methods keep."""
    fraction: float = 0.5
    """Share of the surviving weights removed at each level."""
    update_begin: str = "100it"
    """The step at which gradual pruning begins."""
    update_end: str = "900it"
    """The last step at which a mask changes: of gradual pruning, RigL and SET; a multiple of
    `update_every`."""
    update_every: int = 50
    """Steps between changes of a mask during training."""
    drop_fraction: float = 0.3
    """Share of the weights that RigL and SET move at first; it falls to 0, as a cosine."""
    longer: int = 2
    """Factor of the steps with which gradual pruning is done a second time, and its masks
    are trained again a second time; 2 or more."""
    validate_every: int = 500
    """Steps between validations."""
    tolerance: float = dataclasses.field(default=0.005, metadata=FREE)
    """How much more error still counts as no worse."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent runs, each with its own initialisation and noise."""


# --- checked --------------------------------------------------------------------------


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and the plan of iterative pruning; errors name the field.

    The optimizer is a function of the learning rate, for the dense network.
    """
    _check_rates(cfg)
    levels = errors.wholes("levels", cfg.levels, 1)
    if not levels or list(levels) != sorted(set(levels)):
        raise errors.wrong("levels", levels, "some levels, rising")
    errors.share("fraction", cfg.fraction)
    errors.share("drop_fraction", cfg.drop_fraction)
    errors.whole("longer", cfg.longer, 2)
    errors.whole("update_every", cfg.update_every, 1)
    errors.at_least("tolerance", cfg.tolerance, 0)
    task = make_task(cfg)
    if not task.validates:
        must = "1 or more: the best rate of the dense network is chosen by it"
        raise errors.wrong("validation", cfg.validation, must)
    steps = parse_step(cfg, "steps", task.steps_per_epoch)
    if (most := max(levels) + 1) > steps:
        must = f"{most} or more, one for each training of level {max(levels)}"
        raise errors.wrong("steps", steps, must)
    plan = imp.check(
        imp.Plan(
            steps=steps,
            chains=(imp.Chain(densities=imp.Geometric(cfg.fraction)),),
            arms=("ticket",),
            validate_every=cfg.validate_every,
            seed=cfg.seed,
        )
    )
    for density in densities(cfg, task):  # or it raises
        _check_rules(cfg, task, density, steps)
    for length in lengths(cfg, steps):
        at_length(cfg, task.steps_per_epoch, length)
    make_tx = make_optimizer(cfg, task.steps_per_epoch, sweeps=True)
    return Setup(cfg, task, make_tx, plan)


def _check_rates(cfg: Config) -> None:
    """Raises a ValueError if anything else than learning rates is swept."""
    errors.some_different(f"sweep_{RATE}", cfg.sweep_learning_rate)
    for field in (f"sweep_{name}" for name in recipes.SWEPT if name != RATE):
        if values := getattr(cfg, field):
            raise errors.wrong(field, values, "empty: rates alone are compared")
    if cfg.learning_rate not in cfg.sweep_learning_rate:
        must = f"one of sweep_learning_rate={cfg.sweep_learning_rate}"
        raise errors.wrong(RATE, cfg.learning_rate, must)


def _check_rules(cfg: Config, task: Task, density: float, steps: int) -> None:
    """Raises a ValueError if masks cannot change as asked for; names the field."""
    begin, end = _updates(cfg, task)
    if end % cfg.update_every or not begin < end < steps:
        must = f"a multiple of update_every={cfg.update_every} after "
        must += f"update_begin={begin} and before {steps}, the last step"
        raise errors.wrong("update_end", end, must)
    for rule in rules(cfg, task, density).values():
        dynamic.check(rule, task.shapes[0], steps=steps)


# --- what follows from it -------------------------------------------------------------


def densities(cfg: Config, task: Task) -> tuple[float, ...]:
    """Which share of the prunable weights is left at each level of the configuration.

    Raises:
      ValueError: a level at which none would be left.
    """
    shapes, flags = task.shapes[0], masks.of_task(task)
    chain = imp.Chain(densities=imp.Geometric(cfg.fraction))
    kept = [imp.keep_counts(chain, shapes, level, flags)[0] for level in cfg.levels]
    return tuple(int(count) / masks.total(shapes, flags) for count in kept)


def rules(cfg: Config, task: Task, density: float) -> Mapping[str, dynamic.MaskUpdate]:
    """The rule of each method that is sparse while it trains, by its name.

    Args:
      cfg: the configuration.
      task: what is trained.
      density: at the end of training; of all but gradual pruning from the start.
    """
    _, end = _updates(cfg, task)
    of: dict[str, Any] = {"prunable": masks.of_task(task), "exclude": task.exclude}
    moved = of | {"every": cfg.update_every, "drop_fraction": cfg.drop_fraction}
    return {
        "gradual": gradual(cfg, task, density),
        "rigl": dynamic.rigl(density, end, **moved),
        "set": dynamic.sparse_evolutionary(density, end, **moved),
        "static": dynamic.static_sparse(density, **of),
    }


def gradual(
    cfg: Config, task: Task, density: float, factor: int = 1
) -> dynamic.MaskUpdate:
    """Gradual pruning to a density, begun and ended later where training is longer.

    Args:
      cfg: the configuration.
      task: what is trained.
      density: at the end.
      factor: of the steps.
    """
    begin, end = (factor * step for step in _updates(cfg, task))
    return dynamic.gradual_magnitude(
        density,
        begin,
        end,
        cfg.update_every,
        prunable=masks.of_task(task),
        exclude=task.exclude,
    )


def _updates(cfg: Config, task: Task) -> tuple[int, int]:
    """The first and the last step at which masks change."""
    epoch = task.steps_per_epoch
    return parse_step(cfg, "update_begin", epoch), parse_step(cfg, "update_end", epoch)


def shared(steps: int, level: int) -> int:
    """How long each training is if those of a level share so many steps.

    A level is reached by level + 1 trainings of equal length. What does not divide, at most
    `level` steps, is not trained.
    """
    return steps // (level + 1)


def lengths(cfg: Config, steps: int) -> tuple[int, ...]:
    """The other lengths of training: with a larger budget, and of the shared steps."""
    return cfg.longer * steps, *(shared(steps, level) for level in cfg.levels)


def at_length(cfg: Config, steps_per_epoch: int, steps: int) -> Config:
    """The recipe of a single network for another number of steps, at `learning_rate`.

    Whatever the learning rate does at a step, it does at the same share of the training.

    Args:
      cfg: the configuration.
      steps_per_epoch: of its task.
      steps: the new length.

    Raises:
      ValueError: two drops of the learning rate would fall on one step, or one on step 0.
    """
    before = parse_step(cfg, "steps", steps_per_epoch)
    own = recipes.at_setting(cfg, {RATE: cfg.learning_rate})
    if steps == before:
        return own

    def moved(field: str) -> list[int]:
        given = recipes.parse_steps(cfg, field, steps_per_epoch)
        return [round(Fraction(step * steps, before)) for step in given]

    drops = moved("drops")
    if cfg.schedule == "step" and (len({*drops}) < len(drops) or 0 in drops):
        must = f"steps that stay apart where {before} steps become {steps}"
        raise errors.wrong("drops", cfg.drops, must)
    return dataclasses.replace(
        own,
        steps=f"{steps}it",
        drops=tuple(f"{step}it" for step in drops),
        warmup=f"{moved('warmup')[0]}it",
    )
