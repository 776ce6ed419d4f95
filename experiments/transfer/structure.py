"""Structure against weights: tickets, their masks alone, and dense weights, side by side.

What of a source helps on a target? The mask with its weights (ticket), the mask on weights
that were drawn and trained to the rewind step on the target (structure), or the trained
dense network of the source, fine-tuned? Beside them are a random ticket, the target's own
and its dense network from scratch.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import metrics, recipes
from experiments.display import Judged
from experiments.experiment import Outcome
from experiments.transfer import compared, pairs, study
from experiments.transfer.config import Config
from lottery_jax import errors, plots, verdicts

if TYPE_CHECKING:
    import xarray as xr

ALL = ("ticket", "structure", "dense")


def design(cfg: Config) -> pairs.Design:
    """The other sets are sources, the set is the target; all three things are carried.

    Raises:
      ValueError: one of the three is not carried.
    """
    if set(cfg.carried) != set(ALL):
        must = f"{', '.join(ALL)}, which this study compares"
        raise errors.wrong("carried", cfg.carried, must)
    sources = {name: study.of_set(cfg, name) for name in study.others(cfg)}
    return pairs.Design(sources | {cfg.data: cfg}, tuple(sources), (cfg.data,))


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Also: what the dense weights of the source are worth beside its tickets."""
    metric = recipes.metric(cfg)
    travelled = compared.tested(results, metric)
    dense, tuned = (
        compared.tested(results, metric, of) for of in ("dense_", "fine_tuned_")
    )
    density = results["density"].mean("replica")
    replicas, found = study.replicas(results), compared.judge(results, cfg)
    sources, targets, levels = (
        results[axis].values.tolist() for axis in ("source", "target", "level")
    )
    for source, target in itertools.product(sources, targets):
        pair = {"source": source, "target": target}
        own = tuned.sel(pair).values
        better = verdicts.better(
            own, dense.sel(target=target).values, metric=metric, replicas=replicas
        )
        claim = "dense of the source, fine-tuned, better than dense"
        found.append(study.judged(claim, pair, better))
        for what, level in itertools.product(results["carried"].values, levels):
            at = {**pair, "level": level}
            values = travelled.sel(carried=what, **at).values
            matching = verdicts.matching(
                values, own, cfg.tolerance, metric=metric, replicas=replicas
            )
            where = {**at, "density": float(density.sel(at))}
            claim = f"{what} matches dense of the source, fine-tuned"
            found.append(study.judged(claim, where, matching))
    return found


def figures(outcome: Outcome) -> Iterator[tuple[str, Any, Sequence[Judged]]]:
    """All that is carried, side by side, a panel per source; then differences to native."""
    claims = (
        "ticket better",
        "structure better",
        "ticket matches",
        "structure matches",
        "dense of the source",
    )
    about = [one for one in outcome.judged if one.claim.startswith(claims)]
    yield "structure", _panels(outcome), about
    for name, figure, judged in compared.figures(outcome):
        if name.startswith("difference"):
            yield name, figure, judged


def _panels(outcome: Outcome) -> Any:
    results, metric = outcome.results, outcome.metric
    shown = metrics.quality(metric)
    (target,) = results["target"].values.tolist()

    def of(prefix: str) -> Any:
        return shown.of(compared.tested(results, metric, prefix)).sel(target=target)

    axes, levels = ("replica", "level"), results.sizes["level"]

    def lines(source: str) -> dict[str, np.ndarray]:
        carried = of("").sel(source=source)
        tuned = of("fine_tuned_").sel(source=source).values
        found = {
            f"{what} of the source": carried.sel(carried=what)
            for what in results["carried"].values.tolist()
        }
        found |= {"random ticket": of("random_"), "native ticket": of("native_")}
        drawn = {name: line.transpose(*axes).values for name, line in found.items()}
        name = "dense of the source, fine-tuned"
        return drawn | {name: np.repeat(tuned[:, None], levels, axis=1)}

    sources = results["source"].values.tolist()
    dense = {"dense from scratch": float(of("dense_").mean())}
    panels = {f"from {one}": plots.Panel(lines(one), dense) for one in sources}
    return plots.panels_against_density(
        results["density"].mean(("target", "source", "replica")).values,
        panels,
        ylabel=f"test {shown.label}",
        title=f"{outcome.cfg.model} on {target}: mean of {results.sizes['replica']} "
        "replicas, bars: min to max",
    )


EXPERIMENT = study.experiment(design, judge=judge, figures=figures)
"""The study of structure against weights."""
