"""What a run computes, in replica-steps, and how many minutes a GPU needs for it.

A *replica-step* is one training step of one network. A step goes forward and, at twice
that cost, backward; so an evaluation of as many examples as there are in a batch is a
third of a step. Counted is what an accelerator computes: there all networks advance
together, and one that joins late is computed, and thrown away, from the first step on.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from experiments.presets import Preset
from experiments.recipes import Recipe
from lottery_jax import imp, schedules, training

C = TypeVar("C", bound=Recipe)


class Work(NamedTuple):
    """What a run computes, in replica-steps.

    Attributes:
      training: of all networks, levels, trunks and branches.
      evaluation: of networks: validations, tests, predictions.
      paths: of points between networks.
    """

    training: float
    evaluation: float
    paths: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


class Rate(NamedTuple):
    """How fast a model trains on one GPU.

    Attributes:
      steps: replica-steps/s of several replicas at once.
      batch_size: examples of each step.
      measured: where the number is from.
    """

    steps: float
    batch_size: int
    measured: str


_H200 = "nine replicas by tiles on one H200, tf32: docs/results/gpu.json"
RATES: Mapping[tuple[str, str], Rate] = {
    ("resnet-20", "float32"): Rate(937.0, 128, _H200),
    ("resnet-20", "bfloat16"): Rate(1717.0, 128, _H200),
}
"""By the names of models and what their layers store; the others are not known."""

CALL = 9.0
"""Minutes of a call on a machine that is lent for ten."""
START = 1.5
"""Of these, minutes until a process trains: its start, the data, compilation."""

_EXAMPLES: Mapping[str, tuple[int, int, int]] = {
    "mnist": (60_000, 5_000, 10_000),
    "fashion_mnist": (60_000, 5_000, 10_000),
    "cifar10": (50_000, 5_000, 10_000),
    "cifar100": (50_000, 5_000, 10_000),
}
"""Examples for training, of these held out for validation by default, and for tests."""


class _Sizes(NamedTuple):
    """Examples of the splits of a recipe; what is held out is not trained on."""

    train: int
    validation: int
    test: int


def _sizes(cfg: Recipe) -> _Sizes:
    train, validation, test = _EXAMPLES[cfg.data]
    held_out = validation if cfg.validation is None else cfg.validation
    return _Sizes(cfg.subset or train - held_out, held_out, test)


def _step(cfg: Recipe, text: str) -> int:
    """The step that a text names; no data are loaded for it."""
    per_epoch = math.ceil(_sizes(cfg).train / cfg.batch_size)
    return training.parse_step(text, per_epoch)


def _evaluated(cfg: Recipe, examples: int) -> float:
    """The replica-steps that evaluating so many examples amounts to."""
    return examples / (3 * cfg.batch_size)


def of_study(cfg: Any) -> Work:
    """What a pruning study computes.

    Args:
      cfg: of `experiments.imp`, of a data set of known size.
    """
    sizes, steps = _sizes(cfg), _step(cfg, cfg.steps)
    swept = math.prod(
        len(getattr(cfg, f"sweep_{name}") or (None,))
        for name in ("learning_rate", "weight_decay", "momentum", "warmup")
    )
    chains = len(cfg.schedules) * len(cfg.retrains) * swept
    rows = chains * cfg.replicas * len(cfg.arms)
    named = [arm for arm in imp.ARMS if arm.name in cfg.arms]
    # Where one trains from step 0 the others, on an accelerator, do so with it.
    whole = any(arm.from_step_0 for arm in named)
    first = 0 if whole else _step(cfg, cfg.rewind_step)
    levels = cfg.levels
    if cfg.target_density is not None:
        levels = schedules.levels_to(cfg.target_density, cfg.fraction)
    trained = steps + levels * (steps - first)
    validations = tests = 0.0
    if sizes.validation:
        columns = [
            math.ceil(steps / cfg.validate_every) - start // cfg.validate_every
            for start in (0, first)
        ]
        each = _evaluated(cfg, sizes.validation)
        validations = (columns[0] + levels * columns[1]) * each
    # With a validation split the best network is tested beside the last one.
    networks = 2 if sizes.validation else 1
    tests = (levels + 1) * networks * _evaluated(cfg, sizes.test)
    return Work(rows * trained, rows * (validations + tests))


def of_instability(cfg: Any) -> Work:
    """What an instability analysis computes.

    Args:
      cfg: of `experiments.instability`, of a data set of known size.
    """
    sizes, steps = _sizes(cfg), _step(cfg, cfg.steps)
    starts = {_step(cfg, text) for text in cfg.rewind_steps}
    first = 0 if "restarted" in cfg.schedules else min(starts)
    states = len(cfg.schedules) * len(starts) * cfg.replicas
    branches = states * cfg.branches
    trained = cfg.replicas * max(starts) + branches * (steps - first)
    examples = (cfg.path_train or sizes.train) + (cfg.path_test or sizes.test)
    points = states * math.comb(cfg.branches, 2) * cfg.alphas
    paths = points * len(cfg.batch_norm or (None,)) * _evaluated(cfg, examples)
    if "recompute" in cfg.batch_norm:
        paths += points * cfg.statistics_batches / 3
    return Work(trained, branches * _evaluated(cfg, examples), paths)


def minutes(cfg: Recipe, work: Work) -> float | None:
    """Minutes of one GPU, the starts of calls left out; None for a model of no known rate.

    Args:
      cfg: whose model and batch it is.
      work: from `of_study` or `of_instability`.
    """
    rate = RATES.get((cfg.model, cfg.activations))
    if rate is None:
        return None
    # A step of a larger batch takes longer by as much.
    return work.total * cfg.batch_size / rate.batch_size / rate.steps / 60


def calls(needed: float) -> int:
    """How many calls of `CALL` minutes a run needs, each of which starts anew.

    Args:
      needed: from `minutes`.
    """
    return math.ceil(needed / (CALL - START))


def in_words(cfg: Recipe, work: Work) -> str:
    """What a run costs, in a sentence for `--help`; empty for a model of no known rate.

    Args:
      cfg: its configuration.
      work: what it computes.
    """
    needed = minutes(cfg, work)
    if needed is None:
        return ""
    times = calls(needed)
    return (
        f"{work.total / 1e6:.2f} million replica-steps: {needed:.0f} min of a GPU at "
        f"{work.total / needed / 60:,.0f}/s, {times} call{'s' * (times > 1)} of "
        f"{CALL:g} min."
    )


def told(
    presets: Mapping[str, Preset[C]], of: Callable[[C], Work]
) -> Mapping[str, Preset[C]]:
    """The same presets, whose lines say what they cost, where that is known.

    Args:
      presets: of an experiment.
      of: what one computes.
    """

    def said(preset: Preset[C]) -> Preset[C]:
        cfg = preset.config
        known = (cfg.model, cfg.activations) in RATES
        if not known or cfg.data not in _EXAMPLES:
            return preset
        return preset._replace(help=f"{preset.help} {in_words(cfg, of(cfg))}")

    return {name: said(preset) for name, preset in presets.items()}
