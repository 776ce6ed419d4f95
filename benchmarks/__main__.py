"""The command: runs rows, one after another, and writes what they found."""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks import curves, report, rows
from benchmarks.timing import ROOT


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen rows; returns 0, or 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Speed and memory against named peers and rulers, in one run.",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=list(rows.ROWS),
        default=list(rows.ROWS),
        metavar="ROW",
        help=f"rows to run, of {', '.join(rows.ROWS)}; stored ones stay as they are",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes that show no more than that the rows run; kept only with --out",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="folder of performance.md, results/benchmarks.json and results/scaling.png "
        "(default: docs)",
    )
    parser.add_argument(
        "--render",
        action="store_true",
        help="run nothing: write page and figure again, from the stored numbers",
    )
    chosen = parser.parse_args(arguments)
    folder = chosen.out or (None if chosen.quick else ROOT / "docs")
    if chosen.render:
        leave(folder or ROOT / "docs", {})
        return 0
    if chosen.quick:
        # Compiling is most of what is left to wait for.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    failed = False
    for name in dict.fromkeys(chosen.rows):
        row = rows.ROWS[name]
        missing = [m for m in row.needs if importlib.util.find_spec(m) is None]
        if missing:
            print(
                f"{name}: skipped, it needs {', '.join(missing)}: "
                f"pip install 'lottery-jax[{row.extra}]'",
                file=sys.stderr,
            )
            continue
        load, begin = os.getloadavg()[0], time.perf_counter()
        if load > 0.5 and not chosen.quick and name == chosen.rows[0]:
            print(
                f"load {load:.1f}: other processes are running, and sides with several "
                "threads suffer from that most",
                file=sys.stderr,
            )
        try:
            found = row.run(chosen.quick)
        except RuntimeError as error:
            print(f"{name}: failed: {error}", file=sys.stderr)
            failed = True
            continue
        seconds = time.perf_counter() - begin
        entry = {name: report.as_json(found, seconds, load, chosen.quick)}
        print(report.markdown(entry), flush=True)
        if folder is not None:
            leave(folder, entry)  # after every row: an interruption loses one
    return int(failed)


def leave(folder: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Writes JSON, figure and page, with new rows in the places of stored ones.

    Args:
      folder: that of the page; the others lie in its folder `results`.
      found: new rows by name, from `report.as_json`.
    """
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    path = results / "benchmarks.json"
    stored = report.merge(path, found, list(rows.ROWS))
    path.write_text(json.dumps(stored, indent=1) + "\n")
    figure = results / "scaling.png"
    if importlib.util.find_spec("matplotlib"):
        curves.draw(stored, figure)
    name = "results/scaling.png" if figure.is_file() else None
    (folder / "performance.md").write_text(report.page(stored, name))


if __name__ == "__main__":
    sys.exit(main())
