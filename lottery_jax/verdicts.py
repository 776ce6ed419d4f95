"""Verdicts: winning, matching, stable ... as yes, no or undecided, with an interval.

Every verdict rests on a paired t interval over independent replicas. A claim such as
"no more than 0.2 points above dense" is answered yes if the whole interval lies on the
claimed side of the tolerance, no if the whole interval lies on the other side, and
undecided otherwise. Saying yes to a 95% interval therefore errs at most 2.5% of the
time in the claim's favour. Undecided is the honest answer of few replicas: three with
a spread of 0.3 points have a half-width of 0.75 points.

What is judged is a `Metric`: error unless another is given. Values are in the metric's
own unit, errors are fractions in [0, 1]; only what is shown is scaled, errors to points.
Differences are always `values - reference`: negative is good where lower is better,
positive where higher is. Replicas that diverged (nan in either arm) are left out, by
name, and the verdict says so. Missing controls and too few replicas make a verdict
undecided; malformed input raises `ValueError`.

A claim that is made at many places, such as every density of a figure, errs more often
somewhere than at each. `family` says how many comparisons were made, and which answers
hold all at once.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from lottery_jax import errors

Answer: TypeAlias = Literal["yes", "no", "undecided"]
Side: TypeAlias = Literal["<=", "<", ">=", ">"]
Better: TypeAlias = Literal["lower", "higher"]


def _not_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value}; it must be a finite number of at least 0")
    return float(value)


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is measured of networks, and in which unit it is judged and shown; hashable.

        PERPLEXITY = Metric("perplexity", "", "lower", tolerance=0.5, bounds=(1, math.inf))
        RETURN = Metric("return", "reward", "higher", tolerance=5.0)
        F1 = Metric("f1", "points", "higher", tolerance=0.002, bounds=(0, 1), scale=100)

    Attributes:
      name: as it is recorded: "error" of "test_error".
      unit: of what is shown, for text and axes; may be "".
      better: whether "lower" or "higher" values are better.
      tolerance: how much worse still counts as equal, in the metric's own unit, finite
        and at least 0: the default of non-inferiority.
      bounds: the lowest and the highest possible value; values outside are refused.
      scale: what values are multiplied by where they are shown: 100 shows a fraction in
        points.
      digits: decimals that are shown, after scaling.

    Raises:
      ValueError: an unknown direction, a negative tolerance, bounds that do not rise, or
        a scale of 0 or less.
    """

    name: str
    unit: str
    better: Better
    tolerance: float
    bounds: tuple[float, float] = (-math.inf, math.inf)
    scale: float = 1.0
    digits: int = 2

    def __post_init__(self) -> None:
        """Refuses what is no metric."""
        errors.one_of("better", self.better, ("lower", "higher"))
        _not_negative("tolerance", self.tolerance)
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"bounds={self.bounds}; it must be two rising numbers")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale={self.scale}; it must be a positive number")

    @property
    def label(self) -> str:
        """For axes and headings: "error (points)"."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def shown(self, values: ArrayLike) -> np.ndarray:
        """Values as they are shown, in `unit`: float64 of the same shape."""
        return self.scale * np.asarray(values, np.float64)

    def text(self, difference: float) -> str:
        """A difference as it is shown, with its sign and without the unit."""
        return f"{self.scale * difference:+.{self.digits}f}"


ERROR = Metric("error", "points", "lower", tolerance=0.002, bounds=(0, 1), scale=100)
"""The share of wrong answers, a fraction in [0, 1], shown in points (hundredths)."""

CLEAN_ERROR = Metric(
    "clean_error", "points", "lower", tolerance=0.002, bounds=(0, 1), scale=100
)
"""The same on images as they are, where `error` is that under attack."""

ACCURACY = Metric(
    "accuracy", "points", "higher", tolerance=0.002, bounds=(0, 1), scale=100
)
"""The share of right answers, a fraction in [0, 1], shown in points (hundredths)."""

LOSS = Metric("loss", "nats", "lower", tolerance=0.01, digits=4)
"""Cross-entropy, or whatever the task minimises: unbounded."""

PERPLEXITY = Metric(
    "perplexity", "", "lower", tolerance=0.1, bounds=(1, math.inf), digits=2
)
"""exp(mean cross-entropy of the next token in nats). A tolerance cannot hold for all data:
0.1 is 0.1% of a perplexity of 100, such as that of words, and 2% of one of 5, such as that
of characters."""

MATTHEWS = Metric(
    "matthews", "points", "higher", tolerance=0.002, bounds=(-1, 1), scale=100
)
"""The correlation of predicted and true classes; 0 for a constant or an idle prediction,
negative for one that is worse. See `tasks.metrics.matthews`."""

F1 = Metric("f1", "points", "higher", tolerance=0.002, bounds=(0, 1), scale=100)
"""The harmonic mean of precision and recall, of a class or of the tokens of a span."""

EXACT_MATCH = Metric(
    "exact_match", "points", "higher", tolerance=0.002, bounds=(0, 1), scale=100
)
"""The share of spans that are exactly an accepted answer."""

PEARSON = Metric(
    "pearson", "points", "higher", tolerance=0.002, bounds=(-1, 1), scale=100
)
"""The linear correlation of predicted and true numbers; 0 for a constant prediction."""

SPEARMAN = Metric(
    "spearman", "points", "higher", tolerance=0.002, bounds=(-1, 1), scale=100
)
"""The correlation of the ranks of predicted and true numbers; likewise."""

RETURN = Metric("return", "reward", "higher", tolerance=5.0, digits=1)
"""The mean return of a policy's episodes, in the reward of its environment: unbounded. A
tolerance cannot hold for all of them: 5 is 2.5% of what CartPole-v0 has at most (200), and
1% of the range of Acrobot (-500 to 0)."""

STEPS = Metric("steps", "steps", "lower", tolerance=0.0, bounds=(0, math.inf), digits=1)
"""Steps of training, such as that of early stopping."""

DENSITY = Metric("density", "density", "lower", tolerance=0.0, bounds=(0, 1), digits=4)
"""The surviving share of the prunable weights."""

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        ERROR,
        CLEAN_ERROR,
        ACCURACY,
        LOSS,
        PERPLEXITY,
        MATTHEWS,
        F1,
        EXACT_MATCH,
        PEARSON,
        SPEARMAN,
        RETURN,
    )
}
"""What networks are compared by, by the name under which a task measures it."""


class Replicas(NamedTuple):
    """Which replicas the values belong to, and how sure a verdict about them must be.

    Attributes:
      names: one per replica, `[R]`, for `Verdict.excluded`; positions by default.
      clusters: labels `[R]` of the independent unit (the init, say) that each replica
        belongs to: replicas are averaged within their cluster first, so three data
        orders of three inits are n = 3. None: every replica is independent.
      confidence: of the two-sided interval, in (0, 1).
    """

    names: Sequence[Hashable] | None = None
    clusters: ArrayLike | None = None
    confidence: float = 0.95


INDEPENDENT = Replicas()
"""Replicas without names, each of them independent of the others; 95% intervals."""


class Verdict(NamedTuple):
    """The answer to one claim, with the numbers it rests on.

    Attributes:
      claim: what was claimed, in words.
      answer: "yes", "no" or "undecided".
      estimate: mean over the independent units; nan where there are none.
      low: lower end of the interval; -inf where fewer than two units are left.
      high: upper end of the interval; inf where fewer than two units are left.
      tolerance: the number that the whole interval is compared with.
      n: independent units (clusters where given), diverged ones not counted.
      side: how the claim compares the estimate with `tolerance`.
      metric: whose own unit estimate, low, high and tolerance are in.
      confidence: of the two-sided interval.
      excluded: names (by default positions) of the replicas left out as nan.
      reason: why the answer is not what the interval alone would say; may be "".
      parts: the verdicts that `combine` put together; the numbers above are those of
        the part that decides.
    """

    claim: str
    answer: Answer
    estimate: float
    low: float
    high: float
    tolerance: float
    n: int
    side: Side = "<="
    metric: Metric = ERROR
    confidence: float = 0.95
    excluded: tuple[Hashable, ...] = ()
    reason: str = ""
    parts: tuple["Verdict", ...] = ()

    @property
    def unit(self) -> str:
        """The name of the metric: "error", "steps" ..."""
        return self.metric.name

    def describe(self) -> str:
        """The verdict in one line, in the metric's unit: errors in points."""
        show = self.metric.text
        unit = f" {self.metric.unit}" if self.metric.unit else ""
        line = f"{self.claim}: {self.answer}"
        if not math.isnan(self.estimate):
            line += (
                f"; {show(self.estimate)}{unit}, {100 * self.confidence:g}% interval"
                f" [{show(self.low)}, {show(self.high)}], claimed"
                f" {self.side} {show(self.tolerance)}, n = {self.n}"
            )
        else:
            line += f"; n = {self.n}"
        if self.excluded:
            line += f"; diverged: {', '.join(map(str, self.excluded))}"
        if self.reason:
            line += f"; {self.reason}"
        return line

    def __str__(self) -> str:
        return self.describe()


