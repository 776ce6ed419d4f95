"""Other procedures beside that of a study: is it the procedure that finds the ticket?

A study prunes iteratively and rewinds to a late step. Beside it the same networks are
pruned without late rewinding, and in one shot, and their tickets are compared with its own.
An experiment mixes `Beside` into the configuration of a study, and has its `prepare`, `one`
and `judge` from here.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments import cost, imp, recipes
from experiments.display import Judged
from experiments.recipes import Setup
from lottery_jax import errors, verdicts
from lottery_jax import imp as studies
from lottery_jax.execution import Where

if TYPE_CHECKING:
    import xarray as xr

Procedure = Literal["from_0", "one_shot"]

PROCEDURES: Mapping[str, tuple[str, str]] = {
    "from_0": ("rewinding to step 0", "iterative, rewound to 0"),
    "one_shot": ("one shot", "one shot, rewound late"),
}
"""Procedures that find other tickets: in a claim, and on a figure."""


@dataclasses.dataclass(frozen=True)
class Config(imp.Config):
    """A study, and the procedures that its tickets are compared with."""

    beside: tuple[Procedure, ...] = ("from_0", "one_shot")
    """Procedures whose tickets are compared with those of late rewinding: without late
    rewinding, and pruning the dense network at once."""


# --- running --------------------------------------------------------------------------


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and plan; errors name the field."""
    for field in ("schedules", "retrains"):
        if len(values := getattr(cfg, field)) != 1:
            must = "one alone: `beside` names what its tickets are compared with"
            raise errors.wrong(field, values, must)
    for name in cfg.beside:
        errors.one_of("beside", name, PROCEDURES)
    if len(set(cfg.beside)) < len(cfg.beside):
        raise errors.wrong("beside", cfg.beside, "procedures, each once")
    setup = imp.prepare(cfg)
    if setup.plan.sweep:
        raise errors.wrong("sweep", setup.plan.sweep, "empty: there is no sweep here")
    if "from_0" in cfg.beside and setup.plan.rewind_step == 0:
        must = "after step 0, or beside without 'from_0', which it would be"
        raise errors.wrong("rewind_step", cfg.rewind_step, must)
    return setup


def plan_beside(setup: Setup) -> studies.Plan:
    """The plan of the other procedures: tickets alone, in the order of `beside`."""
    (chain,) = setup.plan.chains
    own: Mapping[str, dict[str, Any]] = {
        "from_0": {"rewind_step": 0},
        "one_shot": {"one_shot": True},
    }
    chains = tuple(
        dataclasses.replace(chain, name=name, **own[name]) for name in setup.cfg.beside
    )
    return dataclasses.replace(setup.plan, chains=chains, arms=("ticket",))


def one(setup: Setup, ids: list[int], where: Where, experiment: str) -> "xr.Dataset":
    """The study of some replicas and the tickets beside it, or what is missing of it.

    Args:
      setup: from `prepare`.
      ids: of the replicas.
      where: it runs.
      experiment: whose tickets they are.
    """
    cfg = setup.cfg
    results = imp.one(setup, ids, where, experiment)
    if not cfg.beside:
        return results
    others = setup._replace(plan=plan_beside(setup))
    found = imp.one(others, ids, where.below("beside"), experiment)
    found = found.sel(arm="ticket", drop=True).rename(chain="procedure")
    kept = ("density", "diverged", *(x for x in found if str(x).startswith("test_")))
    return results.assign({f"beside_{name}": found[name] for name in kept})


def work(setup: Setup) -> cost.Work:
    """What the study and the procedures beside it cost."""
    own = imp.work(setup)
    if not setup.cfg.beside:
        return own
    beside = imp.work(setup._replace(plan=plan_beside(setup)))
    return cost.together(own, cost.named("beside", beside))


# --- what came out --------------------------------------------------------------------


def beside(results: "xr.Dataset", name: str) -> "xr.DataArray":
    """What is measured of the tickets of other procedures; nan where diverged.

    Args:
      results: from `one`.
      name: "test_loss", say.
    """
    return results[f"beside_{name}"].where(results["beside_diverged"] == 0)


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """At each level: matching, better than its controls, and than other procedures?"""
    judged = imp.judge(results, cfg)
    if "procedure" not in results.dims:  # none, or one stored level again
        return judged
    metric = recipes.metric(cfg)
    replicas = verdicts.Replicas([f"replica {i}" for i in results["replica"].values])
    tickets = imp.tested(results, metric).sel(arm="ticket").isel(chain=0)
    others = beside(results, f"test_{metric.name}")
    places = {one_.where["level"]: one_.where for one_ in judged}
    for level, where in places.items():
        for name in map(str, results["procedure"].values):
            if name == "one_shot" and level == 1:
                continue  # one prune of the dense network: the same ticket
            verdict = verdicts.better(
                tickets.sel(level=level).values,
                others.sel(procedure=name, level=level).values,
                claim=claim(name),
                metric=metric,
                replicas=replicas,
            )
            judged.append(Judged(where, claim(name), verdict))
    return judged


def claim(procedure: str) -> str:
    """What is claimed of tickets against those of another procedure."""
    return f"better than {PROCEDURES[procedure][0]}"


def there(results: "xr.Dataset") -> list[str]:
    """The other procedures of results; none in one stored level again."""
    if "procedure" not in results.dims:
        return []
    return [str(name) for name in results["procedure"].values]


def lines(results: "xr.Dataset", name: str) -> dict[str, "xr.DataArray"]:
    """What was measured of each arm and each other procedure, `[replica, level]`.

    Args:
      results: from `one`.
      name: "test_loss", say.
    """
    values = results[name].where(results["diverged"] == 0).isel(chain=0)
    found = {
        str(arm).replace("_", " "): values.sel(arm=arm) for arm in results["arm"].values
    }
    for other in there(results):
        found[PROCEDURES[other][1]] = beside(results, name).sel(procedure=other)
    return {label: x.transpose("replica", "level") for label, x in found.items()}


def densities(results: "xr.Dataset") -> np.ndarray:
    """The density at each level, `[level]`."""
    at = results["density"].sel(arm="ticket").isel(chain=0)
    return at.mean("replica").values


def drawn(
    found: Mapping[str, "xr.DataArray"], results: "xr.Dataset", cfg: Config, name: str
) -> dict[str, dict[str, np.ndarray]]:
    """What is drawn on two figures: lines of arms, and of procedures.

    Args:
      found: from `lines`.
      results: of them.
      cfg: of the study.
      name: of the figure of the arms; the other one is "procedures", if there are any.
    """
    arms = [str(arm).replace("_", " ") for arm in results["arm"].values]
    figures = {name: {label: found[label].values for label in arms}}
    if others := there(results):
        own = {f"iterative, rewound to {cfg.rewind_step}": found["ticket"].values}
        own |= {
            label: found[label].values
            for label in (PROCEDURES[other][1] for other in others)
        }
        own |= {label: found[label].values for label in arms if label == "random mask"}
        figures["procedures"] = own
    return figures


def about(judged: list[Judged], figure: str, results: "xr.Dataset") -> list[Judged]:
    """The verdicts that are written below a figure of `drawn`: those of its lines."""
    of_others = [claim(name) for name in there(results)]
    return [
        one_ for one_ in judged if (one_.claim in of_others) == (figure == "procedures")
    ]
