"""What came out of a study of transfer: verdicts, tables and figures.

Differences are paired: of one replica of the targets, on the same noise.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import display, metrics, recipes
from experiments.display import Judged, Rows, mean_deviation
from experiments.experiment import Outcome
from experiments.transfer.config import Config
from lottery_jax import plots, verdicts

if TYPE_CHECKING:
    import xarray as xr

MEAN_OF_DENSITIES = "mean of densities"
"""How claims end that are about all densities at once."""


def tested(
    results: "xr.Dataset", metric: verdicts.Metric, of: str = ""
) -> "xr.DataArray":
    """What networks are compared by; those that diverged are nan.

    Args:
      results: of a study.
      metric: its name is that of the records.
      of: whose: "" for those that travelled; "native_", "random_", "dense_" or
        "fine_tuned_".
    """
    return results[f"{of}test_{metric.name}"].where(results[f"{of}diverged"] == 0)


# --- verdicts -------------------------------------------------------------------------


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """What transfers, what beats random tickets, and what matches the dense network.

    A source transfers where it is no more than the tolerance worse than the target's own
    ticket. A target's own ticket, grafted like the others, shows what the new head costs.
    """
    metric = recipes.metric(cfg)
    names = [f"replica {i}" for i in results["replica"].values]
    replicas = verdicts.Replicas(names)
    travelled = tested(results, metric)
    native, random, dense = (
        tested(results, metric, of) for of in ("native_", "random_", "dense_")
    )
    judged: list[Judged] = []

    def matches(claim: str, where: dict[str, Any], a: Any, b: Any) -> None:
        found = verdicts.matching(
            a.values, b.values, cfg.tolerance, metric=metric, replicas=replicas
        )
        judged.append(Judged(where, claim, found._replace(claim=claim)))

    def beats(claim: str, where: dict[str, Any], a: Any, b: Any) -> None:
        found = verdicts.better(
            a.values, b.values, claim=claim, metric=metric, replicas=replicas
        )
        judged.append(Judged(where, claim, found))

    sources, targets = (results[axis].values.tolist() for axis in ("source", "target"))
    levels = results["level"].values.tolist()
    carried = results["carried"].values.tolist()
    density = results["density"].mean("replica")
    head = results.attrs.get("head", "replaced")  # as the matrix does
    for what, source, target in itertools.product(carried, sources, targets):
        pair = {"source": source, "target": target}
        if source == target and what == "ticket" and head == "kept":
            continue  # the very same training again
        here = travelled.sel(carried=what, **pair)
        claim = _transfers(what, source, target, head)
        for level in levels:
            at = {"level": level}
            where = {**pair, **at, "density": float(density.sel(**pair, **at))}
            own = here.sel(at)
            reference = native.sel(target=target, **at)
            matches(claim, where, own, reference)
            control = random.sel(target=target, **at)
            beats(f"{what} better than random ticket", where, own, control)
            matches(f"{what} matches dense", where, own, dense.sel(target=target))
            if what != "ticket":
                ticket = travelled.sel(carried="ticket", **pair, **at)
                beats(f"ticket better than {what}", where, ticket, own)
        means = here.mean("level", skipna=False), native.sel(target=target)
        mean = means[1].mean("level", skipna=False)
        matches(f"{claim}, {MEAN_OF_DENSITIES}", pair, means[0], mean)
    for what, source in itertools.product(carried, sources):
        others = [target for target in targets if target != source]
        if len(others) > 1:
            axes = ("target", "level")
            here = travelled.sel(carried=what, source=source, target=others)
            a, b = (
                x.mean(axes, skipna=False) for x in (here, native.sel(target=others))
            )
            claim = f"{what} transfers, mean of targets and densities"
            matches(claim, {"source": source}, a, b)
    for target, level in itertools.product(targets, levels):
        at = {"target": target, "level": level}
        own, control = native.sel(at), random.sel(at)
        beats("native ticket better than random ticket", at, own, control)
        matches("native ticket matches dense", at, own, dense.sel(target=target))
    if "fine_tuned_diverged" in results:
        tuned = tested(results, metric, "fine_tuned_")
        for source, target in itertools.product(sources, targets):
            if source != target:
                pair = {"source": source, "target": target}
                claim = "dense of the source, fine-tuned, matches dense"
                matches(claim, pair, tuned.sel(pair), dense.sel(target=target))
    return judged


def conclusions(outcome: Outcome) -> list[str]:
    """How often each claim holds; each source in the mean; who diverged."""
    points = metrics.difference(outcome.metric)
    lines = display.claims(outcome.judged)
    for one in outcome.judged:
        if set(one.where) == {"source"}:
            found = one.verdict
            half = points.of((found.high - found.low) / 2)
            lines.append(
                f"{one.claim}, from {one.where['source']}: {found.answer}, "
                f"{points.of(found.estimate):+.2f} ± {half:.2f} {points.unit} of "
                f"{points.name} (n = {found.n})"
            )
    flags = [name for name in outcome.results if str(name).endswith("diverged")]
    for name in flags:
        if number := int((outcome.results[name] != 0).sum()):
            whose = str(name).removesuffix("diverged").strip("_").replace("_", " ")
            lines.append(
                f"Diverged, or pruned by weights that did, and left out of every "
                f"average: {number} {whose or 'transferred'} networks"
            )
    return lines


# --- tables ---------------------------------------------------------------------------


def tables(outcome: Outcome) -> list[Rows]:
    """Accuracy on each target, differences to native tickets, and what masks share."""
    found = [_accuracy(outcome), _differences(outcome)]
    several = outcome.results.sizes["source"] > 1
    return [*found, _overlap(outcome)] if several else found


def _accuracy(outcome: Outcome) -> Rows:
    """Targets and densities against what is trained there."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    columns = _lines(outcome)
    dense = shown.of(tested(results, outcome.metric, "dense_"))
    header, rows, tuned = ["target", "density %", "dense", *columns], [], None
    if "fine_tuned_diverged" in results:
        tuned = shown.of(tested(results, outcome.metric, "fine_tuned_"))
        header += [f"dense of {source}" for source in results["source"].values]
    for target in results["target"].values:
        row = [mean_deviation(dense.sel(target=target).values, 1)]
        row += ["-"] * len(columns)
        if tuned is not None:
            row += [mean_deviation(x.values, 1) for x in tuned.sel(target=target)]
        rows.append([str(target), "dense", *row])
        for level in results["level"].values:
            at = {"target": target, "level": level}
            share = f"{100 * float(results['density'].sel(at).mean()):.1f}"
            row = [mean_deviation(line.sel(at).values, 1) for line in columns.values()]
            rest = ["-"] * (len(header) - 3 - len(row))
            rows.append([str(target), share, "-", *row, *rest])
    title = f"{outcome.preset}: test {shown.name} in {shown.unit}, mean ± deviation of "
    title += f"{results.sizes['replica']} replicas"
    return Rows(title, header, rows)


