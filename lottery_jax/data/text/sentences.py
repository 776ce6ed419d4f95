"""Sentences and pairs of them, with a label: the tasks of GLUE."""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lottery_jax import errors
from lottery_jax.data import prepared
from lottery_jax.data.cache import Arrays, cached
from lottery_jax.data.text import files, glue
from lottery_jax.data.text.splits import cuts, first, held_out, train_and_validation
from lottery_jax.data.text.tokenizer import Tokenizer
from lottery_jax.data.text.tokens import Texts

SENTENCES = (*glue.FORMATS, "qnli-dev")
"""What `sentences` knows."""


def sentences(
    name: str,
    tokenizer: Tokenizer,
    *,
    length: int,
    validation: int | None = None,
    subset: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Texts:
    """A task of GLUE (Wang et al. 2019), tokenised once and cached.

    The labels of GLUE's test sets are not public: its development set is the test split
    here (of MNLI the matched one), and the validation split is carved from the training
    set. "qnli-dev" knows the development set of QNLI alone, a fifth of whose questions
    are the test split.

    Args:
      name: "cola", "sst2", "mrpc", "rte", "stsb", "wnli", "qnli", "qqp", "mnli" or
        "qnli-dev".
      tokenizer: from `tokenizer`.
      length: L, of all sequences; longer ones are cut, which `note` counts.
      validation: examples held out of the training set by a fixed permutation; None for
        a tenth of them, 0 for no validation split.
      subset: size of the training split, its first examples; None for all.
      data_dir: the data folder; None for $TFDS_DATA_DIR or TFDS's default.
      seed: fixes the permutation, in [0, 2**32).

    Returns:
      Texts whose splits have `ids`, `types` and `label`.

    Raises:
      ValueError: an unknown name, an option out of range, or a file that is not as
        published; names file and line.
      FileNotFoundError: a file is missing; says what puts it there.
    """
    errors.one_of("name", name, SENTENCES)
    errors.is_a(
        "tokenizer", tokenizer, Tokenizer, "from lottery_jax.data.text.tokenizer"
    )
    alone = name == "qnli-dev"
    task = "qnli" if alone else name
    form = glue.FORMATS[task]
    splits = ("test",) if alone else ("train", "test")
    length = errors.whole("length", length, 3 if form.second is None else 5)
    source = _source(task, form, splits, data_dir)
    key = f"text-{name}-{length}-{tokenizer.digest[:12]}-{source.key}"

    def made() -> Arrays:
        arrays: Arrays = {}
        for split, read in source.splits.items():
            rows = read()
            ids, types, cut = tokenizer.encode(rows.first, rows.second, length=length)
            arrays |= {f"{split}_ids": ids, f"{split}_types": types}
            arrays |= {f"{split}_cut": cut, f"{split}_label": rows.label}
            group = np.unique(rows.first, return_inverse=True)[1] if alone else None
            arrays[f"{split}_group"] = np.arange(len(ids)) if group is None else group
            arrays[f"{split}_broken"] = np.array(rows.broken, np.int32)
        return arrays

    stored = cached(key, made)
    test, notes = _split(stored, "test"), []
    if alone:
        train, test = _of_one(test, seed)
        notes.append(
            "made of the development set of QNLI alone: not comparable with results on "
            "QNLI"
        )
    else:
        train = _split(stored, "train")
    rows, held = train_and_validation(train["group"], validation, seed, name)
    parts = {
        "train": _take(train, first(rows, subset, name)),
        "validation": _take(train, held),
        "test": test,
    }
    if not len(held):
        del parts["validation"]
    for split in splits:
        if broken := int(stored[f"{split}_broken"]):
            notes.append(
                f"rows of the {split} file that lack columns left out: {broken}"
            )
        there, sizes = len(stored[f"{split}_ids"]), glue.SIZES.get(task)
        published = sizes[split == "test"] if sizes else there
        if there != published:
            notes.append(
                f"the {split} file has {there} examples, published {published}"
            )
    notes += cuts({split: part["cut"] for split, part in parts.items()}, length)
    return Texts(
        arrays={
            split: {field: part[field] for field in ("ids", "types", "label")}
            for split, part in parts.items()
        },
        vocabulary=tokenizer.vocabulary,
        name=name,
        num_classes=None if form.labels is None else len(form.labels),
        metric=form.metric,
        note="; ".join(notes) or None,
    )


class _Source(NamedTuple):
    splits: dict[str, Callable[[], glue.Rows]]
    key: str


def _source(
    name: str,
    form: glue.Format,
    splits: tuple[str, ...],
    data_dir: str | os.PathLike[str] | None,
) -> _Source:
    """The published files, or what tensorflow-datasets has made of them."""
    own = files.folder("glue", data_dir) / form.folder
    paths = {split: own / getattr(form, split) for split in splits}
    tfds = prepared.find(f"glue/{name}", prepared.data_dir(data_dir))
    if tfds is not None and not all(path.is_file() for path in paths.values()):
        read = functools.partial(glue.read_prepared, tfds, form)
        key = prepared.cache_key(tfds)
        return _Source({split: functools.partial(read, split) for split in splits}, key)
    hint = ""
    if name == "qnli" and (own / form.test).is_file():
        hint = "The file of 'qnli-dev' is there."
    needed = [f"{form.folder}/{path.name}" for path in paths.values()]
    found = files.needed("glue", needed, data_dir, hint)
    return _Source(
        {
            split: functools.partial(glue.read, path, form)
            for split, path in paths.items()
        },
        files.fingerprint(found),
    )


def _split(stored: Arrays, split: str) -> Arrays:
    fields = ("ids", "types", "label", "cut", "group")
    return {field: stored[f"{split}_{field}"] for field in fields}


def _take(part: Arrays, rows: np.ndarray) -> Arrays:
    return {field: array[rows] for field, array in part.items()}


def _of_one(part: Arrays, seed: int) -> tuple[Arrays, Arrays]:
    """One file as a training and a test set, a question in one of them alone."""
    rest, rows = held_out(part["group"], len(part["group"]) // 5, seed, "test")
    return _take(part, np.sort(rest)), _take(part, np.sort(rows))
