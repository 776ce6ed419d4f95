"""`prune`: exact counts, ties, nesting and published kept counts, against NumPy."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery_jax import masks, prune

LENET = {
    name: {"kernel": shape, "bias": shape[-1:]}
    for name, shape in (
        ("dense_0", (784, 300)),
        ("dense_1", (300, 100)),
        ("head", (100, 10)),
    )
}
LENET_KEPT = (266_200, 212_959, 170_366, 136_291, 109_031, 87_223)
RESNET20_KEPT = (270_896, 216_715, 173_371, 138_695, 110_955, 88_763)
VGG16_KEPT = (14_715_584, 11_772_466, 9_417_971, 7_534_375, 6_027_499, 4_821_998)

NAMES = ("conv/kernel", "dense/kernel", "head/kernel")
SHAPES = {"conv": (3, 3, 2, 4), "dense": (8, 6), "head": (6, 3)}
SIZES = (72, 48, 18)
TOTAL = sum(SIZES)


def tree_of(make):
    return {
        name: {"kernel": make(shape), "bias": make(shape[-1:])}
        for name, shape in SHAPES.items()
    }


def distinct_scores(seed=0):
    """Scores without a tie, from a permutation; the smallest of all in the biases."""
    rng = np.random.default_rng(seed)
    ranks = iter(np.split(rng.permutation(TOTAL) + 1.0, np.cumsum(SIZES)))
    return {
        name: {
            "kernel": next(ranks).reshape(shape).astype(np.float32),
            "bias": np.zeros(shape[-1:], np.float32),
        }
        for name, shape in SHAPES.items()
    }


def kernels(tree):
    return [np.asarray(tree[name]["kernel"]) for name in SHAPES]


def flat(tree):
    return np.concatenate([k.reshape(-1) for k in kernels(tree)])


def as_tree(vector):
    parts = np.split(np.asarray(vector), np.cumsum(SIZES)[:-1])
    return {
        name: {
            "kernel": part.reshape(shape),
            "bias": np.ones(shape[-1:], part.dtype),
        }
        for (name, shape), part in zip(SHAPES.items(), parts)
    }


def full_mask():
    return as_tree(np.ones(TOTAL, bool))


def remove_lowest(scores, alive, number):
    """The rule written out: lowest first, of equals the first; nan below everything."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = [i for i in np.argsort(scores, kind="stable") if alive[i]]
    out = alive.copy()
    out[order[:number]] = False
    return out


def share(fraction, alive):
    return round(Fraction(str(fraction)) * alive)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- counts ---------------------------------------------------------------------------


def reference_share(fraction, meant, alive, how):
    # open_lth's is the ceiling of a product in float64.
    return round(meant * alive) if how == "round" else math.ceil(fraction * alive)


@pytest.mark.parametrize("how", ["round", "ceil"])
@pytest.mark.parametrize(
    "fraction, meant",
    [
        (0.2, Fraction(1, 5)),
        (0.5, Fraction(1, 2)),
        (0.1234, Fraction(1234, 10_000)),
        (1 / 3, Fraction(1, 3)),
        (1 / 6, Fraction(1, 6)),
        (1 - 0.7, Fraction(3, 10)),
        (0.9999, Fraction(9999, 10_000)),
        (1 / 46_340, Fraction(1, 46_340)),
        (46_338 / 46_339, Fraction(46_338, 46_339)),
    ],
)
def test_shares_are_exact_at_every_size_traced_or_not(fraction, meant, how):
    counts = np.concatenate(
        [
            np.arange(1, 60),
            np.arange(11_799_980, 11_800_020),  # where float32 goes wrong
            2**24 + np.arange(-3, 4),
            2**31 - 1 - np.arange(8),
            np.random.default_rng(0).integers(1, 2**31 - 1, 200),
        ]
    )
    expected = [reference_share(fraction, meant, int(n), how) for n in counts]
    traced = jax.jit(jax.vmap(lambda n: prune._share_of(fraction, n, how)))
    np.testing.assert_array_equal(traced(jnp.asarray(counts, jnp.int32)), expected)
    on_host = [int(prune._share_of(fraction, n, how)) for n in counts]
    assert on_host == expected


