"""The checklist of Ma et al. (2021): is it a jackpot ticket, a secondary prize, or none?

Five conditions on a ticket, among them controls at other learning rates than its own: a
network may look like a winning ticket only because the dense one, or the one with fresh
weights, was trained at a rate that suits it badly.

References:
  Ma et al., Sanity Checks for Lottery Tickets: Does Your Winning Ticket Really Win the
  Jackpot? 2021, section 3.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from lottery_jax import verdicts
from lottery_jax.verdicts import (
    DENSITY,
    ERROR,
    INDEPENDENT,
    Metric,
    Replicas,
    Verdict,
)

Summary: TypeAlias = Literal["jackpot", "secondary prize", "none", "undecided"]

MA_TOLERANCE: Mapping[str, float] = {
    "cifar10": 0.005,
    "cifar100": 0.01,
    "imagenet": 0.015,
}
"""How far above the best dense network a jackpot ticket may be, by data set, as a
fraction (Ma et al. 2021)."""


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
        first = verdicts.combine(*self[:4]).answer
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


def ma_conditions(
    error: ArrayLike,
    *,
    lr: float,
    density: float,
    max_density: float,
    tolerance: float,
    dense_errors: Mapping[float, ArrayLike] | None = None,
    reinit_errors: Mapping[float, ArrayLike] | None = None,
    small_dense_error: ArrayLike | Mapping[float, ArrayLike] | None = None,
    margin: float = 0.005,
    same_lr_tolerance: float = 0.002,
    metric: Metric = ERROR,
    replicas: Replicas = INDEPENDENT,
) -> MaConditions:
    """The checklist of Ma et al. (2021): jackpot, secondary prize, or none.

    "At its best learning rate" is claimed of every learning rate that was tried: a
    ticket that beats reinit at each of them beats it at the best, and no rate has to be
    chosen on the noise of a few replicas. A rate at which every replica of the control
    diverged is left out and named. Claims about the best rate that are not refuted stay
    undecided where the control was run at fewer than two rates, since one rate does not
    show which is best.

    Args:
      error: `[R]`, of the ticket: errors, fractions in [0, 1], or what `metric` says.
      lr: learning rate the ticket was trained with; looked up in `dense_errors`.
      density: of the ticket, in [0, 1].
      max_density: the sparsity is nontrivial if `density <= max_density`, in [0, 1].
        The right bound depends on model and data: state the one you use.
      tolerance: how much worse than the best-lr dense network a jackpot may be
        (`MA_TOLERANCE` has the paper's numbers by data set).
      dense_errors: learning rate -> `[R]`, of the dense network. None: not run.
      reinit_errors: learning rate -> `[R]`, of the ticket's mask with fresh weights.
      small_dense_error: `[R]`, of a dense network with as many weights; or learning rate
        -> `[R]`, for a claim about its best one.
      margin: by how much reinit must be worse; the paper says 0.5 points.
      same_lr_tolerance: how much worse than dense at `lr` still matches.
      metric: what is judged. The defaults of margin and same_lr_tolerance, like
        tolerance, are in its unit and meant for errors.
      replicas: their names and clusters, and the confidence.

    Returns:
      Five verdicts and their `summary`. A control that was not run leaves its verdict
      undecided, with the reason.

    Raises:
      ValueError: unequal shapes, values outside of the metric's bounds, densities outside
        [0, 1], or a negative tolerance or margin.
    """
    for name, value in (("density", density), ("max_density", max_density)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}; it must be between 0 and 1")
    limits = {
        "tolerance": tolerance,
        "margin": margin,
        "same_lr_tolerance": same_lr_tolerance,
    }
    for name, value in limits.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"{name}={value}; it must be a finite number of at least 0"
            )
    lower = metric.better == "lower"
    # No worse than by a limit; better by a limit.
    no_worse: verdicts.Side = "<=" if lower else ">="
    beats: verdicts.Side = "<" if lower else ">"
    sign = 1.0 if lower else -1.0

    def compare(
        control: ArrayLike, name: str, side: verdicts.Side, limit: float, claim: str
    ) -> Verdict:
        return verdicts.paired(
            verdicts.differences(error, control, metric, ("error", name)),
            side=side,
            tolerance=limit,
            claim=claim,
            metric=metric,
            replicas=replicas,
        )

    def absent(reason: str, side: verdicts.Side, limit: float, claim: str) -> Verdict:
        return verdicts.missing(
            reason, side=side, tolerance=limit, claim=claim, metric=metric
        )

    def at_every_lr(
        controls: Mapping[float, ArrayLike] | None,
        name: str,
        side: verdicts.Side,
        limit: float,
        claim: str,
    ) -> Verdict:
        arms = {
            rate: np.asarray(arm, np.float64) for rate, arm in (controls or {}).items()
        }
        diverged = [rate for rate, arm in arms.items() if np.isnan(arm).all()]
        # The best rate comes first: its numbers are shown where all rates agree.
        tried = sorted(
            arms.keys() - set(diverged), key=lambda rate: sign * np.nanmean(arms[rate])
        )
        left_out = f"diverged at lr {', '.join(f'{r:g}' for r in diverged)}"
        if not tried:
            return absent(
                left_out if diverged else f"{name} not given", side, limit, claim
            )
        parts = [
            compare(
                arms[rate], f"{name}[{rate:g}]", side, limit, f"{claim}, lr {rate:g}"
            )
            for rate in tried
        ]
        verdict = verdicts.combine(*parts, claim=claim)
        reasons = [verdict.reason] if verdict.reason else []
        if len(tried) < 2 and verdict.answer != "no":
            verdict = verdict._replace(answer="undecided")
            reasons.append(f"{name} at lr {tried[0]:g} only, so its best is not known")
        if diverged:
            reasons.append(left_out)
        return verdict._replace(reason="; ".join(reasons))

    low_enough = density <= max_density
    claim_same = f"matches dense at lr {lr:g}"
    same_lr = sign * same_lr_tolerance
    return MaConditions(
        nontrivial=Verdict(
            claim="nontrivial sparsity",
            answer="yes" if low_enough else "no",
            estimate=float(density),
            low=float(density),
            high=float(density),
            tolerance=float(max_density),
            n=1,
            metric=DENSITY,
            confidence=1.0,
        ),
        beats_small_dense=(
            at_every_lr(
                small_dense_error,
                "small_dense_error",
                beats,
                0.0,
                "beats small dense at any lr",
            )
            if isinstance(small_dense_error, Mapping)
            else absent("small_dense_error not given", beats, 0.0, "beats small dense")
            if small_dense_error is None
            else compare(
                small_dense_error, "small_dense_error", beats, 0.0, "beats small dense"
            )
        ),
        beats_reinit=at_every_lr(
            reinit_errors,
            "reinit_errors",
            beats,
            -sign * margin,
            "beats reinit at any lr",
        ),
        matches_same_lr=(
            absent(f"dense_errors has no lr {lr:g}", no_worse, same_lr, claim_same)
            if dense_errors is None or lr not in dense_errors
            else compare(
                dense_errors[lr], "dense_errors", no_worse, same_lr, claim_same
            )
        ),
        matches_best_lr=at_every_lr(
            dense_errors,
            "dense_errors",
            no_worse,
            sign * tolerance,
            "matches dense at its best lr",
        ),
    )