def _differences(outcome: Outcome) -> Rows:
    """Sources against targets: how far from native, in the mean over densities."""
    points = metrics.difference(outcome.metric)
    targets = [str(target) for target in outcome.results["target"].values]
    rows = []
    for what, source in itertools.product(
        outcome.results["carried"].values, outcome.results["source"].values
    ):
        cells = []
        for target in targets:
            found = _mean_difference(outcome.judged, str(what), str(source), target)
            if found is None:
                cells.append("itself")
                continue
            half = points.of((found.high - found.low) / 2)
            cells.append(f"{points.of(found.estimate):+.2f} ± {half:.2f}")
        rows.append([f"{what} of {source}", *cells])
    title = (
        f"{points.name} above that of the native ticket, in {points.unit}: mean over "
    )
    title += "densities ± 95% half-width"
    return Rows(title, ["", *(f"on {target}" for target in targets)], rows)


def _overlap(outcome: Outcome) -> Rows:
    """What masks of two sources have in common, in the mean over pairs of them."""
    results = outcome.results
    other = results["source"].values[:, None] != results["other"].values[None, :]
    rows = []
    for level in results["level"].values:
        share = float(results["density"].sel(level=level).mean())
        found = [
            100
            * float(results[name].sel(level=level).mean("replica").values[other].mean())
            for name in ("overlap", "overlap_by_chance")
            if other.any()
        ]
        rows.append(
            [f"{100 * share:.1f}", *(f"{x:.1f}" for x in found or [np.nan] * 2)]
        )
    title = "Surviving weights of one source that survive in another, too, in %"
    return Rows(title, ["density %", "in common", "by chance"], rows)


# --- figures --------------------------------------------------------------------------


def figures(outcome: Outcome) -> Iterator[tuple[str, Any, Sequence[Judged]]]:
    """Accuracy against density, a panel per target; transferred minus native, as maps."""
    results, judged = outcome.results, outcome.judged
    for what in results["carried"].values:
        end = "" if what == "ticket" else f"_{what}"
        mine = [one for one in judged if one.claim.startswith(f"{what} ")]
        transfers = [
            one
            for one in judged
            if f"{what} transfers" in one.claim or _at_home(one, str(what))
        ]
        others = [one for one in mine if one not in transfers]
        if what == "ticket":
            others += [one for one in judged if one.claim.startswith("native ticket ")]
            others = [one for one in others if not _at_home(one, "ticket")]
        several = results.sizes["source"] * results.sizes["target"] > 1
        below = others if several else transfers + others
        yield f"accuracy{end}", _panels(outcome, str(what)), below
        if several:
            yield f"difference{end}", _maps(outcome, str(what)), transfers