def as_dict(verdict: Verdict) -> dict[str, Any]:
    """A verdict by field names, and its parts too, for JSON; of the metric its name."""
    fields = {
        {"metric": "unit"}.get(name, name): value
        for name, value in verdict._asdict().items()
    }
    parts = [as_dict(part) for part in verdict.parts]
    return fields | {"unit": verdict.unit, "parts": parts}


def paired(
    difference: ArrayLike,
    *,
    side: Side,
    tolerance: float,
    claim: str,
    metric: Metric = ERROR,
    replicas: Replicas = INDEPENDENT,
) -> Verdict:
    """Compares a mean paired difference with a tolerance, by a t interval.

    Args:
      difference: real `[R]`, one number per replica; nan marks one that diverged.
      side: the claim is `mean difference <side> tolerance`. With "<=" an interval that
        ends exactly at the tolerance still lies on the claimed side, with "<" it does
        not.
      tolerance: finite, in the unit of `difference`.
      claim: what is claimed, for `Verdict.claim`.
      metric: what the difference is one of.
      replicas: their names and clusters, and the confidence.

    Returns:
      The verdict. With no unit or one unit left it is undecided, and the interval
      infinite. Without any spread the interval is the point itself.

    Raises:
      ValueError: wrong shapes, an infinite difference, an unknown side, or a tolerance
        or confidence out of range.
    """
    names, clusters, confidence = replicas
    values = _vector("difference", difference)
    if np.isinf(values).any():
        i = int(np.isinf(values).argmax())
        raise ValueError(
            f"difference[{i}]={values[i]}; it must be a finite number, or nan for a"
            " replica that diverged"
        )
    errors.one_of("side", side, ("<=", "<", ">=", ">"))
    if not math.isfinite(tolerance):
        raise ValueError(f"tolerance={tolerance}; it must be a finite number")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; it must be between 0 and 1")
    if names is not None and len(names) != len(values):
        raise ValueError(
            f"names={tuple(names)}; it must be {len(values)} names, one per replica"
        )

    kept = ~np.isnan(values)
    excluded = tuple(
        i if names is None else names[i] for i in np.flatnonzero(~kept).tolist()
    )
    if clusters is None:
        units = values[kept]
    else:
        labels = np.asarray(clusters)
        if labels.shape != values.shape:
            raise ValueError(
                f"clusters.shape={labels.shape}; it must be {values.shape}, one label per"
                " replica"
            )
        units = np.array(
            [values[kept & (labels == c)].mean() for c in _unique(labels, kept)]
        )

    n = len(units)
    estimate, half = _mean_and_half_width(units, confidence)
    low, high = (-math.inf, math.inf) if n < 2 else (estimate - half, estimate + half)
    return Verdict(
        claim=claim,
        answer=_answer(low, high, side, tolerance),
        estimate=estimate,
        low=low,
        high=high,
        tolerance=float(tolerance),
        n=n,
        side=side,
        metric=metric,
        confidence=confidence,
        excluded=excluded,
        reason=""
        if n > 1
        else f"an interval needs two replicas, there is {n or 'none'}",
    )


