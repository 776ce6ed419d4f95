"""Git Re-Basin's weight matching: permutations of units, and what they must not change."""

import functools
import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from lottery_jax import masks, models, trees, units
from lottery_jax.connectivity import alignment
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

MODELS = {
    "mlp": models.make("mlp-20-12", 5),
    "residual-mlp": models.make("residual-mlp-24", 5),
    # Four pixels are left: the dense layer reads each channel four times.
    "conv": models.ConvNet(5, widths=(4, 8), dense=(20, 12)),
    "vgg": models.VGG(5, layers=(1, 1, 2), widths=(4, 6, 8)),
    "resnet": models.make("resnet-8-4", 5),
}
NAMES = tuple(MODELS)


@functools.cache
def build(name):
    shape = (12,) if "mlp" in name else (8, 8, 3)
    model = MODELS[name]
    x = np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    apply = quick.jit(model.apply)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)

    def network(seed):
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            # Biases, norms and statistics differ by unit: equal ones would hide units
            # that are mixed up.
            match trees.leaf_path(path).rpartition("/")[2]:
                case "kernel":
                    values = rng.normal(size=leaf.shape) * np.sqrt(
                        2 / math.prod(leaf.shape[:-1])
                    )
                case "scale" | "var":
                    values = rng.uniform(0.5, 1.5, leaf.shape)
                case "bias" | "mean":
                    values = 0.2 * rng.normal(size=leaf.shape)
            return jnp.asarray(values, jnp.float32)

        drawn = jax.tree_util.tree_map_with_path(draw, shapes)
        return Network(drawn.pop("params"), drawn)

    a, b = network(0), network(2)
    return types.SimpleNamespace(
        logits=lambda n: np.asarray(apply({"params": n.params, **n.model_state}, x)),
        a=a,
        b=b,
        axes=units.of_params(model, a.params),
        state_axes=units.of_state(model, a.params, a.model_state),
    )


def moved(net, network, permutation):
    return Network(
        alignment.permute(net.axes, network.params, permutation),
        alignment.permute(net.state_axes, network.model_state, permutation),
    )


def inverse(permutation):
    return {group: np.argsort(order) for group, order in permutation.items()}


