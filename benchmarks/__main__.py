"""The command: runs rows, one after another, and writes what they found."""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
import time

from benchmarks import report, rows
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
        help="folder of benchmarks.json and benchmarks.md (default: docs/results)",
    )
    chosen = parser.parse_args(arguments)
    folder = chosen.out or (None if chosen.quick else ROOT / "docs" / "results")
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
            # After every row: an interruption loses one.
            stored = report.merge(folder / "benchmarks.json", entry, list(rows.ROWS))
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(stored, indent=1) + "\n"
            (folder / "benchmarks.json").write_text(text)
            (folder / "benchmarks.md").write_text(report.markdown(stored))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