def differences(
    values: ArrayLike,
    reference: ArrayLike,
    metric: Metric = ERROR,
    names: tuple[str, str] = ("values", "reference"),
) -> np.ndarray:
    """`values - reference` of each replica, both checked: what `paired` takes.

    Args:
      values: real `[R]`, in the metric's unit; nan where a replica diverged.
      reference: real `[R]`, of the same replicas in the same order.
      metric: whose bounds hold.
      names: what messages call the two.

    Returns:
      float64 `[R]`.

    Raises:
      ValueError: unequal shapes, or values outside of the metric's bounds.
    """
    a, b = _vector(names[0], values), _vector(names[1], reference)
    _same_shape(names[0], a, names[1], b)
    _within(names[0], a, metric)
    _within(names[1], b, metric)
    return a - b


def matching(
    values: ArrayLike,
    dense: ArrayLike,
    tolerance: float | None = None,
    *,
    metric: Metric = ERROR,
    replicas: Replicas = INDEPENDENT,
) -> Verdict:
    """Is the network as good as the dense one? Non-inferiority, replica by replica.

    The claim is `mean(values - dense) <= tolerance` where lower is better, and
    `mean(values - dense) >= -tolerance` where higher is. This is "matching" of Frankle
    et al. (2020), section 2, with the tolerance made explicit.

    Args:
      values: real `[R]`, in the metric's unit: by default errors, fractions in [0, 1];
        nan where a replica diverged.
      dense: `[R]`, of the dense network of the same replica.
      tolerance: in the metric's unit, at least 0; None for the metric's, which is 0.002
        (0.2 points) for errors.
      metric: what is judged.
      replicas: their names and clusters, and the confidence.

    Returns:
      The verdict; where higher is better its `tolerance` is `-tolerance`.

    Raises:
      ValueError: unequal shapes, values outside of the metric's bounds, or a negative
        tolerance.
    """
    limit = metric.tolerance if tolerance is None else tolerance
    limit = _not_negative("tolerance", limit)
    lower = metric.better == "lower"
    return paired(
        differences(values, dense, metric, ("values", "dense")),
        side="<=" if lower else ">=",
        tolerance=limit if lower else -limit,
        claim="matches dense",
        metric=metric,
        replicas=replicas,
    )


