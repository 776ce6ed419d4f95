"""What a study of tickets under attack says: verdicts, tables and figures."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import display
from experiments.adversarial.config import Config
from experiments.display import Judged, Rows, mean_range
from experiments.experiment import Outcome
from lottery_jax import plots, verdicts
from lottery_jax.verdicts import CLEAN_ERROR, ERROR, STEPS, Metric, Verdict

if TYPE_CHECKING:
    import xarray as xr

COMMONEST = Metric("commonest_answer", "points", "lower", 0.0, (0, 1), 100)
"""The share of a network's answers that are its commonest one."""

COLLAPSED = 0.99
"""From which share of one answer on a network has collapsed to one class."""

KINDS = {"error": "robust", "clean_error": "clean"}
"""What is measured, and what it is called."""


def judged_by(cfg: Config) -> tuple[str, Metric]:
    """What tickets are compared by: how robust they are, if they were trained under attack.

    Networks of natural training are not robust: all would be equally bad.
    """
    if cfg.attack == "natural":
        return "clean_error", CLEAN_ERROR
    return "error", ERROR


def measured(results: "xr.Dataset", field: str, of: str = "") -> "xr.DataArray":
    """What was measured at the end, nan where diverged.

    Args:
      results: of the study.
      field: one of `trained.MEASURED`.
      of: "" for tickets and controls, "dense_", or "found_" for the finders' own.
    """
    return results[f"{of}{field}"].where(results[f"{of}diverged"] == 0)


def accuracy(results: "xr.Dataset", field: str, of: str = "") -> "xr.DataArray":
    """The same as an accuracy in percent."""
    return 100 * (1 - measured(results, field, of))


def steps_to(results: "xr.Dataset", reach: float, of: str = "") -> "xr.DataArray":
    """The step at which a robust accuracy is first reached; inf for never, nan if diverged.

    Between two validations by a straight line. What is reached at the first of them counts
    as reached there: before, nothing is known.

    Args:
      results: of the study.
      reach: the accuracy, a fraction, on the validation split.
      of: "" for tickets and controls, or "dense_".
    """
    found = 1 - results[f"{of}curve"]
    steps = results["step"].broadcast_like(found)
    there = found >= reach  # False where nan
    first = there.argmax("point")
    before = (first - 1).clip(min=0)
    low, high = found.isel(point=before), found.isel(point=first)
    begin, end = steps.isel(point=before), steps.isel(point=first)
    between = begin + (end - begin) * (reach - low) / (high - low)
    reached = between.where(first > 0, end).where(there.any("point"), np.inf)
    return reached.where(results[f"{of}diverged"] == 0)


