"""What the studies of transfer are determined by."""

import dataclasses
from typing import Literal

from experiments import presets
from experiments.identity import FREE, UNLESS_DEFAULT, Where
from experiments.recipes import Recipe

Study = Literal["matrix", "optimizers", "halves", "few", "size", "structure"]
Carried = Literal["ticket", "structure", "dense"]


@dataclasses.dataclass(frozen=True)
class Config(Where, Recipe):
    """Everything that a study is determined by, and where and how it runs."""

    study: Study = "matrix"
    """matrix: tickets of every data set, trained on every data set. optimizers: found by
    SGD or Adam, trained by either. halves: from one half of a set to the other. few: to
    few examples of a set. size: from larger and richer parts of a set. structure: tickets,
    their masks alone and dense weights, side by side."""
    datasets: tuple[str, ...] = ("digits-a", "digits-b", "digits-5classes")
    """For matrix: data sets, instead of `data`; each is a source and a target. SET-a and
    SET-b are disjoint halves of one, SET-5classes are its first five classes. The sets
    beside `data` in other studies: sources for few and structure, targets for size."""
    shares: tuple[float, ...] = dataclasses.field(
        default=(0.1, 0.3, 1.0), metadata=UNLESS_DEFAULT
    )
    """For few and size: parts of the training examples of `data`, in (0, 1]."""
    sgd_learning_rate: float = dataclasses.field(default=0.02, metadata=UNLESS_DEFAULT)
    """For optimizers: the learning rate of SGD; `learning_rate` is Adam's."""
    carried: tuple[Carried, ...] = ("ticket",)
    """What is taken to a target: the ticket; the mask alone (structure), on a fresh draw;
    the trained dense weights, to be fine-tuned. The ticket must be among them."""
    levels: tuple[int, ...] = (2, 5, 8, 11)
    """Levels of pruning whose tickets travel, rising, each 1 or more. Densities are those
    of all prunable layers but the head, which stays behind and is never pruned."""
    rewind_step: str = "50it"
    """The step k that tickets are rewound to, and that training starts from."""
    fraction: float = 0.2
    """Share of the surviving weights removed at each level."""
    validation: int | None = 0
    """Training examples held out for validation; nothing is chosen by it."""
    every: int = 500
    """Steps of a segment; checkpoints are written between segments."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent runs, each with its own initialisation and noise."""
    tolerance: float = dataclasses.field(default=0.002, metadata=FREE)
    """How far above the native error a ticket that transfers may be."""


PRESETS = presets.make(Config, presets.TRANSFER)
