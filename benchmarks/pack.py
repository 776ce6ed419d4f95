"""Carries the project to a machine without a network, in parts.

    python -m benchmarks.pack FOLDER                   # code and wheels: FOLDER/code-00 ...
    python -m benchmarks.pack FOLDER --data cifar10    # a prepared data set as well

There, with the parts and `unpack.py` in one folder or arriving one after another:

    python3 FOLDER/unpack.py TARGET    # says which parts it waits for
    . TARGET/environment.sh            # the code and its packages, from now on

The machine needs JAX, Flax, optax, NumPy, SciPy and what else is common; what is not
travels as wheels. What is packed is committed, not what lies in the tree.
"""

import argparse
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import unpack
from benchmarks.run import ROOT
from lottery_jax import errors
from lottery_jax.data import prepared

WHEELS = ("tyro", "h5netcdf", "docstring_parser", "typeguard")
"""What a machine with JAX and PyTorch does not have; versions are those of the lock."""

_PLATFORMS = tuple(f"manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_28"))


def locked(names: Sequence[str]) -> list[str]:
    """The packages with their versions in the lock."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    found = {re.sub("-", "_", line.partition("==")[0]).lower(): line for line in lines}
    return [found.get(name, name).strip() for name in names]


def wheels(folder: pathlib.Path, python: str) -> None:
    """Fetches the wheels for another Python, on Linux."""
    platforms = [x for platform in _PLATFORMS for x in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, *platforms]
    subprocess.run([*command, "--dest", str(folder), *locked(WHEELS)], check=True)


def code(folder: pathlib.Path) -> None:
    """The committed tree."""
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tree:
        tree.extractall(folder, filter="data")


def data(name: str, folder: pathlib.Path) -> None:
    """A prepared data set, decoded: reading it there needs no further package.

    Its description lies where the data would, and its arrays in the cache, under the name
    that they have for a description without files.

    Raises:
      ValueError: the set is not prepared here.
    """
    found = prepared.find(name, prepared.data_dir())
    if found is None:
        raise errors.wrong(
            "data", repr(name), "a data set that is prepared in $TFDS_DATA_DIR"
        )
    there = folder / unpack.DATA / name / found.name
    there.mkdir(parents=True)
    for path in found.iterdir():
        if prepared.FORMAT not in path.name:
            shutil.copy(path, there)
    arrays = prepared.read(found)
    cache = folder / unpack.CACHE
    cache.mkdir()
    np.savez_compressed(cache / f"{prepared.cache_key(there)}.npz", **arrays)


def split(
    folder: pathlib.Path, name: str, out: pathlib.Path, size: int
) -> dict[str, str]:
    """Writes a folder as one archive in parts of at most so many bytes.

    Returns:
      The SHA-256 of each part, by its name.
    """
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w:gz") as archive:
            archive.add(folder, arcname=".")
        whole.seek(0)
        sums = {}
        for i, part in enumerate(iter(lambda: whole.read(size), b"")):
            path = out / f"{name}-{i:02d}"
            path.write_bytes(part)
            sums[path.name] = hashlib.sha256(part).hexdigest()
    return sums


def pack(
    out: pathlib.Path, data_sets: Sequence[str] = (), megabytes: int = 60, **how: Any
) -> Mapping[str, Mapping[str, str]]:
    """Writes everything into a folder.

    Args:
      out: the folder; what is in it stays, but for files of the same names.
      data_sets: names of tensorflow-datasets.
      megabytes: of a part at most, 2^20 bytes each.
      how: `python`, the version there, or None to leave the wheels out.

    Returns:
      The sums of the parts by archive and part, as they lie in the manifest.
    """
    out.mkdir(parents=True, exist_ok=True)
    python = how.get("python", "3.12")

    def made() -> Iterator[tuple[str, Any]]:
        def of_code(folder: pathlib.Path) -> None:
            code(folder / unpack.CODE)
            if python is not None:
                wheels(folder / unpack.WHEELS, python)

        yield "code", of_code
        for name in data_sets:
            yield name, lambda folder, name=name: data(name, folder)

    manifest = {}
    for name, fill in made():
        with tempfile.TemporaryDirectory() as folder:
            fill(pathlib.Path(folder))
            manifest[name] = split(pathlib.Path(folder), name, out, megabytes * 2**20)
    (out / unpack.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.copy(str(unpack.__file__), out / "unpack.py")
    return manifest


def main(arguments: list[str] | None = None) -> None:
    """Packs what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pack", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--data", nargs="*", default=(), metavar="NAME")
    parser.add_argument("--megabytes", type=int, default=60, help="of a part at most")
    parser.add_argument("--python", default="3.12", help="the version there")
    chosen = parser.parse_args(arguments)
    pack(chosen.folder, chosen.data, chosen.megabytes, python=chosen.python)
    for path in sorted(chosen.folder.iterdir()):
        print(f"{os.path.getsize(path) / 2**20:7.1f} MiB  {path}")


if __name__ == "__main__":
    main()
