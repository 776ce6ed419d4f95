"""The command: both processes, one after the other, within the time."""

import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import report
from benchmarks.gpu import page
from benchmarks.gpu.cells import OURS, PEERS
from benchmarks.report import GPU as NAME
from benchmarks.rows import ROWS
from benchmarks.run import ROOT

_ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "ours": {
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.88",
    },
    "peers": {"JAX_PLATFORMS": "cpu"},  # the device's memory is PyTorch's
}


_CELLS = {"ours": OURS, "peers": PEERS}

PATIENCE = 140.0
"""Seconds without an answer after which a process is taken for stuck."""


def answers(
    side: str, seconds: float, limit: float, options: Sequence[str], log: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Runs one of the two processes; what it answers, line by line.

    Args:
      side: "ours" or "peers".
      seconds: after which it begins nothing new.
      limit: after which it is ended; sooner if it is silent for too long.
      options: of its command line.
      log: file of what it prints beside its answers.
    """
    command = [sys.executable, "-m", f"benchmarks.gpu.{side}", str(seconds), *options]
    end, heard, over = time.monotonic() + limit, time.monotonic(), threading.Event()
    with log.open("w") as errors:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | _ENVIRONMENT[side],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

        def watch() -> None:
            while not over.wait(0.5):
                if time.monotonic() > min(end, heard + PATIENCE):
                    child.kill()

        threading.Thread(target=watch, daemon=True).start()
        try:
            for line in child.stdout or ():
                heard = time.monotonic()
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:  # of a library
                    print(line, end="", file=sys.stderr)
        finally:
            over.set()
            child.kill()
            child.wait()
    if child.returncode:
        text = log.read_text()[-1500:]
        why = f"{side}: it ended with {child.returncode}\n{text}"
        yield {"failed": why, "died": True}


def driver() -> str:
    """What the machine says of its device, or ""."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total"]
    done = subprocess.run(
        [*query, "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def measure(minutes: float, quick: bool, only: str, out: pathlib.Path) -> dict:
    """Runs both processes; prints and stores each cell as soon as it is known.

    A process that dies is started again behind the cells that it has answered, with less
    at once, as long as there is time.
    """
    begin = time.monotonic()

    def elapsed() -> float:
        return time.monotonic() - begin

    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "driver": driver(),
        "versions": report.versions(),
        "quick": quick,
        "rulers": {},
        "cells": {},
        "remarks": [],
    }

    def take(answer: dict[str, Any]) -> None:
        if "cell" in answer:
            name = answer.pop("cell")
            found["cells"][name] = answer
            text = page.line(name, answer)
        elif "failed" in answer:
            found["remarks"].append(answer["failed"])
            text = answer["failed"]
        else:
            found["rulers"] |= answer
            text = json.dumps(answer)
        print(f"{elapsed():4.0f} s  {text}", flush=True)
        found["seconds"] = round(elapsed(), 1)
        (out / NAME).write_text(json.dumps(found, indent=1) + "\n")

    print(found["driver"], flush=True)
    options = ["--quick"] * quick + ["--only", only] * bool(only)
    for side, share in (("peers", 0.3), ("ours", 1.0)):
        if side == "peers" and importlib.util.find_spec("torch") is None:
            take({"failed": "peers: PyTorch is not installed"})
            continue
        cells, skip, wave = _CELLS[side], set[int](), 8
        for attempt in range(9):
            # Time for the tables at the end, and for a cell that is being measured.
            limit = share * 60 * minutes - elapsed() - 5
            places = ",".join(map(str, sorted(skip)))
            own = [*options, "--skip", places, "--wave", str(wave)]
            log, died, known = out / f"gpu-{side}-{attempt}.log", False, len(skip)
            for answer in answers(side, limit - 10, limit, own, log):
                died = "died" in answer
                skip |= {i for i, c in enumerate(cells) if c.name == answer.get("cell")}
                take(answer)
            if not died or share * 60 * minutes - elapsed() < 45:
                break
            if wave == 1 and len(skip) == known:  # what it died of
                skip.add(min({*range(len(cells))} - skip))
            wave = max(1, wave // 4)
    return found


def join(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several calls as one: cells of later ones are added, each with its date.

    What was measured takes the place of what was not, and of what was measured before.

    Args:
      calls: what `measure` or this has returned, on one device; rulers are the first's.

    Raises:
      ValueError: Where device, versions or sizes are not those of the first.
    """

    def settings(call: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: call[name] for name in ("driver", "versions", "quick")}
        return own | {"device": call["rulers"].get("device")}

    first, cells = calls[0], dict[str, Any]()
    for call in calls:
        for name, right in settings(first).items():
            if (own := settings(call)[name]) != right:
                wrong = f"{name}={own!r} in the call of {call['date']}"
                raise ValueError(
                    f"{wrong}; it must be {right!r}, as in that of {first['date']}"
                )
        for name, own in call["cells"].items():
            if "rate" in own:
                cells[name] = {"date": call["date"]} | own
            else:
                cells.setdefault(name, own)
    return {
        **first,
        "seconds": sum(call["seconds"] for call in calls),
        "cells": cells,
        "remarks": [remark for call in calls for remark in call["remarks"]],
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures, or renders what was measured; returns 0, or 1 if nothing was."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Replicas on one accelerator, against PyTorch in the same minutes.",
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="of the whole call")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(os.environ.get("OUT", ".")),
        help=f"folder of {NAME} and the logs (default: $OUT, or the current one)",
    )
    parser.add_argument("--only", default="", help="cells with all of WORD,WORD ...")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes that show that it runs"
    )
    parser.add_argument(
        "--render",
        type=pathlib.Path,
        nargs="+",
        metavar="FILE",
        help="run nothing: keep these calls' numbers, and write docs/performance.md again",
    )
    chosen = parser.parse_args(arguments)
    if chosen.render:
        try:
            found = join([json.loads(path.read_text()) for path in chosen.render])
        except ValueError as error:
            parser.error(str(error))
        kept = ROOT / "docs" / "results" / NAME
        kept.write_text(json.dumps(found, indent=1) + "\n")
        report.leave(ROOT / "docs", {}, list(ROWS))
        return 0
    chosen.out.mkdir(parents=True, exist_ok=True)
    found = measure(chosen.minutes, chosen.quick, chosen.only, chosen.out)
    print()
    print(page.markdown(found), flush=True)
    return int(not any("rate" in own for own in found["cells"].values()))


if __name__ == "__main__":
    sys.exit(main())
