"""What tasks of texts are compared by, where that is no mean over examples.

Pure functions of all predictions of a split at once. They work under `jit` and `vmap`:
no shape depends on a value. What they give is float32; what a diverged network predicts
is nan where it was given as floats, and integers that are no class give nan as well.

References:
  Matthews, Comparison of the Predicted and Observed Secondary Structure of T4 Phage
    Lysozyme, 1975.
  Gorodkin, Comparing Two K-Category Assignments by a K-Category Correlation Coefficient,
    2004.
  Wang et al., GLUE, 2019, section 3, for which of them belongs to which task.
  Rajpurkar et al., SQuAD, 2016, section 6.1.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lottery_jax.errors import whole
from lottery_jax.types import Array


def guessed(logits: Array, label: Array) -> Array:
    """Whether the label is the most likely class; among thousands of classes, quickly.

    What `argmax(logits) == label` says, but for equal logits: of several most likely
    classes each is right, and where all are equally likely none is. A maximum is found in
    the time in which logits are read; where it lies takes XLA ten times as long on a CPU,
    which for 30,522 tokens was a third of a step.

    Args:
      logits: float `[..., classes]`.
      label: int `[...]`.

    Returns:
      Bool `[...]`; False where a logit is nan.
    """
    own = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
    high, low = jnp.max(logits, axis=-1), jnp.min(logits, axis=-1)
    return (own >= high) & (low < high)


def matthews(predicted: ArrayLike, label: ArrayLike, classes: int) -> Array:
    """The Matthews correlation of predicted and true classes, of any number of classes.

    Args:
      predicted: classes in [0, classes), int `[N]`.
      label: the true ones, likewise.
      classes: how many there are, at least 2.

    Returns:
      Float32 `[]` in [-1, 1]: 1 where all agree; 0 where it is undefined, which is where
      all predictions, or all labels, are of one class; nan if a number is no class.

    Raises:
      ValueError: nothing to compare, unequal shapes, no integers, fewer than 2 classes.
    """
    whole("classes", classes, 2)
    predicted, label = _integers(predicted, label)
    named = jnp.arange(classes, dtype=jnp.int32)[:, None]
    said, true = predicted[None] == named, label[None] == named
    both = _share(said & true)
    only_said, only_true = _share(said & ~true), _share(~said & true)
    # p(1 - p), and p(a & b) - p(a) p(b), of each class. Written with the shares of what is
    # not of the class nothing cancels where a class is rare.
    covariance = jnp.sum(both * _share(~said & ~true) - only_said * only_true)
    spread = jnp.sum(_share(said) * _share(~said)) * jnp.sum(
        _share(true) * _share(~true)
    )
    found = covariance / jnp.sqrt(jnp.where(spread > 0, spread, 1))
    found = jnp.clip(jnp.where(spread > 0, found, 0), -1, 1)
    is_class = jnp.all(jnp.any(said, axis=0) & jnp.any(true, axis=0))
    return jnp.where(is_class, found, jnp.nan).astype(jnp.float32)


def f1(predicted: ArrayLike, label: ArrayLike) -> Array:
    """The harmonic mean of precision and recall of class 1 of two.

    Args:
      predicted: classes 0 and 1, int `[N]`.
      label: the true ones, likewise.

    Returns:
      Float32 `[]` in [0, 1]; 0 where it is undefined, which is where class 1 is neither
      predicted nor true; nan if a number is neither 0 nor 1.

    Raises:
      ValueError: nothing to compare, unequal shapes, no integers.
    """
    predicted, label = _integers(predicted, label)
    said, true = predicted == 1, label == 1
    number = jnp.sum(said) + jnp.sum(true)
    found = 2 * jnp.sum(said & true) / jnp.maximum(number, 1)
    is_class = jnp.all((said | (predicted == 0)) & (true | (label == 0)))
    return jnp.where(is_class, found, jnp.nan).astype(jnp.float32)


def pearson(predicted: ArrayLike, label: ArrayLike) -> Array:
    """The linear correlation of predicted and true numbers.

    Args:
      predicted: real `[N]`.
      label: the true ones, likewise.

    Returns:
      Float32 `[]` in [-1, 1]. A network that predicts one number for everything has
      learnt nothing, and its correlation, which is undefined, is given as 0; so is that
      of labels which are all the same. nan where a number is not finite: a network that
      diverged is not one that has learnt nothing.

    Raises:
      ValueError: nothing to compare, unequal shapes, complex numbers.
    """
    return _correlation(*_numbers(predicted, label))


def spearman(predicted: ArrayLike, label: ArrayLike) -> Array:
    """The correlation of the ranks of predicted and true numbers; equal ones share theirs.

    Args:
      predicted: real `[N]`.
      label: the true ones, likewise.

    Returns:
      Float32 `[]` in [-1, 1]: as `pearson`, of the ranks; those of numbers that are
      equal are averaged.

    Raises:
      ValueError: nothing to compare, unequal shapes, complex numbers.
    """
    predicted, label = _numbers(predicted, label)
    found = _correlation(_ranks(predicted), _ranks(label))
    finite = jnp.all(jnp.isfinite(predicted) & jnp.isfinite(label))
    return jnp.where(finite, found, jnp.nan)


def span_overlap(
    start: ArrayLike, end: ArrayLike, answers: ArrayLike
) -> tuple[Array, Array]:
    """How well spans of tokens answer: of all accepted answers the best one counts.

    Tokens are compared by their position in the text, where the published evaluation
    compares the words as a bag, without articles and punctuation.

    Args:
      start: the first token of what is answered, int `[N]`.
      end: the last one, likewise. A span that ends before it starts holds nothing.
      answers: the first and the last token of each accepted answer, int `[N, A, 2]`; -1
        where there are fewer.

    Returns:
      The harmonic mean of precision and recall in tokens, and whether a span is exactly
      an answer, 0 or 1; float32 `[N]` each. Both are 0 where no answer is accepted.

    Raises:
      ValueError: unequal shapes, no integers.
    """
    start, end = _integers(start, end, ("start", "end"))
    answers = _of_kind("answers", answers, jnp.integer, "integers")
    if answers.ndim != 3 or answers.shape[::2] != (len(start), 2):
        raise ValueError(
            f"answers.shape={answers.shape}; it must be [N, answers, 2], N = {len(start)}"
        )
    start, end = start[:, None], end[:, None]
    first, last = answers[..., 0], answers[..., 1]
    there = (first >= 0) & (last >= first)
    common = jnp.minimum(end, last) - jnp.maximum(start, first) + 1
    lengths = jnp.maximum(end - start + 1, 0) + (last - first + 1)
    overlap = 2 * jnp.maximum(common, 0) / jnp.where(there, lengths, 1)
    exact = there & (start == first) & (end == last)
    best = jnp.max(jnp.where(there, overlap, 0), axis=1, initial=0)
    return best.astype(jnp.float32), jnp.any(exact, axis=1).astype(jnp.float32)


def best_span(
    scores: ArrayLike, allowed: ArrayLike, longest: int
) -> tuple[Array, Array]:
    """The spans whose first and last token score highest together.

    Args:
      scores: of each token as the first and as the last one of the answer, real
        `[N, L, 2]`.
      allowed: the tokens that an answer may begin and end with, bool `[N, L]`.
      longest: tokens that an answer may have, at least 1.

    Returns:
      The first and the last token, int32 `[N]` each: `start <= end < start + longest`,
      both allowed; of equally good spans the one that starts first, and of these the
      shortest. Both are -1 where no token is allowed, or none has a score (nan).

    Raises:
      ValueError: wrong shapes, `allowed` is not bool, `longest` is below 1.
    """
    whole("longest", longest, 1)
    scores = _of_kind("scores", scores, jnp.floating, "real numbers")
    scores = scores.astype(jnp.float32)
    allowed = _of_kind("allowed", allowed, jnp.bool_, "bool")
    if scores.ndim != 3 or scores.shape[2] != 2 or not scores.size:
        raise ValueError(f"scores.shape={scores.shape}; it must be [N, L, 2]")
    if allowed.shape != scores.shape[:2]:
        raise ValueError(
            f"allowed.shape={allowed.shape}; it must be [N, L], {scores.shape[:2]}"
        )
    number, length = allowed.shape
    first, last = (jnp.where(allowed, scores[..., i], -jnp.inf) for i in (0, 1))
    # Beyond the end no span ends.
    last = jnp.pad(last, ((0, 0), (0, length)), constant_values=-jnp.inf)

    def longer(extra: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        sums, lengths = best
        shifted = jax.lax.dynamic_slice_in_dim(last, extra, length, axis=1)
        found = first + shifted
        better = found > sums
        return jnp.where(better, found, sums), jnp.where(better, extra, lengths)

    nothing = jnp.full((number, length), -jnp.inf, jnp.float32)
    sums, extras = jax.lax.fori_loop(
        0,
        min(longest, length),
        longer,
        (nothing, jnp.full((number, length), -1, jnp.int32)),
    )
    start = jnp.argmax(sums, axis=1).astype(jnp.int32)
    extra = jnp.take_along_axis(extras, start[:, None], axis=1)[:, 0]
    some = extra >= 0
    return jnp.where(some, start, -1), jnp.where(some, start + extra, -1)


def _correlation(a: Array, b: Array) -> Array:
    a, b = _centred(a), _centred(b)
    spread = jnp.sum(a * a) * jnp.sum(b * b)
    found = jnp.sum(a * b) / jnp.sqrt(jnp.where(spread > 0, spread, 1))
    found = jnp.clip(jnp.where(spread > 0, found, 0), -1, 1)
    return jnp.where(jnp.isfinite(spread), found, jnp.nan)


def _centred(values: Array) -> Array:
    """Numbers about their mean, the largest of size 1; zeros if they are all the same.

    The differences from the smallest are taken first: of numbers that lie close together
    these are exact, and the mean of what remains is no larger than their spread.
    """
    moved = values - jnp.min(values)
    largest = jnp.max(moved)
    moved = moved / jnp.where(largest > 0, largest, 1)
    moved = moved - jnp.mean(moved)
    centred = moved - jnp.mean(moved)
    # A nan or an infinity has made `largest` one, which is kept.
    return jnp.where(largest == 0, 0, centred + 0 * largest)


def _ranks(values: Array) -> Array:
    """The position of each in their order, from 0; the mean position of equal ones."""
    values = jnp.where(values == 0, 0, values)  # of both signs
    ordered = jnp.sort(values)
    low = jnp.searchsorted(ordered, values, side="left")
    high = jnp.searchsorted(ordered, values, side="right")
    return (low + high - 1).astype(jnp.float32) / 2


def _share(which: Array) -> Array:
    """The share of examples, float32 `[classes]`; exact as a number of them."""
    return jnp.sum(which, axis=-1).astype(jnp.float32) / which.shape[-1]


def _integers(
    a: ArrayLike, b: ArrayLike, names: tuple[str, str] = ("predicted", "label")
) -> tuple[Array, Array]:
    one = _of_kind(names[0], a, jnp.integer, "integers")
    return _alike(one, _of_kind(names[1], b, jnp.integer, "integers"), names)


def _numbers(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    names = ("predicted", "label")
    both = (jnp.asarray(x) for x in (a, b))
    one, other = (
        _of_kind(
            name,
            x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.integer) else x,
            jnp.floating,
            "real numbers",
        ).astype(jnp.float32)
        for name, x in zip(names, both, strict=True)
    )
    return _alike(one, other, names)


def _of_kind(name: str, values: ArrayLike, kind: type, what: str) -> Array:
    array = jnp.asarray(values)
    if not jnp.issubdtype(array.dtype, kind):
        raise ValueError(f"{name}.dtype={array.dtype}; it must be {what}")
    return array


def _alike(a: Array, b: Array, names: tuple[str, str]) -> tuple[Array, Array]:
    if a.ndim != 1 or not a.size:
        raise ValueError(f"{names[0]}.shape={a.shape}; it must be [N], N at least 1")
    if b.shape != a.shape:
        raise ValueError(
            f"{names[1]}.shape={b.shape}; it must be that of {names[0]}, {a.shape}"
        )
    return a, b
