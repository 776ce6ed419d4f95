"""One page about one or several runs, as text that needs nothing beside it."""

import base64
import functools
import importlib
import pathlib
import pkgutil
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import experiments
from experiments import identity
from experiments.report import quantities, script, tables
from experiments.report.stored import Run
from lottery_jax import plots, records
from lottery_jax.verdicts import METRICS

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
    data = drawn(runs)
    return template().render(
        title=title(runs),
        runs=[about(run) for run in runs],
        differing=tables.differing([run.said.config for run in runs]),
        data=data,
        pictures=any(run["pictures"] for run in data["runs"]),
        layers=any("layer_density" in run["quantities"] for run in data["runs"]),
        style=text("page.css"),
        vega=script.vega(),
        own=text("page.js"),
    )


def title(runs: Sequence[Run]) -> str:
    """What the page is about: few runs by name."""
    names = [run.said.title or run.name for run in runs]
    if len(set(names)) < len(names):  # one preset several times
        names = [run.name for run in runs]
    return " and ".join(names) if len(names) < 4 else f"{len(names)} runs"


def text(name: str) -> str:
    """A file of this package."""
    return (HERE / name).read_text()


@functools.cache
def template() -> Any:
    """The page, with places for what is written of runs.

    Raises:
      ImportError: jinja2 is missing; names the extra.
    """
    try:
        import jinja2
    except ImportError:
        raise script.missing() from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = {"sort_keys": False, "separators": (",", ":"), "allow_nan": False}
    environment.policies["json.dumps_kwargs"] = written
    return environment.get_template("page.html.j2")


def about(run: Run) -> dict[str, Any]:
    """What is written of a run: all but its figures."""
    said, known = run.said, experiment(run.said.experiment)
    usual = usual_config(known, said.preset)
    return {
        "name": run.name,
        "folder": str(run.folder),
        "said": said,
        "networks": networks(said.config),
        "claims": tables.claims(said.verdicts),
        "changed": None if usual is None else tables.changed(said.config, usual),
        "config": [(name, tables.plain(x)) for name, x in said.config.items()],
        "numbers": quantities.numbers(run.results, compared(run)),
        "sizes": {str(name): size for name, size in run.results.sizes.items()},
        "replicas": int(run.results.sizes.get("replica", 0)),
        "commands": commands(run, known),
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
                    for one in quantities.found(run.results, each, compared(run))
                },
                "pictures": pictures(run.results, PICTURE_BYTES // len(runs)),
            }
            for run in runs
        ],
        "colors": {name: color for name, (color, _) in plots.STYLES.items()},
        "spec": SPEC,
    }


def compared(run: Run) -> str:
    """The name of what networks are compared by, as verdicts say; "" for none."""
    for one in run.said.verdicts:
        if (unit := one.get("verdict", {}).get("unit")) in METRICS:
            return str(unit)
    return ""


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


# --- what its experiment says ---------------------------------------------------------


def experiment(name: str) -> Any:
    """The experiment of a name; None where this version has none of it."""
    if name not in {
        module.name for module in pkgutil.iter_modules(experiments.__path__)
    }:
        return None
    module = importlib.import_module(f"experiments.{name}")
    return getattr(module, "EXPERIMENT", None)


def usual_config(known: Any, preset: str) -> dict[str, Any] | None:
    """The configuration of a preset; None where there is none of that name."""
    if known is None or preset not in known.presets:
        return None
    return identity.as_config(known.presets[preset].config)


def commands(run: Run, known: Any) -> list[tuple[str, str]]:
    """Where to go on: what a command does, and the command.

    Args:
      run: the run.
      known: its experiment, or None.
    """
    said, sizes = run.said, run.results.sizes
    folder = shlex.quote(str(run.folder))
    found = []
    if said.command:
        does, command = "The same in a new folder", said.command
        if (run.folder / "config.json").is_file():
            does = "What is missing of it; a finished run returns at once"
            command = f"{command} --out {folder}"
        found.append((does, command))
    words = _words(said.command)
    once = words and "--from" not in words
    grown = []
    if known is not None and once and not known.together:
        grown.append(("replicas", sizes.get("replica", 0) + 2))
    if known is not None and once and known.complete is not None:
        grown.append(("levels", sizes.get("level", 1) + 1))
    if grown:
        does = f"More {' and '.join(n for n, _ in grown)}; nothing is trained twice"
        before = _without(words, [*(n for n, _ in grown), "target-density"])
        flags = " ".join(f"--{name} {number}" for name, number in grown)
        found.append((does, f"{before} {flags} --out {folder}"))
    if known is not None and known.again is not None and "level" in run.results.coords:
        last = int(run.results["level"].values[-1])
        trained = f"python -m experiments.{known.name} --from {folder} --level {last}"
        ticket = f"{folder}/replicas-*/tickets/*/level{last:02d}-replica00.safetensors"
        found += [
            ("A stored level again, with fields changed", trained),
            (
                "What a ticket is, and its masks as pictures",
                f"python -m experiments.ticket inspect {ticket}",
            ),
        ]
    path = str(run.folder / "results.nc")
    opened = f"results = xr.load_dataset({path!r}, engine='h5netcdf')"
    text = f"import xarray as xr\n\n{opened}\nprint(results)"
    return [*found, ("The results, with named axes", text)]


def _words(command: str) -> list[str]:
    """The words of a command; none where a quote is not closed."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def _without(words: Sequence[str], flags: Sequence[str]) -> str:
    """A command without some flags and their values."""
    kept, skip = [], False
    for word in words:
        named = word in [f"--{flag}" for flag in flags]
        if not (named or skip):
            kept.append(word)
        skip = named
    return shlex.join(kept)
