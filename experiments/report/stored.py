"""The results of run folders, and what they say of themselves."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiments import provenance
from experiments.provenance import Provenance
from lottery_jax import errors, records

if TYPE_CHECKING:
    import xarray as xr


class Run(NamedTuple):
    """The results of a run.

    Attributes:
      name: of its folder; with those above it where another run has the same.
      folder: where it lies.
      results: all of them.
      said: what they say of themselves.
    """

    name: str
    folder: pathlib.Path
    results: "xr.Dataset"
    said: Provenance


def read(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs in some folders.

    Raises:
      ValueError: an address, a folder that is named twice, or results that are damaged;
        names it.
      FileNotFoundError: there is no such folder, or there are no results in it.
    """
    paths = [errors.on_disk("FOLDER", folder) for folder in folders]
    found: list[Run] = []
    for path, name in zip(paths, _names(paths)):
        results = load(path)
        try:
            said = checked(provenance.read(results))
        except ValueError as error:
            raise ValueError(f"{path / 'results.nc'}: {error}") from None
        found.append(Run(name, path, results, said))
    return found


def checked(said: Provenance) -> Provenance:
    """The same, once it is sure that every attribute is of its kind.

    Raises:
      ValueError: one is not; names it.
    """
    kinds = {"config": Mapping, "versions": Mapping, "verdicts": list, "claims": list}
    wrong = [n for n, kind in kinds.items() if not isinstance(getattr(said, n), kind)]
    verdicts = said.verdicts if "verdicts" not in wrong else []
    if any(
        not (isinstance(one, Mapping) and isinstance(one.get("verdict", {}), Mapping))
        for one in verdicts
    ):
        wrong.append("verdicts")
    if wrong:
        raise ValueError(
            f"the attribute {wrong[0]!r} is damaged: not what it should be"
        )
    return said


def load(folder: pathlib.Path) -> "xr.Dataset":
    """The results in a folder; those without a checksum beside them are taken as they are.

    Raises:
      FileNotFoundError: there is no such folder, or there are no results in it.
      ValueError: the file is damaged; names it.
    """
    path = folder / "results.nc"
    if not path.is_file():
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        raise FileNotFoundError(f"{folder} holds no results: there is no {path}")
    if path.with_name("results.nc.sha256").is_file():
        return records.load(path)
    import xarray as xr

    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            return stored.load()
    except ImportError:
        raise
    except Exception as error:  # whatever HDF5 makes of bytes that are none of its own
        raise ValueError(f"{path} is damaged: {error}") from None


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The shortest ends of some paths that tell them apart."""
    whole = [path.resolve().parts for path in paths]
    for i, parts in enumerate(whole):
        if parts in whole[:i]:
            raise ValueError(f"FOLDER={paths[i]} is named twice")
    names = []
    for parts in whole:
        length = 1
        while sum(other[-length:] == parts[-length:] for other in whole) > 1:
            length += 1
        names.append("/".join(parts[-length:]))
    return names
