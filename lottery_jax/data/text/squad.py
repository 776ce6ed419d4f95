"""Questions whose answer is a span of a text: SQuAD 1.1.

Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, 2016.
"""

import json
import os
import pathlib
from typing import NamedTuple

import numpy as np

from lottery_jax import errors
from lottery_jax.data.cache import Arrays, cached
from lottery_jax.data.text import files, published
from lottery_jax.data.text.splits import cuts, first, held_out, train_and_validation
from lottery_jax.data.text.tokenizer import Tokenizer
from lottery_jax.data.text.tokens import Texts


class Question(NamedTuple):
    """A question of SQuAD, as its file has it.

    Attributes:
      name: of the question, unique.
      article: the title of the article.
      text: of the question.
      context: a paragraph of the article.
      answers: accepted answers, each a text and the character of the context at which it
        begins.
    """

    name: str
    article: str
    text: str
    context: str
    answers: tuple[tuple[str, int], ...]


def squad(
    tokenizer: Tokenizer,
    *,
    length: int,
    question: int = 64,
    validation: int | None = None,
    subset: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Texts:
    """SQuAD 1.1: the first window of each question, tokenised once and cached.

    A sequence is [CLS] question [SEP] context [SEP]; what of the context does not fit is
    cut. An accepted answer that is not in the window is left out, and a question without
    one in it is dropped: `note` counts both, and every error is over what is left. The
    published development set is the test split, and the validation split comes from the
    training set. Where only the development set is there, a tenth of it is the test split,
    another tenth the validation split, and the set is called "squad-dev". Splits share no
    article.

    Args:
      tokenizer: from `tokenizer`.
      length: L, of all sequences; 5 or more.
      question: tokens of a question that are kept, at most (Devlin et al. 2019: 64).
      validation: questions that are held out of the training set, at least: whole
        articles, by a fixed permutation; None for a tenth (of "squad-dev" as many as the
        test split is meant to have), 0 for no validation split.
      subset: size of the training split, its first questions; None for all.
      data_dir: the data folder; None for $TFDS_DATA_DIR or TFDS's default.
      seed: fixes the permutation, in [0, 2**32).

    Returns:
      Texts whose splits have `ids`, `types` and `answers`; the first of a row's answers
      is the one to train on.

    Raises:
      ValueError: an option out of range, or a file that is not as published.
      FileNotFoundError: the development set is not there; says what puts it there.
    """
    chosen = choose(tokenizer, length, question, validation, subset, data_dir, seed)
    notes = [chosen.note] if chosen.note else []
    lost = {k: (few, number) for k, (few, number) in chosen.dropped.items() if few}
    if lost:
        found = ", ".join(
            f"{few} of {n} of {split}" for split, (few, n) in lost.items()
        )
        notes.append(
            f"questions dropped, for no answer is within length={length}: {found}"
        )
    outside = {split: part["outside"].sum() for split, part in chosen.parts.items()}
    if any(outside.values()):
        found = ", ".join(f"{n} of {split}" for split, n in outside.items() if n)
        notes.append(f"further accepted answers outside: {found}")
    notes += cuts({split: part["cut"] for split, part in chosen.parts.items()}, length)
    return Texts(
        arrays={
            split: {field: part[field] for field in ("ids", "types", "answers")}
            for split, part in chosen.parts.items()
        },
        vocabulary=tokenizer.vocabulary,
        name=chosen.name,
        metric="f1",
        note="; ".join(notes) or None,
    )


class Chosen(NamedTuple):
    """Which questions are in which split, and what is known of them.

    Attributes:
      parts: by split `ids`, `types`, `answers`, `cut`, how many accepted answers are
        `outside` of the window, and `row`, the position in the file.
      paths: the file of each split.
      dropped: of each split, how many questions are dropped, and of how many.
      name: of the data set.
      note: what must be stated of it, or None.
    """

    parts: dict[str, Arrays]
    paths: dict[str, pathlib.Path]
    dropped: dict[str, tuple[int, int]]
    name: str
    note: str | None


def choose(
    tokenizer: Tokenizer,
    length: int,
    question: int,
    validation: int | None,
    subset: int | None,
    data_dir: str | os.PathLike[str] | None,
    seed: int,
) -> Chosen:
    """The questions of each split; the arguments are those of `squad`.

    Args:
      tokenizer: as for `squad`.
      length: likewise.
      question: likewise.
      validation: likewise.
      subset: likewise.
      data_dir: likewise.
      seed: likewise.
    """
    must = "from lottery_jax.data.text.tokenizer"
    errors.is_a("tokenizer", tokenizer, Tokenizer, must)
    length = errors.whole("length", length, 5)
    question = errors.whole("question", question, 1)
    train_file, test_file = published.SQUAD
    (path,) = files.needed("squad", [test_file], data_dir)
    paths = {"train": path.with_name(train_file), "validation": path, "test": path}
    test = train = _stored(path, tokenizer, length, question)
    number = len(test["articles"])
    if paths["train"].is_file():
        name, note = "squad", None
        paths["validation"] = paths["train"]
        train = _stored(paths["train"], tokenizer, length, question)
        rows, test_rows = np.arange(len(train["articles"])), np.arange(number)
    else:
        name = "squad-dev"
        note = (
            "made of the development set of SQuAD 1.1 alone, split by article: not "
            "comparable with results on SQuAD"
        )
        paths["train"] = path
        rows, test_rows = map(
            np.sort, held_out(test["articles"], number // 10, seed, "test")
        )
        if validation is None:
            validation = number // 10
    kept, held = train_and_validation(train["articles"][rows], validation, seed, name)
    # In the whole file, so that questions are in the same split at every length.
    splits = {"train": rows[kept], "validation": rows[held], "test": test_rows}
    if not len(held):
        del splits["validation"]
    parts, dropped = {}, {}
    for split, own in splits.items():
        stored = test if split == "test" else train
        there = _there(stored, own)
        if not len(there):
            must = f"more: no question of {split} has an answer in its first window"
            raise errors.wrong("length", length, must)
        dropped[split] = len(own) - len(there), len(own)
        if split == "train":
            there = first(there, subset, name)
        parts[split] = {field: stored[field][there] for field in _ROWS}
    paths = {split: paths[split] for split in parts}
    return Chosen(parts, paths, dropped, name, note)


def read(path: pathlib.Path) -> list[Question]:
    """The questions of a file of SQuAD 1.1, in its order.

    Args:
      path: of the JSON file.

    Returns:
      Questions with at least one answer each.

    Raises:
      ValueError: a damaged file, or an answer that is not where it is said to be; names
        file and question.
    """
    found = []
    try:
        for article in json.loads(path.read_bytes())["data"]:
            for paragraph in article["paragraphs"]:
                for one in paragraph["qas"]:
                    answers = tuple(
                        (answer["text"], int(answer["answer_start"]))
                        for answer in one["answers"]
                    )
                    found.append(
                        Question(
                            one["id"],
                            article["title"],
                            one["question"],
                            paragraph["context"],
                            answers,
                        )
                    )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not SQuAD 1.1: {error!r}") from error
    for one in found:
        if not one.answers:
            raise ValueError(
                f"{path}, question {one.name} has no answer; that is SQuAD 2.0"
            )
        for text, start in one.answers:
            if not text or one.context[start : start + len(text)] != text:
                raise ValueError(
                    f"{path}, question {one.name}: {text!r} is not in the context at "
                    f"{start}"
                )
    if not found:
        raise ValueError(f"{path} has no question")
    return found


def _stored(path: pathlib.Path, tokenizer: Tokenizer, length: int, most: int) -> Arrays:
    key = f"text-spans-{length}-{most}-{tokenizer.digest[:12]}"
    return cached(
        f"{key}-{files.fingerprint([path])}",
        lambda: _windows(read(path), tokenizer, length, most),
    )


def _windows(
    questions: list[Question], tokenizer: Tokenizer, length: int, most: int
) -> Arrays:
    """The arrays of what is kept, as in `Chosen.parts`.

    Also `articles`, of all questions in the file, as numbers.
    """
    asked = tokenizer.plain([one.text for one in questions])
    contexts = list(dict.fromkeys(one.context for one in questions))
    pieces = dict(zip(contexts, tokenizer.pieces(contexts)))
    titles = [one.article for one in questions]
    number = {title: i for i, title in enumerate(dict.fromkeys(titles))}
    heads, tails, spans, cut, rows, outside = [], [], [], [], [], []
    for row, (one, ask) in enumerate(zip(questions, asked)):
        kept = ask[: min(most, length - 4)]
        ids, offsets = pieces[one.context]
        room = length - 3 - len(kept)
        found = [
            _span(offsets, start, start + len(text), room)
            for text, start in one.answers
        ]
        inside = list(dict.fromkeys(span for span in found if span is not None))
        if not inside:
            continue
        outside.append(sum(span is None for span in found))
        before = len(kept) + 2
        spans.append([(begin + before, end + before) for begin, end in inside])
        heads.append(kept)
        tails.append(ids[:room])
        cut.append(len(kept) < len(ask) or len(ids) > room)
        rows.append(row)
    if not rows:
        raise errors.wrong(
            "length", length, "more: no question has an answer in its first window"
        )
    answers = np.full((len(rows), max(map(len, spans)), 2), -1, np.int32)
    for row, own in enumerate(spans):
        answers[row, : len(own)] = own
    sequences, types = tokenizer.joined(heads, tails, length=length)
    return {
        "ids": sequences,
        "types": types,
        "answers": answers,
        "cut": np.array(cut, bool),
        "articles": np.array([number[title] for title in titles], np.int32),
        "row": np.array(rows, np.int32),
        "outside": np.array(outside, np.int32),
    }


def _span(
    offsets: np.ndarray, start: int, end: int, room: int
) -> tuple[int, int] | None:
    """The first and the last token of characters; None if one is not in the window."""
    # Tokens come in the order of the text, so that both columns are sorted.
    first_token = int(np.searchsorted(offsets[:, 1], start, side="right"))
    after = int(np.searchsorted(offsets[:, 0], end, side="left"))
    return (first_token, after - 1) if first_token < after <= room else None


def _there(stored: Arrays, rows: np.ndarray) -> np.ndarray:
    """Where questions of a file are among those that are kept, without the others."""
    place = np.full(len(stored["articles"]), -1)
    place[stored["row"]] = np.arange(len(stored["row"]))
    found = place[rows]
    return found[found >= 0]


_ROWS = ("ids", "types", "answers", "cut", "outside", "row")
