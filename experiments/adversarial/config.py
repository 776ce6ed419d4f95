"""What a study of tickets under attack is determined by, and what is trained in it."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Literal

import jax

from experiments import recipes
from experiments.identity import FREE, Where
from experiments.kinds import adversaries
from experiments.kinds.adversaries import Attacked, AttackName
from experiments.recipes import Recipe, Setup
from lottery_jax import errors, imp, masks, prune, scores
from lottery_jax.types import Mask, Params, Task

Arm = Literal["ticket", "reinit", "reinit_raw", "random_mask", "shuffled_weights"]

DENSE = "dense"
"""The chain of networks without a pruned weight, beside those of tickets."""


@dataclasses.dataclass(frozen=True)
class Config(Where, Recipe, Attacked):
    """Everything that a study is determined by, and where and how it runs.

    `learning_rate`, `schedule` and `steps` are those of finding; of training again they are
    `rates`, `warmup_share`, `drop_shares` and `lengths`. `attack` is that of training
    again; each of `finders` names its own.
    """

    task: str = "adversarial"
    """See `Recipe`."""
    finders: tuple[AttackName, ...] = adversaries.ATTACKS
    """How the networks are trained whose largest weights make the tickets."""
    densities: tuple[float, ...] = (0.2, 0.05)
    """Shares of the weights that tickets keep, pruned at once."""
    arms: tuple[Arm, ...] = ("ticket", "reinit", "shuffled_weights")
    """The ticket and its controls."""
    lengths: tuple[str, ...] = ("100it", "200it", "400it")
    """Lengths of training again, in iterations or epochs, rising."""
    rates: tuple[float, ...] = (3e-3,)
    """Peak learning rates of training again, rising. Those above `learning_rate` are warmed
    up to from it: boosted. At `learning_rate` itself there is no warm-up."""
    warmup_share: float = 0.1
    """Share of the steps of training again that the warm-up takes."""
    drop_shares: tuple[float, ...] = (0.5, 0.75)
    """Shares of these steps after which the rate drops, by `drop_factor`."""
    reach: tuple[float, ...] = (0.4, 0.5)
    """Robust accuracies, as fractions, of the validation split: when are they reached?"""
    validate_every: int = 20
    """Steps between validations, by which that is read off."""
    tolerance: float | None = dataclasses.field(default=None, metadata=FREE)
    """How much more error still counts as equal; None for 0.002."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent initialisations."""


def finding(cfg: Config, finder: AttackName) -> Config:
    """The recipe by which a finder trains.

    Args:
      cfg: of the study.
      finder: its name.
    """
    return dataclasses.replace(cfg, attack=finder)


def again(cfg: Config, rate: float, length: str, steps_per_epoch: int) -> Config:
    """The recipe by which tickets are trained again.

    Args:
      cfg: of the study.
      rate: peak learning rate.
      length: of training.
      steps_per_epoch: of the task.
    """
    recipe = dataclasses.replace(cfg, steps=length)
    steps = recipes.parse_step(recipe, "steps", steps_per_epoch)
    warmed = max(1, round(cfg.warmup_share * steps)) if cfg.warmup_share else 0
    boosted = rate > cfg.learning_rate and warmed > 0
    return dataclasses.replace(
        recipe,
        learning_rate=rate,
        schedule="step",
        drops=tuple(f"{round(share * steps)}it" for share in cfg.drop_shares),
        warmup=f"{warmed}it" if boosted else "0it",
        warmup_from=cfg.learning_rate if boosted else 0.0,
    )


def chains(cfg: Config) -> list[tuple[str, float]]:
    """Finder and density of every chain of tickets, in their order."""
    return list(itertools.product(cfg.finders, cfg.densities))


def plan(cfg: Config, steps: int) -> imp.Plan:
    """How tickets are trained again: those of all finders and densities, and dense.

    Args:
      cfg: of the study.
      steps: how long.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    names = [f"{finder}, {density:g}" for finder, density in chains(cfg)]
    found = imp.Plan(
        steps=steps,
        chains=tuple(imp.Chain(name) for name in (*names, DENSE)),
        arms=cfg.arms,
        validate_every=cfg.validate_every,
        seed=cfg.seed,
    )
    return imp.check(found)


def prepare(cfg: Config) -> Mapping[str, Setup]:
    """Task, optimizer and plan of everything that is trained, by its name.

    Raises:
      ValueError: a field that makes no sense; names it.
      FileNotFoundError: data that are not prepared; says how to.
    """
    for field in ("finders", "densities", "lengths", "rates", "reach", "drop_shares"):
        errors.some_different(field, getattr(cfg, field))
    for finder in cfg.finders:
        errors.one_of("finders", finder, adversaries.ATTACKS)
    for field in ("densities", "reach", "drop_shares"):
        for value in getattr(cfg, field):
            errors.share(field, value)
    errors.within("warmup_share", cfg.warmup_share, 0.0, 1.0)
    if min(cfg.rates) <= 0:
        raise errors.wrong("rates", cfg.rates, "above 0")
    if "ticket" not in cfg.arms:
        raise errors.wrong("arms", cfg.arms, "some with 'ticket' among them")
    if list(cfg.rates) != sorted(cfg.rates):
        raise errors.wrong("rates", cfg.rates, "rising")
    if cfg.validation == 0:
        must = "1 or more: what is reached when is read off the validation split"
        raise errors.wrong("validation", cfg.validation, must)
    setups = dict[str, Setup]()
    for finder in cfg.finders:
        recipe = finding(cfg, finder)
        task = recipes.make_task(recipe)
        tx = recipes.make_optimizer(recipe, task.steps_per_epoch)
        steps = recipes.parse_step(recipe, "steps", task.steps_per_epoch)
        setups[finder] = Setup(recipe, task, tx, plan(cfg, steps))
    task = recipes.make_task(cfg)
    for density in cfg.densities:  # or it raises
        jax.eval_shape(functools.partial(largest, task, density), task.shapes[0])
    lasting = [
        recipes.parse_step(
            dataclasses.replace(cfg, steps=x), "steps", task.steps_per_epoch
        )
        for x in cfg.lengths
    ]
    if lasting != sorted(set(lasting)):
        raise errors.wrong("lengths", cfg.lengths, "rising")
    for rate, (length, steps) in itertools.product(
        cfg.rates, zip(cfg.lengths, lasting)
    ):
        recipe = again(cfg, rate, length, task.steps_per_epoch)
        tx = recipes.make_optimizer(recipe, task.steps_per_epoch)
        setups[name(rate, length)] = Setup(recipe, task, tx, plan(cfg, steps))
    return setups


def name(rate: float, length: str) -> str:
    """What training again is called, at a rate and for a length."""
    return f"{length}, rate {rate:g}"


def largest(task: Task, density: float, params: Params) -> Mask:
    """The mask of the largest weights of one network.

    Args:
      task: of the network.
      density: share of its prunable weights that survive.
      params: its weights; may be traced.

    Raises:
      ValueError: a density that cannot be reached.
    """
    return prune.to_density(
        scores.magnitude(params),
        masks.ones_like(params),
        density,
        prunable=masks.of_task(task),
        exclude=task.exclude,
    )
