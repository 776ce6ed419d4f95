"""`masks`: counts, comparisons, controls and bits, against NumPy written out."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lottery_jax import masks

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPES = {
    "conv": {"kernel": (3, 3, 2, 5), "bias": (5,)},
    "dense": {"kernel": (20, 12), "bias": (12,)},
    "head": {"kernel": (12, 3), "bias": (3,)},
}
SIZES = (90, 240, 36)  # of the kernels, in tree order
NAMES = ("conv/kernel", "dense/kernel", "head/kernel")


def tree_of(make):
    return {
        layer: {name: make(shape) for name, shape in leaves.items()}
        for layer, leaves in SHAPES.items()
    }


def normals(seed=0):
    rng = np.random.default_rng(seed)
    return tree_of(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32))


def some_mask(seed=0, density=0.6):
    """Kernels partly pruned, biases untouched."""
    rng = np.random.default_rng(seed)
    return tree_of(
        lambda shape: jnp.asarray(
            rng.random(shape) < density if len(shape) > 1 else np.ones(shape, bool)
        )
    )


def kernels(tree):
    return [np.asarray(tree[layer]["kernel"]) for layer in ("conv", "dense", "head")]


def flat(tree):
    return np.concatenate([k.reshape(-1) for k in kernels(tree)])


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b):
    """Equal but for the rounding of one division; whole numbers and bools exactly."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-7), a, b)


def stack(*trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


# --- make, apply, count ---------------------------------------------------------------


def test_ones_like_is_boolean_and_full_and_takes_shapes():
    mask = masks.ones_like(normals())
    masks.check(mask, normals())
    assert all(np.asarray(m).all() for m in jax.tree.leaves(mask))
    shapes = jax.eval_shape(normals)
    assert_same(masks.ones_like(shapes), mask)


def test_apply_gives_exactly_zero_off_the_mask_whatever_is_there():
    mask, params = some_mask(), normals()
    poison = [np.nan, np.inf, -np.inf, -0.0, 1e38]
    rng = np.random.default_rng(1)
    dirty = jax.tree.map(
        lambda m, p: jnp.where(
            m, p, jnp.asarray(rng.choice(poison, size=m.shape), p.dtype)
        ),
        mask,
        params,
    )
    out = masks.apply(mask, dirty)
    for m, p, o in zip(*map(kernels, (mask, params, out))):
        np.testing.assert_array_equal(o, np.where(m, p, np.float32(0)))
        assert not np.signbit(o[~m]).any()
    assert_same(out["dense"]["bias"], params["dense"]["bias"])


@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "float16"])
def test_apply_keeps_the_dtype(dtype):
    params = {"kernel": jnp.ones((2, 3), dtype)}
    out = masks.apply({"kernel": jnp.array([[True, False, True]] * 2)}, params)
    assert out["kernel"].dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(out["kernel"], float), [[1, 0, 1], [1, 0, 1]]
    )


def test_the_denominator_of_densities_is_the_prunable_weights():
    mask = some_mask()
    alive = [int(k.sum()) for k in kernels(mask)]
    assert masks.total(mask) == sum(SIZES)
    assert int(masks.count(mask)) == sum(alive)
    assert masks.count(mask).dtype == jnp.int32
    np.testing.assert_allclose(masks.density(mask), sum(alive) / sum(SIZES), rtol=1e-6)
    by_layer = masks.layer_densities(mask)
    assert list(by_layer) == list(NAMES)
    np.testing.assert_allclose(
        list(by_layer.values()), np.divide(alive, SIZES), rtol=1e-6
    )
    # Other leaves are counted if asked to, as a pytree of bools or as a function.
    chosen = masks.prunable(mask, include="head")
    assert masks.total(mask, chosen) == 36 + 3
    assert int(masks.count(mask, chosen)) == alive[2] + 3
    function = lambda tree: masks.prunable(tree, exclude="head")  # noqa: E731
    np.testing.assert_allclose(
        masks.density(mask, function), sum(alive[:2]) / sum(SIZES[:2]), rtol=1e-6
    )


