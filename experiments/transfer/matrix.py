"""Tickets of every data set on every data set: the matrix of sources and targets.

Morcos et al. 2019, section 4; Sabatelli et al. 2020, section 4.
"""

import dataclasses
import functools
import re

from experiments.experiment import Experiment
from experiments.transfer import compared, pairs
from experiments.transfer.config import PRESETS, Config
from lottery_jax import errors


def part(cfg: Config, text: str) -> Config:
    """The recipe of a data set or a part of one.

    Args:
      cfg: all else.
      text: SET, SET-a or SET-b for a half, SET-5classes for its first five classes.
    """
    found = re.fullmatch(r"([a-z0-9_]+)(?:-([ab])|-(\d+)classes)?", text)
    if found is None:
        raise errors.wrong(
            "datasets", repr(text), "SET, SET-a, SET-b or SET-5classes, a part of a set"
        )
    half, number = found[2], found[3]
    changes = {"half": half} if half else {"classes": int(number)} if number else {}
    return dataclasses.replace(cfg, data=found[1], **changes)


def design(cfg: Config) -> pairs.Design:
    """Every data set is a source and a target."""
    errors.some_different("datasets", cfg.datasets)
    recipes = {name: part(cfg, name) for name in cfg.datasets}
    return pairs.Design(recipes, cfg.datasets, cfg.datasets)


EXPERIMENT = Experiment(
    name="transfer",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    default="digits",
    tiny="--datasets digits-a digits-b --model mlp-4 --subset 200 --steps 2it "
    "--rewind-step 1it --every 2 --levels 1 --replicas 2",
    prepare=functools.partial(pairs.prepare, design),
    one=functools.partial(pairs.one, design),
    work=functools.partial(pairs.work, design),
    judge=compared.judge,
    tables=compared.tables,
    figures=compared.figures,
    conclusions=compared.conclusions,
)
