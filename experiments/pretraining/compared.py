"""What a study of pre-trained tickets says: verdicts, tables and figures.

Differences are paired: of one replica, whose pre-training, heads and noise are its own.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import display, metrics
from experiments.display import Judged, Rows, mean_deviation
from experiments.experiment import Outcome
from experiments.pretraining.config import RANDOM, SIMCLR, SUPERVISED, Config
from lottery_jax import plots, verdicts
from lottery_jax.verdicts import ERROR

if TYPE_CHECKING:
    import xarray as xr

NAMES = {SIMCLR: "SimCLR", SUPERVISED: "supervised", RANDOM: "random"}
"""What starts are called in words."""

_ACCURACY = metrics.quality(ERROR)


def native(results: "xr.Dataset") -> "xr.DataArray":
    """Errors of the targets' own tickets and their controls; what diverged is nan.

    Returns:
      `[target, origin, arm, replica, level]`.
    """
    return results["native_test_error"].where(results["native_diverged"] == 0)


def carried(results: "xr.Dataset") -> "xr.DataArray":
    """Errors of the pre-trainings' tickets downstream; what diverged is nan.

    Returns:
      `[target, source, carried, level, replica]`, the levels as those of `native`.
    """
    found = results["carried_test_error"].where(results["carried_diverged"] == 0)
    return found.rename(travelling="level")


# --- verdicts -------------------------------------------------------------------------


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Is a pre-trained start better, and which task finds the better ticket?

    Of each target and level: a start against the random one, both with the target's own
    tickets; the ticket of the pre-training against the dense network from the same start,
    against the target's own ticket, a random mask, and its mask on random weights.
    """
    names = [f"replica {i}" for i in results["replica"].values]
    replicas, judged = verdicts.Replicas(names), []
    own, moved = native(results), carried(results)
    density = results["native_density"].sel(arm="ticket").mean("replica")

    def better(claim: str, where: dict[str, Any], a: Any, b: Any) -> None:
        found = verdicts.better(a.values, b.values, claim=claim, replicas=replicas)
        judged.append(Judged(where, claim, found))

    def matches(claim: str, where: dict[str, Any], a: Any, b: Any) -> None:
        found = verdicts.matching(a.values, b.values, cfg.tolerance, replicas=replicas)
        judged.append(Judged(where, claim, found._replace(claim=claim)))

    sources = results["source"].values.tolist()
    for target, source in itertools.product(results["target"].values.tolist(), sources):
        name, pair = NAMES[source], {"target": target, "source": source}
        mine = own.sel(target=target, origin=source)
        ticket, dense = mine.sel(arm="ticket"), mine.sel(arm="ticket", level=0)
        from_random = own.sel(target=target, origin=RANDOM, arm="ticket")
        at_density = density.sel(target=target, origin=source)

        def at(level: int, pair: Any = pair, density: Any = at_density) -> dict:
            return {**pair, "level": level, "density": float(density.sel(level=level))}

        for level in results["level"].values.tolist():
            a, b = ticket.sel(level=level), from_random.sel(level=level)
            better(f"{name} start better than random start", at(level), a, b)
            if level:
                matches(
                    f"own ticket from {name} start matches dense", at(level), a, dense
                )
        for level in results["travelling"].values.tolist():
            here = moved.sel(target=target, source=source, level=level)
            brought, where = here.sel(carried="ticket"), at(level)
            matches(f"{name} ticket matches dense", where, brought, dense)
            for arm in results["arm"].values[1:].tolist():
                control = mine.sel(arm=arm, level=level)
                words = arm.replace("_", " ")
                better(f"{name} ticket better than {words}", where, brought, control)
            claim = f"{name} ticket better than its mask on random weights"
            better(claim, where, brought, here.sel(carried="reinit"))
            claim = f"own ticket from {name} start better than {name} ticket"
            better(claim, where, ticket.sel(level=level), brought)
    return judged


# --- in words and numbers -------------------------------------------------------------


def lines(results: "xr.Dataset", target: str) -> dict[str, np.ndarray]:
    """Accuracy in percent on a target, `[replica, level]`, by the names of lines.

    Levels whose pre-training tickets did not travel are nan.
    """
    own, moved = native(results).sel(target=target), carried(results).sel(target=target)
    levels = results["level"].values
    found = {}

    def square(values: "xr.DataArray") -> np.ndarray:
        whole = _ACCURACY.of(values.reindex(level=levels))
        return whole.transpose("replica", "level").values

    for origin, arm in itertools.product(
        results["origin"].values.tolist(), results["arm"].values.tolist()
    ):
        what = "own ticket" if arm == "ticket" else arm.replace("_", " ")
        at = own.sel(origin=origin, arm=arm)
        found[f"{what} from {NAMES[origin]} start"] = square(at)
    for source in results["source"].values.tolist():
        at = moved.sel(source=source)
        name = NAMES[source]
        found[f"{name} ticket from {name} start"] = square(at.sel(carried="ticket"))
        found[f"{name} ticket from random start"] = square(at.sel(carried="reinit"))
    return found


def densities(results: "xr.Dataset") -> np.ndarray:
    """The density of each level."""
    first = results["native_density"].isel(target=0, origin=0).sel(arm="ticket")
    return first.mean("replica").values


def tables(outcome: Outcome) -> list[Rows]:
    """Accuracy downstream at each density; the probes; common weights; pre-training."""
    return [_levels(outcome), _probes(outcome), _overlap(outcome), _pretrained(outcome)]


