"""What a run leaves behind: its identity, its results, and a stream while it runs.

Results are an `xarray.Dataset` with named axes in a NetCDF file, which anyone can open
without this package; configuration, versions, git commit and device are its attributes.
A run folder belongs to one configuration: the hash of all fields that determine a level's
numbers. The numbers of levels and replicas, the folder and the devices are not among
them, so a study can be extended.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lottery_jax import disk, errors

if TYPE_CHECKING:
    import xarray as xr

Config = Mapping[str, Any]

_DIGEST = "digest"


def as_config(config: Any) -> dict[str, Any]:
    """A frozen dataclass as JSON-able fields, defaults included."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def identity(config: Config, ignore: Iterable[str]) -> str:
    """Eight hexadecimal digits that say which configuration a run belongs to.

    Args:
      config: all fields with their values, defaults included, JSON-able.
      ignore: fields that do not change any number of a level.
    """
    ignored = set(ignore)
    kept = {name: value for name, value in config.items() if name not in ignored}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that determine numbers."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    # What was installed in place keeps the number that it was installed under.
    own = sys.modules["lottery_jax"].__version__
    found = {"python": platform.python_version(), "lottery-jax": own}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


_SPELLED_OUT = 6
"""Fields that differ whose values are said."""


def claim_folder(folder: pathlib.Path, config: Config, ignore: Iterable[str]) -> None:
    """Makes a run folder, or checks that it belongs to this configuration.

    Raises:
      ValueError: the folder holds another configuration (names the fields that differ),
        or is not a run folder and not empty.
      OSError: it cannot be written; names the folder.
    """
    folder, ignored = errors.on_disk("out", folder), set(ignore)
    stored = read_config(folder) if folder.exists() else None
    if stored is None:
        # A kill may have left a temporary file of ours behind.
        if folder.exists() and any(p.name[0] != "." for p in folder.iterdir()):
            raise ValueError(
                f"out={str(folder)!r} is not empty and holds no run; choose a new folder"
            )
    else:
        fields = (stored.keys() | config.keys()) - ignored
        differing = {
            name: (stored.get(name), config.get(name))
            for name in sorted(fields)
            if stored.get(name) != config.get(name)
        }
        if differing:
            lines = "".join(
                f"\n  {name}: {differing[name][0]!r} there, {differing[name][1]!r} now"
                for name in [*differing][:_SPELLED_OUT]
            )
            # A run of another experiment differs in nearly all of them.
            if more := [*differing][_SPELLED_OUT:]:
                lines += f"\n  and {', '.join(more)}"
            raise ValueError(
                f"out={str(folder)!r} holds a run with another configuration; choose "
                f"another folder, or the stored values:{lines}"
            )
    if stored != config:
        signed = {**config, _DIGEST: identity(config, ())}
        write_text(folder / "config.json", json.dumps(signed, indent=1) + "\n")


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
    """The configuration of a run folder, or None if it is none.

    Raises:
      ValueError: the file is damaged; names it.
    """
    path = errors.on_disk("folder", folder) / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        # Without a digest, say restored by hand, it is taken as it is.
        digest = config.pop(_DIGEST, None)
        if digest is not None and digest != identity(config, ()):
            raise ValueError("it is not what was written")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error}. Its fields are also in the attribute 'config' "
            "of results.nc; to start anew, choose another folder"
        ) from None
    return config


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file complete or not at all.

    Raises:
      OSError: the disk is full or the folder cannot be written; names the file.
    """
    disk.write(errors.on_disk("path", path), text.encode())


# --- results --------------------------------------------------------------------------


def dataset(
    records: Mapping[str, tuple[tuple[str, ...], np.ndarray]],
    coordinates: Mapping[str, Any],
    attributes: Mapping[str, Any],
) -> "xr.Dataset":
    """Records with named axes as an `xarray.Dataset`.

    Args:
      records: arrays with the names of their axes; an array of one axis that bears the
        same name is a coordinate.
      coordinates: labels of further axes.
      attributes: JSON-able; anything that is not text or a number is stored as JSON.

    Raises:
      ImportError: xarray is missing; names the extra.
    """
    try:
        import xarray as xr
    except ImportError:
        raise ImportError(
            "results need xarray: pip install 'lottery-jax[results]'"
        ) from None
    own = {name: x for name, (axes, x) in records.items() if axes == (name,)}
    variables = {name: value for name, value in records.items() if name not in own}
    return xr.Dataset(
        dict(variables),
        coords={**coordinates, **own},
        attrs={
            name: value
            if isinstance(value, str | int | float) and not isinstance(value, bool)
            else json.dumps(value)
            for name, value in attributes.items()
        },
    )


def environment() -> dict[str, Any]:
    """Versions, git commit and device: where results come from."""
    import jax

    device, processes = jax.local_devices()[0], jax.process_count()
    return {
        "versions": versions(),
        "git_commit": git_commit(),
        "device": f"{jax.local_device_count()} x {device.device_kind} ({device.platform})"
        + (f" in each of {processes} processes" if processes > 1 else ""),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
    }


@functools.cache
def git_commit() -> str:
    """The commit of this code, as it was when first asked; "unknown" outside of git."""
    here = pathlib.Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            command, cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def save(path: pathlib.Path, results: "xr.Dataset") -> None:
    """Writes results as NetCDF, with a checksum beside them.

    Raises:
      OSError: the disk is full or the folder cannot be written; names the file.
    """
    path = errors.on_disk("path", path)
    # By way of memory: HDF5 crashes the process when it meets a full disk.
    disk.write(path, bytes(results.to_netcdf(engine="h5netcdf")))
    write_text(_checksum(path), disk.sha256(path) + "\n")


def load(path: pathlib.Path) -> "xr.Dataset":
    """Reads results into memory, after checking them.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not what was written; names it.
    """
    import xarray as xr

    path = errors.on_disk("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no results at {path}")
    if not intact(path):
        raise ValueError(f"{path} is damaged or incomplete; delete it and run again")
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        return stored.load()


def intact(path: pathlib.Path) -> bool:
    """Whether results are there and are what was written."""
    path = errors.on_disk("path", path)
    sums = _checksum(path)
    if not (path.is_file() and sums.is_file()):
        return False
    return sums.read_text(errors="replace").strip() == disk.sha256(path)


def _checksum(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".sha256")


# --- the stream -----------------------------------------------------------------------


def resume_stream(path: pathlib.Path, level: int, step: int) -> None:
    """Drops the lines after a moment, which will be written again.

    Args:
      path: a file of JSON lines, each with `level` and `step`; may be missing.
      level: lines of higher levels go, ...
      step: ... and those of this level beyond this step.
    """
    path = errors.on_disk("path", path)
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            before = (entry["level"], entry["step"]) <= (level, step)
        except (ValueError, KeyError, TypeError):  # cut off by a kill
            continue
        if before:
            kept.append(line)
    write_text(path, "".join(line + "\n" for line in kept))


def append_stream(path: pathlib.Path, entry: Mapping[str, Any]) -> None:
    """Adds one JSON line; nan becomes null."""
    path = errors.on_disk("path", path)
    try:
        with open(path, "a") as file:
            file.write(json.dumps(finite(entry)) + "\n")
    except OSError as error:
        raise disk.cannot_write(path, error) from error


def finite(value: Any) -> Any:
    """The same for JSON, which has neither arrays nor nan nor infinity: they are null."""
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    if isinstance(value, Mapping):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
