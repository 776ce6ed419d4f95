"""Tickets for few examples: from all of the set, from another, or found on the few.

Native tickets are found on the few examples themselves. Morcos et al. 2019 and Sabatelli et
al. 2020 ask whether a ticket of a large set serves where data are scarce.
"""

from typing import TYPE_CHECKING

from experiments import recipes
from experiments.display import Judged
from experiments.transfer import compared, pairs, study
from experiments.transfer.config import Config
from lottery_jax import verdicts

if TYPE_CHECKING:
    import xarray as xr


def design(cfg: Config) -> pairs.Design:
    """Sources are the whole set and the others, targets are shares of the set."""
    targets = study.shares(cfg)
    sources = {name: study.of_set(cfg, name) for name in (cfg.data, *study.others(cfg))}
    targets.pop(cfg.data, None)  # the whole set is a source
    return pairs.Design(sources | targets, tuple(sources), tuple(targets))


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Also: whether tickets of more examples are better than those that few find."""
    metric = recipes.metric(cfg)
    travelled = compared.tested(results, metric).sel(carried="ticket")
    native = compared.tested(results, metric, "native_")
    replicas, found = study.replicas(results), compared.judge(results, cfg)
    for source in results["source"].values.tolist():
        for target in results["target"].values.tolist():
            at = {"source": source, "target": target}
            pair = travelled.sel(at), native.sel(target=target)
            a, b = (x.mean("level", skipna=False).values for x in pair)
            better = verdicts.better(a, b, metric=metric, replicas=replicas)
            claim = "ticket better than native, mean of densities"
            found.append(study.judged(claim, at, better))
    return found


EXPERIMENT = study.experiment(design, judge=judge)
"""The study of few examples."""
