"""The files of GLUE, as published: what stands in which column.

Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform, 2019.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from lottery_jax.data import prepared


class Rows(NamedTuple):
    """The examples of a file.

    Attributes:
      first: sentences.
      second: what they are paired with; None in a task of single sentences.
      label: int32 classes or float32 numbers, `[N]`.
      broken: rows of the file that are left out, for they lack columns.
    """

    first: list[str]
    second: list[str] | None
    label: np.ndarray
    broken: int = 0


class Format(NamedTuple):
    """How the files of a task are laid out.

    Attributes:
      folder: of the task.
      first: the column of the first sentence, as the first line calls it.
      second: of the second; None in a task of single sentences.
      label: of the label.
      labels: how classes are called, in the order of their numbers; None for a number
        in [0, 5].
      metric: what networks are compared by (Chen et al. 2020, section 3).
      train: the file of the training split.
      test: the file of the published development split.
      header: the columns where no line says so; None where the first line does.
      broken: whether the published files have rows that lack columns.
    """

    folder: str
    first: str
    second: str | None
    label: str
    labels: tuple[str, ...] | None = ("0", "1")
    metric: str = "error"
    train: str = "train.tsv"
    test: str = "dev.tsv"
    header: tuple[str, ...] | None = None
    broken: bool = False


_ENTAILED = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")

FORMATS = {
    "cola": Format(
        "CoLA",
        "sentence",
        None,
        "label",
        metric="matthews",
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": Format("SST-2", "sentence", None, "label"),
    "mrpc": Format("MRPC", "#1 String", "#2 String", "Quality"),
    "rte": Format("RTE", *_PAIR, "label", _ENTAILED),
    "stsb": Format("STS-B", *_PAIR, "score", None, "pearson"),
    "wnli": Format("WNLI", *_PAIR, "label"),
    "qnli": Format("QNLI", "question", "sentence", "label", _ENTAILED),
    "qqp": Format("QQP", "question1", "question2", "is_duplicate", broken=True),
    "mnli": Format(
        "MNLI",
        *_PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        test="dev_matched.tsv",
    ),
}
"""The tasks by the name that they have in `sentences`."""

SIZES = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "rte": (2490, 277),
    "stsb": (5749, 1500),
    "wnli": (635, 71),
    "qnli": (104743, 5463),
    "mnli": (392702, 9815),
}
"""Examples of the published training and development sets, where sources agree."""


def read(path: pathlib.Path, form: Format) -> Rows:
    """The examples of a file of tab-separated values, in which a quote is a character.

    Args:
      path: of the file.
      form: how it is laid out.

    Returns:
      Sentences and labels, in the order of the file.

    Raises:
      ValueError: an unknown label or a wrong number of columns; names file and line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    header = form.header or tuple(lines[0].split("\t"))
    start = 0 if form.header else 1
    wanted = [n for n in (form.first, form.second, form.label) if n is not None]
    if missing := [name for name in wanted if name not in header]:
        raise ValueError(
            f"{path}, line 1: the columns are {', '.join(header)}; there must be one "
            f"called {missing[0]}"
        )
    at = [header.index(name) for name in wanted]
    first, second, label, broken = [], [], [], 0
    for number, line in enumerate(lines[start:], start + 1):
        columns = line.split("\t")
        if len(columns) != len(header):
            if form.broken and len(columns) < len(header):
                broken += 1
                continue
            raise ValueError(
                f"{path}, line {number} has {len(columns)} columns; it must have "
                f"{len(header)}: {', '.join(header)}"
            )
        texts = [columns[i] for i in at]
        first.append(texts[0])
        if form.second is not None:
            second.append(texts[1])
        label.append(_label(texts[-1], form.labels, f"{path}, line {number}"))
    if not first:
        raise ValueError(f"{path} has no example")
    kind = np.float32 if form.labels is None else np.int32
    pairs = second if form.second is not None else None
    return Rows(first, pairs, np.asarray(label, kind), broken)


def read_prepared(version_dir: pathlib.Path, form: Format, split: str) -> Rows:
    """The examples of a split that tensorflow-datasets has prepared, as in the file.

    Args:
      version_dir: of `glue/NAME`, as `prepared.find` returns it.
      form: how the files of the task are laid out.
      split: "train" or "test", which is TFDS's "validation" (of MNLI the matched one).

    Returns:
      Sentences and labels, in the order of the published file.

    Raises:
      ImportError: the extra `data` is not installed.
    """
    if split == "test":
        split = "validation_matched" if form.test == "dev_matched.tsv" else "validation"
    found = sorted(
        prepared.records(version_dir, split), key=lambda one: int(one["idx"])
    )
    # TFDS calls sentences as GLUE does, but for MRPC.
    first, second = _PAIR if form.first.startswith("#") else (form.first, form.second)
    kind = np.float32 if form.labels is None else np.int32
    return Rows(
        [one[first].decode() for one in found],
        None if second is None else [one[second].decode() for one in found],
        np.asarray([one["label"] for one in found], kind),
    )


def _label(text: str, labels: tuple[str, ...] | None, where: str) -> float:
    if labels is not None:
        if text not in labels:
            must = f"one of {', '.join(labels)}"
            raise ValueError(f"{where}: label={text!r}; it must be {must}")
        return labels.index(text)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 5:
        raise ValueError(f"{where}: label={text!r}; it must be a number in [0, 5]")
    return value
