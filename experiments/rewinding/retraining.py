"""Weight rewinding, learning-rate rewinding, fine-tuning and reinit, by retraining time.

All levels train for t steps that end with the last step of training, so t = T - k. Renda
et al. 2020, section 4.
"""

import itertools
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import display, groups, launch
from experiments.recipes import (
    check_paths,
    load_data,
    make_optimizer,
    make_task,
    parse_steps,
)
from experiments.rewinding import subnetworks
from experiments.rewinding.config import NOT_IDENTITY, Config
from lottery_jax import imp, plots, records, verdicts

if TYPE_CHECKING:
    import xarray as xr

WAYS = ("rewind", "lr_rewind", "finetune", "reinit")
NAMES = {
    "rewind": "weight rewinding",
    "lr_rewind": "learning-rate rewinding",
    "finetune": "fine-tuning",
    "reinit": "reinit",
}


def protocols(cfg: Config, steps_per_epoch: int) -> dict[str, imp.Plan]:
    """Two plans: weight rewinding with its reinits, and what keeps trained weights.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    (steps,) = parse_steps(cfg, "steps", steps_per_epoch)
    times = parse_steps(cfg, "retrain_times", steps_per_epoch)
    if not times or not all(0 < t <= steps for t in times):
        raise ValueError(
            f"retrain_times={cfg.retrain_times}; there must be some, each in (0, {steps}]"
        )

    def chains(*retrains: str) -> tuple[imp.Chain, ...]:
        return tuple(
            imp.Chain(
                name=f"{retrain}-t{t}",
                retrain=retrain,  # type: ignore[arg-type]
                rewind_step=steps - t,
                fraction=cfg.fraction,
                scope=cfg.scope,
            )
            for retrain in retrains
            for t in sorted(set(times))
        )

    def plan(chains: tuple[imp.Chain, ...], *arms: str) -> imp.Plan:
        return imp.check(
            imp.Plan(
                steps=steps,
                chains=chains,
                arms=arms,
                validate_every=cfg.every,
                seed=cfg.seed,
            )
        )

    return {
        "rewound": plan(chains("rewind"), "ticket", "reinit"),
        "kept": plan(chains("lr_rewind", "finetune"), "ticket"),
    }


def run(cfg: Config, folder: pathlib.Path) -> "xr.Dataset | None":
    """Runs what is missing of a study in its folder, and returns all results.

    With several processes the first one returns them, the others None.
    """
    config = records.as_config(cfg)
    task = make_task(cfg)
    plans = protocols(cfg, task.steps_per_epoch)
    tx = make_optimizer(cfg, task.steps_per_epoch)
    check_paths(cfg, task, "interpolate")  # no path is taken: any policy fits
    if not cfg.levels or min(cfg.levels) < 0:
        raise ValueError(f"levels={cfg.levels}; there must be some, 0 or more")
    execution = launch.execution(cfg)

    def one(group: pathlib.Path, ids: list[int]) -> "xr.Dataset":
        found = {
            name: subnetworks.find(
                task,
                tx,
                plan,
                ids,
                max(cfg.levels),
                group / name,
                execution,
                cfg.checkpoint_seconds,
            )
            for name, plan in plans.items()
        }
        return _dataset(cfg, plans, found, ids)

    return groups.run(folder, config, NOT_IDENTITY, cfg.replicas, one, grows=True)


def _dataset(
    cfg: Config,
    plans: dict[str, imp.Plan],
    found: dict[str, imp.Study],
    ids: list[int],
) -> "xr.Dataset":
    """Axes retraining, retrain_time, replica, level."""
    steps = plans["rewound"].steps
    times = sorted({steps - k for k in plans["rewound"].rewind_steps})
    names = ("test_error", "diverged", "density")
    values: dict[str, Any] = {name: [] for name in names}
    for way in WAYS:
        part = "kept" if way in ("lr_rewind", "finetune") else "rewound"
        arm = "reinit" if way == "reinit" else "ticket"
        plan = plans[part]
        chain = "rewind" if way == "reinit" else way
        rows = [
            [c.name for c in plan.chains].index(f"{chain}-t{time_}") for time_ in times
        ]
        for name in names:
            array = found[part].records[name][1]
            values[name].append(array[rows, plan.arms.index(arm)])
    axes = ("retraining", "retrain_time", "replica", "level")
    out = {name: (axes, np.stack(value)) for name, value in values.items()}
    levels = out["density"][1].shape[-1]
    coordinates = {
        "retraining": list(WAYS),
        "retrain_time": times,
        "replica": ids,
        "level": range(levels),
    }
    attributes = {
        **records.environment(),
        "execution": found["rewound"].execution._asdict(),
        "steps": steps,
        **({"note": note} if (note := load_data(cfg).note) else {}),
    }
    return records.dataset(out, coordinates, attributes).sel(
        level=sorted(set(cfg.levels))
    )


# --- what came out --------------------------------------------------------------------


def accuracy(results: "xr.Dataset") -> "xr.DataArray":
    """Test accuracy in percent; replicas that diverged are nan."""
    return (100 * (1 - results["test_error"])).where(results["diverged"] == 0)


def judge(results: "xr.Dataset") -> list[dict[str, Any]]:
    """Which way of retraining is better, at each level and retraining time."""
    error = results["test_error"].where(results["diverged"] == 0)
    names = [f"replica {i}" for i in results["replica"].values]
    rows = []
    for a, b in itertools.combinations(WAYS, 2):
        for level, t in itertools.product(
            results["level"].values, results["retrain_time"].values
        ):
            if level == 0:
                continue
            at = error.sel(level=level, retrain_time=t)
            claim = f"{NAMES[a]} better than {NAMES[b]}"
            rows.append(
                {
                    "claim": claim,
                    "level": int(level),
                    "retrain_time": int(t),
                    "verdict": verdicts.better(
                        at.sel(retraining=a).values,
                        at.sel(retraining=b).values,
                        claim=claim,
                        replicas=verdicts.Replicas(names),
                    ),
                }
            )
    return rows


def judge_full_rewind(results: "xr.Dataset") -> list[dict[str, Any]]:
    """Does rewinding to the initialisation (t = T) hurt, against a later point?"""
    error = results["test_error"].where(results["diverged"] == 0)
    times = results["retrain_time"].values
    names = [f"replica {i}" for i in results["replica"].values]
    if len(times) < 2 or int(times[-1]) != int(results.attrs["steps"]):
        return []
    rows = []
    for way in ("rewind", "lr_rewind"):
        for level in results["level"].values[results["level"].values > 0]:
            at = error.sel(retraining=way, level=level)
            claim = f"{NAMES[way]}: t = {times[-2]} better than t = T"
            rows.append(
                {
                    "claim": claim,
                    "level": int(level),
                    "verdict": verdicts.better(
                        at.sel(retrain_time=times[-2]).values,
                        at.sel(retrain_time=times[-1]).values,
                        claim=claim,
                        replicas=verdicts.Replicas(names),
                    ),
                }
            )
    return rows


def table(results: "xr.Dataset") -> display.Rows:
    """Accuracy of each way of retraining by density and retraining time."""
    rows = []
    values = accuracy(results)
    for level, t in itertools.product(
        results["level"].values, results["retrain_time"].values
    ):
        density = results["density"].sel(
            level=level, retraining="rewind", retrain_time=t
        )
        row = [f"{100 * float(density.mean()):.1f}", str(int(t))]
        for way in WAYS:
            own = values.sel(level=level, retrain_time=t, retraining=way).values
            own = own[np.isfinite(own)]
            row.append(
                f"{own.mean():.1f} ± {own.std():.1f}" if len(own) else "diverged"
            )
        rows.append(row)
    return display.Rows(["density %", "t", *NAMES.values()], rows)


def draw(results: "xr.Dataset", cfg: Config, folder: pathlib.Path) -> pathlib.Path:
    """Accuracy against density at one t, and against t at the sparsest level."""
    values = accuracy(results)
    times = results["retrain_time"].values
    middle = int(times[len(times) // 2])
    density = results["density"].sel(retraining="rewind", retrain_time=middle)
    number = results.sizes["replica"]
    name = f"{cfg.model} on {cfg.data}"
    lines = {
        NAMES[m]: values.sel(retraining=m, retrain_time=middle)
        .transpose("replica", "level")
        .values
        for m in WAYS
    }
    path = folder / "figures" / "accuracy"
    figure = plots.against_density(
        density.mean("replica").values,
        lines,
        ylabel="test accuracy (%)",
        title=f"{name}, retrained for t = {middle} of {results.attrs['steps']} steps\n"
        f"mean of {number} replicas, bars: min to max",
    )
    plots.save(figure, path)
    level = int(results["level"].values[-1])
    share = 100 * float(density.sel(level=level).mean())
    lines = {
        NAMES[m]: values.sel(retraining=m, level=level)
        .transpose("replica", "retrain_time")
        .values
        for m in WAYS
    }
    figure = plots.against_step(
        times,
        lines,
        ylabel="test accuracy (%)",
        xlabel="retraining time t",
        title=f"{name}, {share:.1f}% of the weights\nmean and deviation of {number} "
        "replicas",
        total=int(results.attrs["steps"]),
        logarithmic=False,
    )
    plots.save(figure, folder / "figures" / "retraining_time")
    return path.with_suffix(".png")


def report(
    results: "xr.Dataset", cfg: Config, preset: str, folder: pathlib.Path
) -> None:
    """Figures, table and verdicts, on the disk and on the screen."""
    figure = draw(results, cfg, folder)
    judged = judge(results) + judge_full_rewind(results)
    rows = table(results)
    lines = conclusions(results, judged)
    display.leave(folder, judged, [rows], lines)
    title = f"{preset}: test accuracy in %, mean ± deviation of "
    title += f"{results.sizes['replica']} replicas"
    display.show_lines(title, rows, [*lines, "", f"Figure: {figure}"])


def conclusions(results: "xr.Dataset", judged: list[dict[str, Any]]) -> list[str]:
    """The comparisons at the sparsest level, a line each."""
    level = int(results["level"].values[-1])
    lines = []
    for claim in dict.fromkeys(row["claim"] for row in judged):
        mine = [r for r in judged if r["claim"] == claim and r["level"] == level]
        text = ", ".join(
            (f"t = {row['retrain_time']} " if "retrain_time" in row else "")
            + f"{row['verdict'].answer} ({100 * row['verdict'].estimate:+.1f})"
            for row in mine
        )
        lines.append(f"{claim} (difference of error in points): {text}")
    density = float(results["density"].sel(level=level).mean())
    return [f"At {100 * density:.1f}% of the weights:", *lines]
