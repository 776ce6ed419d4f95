"""Large batches instead of rewinding: LII and the ticket-reinit gap move together.

At k = 0 throughout, with equal epochs: the larger the batch, the less noise there is in
SGD. Maene et al. 2021, section 3.
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import display, groups
from experiments.recipes import load_data, make_optimizer, make_path_task
from experiments.rewinding import stability
from experiments.rewinding.config import NOT_IDENTITY, Arm, Config
from lottery_jax import plots, records, verdicts

if TYPE_CHECKING:
    import xarray as xr

ARMS: tuple[Arm, ...] = ("ticket", "reinit")


def for_batch(cfg: Config, size: int) -> Config:
    """The study of one batch size, at k = 0."""
    return dataclasses.replace(
        cfg,
        batch_size=size,
        rewind_steps=("0it",),
        arms=ARMS,
        successive=False,
    )


def check(cfg: Config) -> None:
    """Finds what makes no sense before a run folder is made.

    Raises:
      ValueError: names the field.
    """
    if len(set(cfg.batch_sizes)) < 2 or min(cfg.batch_sizes) < 1:
        raise ValueError(
            f"batch_sizes={cfg.batch_sizes}; there must be two or more to compare"
        )
    if not cfg.steps.endswith("ep"):
        raise ValueError(
            f"steps={cfg.steps!r}; batch sizes are compared at equal epochs: write '75ep'"
        )
    for size in cfg.batch_sizes:
        own = for_batch(cfg, size)
        stability.check(own, make_path_task(own))


def run(cfg: Config, folder: pathlib.Path) -> "xr.Dataset | None":
    """Runs what is missing of a study in its folder, and returns all results.

    With several processes the first one returns them, the others None.
    """
    import xarray as xr

    config = records.as_config(cfg)
    check(cfg)
    sizes = sorted(set(cfg.batch_sizes))

    def one(group: pathlib.Path, ids: list[int]) -> "xr.Dataset":
        found = []
        for size in sizes:
            own = for_batch(cfg, size)
            task = make_path_task(own)
            plan = stability.protocol(own, task.steps_per_epoch)
            tx = make_optimizer(own, task.steps_per_epoch)
            store = group / f"batch-{size:05d}"
            at_size = stability.run_group(own, task, tx, plan, store, ids)
            found.append(at_size.isel(rewind_step=0, drop=True))
        part = xr.concat(found, "batch_size", combine_attrs="override")
        part = part.assign_coords(batch_size=sizes)
        if note := load_data(cfg).note:
            part.attrs["note"] = note
        return part

    return groups.run(folder, config, NOT_IDENTITY, cfg.replicas, one)


# --- what came out --------------------------------------------------------------------


def gap(results: "xr.Dataset", split: str = "test") -> "xr.DataArray":
    """Error of reinit minus error of the ticket, mean over branches."""
    error = results["error"].sel(split=split).mean("branch", skipna=False)
    return error.sel(arm="reinit") - error.sel(arm="ticket")


def judge(results: "xr.Dataset", threshold: float) -> list[dict[str, Any]]:
    """At each level and batch: stable? better than reinit? And do both move?"""
    rows = []
    names = [f"replica {i}" for i in results["replica"].values]
    lii = results["lii"].sel(arm="ticket", split="test")
    error = results["error"].sel(split="test").mean("branch", skipna=False)
    sizes = results["batch_size"].values
    clusters = np.repeat(results["replica"].values, lii.sizes["pair"])
    for level in results["level"].values[results["level"].values > 0]:
        for size in sizes:
            at = dict(level=level, batch_size=size)
            rows.append(
                {
                    "level": int(level),
                    "batch_size": int(size),
                    "stable": verdicts.stable(
                        lii.sel(at).transpose("replica", "pair").values.reshape(-1),
                        threshold,
                        replicas=verdicts.Replicas(clusters=clusters),
                    ),
                    "better": verdicts.better(
                        error.sel(arm="ticket", **at).values,
                        error.sel(arm="reinit", **at).values,
                        claim="better than reinit",
                        replicas=verdicts.Replicas(names),
                    ),
                }
            )
        ends = {
            name: value.sel(level=level, batch_size=sizes[-1]).values
            - value.sel(level=level, batch_size=sizes[0]).values
            for name, value in (("LII", lii.mean("pair")), ("gap", gap(results)))
        }
        rows.append(
            {
                "level": int(level),
                "batch_size": None,
                "LII falls": verdicts.paired(
                    ends["LII"],
                    side="<",
                    tolerance=0.0,
                    claim=f"LII falls from batch {sizes[0]} to {sizes[-1]}",
                    replicas=verdicts.Replicas(names),
                ),
                "gap grows": verdicts.paired(
                    ends["gap"],
                    side=">",
                    tolerance=0.0,
                    claim=f"the gap grows from batch {sizes[0]} to {sizes[-1]}",
                    replicas=verdicts.Replicas(names),
                ),
            }
        )
    return rows


def table(results: "xr.Dataset") -> display.Rows:
    """LII and gap at each density and batch size."""
    rows = []
    lii = results["lii"].sel(split="test")
    error = results["error"].sel(split="test").mean("branch")
    for level in results["level"].values:
        for size in results["batch_size"].values:
            at = dict(level=level, batch_size=size)
            density = float(results["density"].sel(arm="ticket", **at).mean())
            row = [f"{100 * density:.1f}", str(int(size))]
            row.append(_spread(lii.sel(arm="ticket", **at).values))
            for arm in ARMS:
                row.append(
                    _spread(error.sel(arm=arm, **at).values)
                    if level or arm == "ticket"
                    else "-"
                )
            row.append(_spread(gap(results).sel(at).values) if level else "-")
            rows.append(row)
    header = [
        "density %",
        "batch",
        "LII of tickets",
        "error ticket",
        "error reinit",
        "gap",
    ]
    return display.Rows(header, rows)


def _spread(values: np.ndarray) -> str:
    values = 100 * values[np.isfinite(values)]
    if not len(values):
        return "diverged"
    return f"{values.mean():.1f} ± {values.std():.1f}"


def draw(results: "xr.Dataset", cfg: Config, folder: pathlib.Path) -> pathlib.Path:
    """LII and the gap against the batch size, one figure per level."""
    sizes = results["batch_size"].values
    lii = results["lii"].sel(arm="ticket", split="test")
    number, first = results.sizes["replica"], None
    for level in results["level"].values[results["level"].values > 0]:
        density = 100 * float(results["density"].sel(level=level, arm="ticket").mean())
        of_pairs = lii.sel(level=level).stack(sample=("replica", "pair"))
        lines = {
            "LII of tickets": 100 * of_pairs.transpose("sample", "batch_size").values,
            "error of reinit - error of ticket": 100
            * gap(results).sel(level=level).transpose("replica", "batch_size").values,
        }
        path = folder / "figures" / f"batch_size_level{int(level):02d}"
        figure = plots.against_step(
            sizes,
            lines,
            ylabel="points of test error",
            xlabel="batch size",
            title=f"{cfg.model} on {cfg.data}, k = 0, {density:.1f}% of the weights, "
            f"{cfg.steps}\nmean and deviation of {number} replicas",
            threshold=100 * cfg.threshold,
            threshold_label="LII stable below this",
        )
        plots.save(figure, path)
        first = first or path
    assert first is not None
    return first.with_suffix(".png")


def report(
    results: "xr.Dataset", cfg: Config, preset: str, folder: pathlib.Path
) -> None:
    """Figures, table and verdicts, on the disk and on the screen."""
    figure = draw(results, cfg, folder)
    judged = judge(results, cfg.threshold)
    rows = table(results)
    lines = [
        f"level {row['level']}: {row[name].describe()}"
        for row in judged
        if row["batch_size"] is None
        for name in ("LII falls", "gap grows")
    ]
    display.leave(folder, judged, [rows], lines)
    title = f"{preset}: points of test error, mean ± deviation; "
    title += f"{results.sizes['replica']} replicas"
    display.show_lines(title, rows, [*lines, "", f"Figure: {figure}"])
