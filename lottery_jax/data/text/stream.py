"""A corpus as one long text, for next tokens."""

import os
from typing import Literal

import numpy as np

from lottery_jax import errors
from lottery_jax.data.cache import Arrays, cached
from lottery_jax.data.text import corpora, files
from lottery_jax.data.text.tokenizer import Tokenizer
from lottery_jax.data.text.tokens import Texts, Vocabulary
from lottery_jax.data.text.windows import whole

END = "<eos>"
"""The word at the end of a line."""

UNKNOWN = "<unk>"
"""The word for all that the training split does not have."""


def stream(
    name: str,
    *,
    unit: Literal["character", "word"] = "character",
    tokenizer: Tokenizer | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Texts:
    """A corpus as one long text a split: characters, words or a tokenizer's tokens.

    Words are what white space parts; a line ends with "<eos>", an empty one as well. Ids
    count the words of the training split as they come, its characters in the order of
    Unicode; what other splits have besides is `vocabulary.unknown`, which for words of
    WikiText-2 is its own "<unk>": 33,278 words, of which the splits have 2,088,628,
    217,646 and 245,569 (Merity et al. 2017). Made once and cached.

    Args:
      name: "wikitext2" or "tiny_shakespeare".
      unit: "character" or "word".
      tokenizer: from `tokenizer`: its tokens instead, as in `windows`; None for units.
      data_dir: the data folder; None for $TFDS_DATA_DIR or TFDS's default.

    Returns:
      Texts whose splits have `ids`, `[T]`.

    Raises:
      ValueError: an unknown name or unit.
      FileNotFoundError: a file is missing; says what puts it there.
    """
    errors.one_of("name", name, corpora.CORPORA)
    errors.one_of("unit", unit, ("character", "word"))
    if tokenizer is not None:
        errors.is_a("tokenizer", tokenizer, Tokenizer, "from lottery_jax.data.text")
        ids = whole(name, tokenizer, data_dir)
        vocabulary = tokenizer.vocabulary
    else:
        corpus = corpora.read(name, data_dir)
        key = f"text-{name}-{unit}-{files.fingerprint(corpus.paths)}"
        ids = cached(key, lambda: _counted(corpus.texts, unit))
        size, unknown = int(ids.pop("size")), int(ids.pop("unknown"))
        vocabulary = Vocabulary(size=size, unknown=None if unknown < 0 else unknown)
    arrays = {split: {"ids": ids[split]} for split in ("train", "validation", "test")}
    return Texts(arrays, vocabulary, name, metric="loss")


def _counted(texts: dict[str, str], unit: str) -> Arrays:
    """Ids of all splits, `size` of the vocabulary, and `unknown`, -1 for none."""
    units = _words if unit == "word" else list
    split_up = {split: units(text) for split, text in texts.items()}
    own = dict.fromkeys(split_up["train"])
    known = {
        word: number
        for number, word in enumerate(own if unit == "word" else sorted(own))
    }
    if any(word not in known for words in split_up.values() for word in words):
        known.setdefault(UNKNOWN, len(known))
    # No character is called that, so that one without strangers has none.
    unknown = known.get(UNKNOWN, -1)
    arrays = {
        split: np.array([known.get(word, unknown) for word in words], np.int32)
        for split, words in split_up.items()
    }
    size, stands_for = np.array(len(known), np.int32), np.array(unknown, np.int32)
    return arrays | {"size": size, "unknown": stands_for}


def _words(text: str) -> list[str]:
    lines = text.removesuffix("\n").split("\n")
    return [word for line in lines for word in (*line.split(), END)]
