"""An array cache: what took seconds to decode or to generate is read in a moment."""

import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from lottery_jax import disk, errors

Arrays = dict[str, np.ndarray]


def cache_dir() -> pathlib.Path:
    """The folder of the cache: $LOTTERY_JAX_CACHE, or ~/.cache/lottery_jax.

    Returns:
      The folder, which need not exist. All of it may be deleted at any time.
    """
    folder = os.environ.get("LOTTERY_JAX_CACHE") or "~/.cache/lottery_jax"
    return errors.on_disk("LOTTERY_JAX_CACHE", folder).expanduser()


def cached(key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays stored under `key`, made and stored first where there are none.

    Files are complete or absent (written under another name, then renamed), and their
    checksums are verified on reading: a damaged file is made again, with a warning.
    A folder that cannot be written costs the cache, with a warning, not the data.

    Args:
      key: a file name without suffix that determines the arrays.
      make: makes them; called at most once.

    Returns:
      Arrays by name.
    """
    path = cache_dir() / f"{key}.npz"
    if path.exists():
        try:
            return _read(path)
        except Exception as error:  # a damaged zip raises any of a dozen types
            warnings.warn(
                f"made again, because {path} cannot be read: {error!r}", stacklevel=2
            )
    arrays = make()
    try:
        _write(path, arrays)
    except OSError as error:
        warnings.warn(f"not cached: cannot write {path}: {error}", stacklevel=2)
    return arrays


def _read(path: pathlib.Path) -> Arrays:
    # Reading a member to its end verifies its CRC-32.
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _write(path: pathlib.Path, arrays: Arrays) -> None:
    with disk.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **cast(dict[str, Any], arrays))
