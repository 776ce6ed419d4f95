"""Reads what tensorflow-datasets has prepared, without TensorFlow and without network.

TFDS asked for a set that is not there tries the network for minutes and then speaks of
something else. So the folder is looked at first, and reading never downloads.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from lottery_jax import errors
from lottery_jax.data.cache import Arrays, cached

INFO = "dataset_info.json"
FORMAT = "array_record"
_CHUNK = 1000


def data_dir(folder: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where prepared data lies: the argument, $TFDS_DATA_DIR, or TFDS's default.

    Args:
      folder: None for the environment's choice.

    Returns:
      The folder, which need not exist.
    """
    chosen = folder or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return errors.on_disk("data_dir", chosen).expanduser()


def versions(tfds_name: str, folder: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    """The prepared versions of a set, newest first, with their file formats.

    Args:
      tfds_name: TFDS's name of the set.
      folder: a data folder, as `data_dir` gives it.

    Returns:
      Pairs of a version's folder and its file format ("array_record", "tfrecord" ...).
    """
    found = []
    for path in (folder / tfds_name).glob(f"*.*.*/{INFO}"):
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name):
            # TFDS leaves the field out for its own default.
            file_format = json.loads(path.read_text()).get("fileFormat", "tfrecord")
            found.append((path.parent, file_format))
    return sorted(
        found, reverse=True, key=lambda pair: [int(n) for n in pair[0].name.split(".")]
    )


def find(tfds_name: str, folder: pathlib.Path) -> pathlib.Path | None:
    """The newest prepared version that can be read without TensorFlow.

    Args:
      tfds_name: TFDS's name of the set.
      folder: a data folder, as `data_dir` gives it.

    Returns:
      The version's folder; None where there is no such version.
    """
    readable = (p for p, form in versions(tfds_name, folder) if form == FORMAT)
    return next(readable, None)


def read(version_dir: pathlib.Path) -> Arrays:
    """Images and labels of both splits, decoded once and cached.

    The cache is keyed by the content of the set's description and by names, sizes and
    times of its files, so that data that is prepared again is decoded again.

    Args:
      version_dir: `<data folder>/<name>/<version>`, as `find` returns it.

    Returns:
      `train_image` uint8 `[N, H, W, C]`, `train_label` int32 `[N]`, and `test_image`,
      `test_label` likewise.

    Raises:
      ImportError: not cached, and the extra `data` is not installed.
    """
    return cached(cache_key(version_dir), lambda: _decode(version_dir))


def cache_key(version_dir: pathlib.Path) -> str:
    """Under which key the cache holds the arrays of a version.

    Args:
      version_dir: as for `read`; without data files it is the key of the description
        alone, under which arrays may be carried to where the files are not.
    """
    return f"{version_dir.parent.name}-{version_dir.name}-{_fingerprint(version_dir)}"


def note(version_dir: pathlib.Path) -> str | None:
    """What the file NOTE.txt in a version's folder says, or None.

    A copy of a data set that differs from the published one says so there, and every
    `Dataset` loaded from it carries the remark.

    Args:
      version_dir: as `find` returns it.

    Returns:
      The text, without surrounding white space.
    """
    path = version_dir / "NOTE.txt"
    return (path.read_text().strip() or None) if path.is_file() else None


def _fingerprint(version_dir: pathlib.Path) -> str:
    digest = hashlib.sha256((version_dir / INFO).read_bytes())
    for path in sorted(version_dir.glob(f"*{FORMAT}*")):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _decode(version_dir: pathlib.Path) -> Arrays:
    arrays = {}
    for split in ("train", "test"):
        images, labels = [], []
        for record in records(version_dir, split):
            images.append(record["image"])
            labels.append(record["label"])
        arrays[f"{split}_image"] = np.stack(images)
        arrays[f"{split}_label"] = np.asarray(labels, np.int32)
    return arrays


def records(version_dir: pathlib.Path, split: str) -> Iterator[dict[str, Any]]:
    """The decoded examples of a split, in the order in which they are stored.

    Args:
      version_dir: as `find` returns it.
      split: TFDS's name of it.

    Raises:
      ImportError: the extra `data` is not installed.
    """
    source = _source(version_dir, split)
    for start in range(0, len(source), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(source)))
        yield from source.__getitems__(list(rows))


def _source(version_dir: pathlib.Path, split: str) -> Any:
    """Random access to the decoded records of a split."""
    # "glue/cola" is a configuration of a set, and a folder within that of the set.
    config = json.loads((version_dir / INFO).read_bytes()).get("configName")
    parts = version_dir.parts[-3 if config else -2 : -1]
    tfds = _import_tfds("/".join(parts))
    name = f"{'/'.join(parts)}:{version_dir.name}"
    folder = os.fspath(version_dir.parents[len(parts)])
    return tfds.data_source(name, split=split, data_dir=folder, download=False)


def _import_tfds(name: str) -> Any:
    try:
        # The last three are needed for reading, and found missing only halfway through.
        import array_record  # noqa: F401
        import importlib_resources  # noqa: F401
        import PIL  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"reading {name!r} needs the package {error.name}: "
            "pip install 'lottery-jax[data]'"
        ) from error
    return tfds
