"""Tickets of language models: perplexity against density, and what rewinding is good for.

    python -m experiments.language                             # LSTM, tiny Shakespeare
    python -m experiments.language shakespeare-transformer

Trains a recurrent network or a Transformer to say which token comes next, prunes all its
leaves together and rewinds the rest to an early step, level after level, beside a random
mask of the same layer densities and fresh weights under the same mask. Then the same
without late rewinding, and in one shot: is it the procedure that finds the ticket?

Yu et al., Playing the Lottery with Rewards and Multiple Languages, 2020, section 4.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from experiments import display, imp, presets, recipes
from experiments.display import Judged, Rows
from experiments.experiment import Experiment, Outcome
from experiments.identity import FREE
from experiments.recipes import Setup
from lottery_jax import errors, plots, verdicts
from lottery_jax import imp as studies
from lottery_jax.execution import Where as Place

if TYPE_CHECKING:
    import xarray as xr

Beside = Literal["from_0", "one_shot"]

PROCEDURES: Mapping[str, tuple[str, str]] = {
    "from_0": ("rewinding to step 0", "iterative, rewound to 0"),
    "one_shot": ("one shot", "one shot, rewound late"),
}
"""Procedures that find other tickets: in a claim, and on a figure."""


@dataclasses.dataclass(frozen=True)
class Config(imp.Config):
    """Everything that a study is determined by, and where and how it runs."""

    beside: tuple[Beside, ...] = ("from_0", "one_shot")
    """Procedures whose tickets are compared with those of late rewinding: without late
    rewinding, and pruning the dense network at once."""
    tolerance: float = dataclasses.field(default=verdicts.LOSS.tolerance, metadata=FREE)
    """How much more loss than that of the dense network, in nats, a matching ticket has."""


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


def one(setup: Setup, ids: list[int], where: Place) -> "xr.Dataset":
    """The study of some replicas and the tickets beside it, or what is missing of it."""
    cfg = setup.cfg
    results = imp.one(setup, ids, where, "language")
    if not cfg.beside:
        return results
    others = setup._replace(plan=plan_beside(setup))
    found = imp.one(others, ids, where.below("beside"), "language")
    found = found.sel(arm="ticket", drop=True).rename(chain="procedure")
    kept = ("density", "diverged", *(x for x in found if str(x).startswith("test_")))
    return results.assign({f"beside_{name}": found[name] for name in kept})


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
            claim = _claim(name)
            verdict = verdicts.better(
                tickets.sel(level=level).values,
                others.sel(procedure=name, level=level).values,
                claim=claim,
                metric=metric,
                replicas=replicas,
            )
            judged.append(Judged(where, claim, verdict))
    return judged


def _claim(procedure: str) -> str:
    return f"better than {PROCEDURES[procedure][0]}"


def _lines(results: "xr.Dataset", name: str) -> dict[str, "xr.DataArray"]:
    """What was measured of each arm and each other procedure, `[replica, level]`."""
    values = results[name].where(results["diverged"] == 0).isel(chain=0)
    found = {
        str(arm).replace("_", " "): values.sel(arm=arm) for arm in results["arm"].values
    }
    if "procedure" in results.dims:
        others = beside(results, name)
        found |= {
            PROCEDURES[str(other)][1]: others.sel(procedure=other)
            for other in results["procedure"].values
        }
    return {label: x.transpose("replica", "level") for label, x in found.items()}


def _densities(results: "xr.Dataset") -> np.ndarray:
    at = results["density"].sel(arm="ticket").isel(chain=0)
    return at.mean("replica").values


def tables(outcome: Outcome) -> list[Rows]:
    """Loss, perplexity and error at each density, of each arm and other procedure."""
    results, rows, labels = outcome.results, [], dict[str, None]()
    for name, shown, scale, digits in (
        ("loss", "loss (nats)", 1, 3),
        ("perplexity", "perplexity", 1, 2),
        ("error", "error (%)", 100, 1),
    ):
        lines = _lines(results, f"test_{name}")
        labels |= dict.fromkeys(lines)
        for level, density in zip(results["level"].values, _densities(results)):
            values = (scale * x.sel(level=level).values for x in lines.values())
            at = [shown, str(int(level)), f"{100 * density:.1f}"]
            rows.append(at + [display.mean_range(x, digits) for x in values])
    title = f"On the test split: mean [min, max] of {results.sizes['replica']} replicas"
    return [Rows(title, ["per token", "level", "density %", *labels], rows)]


def figures(outcome: Outcome) -> Iterator[tuple[Any, ...]]:
    """Perplexity of tickets and controls, and of procedures, against density; layers."""
    results, cfg = outcome.results, outcome.cfg
    lines = {name: x.values for name, x in _lines(results, "test_perplexity").items()}
    arms = [str(arm).replace("_", " ") for arm in results["arm"].values]
    there = "procedure" in results.dims
    others = [str(x) for x in results["procedure"].values] if there else []
    of_others = [_claim(name) for name in others]
    late = f"iterative, rewound to {cfg.rewind_step}"
    lines[late] = lines["ticket"]
    drawn = {"perplexity": arms}
    if others:
        compared = [late, *(PROCEDURES[name][1] for name in others)]
        drawn["procedures"] = compared + [x for x in arms if x == "random mask"]
    about = f"{outcome.preset}: {outcome.networks}"
    about += f"\nmean of {results.sizes['replica']} replicas, bars: min to max"
    for name, labels in drawn.items():
        figure = plots.against_density(
            _densities(results),
            {label: lines[label] for label in labels},
            ylabel="test perplexity at the end of training",
            title=about,
            baseline=float(np.nanmean(lines["ticket"][:, 0]))
            if results["level"].values[0] == 0
            else None,
        )
        here = name == "procedures"
        mine = [one_ for one_ in outcome.judged if (one_.claim in of_others) == here]
        yield name, figure, mine
    yield from (
        drawn_ for drawn_ in imp.figures(outcome) if drawn_[0] == "layer_density"
    )


PRESETS = presets.make(Config, presets.LANGUAGE)

EXPERIMENT = Experiment(
    name="language",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    default="shakespeare-lstm",
    tiny="--data markov --model lstm-1-4 --length 5 --batch-size 8 --steps 3it "
    "--rewind-step 1it --validate-every 3 --levels 1 --replicas 2",
    prepare=prepare,
    one=one,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=imp.conclusions,
    complete=imp.complete,
    again=imp.retrain,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
