"""What both processes share: their options, and how they answer."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.cells import Cell


def options() -> argparse.Namespace:
    """`seconds`, `quick` and `only` of a process's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float, help="no cell is begun after them")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    return parser.parse_args()


def selected(cells: Sequence[Cell], only: str) -> list[Cell]:
    """The cells whose name has all the words, which commas separate."""
    words = [word.strip() for word in only.split(",")]
    return [cell for cell in cells if all(word in cell.name for word in words)]


def say(found: Mapping[str, Any]) -> None:
    """Writes one line of JSON."""
    print(json.dumps(found), flush=True)


def leave() -> None:
    """Ends the process at once, whatever still compiles in its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
