"""Error and instability of subnetworks against the rewind step: stable iff matching?

Frankle et al. 2020, sections 4 and 5; barriers between successive levels as in Paul et
al. 2023.
"""

import itertools
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
import optax

from experiments import display, groups, launch
from experiments.recipes import (
    check_paths,
    load_data,
    make_optimizer,
    make_path_task,
    parse_steps,
)
from experiments.rewinding import subnetworks
from experiments.rewinding.config import NOT_IDENTITY, Config
from lottery_jax import imp, plots, records, verdicts
from lottery_jax.connectivity.linear import Projection
from lottery_jax.types import Task

if TYPE_CHECKING:
    import xarray as xr

SPLITS = ("train", "test")
PROJECTIONS: tuple[Projection, ...] = ("intersection", "union")


def protocol(cfg: Config, steps_per_epoch: int) -> imp.Plan:
    """One chain for each rewind step.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    (steps,) = parse_steps(cfg, "steps", steps_per_epoch)
    chosen = sorted(set(parse_steps(cfg, "rewind_steps", steps_per_epoch)))
    if not chosen:
        raise ValueError("rewind_steps=(); there must be one at least")
    return imp.check(
        imp.Plan(
            steps=steps,
            chains=tuple(
                imp.Chain(
                    name=subnetworks.chain_name(step),
                    rewind_step=step,
                    fraction=cfg.fraction,
                    scope=cfg.scope,
                )
                for step in chosen
            ),
            arms=("ticket",),
            validate_every=cfg.every,
            seed=cfg.seed,
        )
    )


def check(cfg: Config, task: Task) -> None:
    """Finds what makes no sense before a run folder is made.

    Raises:
      ValueError: names the field.
    """
    check_paths(cfg, task, cfg.batch_norm)
    if cfg.branches < 2:
        raise ValueError(
            f"branches={cfg.branches}; instability compares two branches at least"
        )
    if 0 not in cfg.levels or min(cfg.levels) < 0 or len(cfg.levels) < 2:
        raise ValueError(
            f"levels={cfg.levels}; there must be 0, the dense network that the others are "
            "compared with, and another level"
        )
    if "ticket" not in cfg.arms:
        raise ValueError(f"arms={cfg.arms}; 'ticket' must be there")


def measure_options(cfg: Config) -> dict[str, Any]:
    """What all measurements on paths have in common."""
    return {
        "alphas": cfg.alphas,
        "splits": cfg.path_splits,
        "batch_norm": cfg.batch_norm,
        "statistics_batches": cfg.statistics_batches,
    }


# --- running --------------------------------------------------------------------------


def run(cfg: Config, folder: pathlib.Path) -> "xr.Dataset | None":
    """Runs what is missing of a study in its folder, and returns all results.

    With several processes the first one returns them, the others None.
    """
    config = records.as_config(cfg)
    task = make_path_task(cfg)
    plan = protocol(cfg, task.steps_per_epoch)
    tx = make_optimizer(cfg, task.steps_per_epoch)
    check(cfg, task)

    def one(group: pathlib.Path, ids: list[int]) -> "xr.Dataset":
        return run_group(cfg, task, tx, plan, group, ids)

    return groups.run(folder, config, NOT_IDENTITY, cfg.replicas, one)


def run_group(
    cfg: Config,
    task: Task,
    tx: optax.GradientTransformation,
    plan: imp.Plan,
    group: pathlib.Path,
    ids: list[int],
) -> "xr.Dataset":
    """One group of replicas: prune, branch, measure."""
    execution = launch.execution(cfg)
    last = max(cfg.levels)
    store = group / "imp"
    subnetworks.find(
        task, tx, plan, ids, last, store, execution, cfg.checkpoint_seconds
    )
    steps = list(plan.rewind_steps)
    grid = [
        (step, level, arm)
        for step in steps
        for level in sorted(set(cfg.levels))
        for arm in (cfg.arms if level else ("ticket",))
    ]
    # Barriers between successive levels need one branch of every ticket.
    between = [
        (step, level, "ticket")
        for step in steps
        for level in range(last + 1)
        if cfg.successive and level not in cfg.levels
    ]
    cells = subnetworks.cells(task, tx, plan, ids, [*grid, *between], store, execution)
    numbers = [cfg.branches] * (len(grid) * len(ids)) + [1] * (len(between) * len(ids))
    trained = subnetworks.train(
        task,
        tx,
        cells,
        numbers,
        cfg.seed,
        ids,
        plan.steps,
        every=cfg.every,
        execution=execution,
        folder=group,
        checkpoint_seconds=cfg.checkpoint_seconds,
    )
    measured = subnetworks.measure(
        task, trained, cfg.branches, folder=group, **measure_options(cfg)
    )
    out = _arrange(cfg, plan, ids, cells, trained, measured)
    if cfg.successive:
        out |= _levels(cfg, task, plan, ids, cells, trained)
    coordinates = {
        "rewind_step": steps,
        "level": sorted(set(cfg.levels)),
        "arm": list(cfg.arms),
        "replica": ids,
        "split": list(SPLITS),
    }
    if cfg.successive:
        coordinates |= {"projection": list(PROJECTIONS), "earlier": list(range(last))}
    attributes = {
        **records.environment(),
        "execution": trained.execution._asdict(),
        "steps": plan.steps,
        **({"note": note} if (note := load_data(cfg).note) else {}),
    }
    return records.dataset(out, coordinates, attributes)


def _arrange(
    cfg: Config,
    plan: imp.Plan,
    ids: list[int],
    cells: subnetworks.Cells,
    trained: subnetworks.Trained,
    measured: subnetworks.Measured,
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """From cells to named axes; what was not run is nan."""
    steps, levels = list(plan.rewind_steps), sorted(set(cfg.levels))
    shape = (len(steps), len(levels), len(cfg.arms), len(ids))
    lead = ("rewind_step", "level", "arm", "replica")

    def empty(*rest: int) -> np.ndarray:
        return np.full((*shape, *rest), np.nan, np.float32)

    number = cfg.branches
    error, first_nan = empty(number, len(SPLITS)), empty(number)
    lii, angle = empty(*measured.lii.shape[1:]), empty(measured.angle.shape[1])
    density = empty()
    for c in range(len(cells.step)):
        if cells.level[c] not in levels:
            continue
        at = (
            steps.index(cells.step[c]),
            levels.index(cells.level[c]),
            list(cfg.arms).index(cells.arm[c]),
            cells.replica[c],
        )
        mine = trained.cell == c
        error[at], first_nan[at] = measured.error[mine], trained.first_nan[mine]
        lii[at], angle[at] = measured.lii[c], measured.angle[c]
        density[at] = cells.density[c]
    return {
        "error": ((*lead, "branch", "split"), error),
        "first_nan": ((*lead, "branch"), first_nan),
        "lii": ((*lead, "pair", "split"), lii),
        "angle": ((*lead, "pair"), angle),
        "density": (lead, density),
    }


def _levels(
    cfg: Config,
    task: Task,
    plan: imp.Plan,
    ids: list[int],
    cells: subnetworks.Cells,
    trained: subnetworks.Trained,
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    steps, last = list(plan.rewind_steps), max(cfg.levels)
    shape = (len(PROJECTIONS), len(steps), last, len(ids), len(SPLITS))
    barrier = np.full(shape, np.nan, np.float32)
    density = np.full((last,), np.nan, np.float32)
    for p, projection in enumerate(PROJECTIONS):
        found = subnetworks.level_barriers(
            task, cells, trained, projection=projection, **measure_options(cfg)
        )
        for a, b, height in found:
            at = (steps.index(cells.step[a]), cells.level[a], cells.replica[a])
            barrier[(p, *at)] = height
            density[cells.level[a]] = cells.density[b]
    axes = ("projection", "rewind_step", "earlier", "replica", "split")
    return {
        "level_barrier": (axes, barrier),
        "later_density": (("earlier",), density),
    }


# --- what came out --------------------------------------------------------------------


def dense_error(results: "xr.Dataset") -> "xr.DataArray":
    """The dense network's error at each k, mean over branches; per replica and split."""
    return results["error"].sel(level=0, arm="ticket", drop=True).mean("branch")


