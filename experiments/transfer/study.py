"""What the studies beside the matrix share: an experiment from a `Design`, parts of a set.

They are the matrix with other sources and targets; what is particular to one is in its
own file.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from experiments.display import Judged
from experiments.experiment import Experiment
from experiments.kinds import images
from experiments.transfer import matrix, pairs
from experiments.transfer.config import Config
from lottery_jax import errors, verdicts

if TYPE_CHECKING:
    import xarray as xr


def experiment(
    design: Callable[[Config], pairs.Design], **parts: Any
) -> Experiment[Config]:
    """A study of other sources and targets than the matrix.

    Args:
      design: of the study.
      **parts: of an `Experiment`, where they differ from those of the matrix.
    """
    own: dict[str, Any] = {
        "prepare": functools.partial(pairs.prepare, design),
        "one": functools.partial(pairs.one, design),
        "work": functools.partial(pairs.work, design),
    }
    return dataclasses.replace(matrix.EXPERIMENT, **(own | parts))


def of_set(cfg: Config, name: str) -> Config:
    """The recipe of another data set, all else equal."""
    return dataclasses.replace(cfg, data=name)


def others(cfg: Config) -> tuple[str, ...]:
    """The data sets beside the one that a study is about.

    Raises:
      ValueError: none, the same twice, or that one.
    """
    errors.some_different("datasets", cfg.datasets)
    if cfg.data in cfg.datasets:
        must = f"data sets other than {cfg.data!r}, which the study is about"
        raise errors.wrong("datasets", cfg.datasets, must)
    return cfg.datasets


def examples(recipe: Config) -> int:
    """How many training examples a recipe has."""
    return len(images.load_data(recipe).arrays["train"]["label"])


def subset(cfg: Config, number: int) -> tuple[str, Config]:
    """The first so many training examples of a set, and a name that says so."""
    return f"{cfg.data}-{number}", dataclasses.replace(cfg, subset=number)


def shares(cfg: Config) -> dict[str, Config]:
    """The recipes of the shares of a set, by names; a share of 1 is the set itself.

    Raises:
      ValueError: shares that make no sense.
    """
    errors.some_different("shares", cfg.shares)
    if not (min(cfg.shares) > 0 and max(cfg.shares) <= 1):
        raise errors.wrong("shares", cfg.shares, "in (0, 1]")
    number = examples(cfg)
    return dict(
        (cfg.data, cfg) if share == 1 else subset(cfg, max(1, round(share * number)))
        for share in sorted(cfg.shares)
    )


def replicas(results: "xr.Dataset") -> verdicts.Replicas:
    """The names of the replicas, for verdicts."""
    return verdicts.Replicas([f"replica {i}" for i in results["replica"].values])


def judged(claim: str, where: dict[str, Any], found: verdicts.Verdict) -> Judged:
    """A verdict with its claim and its place."""
    return Judged(where, claim, found._replace(claim=claim))
