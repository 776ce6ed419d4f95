"""What both processes share: their options, and how they answer."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.cells import Cell
from benchmarks.run import outcome


def options() -> argparse.Namespace:
    """What a process's command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float, help="no cell is begun after them")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="cells with all of WORD,WORD ...")
    parser.add_argument("--skip", default="", help="places among these cells: 0,1,5")
    parser.add_argument("--wave", type=int, default=8, help="cells made before timing")
    return parser.parse_args()


def selected(cells: Sequence[Cell], only: str = "", skip: str = "") -> list[Cell]:
    """The cells whose name has all the words, but for those at some places of the list.

    Args:
      cells: all of them.
      only: words, separated by commas.
      skip: places, likewise.
    """
    words = [word.strip() for word in only.split(",")]
    places = {int(place) for place in skip.split(",") if place}
    return [
        cell
        for i, cell in enumerate(cells)
        if i not in places and all(word in cell.name for word in words)
    ]


def say(found: Mapping[str, Any]) -> None:
    """Writes one line of JSON."""
    print(json.dumps(found), flush=True)


def why(error: Exception) -> str:
    """An error in a few words; all of it goes to the standard error, a log."""
    traceback.print_exception(error)
    return outcome(f"{type(error).__name__}: {error}")


def leave() -> None:
    """Ends the process at once, whatever still compiles in its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
