"""Text as ids: the tokenizer of a pre-trained model, read from its files.

WordPiece itself is not written here again: the package `tokenizers` does it. What is
ours is what a data set needs around it: special tokens, truncation, padding, arrays.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lottery_jax import errors
from lottery_jax.data.text.tokens import Vocabulary

_CHUNK = 2000
"""Texts that are tokenised together: what is made of them is some megabytes."""

# How the files call a special token, and what it is in BERT.
_SPECIAL = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """What makes ids of text, as `tokenizer` reads it; equal if the files are.

    What looks like a special token within a text ("[MASK]") is text like any other.

    Attributes:
      vocabulary: what a model and a Task must know of the ids.
      digest: of the files' content; two tokenizers of one digest make the same ids.
      path: of the file it was read from.
    """

    vocabulary: Vocabulary
    digest: str
    path: str = dataclasses.field(compare=False)
    _rules: Any = dataclasses.field(repr=False, compare=False)

    def plain(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without special tokens, whole.

        Args:
          texts: any number.

        Returns:
          An int32 array `[T]` for each text.
        """
        return [np.asarray(one.ids, np.int32) for one in self._encoded(texts, False)]

    def pieces(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The ids of each text, and from where in it each token comes.

        Args:
          texts: any number.

        Returns:
          For each text `ids`, int32 `[T]`, and `offsets`, int32 `[T, 2]`: a token is
          the characters from the one to before the other.
        """
        return [
            (
                np.asarray(one.ids, np.int32),
                np.asarray(one.offsets, np.int32).reshape(-1, 2),
            )
            for one in self._encoded(texts, True)
        ]

    def encode(
        self, first: Sequence[str], second: Sequence[str] | None = None, *, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sequences `[CLS] first [SEP]`, or `[CLS] first [SEP] second [SEP]`.

        Where two sentences are too long together, the last token of the longer is left
        out (of the second where they are equally long) until they fit: Devlin et al.
        2019.

        Args:
          first: N texts.
          second: N texts; None for single sentences.
          length: L, to which sequences are cut and padded; 3 or more, of two sentences 5.

        Returns:
          `ids` and `types`, int32 `[N, L]`; `cut`, bool `[N]`: True where tokens were
          left out.

        Raises:
          ValueError: `length` is too short, not as many second texts as first, or a
            special token is not in the vocabulary.
        """
        own = 2 if second is None else 3
        length = errors.whole("length", length, 3 if second is None else 5)
        if second is not None and len(second) != len(first):
            raise errors.wrong("len(second)", len(second), f"{len(first)}, as of first")
        room = length - own
        heads = self.plain(first)
        if second is None:
            cut = np.array([len(a) > room for a in heads], bool)
            ids, types = self.joined([a[:room] for a in heads], None, length=length)
            return ids, types, cut
        tails = self.plain(second)
        cut = np.array([len(a) + len(b) > room for a, b in zip(heads, tails)], bool)
        kept = [shares(len(a), len(b), room) for a, b in zip(heads, tails)]
        ids, types = self.joined(
            [a[:n] for a, (n, _) in zip(heads, kept)],
            [b[:n] for b, (_, n) in zip(tails, kept)],
            length=length,
        )
        return ids, types, cut

    def joined(
        self,
        first: Sequence[np.ndarray],
        second: Sequence[np.ndarray] | None = None,
        *,
        length: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids that fit, with special tokens around them, padded.

        Args:
          first: ids of N first sentences, from `plain`.
          second: of N second ones; None for single sentences.
          length: L, of all sequences.

        Returns:
          `ids` and `types`, int32 `[N, L]`.

        Raises:
          ValueError: a special token is not in the vocabulary.
        """
        special = {
            n: getattr(self.vocabulary, n) for n in ("pad", "first", "separator")
        }
        for name, value in special.items():
            if value is None:
                must = f"the id of a token: {self.path} has none"
                raise errors.wrong(f"vocabulary.{name}", None, must)
        begin, end = np.int32(special["first"]), np.int32(special["separator"])
        ids = np.full((len(first), length), special["pad"], np.int32)
        types = np.zeros((len(first), length), np.int32)
        for row, head in enumerate(first):
            stop = len(head) + 2
            ids[row, :stop] = [begin, *head, end]
            if second is not None:
                tail = second[row]
                ids[row, stop : stop + len(tail) + 1] = [*tail, end]
                types[row, stop : stop + len(tail) + 1] = 1
        return ids, types

    def _encoded(self, texts: Sequence[str], offsets: bool) -> Iterator[Any]:
        many = self._rules.encode_batch if offsets else self._rules.encode_batch_fast
        for start in range(0, len(texts), _CHUNK):
            yield from many(
                list(texts[start : start + _CHUNK]), add_special_tokens=False
            )


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two sentences are kept where both do not fit.

    Args:
      first: tokens of the first sentence.
      second: of the second.
      room: tokens that fit.

    Returns:
      Of the first and of the second: what is left when the last token of the longer, or
      of the second of two that are equally long, is left out until they fit.
    """
    if first + second <= room:
        return first, second
    half = room // 2
    last = second if second <= half else room - min(first, room - half)
    return room - last, last


def tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a model: from `tokenizer.json`, or WordPiece from `vocab.txt`.

    A `vocab.txt` is a token a line. Its text is lower-cased and loses its accents unless
    `tokenizer_config.json` beside it says `"do_lower_case": false`. That file also says
    how special tokens are called, where not as in BERT.

    Args:
      path: the folder of a model, or one of the two files; in a folder with both it is
        `tokenizer.json`.

    Returns:
      The tokenizer.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: the extra `text` is not installed.
      ValueError: a file that cannot be read as such; names it.
    """
    given = errors.on_disk("path", path).expanduser()
    file = _file(given)
    content = file.read_bytes()
    config = _config(file.parent / "tokenizer_config.json")
    lower = config.get("do_lower_case", True)
    errors.flag(f"{file.parent / 'tokenizer_config.json'}: do_lower_case", lower)
    names = {
        role: _content(config.get(f"{role}_token") or token)
        for role, token in _SPECIAL.items()
    }
    if file.suffix == ".json":
        rules = _from_json(file, content)
        stated = json.dumps(names, sort_keys=True)
    else:
        rules = _word_piece(file, content, lower, names["unk"])
        stated = json.dumps([names, lower], sort_keys=True)
    rules.no_truncation()
    rules.no_padding()
    rules.encode_special_tokens = True
    ids = {role: rules.token_to_id(name) for role, name in names.items()}
    known = rules.get_vocab(with_added_tokens=True)
    if not known:
        raise errors.wrong(str(file), "an empty vocabulary", "some tokens")
    vocabulary = Vocabulary(
        size=max(known.values()) + 1,
        pad=ids["pad"],
        unknown=ids["unk"],
        first=ids["cls"],
        separator=ids["sep"],
        mask=ids["mask"],
    )
    # The library's version, too: another one may cut words in another way.
    stated += f" {_library().__version__}"
    digest = hashlib.sha256(content + stated.encode()).hexdigest()
    return Tokenizer(vocabulary, digest, str(file), rules)


def _file(given: pathlib.Path) -> pathlib.Path:
    if given.is_file():
        return given
    for name in ("tokenizer.json", "vocab.txt"):
        if (given / name).is_file():
            return given / name
    raise FileNotFoundError(
        f"path={os.fspath(given)!r}; it must be a tokenizer.json or vocab.txt, or a "
        "folder with one of them"
    )


def _config(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    errors.is_a(str(path), config, dict, "an object")
    return config


def _content(token: Any) -> str:
    """A special token's text; some files wrap it."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise errors.wrong(
            "tokenizer_config.json: a special token", errors.shown(text), "text"
        )
    return text


@functools.cache
def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            f"tokenising needs the package {error.name}: pip install 'lottery-jax[text]'"
        ) from error
    return tokenizers


def _from_json(file: pathlib.Path, content: bytes) -> Any:
    library = _library()
    try:
        return library.Tokenizer.from_str(content.decode())
    except Exception as error:  # what the package raises has no type of its own
        raise ValueError(f"{file} cannot be read as a tokenizer: {error}") from error


def _word_piece(file: pathlib.Path, content: bytes, lower: bool, unknown: str) -> Any:
    library = _library()
    try:
        lines = content.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error}") from error
    known: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        token = line.removesuffix("\r")
        if not token or token in known:
            what = "is empty" if not token else f"has {token!r} a second time"
            raise ValueError(
                f"{file}, line {number} {what}; each is a token of its own"
            )
        known[token] = number - 1
    if unknown not in known:
        raise ValueError(f"{file} has no {unknown!r}, for what is not in it")
    rules = library.Tokenizer(
        library.models.WordPiece(known, unk_token=unknown, max_input_chars_per_word=100)
    )
    rules.normalizer = library.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lower
    )
    rules.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    return rules