def test_float32_would_be_wrong_near_12_million():
    """So the test above can fail: the naive count differs on its own counts."""
    counts = np.arange(11_799_980, 11_800_020)
    naive = np.round(np.float32(0.2) * counts.astype(np.float32)).astype(int)
    assert any(n != share(0.2, int(c)) for n, c in zip(naive, counts))


def test_a_fraction_beyond_exact_int32_arithmetic_is_refused_inside_jit():
    mask, scores = full_mask(), distinct_scores()
    digits = 0.12345678
    kept = prune.global_topk(scores, mask, fraction=digits)
    assert int(masks.count(kept)) == TOTAL - share(digits, TOTAL)
    with pytest.raises(ValueError, match="fraction=0.12345678 has too many digits"):
        jax.jit(lambda s, m: prune.global_topk(s, m, fraction=digits))(scores, mask)


@pytest.mark.parametrize("fraction", [0.2, 0.37, 1 / 3, 0.9])
def test_global_topk_removes_the_lowest_of_what_is_alive(fraction):
    scores, mask, alive = distinct_scores(), full_mask(), np.ones(TOTAL, bool)
    compiled = jax.jit(lambda s, m: prune.global_topk(s, m, fraction=fraction))
    meant = Fraction(fraction).limit_denominator(1000)
    for _ in range(6):
        alive = remove_lowest(flat(scores), alive, round(meant * int(alive.sum())))
        after = prune.global_topk(scores, mask, fraction=fraction)
        assert_same(after, as_tree(alive))  # biases survive although they score lowest
        assert_same(compiled(scores, mask), after)
        mask = after


def test_keep_may_be_traced_and_never_revives():
    scores, mask = distinct_scores(), full_mask()
    compiled = jax.jit(lambda s, m, k: prune.global_topk(s, m, keep=k))
    for keep in (TOTAL, 100, 7, 1, 0):
        mask = compiled(scores, mask, keep)
        assert int(masks.count(mask)) == keep
        assert_same(mask, prune.global_topk(scores, full_mask(), keep=keep))
    few = compiled(scores, full_mask(), 9)
    assert_same(compiled(scores, few, 50), few)


def test_vmapped_is_looped():
    several_scores = [distinct_scores(s) for s in range(3)]
    several_masks = [
        as_tree(np.random.default_rng(s).random(TOTAL) < 0.6) for s in range(3)
    ]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731

    def everything(scores, mask):
        return (
            prune.global_topk(scores, mask, fraction=0.3),
            prune.global_topk(scores, mask, fraction=0.3, rule="open_lth"),
            prune.layerwise_topk(scores, mask, fraction=0.3),
            prune.n_of_m(scores, mask, 1, 2, axis=-2, exclude="head"),
        )

    together = jax.jit(jax.vmap(everything))(
        stack(several_scores), stack(several_masks)
    )
    compiled = jax.jit(everything)
    looped = [compiled(s, m) for s, m in zip(several_scores, several_masks)]
    assert_same(together, stack(looped))


# --- ties and nan ---------------------------------------------------------------------


def test_of_equal_scores_the_first_goes_first():
    """Tree order over the leaves, row-major order within."""
    scores = as_tree(np.ones(TOTAL, np.float32))
    mask = _keep(scores, full_mask(), TOTAL - 80)
    np.testing.assert_array_equal(flat(mask), np.arange(TOTAL) >= 80)
    mask = _halve_layers(scores, full_mask())
    for kernel in kernels(mask):
        places = np.arange(kernel.size) >= kernel.size // 2
        np.testing.assert_array_equal(kernel.reshape(-1), places)


def test_ties_at_the_threshold_do_not_change_the_count():
    values = np.random.default_rng(0).integers(0, 4, TOTAL).astype(np.float32)
    values[::7] = -0.0  # equal to 0.0
    for keep in (100, 70, 37, 5):
        mask = _keep(as_tree(values), full_mask(), keep)
        expected = remove_lowest(values, np.ones(TOTAL, bool), TOTAL - keep)
        np.testing.assert_array_equal(flat(mask), expected)


