"""The command: runs rows, one after another, and writes what they found."""

import argparse
import importlib.util
import os
import pathlib
import sys
import time

from benchmarks import report
from benchmarks.rows import ROWS
from benchmarks.run import ROOT, WorkerError, measure


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen rows; returns 0, or 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Speed and memory against named peers and rulers, in one run.",
    )
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"of {', '.join(ROWS)}; without any, all of them; stored ones stay",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes that show no more than that the rows run; kept only with --out",
    )
    parser.add_argument(
        "--against",
        metavar="DIR",
        help="another checkout: its sides and these take turns; kept only with --out",
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
    kept = not (chosen.quick or chosen.against)
    folder = chosen.out or (ROOT / "docs" if kept else None)
    if chosen.render:
        report.leave(folder or ROOT / "docs", {}, list(ROWS))
        return 0
    if unknown := [name for name in chosen.rows if name not in ROWS]:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if chosen.quick:
        # Compiling is most of what is left to wait for.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    against = chosen.against and str(pathlib.Path(chosen.against).resolve())
    failed = False
    for name in dict.fromkeys(chosen.rows or ROWS):
        row = ROWS[name]
        # Against another checkout the peers do not run.
        needs = [m for m in row.needs if not (against and m in ("torch", "PIL"))]
        if missing := [m for m in needs if importlib.util.find_spec(m) is None]:
            print(
                f"{name}: skipped, it needs {', '.join(missing)}: "
                "pip install 'lottery-jax[experiments,bench]'",
                file=sys.stderr,
            )
            continue
        load, begin = os.getloadavg()[0], time.perf_counter()
        if load > 0.5 and not chosen.quick:
            print(f"load {load:.1f}: other processes are running", file=sys.stderr)
        try:
            found = measure(row, chosen.quick, against)
        except WorkerError as error:
            print(f"{name}: failed: {error}", file=sys.stderr)
            failed = True
            continue
        seconds = time.perf_counter() - begin
        entry = {name: report.as_json(row, found, seconds, load, chosen.quick)}
        print(report.markdown(entry), flush=True)
        if folder is not None:
            report.leave(folder, entry, list(ROWS))  # an interruption loses one row
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
