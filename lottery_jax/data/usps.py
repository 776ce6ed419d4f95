"""USPS: 16x16 scans of handwritten digits, 7,291 and 2,007 of them.

Not a set of tensorflow-datasets. Its files are text: a line is a digit and 256 values in
[-1, 1], of which 256 levels of grey are made.

Le Cun et al., Handwritten Digit Recognition with a Back-Propagation Network, 1990; as
given out with Hastie, Tibshirani and Friedman, The Elements of Statistical Learning.
"""

import gzip
import pathlib
import zlib

import numpy as np

from lottery_jax import disk
from lottery_jax.data import _fetch
from lottery_jax.data.cache import Arrays, cached

URL = "https://hastie.su.domains/ElemStatLearn/datasets/"
"""Where the files are."""

FILES = {"train": ("zip.train.gz", 7291), "test": ("zip.test.gz", 2007)}
"""The file of each split, and its number of examples."""

_SIDE = 16


def find(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of the files within a data folder; None if one of them is missing."""
    own = folder / "usps"
    return own if all((own / name).is_file() for name, _ in FILES.values()) else None


def read(own: pathlib.Path) -> Arrays:
    """Images and labels of both splits, parsed once and cached.

    Args:
      own: from `find`.

    Returns:
      `train_image` uint8 `[7291, 16, 16, 1]`, `train_label` int32 in [0, 10), and
      `test_image`, `test_label` likewise with 2,007.

    Raises:
      ValueError: a file that is not the published one; names it.
    """
    status = [(own / name).stat() for name, _ in FILES.values()]
    key = "-".join(f"{s.st_size}-{s.st_mtime_ns}" for s in status)
    return cached(f"usps-{key}", lambda: _parsed(own))


def _parsed(own: pathlib.Path) -> Arrays:
    arrays = {}
    for split, (name, number) in FILES.items():
        try:
            with gzip.open(own / name, "rt") as lines:
                values = np.loadtxt(lines, ndmin=2)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ValueError(f"{own / name} is damaged: {error}") from error
        if values.shape != (number, 1 + _SIDE**2):
            raise ValueError(
                f"{own / name} holds {values.shape} numbers; it must be {number} lines of "
                f"{1 + _SIDE**2}: a digit and {_SIDE}x{_SIDE} values"
            )
        grey = np.rint((values[:, 1:] + 1) * 127.5).clip(0, 255).astype(np.uint8)
        arrays[f"{split}_image"] = grey.reshape(-1, _SIDE, _SIDE, 1)
        arrays[f"{split}_label"] = values[:, 0].astype(np.int32)
    return arrays


def download(folder: pathlib.Path) -> None:
    """Downloads the files into a data folder; what is there already is left alone.

    Raises:
      OSError: no network, or the folder cannot be written.
    """
    own = folder / "usps"
    for name, _ in FILES.values():
        if not (own / name).is_file():
            found = _fetch.content(URL + name, f"put the file into {own}")
            disk.write(own / name, found)