def inner(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return sum(np.vdot(np.float64(x), np.float64(y)) for x, y in pairs)


def assert_equal(a, b):
    assert trees.same_structure(a, b)
    for name, x, y in zip(trees.paths(a), jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(x, y, err_msg=name)


# --- permutations ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_permute_changes_the_weights_and_not_the_function(name):
    net = build(name)
    permutation = alignment.random(net.axes, net.a.params, jax.random.key(3))
    assert set(permutation) == {x.group for v in net.axes.values() for x in v} - {None}
    other = moved(net, net.a, permutation)
    for path, x, y in zip(
        trees.paths(other.params),
        jax.tree.leaves(net.a.params),
        jax.tree.leaves(other.params),
    ):
        has_units = any(axis.group for axis in net.axes[path])
        assert np.array_equal(x, y) != has_units
    before = net.logits(net.a)
    assert np.ptp(before) > 0.1
    np.testing.assert_allclose(net.logits(other), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_the_statistics_belong_to_their_units(name):
    net = build(name)
    permutation = alignment.random(net.axes, net.a.params, jax.random.key(3))
    params = moved(net, net.a, permutation).params
    left = net.logits(Network(params, net.a.model_state))
    assert np.abs(left - net.logits(net.a)).max() > 1e-3
    assert list(net.state_axes) == trees.paths(net.a.model_state)


AXES = {"k": (units.Axis("u", 2), units.Axis("v")), "b": (units.Axis("v"),)}
TREE = {"k": np.random.default_rng(0).normal(size=(10, 4)), "b": np.arange(4.0)}


def test_random_permutations_differ_by_group_and_key():
    axes = {name: (units.Axis(name),) for name in "uv"}
    tree = {name: jax.ShapeDtypeStruct((50,), np.float32) for name in "uv"}
    one, other = (alignment.random(axes, tree, jax.random.key(s)) for s in (0, 1))
    assert not np.array_equal(one["u"], one["v"])
    assert not np.array_equal(one["u"], other["u"])
    assert_equal(one, alignment.random(axes, tree, jax.random.key(0)))


# --- matching -------------------------------------------------------------------------


# On dense weights `match` guarantees it, on these sparse ones it is what happens.
@pytest.mark.parametrize("density", [None, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_a_permuted_copy_is_recovered(name, density):
    net = build(name)
    a, mask, mask_b = net.a, None, None
    permutation = alignment.random(net.axes, a.params, jax.random.key(4))
    if density:
        rng = np.random.default_rng(5)
        mask = jax.tree.map(
            lambda p: rng.random(p.shape) < (density if p.ndim > 1 else 1), a.params
        )
        masked = jax.tree.map(lambda m, p: np.where(m, p, 0), mask, a.params)
        a = a._replace(params=jax.tree.map(jnp.asarray, masked))
        mask_b = alignment.permute(net.axes, mask, permutation)
        with pytest.raises(AssertionError):
            assert_equal(mask_b, mask)
    b = moved(net, a, permutation)
    found = alignment.align(net.axes, a, b, state_axes=net.state_axes, mask=mask_b)
    assert_equal(found.network, a)
    assert_equal(found.mask, mask)
    assert_equal(
        moved(net, b, found.permutation),
        found.network,
    )
    if not density:
        assert_equal(found.permutation, inverse(permutation))


def test_a_copy_is_recovered_where_the_descent_from_the_identity_ends_early():
    # Few inputs and wide layers: what tells the units apart is small beside the products
    # of layers in different orders. From the identity all four of these are missed.
    groups = (None, "u", "v", "w", None)
    sizes = (3, 60, 60, 60, 2)
    axes = {
        f"k{i}": (units.Axis(groups[i]), units.Axis(groups[i + 1])) for i in range(4)
    }
    for seed in range(4):
        rng = np.random.default_rng(seed)
        a = {f"k{i}": rng.normal(size=(sizes[i], sizes[i + 1])) for i in range(4)}
        permutation = alignment.random(axes, a, jax.random.key(seed))
        b = alignment.permute(axes, a, permutation)
        assert_equal(alignment.match(axes, a, b), inverse(permutation))


def test_a_noisy_permuted_copy_is_recovered():
    net = build("resnet")
    permutation = alignment.random(net.axes, net.a.params, jax.random.key(4))
    rng = np.random.default_rng(6)
    noisy = jax.tree.map(
        lambda x: x + 0.05 * np.std(x) * rng.normal(size=x.shape),
        jax.tree.map(np.asarray, moved(net, net.a, permutation).params),
    )
    found = alignment.match(net.axes, net.a.params, noisy)
    assert_equal(found, inverse(permutation))


@pytest.mark.parametrize("name", NAMES)
def test_matching_unrelated_networks_brings_them_closer(name):
    net = build(name)
    a, b = net.a.params, net.b.params
    for seed in (0, 1):
        found = alignment.align(
            net.axes, net.a, net.b, state_axes=net.state_axes, seed=seed
        )
        assert inner(a, found.network.params) > inner(a, b)
        np.testing.assert_allclose(
            net.logits(found.network), net.logits(net.b), rtol=1e-5, atol=1e-5
        )
        again = alignment.match(net.axes, a, b, seed=seed)
        assert_equal(again, found.permutation)
    # Already there: nothing moves.
    still = alignment.match(net.axes, a, a)
    assert_equal(still, alignment.identity(net.axes, a))


def test_the_end_is_a_local_optimum_and_one_sweep_is_no_worse_than_none():
    net = build("mlp")
    a, b = jax.tree.map(np.asarray, (net.a.params, net.b.params))
    one = alignment.match(net.axes, a, b, max_sweeps=1)
    end = alignment.match(net.axes, a, b)
    values = [inner(a, b)] + [
        inner(a, alignment.permute(net.axes, b, p)) for p in (one, end)
    ]
    assert values[0] < values[1] <= values[2]
    # No exchange of two units of a group does better.
    for group, order in end.items():
        for i in range(len(order)):
            for j in range(i):
                swapped = order.copy()
                swapped[[i, j]] = swapped[[j, i]]
                other = alignment.permute(net.axes, b, {**end, group: swapped})
                assert inner(a, other) <= values[2] + 1e-9


def test_a_group_on_two_axes_never_lowers_the_inner_product():
    # Quadratic and with little else to go by: steps that are taken on the linearised
    # gains alone end below the start for two of these pairs.
    axes = {"k": (units.Axis("u"), units.Axis("u"))}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, b = ({"k": rng.normal(size=(6, 6))} for _ in range(2))
        found = alignment.match(axes, a, b, seed=seed)
        assert inner(a, alignment.permute(axes, b, found)) >= inner(a, b)


def test_a_single_group_is_solved_exactly():
    # One hidden layer: the assignment is the whole problem, so brute force agrees.
    axes = {
        "w": (units.Axis(None), units.Axis("u")),
        "v": (units.Axis("u"), units.Axis(None)),
    }
    rng = np.random.default_rng(0)
    a, b = (
        {"w": rng.normal(size=(3, 5)), "v": rng.normal(size=(5, 2))} for _ in range(2)
    )
    best = max(
        inner(a, alignment.permute(axes, b, {"u": np.array(p)}))
        for p in itertools.permutations(range(5))
    )
    found = inner(a, alignment.permute(axes, b, alignment.match(axes, a, b)))
    assert np.isclose(found, best, rtol=1e-12)


def test_of_equally_good_orders_the_present_one_stays():
    axes = {"w": (units.Axis(None), units.Axis("u"))}
    for row in ([0.0, 1.0, 0.0, 2.0, 0.0], [1.0, 1.0, 2.0, 2.0]):
        a = {"w": np.array([row])}
        assert_equal(alignment.match(axes, a, a), alignment.identity(axes, a))


# --- what is refused ------------------------------------------------------------------


def test_permute_refuses_what_is_no_permutation():
    good = alignment.identity(AXES, TREE)
    permute = alignment.permute
    assert_equal(permute(AXES, TREE, good), TREE)
    with pytest.raises(ValueError, match=r"permutation=\['u'\]; .*that of group 'v'"):
        permute(AXES, TREE, {"u": good["u"]})
    with pytest.raises(ValueError, match=r"permutation\['u'\].*\[0, 5\) once"):
        permute(AXES, TREE, {**good, "u": np.arange(10)})
    for bad in (np.zeros(4, int), np.arange(4.0), np.arange(1, 5), np.arange(3)):
        with pytest.raises(ValueError, match=r"permutation\['v'\].*\[0, 4\) once"):
            permute(AXES, TREE, {**good, "v": bad})


def test_axes_that_do_not_fit_are_refused():
    axes = {**AXES, "b": ()}
    for function in (alignment.identity, alignment.match):
        with pytest.raises(ValueError, match=r"axes\['b'\] has 0 entries"):
            function(axes, TREE, *[TREE] * (function is alignment.match))


@pytest.mark.parametrize(
    "b, message",
    [
        ({"k": TREE["k"]}, "only a has a leaf 'b'"),
        ({**TREE, "c": TREE["b"]}, "only b has a leaf 'c'"),
        ({**TREE, "b": np.ones(5)}, r"leaf 'b' has shape \(4,\) in a and \(5,\) in b"),
        ({**TREE, "b": np.array([0, 1, np.nan, 2])}, "b: leaf 'b'.*not finite"),
        ({**TREE, "k": np.full((10, 4), np.inf)}, "b: leaf 'k'.*not finite"),
    ],
)
def test_match_refuses_trees_that_do_not_fit(b, message):
    with pytest.raises(ValueError, match=message):
        alignment.match(AXES, TREE, b)


def test_match_refuses_a_diverged_first_network_other_containers_and_no_sweeps():
    with pytest.raises(ValueError, match="a: leaf 'b'.*not finite"):
        alignment.match(AXES, {**TREE, "b": np.full(4, np.nan)}, TREE)
    with pytest.raises(ValueError, match="containers"):
        axes = {"0": (units.Axis("u"),)}
        alignment.match(axes, [np.ones(3)], (np.ones(3),))
    with pytest.raises(ValueError, match="max_sweeps=0"):
        alignment.match(AXES, TREE, TREE, max_sweeps=0)


def test_align_wants_the_axes_of_a_model_state_and_a_mask_that_fits():
    net = build("resnet")
    with pytest.raises(ValueError, match="state_axes=None.*batch_stats/stem_norm/mean"):
        alignment.align(net.axes, net.a, net.b)
    with pytest.raises(ValueError, match=r"axes=\[\].*leaf 'batch_stats"):
        alignment.align(net.axes, net.a, net.b, state_axes={})
    other = {**net.state_axes, "batch_stats/stem_norm/mean": (units.Axis("none"),)}
    with pytest.raises(ValueError, match="group 'none' has 4 units in b.model_state"):
        alignment.align(net.axes, net.a, net.b, state_axes=other)
    with pytest.raises(ValueError, match="only b.model_state has"):
        alignment.align(net.axes, net.a._replace(model_state={}), net.b)
    mask = masks.ones_like(net.b.params)
    mask["head"]["bias"] = mask["head"]["bias"][1:]
    with pytest.raises(ValueError, match="mask: leaf 'head/bias'"):
        alignment.align(net.axes, net.a, net.b, state_axes=net.state_axes, mask=mask)


def test_align_leaves_scalars_of_a_model_state_alone():
    axes = {"w": (units.Axis("u"),)}
    a = Network({"w": np.array([1.0, 2.0])}, {"steps": np.int32(3)})
    b = Network({"w": np.array([2.0, 1.0])}, {"steps": np.int32(4)})
    found = alignment.align(axes, a, b)
    assert found.network.params["w"].tolist() == [1.0, 2.0]
    assert found.network.model_state == {"steps": 4} and found.mask is None


def test_a_leaf_that_is_no_statistic_of_a_norm_is_refused():
    params, state = build("resnet").a
    for bad in (
        {"batch_stats": {"stem": {"mean": jnp.ones(4)}}},
        {"batch_stats": {"stem_norm": {"count": jnp.ones(4)}}},
        {"cache": state["batch_stats"]},
    ):
        with pytest.raises(ValueError, match="it must be batch_stats/NORM/mean"):
            units.of_state(MODELS["resnet"], params, bad)
    assert units.of_state(MODELS["mlp"], build("mlp").a[0], {}) == {}
