"""Metrics of tasks of texts, against scikit-learn, SciPy and NumPy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery_jax import verdicts
from lottery_jax.tasks import metrics

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# One shape, so one program.
LENGTH, CLASSES = 12, 3
matthews = jax.jit(metrics.matthews, static_argnums=2)
f1, pearson, spearman = map(jax.jit, (metrics.f1, metrics.pearson, metrics.spearman))
span_overlap = jax.jit(metrics.span_overlap)
best_span = jax.jit(metrics.best_span, static_argnums=2)


def lists(element):
    return st.lists(element, min_size=LENGTH, max_size=LENGTH)


def ints(values):
    return np.asarray(values, np.int32)


def floats(values):
    return np.asarray(values, np.float32)


# Guesses


def test_a_label_is_guessed_where_it_is_the_argmax():
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((4, 50, 7)).astype(np.float32)
    label = generator.integers(0, 7, (4, 50)).astype(np.int32)
    found = jax.jit(metrics.guessed)(logits, label)
    np.testing.assert_array_equal(found, logits.argmax(-1) == label)


def test_who_says_nothing_guesses_nothing():
    equal, tied = np.zeros(3, np.float32), floats([1, 1, 0])
    broken = floats([0, 1, np.nan])
    for logits, right in (
        (equal, [0, 0, 0]),
        (tied, [1, 1, 0]),
        (broken, [0, 0, 0]),
        (-broken, [0, 0, 0]),
    ):
        found = metrics.guessed(jnp.tile(logits, (3, 1)), ints([0, 1, 2]))
        np.testing.assert_array_equal(found, np.array(right, bool))


# Matthews


@settings(deadline=None)
@given(lists(st.integers(0, CLASSES - 1)), lists(st.integers(0, CLASSES - 1)))
def test_matthews_is_that_of_scikit_learn(predicted, label):
    found = matthews(ints(predicted), ints(label), CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single label
        wanted = sklearn.metrics.matthews_corrcoef(label, predicted)
    assert found.dtype == jnp.float32 and found.shape == ()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert -1 <= found <= 1


def test_matthews_of_a_rare_class_in_many_examples_is_that_of_scikit_learn():
    # The squares of these numbers do not fit int32, their differences not float32.
    generator = np.random.default_rng(0)
    label = ints(generator.random(200_000) < 1e-4)
    predicted = np.where(generator.random(200_000) < 2e-5, 1 - label, label)
    wanted = sklearn.metrics.matthews_corrcoef(label, predicted)
    assert 0.5 < wanted < 0.99
    found = metrics.matthews(ints(predicted), label, 2)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_matthews_of_a_constant_prediction_is_0_and_of_agreement_1():
    label = ints([0, 1, 2, 2] * 3)
    for constant in range(CLASSES):
        assert matthews(np.full_like(label, constant), label, CLASSES) == 0
        assert matthews(label, np.full_like(label, constant), CLASSES) == 0
    assert matthews(label, label, CLASSES) == 1
    two = ints([0, 1, 1] * 4)
    np.testing.assert_allclose(matthews(1 - two, two, 2), -1, rtol=1e-6)


def test_what_is_no_class_gives_nan():
    label = ints([0, 1] * 6)
    for other in (-1, 2):
        wrong = label.copy()
        wrong[3] = other
        assert np.isnan(matthews(wrong, label, 2))
        assert np.isnan(matthews(label, wrong, 2))
        assert np.isnan(f1(wrong, label))
        assert np.isnan(f1(label, wrong))


# F1


@settings(deadline=None)
@given(lists(st.integers(0, 1)), lists(st.integers(0, 1)))
def test_f1_is_that_of_scikit_learn(predicted, label):
    found = f1(ints(predicted), ints(label))
    wanted = sklearn.metrics.f1_score(label, predicted, zero_division=0)
    assert found.dtype == jnp.float32 and found.shape == ()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_f1_is_0_where_class_1_is_neither_predicted_nor_true():
    nothing, label = np.zeros(LENGTH, np.int32), ints([0, 1] * 6)
    assert f1(nothing, nothing) == 0
    assert f1(nothing, label) == 0
    assert f1(label, label) == 1


# Correlations

# Few values, so that there are ties; -0 ties with 0.
FEW = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 0.25, 3.0])
MANY = st.floats(-100, 100, width=16)


@settings(deadline=None)
@given(st.one_of(lists(FEW), lists(MANY)), st.one_of(lists(FEW), lists(MANY)))
def test_correlations_are_those_of_scipy(predicted, label):
    predicted, label = floats(predicted), floats(label)
    for ours, theirs in (
        (pearson, scipy.stats.pearsonr),
        (spearman, scipy.stats.spearmanr),
    ):
        found = ours(predicted, label)
        assert found.dtype == jnp.float32 and found.shape == ()
        if np.ptp(predicted) == 0 or np.ptp(label) == 0:
            assert found == 0
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that lie close together
            wanted = theirs(predicted.astype(float), label.astype(float)).statistic
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6)
        assert -1 <= found <= 1


def test_pearson_survives_a_mean_far_above_the_spread():
    generator = np.random.default_rng(1)
    label = floats(generator.normal(size=2000))
    predicted = floats(16384 + generator.normal(size=2000) + label)
    wanted = scipy.stats.pearsonr(predicted.astype(float), label.astype(float))
    found = metrics.pearson(predicted, label)
    np.testing.assert_allclose(found, wanted.statistic, rtol=1e-5)


@pytest.mark.parametrize("ours", [pearson, spearman])
def test_correlations_at_the_edges(ours):
    label = floats(np.arange(LENGTH))
    # The mean of equal numbers may round away from them.
    for constant in (0.0, 0.1, -1e7, 3e38):
        assert ours(np.full(LENGTH, constant, np.float32), label) == 0
        assert ours(label, np.full(LENGTH, constant, np.float32)) == 0
    np.testing.assert_allclose(ours(label, label), 1, rtol=1e-6)
    np.testing.assert_allclose(ours(-label, label), -1, rtol=1e-6)
    np.testing.assert_allclose(ours(1e-30 * label, 1e30 * label), 1, rtol=1e-6)
    for bad in (np.nan, np.inf, -np.inf):
        one = label.copy()
        one[2] = bad
        every = np.full(LENGTH, bad, np.float32)
        assert np.isnan(ours(one, label)) and np.isnan(ours(label, one))
        assert np.isnan(ours(every, label)) and np.isnan(ours(label, every))


def test_correlations_take_half_precision_and_integers():
    label = ints([1, 5, 2, 4] * 3)
    predicted = jnp.asarray(label, jnp.bfloat16)
    for ours in (metrics.pearson, metrics.spearman):
        found = ours(predicted, label)
        np.testing.assert_allclose(found, 1, rtol=1e-6)
        assert found.dtype == jnp.float32


# Spans


def by_hand(start, end, answers):
    """The best F1 and match of one span, by sets of positions."""
    said = set(range(start, end + 1))
    f1s, exact = [0.0], False
    for first, last in answers:
        if first < 0:
            continue
        true = set(range(first, last + 1))
        common = len(said & true)
        if common:
            precision, recall = common / len(said), common / len(true)
            f1s.append(2 * precision * recall / (precision + recall))
        exact |= said == true
    return max(f1s), float(exact)


SPAN = st.tuples(st.integers(0, 9), st.integers(0, 4)).map(lambda s: (s[0], sum(s)))
NONE = st.just((-1, -1))
ANSWERS = st.tuples(*[st.one_of(SPAN, NONE)] * 3)
SAID = st.one_of(SPAN, st.just((-1, -1)), st.just((5, 3)))


@settings(deadline=None)
@given(lists(SAID), lists(ANSWERS))
def test_overlap_of_spans_is_that_of_sets_of_tokens(spans, answers):
    spans = [(-1, -2) if s == (-1, -1) else s for s in spans]
    start, end = ints(spans).T
    found = span_overlap(start, end, ints(answers))
    wanted = [by_hand(*s, a) for s, a in zip(spans, answers, strict=True)]
    for ours, theirs in zip(found, zip(*wanted, strict=True), strict=True):
        assert ours.dtype == jnp.float32 and ours.shape == (LENGTH,)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_no_span_is_never_an_answer():
    answers = ints([[[-1, -1], [0, 3]]])
    assert [
        x.tolist() for x in metrics.span_overlap(ints([-1]), ints([-1]), answers)
    ] == [
        [0],
        [0],
    ]


def brute(scores, allowed, longest):
    """The best span of one text, by trying all."""
    best, found = -np.inf, (-1, -1)
    for start in range(len(scores)):
        for end in range(start, min(start + longest, len(scores))):
            total = scores[start, 0] + scores[end, 1]
            if allowed[start] and allowed[end] and total > best:
                best, found = total, (start, end)
    return found


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 7, 20]))
def test_the_best_span_is_the_best_of_all(seed, longest):
    generator = np.random.default_rng(seed)
    # Small integers: many spans are equally good.
    scores = generator.integers(-3, 4, (5, 7, 2)).astype(np.float32)
    allowed = generator.random((5, 7)) < 0.6
    start, end = best_span(scores, allowed, longest)
    assert start.dtype == end.dtype == jnp.int32
    wanted = [brute(*one, longest) for one in zip(scores, allowed, strict=True)]
    assert list(zip(start.tolist(), end.tolist(), strict=True)) == wanted


def test_where_nothing_may_be_answered_there_is_no_span():
    scores = np.zeros((2, 3, 2), np.float32)
    scores[1] = np.nan
    allowed = np.array([[False] * 3, [True] * 3])
    start, end = metrics.best_span(scores, allowed, 2)
    assert start.tolist() == end.tolist() == [-1, -1]


# All of them


def test_metrics_of_many_networks_are_those_of_each():
    generator = np.random.default_rng(2)
    classes = ints(generator.integers(0, 2, (4, LENGTH)))
    numbers = floats(generator.normal(size=(4, LENGTH)))
    label, target = classes[0], numbers[0]
    for ours, given_, true in (
        (lambda p, y: metrics.matthews(p, y, 2), classes, label),
        (metrics.f1, classes, label),
        (metrics.pearson, numbers, target),
        (metrics.spearman, numbers, target),
    ):
        together = jax.vmap(ours, (0, None))(given_, true)
        each = [ours(one, true) for one in given_]
        np.testing.assert_allclose(together, each, rtol=1e-6)


def test_what_does_not_fit_is_refused_by_name():
    two, three = ints([0, 1]), ints([0, 1, 1])
    scores, allowed = np.zeros((2, 3, 2), np.float32), np.ones((2, 3), bool)
    for call, message in (
        (lambda: metrics.matthews(two, three, 2), "label.shape=(3,)"),
        (lambda: metrics.matthews(two, two, 1), "classes=1"),
        (lambda: metrics.matthews(floats(two), two, 2), "predicted.dtype=float32"),
        (lambda: metrics.f1(ints([]), ints([])), "predicted.shape=(0,)"),
        (lambda: metrics.pearson(two[None], two[None]), "predicted.shape=(1, 2)"),
        (lambda: metrics.spearman(1j * two, two), "predicted.dtype=complex"),
        (lambda: metrics.span_overlap(two, two, two), "answers.shape=(2,)"),
        (lambda: metrics.best_span(scores, allowed, 0), "longest=0"),
        (lambda: metrics.best_span(scores[0], allowed, 1), "scores.shape=(3, 2)"),
        (lambda: metrics.best_span(scores, allowed[:1], 1), "allowed.shape=(1, 3)"),
        (lambda: metrics.best_span(scores, 1 * allowed, 1), "allowed.dtype=int"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)


def test_every_metric_has_a_verdict_in_its_own_direction():
    ours = verdicts.METRICS
    assert all(name == metric.name for name, metric in ours.items())
    assert {"error", "matthews", "f1", "pearson", "perplexity"} <= set(ours)
    for name, metric in ours.items():
        lower = name in ("error", "clean_error", "loss", "perplexity")
        assert metric.better == ("lower" if lower else "higher"), name