def test_counting_is_the_same_compiled_and_vmapped():
    several = [some_mask(seed, density) for seed, density in enumerate((0.2, 0.5, 0.9))]

    def everything(mask, other):
        return (
            masks.count(mask),
            masks.density(mask),
            masks.layer_densities(mask),
            masks.overlap(mask, other),
            masks.is_subset(mask, other),
            masks.apply(mask, params),
        )

    params, compiled = normals(), jax.jit(everything)
    looped = [compiled(mask, several[0]) for mask in several]
    assert_close(everything(several[1], several[0]), looped[1])
    together = jax.jit(jax.vmap(everything, (0, None)))(stack(*several), several[0])
    assert_close(together, stack(*looped))


# --- compare --------------------------------------------------------------------------


def test_overlap_and_subset_against_numpy():
    a, b = some_mask(1, 0.3), some_mask(2, 0.7)
    x, y = flat(a), flat(b)
    found = masks.overlap(a, b)
    np.testing.assert_allclose(found.iou, (x & y).sum() / (x | y).sum(), rtol=1e-6)
    np.testing.assert_allclose(found.hamming, (x != y).mean(), rtol=1e-6)
    both = jax.tree.map(jnp.logical_and, a, b)
    assert masks.is_subset(both, a) and masks.is_subset(both, b)
    assert masks.is_subset(a, a)
    assert not masks.is_subset(a, both)
    one_more = jax.tree.map(lambda m: m, both)
    kernel = one_more["head"]["kernel"]
    first_dead = np.unravel_index(int(jnp.argmin(kernel)), kernel.shape)
    one_more["head"]["kernel"] = kernel.at[first_dead].set(True)
    assert not masks.is_subset(one_more, both)  # one weight is enough


def test_overlap_at_the_ends():
    full = masks.ones_like(normals())
    empty = jax.tree.map(jnp.zeros_like, full)
    assert masks.overlap(full, full) == (1.0, 0.0)
    assert masks.overlap(full, empty) == (0.0, 1.0)
    assert masks.overlap(empty, empty) == (1.0, 0.0)


def test_overlaps_of_several_masks_against_numpy():
    named = {f"mask {i}": some_mask(i, 0.2 + 0.2 * i) for i in range(3)}
    found = masks.overlaps(named)
    assert found.names == tuple(named)
    assert list(found.iou) == list(found.chance) == [*NAMES, masks.ALL_LAYERS]
    each = list(named.values())
    for i, j in np.ndindex(3, 3):
        x, y = kernels(each[i]), kernels(each[j])
        for name, a, b in zip(NAMES, x, y):
            np.testing.assert_allclose(
                found.iou[name][i, j], (a & b).sum() / (a | b).sum()
            )
        whole = masks.overlap(each[i], each[j]).iou
        np.testing.assert_allclose(found.iou[masks.ALL_LAYERS][i, j], whole, rtol=1e-6)
        # Exact for the counts: a survivor of one is one of the other as often as any.
        both = sum(a.sum() * b.sum() / a.size for a, b in zip(x, y))
        either = sum(a.sum() + b.sum() for a, b in zip(x, y)) - both
        expected = 1 if i == j else both / either
        np.testing.assert_allclose(found.chance[masks.ALL_LAYERS][i, j], expected)


def test_a_shuffled_mask_has_as_much_in_common_as_chance_has_it():
    rng = np.random.default_rng(0)
    mask = {"kernel": rng.random((300, 200)) < 0.1}
    shuffled = {"kernel": rng.permuted(mask["kernel"].reshape(-1)).reshape(300, 200)}
    found = masks.overlaps({"own": mask, "shuffled": shuffled})
    both, chance = (x["kernel"][0, 1] for x in (found.iou, found.chance))
    # Five standard deviations of the number in common, which is about 600 of 11,400.
    assert abs(both - chance) < 5 * np.sqrt(600) / 11_400 and chance > 0.04