def _lines(outcome: Outcome, what: str | None = None) -> dict[str, Any]:
    """What is drawn or tabled at every density, by its name, `[target, level, replica]`.

    Args:
      outcome: of the study.
      what: is carried; None for all.
    """
    results, shown = outcome.results, metrics.quality(outcome.metric)

    def of(prefix: str) -> Any:
        return shown.of(tested(results, outcome.metric, prefix))

    found = {"native": of("native_"), "random ticket": of("random_")}
    for one, source in itertools.product(
        results["carried"].values, results["source"].values
    ):
        if what in (None, one):
            name = f"from {source}" if one == "ticket" else f"{one} of {source}"
            found[name] = of("").sel(carried=one, source=source)
    return found


def _panels(outcome: Outcome, what: str) -> Any:
    results, shown = outcome.results, metrics.quality(outcome.metric)
    dense = shown.of(tested(results, outcome.metric, "dense_")).mean("replica")
    lines = _lines(outcome, what)
    axes = ("replica", "level")

    kept = results.attrs.get("head") == "kept"

    def of(target: Any) -> dict[str, np.ndarray]:
        return {
            name: line.sel(target=target).transpose(*axes).values
            for name, line in lines.items()
            if not (kept and name == f"from {target}")  # the native line itself
        }

    targets = [str(target) for target in results["target"].values]
    return plots.panels_against_density(
        results["density"].mean(("target", "source", "replica")).values,
        {
            f"on {t}": plots.Panel(of(t), {"dense": float(dense.sel(target=t))})
            for t in targets
        },
        ylabel=f"test {shown.label}",
        title=f"{outcome.cfg.model}: {what}s of each source; mean of "
        f"{results.sizes['replica']} replicas, bars: min to max",
    )


def _maps(outcome: Outcome, what: str) -> Any:
    """At all densities in the mean, at the middle one and at the sparsest."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    values = tested(results, outcome.metric).sel(carried=what)
    away = shown.of(values) - shown.of(tested(results, outcome.metric, "native_"))
    sources, targets = (
        [str(name) for name in results[axis].values] for axis in ("source", "target")
    )
    away = away.transpose("source", "target", "level", "replica")
    levels = results["level"].values.tolist()
    chosen = list(dict.fromkeys((levels[(len(levels) - 1) // 2], levels[-1])))
    maps = {MEAN_OF_DENSITIES: away.mean("level", skipna=False).mean("replica")}
    surely = {MEAN_OF_DENSITIES: _surely(outcome.judged, what, sources, targets, None)}
    for level in chosen:
        share = float(results["density"].sel(level=level).mean())
        name = f"{100 * share:.1f}% of the weights"
        maps[name] = away.sel(level=level).mean("replica")
        surely[name] = _surely(outcome.judged, what, sources, targets, level)
    unit = metrics.difference(outcome.metric).unit
    return plots.matrices(
        {name: np.asarray(values) for name, values in maps.items()},
        rows=sources,
        columns=targets,
        label=f"transferred - native {shown.name}\n({unit})",
        ylabel=f"{what} of",
        xlabel="trained on",
        title=f"{outcome.cfg.model}: {results.sizes['replica']} replicas; bold and *: the "
        "paired 95% interval excludes 0",
        marked=surely,
    )


def _surely(
    judged: Sequence[Judged],
    what: str,
    sources: Sequence[str],
    targets: Sequence[str],
    level: int | None,
) -> np.ndarray:
    """Where the interval of a difference to native excludes 0, bool `[source, target]`."""
    found = [
        [_mean_difference(judged, what, source, target, level) for target in targets]
        for source in sources
    ]
    return np.array(
        [[v is not None and (v.low > 0 or v.high < 0) for v in row] for row in found]
    )


def _mean_difference(
    judged: Sequence[Judged],
    what: str,
    source: str,
    target: str,
    level: int | None = None,
) -> verdicts.Verdict | None:
    """The verdict on a difference to native: at a level, or in the mean over all.

    None for a target's own ticket that kept its head.
    """
    claims = [_transfers(what, source, target, head) for head in ("kept", "replaced")]
    where: dict[str, Any] = {"source": source, "target": target}
    if level is None:
        claims = [f"{claim}, {MEAN_OF_DENSITIES}" for claim in claims]
    else:
        where["level"] = level
    found = (
        one.verdict
        for one in judged
        if one.claim in claims and where.items() <= one.where.items()
    )
    return next(found, None)


def _transfers(what: str, source: str, target: str, head: str) -> str:
    """The claim that something of a source is as good as a target's own."""
    if source != target:
        return f"{what} transfers"
    new = " with a new head" if head == "replaced" else ""
    return f"native {what}{new} matches the native ticket"


def _at_home(one: Judged, what: str) -> bool:
    """Whether a verdict is about a target's own, trained like what travels there."""
    return one.claim.startswith(f"native {what}") and "the native ticket" in one.claim
