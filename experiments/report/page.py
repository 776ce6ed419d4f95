"""One page about one or several runs, as text that needs nothing beside it."""

import base64
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.report import quantities, script, tables
from experiments.report.stored import Run
from lottery_jax import plots, records

if TYPE_CHECKING:
    import xarray as xr

HERE = pathlib.Path(__file__).parent

PLACES = 60_000
"""Numbers that are drawn of all runs together; long axes are thinned out beyond that."""

PICTURE_BYTES = 1_000_000
"""Pictures of masks of all runs together; levels are left out beyond that."""


def html(runs: Sequence[Run]) -> str:
    """The page.

    Args:
      runs: one or more; several are shown side by side.

    Raises:
      ImportError: a package is missing; names the extra.
    """
    try:
        import jinja2
    except ImportError:
        raise script.missing() from None
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    data = drawn(runs)
    return environment.get_template("page.html.j2").render(
        title=" and ".join(run.said.title or run.name for run in runs),
        runs=[about(run) for run in runs],
        differing=tables.differing([run.said.config for run in runs]),
        data=data,
        pictures=any(run["pictures"] for run in data["runs"]),
        layers=any("layer_density" in run["quantities"] for run in data["runs"]),
        style=text("page.css"),
        vega=script.vega(),
        own=text("page.js"),
    )


def text(name: str) -> str:
    """A file of this package."""
    return (HERE / name).read_text()


def about(run: Run) -> dict[str, Any]:
    """What is written of a run: all but its figures."""
    said, usual = run.said, usual_config(run.said.experiment, run.said.preset)
    return {
        "name": run.name,
        "folder": str(run.folder),
        "said": said,
        "networks": networks(said.config),
        "claims": tables.claims(said.verdicts),
        "changed": None if usual is None else tables.changed(said.config, usual),
        "config": [(name, tables.plain(x)) for name, x in said.config.items()],
        "numbers": quantities.numbers(run.results),
        "sizes": {str(name): size for name, size in run.results.sizes.items()},
        "levels": "level" in run.results.coords,
        "again": goes_on(said.experiment),
        "replicas": int(run.results.sizes.get("replica", 0)),
        "last": int(run.results["level"].max()) if "level" in run.results.coords else 0,
        "variables": len(run.results.data_vars),
    }


def networks(config: Mapping[str, Any]) -> str:
    """What was trained, in words."""
    if not (config.get("model") and config.get("data")):
        return ""
    return f"{config['model']} on {config['data']}"


# --- what is drawn --------------------------------------------------------------------


def drawn(runs: Sequence[Run]) -> dict[str, Any]:
    """What the script of the page draws: JSON-able."""
    each = PLACES // len(runs)
    return {
        "runs": [
            {
                "name": run.name,
                "quantities": {
                    one.name: one._asdict() | {"axes": [a._asdict() for a in one.axes]}
                    for one in quantities.found(run.results, each)
                },
                "pictures": pictures(run.results, PICTURE_BYTES // len(runs)),
            }
            for run in runs
        ],
        "colors": {name: color for name, (color, _) in plots.STYLES.items()},
        "spec": SPEC,
    }


def pictures(results: "xr.Dataset", most: int) -> dict[str, Any] | None:
    """Pictures of masks, as `experiments.pictures` makes them; None if there are none.

    Args:
      results: of a study.
      most: bytes of all; levels are left out beyond that.
    """
    if "mask_picture" not in results or "layer" not in results.coords:
        return None
    found = results["mask_picture"]
    others = [d for d in found.dims if d not in _PICTURE_AXES]
    found = found.isel(dict.fromkeys(others, 0), drop=True)
    rows, columns = (results[f"mask_{side}"].values for side in ("rows", "columns"))
    level = found["level"].values
    size = found.sizes["chain"] * int((rows * columns).sum())
    fit = max(1, most // max(size, 1))
    at = np.unique(np.linspace(0, len(level) - 1, min(fit, len(level))).astype(int))
    found = found.isel(level=at).transpose(*_PICTURE_AXES)
    density = results.get("layer_density")
    names = [str(name) for name in results["layer"].values]
    return {
        "chains": [str(name) for name in results["chain"].values],
        "levels": level[at].tolist(),
        "densities": None if density is None else _densities(results, others, at),
        "layers": [
            {
                "name": name,
                "rows": int(rows[j]),
                "columns": int(columns[j]),
                "bytes": base64.b64encode(
                    found.values[:, :, j, : rows[j], : columns[j]].tobytes()
                ).decode(),
            }
            for j, name in enumerate(names)
        ],
        "thinned": len(at) < len(level),
    }


_PICTURE_AXES = ("chain", "level", "layer", "row", "column")


def _densities(results: "xr.Dataset", others: list[Any], at: np.ndarray) -> Any:
    """The density of each layer of the pictures in percent, `[chain][level][layer]`."""
    own = results["layer_density"].isel(dict.fromkeys(others, 0), drop=True)
    if "arm" in own.dims:
        arms = [str(arm) for arm in own["arm"].values]
        own = own.isel(arm=arms.index("ticket") if "ticket" in arms else 0)
    own = own.isel(replica=0, level=at).transpose("chain", "level", "layer")
    return records.finite(np.round(100 * own.values.astype(float), 3))


SPEC: Mapping[str, Any] = {
    "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
    "width": "container",
    "height": 320,
    "autosize": {"type": "fit", "contains": "padding"},
    "data": {"name": "places"},
    "encoding": {
        "x": {"field": "x", "type": "quantitative", "axis": {"grid": False}},
        "color": {"field": "line", "type": "nominal", "legend": None},
    },
    "layer": [
        {
            "mark": {"type": "rule", "opacity": 0.55},
            "encoding": {
                "y": {"field": "low", "type": "quantitative"},
                "y2": {"field": "high"},
            },
        },
        {
            "mark": {"type": "line", "strokeWidth": 1.8},
            "encoding": {"y": {"field": "mean", "type": "quantitative"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
            "encoding": {"y": {"field": "mean", "type": "quantitative"}},
        },
    ],
    "config": {
        "background": "white",
        "font": "system-ui, sans-serif",
        "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"},
        "view": {"stroke": None},
    },
}
"""A figure in Vega-Lite, whose script fills in what is chosen: titles, scales, colours."""


# --- what the presets say -------------------------------------------------------------


def usual_config(experiment: str, preset: str) -> dict[str, Any] | None:
    """The configuration of a preset; None where there is none of that name."""
    from experiments import identity

    known = _experiments().get(experiment)
    if known is None or preset not in known.presets:
        return None
    return identity.as_config(known.presets[preset].config)


def goes_on(experiment: str) -> bool:
    """Whether an experiment trains stored levels again (`--from`)."""
    known = _experiments().get(experiment)
    return known is not None and known.again is not None


def _experiments() -> dict[str, Any]:
    """All experiments by name."""
    from experiments.all import EXPERIMENTS

    return {one.name: one for one in EXPERIMENTS}
