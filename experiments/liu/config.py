"""What a study of cures is determined by, and the cures that it tries."""

import dataclasses
import itertools
import math
from typing import Literal, NamedTuple

from experiments import presets, recipes
from experiments.identity import FREE, Where
from experiments.recipes import Recipe
from lottery_jax import errors


@dataclasses.dataclass(frozen=True)
class Config(Where, Recipe):
    """Everything that a study is determined by, and where and how it runs.

    What is tried are cures, each alone or in all combinations (`crossed`), at all rates of
    `sweep_learning_rate`. Without a cure training has no warm-up, batches of `batch_size`
    and levels that start from step 0.
    """

    sweep_learning_rate: tuple[float, ...] = (0.02, 0.2)
    """Peak rates, instead of `learning_rate`: the lowest and the highest are compared."""
    sweep_warmup: tuple[str, ...] = ("0it", "500it")
    """Lengths of the warm-up, instead of `warmup`: 0it, and those that are cures."""
    rewind_steps: tuple[str, ...] = ("100it",)
    """Steps k > 0 that levels start from as a cure: 100it, 1ep ... k = 0 is always tried."""
    batch_sizes: tuple[int, ...] = (400,)
    """Larger batches than `batch_size` as a cure."""
    equal: Literal["epochs", "steps"] = "epochs"
    """What a larger batch has as much of. "epochs": `steps`, drops, warm-up and rewind steps
    count batches of `batch_size`, and come as much sooner as a batch is larger. "steps": it
    sees as many more examples."""
    crossed: bool = False
    """Whether cures are tried in all combinations, too; else each alone."""
    levels: int = 2
    """Prunings after level 0, the dense network."""
    fraction: float = 0.6
    """Share of the surviving weights removed at each level."""
    validate_every: int = 500
    """Steps between validations."""
    tolerance: float = dataclasses.field(default=0.005, metadata=FREE)
    """How far above the dense error a matching ticket may be: half a point, as Ma et al.
    have it for CIFAR-10."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent runs, each with its own initialisation and noise."""

    @property
    def low(self) -> float:
        """The lowest rate."""
        return min(self.sweep_learning_rate)

    @property
    def high(self) -> float:
        """The highest rate."""
        return max(self.sweep_learning_rate)


ARMS = ("ticket", "reinit")
"""What is compared: the ticket, and its mask on fresh weights."""

NO_WARMUP = "0it"
"""Training without a warm-up, in `sweep_warmup`."""


class Cure(NamedTuple):
    """How tickets are found and trained, but for the rate.

    Attributes:
      batch_size: examples of a step.
      rewind_step: the step that levels start from, in the words of the configuration.
      warmup: the length of the warm-up, likewise.
    """

    batch_size: int
    rewind_step: str
    warmup: str

    def name(self, cfg: Config) -> str:
        """What differs from training without a cure: "k = 100it, batch 400"."""
        parts = {
            f"warm-up {self.warmup}": self.warmup != NO_WARMUP,
            f"k = {self.rewind_step}": self.rewind_step != FROM_INIT,
            f"batch {self.batch_size}": self.batch_size != cfg.batch_size,
        }
        return ", ".join(text for text, differs in parts.items() if differs) or NONE


FROM_INIT = "0it"
"""Levels that start from the initialisation."""

NONE = "none"
"""The name of training without a cure."""


def cures(cfg: Config) -> list[Cure]:
    """What is tried, training without a cure first; with `crossed`, all combinations."""
    base = Cure(cfg.batch_size, FROM_INIT, NO_WARMUP)
    warmups = [w for w in cfg.sweep_warmup if w != NO_WARMUP]
    if cfg.crossed:
        sizes = (cfg.batch_size, *cfg.batch_sizes)
        steps = (FROM_INIT, *cfg.rewind_steps)
        every = itertools.product(sizes, steps, (NO_WARMUP, *warmups))
        return [Cure(*one) for one in every]
    return [
        base,
        *(base._replace(warmup=w) for w in warmups),
        *(base._replace(rewind_step=k) for k in cfg.rewind_steps),
        *(base._replace(batch_size=b) for b in cfg.batch_sizes),
    ]


def check(cfg: Config) -> None:
    """Raises a ValueError that names the first field of no sense that is this study's own."""
    rates = cfg.sweep_learning_rate
    if len(rates) < 2:
        must = "two rates or more: low and high are compared"
        raise errors.wrong("sweep_learning_rate", rates, must)
    for name in recipes.SWEPT:
        field = f"sweep_{name}"
        if name not in ("learning_rate", "warmup") and (given := getattr(cfg, field)):
            must = "empty: rates and warm-ups alone are compared"
            raise errors.wrong(field, given, must)
    usual = {f.name: f.default for f in dataclasses.fields(cfg)}
    for name in ("learning_rate", "warmup"):
        own, swept = getattr(cfg, name), getattr(cfg, f"sweep_{name}")
        if own not in (usual[name], *swept):
            must = f"one of sweep_{name}, which are used instead"
            raise errors.wrong(name, repr(own), must)
    if NO_WARMUP not in cfg.sweep_warmup:
        must = f"lengths with {NO_WARMUP!r} among them, training without this cure"
        raise errors.wrong("sweep_warmup", cfg.sweep_warmup, must)
    errors.at_least("batch_size", cfg.batch_size, 1)
    for size in cfg.batch_sizes:
        if size <= cfg.batch_size:
            must = f"larger than batch_size={cfg.batch_size}, all of them"
            raise errors.wrong("batch_sizes", cfg.batch_sizes, must)
    for field in ("batch_sizes", "rewind_steps"):
        if values := getattr(cfg, field):
            errors.some_different(field, values)
    errors.one_of("equal", cfg.equal, ("epochs", "steps"))
    errors.flag("crossed", cfg.crossed)
    errors.at_least("levels", cfg.levels, 1)


def scaled(cfg: Config, batch_size: int, steps_per_epoch: int) -> Config:
    """The configuration with another batch, all its steps in iterations.

    Args:
      cfg: the configuration.
      batch_size: examples of a step, at least as many as `cfg.batch_size`.
      steps_per_epoch: with batches of `cfg.batch_size`.

    Returns:
      For "epochs" every step comes as much sooner as the batch is larger, rounded, but none
      but 0 becomes 0.

    Raises:
      ValueError: two steps of a field become one, or one is no step; names the field.
    """
    shorter = cfg.batch_size / batch_size if cfg.equal == "epochs" else 1.0

    def at(field: str) -> tuple[str, ...]:
        given = recipes.parse_steps(cfg, field, steps_per_epoch)
        found = [max(math.floor(step * shorter + 0.5), min(step, 1)) for step in given]
        if len(set(found)) < len(set(given)):
            must = f"further apart: with batches of {batch_size} they are {found}"
            raise errors.wrong(field, getattr(cfg, field), must)
        return tuple(f"{step}it" for step in found)

    (steps,) = at("steps")
    return dataclasses.replace(
        cfg,
        batch_size=batch_size,
        batch_sizes=(),
        steps=steps,
        drops=at("drops"),
        sweep_warmup=at("sweep_warmup"),
        rewind_steps=at("rewind_steps"),
    )


PRESETS = presets.make(Config, presets.LIU)
