"""What came out of a study of cures: gaps, verdicts, tables and figures.

The gap is the error of the mask on fresh weights (reinit) minus that of the ticket, of the
same replica. All settings of a replica share its initialisation and its noise, so gaps are
compared within it.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import display, metrics, recipes
from experiments.display import Judged, Rows
from experiments.experiment import Drawn, Outcome
from experiments.imp import tested
from experiments.liu.config import ARMS, NONE, Config
from lottery_jax import plots, verdicts

if TYPE_CHECKING:
    import xarray as xr


def gap(results: "xr.Dataset", metric: verdicts.Metric) -> "xr.DataArray":
    """By how much fresh weights are worse than the ticket, in the metric's unit.

    Args:
      results: of a run.
      metric: what networks are compared by.

    Returns:
      `[cure, learning_rate, replica, level]`, of the levels after 0; nan where either
      diverged.
    """
    values = tested(results, metric).isel(level=slice(1, None))
    worse = values.sel(arm="reinit") - values.sel(arm="ticket")
    return worse if metric.better == "lower" else -worse


def dense(results: "xr.Dataset", metric: verdicts.Metric) -> "xr.DataArray":
    """What the dense networks reach, `[cure, learning_rate, replica]`."""
    return tested(results, metric).sel(arm="ticket", level=0)


def different(results: "xr.Dataset", metric: verdicts.Metric) -> "xr.DataArray":
    """Those that differ: to a dense network it is nothing where levels start from."""
    return dense(results, metric).isel(cure=results["rewind_step"].values == 0)


def best_dense(results: "xr.Dataset", metric: verdicts.Metric) -> "xr.DataArray":
    """The dense networks of the setting that is best on the average, `[replica]`."""
    each = different(results, metric)
    settings = each.stack(at=("cure", "learning_rate"))
    worse = settings if metric.better == "lower" else -settings
    return settings.isel(at=int(worse.mean("replica").fillna(np.inf).argmin("at")))


def densities(results: "xr.Dataset") -> np.ndarray:
    """Of the levels after 0, `[levels]`; the same at every setting."""
    density = results["density"].isel(cure=0, learning_rate=0, replica=0)
    return density.values[1:]


# --- verdicts -------------------------------------------------------------------------


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Where is there a gap, does it close at the high rate, which cure brings it back?"""
    replicas = verdicts.Replicas([f"replica {i}" for i in results["replica"].values])
    how: dict[str, Any] = {"metric": recipes.metric(cfg), "replicas": replicas}
    whole = different(results, how["metric"]).sel(cure=NONE)
    price = verdicts.better(
        whole.sel(learning_rate=cfg.high).values,
        whole.sel(learning_rate=cfg.low).values,
        claim=f"dense better at {cfg.high:g} than at {cfg.low:g}",
        **how,
    )
    return [
        *_of_tickets(results, cfg, how),
        *_of_gaps(results, cfg, how),
        Judged({}, price.claim, price),
    ]


def _of_tickets(
    results: "xr.Dataset", cfg: Config, how: dict[str, Any]
) -> Iterator[Judged]:
    """Of each ticket: is it better than reinit, and as good as dense can be?"""
    metric = how["metric"]
    values, networks = tested(results, metric), different(results, metric)
    networks = networks.stack(at=("cure", "learning_rate")).transpose("at", "replica")
    for cure, rate in itertools.product(
        results["cure"].values.tolist(), cfg.sweep_learning_rate
    ):
        for level, density in enumerate(densities(results).tolist(), 1):
            at = {"cure": cure, "learning_rate": rate, "level": level}
            ticket, reinit = (values.sel(at).sel(arm=arm).values for arm in ARMS)
            # Who matches the dense networks of all settings matches the best of them.
            matching = [
                verdicts.matching(ticket, one, cfg.tolerance, **how)
                for one in networks.values
            ]
            for verdict in (
                verdicts.better(
                    ticket, reinit, claim="ticket better than reinit", **how
                ),
                verdicts.combine(*matching, claim="ticket matches dense at its best"),
            ):
                yield Judged(at | {"density": density}, verdict.claim, verdict)


def _of_gaps(
    results: "xr.Dataset", cfg: Config, how: dict[str, Any]
) -> Iterator[Judged]:
    """Is the gap smaller at the high rate, and greater there with each cure?"""
    gaps, cures = gap(results, how["metric"]), results["cure"].values.tolist()
    for level, density in enumerate(densities(results).tolist(), 1):
        own, at = gaps.sel(level=level), {"level": level, "density": density}
        high = own.sel(learning_rate=cfg.high)
        failing = high.sel(cure=NONE)
        less = verdicts.paired(
            (failing - own.sel(learning_rate=cfg.low, cure=NONE)).values,
            side="<",
            tolerance=0.0,
            claim=f"gap smaller at {cfg.high:g} than at {cfg.low:g}",
            **how,
        )
        yield Judged(at, less.claim, less)
        for cure in (name for name in cures if name != NONE):
            more = verdicts.paired(
                (high.sel(cure=cure) - failing).values,
                side=">",
                tolerance=0.0,
                claim=f"gap comes back at {cfg.high:g}: {cure}",
                **how,
            )
            yield Judged(at | {"cure": cure}, more.claim, more)