# --- verdicts -------------------------------------------------------------------------


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Are tickets better and faster than their controls, whoever found them?

    The verdicts on steps, on finders and on the collapse are those of the longest training.
    """
    names = [f"replica {i}" for i in results["replica"].values]
    replicas, judged = verdicts.Replicas(names), list[Judged]()
    field, metric = judged_by(cfg)
    found_, claims = measured(results, field), [("ticket matches dense", field, metric)]
    if field == "error":
        clean = "ticket matches dense on clean images"
        claims.append((clean, "clean_error", CLEAN_ERROR))
    for rate, length in itertools.product(
        results["rate"].values.tolist(), results["length"].values.tolist()
    ):
        at = {"rate": rate, "length": length}
        for where in _chains(results):
            place = _place(results, at | where)
            here = found_.sel(at | where)
            for arm in _controls(results):
                claim = f"ticket better than {arm.replace('_', ' ')}"
                verdict = verdicts.better(
                    here.sel(arm="ticket").values,
                    here.sel(arm=arm).values,
                    claim=claim,
                    metric=metric,
                    replicas=replicas,
                )
                judged.append(Judged(place, claim, verdict))
            for claim, name, its in claims:
                verdict = verdicts.matching(
                    measured(results, name).sel(at | where | {"arm": "ticket"}).values,
                    measured(results, name, "dense_").sel(at).values,
                    cfg.tolerance,
                    metric=its,
                    replicas=replicas,
                )
                judged.append(Judged(place, claim, verdict._replace(claim=claim)))
    for rate in results["rate"].values.tolist():
        judged += _of_longest(results, cfg, rate, replicas)
    if results.sizes["rate"] > 1:
        judged += _boosted(results, cfg, replicas)
    return judged


def _of_longest(
    results: "xr.Dataset", cfg: Config, rate: float, replicas: verdicts.Replicas
) -> list[Judged]:
    """The verdicts on the longest training at one rate."""
    length = int(results["length"].values[-1])
    at, judged = {"rate": rate, "length": length}, list[Judged]()
    field, metric = judged_by(cfg)
    reached = cfg.reach if field == "error" else ()  # the curves are of robust accuracy
    for where, reach in itertools.product(_chains(results), reached):
        steps = steps_to(results, reach).sel(at | where)
        place = _place(results, at | where) | {"accuracy": reach}
        for arm in _controls(results):
            claim = f"ticket sooner at a robust accuracy than {arm.replace('_', ' ')}"
            found = sooner(
                steps.sel(arm="ticket").values,
                steps.sel(arm=arm).values,
                length,
                claim=claim,
                replicas=replicas,
            )
            judged.append(Judged(place, claim, found))
    ticket = measured(results, field).sel(at | {"arm": "ticket"})
    finders = results["finder"].values.tolist()
    for density in results["density"].values.tolist():
        here = ticket.sel(density=density)
        place = _place(results, at | {"density": density})
        if {"fgsm", "pgd"} <= set(finders):
            claim = "ticket of FGSM matches that of PGD"
            found = verdicts.matching(
                here.sel(finder="fgsm").values,
                here.sel(finder="pgd").values,
                cfg.tolerance,
                metric=metric,
                replicas=replicas,
            )
            judged.append(Judged(place, claim, found._replace(claim=claim)))
        for finder in ("fgsm", "pgd"):
            if not {"natural", finder} <= set(finders):
                continue
            claim = f"ticket of {finder.upper()} better than that of natural training"
            found = verdicts.better(
                here.sel(finder=finder).values,
                here.sel(finder="natural").values,
                claim=claim,
                metric=metric,
                replicas=replicas,
            )
            judged.append(Judged(place, claim, found))
            for reach in reached:
                steps = steps_to(results, reach).sel(
                    at | {"density": density, "arm": "ticket"}
                )
                claim = (
                    f"ticket of {finder.upper()} sooner at a robust accuracy than that "
                    "of natural training"
                )
                found = sooner(
                    steps.sel(finder=finder).values,
                    steps.sel(finder="natural").values,
                    length,
                    claim=claim,
                    replicas=replicas,
                )
                judged.append(Judged(place | {"accuracy": reach}, claim, found))
    for where in _chains(results):
        place = _place(results, at | where)
        share = measured(results, "commonest_answer").sel(
            at | where | {"arm": "ticket"}
        )
        judged.append(_collapse("ticket", place, share.values, replicas))
    share = measured(results, "commonest_answer", "dense_").sel(at)
    judged.append(_collapse("dense", _place(results, at), share.values, replicas))
    return judged


def sooner(
    steps: np.ndarray,
    control: np.ndarray,
    length: int,
    *,
    claim: str,
    replicas: verdicts.Replicas,
) -> Verdict:
    """Is something reached in fewer steps than by a control?

    Who never reaches it counts as if at the last step: the least that it may have taken. So
    it is no yes where one of `steps` never does, and no no where a control never does: what
    they took is not known. Where neither of a pair does there is no difference to speak of.

    Args:
      steps: `[R]`, inf for never, nan for what diverged, which is left out.
      control: `[R]`, of the control of the same replica.
      length: the last step.
      claim: in words.
      replicas: their names.

    Returns:
      The verdict; its reason says how many never reach it.
    """
    never, control_never = np.isinf(steps), np.isinf(control)
    said = (
        f"never within {length} steps: {never.sum()} of {len(steps)}, "
        f"control {control_never.sum()} of {len(control)}"
    )
    if (never & control_never).any():
        return verdicts.missing(
            said, side="<", tolerance=0.0, claim=claim, metric=STEPS
        )
    found = verdicts.better(
        np.where(never, length, steps),
        np.where(control_never, length, control),
        claim=claim,
        metric=STEPS,
        replicas=replicas,
    )
    if not (never.any() or control_never.any()):
        return found
    unknown = {"yes": never, "no": control_never}.get(found.answer)
    answer = "undecided" if unknown is not None and unknown.any() else found.answer
    return found._replace(answer=answer, reason=said)


def _collapse(
    what: str, place: dict[str, Any], share: np.ndarray, replicas: verdicts.Replicas
) -> Judged:
    claim = f"{what} collapses to one class"
    found = verdicts.paired(
        share,
        side=">=",
        tolerance=COLLAPSED,
        claim=claim,
        metric=COMMONEST,
        replicas=replicas,
    )
    return Judged(place, claim, found)


def _boosted(
    results: "xr.Dataset", cfg: Config, replicas: verdicts.Replicas
) -> list[Judged]:
    """Tickets at the highest rate against the same tickets at the lowest."""
    field, metric = judged_by(cfg)
    tickets, judged = measured(results, field).sel(arm="ticket"), list[Judged]()
    claim = "ticket at the highest rate better than at the lowest"
    for length, where in itertools.product(
        results["length"].values.tolist(), _chains(results)
    ):
        at = tickets.sel(length=length, **where)
        found = verdicts.better(
            at.isel(rate=-1).values,
            at.isel(rate=0).values,
            claim=claim,
            metric=metric,
            replicas=replicas,
        )
        place = _place(results, {"length": length} | where)
        judged.append(Judged(place, claim, found))
    return judged


def _chains(results: "xr.Dataset") -> list[dict[str, Any]]:
    """Finder and density of all tickets."""
    each = (results[name].values.tolist() for name in ("finder", "density"))
    return [
        {"finder": finder, "density": density}
        for finder, density in itertools.product(*each)
    ]


def _controls(results: "xr.Dataset") -> list[str]:
    return [arm for arm in results["arm"].values.tolist() if arm != "ticket"]


def _place(results: "xr.Dataset", where: dict[str, Any]) -> dict[str, Any]:
    """A place in the results, without a rate where there is but one."""
    alone = results.sizes["rate"] == 1
    return {k: v for k, v in where.items() if not (alone and k == "rate")}


# --- in words and numbers -------------------------------------------------------------


def tables(outcome: Outcome) -> list[Rows]:
    """Accuracies of tickets and controls; steps to robust accuracies; the finders."""
    each = [_accuracies(outcome, field) for field in KINDS]
    return [*each, _steps(outcome), _collapsed(outcome), _finders(outcome)]


def _accuracies(outcome: Outcome, field: str) -> Rows:
    results = outcome.results
    arms = results["arm"].values.tolist()
    values, dense = accuracy(results, field), accuracy(results, field, "dense_")
    rows = []
    for rate, length in itertools.product(
        results["rate"].values.tolist(), results["length"].values.tolist()
    ):
        at = {"rate": rate, "length": length}
        for where in _chains(results):
            row = [f"{rate:g}", str(length), where["finder"]]
            row.append(f"{100 * where['density']:g}")
            here = values.sel(at | where)
            row += [mean_range(here.sel(arm=arm).values, 1) for arm in arms]
            rows.append([*row, mean_range(dense.sel(at).values, 1)])
    title = f"{KINDS[field].capitalize()} test accuracy in %: mean [min, max] of "
    title += f"{results.sizes['replica']} replicas"
    header = ["rate", "steps", "finder", "density %"]
    header += [*(arm.replace("_", " ") for arm in arms), "dense"]
    return Rows(title, header, rows)


def _steps(outcome: Outcome) -> Rows:
    results = outcome.results
    arms, length = results["arm"].values.tolist(), results["length"].values[-1]
    rows = []
    for rate, reach in itertools.product(
        results["rate"].values.tolist(), outcome.cfg.reach
    ):
        at = {"rate": rate, "length": length}
        values, dense = (steps_to(results, reach, of).sel(at) for of in ("", "dense_"))
        for where in _chains(results):
            row = [f"{rate:g}", f"{100 * reach:g}", where["finder"]]
            row.append(f"{100 * where['density']:g}")
            here = values.sel(where)
            row += [_reached(here.sel(arm=arm).values) for arm in arms]
            rows.append([*row, _reached(dense.values)])
    title = (
        f"Steps of {length} to a robust validation accuracy, by lines between validations "
        f"every {outcome.cfg.validate_every}: mean [min, max] of replicas that reach it"
    )
    header = ["rate", "robust accuracy %", "finder", "density %"]
    header += [*(arm.replace("_", " ") for arm in arms), "dense"]
    return Rows(title, header, rows)


def _reached(steps: np.ndarray) -> str:
    never = int(np.isinf(steps).sum())
    if never == len(steps):
        return "never"
    text = mean_range(steps, 0)  # of finite ones
    return f"{text}, never {never} of {len(steps)}" if never else text


def _collapsed(outcome: Outcome) -> Rows:
    results = outcome.results
    at, arms = {"rate": -1, "length": -1}, results["arm"].values.tolist()
    field = "commonest_answer"
    values, dense = (
        100 * measured(results, field, of).isel(at) for of in ("", "dense_")
    )
    rows = []
    for where in _chains(results):
        row = [where["finder"], f"{100 * where['density']:g}"]
        here = values.sel(where)
        row += [mean_range(here.sel(arm=arm).values, 1) for arm in arms]
        rows.append([*row, mean_range(dense.values, 1)])
    title = (
        "Clean test answers that are a network's commonest, in %, after the longest "
    )
    title += "training at the highest rate: mean [min, max]; 100 has collapsed"
    header = ["finder", "density %", *(arm.replace("_", " ") for arm in arms), "dense"]
    return Rows(title, header, rows)


def _finders(outcome: Outcome) -> Rows:
    results = outcome.results
    rows = [
        [
            finder,
            *(
                mean_range(
                    accuracy(results, field, "found_").sel(finder=finder).values, 1
                )
                for field in KINDS
            ),
        ]
        for finder in results["finder"].values.tolist()
    ]
    title = "Test accuracy in % of the dense networks that tickets are cut from"
    return Rows(title, ["finder", "robust", "clean"], rows)


def conclusions(outcome: Outcome) -> list[str]:
    """How often each claim holds, and what diverged."""
    lines = display.claims(outcome.judged)
    for of, what in (
        ("found_", "finders"),
        ("", "tickets and controls"),
        ("dense_", ""),
    ):
        if number := int((outcome.results[f"{of}diverged"] != 0).sum()):
            said = what or "dense networks"
            lines.append(f"Diverged, and left out of every average: {number} {said}")
    return lines


# --- figures --------------------------------------------------------------------------


def figures(outcome: Outcome) -> Iterator[tuple[str, Any, Sequence[Judged]]]:
    """Robust and clean accuracy over total length and density; how they are learned."""
    judged = outcome.judged

    def about(*words: str) -> list[Judged]:
        return [one for one in judged if any(word in one.claim for word in words)]

    yield "robust", _over_length(outcome, "error"), about("better than", "highest rate")
    yield "clean", _over_length(outcome, "clean_error"), about("clean")
    yield "density", _over_density(outcome), about("collapses", "ticket matches dense")
    for density in outcome.results["density"].values.tolist():
        sooner_ = [one for one in about("sooner") if one.where["density"] == density]
        yield f"learning_{100 * density:g}", _learning(outcome, density), sooner_


def _title(outcome: Outcome, more: str = "") -> str:
    cfg = outcome.cfg
    attacks = f"trained again by {cfg.attack}, measured by PGD-{cfg.measured_steps}, "
    attacks += f"radius {cfg.radius:.3g}"
    number = outcome.results.sizes["replica"]
    means = f"mean of {number} replicas, bars: min to max{more}"
    return f"{outcome.preset}: {outcome.networks}\n{attacks}\n{means}"


def _over_length(outcome: Outcome, field: str) -> Any:
    results = outcome.results
    values, dense = accuracy(results, field), accuracy(results, field, "dense_")
    several, panels = results.sizes["rate"] > 1, {}
    for rate in results["rate"].values.tolist():
        for where in _chains(results):
            here = values.sel(where | {"rate": rate}).transpose(
                "arm", "replica", "length"
            )
            lines = {
                str(arm): here.sel(arm=arm).values for arm in results["arm"].values
            }
            lines["dense"] = dense.sel(rate=rate).transpose("replica", "length").values
            panel = f"found by {where['finder']}, {100 * where['density']:g}%"
            panels[f"{panel}, rate {rate:g}" if several else panel] = plots.Panel(lines)
    return plots.panels_against(
        results["length"].values.astype(float),
        panels,
        xlabel="steps of training again, in all",
        ylabel=f"{KINDS[field]} test\naccuracy (%)",
        title=_title(outcome),
        logarithmic=results.sizes["length"] > 1,
    )


def _over_density(outcome: Outcome) -> Any:
    results = outcome.results
    at, panels = {"rate": -1, "length": -1}, {}
    density = np.array([1.0, *results["density"].values])
    for field, kind in KINDS.items():
        dense = accuracy(results, field, "dense_").isel(at).values
        for finder in results["finder"].values.tolist():
            here = accuracy(results, field).isel(at).sel(finder=finder)
            here = here.transpose("arm", "replica", "density")
            panels[f"{kind}, found by {finder}"] = plots.Panel(
                {
                    str(arm): np.column_stack([dense, here.sel(arm=arm).values])
                    for arm in results["arm"].values
                }
            )
    length = int(results["length"].values[-1])
    return plots.panels_against_density(
        density,
        panels,
        ylabel=[f"{kind} test accuracy (%)" for kind in KINDS.values()],
        title=_title(outcome, f"; {length} steps"),
        columns=results.sizes["finder"],
    )


def _learning(outcome: Outcome, density: float) -> Any:
    results = outcome.results
    at = {"rate": -1, "length": -1}
    steps = results["step"].isel(length=-1).values
    curve = 100 * (1 - results["curve"].isel(at).sel(density=density))
    dense = 100 * (1 - results["dense_curve"].isel(at))
    lines = {}
    finders = results["finder"].values.tolist()
    for finder in finders:
        here = curve.sel(finder=finder, arm="ticket").transpose("replica", "point")
        lines[f"ticket of {finder}"] = (steps, here.values)
    for arm in _controls(results):
        here = curve.sel(finder=finders[-1], arm=arm).transpose("replica", "point")
        lines[f"{arm.replace('_', ' ')}, mask of {finders[-1]}"] = (steps, here.values)
    lines["dense"] = (steps, dense.transpose("replica", "point").values)
    return plots.against(
        lines,
        xlabel="step of training again",
        ylabel="robust validation accuracy (%)",
        title=_title(outcome, f"; {100 * density:g}% of the weights"),
    )