def _levels(outcome: Outcome) -> Rows:
    results = outcome.results
    shown = [f"{100 * density:.3g}%" for density in densities(results)]
    rows = [
        [
            target,
            name,
            *(
                mean_deviation(at, 1) if np.isfinite(at).any() else "-"
                for at in values.T
            ),
        ]
        for target in results["target"].values.tolist()
        for name, values in lines(results, target).items()
    ]
    title = (
        f"{outcome.preset}: test accuracy in % at each density, mean ± deviation of "
    )
    header = ["target", "what is trained", *shown]
    return Rows(f"{title}{results.sizes['replica']} replicas", header, rows)


def _probes(outcome: Outcome) -> Rows:
    found = outcome.results["probe_error"]
    targets = found["target"].values.tolist()
    rows = [
        [
            NAMES[origin],
            probe,
            *(
                mean_deviation(
                    _ACCURACY.of(
                        found.sel(origin=origin, probe=probe, target=t)
                    ).values,
                    1,
                )
                for t in targets
            ),
        ]
        for origin in found["origin"].values.tolist()
        for probe in found["probe"].values.tolist()
    ]
    title = "Dense starts, nothing of them trained: test accuracy of probes in %"
    return Rows(title, ["start", "probe", *targets], rows)


def shares(results: "xr.Dataset", name: str) -> "xr.DataArray":
    """The share of a mask's surviving weights that survive in another one, too.

    Args:
      results: from `trained.one`.
      name: "both", or "chance".

    Returns:
      `[mask, other, travelling, replica]`.
    """
    return results[name].sum("layer") / results["alive"].sum("layer")


def _overlap(outcome: Outcome) -> Rows:
    results = outcome.results
    last = results["travelling"].values[-1]
    both, chance = (
        shares(results, name).sel(travelling=last).mean("replica")
        for name in ("both", "chance")
    )
    names = results["mask"].values.tolist()
    rows = [
        [
            _mask(one),
            *(
                f"{100 * float(both.sel(mask=one, other=other)):.1f} "
                f"({100 * float(chance.sel(mask=one, other=other)):.1f})"
                for other in names
            ),
        ]
        for one in names
    ]
    at = 100 * densities(results)[last]
    title = (
        f"Surviving weights of one mask that survive in another, too, in %, at {at:.3g}% "
        "density (by chance, with the layer densities of both)"
    )
    return Rows(title, ["", *map(_mask, names)], rows)


def _mask(name: str) -> str:
    return NAMES.get(name, name)


def _pretrained(outcome: Outcome) -> Rows:
    results = outcome.results
    error = results["pretraining_error"].where(results["pretraining_diverged"] == 0)
    rows = [
        [
            NAMES[source],
            *(
                mean_deviation(100 * error.sel(source=source, level=level).values, 1)
                for level in results["level"].values
            ),
        ]
        for source in results["source"].values.tolist()
    ]
    shown = [f"{100 * density:.3g}%" for density in densities(results)]
    title = (
        "The pre-training task itself: test error in % at each density (of SimCLR, how "
    )
    title += "often another image is nearer than the second view)"
    return Rows(title, ["pre-training", *shown], rows)


def conclusions(outcome: Outcome) -> list[str]:
    """How often each claim holds; who diverged."""
    found = display.claims(outcome.judged)
    for name in ("native", "carried", "pretraining"):
        if number := int((outcome.results[f"{name}_diverged"] != 0).sum()):
            found.append(
                f"Diverged, or pruned by weights that did, and left out of every average: "
                f"{number} {name} networks"
            )
    return found


# --- figures --------------------------------------------------------------------------


def figures(outcome: Outcome) -> Iterator[tuple[str, Any, Sequence[Judged]]]:
    """Starts, each with a target's own tickets; tickets of pre-training; common weights."""
    results, judged = outcome.results, outcome.judged
    about = f"{outcome.preset}: {outcome.networks}, mean of "
    about += f"{results.sizes['replica']} replicas, bars: min to max"
    starts = [one for one in judged if "random start" in one.claim]
    rest = [one for one in judged if one not in starts]
    kinds = {
        "starts": (("own ticket", "random mask"), starts),
        "tickets": (("own ticket", NAMES[SIMCLR], NAMES[SUPERVISED]), rest),
    }
    for name, (kept, mine) in kinds.items():
        panels = {
            target: plots.Panel(
                {
                    label: y
                    for label, y in lines(results, target).items()
                    if label.startswith(kept)
                }
            )
            for target in results["target"].values.tolist()
        }
        yield (
            name,
            plots.panels_against_density(
                densities(results), panels, ylabel="test accuracy (%)", title=about
            ),
            mine,
        )
    yield "overlap", _common(outcome), ()


def _common(outcome: Outcome) -> Any:
    """How much more masks have in common than by chance, layer by layer."""
    results = outcome.results
    last = results["travelling"].values[-1]
    names = results["mask"].values.tolist()
    both, chance = (
        (results[name] / results["alive"]).sel(travelling=last)
        for name in ("both", "chance")
    )
    layers = results["layer"].values.tolist()
    panels = {}
    for one in names[: results.sizes["source"]]:
        found = {}
        for other in names:
            if other == one:
                continue
            at = both.sel(mask=one, other=other).transpose("replica", "layer")
            found[f"in the mask of {_mask(other)}"] = 100 * at.values
        others = [other for other in names if other != one]
        by_chance = chance.sel(mask=one, other=others).mean(("other", "replica"))
        found["by chance"] = 100 * by_chance.values[None]
        panels[f"of the {_mask(one)} ticket"] = plots.Panel(found)
    at = 100 * densities(results)[last]
    figure = plots.panels_against(
        np.arange(1, len(layers) + 1),
        panels,
        xlabel="pruned layer, from the input on",
        ylabel="in common (%)",
        title=f"{outcome.preset}: surviving weights that two masks have in common,\n"
        f"at {at:.3g}% density, layer by layer",
    )
    return figure