def conclusions(outcome: Outcome) -> list[str]:
    """The verdicts on gaps and rates, how often the others hold, and the best dense."""
    results, metric = outcome.results, outcome.metric
    placed = [
        f"{100 * one.where['density']:.1f}%: {one.verdict.describe()}"
        if "density" in one.where
        else one.verdict.describe()
        for one in outcome.judged
        if "learning_rate" not in one.where
    ]
    chosen = best_dense(results, metric)
    shown = metrics.quality(metric)
    lines = [
        f"Dense is best at {float(chosen['learning_rate']):g}, cure "
        f"{chosen['cure'].item()}: {shown.name} "
        f"{display.mean_range(shown.of(chosen.values), 1)} {shown.unit}",
        "Larger batches train for equal " + outcome.cfg.equal + "; gap: reinit minus "
        f"ticket, in {metric.unit}; matching: within {metric.text(outcome.cfg.tolerance)} "
        "of dense at every setting.",
    ]
    return [*placed, *lines, *display.claims(outcome.judged)]


# --- shown ----------------------------------------------------------------------------


def interval(values: np.ndarray, metric: verdicts.Metric) -> np.ndarray:
    """A mean and its 95% interval as three rows, whose mean and extent these are.

    Args:
      values: `[replicas, N]`.
      metric: what they are differences of.

    Returns:
      `[3, N]`; nan where fewer than two replicas are left.
    """
    found = [
        verdicts.paired(column, side=">", tolerance=0.0, claim="", metric=metric)
        for column in values.T
    ]
    rows = np.array([(one.low, one.estimate, one.high) for one in found]).T
    return np.where(np.isfinite(rows).all(axis=0), rows, np.nan)


def tables(outcome: Outcome) -> list[Rows]:
    """What everything reaches at each setting, and the gap."""
    results, metric = outcome.results, outcome.metric
    shown, points = metrics.quality(metric), metrics.difference(metric)
    values, gaps, whole = (f(results, metric) for f in (tested, gap, dense))
    answers = {
        (j.where["cure"], j.where["learning_rate"], j.where["level"]): j.verdict.answer
        for j in outcome.judged
        if j.claim == "ticket better than reinit"
    }
    rows = []
    for cure, rate in itertools.product(
        results["cure"].values.tolist(), outcome.cfg.sweep_learning_rate
    ):
        at = {"cure": cure, "learning_rate": rate}
        between = points.of(interval(gaps.sel(at).values, metric))
        for i, share in enumerate(densities(results)):
            own = values.sel(at | {"level": i + 1})
            low, mean, high = between[:, i]
            rows.append(
                [
                    cure,
                    f"{rate:g}",
                    f"{100 * share:.1f}",
                    *(
                        display.mean_range(shown.of(x.values), 1)
                        for x in (
                            own.sel(arm="ticket"),
                            own.sel(arm="reinit"),
                            whole.sel(at),
                        )
                    ),
                    f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]",
                    answers[cure, rate, i + 1],
                ]
            )
    number = results.sizes["replica"]
    title = f"Test {shown.name} in {shown.unit}: mean [min, max] of {number} replicas; "
    title += f"gap in {points.unit} with its 95% interval"
    header = ["cure", "rate", "density %", "ticket", "reinit", "dense", "gap"]
    return [Rows(title, [*header, "ticket better"], rows)]


def figures(outcome: Outcome) -> Iterator[Drawn]:
    """For each cure, a column: the gap at all rates, and below what it is made of."""
    results, cfg, metric = outcome.results, outcome.cfg, outcome.metric
    shown, points = metrics.quality(metric), metrics.difference(metric)
    values, gaps, whole = (f(results, metric) for f in (tested, gap, dense))
    most = float(shown.of(best_dense(results, metric)).mean())
    cures = results["cure"].values.tolist()
    panels = {}
    for cure in cures:
        panels[f"cure: {cure}"] = plots.Panel(
            {
                f"gap at {rate:g}": points.of(
                    interval(gaps.sel(cure=cure, learning_rate=rate).values, metric)
                )
                for rate in cfg.sweep_learning_rate
            },
            {"no gap": 0.0},
        )
    ylabels = [f"gap: reinit - ticket\n({points.unit} of {points.name})"]
    for rate in cfg.sweep_learning_rate:
        ylabels.append(f"test {shown.name}\nat {rate:g} ({shown.unit})")
        for cure in cures:
            at = {"cure": cure, "learning_rate": rate}
            own = values.sel(at).isel(level=slice(1, None))
            panels[f"{cure}, rate {rate:g}"] = plots.Panel(
                {
                    arm: shown.of(own.sel(arm=arm).transpose("replica", "level").values)
                    for arm in ARMS
                },
                {
                    "dense, at the same setting": float(shown.of(whole.sel(at)).mean()),
                    "dense, at its best setting": most,
                },
            )
    title = (
        f"{outcome.networks}, mean of {results.sizes['replica']} replicas; bars: 95% "
    )
    title += "interval of the gap, min to max of the others"
    figure = plots.panels_against_density(
        densities(results),
        panels,
        ylabel=ylabels,
        title=title,
        columns=len(cures),
    )
    yield "gap", figure, outcome.judged