def winning(
    values: ArrayLike,
    dense: ArrayLike,
    *,
    rewind_step: int,
    tolerance: float | None = None,
    early_stop_step: ArrayLike | None = None,
    dense_early_stop_step: ArrayLike | None = None,
    metric: Metric = ERROR,
    replicas: Replicas = INDEPENDENT,
) -> Verdict:
    """Is this a winning ticket: as good as dense, as fast, from its initialisation?

    Frankle & Carbin (2019), section 1: trained alone *from its original
    initialisation*, the sub-network reaches at least the dense accuracy after at most
    as many steps. Their strict inequality on accuracy is `tolerance=0`.

    Args:
      values: see `matching`; at the same step (the last, or that of early stopping) in
        both arms.
      dense: `[R]`, of the dense network of the same replica.
      rewind_step: must be 0: later ones make matching tickets, not winning ones.
      tolerance: see `matching`.
      early_stop_step: `[R]`, step at which the validation loss was lowest. Without it
        the values must come from equally long training, and the claim about steps
        holds by construction.
      dense_early_stop_step: `[R]`, the same of the dense network; given with the one
        above or not at all. The claim is that the mean difference is at most 0.
      metric: what is judged.
      replicas: their names and clusters, and the confidence.

    Returns:
      The verdict; with early-stopping steps both claims combined by `combine`.

    Raises:
      ValueError: `rewind_step` is not 0, only one of the two arrays of steps is given,
        a negative step, or anything that `matching` refuses.
    """
    if rewind_step != 0:
        raise ValueError(
            f"rewind_step={rewind_step}; it must be 0, since a winning ticket starts from"
            " its initialisation. Use `matching` for later rewind steps"
        )
    good = matching(values, dense, tolerance, metric=metric, replicas=replicas)
    if early_stop_step is None and dense_early_stop_step is None:
        return good._replace(claim="winning ticket")
    if early_stop_step is None or dense_early_stop_step is None:
        missing = (
            "early_stop_step" if early_stop_step is None else "dense_early_stop_step"
        )
        raise ValueError(
            f"{missing}=None; it must be given if early_stop_step or"
            " dense_early_stop_step is, and only one is given"
        )
    names = ("early_stop_step", "dense_early_stop_step")
    _same_shape(
        names[0], _vector(names[0], early_stop_step), "values", np.asarray(values)
    )
    fast = paired(
        differences(early_stop_step, dense_early_stop_step, STEPS, names),
        side="<=",
        tolerance=0.0,
        claim="stops no later than dense",
        metric=STEPS,
        replicas=replicas,
    )
    return combine(good, fast, claim="winning ticket")


