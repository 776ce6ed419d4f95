"""A corpus in windows of equal length, for masked tokens."""

import os

import numpy as np

from lottery_jax import errors
from lottery_jax.data.cache import Arrays, cached
from lottery_jax.data.text import corpora, files
from lottery_jax.data.text.tokenizer import Tokenizer
from lottery_jax.data.text.tokens import Texts


def windows(
    name: str,
    tokenizer: Tokenizer,
    *,
    length: int,
    validation: int | None = None,
    subset: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Texts:
    """A corpus, tokenised whole and cut into windows, one after the other.

    A window is [CLS], `length` - 2 tokens, [SEP]; what is left at the end is dropped.
    WikiText-2's "<unk>" becomes `vocabulary.unknown`, which must never be a token to be
    guessed; " @-@ ", " @,@ " and " @.@ " become the characters that they stand for. The
    splits are the corpus's own (`corpora.read`). Tokenised once and cached.

    Args:
      name: "wikitext2" or "tiny_shakespeare".
      tokenizer: from `tokenizer`.
      length: L, of a window; 3 or more.
      validation: the first windows of the validation split that are kept; None for all,
        0 for no validation split.
      subset: the first windows of the training split that are kept; None for all.
      data_dir: the data folder; None for $TFDS_DATA_DIR or TFDS's default.

    Returns:
      Texts whose splits have `ids`.

    Raises:
      ValueError: an unknown name, an option out of range, a tokenizer without the special
        tokens, or a split that is shorter than a window.
      FileNotFoundError: a file is missing; says what puts it there.
    """
    errors.one_of("name", name, corpora.CORPORA)
    errors.is_a(
        "tokenizer", tokenizer, Tokenizer, "from lottery_jax.data.text.tokenizer"
    )
    length = errors.whole("length", length, 3)
    arrays = {}
    for split, ids in whole(name, tokenizer, data_dir).items():
        number = len(ids) // (length - 2)
        if not number:
            most = f"at most {len(ids) + 2}: {split} of {name} has {len(ids)} tokens"
            raise errors.wrong("length", length, most)
        rows = list(ids[: number * (length - 2)].reshape(number, length - 2))
        arrays[split] = {"ids": tokenizer.joined(rows, length=length)[0]}
    for split, kept in (("train", subset), ("validation", validation)):
        if kept is None:
            continue
        field, low = ("subset", 1) if split == "train" else ("validation", 0)
        there = len(arrays[split]["ids"])
        kept = errors.whole(field, kept, low, there, f"the windows of {split}")
        arrays[split] = {"ids": arrays[split]["ids"][:kept]}
    if validation == 0:
        del arrays["validation"]
    return Texts(arrays, tokenizer.vocabulary, name, metric="error")


def whole(
    name: str, tokenizer: Tokenizer, data_dir: str | os.PathLike[str] | None = None
) -> Arrays:
    """The ids of a corpus, one long text a split, tokenised once and cached.

    Args:
      name: as for `windows`.
      tokenizer: likewise.
      data_dir: likewise.

    Returns:
      int32 `[T]` by split.
    """
    corpus = corpora.read(name, data_dir)
    key = f"text-{name}-{tokenizer.digest[:12]}-{files.fingerprint(corpus.paths)}"
    return cached(
        key,
        lambda: {
            split: _ids(text, corpus.unknown, tokenizer)
            for split, text in corpus.texts.items()
        },
    )


def _ids(text: str, unknown: str | None, tokenizer: Tokenizer) -> np.ndarray:
    if unknown is None:
        return np.concatenate(tokenizer.plain(text.splitlines(keepends=True)))
    mark = tokenizer.vocabulary.unknown
    if mark is None and unknown in text:
        must = f"the id of a token, for {unknown}: {tokenizer.path} has none"
        raise errors.wrong("vocabulary.unknown", None, must)
    pieces = corpora.plain(text).split(unknown)
    between = np.array([mark], np.int32)
    found: list[np.ndarray] = []
    for ids in tokenizer.plain(pieces):
        found += [ids, between]
    return np.concatenate(found[:-1])