def test_nan_scores_lowest_and_infinities_are_ordinary():
    values = np.arange(TOTAL, dtype=np.float32)
    values[[3, 100, 137]] = np.nan
    values[[50, 60]] = np.inf
    values[70] = -np.inf
    for keep in (TOTAL - 2, TOTAL - 3, TOTAL - 4, 4, 2, 1):
        mask = _keep(as_tree(values), full_mask(), keep)
        expected = remove_lowest(values, np.ones(TOTAL, bool), TOTAL - keep)
        np.testing.assert_array_equal(flat(mask), expected)
    every = as_tree(np.full(TOTAL, np.nan, np.float32))
    np.testing.assert_array_equal(
        flat(_keep(every, full_mask(), 90)), np.arange(TOTAL) >= TOTAL - 90
    )
    nan_row = {"kernel": jnp.array([[jnp.nan, 1.0, 0.0, 2.0]])}
    kept = jax.jit(lambda s: prune.n_of_m(s, masks.ones_like(s), 3, 4, axis=1))(nan_row)
    assert kept["kernel"].tolist() == [[False, True, True, True]]


def test_integer_and_half_precision_scores_rank_as_they_are():
    ranks = np.random.default_rng(0).permutation(TOTAL)
    expected = ranks >= 38
    for dtype in (np.int32, np.uint8, jnp.bfloat16, np.float16):
        mask = _keep(as_tree(ranks.astype(dtype)), full_mask(), 100)
        np.testing.assert_array_equal(flat(mask), expected, err_msg=str(dtype))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.sampled_from([np.nan, -np.inf, -1.0, -0.0, 0.0, 0.5, 2.0, np.inf]),
        min_size=TOTAL,
        max_size=TOTAL,
    ),
    alive=st.lists(st.booleans(), min_size=TOTAL, max_size=TOTAL),
    keep=st.integers(0, TOTAL),
)
def test_masks_are_nested_exact_and_by_the_rule(values, alive, keep):
    values, alive = np.array(values, np.float32), np.array(alive)
    mask = as_tree(alive)
    after = _keep(as_tree(values), mask, keep)
    number = max(int(alive.sum()) - keep, 0)
    np.testing.assert_array_equal(flat(after), remove_lowest(values, alive, number))
    by_layer = _halve_layers(as_tree(values), mask)
    for value, before, now in zip(
        kernels(as_tree(values)), kernels(mask), kernels(by_layer)
    ):
        expected = remove_lowest(
            value.reshape(-1), before.reshape(-1), share(0.5, int(before.sum()))
        )
        np.testing.assert_array_equal(now.reshape(-1), expected)


_keep = jax.jit(lambda s, m, k: prune.global_topk(s, m, keep=k))
_halve_layers = jax.jit(lambda s, m: prune.layerwise_topk(s, m, fraction=0.5))


# --- open_lth's counts ----------------------------------------------------------------


def distinct_like(shapes):
    """Distinct float32 scores of any number up to 2^24 of weights."""
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    sizes = [math.prod(shape) for shape in leaves]
    total, prime = sum(sizes), 1_000_003  # a permutation, and quicker than a random one
    assert total % prime and total < 2**24
    ranks = (np.arange(total) * prime % total).astype(np.float32)
    ranks = np.split(ranks, np.cumsum(sizes))
    return jax.tree.unflatten(structure, [r.reshape(s) for r, s in zip(ranks, leaves)])


def test_open_lth_lenet_300_100():
    """The output layer counts and is never cut."""
    scores = distinct_like(LENET)

    def cut(mask):
        return prune.global_topk(
            scores, mask, fraction=0.2, rule="open_lth", exclude="head"
        )

    compiled = jax.jit(cut)
    mask, kept = masks.ones_like(scores), []
    for _ in LENET_KEPT:
        kept.append(int(masks.count(mask)))
        assert np.asarray(mask["head"]["kernel"]).all()
        mask = compiled(mask)
    assert tuple(kept) == LENET_KEPT