def test_overlaps_of_nothing_or_of_other_networks_are_refused():
    with pytest.raises(ValueError, match="masks={}; it must be some masks"):
        masks.overlaps({})
    one = {"kernel": np.ones((2, 2), bool)}
    with pytest.raises(ValueError, match="'kernel' has shape"):
        masks.overlaps({"a": one, "b": {"kernel": np.ones((2, 3), bool)}})
    empty = {"kernel": np.zeros((2, 2), bool)}
    assert (
        masks.overlaps({"a": empty, "b": empty}).iou["kernel"].tolist() == [[1] * 2] * 2
    )


def test_layers_are_the_prunable_leaves():
    mask = some_mask()
    found = masks.layers(mask)
    assert tuple(found) == NAMES and found[NAMES[0]] is mask["conv"]["kernel"]
    other = masks.layers(mask, masks.prunable(mask, include="head/*"))
    assert list(other) == ["head/bias", "head/kernel"]


# --- controls -------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_shuffle_changes_the_mask_and_keeps_the_counts(scope, getkey):
    mask = some_mask()
    key, other_key = getkey(), getkey()
    shuffled = masks.shuffle(key, mask, scope)
    masks.check(shuffled, mask)
    before, after = kernels(mask), kernels(shuffled)
    assert sum(k.sum() for k in after) == sum(k.sum() for k in before)
    per_layer = [int(k.sum()) for k in after] == [int(k.sum()) for k in before]
    assert per_layer == (scope == "layerwise")
    for a, b in zip(after, before):  # no layer is passed over
        assert (a != b).mean() > 0.2
    assert_same(masks.shuffle(key, mask, scope), shuffled)
    assert (flat(masks.shuffle(other_key, mask, scope)) != flat(shuffled)).any()
    for layer in SHAPES:  # biases take no part
        assert np.asarray(shuffled[layer]["bias"]).all()


@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_shuffling_with_one_key_keeps_masks_nested(scope, getkey):
    outer = some_mask(1, 0.7)
    inner = jax.tree.map(jnp.logical_and, outer, some_mask(2, 0.5))
    key, other_key = getkey(), getkey()
    a, b = (masks.shuffle(key, mask, scope) for mask in (inner, outer))
    assert masks.is_subset(a, b)
    assert not masks.is_subset(masks.shuffle(other_key, inner, scope), b)


@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_shuffle_leaves_excluded_leaves_as_they_are(scope, getkey):
    mask = some_mask()
    shuffled = masks.shuffle(getkey(), mask, scope, exclude="head")
    assert_same(shuffled["head"], mask["head"])
    assert (kernels(shuffled)[1] != kernels(mask)[1]).any()
    counts = [sum(k.sum() for k in kernels(m)[:2]) for m in (shuffled, mask)]
    assert counts[0] == counts[1]


def test_layers_of_one_shape_are_shuffled_apart(getkey):
    half = jnp.arange(400).reshape(20, 20) % 2 == 0
    shuffled = masks.shuffle(getkey(), {"a": {"kernel": half}, "b": {"kernel": half}})
    assert (shuffled["a"]["kernel"] != shuffled["b"]["kernel"]).any()


@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_shuffle_is_the_same_compiled_and_vmapped(scope, getkey):
    several = [some_mask(1), some_mask(2)]
    keys = jnp.stack([getkey(), getkey()])
    looped = [masks.shuffle(k, m, scope) for k, m in zip(keys, several)]
    vmapped = jax.jit(jax.vmap(lambda k, m: masks.shuffle(k, m, scope)))
    assert_same(vmapped(keys, stack(*several)), stack(*looped))


