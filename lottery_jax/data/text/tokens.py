"""What texts are once they are numbers."""

from typing import NamedTuple

import numpy as np

from lottery_jax.types import Array


class Vocabulary(NamedTuple):
    """What a model and a Task must know of the tokens; hashable.

    Attributes:
      size: ids lie in [0, size).
      pad: the id of what fills up a sequence; None where nothing does.
      unknown: of what has no id of its own; None where everything has one.
      first: what a sequence begins with, [CLS]; None if there is no such token.
      separator: what a sequence ends with, [SEP]; likewise.
      mask: what stands for a token to be guessed, [MASK]; likewise.
    """

    size: int
    pad: int | None = None
    unknown: int | None = None
    first: int | None = None
    separator: int | None = None
    mask: int | None = None

    @property
    def special(self) -> tuple[int, ...]:
        """The ids that are no part of any text."""
        own = (self.pad, self.first, self.separator, self.mask)
        return tuple(sorted(one for one in own if one is not None))


class Texts(NamedTuple):
    """A data set of texts on the host, and what a model and a Task must know of it.

    Which arrays a split has depends on what it is for:

    - sentences: `ids` and `types`, `[N, L]`; `label`, int32 classes or float32 numbers,
      `[N]`;
    - spans: `ids` and `types`, `[N, L]`; `answers`, int32 `[N, A, 2]`, the first and the
      last token of each accepted answer, -1 where there are fewer;
    - masked tokens: `ids`, `[N, L]`, whole windows, nothing padded;
    - next tokens: `ids`, `[T]`, one long text.

    `ids` and `types` are int32; `types` says to which of two sentences a token belongs.
    Sequences are padded at their end, by `vocabulary.pad`.

    Attributes:
      arrays: `{"train": {...}, "validation": {...}, "test": {...}}`; without a validation
        split, that entry is absent.
      vocabulary: of the tokeniser.
      name: of the data set.
      num_classes: labels lie in [0, num_classes); None where they are numbers, or absent.
      metric: what networks are compared by, a name of `verdicts.METRICS` that the task
        measures: "error", "matthews", "pearson", ...; None where nothing is said of it.
      note: how this copy differs from the published one, how many sequences were cut, and
        what else must be stated beside a result; None for nothing.
    """

    arrays: dict[str, dict[str, np.ndarray]]
    vocabulary: Vocabulary
    name: str
    num_classes: int | None = None
    metric: str | None = None
    note: str | None = None


class Tokens(NamedTuple):
    """What an encoder is given of a batch of texts.

    Attributes:
      ids: of the tokens, int32 `[B, L]`.
      types: 0 for the first sentence, 1 for the second, int32 `[B, L]`.
      present: False where a sequence is padded, bool `[B, L]`.
      positions: the tokens that a masked-language head is asked for, int32 `[B, P]` in
        [0, L); None for a head that says something of the whole.
    """

    ids: Array
    types: Array
    present: Array
    positions: Array | None = None
