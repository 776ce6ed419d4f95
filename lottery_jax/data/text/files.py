"""Where the files of texts lie: `<data folder>/text/`, as they were published."""

import hashlib
import os
import pathlib
import shlex
from collections.abc import Iterable

from lottery_jax.data import prepared

FOLDERS = {
    "glue": "glue",
    "squad": "squad",
    "wikitext2": "wikitext-2",
    "tiny_shakespeare": "tiny_shakespeare",
}
"""The folder of each set within `<data folder>/text/`."""


def folder(name: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The folder of a set, which need not exist.

    Args:
      name: one of `FOLDERS`.
      data_dir: the data folder; None for $TFDS_DATA_DIR or TFDS's default.
    """
    return prepared.data_dir(data_dir) / "text" / FOLDERS[name]


def needed(
    name: str,
    files: Iterable[str],
    data_dir: str | os.PathLike[str] | None = None,
    hint: str = "",
) -> list[pathlib.Path]:
    """The paths of files of a set, all of which are there.

    Args:
      name: one of `FOLDERS`.
      files: their paths within the folder of the set.
      data_dir: as for `folder`.
      hint: what else to say where one is missing.

    Raises:
      FileNotFoundError: one is missing; says which, and what puts it there.
    """
    own = folder(name, data_dir)
    paths = [own / file for file in files]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        command = f"python -m lottery_jax.data.prepare {name} --from FOLDER"
        if data_dir is not None:
            command += f" --data-dir {shlex.quote(os.fspath(data_dir))}"
        raise FileNotFoundError(
            f"{missing[0].relative_to(own)} is not in {own} (looked up in this order: "
            "data_dir, $TFDS_DATA_DIR, ~/tensorflow_datasets). To put it there, where "
            f"FOLDER has it as published, packed or not:\n\n    {command}\n{hint}"
        )
    return paths


READING = 1
"""How texts are read and tokenised here; another number where the same files become other
arrays, so that none of before come out of the cache."""


def fingerprint(paths: Iterable[pathlib.Path]) -> str:
    """Of files' names, sizes and times, and of how they are read: for a cache's key."""
    digest = hashlib.sha256(f"{READING}\n".encode())
    for path in paths:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]
