"""A fixture that prepares real data sets, for `conftest.py` to import.

The raw files are looked for in $LOTTERY_JAX_RAW_DATA (default: ../shared/data, relative
to the repository), a folder with a `prepare.py DATA_DIR NAME` that runs
tensorflow-datasets' builders on them. What it prepares is kept in the cache folder.
"""

import fcntl
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from lottery_jax.data import prepared, usps
from lottery_jax.data.cache import cache_dir
from lottery_jax.data.text import files, published

_NEEDED = ("tensorflow_datasets", "array_record", "PIL", "importlib_resources")


def raw_folder() -> pathlib.Path:
    repository = pathlib.Path(__file__).resolve().parent.parent
    chosen = os.environ.get("LOTTERY_JAX_RAW_DATA") or "../shared/data"
    return (repository / pathlib.Path(chosen).expanduser()).resolve()


def _find(name: str, folder: pathlib.Path) -> pathlib.Path | None:
    return usps.find(folder) if name == "usps" else prepared.find(name, folder)


def _prepare(name: str, raw: pathlib.Path, folder: pathlib.Path) -> None:
    """Runs prepare.py once, however many processes of pytest-xdist ask for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system if we are killed
        if _find(name, folder):
            return
        if name == "usps":  # its files are read as they are
            for file, _ in usps.FILES.values():
                (folder / name).mkdir(exist_ok=True)
                shutil.copyfile(raw / "raw" / name / file, folder / name / file)
            return
        command = [sys.executable, str(raw / "prepare.py"), str(folder), name]
        done = subprocess.run(command, capture_output=True, text=True)
        version_dir = prepared.find(name, folder)
        if done.returncode or version_dir is None:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        inexact = raw / "raw" / name / "from_jpeg_indices.txt"
        if inexact.exists():
            count = len(inexact.read_text().split())
            (version_dir / "NOTE.txt").write_text(
                f"{count} of the images come from a JPEG copy and are not exact.\n"
            )


@pytest.fixture(scope="session")
def prepared_data() -> Callable[[str], pathlib.Path]:
    """`prepared_data(name)` is a data folder in which TFDS's set `name` is prepared.

    The user's own TFDS folder where the set is there already, else one in the cache.
    Skips, with the reason, where there is neither prepared nor raw data.
    """
    # Fixed now: a test may point these variables elsewhere before it asks.
    users, ours = prepared.data_dir(), cache_dir() / "tfds"

    def folder_with(name: str) -> pathlib.Path:
        missing = [m for m in _NEEDED if importlib.util.find_spec(m) is None]
        if missing:
            pytest.skip(
                f"reading {name} needs {', '.join(missing)}: "
                "pip install 'lottery-jax[data]'"
            )
        for folder in (users, ours):
            if _find(name, folder):
                return folder
        raw = raw_folder()
        if not (raw / "prepare.py").is_file() or not (raw / "raw" / name).is_dir():
            pytest.skip(
                f"no {name} in {users}, and no raw files of it in {raw} "
                "($LOTTERY_JAX_RAW_DATA)"
            )
        _prepare(name, raw, ours)
        return ours

    return folder_with


@pytest.fixture(scope="session")
def prepared_texts() -> Callable[[str], pathlib.Path]:
    """`prepared_texts(name)` is a data folder that has the files of a set of texts.

    The user's own where one of them is there already, else one in the cache. Skips, with
    the reason, where there are neither those nor raw files.
    """
    users, ours = prepared.data_dir(), cache_dir() / "tfds"

    def folder_with(name: str) -> pathlib.Path:
        for folder in (users, ours):
            own = files.folder(name, folder)
            if any((own / file).is_file() for file in published.wanted(name)):
                return folder
        raw = raw_folder() / "raw"
        if not (raw / files.FOLDERS[name]).is_dir():
            pytest.skip(
                f"no {name} in {users}, and no raw files of it in {raw} "
                "($LOTTERY_JAX_RAW_DATA)"
            )
        ours.mkdir(parents=True, exist_ok=True)
        with open(ours / f".{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            published.place(name, raw, ours)
        return ours

    return folder_with


@pytest.fixture(scope="session")
def real_model() -> pathlib.Path:
    """The folder of a small pre-trained encoder; skips where there is none."""
    folder = raw_folder() / "models" / "bert-tiny-mlm"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"no pre-trained model in {folder} ($LOTTERY_JAX_RAW_DATA)")
    return folder
