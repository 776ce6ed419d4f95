"""Replicas in groups: what runs together, in one process, in one folder.

FOLDER/replicas-000-002/    what was run first
FOLDER/replicas-003-004/    what a later command with more replicas added

A run folder grows by further replicas without repeating any. With several processes each
takes groups of its own, so each holds and checkpoints its replicas alone, and any number of
processes and devices can go on with what others have begun.
"""

import json
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lottery_jax import records
from lottery_jax.execution import Deadline, OutOfTimeError, Waited, processes

if TYPE_CHECKING:
    import xarray as xr

Group = tuple[pathlib.Path, list[int]]


def groups(
    folder: pathlib.Path, replicas: int, parts: int = 1, size: int | None = None
) -> list[Group]:
    """Replicas that run together: those of earlier runs, then the new ones.

    Args:
      folder: of the run.
      replicas: how many there are to be.
      parts: in how many groups the new ones come at least, if there are so many.
      size: the most of a new group; None for any number.
    """
    found = []
    for path in sorted(folder.glob("replicas-*-*")):
        if match := re.fullmatch(r"replicas-(\d+)-(\d+)", path.name):
            first, last = int(match[1]), int(match[2])
            found.append((path, list(range(first, last + 1))))
    have = {i for _, ids in found for i in ids}
    new = [i for i in range(replicas) if i not in have]
    # Neighbours only, since a folder is named by its first and last.
    runs = np.split(new, np.flatnonzero(np.diff(new) > 1) + 1) if new else []
    share = min(-(-len(new) // parts), size or len(new))
    for run in runs:
        for ids in np.array_split(run, -(-len(run) // share)):
            name = f"replicas-{ids[0]:03d}-{ids[-1]:03d}"
            found.append((folder / name, [int(i) for i in ids]))
    return found


def once(
    path: pathlib.Path,
    make: Callable[[], "xr.Dataset"],
    holds: Callable[["xr.Dataset"], bool] = lambda _: True,
) -> "xr.Dataset":
    """Stored results, or those that are made now and stored.

    Args:
      path: of the results.
      make: makes them, or what is missing of them.
      holds: whether stored ones are all that is asked for.
    """
    if records.intact(path) and holds(found := records.load(path)):
        return found
    begin = time.monotonic()
    found = make()
    found.attrs["seconds_last_call"] = time.monotonic() - begin
    records.save(path, found)
    return found


def run(
    folder: pathlib.Path,
    config: records.Config,
    ignore: Sequence[str],
    replicas: int,
    one: Callable[[pathlib.Path, list[int], processes.Meeting | None], "xr.Dataset"],
    *,
    grows: bool = False,
    size: int | None = None,
    deadline: Deadline | None = None,
) -> "xr.Dataset | None":
    """Runs what is missing of a run folder, in this process or in several.

    Args:
      folder: of the run; all processes must see it.
      config: what the folder belongs to.
      ignore: fields that change no number of a replica.
      replicas: how many.
      one: runs a group of replicas in its folder; goes on where it was interrupted. The
        meeting is that of all processes, if there are several.
      grows: results of a group may be asked for again with more in them; `one` knows
        what is there.
      size: the most replicas of a new group; None for any number.
      deadline: at which waiting for other processes ends; None for no limit.

    Returns:
      The results of all groups, which are stored in the folder, too; None in all
      processes but the first.

    Raises:
      ValueError: the folder belongs to another configuration, or there are more processes
        than groups.
      processes.LostProcessError: a process has ended; what is left to do.
      OutOfTimeError: a process has stopped because its deadline was near; in all of them.
    """
    stopped = None
    with processes.meet(folder, deadline=deadline) as meeting:
        mine = meeting.index
        if mine == 0:
            records.claim_folder(folder, config, ignore)
        meeting.gather("claimed", None)
        all_groups = groups(folder, replicas, meeting.count, size)
        # Nobody makes a folder before everybody has seen what there is.
        meeting.gather("seen", None)
        if len(all_groups) < meeting.count:
            raise ValueError(
                f"replicas={replicas} in {len(all_groups)} groups; {meeting.count} "
                "processes need one each, so start fewer or ask for more replicas"
            )
        try:
            for path, ids in all_groups[mine :: meeting.count]:
                others = meeting if meeting.count > 1 else None
                make = partial(one, path, ids, others)
                once(path / "results.nc", make, lambda _: not grows)
        except OutOfTimeError as error:
            stopped = str(error)
        # The first process must not leave before the others have stored what they have.
        ends = _wait_for_all(meeting, all_groups, stopped)
        stopped = stopped or next(filter(None, ends), None)
        if stopped is None:
            return _gathered(folder, config, all_groups) if mine == 0 else None
    raise OutOfTimeError(stopped)


def _wait_for_all(
    meeting: processes.Meeting, all_groups: list[Group], stopped: str | None
) -> list[str | None]:
    """What each process says of its end: why it has stopped, or None if it is done."""
    meeting.say(processes.DONE, stopped)
    said: list[str | None] = []
    for of in range(meeting.count):
        try:
            said.append(meeting.hear(processes.DONE, of))
        except OutOfTimeError as error:
            said.append(str(error))
        except processes.LostProcessError as error:
            ids = [i for _, ids in all_groups[of :: meeting.count] for i in ids]
            raise processes.LostProcessError(
                f"{error}. Its replicas {ids} are as they were last checkpointed, all "
                "others are done; the same command goes on from there, with any number of "
                "processes"
            ) from None
    return said


def _gathered(
    folder: pathlib.Path, config: records.Config, all_groups: list[Group]
) -> "xr.Dataset":
    """The results of all groups, which are stored."""
    parts = [records.load(path / "results.nc") for path, _ in all_groups]
    results = merge(parts)
    results.attrs |= {"config": json.dumps(config)} | _added_up(parts)
    records.save(folder / "results.nc", results)
    return results


_ADDED = ("seconds_last_call", "seconds_waiting", "seconds_windows", "examples_read")


def of_streams(waited: Waited) -> dict[str, Any]:
    """What results say of splits that were read while networks trained, if there were any.

    Args:
      waited: of the last call.

    Returns:
      `seconds_waiting` for examples, `seconds_windows` in all, waiting and computing,
      `examples_read`, and `examples_replaced`: by the names of corrupt ones, as JSON,
      those that were read instead.
    """
    if not waited.examples:
        return {}
    return {
        "seconds_waiting": waited.seconds,
        "seconds_windows": waited.of,
        "examples_read": waited.examples,
        "examples_replaced": json.dumps(waited.replaced),
    }


def streams_in_words(results: "xr.Dataset") -> list[str]:
    """That devices waited for examples, and which were corrupt: a line each."""
    own = results.attrs
    if not own.get("examples_read"):
        return []
    share = own["seconds_waiting"] / own["seconds_windows"]
    lines = [
        f"Data: {own['examples_read']:,} examples were read by the last call; devices "
        f"waited for them for {share:.1%} of the time."
    ]
    if replaced := json.loads(own["examples_replaced"]):
        lines.append(
            f"Data: {len(replaced)} corrupt examples were replaced by others, "
            f"{next(iter(replaced))} first."
        )
    return lines


def _added_up(parts: list["xr.Dataset"]) -> dict[str, Any]:
    """Attributes of all groups together."""
    there = [name for name in _ADDED if any(name in part.attrs for part in parts)]
    found = {name: sum(part.attrs.get(name, 0) for part in parts) for name in there}
    replaced: dict[str, str] = {}
    for part in parts:
        replaced |= json.loads(part.attrs.get("examples_replaced", "{}"))
    return found | ({"examples_replaced": json.dumps(replaced)} if replaced else {})


def merge(parts: list["xr.Dataset"]) -> "xr.Dataset":
    """The results of all groups, along the replica axis."""
    import xarray as xr

    if len(parts) == 1:
        return parts[0]
    if "level" in parts[0].sizes:
        shortest = min(part.sizes["level"] for part in parts)
        parts = [part.isel(level=slice(shortest)) for part in parts]
    merged = xr.concat(parts, "replica", combine_attrs="override", data_vars="minimal")
    return merged.sortby("replica")
