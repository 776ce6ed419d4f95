"""A page about one run or several that opens anywhere, without a network.

    python -m experiments.report results/imp/mnist1d-0f43c1d2
    python -m experiments.report results/try results/other --out compared.html

It is written from the `results.nc` of each folder, and nothing else: the figures with the
values of all axes, verdicts with their intervals, densities and masks, the configuration,
and where it all comes from. Every run leaves one in its folder, `report.html`.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from experiments import launch, provenance
from experiments.report import page, stored
from experiments.report.stored import Run
from lottery_jax import errors, records

if TYPE_CHECKING:
    import xarray as xr

NAME = "report.html"
"""The report in a run folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What is to be shown, and where the page goes."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """Run folders; several are shown side by side."""
    out: str | None = None
    """The page; by default report.html in the folder, or in the one that all lie in."""


def write(
    folders: Sequence[str | os.PathLike[str]], out: str | None = None
) -> pathlib.Path:
    """Writes the report of one run, or of several side by side.

    Args:
      folders: of the runs.
      out: the page; None for `report.html` in the folder, or in the one that all lie in.

    Returns:
      The path of the page.

    Raises:
      ValueError: no folder, an address, or results that are damaged; names it.
      FileNotFoundError: there is no such folder, or there are no results in it.
      ImportError: a package is missing; names the extra.
      OSError: the page cannot be written; names it.
    """
    if not folders:
        raise errors.wrong("FOLDER", "()", "one or more run folders")
    path = None if out is None else errors.on_disk("out", out)
    if path is not None and path.is_dir():
        must = "a file, such as report.html: there is a folder of that name"
        raise errors.wrong("out", repr(out), must)
    runs = stored.read(folders)
    if path is None:
        above = runs[0].folder
        if len(runs) > 1:
            common = os.path.commonpath([run.folder.absolute() for run in runs])
            above = pathlib.Path(os.path.relpath(common))
        path = above / NAME
    text = page.html(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_text(path, text)
    return path


def leave(folder: pathlib.Path, results: "xr.Dataset") -> str:
    """Writes the report of a run that has just ended, in its folder; says where it is.

    What goes wrong here is said, and stops nothing: the results are stored by now.

    Args:
      folder: of the run.
      results: as they are stored there.

    Returns:
      A line for the screen.
    """
    try:
        run = Run(folder.absolute().name, folder, results, provenance.read(results))
        records.write_text(folder / NAME, page.html([run]))
    except Exception as error:  # a page is never worth a run
        return f"No report: {error}"
    return f"Report: {folder / NAME}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status. Without arguments it shows the help.

    Args:
      arguments: None for those of the command line.

    Raises:
      SystemExit: help was asked for, or the arguments are wrong; says how.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = tyro.cli(
        Report, args=rest, prog="python -m experiments.report", description=__doc__
    )
    return launch.guarded(
        lambda: print(f"Report: {write(command.folders, command.out)}")
    )
