"""Large batches instead of rewinding: LII and the ticket-reinit gap move together.

At k = 0 throughout, with equal epochs: the larger the batch, the less noise there is in
SGD. Maene et al. 2021, section 3.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from experiments import cost, metrics
from experiments.display import Judged, Rows, mean_deviation
from experiments.experiment import Experiment, Outcome
from experiments.instability import samples
from experiments.recipes import Setup, metric
from experiments.rewinding import stability
from experiments.rewinding.config import PRESETS, Arm, Config
from lottery_jax import plots, verdicts
from lottery_jax.execution import Where

if TYPE_CHECKING:
    import xarray as xr

ARMS: tuple[Arm, ...] = ("ticket", "reinit")


def prepare(cfg: Config) -> dict[int, Setup]:
    """What the study of each batch size needs, at k = 0.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    sizes = sorted(set(cfg.batch_sizes))
    if len(sizes) < 2 or sizes[0] < 1:
        raise ValueError(
            f"batch_sizes={cfg.batch_sizes}; there must be two or more to compare"
        )
    if not cfg.steps.endswith("ep"):
        raise ValueError(
            f"steps={cfg.steps!r}; batch sizes are compared at equal epochs: write '75ep'"
        )
    at_start = dataclasses.replace(
        cfg, rewind_steps=("0it",), arms=ARMS, successive=False
    )
    return {
        size: stability.prepare(dataclasses.replace(at_start, batch_size=size))
        for size in sizes
    }


def one(setups: dict[int, Setup], ids: list[int], where: Where) -> "xr.Dataset":
    """The study of some replicas at every batch size."""
    import xarray as xr

    found = [
        stability.one(setup, ids, where.below(f"batch-{size:05d}"))
        for size, setup in setups.items()
    ]
    found = [part.isel(rewind_step=0, drop=True) for part in found]
    results = xr.concat(found, "batch_size", combine_attrs="override")
    return results.assign_coords(batch_size=list(setups))


def work(setups: dict[int, Setup]) -> cost.Work:
    """What the studies of all batch sizes compute."""
    return cost.together(
        *(
            cost.named(f"batch {size}", stability.work(setup))
            for size, setup in setups.items()
        )
    )


# --- what came out --------------------------------------------------------------------


def gap(results: "xr.Dataset") -> "xr.DataArray":
    """Test error of reinit minus that of the ticket, mean over branches."""
    error = _error(results)
    return error.sel(arm="reinit") - error.sel(arm="ticket")


def _error(results: "xr.Dataset") -> "xr.DataArray":
    return results["error"].sel(split="test").mean("branch", skipna=False)


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """At each level and batch: stable? better than reinit? And do both move?"""
    names = [f"replica {i}" for i in results["replica"].values]
    lii = results["lii"].sel(arm="ticket", split="test")
    error = _error(results)
    sizes = results["batch_size"].values.tolist()
    clusters = results["replica"].values.repeat(lii.sizes["pair"])
    judged = []
    for level in [level for level in results["level"].values.tolist() if level > 0]:
        for size in sizes:
            at = {"level": level, "batch_size": size}
            ticket, reinit = (error.sel(**at, arm=arm).values for arm in ARMS)
            stable = verdicts.stable(
                samples(lii.sel(at)),
                cfg.threshold,
                metric=metric(cfg),
                replicas=verdicts.Replicas(clusters=clusters),
            )
            better = verdicts.better(
                ticket,
                reinit,
                claim="better than reinit",
                metric=metric(cfg),
                replicas=verdicts.Replicas(names),
            )
            judged += [Judged(at, "stable", stable), Judged(at, better.claim, better)]
        for value, side, claim in (
            (lii.mean("pair"), "<", "LII falls"),
            (gap(results), ">", "the gap grows"),
        ):
            first, last = (
                value.sel(level=level, batch_size=size).values
                for size in (sizes[0], sizes[-1])
            )
            claim = f"{claim} from batch {sizes[0]} to {sizes[-1]}"
            moves = verdicts.paired(
                last - first,
                side=side,  # type: ignore[arg-type]
                tolerance=0.0,
                claim=claim,
                metric=metric(cfg),
                replicas=verdicts.Replicas(names),
            )
            judged.append(Judged({"level": level}, claim, moves))
    return judged


def conclusions(outcome: Outcome) -> list[str]:
    """Whether both move with the batch size, at each level."""
    return [
        f"level {one.where['level']}: {one.verdict.describe()}"
        for one in outcome.judged
        if "batch_size" not in one.where
    ]


def tables(outcome: Outcome) -> list[Rows]:
    """LII of tickets, errors and their gap, at each level and batch size."""
    results, points = outcome.results, metrics.difference(outcome.metric)
    lii, gaps = results["lii"].sel(arm="ticket", split="test"), gap(results)
    error = _error(results)
    rows = []
    for level, size in itertools.product(
        results["level"].values, results["batch_size"].values
    ):
        at = dict(level=level, batch_size=size)
        density = float(results["density"].sel(**at, arm="ticket").mean())
        cells = [lii.sel(at), *(error.sel(**at, arm=arm) for arm in ARMS), gaps.sel(at)]
        text = [mean_deviation(points.of(cell.values), 1) for cell in cells]
        if not level:  # the dense network has no reinit
            text[2:] = "-", "-"
        rows.append([f"{100 * density:.1f}", str(int(size)), *text])
    header = ["density %", "batch", "LII of tickets"]
    header += [*(f"{points.name} {arm}" for arm in ARMS), "gap"]
    title = f"{outcome.preset}: {points.unit} of test {points.name}, mean ± deviation; "
    title += f"{results.sizes['replica']} replicas"
    return [Rows(title, header, rows)]


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """LII and the gap against the batch size, one figure per level."""
    results, cfg = outcome.results, outcome.cfg
    points = metrics.difference(outcome.metric)
    sizes = results["batch_size"].values
    lii = results["lii"].sel(arm="ticket", split="test")
    gaps = gap(results).transpose("level", "replica", "batch_size")
    for level in results["level"].values[results["level"].values > 0]:
        density = 100 * float(results["density"].sel(level=level, arm="ticket").mean())
        figure = plots.against_step(
            sizes,
            {
                "LII of tickets": points.of(
                    samples(lii.sel(level=level), "batch_size")
                ),
                f"{points.name} of reinit - {points.name} of ticket": points.of(
                    gaps.sel(level=level).values
                ),
            },
            ylabel=f"{points.unit} of test {points.name}",
            xlabel="batch size",
            title=f"{outcome.networks}, k = 0, {density:.1f}% of the weights, {cfg.steps}\n"
            f"mean and deviation of {results.sizes['replica']} replicas",
            threshold=points.of(cfg.threshold),
            threshold_label="LII stable below this",
        )
        yield f"batch_size_level{int(level):02d}", figure


EXPERIMENT = Experiment(
    name="rewinding",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    default="mnist1d-batch-size",
    tiny="--model mlp-4 --subset 200 --steps 1ep --batch-sizes 100 200 --branches 2 "
    "--replicas 2 --alphas 3 --levels 0 1",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
    error_alone=True,
)
