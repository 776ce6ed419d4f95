"""Units of the models: parts of trees, and narrower networks inside the full shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery_jax import masks, models, trees, units
from lottery_jax.units import Axis

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# --- parts of a tree ------------------------------------------------------------------

AXES = {"k": (Axis(None), Axis("u", 2), Axis("v")), "b": (Axis("v"),)}
TREE = {"k": np.random.default_rng(0).normal(size=(3, 10, 4)), "b": np.arange(4.0)}


def some_units(n):
    return st.lists(st.integers(0, n - 1), unique=True).map(lambda x: np.array(x, int))


def parts():
    return st.fixed_dictionaries({"u": some_units(5), "v": some_units(4)})


def test_sizes():
    assert units.sizes(AXES, TREE) == {"u": 5, "v": 4}
    assert units.sizes(AXES, jax.eval_shape(lambda: TREE)) == {"u": 5, "v": 4}
    assert units.sizes(AXES, {"b": TREE["b"]}) == {"v": 4}
    assert Axis("u", 2).places([4, 0], 10).tolist() == [4, 0, 9, 5]


@settings(max_examples=40, deadline=None)
@given(parts())
def test_take_and_the_way_back(part):
    small = units.take(AXES, TREE, part)
    # Written out: both copies of u, then v.
    u = np.concatenate([part["u"], 5 + part["u"]])
    np.testing.assert_array_equal(small["k"], TREE["k"][:, u][:, :, part["v"]])
    np.testing.assert_array_equal(small["b"], TREE["b"][part["v"]])
    back = units.put(AXES, TREE, part, small)
    jax.tree.map(np.testing.assert_array_equal, back, TREE)
    # Into a tree of zeros: the part is there, and nothing else.
    zeros = jax.tree.map(np.zeros_like, TREE)
    full = units.put(AXES, zeros, part, small)
    jax.tree.map(np.testing.assert_array_equal, units.take(AXES, full, part), small)
    rest = {group: np.delete(np.arange(n), part[group]) for group, n in (("v", 4),)}
    assert not full["b"][rest["v"]].any() and not full["k"][..., rest["v"]].any()
    assert not zeros["k"].any()


@settings(max_examples=20, deadline=None)
@given(parts(), st.randoms(use_true_random=False))
def test_taking_twice_is_taking_once(part, random):
    again = {
        g: np.array(random.sample(range(len(x)), len(x) // 2), int)
        for g, x in part.items()
    }
    twice = units.take(AXES, units.take(AXES, TREE, part), again)
    once = units.take(AXES, TREE, {g: part[g][again[g]] for g in part})
    jax.tree.map(np.testing.assert_array_equal, twice, once)


def test_take_under_jit_keeps_arrays_and_dtypes():
    axes = {**AXES, "mask": AXES["k"]}
    tree = {
        "k": jnp.asarray(TREE["k"], jnp.float32),
        "b": jnp.asarray(TREE["b"], jnp.bfloat16),
        "mask": jnp.asarray(TREE["k"] > 0),
    }
    part = {"u": np.array([4, 1, 0]), "v": np.array([2])}
    take = functools.partial(units.take, axes, units=part)
    on_host = take(jax.tree.map(np.asarray, tree))
    for out in (jax.jit(take)(tree), take(tree)):
        for name, leaf in out.items():
            assert isinstance(leaf, jax.Array) and leaf.dtype == tree[name].dtype
            assert isinstance(on_host[name], np.ndarray)
            np.testing.assert_array_equal(leaf, on_host[name])
    back = units.put(axes, tree, part, out)
    for name, leaf in back.items():
        assert isinstance(leaf, jax.Array) and leaf.dtype == tree[name].dtype
        np.testing.assert_array_equal(leaf, tree[name])


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"k": AXES["k"]}, r"axes=\['k'\].*those of leaf 'b'"),
        ({**AXES, "b": ()}, r"axes\['b'\] has 0 entries; .*\(4,\)"),
        ({**AXES, "b": (Axis("v", 3),)}, r"axes\['b'\]\[0\].repeats=3; .* divide 4"),
        ({**AXES, "b": (Axis("v", 2),)}, "leaf 'k' .*4 units of group 'v'.*have 2"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes, message):
    for function in (units.sizes, functools.partial(units.take, units={})):
        with pytest.raises(ValueError, match=message):
            function(axes, TREE)


def test_units_that_do_not_exist_are_refused():
    good = {"u": [0, 1], "v": [3]}
    with pytest.raises(ValueError, match=r"units=\['u'\]; .*those of group 'v'"):
        units.take(AXES, TREE, {"u": [0]})
    for bad in ([4], [-1], [0.5], [[0]]):
        with pytest.raises(ValueError, match=r"units\['v'\]=.*integers of \[0, 4\)"):
            units.take(AXES, TREE, {**good, "v": bad})
    small = units.take(AXES, TREE, good)
    with pytest.raises(ValueError, match=r"'b' has shape \(2,\) in the part"):
        units.put(AXES, TREE, good, {**small, "b": np.ones(2)})
    with pytest.raises(ValueError, match="only its place in the tree has a leaf 'b'"):
        units.put(AXES, TREE, good, {"k": small["k"]})


# --- of a model -----------------------------------------------------------------------


class Gated(nn.Module):
    """An architecture of a user's own: a gate multiplies what another layer makes."""

    def unit_plan(self):
        return [
            units.Layer("gate", None, "hidden"),
            units.Layer("value", None, "hidden", norm="scaled"),
            units.Layer("head", "hidden", None),
        ]

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="scaled")(nn.Dense(6, name="value")(x))
        return nn.Dense(3, name="head")(y * jax.nn.sigmoid(nn.Dense(6, name="gate")(x)))