def better(
    values: ArrayLike,
    control: ArrayLike,
    margin: float = 0.0,
    *,
    claim: str = "better than the control",
    metric: Metric = ERROR,
    replicas: Replicas = INDEPENDENT,
) -> Verdict:
    """Is the network better than a control (reinit, random mask ...)? Superiority.

    The claim is `mean(values - control) < -margin` where lower is better, and
    `mean(values - control) > margin` where higher is.

    Args:
      values: see `matching`.
      control: `[R]`, of the control of the same replica.
      margin: in the metric's unit, at least 0, by which the control must be worse.
      claim: for `Verdict.claim`; name the control.
      metric: what is judged.
      replicas: their names and clusters, and the confidence.

    Returns:
      The verdict; where lower is better its `tolerance` is `-margin`.

    Raises:
      ValueError: unequal shapes, values outside of the metric's bounds, or a negative
        margin.
    """
    margin, lower = _not_negative("margin", margin), metric.better == "lower"
    return paired(
        differences(values, control, metric, ("values", "control")),
        side="<" if lower else ">",
        tolerance=-margin if lower else margin,
        claim=claim,
        metric=metric,
        replicas=replicas,
    )


STABLE_BELOW = 0.02
"""The LII below which training is called stable: 2 points of error (Frankle et al. 2020,
section 2)."""


def stable(
    lii: ArrayLike,
    threshold: float | None = None,
    *,
    metric: Metric = ERROR,
    replicas: Replicas = INDEPENDENT,
) -> Verdict:
    """Is training stable to its noise from here on: is the mean LII below a threshold?

    Frankle et al. (2020), section 2.

    Args:
      lii: `[P]`, linear interpolation instability of each pair of branches: how much
        worse the worst point between two ends is than the mean of both, in the metric's
        unit. Positive is worse whichever direction is better; errors have values in
        [-1, 1]. nan where an end diverged.
      threshold: in the metric's unit, at least 0. None is `STABLE_BELOW`, for errors
        and accuracies alone: no other metric has a customary one.
      metric: what was measured along the path.
      replicas: by pair: their names, the clusters `[P]`, which are the init (or replica)
        that each pair belongs to, and the confidence. Pairs that share an init are not
        independent: three pairs of each of three inits are n = 3.

    Returns:
      The verdict.

    Raises:
      ValueError: wrong shapes, values out of range, a negative threshold, or none for a
        metric that needs it.
    """
    if threshold is None:
        if metric.name not in (ERROR.name, ACCURACY.name):
            raise ValueError(
                f"threshold=None; it must be given for {metric.name}, in its own unit"
            )
        threshold = STABLE_BELOW
    values, span = _vector("lii", lii), metric.bounds[1] - metric.bounds[0]
    _within("lii", values, dataclasses.replace(metric, bounds=(-span, span)))
    return paired(
        values,
        side="<",
        tolerance=_not_negative("threshold", threshold),
        claim="stable",
        metric=metric,
        replicas=replicas,
    )