def resnet20_shapes():
    """Kernels of CIFAR's ResNet-20 with projection shortcuts, none of them excluded."""
    shapes = {"stem": {"kernel": (3, 3, 3, 16)}, "head": {"kernel": (64, 10)}}
    width = 16
    for stage, out in enumerate((16, 32, 64)):
        for block in range(3):
            name = f"block_{stage}_{block}"
            shapes[f"{name}_a"] = {"kernel": (3, 3, width, out)}
            shapes[f"{name}_b"] = {"kernel": (3, 3, out, out)}
            if width != out:
                shapes[f"{name}_shortcut"] = {"kernel": (1, 1, width, out)}
            width = out
    return shapes


def test_open_lth_resnet_20():
    scores = distinct_like(resnet20_shapes())
    cut = jax.jit(lambda m: prune.global_topk(scores, m, fraction=0.2, rule="open_lth"))
    count = jax.jit(masks.count)
    mask, kept = jax.tree.map(lambda s: np.ones(s.shape, bool), scores), []
    for _ in RESNET20_KEPT:
        kept.append(int(count(mask)))
        mask = cut(mask)
    assert tuple(kept) == RESNET20_KEPT


def test_open_lth_vgg_16():
    """Level 1 with all 14.7 million weights, the others by the arithmetic alone."""
    convolutions, width = VGG16_KEPT[0] - 512 * 10, 64
    shapes = {
        "convolutions": {"kernel": (convolutions // width, width)},
        "head": {"kernel": (512, 10)},
    }
    scores = distinct_like(shapes)
    mask = prune.global_topk(
        scores, masks.ones_like(scores), fraction=0.2, rule="open_lth", exclude="head"
    )
    assert int(masks.count(mask)) == VGG16_KEPT[1]
    # Distinct scores: those of rank 0 to ceil(fraction * alive) go.
    removed = jax.jit(lambda alive: prune._share_of(0.2, alive, "ceil") + 1)
    kept = [VGG16_KEPT[0]]
    for _ in VGG16_KEPT[1:]:
        kept.append(kept[-1] - int(removed(jnp.int32(kept[-1]))))
    assert tuple(kept) == VGG16_KEPT


def test_open_lth_removes_one_more_and_ties_together():
    """Asking 2 of 10 removes 4; the exact rule removes 2."""
    scores = {"kernel": jnp.array([[0.1, 0.2, 0.2, 0.2, 0.5], [0.6, 0.7, 0.8, 0.9, 1]])}
    full = masks.ones_like(scores)
    theirs = prune.global_topk(scores, full, fraction=0.2, rule="open_lth")
    assert theirs["kernel"].tolist() == [[False] * 4 + [True], [True] * 5]
    exact = prune.global_topk(scores, full, fraction=0.2)
    assert exact["kernel"].tolist() == [[False] * 2 + [True] * 3, [True] * 5]


def open_lth_reference(scores, alive, fraction):
    """The rule written out, on one vector without excluded layers."""
    number = math.ceil(Fraction(str(fraction)) * int(alive.sum()))
    threshold = np.sort(scores[alive])[number]
    return alive & (scores > threshold)


def test_open_lth_against_numpy_with_ties_and_dead_weights():
    rng = np.random.default_rng(0)
    for fraction in (0.2, 0.5, 0.83):
        values = rng.integers(0, 30, TOTAL).astype(np.float32)
        alive = rng.random(TOTAL) < 0.7
        values[~alive] = -5.0
        after = prune.global_topk(
            as_tree(values), as_tree(alive), fraction=fraction, rule="open_lth"
        )
        expected = open_lth_reference(values, alive, fraction)
        np.testing.assert_array_equal(flat(after), expected)


# --- by layer -------------------------------------------------------------------------


def test_fractions_by_pattern():
    """LeNet's rates in the paper: 20% of the dense layers, 10% of the output layer."""
    scores, rates = distinct_scores(), {"head": 0.1, "dense|conv": 0.2}
    mask = prune.layerwise_topk(scores, full_mask(), fraction=rates)
    for name, score, kept in zip(SHAPES, kernels(scores), kernels(mask)):
        number = share(0.1 if name == "head" else 0.2, kept.size)
        alive = np.ones(kept.size, bool)
        expected = remove_lowest(score.reshape(-1), alive, number)
        np.testing.assert_array_equal(kept.reshape(-1), expected)
    # The first pattern that is found counts; what is excluded needs none.
    both = prune.layerwise_topk(
        scores, full_mask(), fraction={"head": 0.1, "kernel": 0.2}
    )
    assert_same(both, mask)
    spared = prune.layerwise_topk(
        scores, full_mask(), fraction={"conv": 0.5, "head": 0.5}, exclude="dense"
    )
    assert [int(k.sum()) for k in kernels(spared)] == [36, 48, 9]


def test_keep_by_layer_in_tree_order():
    scores, keep = distinct_scores(), [10, 50, 3]
    mask = prune.layerwise_topk(scores, full_mask(), keep=keep)
    assert [int(k.sum()) for k in kernels(mask)] == [10, 48, 3]
    traced = jax.jit(lambda k: prune.layerwise_topk(scores, full_mask(), keep=k))
    assert_same(traced(jnp.array(keep)), mask)
    spared = prune.layerwise_topk(scores, full_mask(), keep=[10, 0, 3], exclude="dense")
    assert [int(k.sum()) for k in kernels(spared)] == [10, 48, 3]


@pytest.mark.parametrize("scope", ["global", "uniform", "erk"])
@pytest.mark.parametrize("exclude", [(), "head"])
def test_to_density_is_exact_in_every_scope(scope, exclude):
    scores = distinct_scores()
    for density in (0.2, 0.37, 0.75, 0.99):
        mask = prune.to_density(
            scores, full_mask(), density, scope=scope, exclude=exclude
        )
        assert int(masks.count(mask)) == share(density, TOTAL)
        if exclude:
            assert kernels(mask)[2].all()
        for score, kept in zip(
            kernels(scores), kernels(mask)
        ):  # the best of each layer
            if kept.any() and not kept.all():
                assert score[kept].min() > score[~kept].max()
        if scope != "global":
            counts = masks.layer_counts(
                list(SHAPES.values()), density, scope, [False, False, bool(exclude)]
            )
            assert [int(k.sum()) for k in kernels(mask)] == counts
    few = prune.global_topk(scores, full_mask(), keep=10)
    assert int(masks.count(prune.to_density(scores, few, 0.9, scope=scope))) == 10


# --- N of M ---------------------------------------------------------------------------


@pytest.mark.parametrize("n, m, axis", [(2, 4, -2), (1, 2, -2), (1, 3, -1)])
def test_n_of_m_keeps_the_best_of_each_group(n, m, axis):
    rng = np.random.default_rng(0)
    shape = (3, 3, 8, 6)
    scores = rng.permutation(np.prod(shape)).reshape(shape).astype(np.float32)
    cut = jax.jit(lambda s, mask: prune.n_of_m(s, mask, n, m, axis=axis))
    kept = cut({"kernel": scores}, {"kernel": np.ones(shape, bool)})["kernel"]
    groups = np.moveaxis(scores, axis, -1).reshape(-1, m)
    expected = np.argsort(np.argsort(groups)) >= m - n
    found = np.moveaxis(np.asarray(kept), axis, -1).reshape(-1, m)
    np.testing.assert_array_equal(found, expected)


def test_n_of_m_counts_the_dead_among_the_removed():
    alive = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]], bool)
    scores = {"kernel": np.tile(np.float32([[4, 3, 2, 1]]), (4, 1))}
    cut = jax.jit(lambda s, m: prune.n_of_m(s, m, 2, 4, axis=-1))
    kept = cut(scores, {"kernel": alive})["kernel"]
    assert kept.astype(int).tolist() == [
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
        [0, 0, 0, 1],
    ]


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s, m: prune.global_topk(s, m), r"exactly one of .*; got \[\]"),
        (
            lambda s, m: prune.global_topk(s, m, fraction=0.2, keep=3),
            "exactly one of .*got .*fraction.*keep",
        ),
        (lambda s, m: prune.layerwise_topk(s, m), "exactly one of"),
        *[
            (
                lambda s, m, f=f: prune.global_topk(s, m, fraction=f),
                rf"fraction={f}; it must be in \(0, 1\)",
            )
            for f in (0.0, 1.0, -0.2, 20.0, math.nan)
        ],
        (
            lambda s, m: prune.layerwise_topk(s, m, fraction={"head": 1.0, ".": 0.1}),
            r"fraction=1.0; it must be in \(0, 1\)",
        ),
        (
            lambda s, m: prune.global_topk(s, m, fraction=0.2, rule="openlth"),
            "rule='openlth'; it must be 'exact' or 'open_lth'",
        ),
        (
            lambda s, m: prune.global_topk(s, m, keep=3, rule="open_lth"),
            "rule='open_lth' needs fraction=",
        ),
        (
            lambda s, m: prune.to_density(s, m, 0.5, scope="layer"),
            "scope='layer'; it must be 'global', 'uniform' or 'erk'",
        ),
        (lambda s, m: prune.to_density(s, m, 1.0), r"density=1.0; .*\(0, 1\)"),
        *[
            (
                lambda s, m, scope=scope: prune.to_density(
                    s, m, 0.1, scope=scope, exclude="head"
                ),
                r"density=0.1 leaves 14 weights.*\(18\)",
            )
            for scope in ("global", "uniform", "erk")
        ],
        (
            lambda s, m: prune.layerwise_topk(s, m, fraction={"dense": 0.2}),
            "no pattern of .*dense.* matches layer 'conv/kernel'",
        ),
        (
            lambda s, m: prune.layerwise_topk(s, m, fraction={".": 0.2, "fc": 0.1}),
            "pattern 'fc' matches no leaf",
        ),
        (
            lambda s, m: prune.layerwise_topk(s, m, keep=[3, 4]),
            "keep has 2 entries for 3 prunable leaves",
        ),
        (
            lambda s, m: prune.global_topk(s, m, fraction=0.2, exclude="fc"),
            "pattern 'fc' matches no leaf; there are .*head/kernel",
        ),
        (lambda s, m: prune.n_of_m(s, m, 2, 2), "n=2, m=2; 0 < n < m"),
        (
            lambda s, m: prune.n_of_m(s, m, 2, 4, exclude=("conv", "dense")),
            r"'head/kernel', shape \(6, 3\).*m=4.*exclude=",
        ),
        (
            lambda s, m: prune.n_of_m(
                s, m, 1, 2, prunable=masks.prunable(m, include="head|conv")
            ),
            r"'conv/bias', shape \(4,\), has no axis -2",
        ),
    ],
)
def test_errors_name_the_argument_and_what_would_be_valid(call, message):
    with pytest.raises(ValueError, match=message):
        call(distinct_scores(), full_mask())


@pytest.mark.parametrize(
    "cut",
    [
        lambda s, m: prune.global_topk(s, m, fraction=0.2),
        lambda s, m: prune.layerwise_topk(s, m, fraction=0.2),
        lambda s, m: prune.to_density(s, m, 0.2),
        lambda s, m: prune.n_of_m(s, m, 1, 2),
    ],
)
def test_scores_that_do_not_fit_are_refused_by_name(cut):
    scores, mask = distinct_scores(), full_mask()
    less = {name: scores[name] for name in ("conv", "dense")}
    with pytest.raises(ValueError, match="mask: its leaves .* not those of scores"):
        cut(less, mask)
    turned = scores | {"head": scores["head"] | {"kernel": scores["head"]["kernel"].T}}
    with pytest.raises(ValueError, match=r"'head/kernel'.*scores have \(3, 6\)"):
        cut(turned, mask)
    with pytest.raises(ValueError, match="'conv/bias' has dtype float32, not bool"):
        cut(scores, scores)
