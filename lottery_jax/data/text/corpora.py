"""Whole texts: WikiText-2 and tiny Shakespeare, and what is done to them.

Merity et al., Pointer Sentinel Mixture Models, 2017; Karpathy, char-rnn, 2015.
"""

import os
import pathlib
from typing import NamedTuple

from lottery_jax.data import prepared
from lottery_jax.data.text import files


class Corpus(NamedTuple):
    """The text of a corpus.

    Attributes:
      texts: by split: "train", "validation", "test".
      paths: of the files.
      unknown: the word that stands for what the corpus leaves out; None for none.
    """

    texts: dict[str, str]
    paths: list[pathlib.Path]
    unknown: str | None


CORPORA = ("wikitext2", "tiny_shakespeare")
"""The corpora by name."""

WIKITEXT = {
    "train": "wiki.train.tokens",
    "validation": "wiki.valid.tokens",
    "test": "wiki.test.tokens",
}
"""The file of each split of WikiText-2."""


def read(name: str, data_dir: str | os.PathLike[str] | None = None) -> Corpus:
    """The text of a corpus, as published.

    WikiText-2 has its own splits; of tiny Shakespeare the first 90% are the training
    split, and the rest halves (as tensorflow-datasets splits it).

    Args:
      name: one of `CORPORA`.
      data_dir: the data folder; None for $TFDS_DATA_DIR or TFDS's default.

    Raises:
      FileNotFoundError: a file is missing; says what puts it there.
      ValueError: a file is no text, or too short.
    """
    if name == "wikitext2":
        paths = files.needed(name, WIKITEXT.values(), data_dir)
        texts = {split: _text(path) for split, path in zip(WIKITEXT, paths)}
        return Corpus(texts, paths, "<unk>")
    tfds = prepared.find(name, prepared.data_dir(data_dir))
    if tfds is not None and not (files.folder(name, data_dir) / "input.txt").is_file():
        return Corpus(_prepared(tfds), [*sorted(tfds.glob("*.array_record*"))], None)
    paths = files.needed(name, ["input.txt"], data_dir)
    whole = _text(paths[0])
    first = int(len(whole) * 0.9)
    second = first + int((len(whole) - first) * 0.5)
    texts = {
        "train": whole[:first],
        "validation": whole[first:second],
        "test": whole[second:],
    }
    return Corpus(texts, paths, None)


def _prepared(version_dir: pathlib.Path) -> dict[str, str]:
    """What tensorflow-datasets has prepared: each split is one example."""
    return {
        split: "".join(
            one["text"].decode() for one in prepared.records(version_dir, split)
        )
        for split in ("train", "validation", "test")
    }


def _text(path: pathlib.Path) -> str:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def plain(text: str) -> str:
    """WikiText as it was before it was cut into words: "role @-@ playing" has a hyphen.

    Args:
      text: of WikiText, in which "@-@", "@,@" and "@.@" stand for characters within a
        word or a number.
    """
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    return text
