"""Replicas in groups: a run folder grows by further replicas without repeating any.

FOLDER/replicas-000-002/    what was run first
FOLDER/replicas-003-004/    what a later command with more replicas added
"""

import pathlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr


def groups(folder: pathlib.Path, replicas: int) -> list[tuple[pathlib.Path, list[int]]]:
    """Replicas that run together: those of earlier runs, then the new ones."""
    found = []
    for path in sorted(folder.glob("replicas-*-*")):
        if match := re.fullmatch(r"replicas-(\d+)-(\d+)", path.name):
            first, last = int(match[1]), int(match[2])
            found.append((path, list(range(first, last + 1))))
    have = sum(len(ids) for _, ids in found)
    if have < replicas:
        ids = list(range(have, replicas))
        found.append((folder / f"replicas-{ids[0]:03d}-{ids[-1]:03d}", ids))
    return found


def merge(parts: list["xr.Dataset"]) -> "xr.Dataset":
    """The results of all groups, along the replica axis."""
    import xarray as xr

    if len(parts) == 1:
        return parts[0]
    if "level" in parts[0].sizes:
        shortest = min(part.sizes["level"] for part in parts)
        parts = [part.isel(level=slice(shortest)) for part in parts]
    return xr.concat(parts, "replica", combine_attrs="override", data_vars="minimal")
