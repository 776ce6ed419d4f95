"""How SQuAD scores predicted spans: by the words of the text that they are.

Rajpurkar et al. 2016, section 6.1; words are compared in lower case, without punctuation
and articles, as the published evaluation does.
"""

import collections
import os
import re
import string
from typing import Literal, NamedTuple

import numpy as np

from lottery_jax import errors
from lottery_jax.data.text.squad import choose, read
from lottery_jax.data.text.tokenizer import Tokenizer


class SquadScores(NamedTuple):
    """The scores of predicted spans; a question that was dropped is not among them.

    Attributes:
      exact: share of the questions whose answer is one of the accepted ones, in [0, 1].
      f1: mean over questions of the best F1 with an accepted answer, in [0, 1].
      questions: how many there are.
      dropped: questions of the split that no sequence was made of; the published scores
        count those as well, and a model that never answers them has `exact` and `f1`
        times questions / (questions + dropped).
    """

    exact: float
    f1: float
    questions: int
    dropped: int


def squad_scores(
    spans: np.ndarray,
    tokenizer: Tokenizer,
    *,
    length: int,
    split: Literal["train", "validation", "test"] = "test",
    question: int = 64,
    validation: int | None = None,
    subset: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> SquadScores:
    """Exact match and F1 of the texts that spans of tokens stand for.

    All accepted answers count, also those outside of the window.

    Args:
      spans: int `[N, 2]`, the first and the last token that is predicted for each row of
        the split; a span that is no piece of the context (it ends before it begins, or
        has tokens of the question) is an empty answer.
      tokenizer: as for `squad`, and all that follows: what it was given.
      length: likewise.
      split: whose rows the spans are of.
      question: likewise.
      validation: likewise.
      subset: likewise.
      data_dir: likewise.
      seed: likewise.

    Returns:
      The scores.

    Raises:
      ValueError: not a span for each row, or no such split.
      FileNotFoundError: as `squad`.
    """
    chosen = choose(tokenizer, length, question, validation, subset, data_dir, seed)
    errors.one_of("split", split, chosen.parts)
    part = chosen.parts[split]
    number = len(part["row"])
    spans = np.asarray(spans)
    if spans.shape != (number, 2) or not np.issubdtype(spans.dtype, np.integer):
        must = (
            f"integers [{number}, 2]: a first and a last token for each row of {split}"
        )
        raise errors.wrong("spans", errors.shown(spans), must)
    asked = read(chosen.paths[split])
    asked = [asked[row] for row in part["row"]]
    contexts = list(dict.fromkeys(one.context for one in asked))
    offsets = {
        context: places
        for context, (_, places) in zip(contexts, tokenizer.pieces(contexts))
    }
    # The context begins after the second special token.
    begins = part["types"].argmax(1)
    exact, f1 = [], []
    for one, span, begin in zip(asked, spans, begins):
        places = offsets[one.context]
        from_, to = int(span[0] - begin), int(span[1] - begin)
        sound = 0 <= from_ <= to < min(len(places), length - 1 - begin)
        text = one.context[places[from_, 0] : places[to, 1]] if sound else ""
        accepted = [answer for answer, _ in one.answers]
        exact.append(max(words(text) == words(answer) for answer in accepted))
        f1.append(max(overlap(text, answer) for answer in accepted))
    return SquadScores(
        float(np.mean(exact)), float(np.mean(f1)), number, chosen.dropped[split][0]
    )


def words(text: str) -> list[str]:
    """The words of a text that count: lower case, no punctuation, no articles."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def overlap(prediction: str, answer: str) -> float:
    """F1 of the words of two texts, as often as they occur; 0 without a common one."""
    mine, other = words(prediction), words(answer)
    common = sum((collections.Counter(mine) & collections.Counter(other)).values())
    return 2 * common / (len(mine) + len(other)) if common else 0.0
