"""What came out of the comparison: verdicts, tables and figures.

Differences are paired: of one replica, from one initialisation.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from experiments import display, metrics, recipes
from experiments.display import Judged, Rows, mean_range
from experiments.experiment import Drawn, Outcome
from experiments.gale.config import RATE, Config
from experiments.imp import tested
from lottery_jax import plots, verdicts

if TYPE_CHECKING:
    import xarray as xr

DENSE, BEST = "dense", "dense, best rate"


class Claim(NamedTuple):
    """A comparison of two methods at one density.

    Attributes:
      text: what is claimed.
      kind: "better": the first has less error; "matches": no more than the tolerance more.
      first: a method, or a dense network.
      second: another.
    """

    text: str
    kind: Literal["better", "matches"]
    first: str
    second: str


CLAIMS = (
    Claim("lottery worse than gradual", "better", "gradual", "lottery"),
    Claim("scratch worse than gradual", "better", "gradual", "scratch"),
    Claim("lottery no better than scratch", "matches", "scratch", "lottery"),
    Claim("lottery better than scratch", "better", "lottery", "scratch"),
    Claim("longer lottery worse than gradual", "better", "gradual", "lottery_longer"),
    Claim("longer scratch worse than gradual", "better", "gradual", "scratch_longer"),
    Claim(
        "longer lottery no better than longer scratch",
        "matches",
        "scratch_longer",
        "lottery_longer",
    ),
    Claim(
        "longer lottery better than longer scratch",
        "better",
        "lottery_longer",
        "scratch_longer",
    ),
    Claim("lottery worse than longer gradual", "better", "gradual_longer", "lottery"),
    Claim("scratch worse than longer gradual", "better", "gradual_longer", "scratch"),
    Claim("IMP better than gradual", "better", "imp", "gradual"),
    Claim(
        "IMP of as many steps better than gradual",
        "better",
        "imp_same_steps",
        "gradual",
    ),
    Claim("RigL better than SET", "better", "rigl", "set"),
    Claim("RigL better than static", "better", "rigl", "static"),
    Claim("SET better than static", "better", "set", "static"),
    Claim("RigL worse than gradual", "better", "gradual", "rigl"),
    Claim("gradual matches dense", "matches", "gradual", DENSE),
    Claim("gradual matches dense, best rate", "matches", "gradual", BEST),
)
"""What is claimed, in the order of docs/gale.md."""


def best_rate(results: "xr.Dataset", metric: verdicts.Metric) -> float:
    """The rate at which the dense network is best on validation, on the average.

    Args:
      results: of a run.
      metric: what is validated; rates at which a replica diverged come last.
    """
    values = results[f"dense_validation_{metric.name}"]
    values = values.where(results["dense_diverged"] == 0)
    worse = (values if metric.better == "lower" else -values).mean(
        "replica", skipna=False
    )
    chosen = worse.fillna(np.inf).argmin(RATE)
    return float(results[RATE][int(chosen)])


def dense(results: "xr.Dataset", metric: verdicts.Metric) -> "xr.DataArray":
    """What dense networks are compared by, `[learning_rate, replica]`; nan if diverged."""
    values = results[f"dense_test_{metric.name}"]
    return values.where(results["dense_diverged"] == 0)


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """At each density, every claim whose methods there are."""
    metric = recipes.metric(cfg)
    values, whole = tested(results, metric), dense(results, metric)
    at_rates = {DENSE: cfg.learning_rate, BEST: best_rate(results, metric)}
    names = [f"replica {i}" for i in results["replica"].values]
    same: dict[str, Any] = dict(metric=metric, replicas=verdicts.Replicas(names))

    def of(method: str, level: int) -> np.ndarray:
        if method in at_rates:
            return whole.sel({RATE: at_rates[method]}).values
        return (
            values.sel({"method": method, "level": level}).transpose("replica").values
        )

    judged = []
    there = {*results["method"].values.tolist(), *at_rates}
    for claim in CLAIMS:
        for level in results["level"].values.tolist() * ({*claim[2:]} <= there):
            first, second = of(claim.first, level), of(claim.second, level)
            if claim.kind == "better":
                found = verdicts.better(first, second, claim=claim.text, **same)
            else:
                found = verdicts.matching(first, second, cfg.tolerance, **same)
                found = found._replace(claim=claim.text)
            density = float(results["density"].sel(level=level))
            where = {"level": level, "density": density}
            judged.append(Judged(where, claim.text, found))
    return judged


# --- in words -------------------------------------------------------------------------


def labels(results: "xr.Dataset", cfg: Config) -> dict[str, str]:
    """What methods are called in tables and figures."""
    known = {
        "gradual_longer": f"gradual {cfg.longer}x",
        "lottery_longer": f"lottery {cfg.longer}x",
        "scratch_longer": f"scratch {cfg.longer}x",
        "imp": "IMP",
        "imp_same_steps": "IMP in as many steps",
        "rigl": "RigL",
        "set": "SET",
    }
    return {name: known.get(name, name) for name in results["method"].values.tolist()}


def conclusions(outcome: Outcome) -> list[str]:
    """For each claim its differences by density, with intervals; and the dense networks."""
    text, results, cfg = outcome.metric.text, outcome.results, outcome.cfg
    order = {claim.text: f"{claim.first} minus {claim.second}" for claim in CLAIMS}
    lines = []
    for claim, own in display.by_claim(outcome.judged).items():
        found = [
            f"{100 * one.where['density']:.1f}%: {one.verdict.answer} "
            f"({text(one.verdict.estimate)} [{text(one.verdict.low)}, "
            f"{text(one.verdict.high)}])"
            for one in own
        ]
        minus = order[claim].replace("_", " ")
        lines.append(f"{claim} ({minus}): {'; '.join(found)}")
    points = metrics.difference(outcome.metric)
    lines.append(
        f"By weights remaining. In brackets: difference of {points.name} in {points.unit} "
        f"with its paired 95% interval over n = {results.sizes['replica']} replicas; no "
        f"better, and matching: within {text(cfg.tolerance)} {points.unit}."
    )
    rate = best_rate(results, outcome.metric)
    shown, whole = metrics.quality(outcome.metric), dense(results, outcome.metric)
    each = "; ".join(
        f"{own:g}: {mean_range(shown.of(whole.sel({RATE: own}).values), 1)}"
        for own in results[RATE].values.tolist()
    )
    lines.append(
        f"Dense is best on validation at learning rate {rate:g}; all else is trained at "
        f"{cfg.learning_rate:g}. Test {shown.name} of dense in {shown.unit} at {each}."
    )
    if rate in (min(cfg.sweep_learning_rate), max(cfg.sweep_learning_rate)):
        lines.append(
            f"{rate:g} is an end of the rates that were tried: the best of dense may lie "
            "beyond."
        )
    axes = ("method", "level", "replica")
    flags = results["diverged"].transpose(*axes).values
    lines += [
        f"Diverged, and left out of every average: {int(number)} networks of {label}"
        for label, number in zip(
            labels(results, cfg).values(), (flags != 0).sum(axis=(1, 2))
        )
        if number
    ]
    return [*lines, *display.claims(outcome.judged)]


def tables(outcome: Outcome) -> list[Rows]:
    """Accuracy of each method by density, and the steps that it takes in all."""
    results, metric, cfg = outcome.results, outcome.metric, outcome.cfg
    shown = metrics.quality(metric)
    values, steps = shown.of(tested(results, metric)), results["steps"]
    columns = [f"{100 * x:.1f}%" for x in results["density"].values]
    levels = results["level"].values.tolist()
    rows, spent = [], []
    for method, label in labels(results, cfg).items():
        at = values.sel({"method": method})
        rows.append([label, *(mean_range(at.sel(level=n).values, 1) for n in levels)])
        own = steps.sel({"method": method}).values.tolist()
        spent.append([label, *(f"{number:,}" for number in own)])
    whole = shown.of(dense(results, metric))
    for label, rate in (
        (DENSE, cfg.learning_rate),
        ("dense at its best rate", best_rate(results, metric)),
    ):
        text = mean_range(whole.sel({RATE: rate}).values, 1)
        rows.append([f"{label}, {rate:g}", *[text] * len(levels)])
    title = f"Test {shown.name} in {shown.unit}: mean [min, max] of "
    title += f"{results.sizes['replica']} replicas; columns are weights remaining"
    about = "Training steps of one network in all, those that made its mask included"
    header = ["method", *columns]
    return [Rows(title, header, rows), Rows(about, header, spent)]


# --- drawn ----------------------------------------------------------------------------

PANELS: Mapping[str, tuple[str, ...]] = {
    "gradual pruning's mask, trained again": (
        "gradual",
        "lottery",
        "scratch",
        "gradual_longer",
        "lottery_longer",
        "scratch_longer",
    ),
    "other ways to the same density": (
        "gradual",
        "imp",
        "imp_same_steps",
        "rigl",
        "set",
        "static",
    ),
}
"""The methods of each panel, gradual pruning in both."""


def figures(outcome: Outcome) -> Iterator[Drawn]:
    """Accuracy against density, a line for each method, with dense as horizontal lines."""
    results, metric, cfg = outcome.results, outcome.metric, outcome.cfg
    shown, named = metrics.quality(metric), labels(outcome.results, outcome.cfg)
    values = shown.of(tested(results, metric)).transpose("method", "replica", "level")
    whole = shown.of(dense(results, metric))
    best = best_rate(results, metric)

    def level(rate: float) -> float:
        return float(whole.sel({RATE: rate}).mean())

    dashed = {f"dense at {cfg.learning_rate:g}": level(cfg.learning_rate)}
    if best != cfg.learning_rate:
        dashed[f"dense at its best rate, {best:g}"] = level(best)
    else:
        dashed = {f"dense at {best:g}, its best rate": level(best)}
    panels = {
        title: plots.Panel(
            {named[m]: values.sel({"method": m}).values for m in methods if m in named},
            dashed,
        )
        for title, methods in PANELS.items()
    }
    figure = plots.panels_against_density(
        results["density"].values,
        panels,
        ylabel=f"test {shown.name} at the end\nof training ({shown.unit})",
        title=f"{outcome.networks}, mean of {results.sizes['replica']} replicas, bars: "
        "min to max",
        shared=True,
        lowest=_lowest(panels) if metric == verdicts.ERROR else None,
    )
    yield shown.name, figure, outcome.judged


def _lowest(panels: Mapping[str, plots.Panel]) -> float | None:
    """Where the axis begins if the fixed random mask lies far below all else."""
    own = [
        line
        for panel in panels.values()
        for label, line in panel.lines.items()
        if label != "static"
    ]
    own += [np.array(list(panel.levels.values())) for panel in panels.values()]
    low, high = (f([f(x) for x in own]) for f in (np.nanmin, np.nanmax))
    least = np.nanmin([np.nanmin(y) for p in panels.values() for y in p.lines.values()])
    foot = float(low - 0.3 * (high - low))
    return foot if least < foot else None