def missing(
    reason: str, *, side: Side, tolerance: float, claim: str, metric: Metric = ERROR
) -> Verdict:
    """The verdict on a claim whose control was not run: undecided, with the reason.

    Args:
      reason: why it was not run.
      side: of the tolerance that was claimed.
      tolerance: the bound of the claim.
      claim: in words.
      metric: what it is about.
    """
    return Verdict(
        claim=claim,
        answer="undecided",
        estimate=math.nan,
        low=-math.inf,
        high=math.inf,
        tolerance=float(tolerance),
        n=0,
        side=side,
        metric=metric,
        reason=reason,
    )


def combine(*verdicts: Verdict, claim: str | None = None) -> Verdict:
    """All of these claims at once: no if any is no, yes if all are yes.

    Every part keeps its own confidence: a conjunction needs no correction for the
    number of its parts, because it is claimed only where all of them are (the
    intersection-union test; Berger, 1982).

    Args:
      *verdicts: at least one.
      claim: for the result; by default the parts' claims joined by "and".

    Returns:
      A verdict with the numbers of the part that decides: the first with the answer of
      the whole. All of them are in `parts`.

    Raises:
      ValueError: there is nothing to combine.
    """
    if not verdicts:
        raise ValueError("verdicts=(); there must be at least one")
    answers = [v.answer for v in verdicts]
    whole: Answer = "yes"
    if "no" in answers:
        whole = "no"
    elif "undecided" in answers:
        whole = "undecided"
    decisive = verdicts[answers.index(whole)]
    reason = "" if len(verdicts) == 1 else f"decided by: {decisive.claim}"
    if decisive.reason:
        reason = f"{reason} ({decisive.reason})" if reason else decisive.reason
    excluded = dict.fromkeys(name for v in verdicts for name in v.excluded)
    return decisive._replace(
        claim=" and ".join(v.claim for v in verdicts) if claim is None else claim,
        excluded=tuple(excluded),
        reason=reason,
        parts=verdicts,
    )


class Family(NamedTuple):
    """Verdicts that are read together, such as those of one claim at every density.

    Attributes:
      verdicts: as they were given: each by an interval of its own.
      simultaneous: the same by intervals that hold all at once; see `family`. An answer
        is the one of `verdicts`, or undecided.
      number: of comparisons: of the intervals that were looked at, those of parts
        included. A claim without one (a control that was not run, fewer than two
        replicas, an exact count) is none.
      confidence: of each single interval, and of all simultaneous ones together.
    """

    verdicts: tuple[Verdict, ...]
    simultaneous: tuple[Verdict, ...]
    number: int
    confidence: float

    @property
    def counts(self) -> dict[Answer, int]:
        """How often each answer was given, each by its own interval."""
        return _counts(self.verdicts)

    @property
    def surviving(self) -> dict[Answer, int]:
        """How often each answer is given by the simultaneous intervals."""
        return _counts(self.simultaneous)

    @property
    def n(self) -> tuple[int, int]:
        """The fewest and the most independent units that a comparison rests on."""
        units = [v.n for one in self.verdicts for v in _compared(one)] or [0]
        return min(units), max(units)


def family(verdicts: Iterable[Verdict]) -> Family:
    """How many comparisons verdicts rest on, and which of them hold all at once.

    An interval of 95% misses its mean in one comparison of twenty, so of many answers
    some are wrong by chance. Here each of m intervals is computed anew at the confidence
    1 - (1 - c) / m, c that of the verdicts (Bonferroni's inequality; Dunn, Multiple
    Comparisons Among Means, 1961): with probability c or more all m hold their means at
    once, whatever the dependence between them, and so every yes and every no that they
    give is right at once. Holm's step-down procedure rejects more, but it tests one
    direction and has no such simple intervals, while a verdict is its interval.

    Parts of a combined verdict count as comparisons of their own: a no is given by any of
    them. What a verdict alone left undecided stays so.

    Args:
      verdicts: in any order, all of one confidence. Which they are should not depend on
        their answers.

    Returns:
      The family; the answers that were given stay as they are.

    Raises:
      ValueError: intervals of different confidence.
    """
    given = tuple(verdicts)
    compared = [v for one in given for v in _compared(one)]
    several = sorted({v.confidence for v in compared})
    if len(several) > 1:
        raise ValueError(
            f"confidence={', '.join(f'{c:g}' for c in several)}; it must be the same in"
            " all verdicts of a family"
        )
    confidence = several[0] if several else INDEPENDENT.confidence
    number = len(compared)
    if number < 2:
        return Family(given, given, number, confidence)
    each = 1 - (1 - confidence) / number
    wide = tuple(_at_confidence(one, each) for one in given)
    return Family(given, wide, number, confidence)