@pytest.mark.parametrize(
    "distribution, density",
    [("uniform", 0.01), ("uniform", 1 / 3), ("uniform", 1.0), ("erk", 0.3)],
)
def test_random_masks_have_the_exact_count(distribution, density, getkey):
    params, total = normals(), sum(SIZES)
    draw = jax.jit(lambda key: masks.random(key, params, density, distribution))
    mask = draw(getkey())
    masks.check(mask, params)
    expected = round(Fraction(density).limit_denominator(1000) * total)
    assert int(masks.count(mask)) == expected
    shapes = [SHAPES[layer]["kernel"] for layer in SHAPES]
    assert [int(k.sum()) for k in kernels(mask)] == masks.layer_counts(
        shapes, density, distribution
    )
    assert all(np.asarray(mask[layer]["bias"]).all() for layer in SHAPES)


def test_random_masks_follow_the_key_alone(getkey):
    params, key, other = normals(), getkey(), getkey()
    draw = lambda key: masks.random(key, params, 0.3)  # noqa: E731
    compiled = jax.jit(draw)
    a, b = compiled(key), compiled(other)
    assert_same(a, masks.random(key, jax.eval_shape(normals), 0.3))
    assert (flat(a) != flat(b)).any()
    assert_same(jax.jit(jax.vmap(draw))(jnp.stack([key, other])), stack(a, b))


def test_random_masks_are_random_in_place(getkey):
    """Every place survives about as often as any other."""
    params = {"kernel": jnp.zeros((5, 8))}
    keys = jax.random.split(getkey(), 2000)
    share = jax.vmap(lambda k: masks.random(k, params, 0.25)["kernel"])(keys).mean(0)
    # 0.25 with a standard error of 0.0097; five of them on 40 places.
    np.testing.assert_allclose(share, 0.25, atol=0.05)


def test_random_masks_spare_excluded_leaves_but_count_them(getkey):
    mask = masks.random(getkey(), normals(), 0.5, exclude="head")
    assert kernels(mask)[2].all()
    assert int(masks.count(mask)) == sum(SIZES) // 2


# --- the share of each layer ----------------------------------------------------------


def erk_reference(shapes, density):
    """Erdos-Renyi-Kernel densities in float64: scale up until no layer overflows."""
    sizes = np.array([np.prod(s) for s in shapes], float)
    raw = np.array([sum(s) / np.prod(s) for s in shapes])
    dense = np.zeros(len(shapes), bool)
    while True:
        eps = (density * sizes.sum() - sizes[dense].sum()) / (raw * sizes)[~dense].sum()
        share = np.where(dense, 1.0, eps * raw)
        if (share <= 1).all():
            return share
        dense |= share > 1


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.9])
def test_erk_counts_against_numpy(density):
    shapes = [(5, 5, 3, 16), (3, 3, 16, 64), (256, 120), (120, 10), (4, 4)]
    sizes = [int(np.prod(s)) for s in shapes]
    counts = masks.layer_counts(shapes, density, "erk")
    assert sum(counts) == round(Fraction(str(density)) * sum(sizes))
    expected = erk_reference(shapes, density) * sizes
    assert np.abs(counts - expected).max() < 1 + 1e-6
    assert all(0 <= c <= n for c, n in zip(counts, sizes))


def test_uniform_counts_share_out_what_rounding_leaves():
    # 10% of 25, 25 and 35: 2.5, 2.5 and 3.5, 8 of 8.5 (half to even) in all.
    shapes = [(5, 5), (5, 5), (7, 5)]
    assert masks.layer_counts(shapes, 0.1) == [3, 2, 3]
    for density in (0.001, 0.05, 0.37, 0.998):
        counts = masks.layer_counts(shapes, density)
        assert sum(counts) == round(Fraction(str(density)) * 85)
        assert np.abs(counts - density * np.array([25, 25, 35])).max() < 1
    assert masks.layer_counts(shapes, 1.0) == [25, 25, 35]


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_dense_layers_are_paid_for_by_the_others(distribution):
    counts = masks.layer_counts(
        [(10, 10), (10, 10), (10, 5)], 0.4, distribution, dense=[False, False, True]
    )
    assert counts == [25, 25, 50]
    with pytest.raises(ValueError, match=r"density=0.1 leaves 25 .*\(50\)"):
        masks.layer_counts(
            [(10, 10), (10, 10), (10, 5)], 0.1, distribution, [False, False, True]
        )


