"""Texts of one's own are looked at once, on the host, before anything is compiled.

An id beyond the vocabulary finds a row all the same, the last one, and a sequence of
padding alone gives nan: nothing later would say so.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lottery_jax import errors
from lottery_jax.data.text.tokens import Texts, Vocabulary
from lottery_jax.errors import wrong

_SPLITS = ("train", "validation", "test")
_KINDS = (
    {"ids", "types", "label"},
    {"ids", "types", "answers"},
    {"ids"},
)


def check(texts: Texts, known: int | None = None) -> Texts:
    """Raises a ValueError that names what of texts makes no sense, and where.

    Sound are: a split "train", and "validation" and "test" if there are, with the same
    arrays, as `Texts` says, of one length; ids in [0, size); sequences padded at their
    end alone, and none that is padding alone; windows without padding; labels in
    [0, num_classes), or finite; answers with their first token before their last, among
    the tokens of the sequence, the first of them given.

    Args:
      texts: on the host.
      known: ids that the model knows, the rows of its word embedding: the vocabulary
        must not be larger; None where no model is asked.

    Returns:
      The same texts.
    """
    errors.is_a("texts", texts, Texts, "a lottery_jax.data.text.Texts")
    _check_vocabulary(texts.vocabulary, known)
    if texts.num_classes is not None:
        errors.whole("num_classes", texts.num_classes, 2)
    arrays = texts.arrays
    errors.is_a("arrays", arrays, Mapping, "a dict of splits")
    for split in arrays:
        errors.one_of("arrays: split", split, _SPLITS)
    if "train" not in arrays:
        raise wrong("arrays", list(arrays), "a dict with a split train")
    for split, fields in arrays.items():
        where = f"arrays[{split!r}]"
        errors.is_a(where, fields, Mapping, "a dict of arrays")
        kinds = "; ".join(" ".join(sorted(kind)) for kind in _KINDS)
        if set(fields) not in _KINDS:
            raise wrong(where, list(fields), f"a dict of one of: {kinds}")
        if set(fields) != set(arrays["train"]):
            raise wrong(where, list(fields), f"as in train: {list(arrays['train'])}")
        for name, array in fields.items():
            errors.is_a(f"{where}[{name!r}]", array, np.ndarray, "a NumPy array")
        _check_ids(where, fields, texts.vocabulary, arrays["train"]["ids"].shape[1:])
        if "label" in fields:
            _check_labels(f"{where}['label']", fields["label"], texts)
        if "answers" in fields:
            _check_answers(where, fields, texts.vocabulary)
    return texts


def _check_vocabulary(vocabulary: Any, known: int | None) -> None:
    errors.is_a("vocabulary", vocabulary, Vocabulary, "a Vocabulary")
    size = errors.whole("vocabulary.size", vocabulary.size, 1)
    for name in ("pad", "unknown", "first", "separator", "mask"):
        value = getattr(vocabulary, name)
        if value is not None:
            errors.whole(f"vocabulary.{name}", value, 0, size - 1, "an id")
    if known is not None and size > known:
        must = f"at most {known}, the words that the model knows: the tokenizer is another's"
        raise wrong("vocabulary.size", size, must)


def _check_ids(
    where: str,
    fields: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    trained_on: tuple[int, ...],
) -> None:
    ids = fields["ids"]
    dimensions = (1, 2) if set(fields) == {"ids"} else (2,)
    _check_dtype(f"{where}['ids']", ids, np.int32)
    if ids.ndim not in dimensions or ids.shape[1:] != trained_on:
        must = "[sequences, length]" + (" or [tokens]" if 1 in dimensions else "")
        raise wrong(f"{where}['ids'].shape", ids.shape, f"{must}, as in train")
    if not ids.size:
        must = "1 or more: a split is left out, or has examples"
        raise wrong(f"len({where}['ids'])", len(ids), must)
    _first(
        f"{where}['ids']",
        ids,
        (ids < 0) | (ids >= vocabulary.size),
        f"in [0, {vocabulary.size}), the ids of the vocabulary",
    )
    if "types" in fields:
        types = fields["types"]
        _check_dtype(f"{where}['types']", types, np.int32)
        _check_shape(f"{where}['types']", types, ids.shape)
        _first(f"{where}['types']", types, (types < 0) | (types > 1), "0 or 1")
    if vocabulary.pad is None or ids.ndim == 1:
        return
    present = ids != vocabulary.pad
    if set(fields) == {"ids"}:
        _first(f"{where}['ids']", ids, ~present, "no padding: windows are whole")
        return
    for row in np.flatnonzero(~present.any(1))[:1]:
        raise wrong(
            f"{where}['ids'][{row}]", "padding alone", "some tokens, then padding"
        )
    back = np.zeros_like(present)
    back[:, :-1] = ~present[:, :-1] & present[:, 1:]
    _first(f"{where}['ids']", ids, back, "a token: padding is at the end alone")


def _check_labels(where: str, label: np.ndarray, texts: Texts) -> None:
    split = where.split("'")[1]
    number = len(texts.arrays[split]["ids"])
    if texts.num_classes is None:
        _check_dtype(where, label, np.float32)
        _check_shape(where, label, (number,))
        _first(where, label, ~np.isfinite(label), "finite")
        return
    _check_dtype(where, label, np.int32)
    _check_shape(where, label, (number,))
    _first(
        where,
        label,
        (label < 0) | (label >= texts.num_classes),
        f"in [0, {texts.num_classes}), the classes of {texts.name}: they count from 0",
    )


def _check_answers(
    where: str, fields: Mapping[str, np.ndarray], vocabulary: Vocabulary
) -> None:
    answers, ids = fields["answers"], fields["ids"]
    _check_dtype(f"{where}['answers']", answers, np.int32)
    number, length = ids.shape
    if answers.ndim != 3 or len(answers) != number or answers.shape[2] != 2:
        must = f"[{number}, answers, 2], the first and the last token of each"
        raise wrong(f"{where}['answers'].shape", answers.shape, must)
    if not answers.shape[1]:
        raise wrong(f"{where}['answers'].shape", answers.shape, "one answer at least")
    absent = (answers == -1).all(2)
    ends = np.full(number, length)
    if vocabulary.pad is not None:
        ends = (ids != vocabulary.pad).sum(1)
    first, last = answers[..., 0], answers[..., 1]
    sound = (first >= 0) & (first <= last) & (last < ends[:, None])
    bad = ~(sound | absent)
    bad[:, 0] |= absent[:, 0]
    for row, which in np.argwhere(bad)[:1]:
        must = f"a first and a last token in [0, {ends[row]}), or -1 after the first answer"
        raise wrong(
            f"{where}['answers'][{row}, {which}]", answers[row, which].tolist(), must
        )


def _check_dtype(where: str, array: np.ndarray, dtype: type) -> None:
    if array.dtype != dtype:
        raise wrong(f"{where}.dtype", array.dtype, np.dtype(dtype).name)


def _check_shape(where: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise wrong(f"{where}.shape", array.shape, f"{shape}: one for each of ids")


def _first(where: str, array: np.ndarray, bad: np.ndarray, must: str) -> None:
    """Names the first entry that is bad."""
    if bad.any():
        at = np.unravel_index(int(np.argmax(bad)), bad.shape)
        place = ", ".join(str(int(i)) for i in at)
        raise wrong(f"{where}[{place}]", array[at], must)