def judge(
    results: "xr.Dataset", threshold: float, tolerance: float, split: str = "test"
) -> list[dict[str, Any]]:
    """Stable? Matching? For each (k, level, arm), with an interval over replicas."""
    rows = []
    names = [f"replica {i}" for i in results["replica"].values]
    lii = results["lii"].sel(split=split)
    clusters = np.repeat(results["replica"].values, lii.sizes["pair"])
    pair_names = [f"{n}, pair {p}" for n in names for p in range(lii.sizes["pair"])]
    error = results["error"].sel(split=split).mean("branch", skipna=False)
    dense = dense_error(results).sel(split=split)
    for step, level, arm in itertools.product(
        *(results[a].values for a in ("rewind_step", "level", "arm"))
    ):
        if level == 0 and arm != "ticket":
            continue
        at = dict(rewind_step=step, level=level, arm=arm)
        of_pairs = lii.sel(at).transpose("replica", "pair").values.reshape(-1)
        own, reference = error.sel(at).values, dense.sel(rewind_step=step).values
        rows.append(
            {
                "rewind_step": int(step),
                "level": int(level),
                "density": float(results["density"].sel(at).mean()),
                "arm": str(arm),
                "stable": verdicts.stable(
                    of_pairs,
                    threshold,
                    replicas=verdicts.Replicas(pair_names, clusters),
                ),
                "matching": verdicts.matching(
                    own, reference, tolerance, replicas=verdicts.Replicas(names)
                ),
            }
        )
    return rows