@pytest.mark.parametrize(
    "number, meant",
    [
        (0.2, Fraction(1, 5)),
        (1 - 0.8, Fraction(1, 5)),
        (1 / 3, Fraction(1, 3)),
        (1 - 1 / 3, Fraction(2, 3)),
        (0.1234567, Fraction(1234567, 10**7)),
        (1e-20, Fraction(1, 10**20)),
        (1.0, Fraction(1)),
    ],
)
def test_a_float_stands_for_the_ratio_that_was_meant(number, meant):
    assert masks.exact(number) == meant


def test_rounding_is_half_to_even_at_any_size():
    halves = [Fraction(2 * k + 1, 2) for k in (0, 1, 2, 3, 10**12, 10**17 + 1)]
    assert [masks.exact_round(h) for h in halves] == [
        0,
        2,
        2,
        4,
        10**12,
        10**17 + 2,
    ]


# --- bits -----------------------------------------------------------------------------


def test_packing_takes_one_bit_per_weight_and_loses_nothing():
    mask = some_mask()
    packed = jax.jit(masks.pack)(mask)
    assert_same(jax.jit(masks.unpack)(packed), mask)
    for m, bits in zip(jax.tree.leaves(mask), jax.tree.leaves(packed.bits)):
        assert bits.dtype == jnp.uint8 and bits.shape == (-(-m.size // 8),)
        np.testing.assert_array_equal(bits, np.packbits(np.asarray(m)))
    odd = {"kernel": jnp.array([[True, False, True]] * 3)}  # 9 bits
    assert_same(masks.unpack(masks.pack(odd)), odd)
    several = stack(mask, some_mask(1))
    roundtrip = jax.vmap(lambda m: masks.unpack(masks.pack(m)))
    assert_same(jax.jit(roundtrip)(several), several)


# --- errors ---------------------------------------------------------------------------


def test_a_mask_that_does_not_fit_is_refused_by_name():
    params, mask = normals(), some_mask()
    without = {name: mask[name] for name in ("conv", "dense")}
    with pytest.raises(ValueError, match=r"mask: its leaves .*head/kernel"):
        masks.apply(without, params)
    transposed = mask | {"head": mask["head"] | {"kernel": mask["head"]["kernel"].T}}
    with pytest.raises(ValueError, match=r"'head/kernel'.*\(3, 12\).*\(12, 3\)"):
        masks.apply(transposed, params)
    floats = mask | {"dense": jax.tree.map(jnp.float32, mask["dense"])}
    with pytest.raises(ValueError, match="'dense/bias'.*float32, not bool"):
        masks.apply(floats, params)
    with pytest.raises(ValueError, match="mask: its leaves"):
        jax.jit(masks.apply)(without, params)
    with pytest.raises(ValueError, match="'head/kernel'"):
        masks.is_subset(mask, transposed)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: masks.shuffle(jax.random.key(0), m, "rows"), "scope='rows'.*global"),
        (lambda m: masks.random(jax.random.key(0), m, 0.0), r"density=0.0.*\(0, 1\]"),
        (lambda m: masks.random(jax.random.key(0), m, 1.5), r"density=1.5.*\(0, 1\]"),
        (lambda m: masks.random(jax.random.key(0), m, 0.5, "er"), "'er'.*'erk'"),
        (
            lambda m: masks.random(jax.random.key(0), m, 0.05, exclude="head"),
            "density=0.05",
        ),
        (
            lambda m: masks.shuffle(jax.random.key(0), m, exclude="haed"),
            "'haed' matches no leaf.*head/kernel",
        ),
        (
            lambda m: masks.shuffle(jax.random.key(0), m, exclude="kernel"),
            "exclude='kernel' leaves no prunable leaf",
        ),
        (lambda m: masks.count(m, {"conv": True}), "prunable: its leaves .*conv"),
    ],
)
def test_errors_say_what_would_be_valid(call, message):
    with pytest.raises(ValueError, match=message):
        call(some_mask())
