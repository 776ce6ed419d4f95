"""Verdicts: intervals against SciPy, and what an answer may and may not depend on."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lottery_jax import ma as ma_et_al
from lottery_jax import verdicts
from lottery_jax.verdicts import Metric, Replicas

ORDER = {"no": 0, "undecided": 1, "yes": 2}

# Multiples of 1/1024 add and shift without rounding.
GRID = st.integers(-200, 200).map(lambda i: i / 1024)
VALUES = st.lists(GRID, min_size=2, max_size=8)
SIDES = st.sampled_from(["<=", "<", ">=", ">"])


def paired(difference, side="<=", tolerance=0.0, **who):
    return verdicts.paired(
        difference,
        side=side,
        tolerance=tolerance,
        claim="claim",
        replicas=Replicas(**who),
    )


# The interval


@settings(deadline=None)
@given(VALUES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_scipys(values, confidence):
    assume(len(set(values)) > 1)
    verdict = paired(values, confidence=confidence)
    low, high = scipy.stats.t.interval(
        confidence, len(values) - 1, np.mean(values), scipy.stats.sem(values)
    )
    assert verdict.estimate == pytest.approx(np.mean(values), abs=1e-12)
    assert verdict.low == pytest.approx(low, abs=1e-12)
    assert verdict.high == pytest.approx(high, abs=1e-12)
    assert verdict.n == len(values)


def test_interval_by_hand():
    # 4.3027 is the tabulated 97.5% quantile of t with two degrees of freedom.
    verdict = paired([0.001, 0.002, 0.006])
    half = 4.3027 * math.sqrt((4 + 1 + 9) / 2) * 1e-3 / math.sqrt(3)
    assert verdict.low == pytest.approx(0.003 - half, rel=1e-4)
    assert verdict.high == pytest.approx(0.003 + half, rel=1e-4)


def test_three_replicas_with_a_spread_of_0_3_points():
    verdict = paired([-0.003, 0.0, 0.003])
    assert verdict.high == pytest.approx(0.0075, abs=1e-4)


@pytest.mark.parametrize(
    ("side", "answers"),
    [
        ("<=", ["yes", "undecided", "no"]),
        ("<", ["yes", "undecided", "no"]),
        (">=", ["no", "undecided", "yes"]),
        (">", ["no", "undecided", "yes"]),
    ],
)
def test_the_whole_interval_decides(side, answers):
    below, across, above = ([c - 0.01, c, c + 0.01] for c in (-0.1, 0.0, 0.1))
    assert [paired(v, side).answer for v in (below, across, above)] == answers


@pytest.mark.parametrize(
    ("side", "answer"), [("<=", "yes"), ("<", "no"), (">=", "yes"), (">", "no")]
)
def test_without_spread_the_point_decides(side, answer):
    verdict = paired([0.1, 0.1, 0.1], side, tolerance=0.1)
    assert (verdict.low, verdict.high) == (0.1, 0.1)
    assert verdict.answer == answer


@settings(deadline=None)
@given(VALUES, SIDES, GRID, GRID)
def test_monotone_in_a_shift(values, side, tolerance, shift):
    lower, upper = sorted((0.0, shift))
    moved = [
        ORDER[paired(np.array(values) + by, side, tolerance).answer]
        for by in (lower, upper)
    ]
    if side in ("<=", "<"):
        moved.reverse()
    assert moved[0] <= moved[1]


@settings(deadline=None)
@given(VALUES, GRID, GRID)
def test_more_tolerance_never_turns_yes_into_no(values, tolerance, more):
    strict, lenient = (
        ORDER[paired(values, "<=", t).answer]
        for t in (tolerance, tolerance + abs(more))
    )
    assert strict <= lenient


@settings(deadline=None)
@given(st.data())
def test_order_of_replicas_does_not_matter(data):
    values = data.draw(st.lists(GRID | st.just(math.nan), min_size=1, max_size=8))
    clusters = data.draw(
        st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values))
    )
    order = data.draw(st.permutations(range(len(values))))
    names = [f"replica {i}" for i in range(len(values))]
    one = paired(values, clusters=clusters, names=names)
    other = paired(
        [values[i] for i in order],
        clusters=[clusters[i] for i in order],
        names=[names[i] for i in order],
    )
    assert one.n == other.n
    assert set(one.excluded) == set(other.excluded)
    np.testing.assert_allclose(one[2:5], other[2:5], atol=1e-12)


@settings(deadline=None)
@given(VALUES, GRID)
def test_sides_are_opposites(values, tolerance):
    opposite = {"yes": "no", "no": "yes", "undecided": "undecided"}
    for side, other in (("<=", ">"), ("<", ">=")):
        answer = paired(values, side, tolerance).answer
        assert paired(values, other, tolerance).answer == opposite[answer]


# Few replicas, diverged replicas, clusters


@pytest.mark.parametrize(
    "difference", [[], [math.nan, math.nan], [-0.5], [math.nan, -0.5]]
)
def test_too_few_replicas_are_undecided(difference):
    verdict = paired(difference)
    assert verdict.answer == "undecided"
    assert (verdict.low, verdict.high) == (-math.inf, math.inf)
    assert verdict.n == np.isfinite(difference).sum()
    assert "two replicas" in verdict.describe()


def test_diverged_replicas_are_left_out_by_name():
    dense = [0.1, 0.2, 0.3, math.nan]
    error = [0.1, math.nan, 0.31, 0.4]
    verdict = verdicts.matching(error, dense, replicas=Replicas(["a", "b", "c", "d"]))
    assert verdict.excluded == ("b", "d")
    assert verdict[:5] == verdicts.matching([0.1, 0.31], [0.1, 0.3])[:5]
    assert "diverged: b, d" in verdict.describe()
    assert verdicts.matching(error, dense).excluded == (1, 3)


def test_clusters_are_averaged_first():
    inits = np.repeat(["x", "y", "z"], 3)
    lii = np.array([1, 2, 3, 11, 12, 13, 21, 22, 23]) / 1000
    means = verdicts.stable([0.002, 0.012, 0.022])
    clustered = verdicts.stable(lii, replicas=Replicas(clusters=inits))
    np.testing.assert_allclose(clustered[2:5], means[2:5], rtol=1e-12)
    assert clustered.n == 3
    assert verdicts.stable(lii).answer == "yes"
    assert clustered.answer == "undecided"


def test_a_diverged_order_leaves_its_cluster_in_place():
    verdict = paired([0.1, math.nan, 0.3, math.nan], clusters=[0, 0, 1, 2])
    assert verdict.n == 2
    assert verdict.estimate == pytest.approx(0.2)
    assert verdict.excluded == (1, 3)


# The claims


def test_matching_is_non_inferiority():
    dense = np.array([0.10, 0.12, 0.11])
    noise = np.array([-1, 0, 1]) * 1e-4
    assert verdicts.matching(dense + 0.001 + noise, dense).answer == "yes"
    assert verdicts.matching(dense + 0.002 + noise, dense).answer == "undecided"
    assert verdicts.matching(dense + 0.003 + noise, dense).answer == "no"
    assert verdicts.matching(dense - 0.05 + noise, dense).answer == "yes"


def test_pairing_removes_what_replicas_share():
    dense = np.array([0.1, 0.3, 0.5])
    assert verdicts.matching(dense, dense).answer == "yes"
    assert verdicts.matching(dense[::-1], dense).answer == "undecided"


def test_equal_is_not_better():
    dense = np.array([0.1, 0.3, 0.5])
    assert verdicts.better(dense, dense).answer == "no"
    assert verdicts.better(dense - 0.01, dense).answer == "yes"
    assert verdicts.better(dense - 0.01, dense, margin=0.02).answer == "no"


def test_winning_needs_rewind_step_0():
    with pytest.raises(ValueError, match="rewind_step=500; it must"):
        verdicts.winning([0.1], [0.1], rewind_step=500)


@pytest.mark.parametrize(
    ("error", "steps", "answer"),
    [(0.0, -100, "yes"), (0.0, 100, "no"), (0.1, -100, "no"), (0.1, 100, "no")],
)
def test_winning_is_as_good_and_as_fast(error, steps, answer):
    dense, dense_steps = np.array([0.10, 0.12, 0.11]), np.array([900, 1000, 1100])
    verdict = verdicts.winning(
        dense + error,
        dense,
        rewind_step=0,
        early_stop_step=dense_steps + steps,
        dense_early_stop_step=dense_steps,
    )
    assert verdict.answer == answer
    assert [part.unit for part in verdict.parts] == ["error", "steps"]


def test_winning_without_steps_is_matching():
    dense = np.array([0.10, 0.12, 0.11])
    verdict = verdicts.winning(dense, dense, rewind_step=0)
    assert verdict[1:] == verdicts.matching(dense, dense)[1:]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["yes", "no", "undecided"]), min_size=1, max_size=4))
def test_combine_is_and(answers):
    parts = [paired([0.0, 0.0])._replace(answer=a, claim=a) for a in answers]
    verdict = verdicts.combine(*parts)
    assert ORDER[verdict.answer] == min(ORDER[a] for a in answers)
    assert verdict.parts == tuple(parts)


def test_combine_keeps_who_was_excluded():
    parts = [paired([0.0, math.nan], names=n) for n in (["a", "b"], ["a", "c"])]
    assert verdicts.combine(*parts).excluded == ("b", "c")


def test_describe_speaks_in_points():
    dense = np.array([0.10, 0.12, 0.11])
    line = str(verdicts.matching(dense + 0.001, dense))
    assert "\n" not in line
    assert line.startswith(
        "matches dense: yes; +0.10 points, 95% interval [+0.10, +0.10]"
    )
    assert "<= +0.20" in line and "n = 3" in line


# Other metrics

PERPLEXITY = Metric("perplexity", "", "lower", tolerance=0.5, bounds=(1, math.inf))
RETURN = Metric("return", "reward", "higher", tolerance=5.0)
F1 = Metric("f1", "points", "higher", tolerance=0.002, bounds=(0, 1), scale=100)


def test_errors_are_what_is_judged_unless_said():
    dense = np.array([0.10, 0.12, 0.11])
    for found in (
        verdicts.matching(dense, dense),
        verdicts.better(dense - 0.01, dense),
        verdicts.stable(dense / 10),
    ):
        assert found.metric == verdicts.ERROR and found.unit == "error"
        assert verdicts.as_dict(found)["unit"] == "error"
        assert " points" in str(found)
    assert (
        verdicts.matching(dense, dense).tolerance == verdicts.ERROR.tolerance == 0.002
    )
    assert verdicts.as_dict(verdicts.matching(dense, dense)).keys() == {
        *("claim", "answer", "estimate", "low", "high", "tolerance", "n", "side"),
        *("unit", "confidence", "excluded", "reason", "parts"),
    }


@settings(deadline=None)
@given(VALUES, VALUES, st.integers(0, 20).map(lambda i: i / 1024))
def test_errors_and_accuracies_have_the_same_verdicts(one, other, tolerance):
    number = min(len(one), len(other))
    error, dense = (0.5 + np.array(v[:number]) for v in (one, other))
    for claim in (verdicts.matching, verdicts.better):
        low = claim(error, dense, tolerance)
        high = claim(1 - error, 1 - dense, tolerance, metric=verdicts.ACCURACY)
        assert low.answer == high.answer
        np.testing.assert_allclose(
            [high.estimate, -high.high, -high.low, high.tolerance],
            [-low.estimate, low.low, low.high, -low.tolerance],
            atol=1e-12,
        )


def test_each_metric_is_judged_in_its_own_unit_and_direction():
    noise = np.array([-1, 0, 1]) * 1e-3
    assert (
        verdicts.matching(30.4 + noise, [30.0] * 3, metric=PERPLEXITY).answer == "yes"
    )
    assert verdicts.matching(30.6 + noise, [30.0] * 3, metric=PERPLEXITY).answer == "no"
    assert verdicts.matching(190 + noise, [194.0] * 3, metric=RETURN).answer == "yes"
    assert verdicts.matching(190 + noise, [196.0] * 3, metric=RETURN).answer == "no"
    assert verdicts.better(190 + noise, [194.0] * 3, metric=RETURN).answer == "no"
    assert verdicts.better(-3 + noise, [-9.0] * 3, metric=RETURN).answer == "yes"
    assert verdicts.better(-3 + noise, [-9.0] * 3, 7, metric=RETURN).answer == "no"
    assert verdicts.matching([0.9] * 3, [0.901] * 3, metric=F1).answer == "yes"
    assert verdicts.stable(2 + noise, 3.0, metric=RETURN).answer == "yes"
    won = verdicts.winning([8.0] * 3, [7.0] * 3, rewind_step=0, metric=RETURN)
    assert won.answer == "yes"


def test_verdicts_speak_in_the_unit_of_their_metric():
    def line(values, dense, metric):
        return str(verdicts.matching(values, dense, metric=metric))

    assert line([30.25] * 2, [30.0] * 2, PERPLEXITY) == (
        "matches dense: yes; +0.25, 95% interval [+0.25, +0.25], claimed <= +0.50, n = 2"
    )
    assert line([190.0] * 2, [194.5] * 2, RETURN) == (
        "matches dense: yes; -4.50 reward, 95% interval [-4.50, -4.50], claimed >= -5.00,"
        " n = 2"
    )
    assert "-0.10 points" in line([0.9] * 2, [0.901] * 2, F1)
    assert (PERPLEXITY.label, RETURN.label) == ("perplexity", "return (reward)")
    np.testing.assert_allclose(F1.shown([0.5, 1.0]), [50, 100])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: verdicts.matching([0.5], [2.0], metric=PERPLEXITY),
            r"values\[0\]=0.5; it must be between 1 and inf \(perplexity\)",
        ),
        (lambda: verdicts.better([0.5], [1.2], metric=F1), r"control\[0\]=1.2"),
        (lambda: verdicts.better([math.inf], [0.0], metric=RETURN), "a finite number"),
        (lambda: verdicts.stable([0.1], metric=RETURN), "threshold=None; .*return"),
        (lambda: verdicts.stable([1.1], metric=verdicts.ACCURACY), r"lii\[0\]=1.1"),
        (lambda: Metric("f1", "", "more", 0.1), "better='more'; it must be one of"),
        (lambda: Metric("f1", "", "higher", -1), "tolerance=-1; it must"),
        (lambda: Metric("f1", "", "higher", 0, (1, 0)), r"bounds=\(1, 0\); it must"),
        (lambda: Metric("f1", "", "higher", 0, scale=0), "scale=0; it must"),
    ],
)
def test_impossible_values_and_metrics_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Families


def test_simultaneous_intervals_are_bonferronis():
    several = [
        np.array([0.001, 0.002, 0.006]),
        np.array([-0.02, -0.021, -0.019, -0.02]),
    ]
    found = verdicts.family(paired(values) for values in several)
    assert (found.number, found.confidence, found.n) == (2, 0.95, (3, 4))
    assert found.verdicts == tuple(paired(values) for values in several)
    for values, one in zip(several, found.simultaneous):
        low, high = scipy.stats.t.interval(
            1 - 0.05 / 2, len(values) - 1, np.mean(values), scipy.stats.sem(values)
        )
        assert (one.low, one.high) == pytest.approx((low, high), rel=1e-9)
        assert one.confidence == pytest.approx(0.975)


def test_some_answers_do_not_survive_their_number():
    # Half-widths 4.30 and, at 1 - 0.05 / 16, 17.8 standard errors of 0.001 / sqrt(3).
    sure, unsure, far = (
        np.array([-0.001, 0, 0.001]) + shift for shift in (-0.02, -0.005, 0.02)
    )
    assert scipy.stats.t.ppf(1 - 0.05 / 32, 2) == pytest.approx(17.8, abs=0.1)
    family = verdicts.family([paired(sure)] + [paired(unsure)] * 14 + [paired(far)])
    assert family.counts == {"yes": 15, "no": 1, "undecided": 0}
    assert family.surviving == {"yes": 1, "no": 1, "undecided": 14}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(VALUES, SIDES), max_size=6))
def test_an_answer_survives_or_becomes_undecided(several):
    given_ = [paired(values, side) for values, side in several]
    found = verdicts.family(given_)
    assert found.number == len(given_)
    assert sum(found.counts.values()) == sum(found.surviving.values()) == len(given_)
    for one, wide in zip(given_, found.simultaneous):
        assert wide.answer in (one.answer, "undecided")
        assert wide.low <= one.low + 1e-12 and wide.high >= one.high - 1e-12
        assert wide.estimate == one.estimate and wide.n == one.n


def test_parts_are_comparisons_and_what_has_no_interval_is_none():
    yes, no = paired([-0.02, -0.021]), paired([0.02, 0.021])
    both = verdicts.combine(yes, no)
    alone = paired([0.1])
    absent = verdicts.missing("not run", side="<=", tolerance=0.0, claim="claim")
    found = verdicts.family([both, alone, absent, yes])
    assert found.number == 3 and found.n == (2, 2)
    assert found.simultaneous[1:3] == (alone, absent)
    wide = found.simultaneous[0]
    assert [part.confidence for part in wide.parts] == [1 - 0.05 / 3] * 2
    assert both.answer == "no" and wide.answer == wide.parts[1].answer
    assert verdicts.family([]).number == 0


def test_one_comparison_needs_no_correction():
    one = paired([-0.02, -0.021, -0.0195])
    assert verdicts.family([one]).simultaneous == (one,)


def test_what_was_left_undecided_for_a_reason_stays_so():
    reason = "one rate alone"
    one = paired([-0.02] * 3)._replace(answer="undecided", reason=reason)
    both = verdicts.combine(paired([-0.02] * 3), paired([-0.03] * 3))
    both = both._replace(answer="undecided", reason=reason)
    found = verdicts.family([one, both])
    assert [(v.answer, v.reason) for v in found.simultaneous] == [
        ("undecided", reason)
    ] * 2


def test_a_family_has_one_confidence():
    with pytest.raises(ValueError, match=r"confidence=0.9, 0.95; it must be the same"):
        verdicts.family([paired([0, 1], confidence=c) for c in (0.95, 0.9)])


# Ma et al. 2021

NOISE = np.array([-1, 0, 1]) * 1e-4
TICKET = np.array([0.10, 0.11, 0.12])


def ma(**changes):
    arguments = {
        "error": TICKET,
        "lr": 0.1,
        "density": 0.1,
        "max_density": 0.2,
        "tolerance": ma_et_al.MA_TOLERANCE["cifar10"],
        "dense_errors": {0.1: TICKET + NOISE, 0.01: TICKET + 0.02 + NOISE},
        "reinit_errors": {0.1: TICKET + 0.02 + NOISE, 0.01: TICKET + 0.05 - NOISE},
        "small_dense_error": TICKET + 0.03 + NOISE,
    }
    return ma_et_al.ma_conditions(**{**arguments, **changes})


def test_jackpot():
    assert ma().summary == "jackpot"
    assert [v.answer for v in ma()] == ["yes"] * 5


def test_a_better_dense_lr_leaves_the_secondary_prize():
    found = ma(dense_errors={0.1: TICKET + NOISE, 0.3: TICKET - 0.02 + NOISE})
    assert found.matches_same_lr.answer == "yes"
    assert found.matches_best_lr.answer == "no"
    assert found.summary == "secondary prize"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"density": 0.5}, "nontrivial"),
        ({"small_dense_error": TICKET - 0.01 + NOISE}, "beats_small_dense"),
        (
            {"reinit_errors": {0.1: TICKET + 0.02, 0.01: TICKET + 0.004 + NOISE}},
            "beats_reinit",
        ),
        ({"dense_errors": {0.1: TICKET - 0.02, 0.01: TICKET}}, "matches_same_lr"),
    ],
)
def test_a_no_among_the_first_four_is_none(changes, field):
    found = ma(**changes)
    assert getattr(found, field).answer == "no"
    assert found.summary == "none"


@pytest.mark.parametrize(
    ("changes", "fields", "reason"),
    [
        (
            {"dense_errors": None},
            ["matches_same_lr", "matches_best_lr"],
            "dense_errors",
        ),
        ({"reinit_errors": None}, ["beats_reinit"], "reinit_errors not given"),
        ({"small_dense_error": None}, ["beats_small_dense"], "small_dense_error"),
        ({"lr": 0.2}, ["matches_same_lr"], "no lr 0.2"),
        ({"reinit_errors": {0.1: TICKET + 0.1}}, ["beats_reinit"], "lr 0.1 only"),
    ],
)
def test_a_missing_control_is_undecided_with_a_reason(changes, fields, reason):
    found = ma(**changes)
    for field in fields:
        assert getattr(found, field).answer == "undecided"
    assert reason in getattr(found, fields[0]).reason
    assert found.summary == "undecided"
    assert found.describe().count("\n") == 5


def test_the_conditions_hold_of_accuracies_too():
    other = {
        name: {rate: 1 - np.asarray(v) for rate, v in arm.items()}
        for name, arm in (
            ("dense_errors", {0.1: TICKET + NOISE, 0.3: TICKET - 0.02 + NOISE}),
            ("reinit_errors", {0.1: TICKET + 0.02 + NOISE, 0.3: TICKET + 0.05}),
        )
    }
    found = ma(
        error=1 - TICKET,
        small_dense_error=1 - (TICKET + 0.03 + NOISE),
        metric=verdicts.ACCURACY,
        **other,
    )
    assert [v.answer for v in found] == ["yes"] * 4 + ["no"]
    assert found.summary == "secondary prize"
    assert found.matches_best_lr.parts[0].claim.endswith("lr 0.3")


def test_a_rate_at_which_all_diverged_is_left_out():
    nan = np.full(3, math.nan)
    found = ma(reinit_errors={0.1: TICKET + 0.02, 0.01: TICKET + 0.05, 10.0: nan})
    assert found.beats_reinit.answer == "yes"
    assert "diverged at lr 10" in found.beats_reinit.reason
    assert ma(reinit_errors={10.0: nan}).beats_reinit.answer == "undecided"


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: verdicts.matching([0.1, 0.2], [0.1]),
            r"values.shape=\(2,\); it must be that of dense",
        ),
        (
            lambda: verdicts.matching([0.1, 1.5], [0.1, 0.2]),
            r"values\[1\]=1.5; it must be between 0 and 1",
        ),
        (lambda: verdicts.matching([0.1], [-0.1]), r"dense\[0\]=-0.1; it must"),
        (lambda: verdicts.matching([0.1], [math.inf]), r"dense\[0\]=inf; it must"),
        (lambda: verdicts.matching([0.1], [0.1], -0.01), "tolerance=-0.01; it must"),
        (lambda: verdicts.matching(0.1, 0.1), r"values.shape=\(\); it must"),
        (lambda: verdicts.better([0.1], [0.1], math.nan), "margin=nan; it must"),
        (lambda: verdicts.stable([0.1], -1.0), "threshold=-1.0; it must"),
        (lambda: verdicts.stable([2.0]), r"lii\[0\]=2; it must be between -1 and 1"),
        (lambda: paired([0.1, 0.2], clusters=[1]), r"clusters.shape=\(1,\); it must"),
        (lambda: paired([0.1, 0.2], names=["a"]), "names=.*; it must be 2 names"),
        (lambda: paired([math.inf]), r"difference\[0\]=inf; it must"),
        (lambda: paired([0.1], side="=="), "side='=='; it must"),
        (lambda: paired([0.1], tolerance=math.nan), "tolerance=nan; it must"),
        (lambda: paired([0.1], confidence=95), "confidence=95; it must"),
        (verdicts.combine, r"verdicts=\(\); there must be"),
        (lambda: ma(density=5), "density=5; it must"),
        (lambda: ma(margin=-0.1), "margin=-0.1; it must"),
        (lambda: ma(small_dense_error=[0.1]), r"that of small_dense_error, \(1,\)"),
        (
            lambda: verdicts.winning([0.1], [0.1], rewind_step=0, early_stop_step=[5]),
            "dense_early_stop_step=None; it must",
        ),
        (
            lambda: verdicts.winning(
                [0.1],
                [0.1],
                rewind_step=0,
                early_stop_step=[-5],
                dense_early_stop_step=[5],
            ),
            r"early_stop_step\[0\]=-5; it must",
        ),
    ],
)
def test_refused_by_name_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