def drawn(model, x):
    """Variables with the variances of He's law, without compiling it."""
    rng = np.random.default_rng(1)

    def one(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        values = (leaf.ndim == 1) + scale * rng.normal(size=leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(one, jax.eval_shape(model.init, jax.random.key(0), x))


def test_a_model_of_ones_own_declares_its_units():
    model, x = Gated(), jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)))
    params = drawn(model, x)["params"]
    axes = units.of_params(model, params)
    assert axes["gate/kernel"] == (Axis(None), Axis("hidden"))
    assert list(axes) == trees.paths(params)
    order = np.random.default_rng(0).permutation(6)
    other = units.take(axes, params, {"hidden": order})
    assert not np.array_equal(other["gate"]["kernel"], params["gate"]["kernel"])
    logits = [model.apply({"params": p}, x) for p in (params, other)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


def test_what_declares_no_units_or_others_is_refused():
    params = {"dense": {"kernel": np.ones((2, 3))}}
    with pytest.raises(ValueError, match=r"model=Dense; .*unit_plan\(\)"):
        units.of_params(nn.Dense(3), params)
    with pytest.raises(ValueError, match="there must be 'gate/kernel'"):
        units.of_params(Gated(), params)
    own = drawn(Gated(), jnp.ones((1, 5)))["params"]
    with pytest.raises(ValueError, match="leaf 'dense/kernel'; it must be"):
        units.of_params(Gated(), own | params)


# --- narrower networks ----------------------------------------------------------------

NARROW = {
    "mlp": (models.make("mlp-20-12", 5), (12,)),
    "residual mlp": (models.make("residual-mlp-200", 5), (12,)),
    # Four pixels are left: the dense layer reads each channel four times.
    "convolutions": (models.ConvNet(5, widths=(4, 8), dense=(20, 12)), (8, 8, 3)),
    "vgg": (models.VGG(5, layers=(1, 1, 2), widths=(6, 8, 10)), (8, 8, 3)),
    "resnet": (models.make("resnet-8-6", 5), (8, 8, 3)),
    "imagenet resnet": (models.make("imagenet-resnet-18-4", 5), (32, 32, 3)),
    "bottlenecks": (models.ResNet(5, (1, 2), 4, True, imagenet=True), (16, 16, 3)),
    "tiny imagenet resnet": (models.make("tiny-imagenet-resnet-18-4", 5), (16, 16, 3)),
}


@pytest.mark.parametrize("name", NARROW)
def test_narrow_network_has_the_count_and_ignores_what_is_beyond(name):
    model, shape = NARROW[name]
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, *shape)), jnp.float32)
    variables = drawn(model, x)

    @quick.jit
    def apply(params):
        out = model.apply({**variables, "params": params}, x, train=True, mutable=True)
        return out[0]

    params = variables["params"]
    count = round(0.4 * masks.total(params))
    narrowed, mask = models.narrow(model, params, count)
    alive = sum(np.sum(np.asarray(m)) for m in jax.tree.leaves(mask) if m.ndim > 1)
    assert abs(alive - count) <= 0.02 * count
    kept = jax.tree.map(lambda m, p: np.where(m, p, 0), *trees.host((mask, narrowed)))
    out = np.asarray(apply(kept))
    # Biases and norms of absent units reach nothing, in training mode too.
    axes = units.of_params(model, params)
    present = {}
    for path, m in trees.by_path(mask).items():
        if path.endswith("kernel") and axes[path][-1].group:
            reached = np.asarray(m).reshape(-1, m.shape[-1]).any(axis=0)
            present[axes[path][-1].group] = reached

    def noise(path, leaf):
        axis = axes[trees.leaf_path(path)][-1]
        if leaf.ndim == 1 and axis.group:
            return np.where(present[axis.group], leaf, leaf + 3)
        return leaf

    noisy = jax.tree_util.tree_map_with_path(noise, kept)
    assert any(map(np.any, jax.tree.leaves(jax.tree.map(np.not_equal, noisy, kept))))
    np.testing.assert_array_equal(out, apply(noisy))
    assert np.std(out, axis=0).max() > 1e-3


@pytest.mark.parametrize("initializer", ["kaiming_normal", "glorot_normal"])
def test_narrow_draws_have_the_law_of_the_narrow_fan_in(initializer):
    model = models.make("mlp-400-300", 10, initializer=initializer)
    params = quick.jit(model.init)(jax.random.key(0), jnp.zeros((1, 50)))["params"]
    narrowed, mask = models.narrow(model, params, round(0.3 * masks.total(params)))
    kernel, m = (np.asarray(t["dense_1"]["kernel"]) for t in (narrowed, mask))
    fan_in, fan_out = m.any(axis=1).sum(), m.any(axis=0).sum()
    assert m[:fan_in, :fan_out].all() and m.sum() == fan_in * fan_out
    expected = 2 / fan_in if initializer == "kaiming_normal" else 2 / (fan_in + fan_out)
    assert np.isclose(kernel[m].var(), expected, rtol=0.05)


def test_an_unknown_fan_is_refused():
    with pytest.raises(ValueError, match="fan='fan_out'; it must be one of fan_in"):
        units.narrow(AXES, TREE, 10, fan="fan_out")
