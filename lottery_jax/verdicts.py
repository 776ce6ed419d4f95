"""Verdicts: winning, matching, stable ... as yes, no or undecided, with an interval.

Every verdict rests on a paired t interval over independent replicas. A claim such as
"no more than 0.2 points above dense" is answered yes if the whole interval lies on the
claimed side of the tolerance, no if the whole interval lies on the other side, and
undecided otherwise. Saying yes to a 95% interval therefore errs at most 2.5% of the
time in the claim's favour. Undecided is the honest answer of few replicas: three with
a spread of 0.3 points have a half-width of 0.75 points.

Errors are fractions in [0, 1] and differences are always `error - reference`, so that
negative is good; only `Verdict.describe` speaks in points. Replicas that diverged (nan
in either arm) are left out, by name, and the verdict says so. Missing controls and too
few replicas make a verdict undecided; malformed input raises `ValueError`.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

Answer: TypeAlias = Literal["yes", "no", "undecided"]
Side: TypeAlias = Literal["<=", "<", ">=", ">"]
Summary: TypeAlias = Literal["jackpot", "secondary prize", "none", "undecided"]

MA_TOLERANCE: Mapping[str, float] = {
    "cifar10": 0.005,
    "cifar100": 0.01,
    "imagenet": 0.015,
}
"""How far above the best dense network a jackpot ticket may be, by data set, as a
fraction (Ma et al. 2021)."""


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
      unit: of estimate, low, high and tolerance: "error" (a fraction), "steps" or
        "density".
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
    unit: str = "error"
    confidence: float = 0.95
    excluded: tuple[Hashable, ...] = ()
    reason: str = ""
    parts: tuple["Verdict", ...] = ()

    def describe(self) -> str:
        """The verdict in one line; errors in points (hundredths)."""
        scale, digits, unit = 1.0, 4, f" {self.unit}"
        if self.unit == "error":
            scale, digits, unit = 100.0, 2, " points"
        elif self.unit == "steps":
            digits = 1

        def show(value: float) -> str:
            return f"{scale * value:+.{digits}f}"

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
    """A verdict by field names, and its parts too, for JSON."""
    return verdict._asdict() | {"parts": [as_dict(part) for part in verdict.parts]}


class MaConditions(NamedTuple):
    """The five conditions of Ma et al. (2021), one verdict each.

    Attributes:
      nontrivial: the density is low enough to be of interest.
      beats_small_dense: a dense network of as many weights does worse.
      beats_reinit: the same mask with fresh weights does clearly worse, whatever its
        learning rate.
      matches_same_lr: no worse than dense at the ticket's own learning rate.
      matches_best_lr: close to dense at whichever learning rate suits dense best.
    """

    nontrivial: Verdict
    beats_small_dense: Verdict
    beats_reinit: Verdict
    matches_same_lr: Verdict
    matches_best_lr: Verdict

    @property
    def summary(self) -> Summary:
        """All five yes is a jackpot; all but the last, and that one no, is a secondary
        prize; a no among the first four is none; anything else is undecided."""
        first = combine(*self[:4]).answer
        if first == "no":
            return "none"
        last = self.matches_best_lr.answer
        if first == "undecided" or last == "undecided":
            return "undecided"
        return "jackpot" if last == "yes" else "secondary prize"

    def describe(self) -> str:
        """The summary and the five verdicts, one line each."""
        return "\n".join([self.summary, *(f"  {v.describe()}" for v in self)])

    def __str__(self) -> str:
        return self.describe()


def paired(
    difference: ArrayLike,
    *,
    side: Side,
    tolerance: float,
    claim: str,
    clusters: ArrayLike | None = None,
    names: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    unit: str = "error",
) -> Verdict:
    """Compares a mean paired difference with a tolerance, by a t interval.

    Args:
      difference: real `[R]`, one number per replica; nan marks one that diverged.
      side: the claim is `mean difference <side> tolerance`. With "<=" an interval that
        ends exactly at the tolerance still lies on the claimed side, with "<" it does
        not.
      tolerance: finite, in the unit of `difference`.
      claim: what is claimed, for `Verdict.claim`.
      clusters: labels `[R]` of the independent unit (the init, say) that each replica
        belongs to: replicas are averaged within their cluster first, so three data
        orders of three inits are n = 3. None: every replica is independent.
      names: `R` names for `Verdict.excluded`; positions by default.
      confidence: of the two-sided interval, in (0, 1).
      unit: for `Verdict.unit`.

    Returns:
      The verdict. With no unit or one unit left it is undecided, and the interval
      infinite. Without any spread the interval is the point itself.

    Raises:
      ValueError: wrong shapes, an infinite difference, an unknown side, or a tolerance
        or confidence out of range.
    """
    values = _vector("difference", difference)
    if np.isinf(values).any():
        raise ValueError(
            f"difference[{int(np.isinf(values).argmax())}] is infinite; valid: finite"
            " numbers, or nan for a replica that diverged"
        )
    if side not in ("<=", "<", ">=", ">"):
        raise ValueError(f"side is {side!r}; valid: '<=', '<', '>=', '>'")
    if not math.isfinite(tolerance):
        raise ValueError(f"tolerance is {tolerance}; valid: a finite number")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; valid: between 0 and 1")
    if names is not None and len(names) != len(values):
        raise ValueError(f"names has length {len(names)}; valid: {len(values)}")

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
                f"clusters has shape {labels.shape}; valid: {values.shape}, one label"
                " per replica"
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
        unit=unit,
        confidence=confidence,
        excluded=excluded,
        reason=""
        if n > 1
        else f"an interval needs two replicas, there is {n or 'none'}",
    )


def matching(
    error: ArrayLike,
    dense_error: ArrayLike,
    tolerance: float = 0.002,
    *,
    clusters: ArrayLike | None = None,
    names: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Verdict:
    """Is the network as good as the dense one? Non-inferiority, replica by replica.

    The claim is `mean(error - dense_error) <= tolerance`. This is "matching" of Frankle
    et al. (2020), section 2, with the tolerance made explicit.

    Args:
      error: `[R]`, fractions in [0, 1]; nan where a replica diverged.
      dense_error: `[R]`, error of the dense network of the same replica.
      tolerance: fraction, at least 0; 0.002 is 0.2 points.
      clusters: see `paired`.
      names: see `paired`.
      confidence: see `paired`.

    Returns:
      The verdict.

    Raises:
      ValueError: unequal shapes, errors outside [0, 1] or a negative tolerance.
    """
    return paired(
        _differences("error", error, "dense_error", dense_error),
        side="<=",
        tolerance=_not_negative("tolerance", tolerance),
        claim="matches dense",
        clusters=clusters,
        names=names,
        confidence=confidence,
    )


def winning(
    error: ArrayLike,
    dense_error: ArrayLike,
    *,
    rewind_step: int,
    tolerance: float = 0.002,
    early_stop_step: ArrayLike | None = None,
    dense_early_stop_step: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    names: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Verdict:
    """Is this a winning ticket: as good as dense, as fast, from its initialisation?

    Frankle & Carbin (2019), section 1: trained alone *from its original
    initialisation*, the sub-network reaches at least the dense accuracy after at most
    as many steps. Their strict inequality on accuracy is `tolerance=0`.

    Args:
      error: `[R]`, fractions in [0, 1], at the same step (the last, or that of early
        stopping) in both arms.
      dense_error: `[R]`, of the dense network of the same replica.
      rewind_step: must be 0: later ones make matching tickets, not winning ones.
      tolerance: fraction, at least 0.
      early_stop_step: `[R]`, step at which the validation loss was lowest. Without it
        the errors must come from equally long training, and the claim about steps
        holds by construction.
      dense_early_stop_step: `[R]`, the same of the dense network; given with the one
        above or not at all. The claim is that the mean difference is at most 0.
      clusters: see `paired`.
      names: see `paired`.
      confidence: see `paired`.

    Returns:
      The verdict; with early-stopping steps both claims combined by `combine`.

    Raises:
      ValueError: `rewind_step` is not 0, only one of the two arrays of steps is given,
        a negative step, or anything that `matching` refuses.
    """
    if rewind_step != 0:
        raise ValueError(
            f"rewind_step is {rewind_step}; valid: 0, since a winning ticket starts"
            " from its initialisation. Use `matching` for later rewind steps"
        )
    good = matching(
        error,
        dense_error,
        tolerance,
        clusters=clusters,
        names=names,
        confidence=confidence,
    )
    if early_stop_step is None and dense_early_stop_step is None:
        return good._replace(claim="winning ticket")
    if early_stop_step is None or dense_early_stop_step is None:
        raise ValueError(
            "early_stop_step and dense_early_stop_step: only one is given; valid: both"
            " or neither"
        )
    steps = _vector("early_stop_step", early_stop_step)
    dense_steps = _vector("dense_early_stop_step", dense_early_stop_step)
    _same_shape("early_stop_step", steps, "dense_early_stop_step", dense_steps)
    _same_shape("early_stop_step", steps, "error", np.asarray(error))
    for name, values in (
        ("early_stop_step", steps),
        ("dense_early_stop_step", dense_steps),
    ):
        _within(name, values, 0, math.inf)
    fast = paired(
        steps - dense_steps,
        side="<=",
        tolerance=0.0,
        claim="stops no later than dense",
        clusters=clusters,
        names=names,
        confidence=confidence,
        unit="steps",
    )
    return combine(good, fast, claim="winning ticket")


def better(
    error: ArrayLike,
    control_error: ArrayLike,
    margin: float = 0.0,
    *,
    claim: str = "better than the control",
    clusters: ArrayLike | None = None,
    names: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Verdict:
    """Is the network better than a control (reinit, random mask ...)? Superiority.

    The claim is `mean(error - control_error) < -margin`.

    Args:
      error: `[R]`, fractions in [0, 1]; nan where a replica diverged.
      control_error: `[R]`, error of the control of the same replica.
      margin: fraction, at least 0, by which the control must be worse.
      claim: for `Verdict.claim`; name the control.
      clusters: see `paired`.
      names: see `paired`.
      confidence: see `paired`.

    Returns:
      The verdict; its `tolerance` is `-margin`.

    Raises:
      ValueError: unequal shapes, errors outside [0, 1] or a negative margin.
    """
    return paired(
        _differences("error", error, "control_error", control_error),
        side="<",
        tolerance=-_not_negative("margin", margin),
        claim=claim,
        clusters=clusters,
        names=names,
        confidence=confidence,
    )


def stable(
    lii: ArrayLike,
    threshold: float = 0.02,
    *,
    clusters: ArrayLike | None = None,
    names: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Verdict:
    """Is training stable to its noise from here on: is the mean LII below a threshold?

    Frankle et al. (2020), section 2, with a threshold of 2 points.

    Args:
      lii: `[P]`, linear interpolation instability of each pair of branches, fractions
        in [-1, 1]; nan where an end diverged.
      threshold: fraction, at least 0.
      clusters: `[P]`, the init (or replica) that each pair belongs to. Pairs that share
        one are not independent: three pairs of each of three inits are n = 3.
      names: see `paired`.
      confidence: see `paired`.

    Returns:
      The verdict.

    Raises:
      ValueError: wrong shapes, values out of range or a negative threshold.
    """
    values = _vector("lii", lii)
    _within("lii", values, -1, 1)
    return paired(
        values,
        side="<",
        tolerance=_not_negative("threshold", threshold),
        claim="stable",
        clusters=clusters,
        names=names,
        confidence=confidence,
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
        raise ValueError("verdicts is empty; valid: at least one verdict")
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


def ma_conditions(
    error: ArrayLike,
    *,
    lr: float,
    density: float,
    max_density: float,
    tolerance: float,
    dense_errors: Mapping[float, ArrayLike] | None = None,
    reinit_errors: Mapping[float, ArrayLike] | None = None,
    small_dense_error: ArrayLike | None = None,
    margin: float = 0.005,
    same_lr_tolerance: float = 0.002,
    clusters: ArrayLike | None = None,
    names: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> MaConditions:
    """The checklist of Ma et al. (2021): jackpot, secondary prize, or none.

    "At its best learning rate" is claimed of every learning rate that was tried: a
    ticket that beats reinit at each of them beats it at the best, and no rate has to be
    chosen on the noise of a few replicas. A rate at which every replica of the control
    diverged is left out and named. Claims about the best rate that are not refuted stay
    undecided where the control was run at fewer than two rates, since one rate does not
    show which is best.

    Args:
      error: `[R]`, fractions in [0, 1], of the ticket.
      lr: learning rate the ticket was trained with; looked up in `dense_errors`.
      density: of the ticket, in [0, 1].
      max_density: the sparsity is nontrivial if `density <= max_density`, in [0, 1].
        The right bound depends on model and data: state the one you use.
      tolerance: fraction; how far above the best-lr dense network a jackpot may be
        (`MA_TOLERANCE` has the paper's numbers by data set).
      dense_errors: learning rate -> `[R]`, of the dense network. None: not run.
      reinit_errors: learning rate -> `[R]`, of the ticket's mask with fresh weights.
      small_dense_error: `[R]`, of a dense network with as many weights.
      margin: fraction by which reinit must be worse; the paper says 0.5 points.
      same_lr_tolerance: fraction; how far above dense at `lr` still matches.
      clusters: see `paired`.
      names: see `paired`.
      confidence: see `paired`.

    Returns:
      Five verdicts and their `summary`. A control that was not run leaves its verdict
      undecided, with the reason.

    Raises:
      ValueError: unequal shapes, errors or densities outside [0, 1], or a negative
        tolerance or margin.
    """
    ticket = _vector("error", error)
    _within("error", ticket, 0, 1)
    for name, value in (("density", density), ("max_density", max_density)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; valid: between 0 and 1")
    _not_negative("tolerance", tolerance)
    _not_negative("margin", margin)
    _not_negative("same_lr_tolerance", same_lr_tolerance)

    def compare(
        control: ArrayLike, name: str, side: Side, limit: float, claim: str
    ) -> Verdict:
        return paired(
            _differences("error", ticket, name, control),
            side=side,
            tolerance=limit,
            claim=claim,
            clusters=clusters,
            names=names,
            confidence=confidence,
        )

    def at_every_lr(
        controls: Mapping[float, ArrayLike] | None,
        name: str,
        side: Side,
        limit: float,
        claim: str,
    ) -> Verdict:
        arms = {rate: _vector(name, arm) for rate, arm in (controls or {}).items()}
        diverged = [rate for rate, arm in arms.items() if np.isnan(arm).all()]
        # The best rate comes first: its numbers are shown where all rates agree.
        tried = sorted(arms.keys() - set(diverged), key=lambda r: np.nanmean(arms[r]))
        left_out = f"diverged at lr {', '.join(f'{r:g}' for r in diverged)}"
        if not tried:
            return _missing(
                left_out if diverged else f"{name} not given", side, limit, claim
            )
        parts = [
            compare(
                arms[rate], f"{name}[{rate:g}]", side, limit, f"{claim}, lr {rate:g}"
            )
            for rate in tried
        ]
        verdict = combine(*parts, claim=claim)
        reasons = [verdict.reason] if verdict.reason else []
        if len(tried) < 2 and verdict.answer != "no":
            verdict = verdict._replace(answer="undecided")
            reasons.append(f"{name} at lr {tried[0]:g} only, so its best is not known")
        if diverged:
            reasons.append(left_out)
        return verdict._replace(reason="; ".join(reasons))

    low_enough = density <= max_density
    claim_same = f"matches dense at lr {lr:g}"
    return MaConditions(
        nontrivial=Verdict(
            claim="nontrivial sparsity",
            answer="yes" if low_enough else "no",
            estimate=float(density),
            low=float(density),
            high=float(density),
            tolerance=float(max_density),
            n=1,
            unit="density",
            confidence=1.0,
        ),
        beats_small_dense=(
            _missing("small_dense_error not given", "<", 0.0, "beats small dense")
            if small_dense_error is None
            else compare(
                small_dense_error, "small_dense_error", "<", 0.0, "beats small dense"
            )
        ),
        beats_reinit=at_every_lr(
            reinit_errors, "reinit_errors", "<", -margin, "beats reinit at any lr"
        ),
        matches_same_lr=(
            _missing(
                f"dense_errors has no lr {lr:g}", "<=", same_lr_tolerance, claim_same
            )
            if dense_errors is None or lr not in dense_errors
            else compare(
                dense_errors[lr], "dense_errors", "<=", same_lr_tolerance, claim_same
            )
        ),
        matches_best_lr=at_every_lr(
            dense_errors,
            "dense_errors",
            "<=",
            tolerance,
            "matches dense at its best lr",
        ),
    )


def _mean_and_half_width(units: np.ndarray, confidence: float) -> tuple[float, float]:
    n = len(units)
    if n == 0:
        return math.nan, math.inf
    if n == 1 or np.ptp(units) == 0:
        # The mean of equal numbers can round away from them; the spread of one is
        # unknown, not zero.
        return float(units[0]), math.inf if n == 1 else 0.0
    import scipy.stats

    quantile = float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1))
    return float(units.mean()), quantile * float(units.std(ddof=1)) / math.sqrt(n)


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


def _missing(reason: str, side: Side, tolerance: float, claim: str) -> Verdict:
    return Verdict(
        claim=claim,
        answer="undecided",
        estimate=math.nan,
        low=-math.inf,
        high=math.inf,
        tolerance=float(tolerance),
        n=0,
        side=side,
        reason=reason,
    )


def _unique(labels: np.ndarray, kept: np.ndarray) -> list:
    return list(dict.fromkeys(labels[kept].tolist()))


def _vector(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}; valid: one axis, [replicas]. Cluster"
            " further axes with `clusters`"
        )
    return array


def _same_shape(name: str, a: np.ndarray, other: str, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{name} has shape {a.shape} and {other} {b.shape}; valid: one entry per"
            " replica in both, in the same order"
        )


def _within(name: str, values: np.ndarray, low: float, high: float) -> None:
    outside = (values < low) | (values > high) | np.isinf(values)
    if outside.any():
        i = int(outside.argmax())
        raise ValueError(
            f"{name}[{i}] is {values[i]:g}; valid: between {low:g} and {high:g}, or nan"
            " for a replica that diverged"
        )


def _differences(
    name: str, error: ArrayLike, other: str, reference: ArrayLike
) -> np.ndarray:
    a, b = _vector(name, error), _vector(other, reference)
    _same_shape(name, a, other, b)
    _within(name, a, 0, 1)
    _within(other, b, 0, 1)
    return a - b


def _not_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}; valid: a fraction of at least 0")
    return float(value)