def contingency(judged: list[dict[str, Any]]) -> display.Rows:
    """How often stable and matching go together, over all (k, level, arm) but dense."""
    answers = ("yes", "no", "undecided")
    pruned = [row for row in judged if row["level"] > 0]
    rows = []
    for stable in answers:
        counts = [
            sum(
                row["stable"].answer == stable and row["matching"].answer == matching
                for row in pruned
            )
            for matching in answers
        ]
        rows.append([f"stable: {stable}", *map(str, counts)])
    return display.Rows(["", *(f"matching: {a}" for a in answers)], rows)


def contingency_of_means(
    judged: list[dict[str, Any]], threshold: float, tolerance: float
) -> display.Rows:
    """The same by the means alone, without intervals: everything is decided."""
    pruned = [row for row in judged if row["level"] > 0]

    def count(stable: bool, matching: bool) -> str:
        return str(
            sum(
                (row["stable"].estimate < threshold) == stable
                and (row["matching"].estimate <= tolerance) == matching
                for row in pruned
            )
        )

    rows = [
        [f"mean LII {'below' if s else 'above'}", count(s, True), count(s, False)]
        for s in (True, False)
    ]
    return display.Rows(["", "mean error matches", "mean error does not"], rows)


def first_steps(judged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per density and arm: the smallest k that is stable, and that is matching.

    By the verdict (yes), and by the mean alone; None where there is none.
    """
    rows = []
    for level, arm in dict.fromkeys((r["level"], r["arm"]) for r in judged):
        mine = [r for r in judged if (r["level"], r["arm"]) == (level, arm)]
        row = {"level": level, "density": mine[0]["density"], "arm": arm}
        for claim in ("stable", "matching"):
            row[claim] = _smallest([r for r in mine if r[claim].answer == "yes"])
            row[f"{claim}_mean"] = _smallest(
                [r for r in mine if r[claim].estimate <= r[claim].tolerance]
            )
        rows.append(row)
    return rows


def _smallest(rows: list[dict[str, Any]]) -> int | None:
    return min((row["rewind_step"] for row in rows), default=None)


def claim_at_first(judged: list[dict[str, Any]]) -> list[str]:
    """At the smallest k where the ticket is stable and matching, are the controls?"""
    lines = []
    for level in sorted({row["level"] for row in judged if row["level"] > 0}):
        mine = [row for row in judged if row["level"] == level]
        density = f"{100 * mine[0]['density']:.1f}%"

        def both(row: dict[str, Any]) -> bool:
            return row["stable"].answer == row["matching"].answer == "yes"

        first = _smallest([r for r in mine if r["arm"] == "ticket" and both(r)])
        if first is None:
            lines.append(
                f"density {density}: no k at which the ticket is both stable and matching "
                "by the intervals"
            )
            continue
        text = "; ".join(
            f"{row['arm'].replace('_', ' ')}: stable {row['stable'].answer} "
            f"({100 * row['stable'].estimate:.1f} points), matching "
            f"{row['matching'].answer} ({100 * row['matching'].estimate:+.1f})"
            for row in mine
            if row["rewind_step"] == first
        )
        lines.append(f"density {density}, k = {first}: {text}")
    return lines


def table(judged: list[dict[str, Any]]) -> display.Rows:
    """LII and error above dense of each subnetwork, with the verdicts."""
    header = ["density %", "k", "arm", "LII", "stable", "error - dense", "matching"]
    rows = []
    for row in sorted(
        judged, key=lambda r: (r["level"], r["rewind_step"], r["arm"] != "ticket")
    ):
        stable, matching = row["stable"], row["matching"]
        rows.append(
            [
                f"{100 * row['density']:.1f}",
                str(row["rewind_step"]),
                row["arm"].replace("_", " "),
                _interval(stable),
                stable.answer,
                _interval(matching),
                matching.answer,
            ]
        )
    return display.Rows(header, rows)


def _interval(verdict: verdicts.Verdict) -> str:
    half = (verdict.high - verdict.low) / 2
    return f"{100 * verdict.estimate:+.2f} ± {100 * half:.2f}"


def draw(
    results: "xr.Dataset",
    cfg: Config,
    judged: list[dict[str, Any]],
    folder: pathlib.Path,
) -> pathlib.Path:
    """Draws the figures of the study; returns the path of the first."""
    name = f"{cfg.model} on {cfg.data}"
    number, pairs = results.sizes["replica"], results.sizes["pair"]
    steps, total = results["rewind_step"].values, int(results.attrs["steps"])
    policy = f"\nBatchNorm statistics: {cfg.batch_norm}" if cfg.batch_norm else ""
    levels = [int(level) for level in results["level"].values if level > 0]
    first = None
    for level in levels:
        density = 100 * float(results["density"].sel(level=level, arm="ticket").mean())
        lii, error = {}, {}
        for arm in results["arm"].values:
            at = results.sel(level=level, arm=arm, split="test")
            stacked = at["lii"].stack(sample=("replica", "pair"))
            lii[str(arm)] = 100 * stacked.transpose("sample", "rewind_step").values
            mean = at["error"].mean("branch")
            error[str(arm)] = 100 * mean.transpose("replica", "rewind_step").values
        dense = dense_error(results).sel(split="test")
        error["dense"] = 100 * dense.transpose("replica", "rewind_step").values
        title = f"{name}, {density:.1f}% of the weights"
        path = folder / "figures" / f"instability_level{level:02d}"
        figure = plots.against_step(
            steps,
            lii,
            ylabel="linear interpolation instability\n(points of test error)",
            title=f"{title}\nmean and deviation of {number} replicas x {pairs} pairs{policy}",
            total=total,
            threshold=100 * cfg.threshold,
            threshold_label="stable below this",
        )
        plots.save(figure, path)
        figure = plots.against_step(
            steps,
            error,
            ylabel="test error (%)",
            title=f"{title}\nmean and deviation of {number} replicas",
            total=total,
        )
        plots.save(figure, folder / "figures" / f"error_level{level:02d}")
        first = first or path
    found = [row for row in first_steps(judged) if row["arm"] == "ticket"]
    lines = {
        claim.replace("_mean", ""): np.array(
            [[np.nan if row[claim] is None else row[claim] for row in found]], float
        )
        for claim in ("stable_mean", "matching_mean")
    }
    figure = plots.steps_against_density(
        np.array([row["density"] for row in found]),
        {f"smallest {claim} k": y[0] for claim, y in lines.items()},
        steps,
        title=f"{name}: tickets, by the means over {number} replicas",
    )
    plots.save(figure, folder / "figures" / "first_steps")
    if "level_barrier" in results:
        _draw_levels(results, folder, f"{name}: successive levels of tickets")
    assert first is not None
    return first.with_suffix(".png")


def _draw_levels(results: "xr.Dataset", folder: pathlib.Path, title: str) -> None:
    number = results.sizes["replica"]
    for projection in results["projection"].values:
        at = results["level_barrier"].sel(projection=projection, split="test")
        lines = {
            f"k = {step}": 100
            * at.sel(rewind_step=step).transpose("replica", "earlier").values
            for step in results["rewind_step"].values
        }
        figure = plots.against_density(
            results["later_density"].values,
            lines,
            ylabel="barrier above the chord\n(points of test error)",
            title=f"{title}\nmean of {number} replicas, bars: min to max; "
            f"projection: {projection}",
        )
        plots.save(figure, folder / "figures" / f"level_barriers_{projection}")


def report(
    results: "xr.Dataset", cfg: Config, preset: str, folder: pathlib.Path
) -> None:
    """Figures, tables and verdicts, on the disk and on the screen."""
    judged = judge(results, cfg.threshold, cfg.tolerance)
    figure = draw(results, cfg, judged, folder)
    rows, cross = table(judged), contingency(judged)
    means = contingency_of_means(judged, cfg.threshold, cfg.tolerance)
    lines = claim_at_first(judged)
    together = {"subnetworks": judged, "first_steps": first_steps(judged)}
    display.leave(folder, together, [rows, cross, means], lines)
    number = results.sizes["replica"]
    title = (
        f"{preset}: points of test error, mean ± 95% half-width over {number} replicas"
    )
    display.show_lines(title, rows, [])
    display.show_lines("Stable against matching, by the intervals", cross, [])
    display.show_lines("By the means alone", means, [*lines, "", f"Figure: {figure}"])