def _compared(verdict: Verdict) -> list[Verdict]:
    """The verdicts with an interval that one rests on: itself, or its parts."""
    if verdict.parts:
        return [v for part in verdict.parts for v in _compared(part)]
    return [verdict] if verdict.n > 1 else []


def _at_confidence(verdict: Verdict, confidence: float) -> Verdict:
    """The verdict by intervals of a higher confidence: its answer, or undecided."""
    if verdict.parts:
        parts = (_at_confidence(part, confidence) for part in verdict.parts)
        wide = combine(*parts, claim=verdict.claim)
    elif verdict.n > 1:
        before, after = (
            _quantile(c, verdict.n) for c in (verdict.confidence, confidence)
        )
        half = (verdict.high - verdict.estimate) * after / before
        low, high = verdict.estimate - half, verdict.estimate + half
        answer = _answer(low, high, verdict.side, verdict.tolerance)
        wide = verdict._replace(
            low=low, high=high, confidence=confidence, answer=answer
        )
    else:
        return verdict
    if verdict.answer in (wide.answer, "undecided"):
        return wide._replace(answer=verdict.answer, reason=verdict.reason)
    return wide._replace(answer="undecided")


def _counts(verdicts: Sequence[Verdict]) -> dict[Answer, int]:
    answers: tuple[Answer, ...] = ("yes", "no", "undecided")
    return {a: sum(v.answer == a for v in verdicts) for a in answers}


def _mean_and_half_width(units: np.ndarray, confidence: float) -> tuple[float, float]:
    n = len(units)
    if n == 0:
        return math.nan, math.inf
    if n == 1 or np.ptp(units) == 0:
        # The mean of equal numbers can round away from them; the spread of one is
        # unknown, not zero.
        return float(units[0]), math.inf if n == 1 else 0.0
    half = _quantile(confidence, n) * float(units.std(ddof=1)) / math.sqrt(n)
    return float(units.mean()), half


@functools.cache
def _quantile(confidence: float, n: int) -> float:
    """Of Student's t, for a two-sided interval of n units."""
    import scipy.special  # all of scipy.stats takes a second to load

    return float(scipy.special.stdtrit(n - 1, (1 + confidence) / 2))


def _answer(low: float, high: float, side: Side, tolerance: float) -> Answer:
    if side == "<=":
        yes, no = high <= tolerance, low > tolerance
    elif side == "<":
        yes, no = high < tolerance, low >= tolerance
    elif side == ">=":
        yes, no = low >= tolerance, high < tolerance
    else:
        yes, no = low > tolerance, high <= tolerance
    return "yes" if yes else "no" if no else "undecided"


def _unique(labels: np.ndarray, kept: np.ndarray) -> list:
    return list(dict.fromkeys(labels[kept].tolist()))


def _vector(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(
            f"{name}.shape={array.shape}; it must be one axis, [replicas]. Cluster further"
            " axes with `Replicas(clusters=...)`"
        )
    return array


def _same_shape(name: str, a: np.ndarray, other: str, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{name}.shape={a.shape}; it must be that of {other}, {b.shape}: one entry"
            " per replica in both, in the same order"
        )


def _within(name: str, values: np.ndarray, metric: Metric) -> None:
    low, high = metric.bounds
    outside = (values < low) | (values > high) | np.isinf(values)
    if outside.any():
        i = int(outside.argmax())
        valid = "a finite number"
        if math.isfinite(low) or math.isfinite(high):
            valid = f"between {low:g} and {high:g}"
        raise ValueError(
            f"{name}[{i}]={values[i]:g}; it must be {valid} ({metric.name}), or nan for a"
            " replica that diverged"
        )
