"""Larger and richer sources: tickets of parts of one data set, trained on others.

Parts are shares of the examples, and the first half of the classes beside as many examples
of all classes. Morcos et al. 2019: larger sources, in examples and in classes, give tickets
that transfer better.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import metrics, recipes
from experiments.display import Judged
from experiments.experiment import Outcome
from experiments.kinds import images
from experiments.transfer import compared, pairs, study
from experiments.transfer.config import Config
from lottery_jax import plots, verdicts
from lottery_jax.execution import Where

if TYPE_CHECKING:
    import xarray as xr

MORE, RICHER = "more examples give a better ticket", "more classes give a better ticket"


def design(cfg: Config) -> pairs.Design:
    """Parts of the set are the sources, the other sets the targets."""
    few = poor(cfg)
    sources = study.shares(cfg) | dict([study.subset(cfg, study.examples(few))])
    sources[f"{cfg.data}-{few.classes}classes"] = few
    targets = {name: study.of_set(cfg, name) for name in study.others(cfg)}
    return pairs.Design(sources | targets, tuple(sources), tuple(targets))


def poor(cfg: Config) -> Config:
    """The recipe of the first half of the classes, with all their examples."""
    return dataclasses.replace(cfg, classes=images.load_data(cfg).num_classes // 2)


def one(
    setups: Mapping[str, recipes.Setup], ids: list[int], where: Where
) -> "xr.Dataset":
    """As in the matrix, and how many examples each source has."""
    results = pairs.one(design, setups, ids, where)
    number = [
        len(setups[name].task.data["train"]["label"])
        for name in results["source"].values.tolist()
    ]
    return results.assign(examples=("source", np.array(number, np.int32)))


# --- what came out --------------------------------------------------------------------


def sizes(results: "xr.Dataset") -> tuple[dict[str, int], tuple[str, str]]:
    """Examples of the sources of all classes, and the pair that differs in classes.

    Returns:
      Numbers by name, rising, and the names of fewer and of all classes.
    """
    numbers = dict(zip(results["source"].values.tolist(), results["examples"].values))
    (few,) = (name for name in numbers if name.endswith("classes"))
    whole = sorted((n, name) for name, n in numbers.items() if name != few)
    (same,) = (name for n, name in whole if n == numbers[few])
    return {name: int(n) for n, name in whole}, (few, same)


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Also: whether more examples, or more classes, give better tickets.

    In the mean over densities, on each target and in the mean over all.
    """
    metric = recipes.metric(cfg)
    values = compared.tested(results, metric).sel(carried="ticket")
    values = values.mean("level", skipna=False)
    replicas, found = study.replicas(results), compared.judge(results, cfg)
    by_size, classes = sizes(results)
    targets = results["target"].values.tolist()
    pairs_ = [(MORE, *pair) for pair in itertools.combinations(by_size, 2)]
    for claim, less, more in [*pairs_, (RICHER, *classes)]:
        where = {"source": more, "than": less}
        for target in targets:
            a, b = (values.sel(source=s, target=target).values for s in (more, less))
            better = verdicts.better(a, b, metric=metric, replicas=replicas)
            found.append(study.judged(claim, {"target": target, **where}, better))
        means = values.mean("target", skipna=False)
        a, b = (means.sel(source=s).values for s in (more, less))
        better = verdicts.better(a, b, metric=metric, replicas=replicas)
        found.append(study.judged(f"{claim}, mean of targets", where, better))
    return found


def figures(outcome: Outcome) -> Iterator[tuple[str, Any, Sequence[Judged]]]:
    """What is lost against native by the size of the source; then as in the matrix."""
    about = [one for one in outcome.judged if one.claim.startswith((MORE, RICHER))]
    yield "size", _by_size(outcome), about
    yield from compared.figures(outcome)


def _by_size(outcome: Outcome) -> Any:
    results, metric = outcome.results, outcome.metric
    shown = metrics.quality(metric)
    values = shown.of(compared.tested(results, metric).sel(carried="ticket"))
    away = values - shown.of(compared.tested(results, metric, "native_"))
    away = away.mean("level", skipna=False)
    by_size, (few, same) = sizes(results)

    def of(target: Any, *names: str) -> tuple[np.ndarray, np.ndarray]:
        own = away.sel(target=target, source=list(names))
        number = np.array([by_size[same if name == few else name] for name in names])
        return number, own.transpose("replica", "source").values

    targets = results["target"].values.tolist()
    lines = {f"on {target}": of(target, *by_size) for target in targets}
    classes = few.rpartition("-")[2].removesuffix("classes")
    lines |= {f"{classes} classes, on {target}": of(target, few) for target in targets}
    unit = metrics.difference(metric).unit
    return plots.against(
        lines,
        xlabel=f"training examples of the source, {outcome.cfg.data}",
        ylabel=f"transferred - native {shown.name} ({unit})",
        title=f"{outcome.cfg.model}: mean over densities and "
        f"{results.sizes['replica']} replicas, bars: min to max",
        logarithmic=(True, False),
        ticks={n: f"{n:,}" for n in by_size.values()},
        baseline=0.0,
        baseline_label="native",
    )


EXPERIMENT = study.experiment(design, one=one, judge=judge, figures=figures)
"""The study of sizes."""
