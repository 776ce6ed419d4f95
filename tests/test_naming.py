"""What names and shapes say: which leaves are weights, and along which axes they read.

Every layer of Linen, NNX, Haiku and Equinox that holds a matrix is a member here.
"""

import inspect
import math
import re

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx

import lottery_jax as lj
from lottery_jax import compact, dynamic, masks, naming, prune, trees

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
X = jax.ShapeDtypeStruct((2, 5, 6), jnp.float32)
IDS = jax.ShapeDtypeStruct((2, 5), jnp.int32)
IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32)


def shapes_of(make):
    """Of a function without arguments; what is not an array stays what it is."""
    return eqx.filter_eval_shape(make)


def linen(module, *inputs):
    def make():
        zeros = [jnp.zeros(x.shape, x.dtype) for x in inputs]
        return module.init(KEY, *zeros)["params"]

    return lambda: shapes_of(make)


def of_nnx(make):
    return lambda: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param),
    )


def haiku(function, x=X):
    def make():
        return hk.transform(function).init(KEY, jnp.zeros(x.shape, x.dtype))

    return lambda: shapes_of(make)


def equinox(make):
    return lambda: shapes_of(lambda: eqx.filter(make(), eqx.is_inexact_array))


def plain(**shapes):
    def leaf(shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return lambda: jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm()(x))
        return nn.Dense(6)(nn.Dense(9)(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return stack(name="blocks")(x, None)[0]


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.SpectralNorm(nn.Dense(6))(x, update_stats=False)
        return nn.RMSNorm()(nn.GroupNorm(2)(nn.WeightNorm(nn.Dense(6))(x)))


class Embedded(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(7, 6)(ids)
        place = self.param("pos_embedding", nn.initializers.zeros, (1, 5, 6))
        return nn.Dense(3, name="embed")(x + place)


def hk_attention(x):
    return hk.MultiHeadAttention(2, 3, w_init=hk.initializers.Constant(1.0))(x, x, x)


def hk_cells(x):
    for cell, state in (
        (hk.LSTM(4), hk.LSTM(4).initial_state(5)),
        (hk.GRU(4), jnp.ones((5, 4))),
    ):
        hk.dynamic_unroll(cell, x, state)
    return x


def hk_stacked(x):
    return hk.experimental.layer_stack(3)(
        lambda x: hk.Linear(6)(hk.LayerNorm(-1, True, True)(x))
    )(x)


def vmapped(layer):
    return lambda: eqx.filter_vmap(layer)(jax.random.split(KEY, 3))


# name: the tree; the axes of the inputs of every weight by its name, None where it is asked
# for; and the leaves of which it is asked whether they are weights at all.
TREES = {
    "linen dense": (linen(nn.Dense(4), X), {"kernel": (-2,)}, []),
    "linen conv": (linen(nn.Conv(4, (3, 3)), IMAGES), {"kernel": (-2,)}, []),
    "linen conv without bias": (
        linen(nn.Conv(4, (3, 3), use_bias=False), IMAGES),
        {"kernel": (-2,)},
        [],
    ),
    "linen conv of sequences": (linen(nn.Conv(4, (3,)), X), {"kernel": (-2,)}, []),
    "linen local conv": (linen(nn.ConvLocal(4, (3,)), X), {"kernel": (-2,)}, []),
    "linen transposed conv": (
        linen(nn.ConvTranspose(4, (3,)), X),
        {"kernel": (-2,)},
        [],
    ),
    "linen attention": (
        linen(nn.MultiHeadDotProductAttention(2), X),
        dict.fromkeys(["key/kernel", "query/kernel", "value/kernel"], (-3,))
        | {"out/kernel": (-3, -2)},
        [],
    ),
    "linen attention without biases": (
        linen(nn.MultiHeadDotProductAttention(2, use_bias=False), X),
        dict.fromkeys(["key/kernel", "query/kernel", "value/kernel"], (-3,))
        | {"out/kernel": (-3, -2)},
        [],
    ),
    "linen lstm": (
        linen(nn.RNN(nn.LSTMCell(4)), X),
        {
            f"cell/{name}/kernel": (-2,)
            for name in ("hf", "hg", "hi", "ho", "if", "ig", "ii", "io")
        },
        [],
    ),
    "linen optimized lstm": (
        linen(nn.RNN(nn.OptimizedLSTMCell(4)), X),
        {
            f"cell/{name}/kernel": (-2,)
            for name in ("hf", "hg", "hi", "ho", "if", "ig", "ii", "io")
        },
        [],
    ),
    "linen gru": (
        linen(nn.RNN(nn.GRUCell(4)), X),
        {f"cell/{name}/kernel": (-2,) for name in ("hn", "hr", "hz", "in", "ir", "iz")},
        [],
    ),
    "linen general": (linen(nn.DenseGeneral((2, 3)), X), {"kernel": (-3,)}, []),
    "linen general without bias": (
        linen(nn.DenseGeneral((2, 3), use_bias=False), X),
        {"kernel": None},
        [],
    ),
    "linen einsum": (
        linen(nn.Einsum((6, 2, 3), "bsd,dhk->bshk"), X),
        {"kernel": (-3,)},
        [],
    ),
    # The layers lie along the first axis of all leaves.
    "linen scanned blocks": (
        linen(Scanned(), X),
        {"blocks/Dense_0/kernel": (-2,), "blocks/Dense_1/kernel": (-2,)}
        | {f"blocks/attention/{n}/kernel": (-3,) for n in ("key", "query", "value")}
        | {"blocks/attention/out/kernel": (-3, -2)},
        [],
    ),
    "linen norms": (
        linen(Normed(), X),
        {"Dense_0/kernel": (-2,), "Dense_1/kernel": (-2,)},
        [],
    ),
    "linen embeddings": (
        linen(Embedded(), IDS),
        {"embed/kernel": (-2,)},
        ["Embed_0/embedding", "pos_embedding"],
    ),
    "nnx attention": (
        of_nnx(lambda rngs: nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)),
        dict.fromkeys(["key/kernel", "query/kernel", "value/kernel"], (-3,))
        | {"out/kernel": (-3, -2)},
        [],
    ),
    "nnx lstm": (
        of_nnx(lambda rngs: nnx.OptimizedLSTMCell(3, 4, rngs=rngs)),
        {"dense_h/kernel": (-2,), "dense_i/kernel": (-2,)},
        [],
    ),
    "nnx gru": (
        of_nnx(lambda rngs: nnx.GRUCell(3, 4, rngs=rngs)),
        {"dense_h/kernel": (-2,), "dense_i/kernel": (-2,)},
        [],
    ),
    "nnx embedding": (
        of_nnx(lambda rngs: nnx.Embed(7, 4, rngs=rngs)),
        {},
        ["embedding"],
    ),
    "nnx adapter": (
        of_nnx(lambda rngs: nnx.LoRA(3, 2, 4, rngs=rngs)),
        {},
        ["lora_a", "lora_b"],
    ),
    "nnx norms": (
        of_nnx(
            lambda rngs: nnx.List(
                [nnx.Linear(2, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)]
            )
        ),
        {"0/kernel": (-2,)},
        [],
    ),
    "haiku conv": (haiku(lambda x: hk.Conv1D(4, 3)(x)), {"conv1_d/w": (-2,)}, []),
    # Its kernel has outputs before inputs.
    "haiku transposed conv": (
        haiku(lambda x: hk.Conv1DTranspose(4, 3)(x)),
        {"conv1_d_transpose/w": None},
        [],
    ),
    "haiku attention": (
        haiku(hk_attention),
        {
            f"multi_head_attention/{name}/w": (-2,)
            for name in ("key", "linear", "query", "value")
        },
        [],
    ),
    "haiku cells": (
        haiku(hk_cells),
        {"gru/w_h": (-2,), "gru/w_i": (-2,), "lstm/linear/w": (-2,)},
        [],
    ),
    "haiku stacked layers": (
        haiku(hk_stacked),
        {"__layer_stack_no_per_layer/linear/w": (-2,)},
        [],
    ),
    "haiku embedding": (
        haiku(lambda ids: hk.Embed(7, 4)(ids), IDS),
        {},
        ["embed/embeddings"],
    ),
    "equinox linear": (
        equinox(lambda: eqx.nn.Linear(3, 4, key=KEY)),
        {"weight": (1,)},
        [],
    ),
    "equinox stacked linear": (
        equinox(vmapped(lambda key: eqx.nn.Linear(4, 5, key=key))),
        {"weight": (2,)},
        [],
    ),
    "equinox conv": (
        equinox(lambda: eqx.nn.Conv2d(3, 4, 3, key=KEY)),
        {"weight": (1,)},
        [],
    ),
    "equinox conv of sequences": (
        equinox(lambda: eqx.nn.Conv1d(3, 4, 3, key=KEY)),
        {"weight": (1,)},
        [],
    ),
    "equinox stacked conv": (
        equinox(vmapped(lambda key: eqx.nn.Conv2d(2, 4, 3, key=key))),
        {"weight": (2,)},
        [],
    ),
    "equinox lstm": (
        equinox(lambda: eqx.nn.LSTMCell(3, 4, key=KEY)),
        {"weight_ih": (1,), "weight_hh": (1,)},
        [],
    ),
    "equinox gru": (
        equinox(lambda: eqx.nn.GRUCell(3, 4, key=KEY)),
        {"weight_ih": (1,), "weight_hh": (1,)},
        [],
    ),
    "equinox stacked gru": (
        equinox(vmapped(lambda key: eqx.nn.GRUCell(2, 4, key=key))),
        {"weight_ih": (2,), "weight_hh": (2,)},
        [],
    ),
    "equinox attention": (
        equinox(lambda: eqx.nn.MultiheadAttention(2, 6, key=KEY)),
        {f"{name}_proj/weight": (1,) for name in ("query", "key", "value", "output")},
        [],
    ),
    "equinox mlp": (
        equinox(lambda: eqx.nn.MLP(3, 2, 4, 1, key=KEY)),
        {"layers/0/weight": (1,), "layers/1/weight": (1,)},
        [],
    ),
    "equinox norm of two dimensions": (
        equinox(lambda: [eqx.nn.LayerNorm((2, 4)), eqx.nn.Linear(3, 4, key=KEY)]),
        {"1/weight": (1,)},
        ["0/weight"],
    ),
    "equinox norm that says so": (
        equinox(
            lambda: {
                "norm": eqx.nn.LayerNorm((2, 4)),
                "a": eqx.nn.Linear(3, 4, key=KEY),
            }
        ),
        {"a/weight": (1,)},
        [],
    ),
    "equinox stacked norm": (
        equinox(vmapped(lambda key: eqx.nn.LayerNorm(4))),
        {},
        ["weight"],
    ),
    "equinox embedding": (
        equinox(lambda: {"embed": eqx.nn.Embedding(7, 4, key=KEY)}),
        {},
        ["embed/weight"],
    ),
    "equinox linear without bias": (
        equinox(lambda: eqx.nn.Linear(3, 4, use_bias=False, key=KEY)),
        {},
        ["weight"],
    ),
    "equinox weight norm": (
        equinox(lambda: eqx.nn.WeightNorm(eqx.nn.Linear(3, 4, key=KEY))),
        {"layer/weight": (1,)},
        ["g"],
    ),
    "plain letters": (plain(w=(3, 4), b=(4,)), {"w": (-2,)}, []),
    "plain numbered": (
        plain(W1=(3, 4), b1=(4,), W2=(4, 2), b2=(2,)),
        {"W1": (-2,), "W2": (-2,)},
        [],
    ),
    "plain stacked": (
        plain(w=(3, 5, 4), b=(3, 4), gamma=(3, 4), beta=(3, 4)),
        {"w": (-2,)},
        [],
    ),
    # Nothing says that this `b` is a bias.
    "plain a and b": (plain(a=(3, 4), b=(4, 3)), {}, ["a", "b"]),
    "plain pairs": (plain(layers=[[(3, 4), (4,)]]), {}, ["layers/0/0"]),
    "plain either way up": (plain(weight=(4, 1, 3), bias=(4, 1)), {"weight": None}, []),
    "a token table": (plain(w=(3, 4), wte=(9, 3)), {"w": (-2,)}, ["wte"]),
    "one array": (lambda: jax.ShapeDtypeStruct((3, 4), jnp.float32), {}, [""]),
}


def names_of(tree, flags):
    return [n for n, f in zip(trees.paths(tree), jax.tree.leaves(flags)) if f]


def advice(message):
    """The code that a message suggests."""
    found = re.findall(r"prunable=(lambda tree: lj\.masks\.prunable\(.*?\]\))", message)
    assert found, message
    return [eval(code, {"lj": lj}) for code in found]


@pytest.mark.parametrize("name", TREES)
def test_every_matrix_counts_or_is_asked_for(name):
    make, weights, unclear = TREES[name]
    tree = make()
    names = trees.paths(tree)
    matrices = {n for n, x in zip(names, jax.tree.leaves(tree)) if len(x.shape) > 1}
    assert matrices >= {*weights, *unclear}
    left_out = {n.rpartition("/")[2] for n in matrices - {*weights, *unclear}}
    assert left_out <= {
        "bias",
        "bias_n",
        "scale",
        "offset",
        "b",
        "beta",
        "gamma",
        "weight",
    }
    if not unclear:
        assert set(names_of(tree, masks.prunable(tree))) == set(weights)
        # A mask has the names and shapes of its weights, and no more is asked.
        mask = jax.tree.map(lambda x: jnp.ones(x.shape, bool), tree)
        assert set(masks.layer_densities(mask)) == set(weights)
        return
    with pytest.raises(
        ValueError, match="pass include= or exclude= patterns"
    ) as caught:
        masks.prunable(tree)
    message = str(caught.value)
    assert re.search(re.escape(f"do not say whether {unclear} are weights"), message)
    assert ("no prunable leaf" in message) == (not weights)
    ways = [set(names_of(tree, way(tree))) for way in advice(message)]
    expected = [{*weights, *unclear}, {*weights}][: 1 + bool(weights)]
    assert ways == expected


@pytest.mark.parametrize("name", TREES)
def test_the_axes_of_the_inputs_are_known_or_asked_for(name):
    make, weights, _ = TREES[name]
    shapes = {path: x.shape for path, x in trees.by_path(make()).items()}
    found = {path: naming.input_axes(path, shapes) for path in weights}
    assert found == weights


# What a unit sums over, and how many units there are, windows in both; None if unknown.
FANS = {
    "linen dense": {"kernel": (6, 4)},
    "linen conv": {"kernel": (9 * 6, 9 * 4)},
    "linen conv without bias": {"kernel": (9 * 6, 9 * 4)},
    "linen conv of sequences": {"kernel": (3 * 6, 3 * 4)},
    "linen general": {"kernel": (6, 2 * 3)},
    "linen general without bias": {"kernel": None},
    "linen attention without biases": dict.fromkeys(
        ["key/kernel", "query/kernel", "value/kernel", "out/kernel"], (6, 6)
    ),
    "linen scanned blocks": {
        "blocks/Dense_0/kernel": (9, 6),
        "blocks/Dense_1/kernel": (6, 9),
        "blocks/attention/out/kernel": (6, 6),
        "blocks/attention/query/kernel": (6, 6),
    },
    "haiku transposed conv": {"conv1_d_transpose/w": None},
    "haiku stacked layers": {"__layer_stack_no_per_layer/linear/w": (6, 6)},
    "equinox stacked linear": {"weight": (4, 5)},
    "equinox conv": {"weight": (9 * 3, 9 * 4)},
    "equinox conv of sequences": {"weight": (3 * 3, 3 * 4)},
    "equinox stacked conv": {"weight": (9 * 2, 9 * 4)},
    "equinox attention": {"query_proj/weight": (6, 6)},
}


@pytest.mark.parametrize("name", FANS)
def test_fans_count_windows_and_no_stacks(name):
    make, fans = TREES[name][0], FANS[name]
    shapes = {path: x.shape for path, x in trees.by_path(make()).items()}
    assert {path: naming.fans(path, shapes) for path in fans} == fans


@pytest.mark.parametrize("name", TREES)
def test_every_axis_is_one_of_a_stack_a_window_the_inputs_or_the_outputs(name):
    make, weights, _ = TREES[name]
    shapes = {path: x.shape for path, x in trees.by_path(make()).items()}
    for path in weights:
        found, fans = naming.layout(path, shapes), naming.fans(path, shapes)
        assert (found is None) == (fans is None)
        if found is None:
            continue
        shape, inputs = shapes[path], naming.input_axes(path, shapes)
        assert found.inputs == tuple(a % len(shape) for a in inputs)
        axes = sorted(a for part in found for a in part)
        assert axes == list(range(len(shape))) and found.outputs
        window = math.prod(shape[a] for a in found.window)
        fan_out = window * math.prod(shape[a] for a in found.outputs)
        assert fans == (window * math.prod(shape[a] for a in found.inputs), fan_out)


def test_layouts_of_stacks_and_windows():
    """Stacked axes come first in all layers; windows before or behind."""
    expected = {
        ("linen conv", "kernel"): ((), (0, 1), (2,), (3,)),
        ("linen attention", "query/kernel"): ((), (), (0,), (1, 2)),
        ("linen attention", "out/kernel"): ((), (), (0, 1), (2,)),
        ("linen scanned blocks", "blocks/Dense_0/kernel"): ((0,), (), (1,), (2,)),
        ("linen scanned blocks", "blocks/attention/out/kernel"): (
            *((0,), (), (1, 2), (3,)),
        ),
        ("equinox conv", "weight"): ((), (2, 3), (1,), (0,)),
        ("equinox stacked conv", "weight"): ((0,), (3, 4), (2,), (1,)),
        ("haiku stacked layers", "__layer_stack_no_per_layer/linear/w"): (
            *((0,), (), (1,), (2,)),
        ),
        ("haiku transposed conv", "conv1_d_transpose/w"): None,
    }
    for (name, path), axes in expected.items():
        shapes = {p: x.shape for p, x in trees.by_path(TREES[name][0]()).items()}
        assert naming.layout(path, shapes) == axes, name


def test_fans_of_kernels_without_a_bias_are_known_by_what_the_layer_is_called():
    shapes = {
        "conv_0/kernel": (3, 3, 4, 5),
        "Conv_1/kernel": (3, 4, 5),
        "block/kernel": (3, 3, 4, 5),
        "mix/kernel": (3, 4, 5),
        "Dense_0/kernel": (3, 3, 4, 5),
        "dense_1/kernel": (3, 4, 5),
        "Conv_2/kernel": (2, 3, 3, 4, 5),
    }
    assert {name: naming.fans(name, shapes) for name in shapes} == {
        "conv_0/kernel": (36, 45),
        "Conv_1/kernel": (12, 15),
        "block/kernel": (36, 45),
    } | dict.fromkeys(["mix/kernel", "Dense_0/kernel", "dense_1/kernel"]) | {
        "Conv_2/kernel": None
    }


# --- groups along the inputs ----------------------------------------------------------


def test_groups_of_attention_lie_along_its_inputs():
    """Each output, a head and a feature, keeps two of every four inputs."""
    tree = linen(
        nn.MultiHeadDotProductAttention(4, qkv_features=8, out_features=3),
        jax.ShapeDtypeStruct((2, 5, 16), jnp.float32),
    )()
    rng = np.random.default_rng(0)
    scores = jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape)), tree)
    mask = jax.jit(prune.n_of_m, static_argnums=(2, 3))(
        scores, masks.ones_like(scores), 2, 4
    )
    for name in ("query", "key", "value"):
        kernel = np.asarray(mask[name]["kernel"])  # [16, heads, features]
        assert kernel.shape == (16, 4, 2)
        assert (kernel.reshape(4, 4, 8).sum(1) == 2).all()
    out = np.asarray(mask["out"]["kernel"])  # [heads, features, 3]
    assert out.shape == (4, 2, 3) and (out.reshape(2, 4, 3).sum(1) == 2).all()


def test_groups_of_equinox_lie_along_its_inputs():
    layers = [eqx.nn.Linear(8, 3, key=KEY), eqx.nn.Conv2d(4, 3, 3, key=KEY)]
    scores = jax.tree.map(jnp.abs, eqx.filter(layers, eqx.is_inexact_array))
    mask = jax.jit(prune.n_of_m, static_argnums=(2, 3))(
        scores, masks.ones_like(scores), 1, 4
    )
    assert (np.asarray(mask[0].weight).reshape(3, 2, 4).sum(-1) == 1).all()
    assert (np.asarray(mask[1].weight).sum(1) == 1).all()


def test_an_axis_that_is_not_known_is_asked_for_and_taken():
    scores = {
        "mix": {"kernel": jnp.arange(48.0).reshape(4, 3, 4)},
        "head": {"kernel": jnp.arange(8.0).reshape(4, 2)},
    }
    ones = masks.ones_like(scores)
    with pytest.raises(ValueError, match="neither the name 'mix/kernel'") as caught:
        prune.n_of_m(scores, ones, 2, 4)
    assert "pass it as axis={'mix/kernel': ...}" in str(caught.value)
    for axis in (0, -1):
        mask = jax.jit(
            lambda s, m: prune.n_of_m(s, m, 2, 4, axis={"mix/kernel": axis})  # noqa: B023
        )(scores, ones)
        assert (np.asarray(mask["mix"]["kernel"]).sum(axis) == 2).all()
        assert (np.asarray(mask["head"]["kernel"]).sum(0) == 2).all()
    with pytest.raises(ValueError, match="pattern 'mx' matches no leaf"):
        prune.n_of_m(scores, ones, 2, 4, axis={"mx": 0})


# --- what an error suggests -----------------------------------------------------------

UNCLEAR = {"head": {"kernel": (8, 4), "bias": (4,)}, "table": (6, 4)}


def unclear_tree():
    leaf = lambda shape: jnp.arange(1.0, 1 + math.prod(shape)).reshape(shape)  # noqa: E731
    return jax.tree.map(leaf, UNCLEAR, is_leaf=lambda x: isinstance(x, tuple))


def acting(make, *args, **options):
    """A rule that is made of leaves, and begins and acts."""

    def call(weights, mask, **given):
        rule = make(0.5, *args, **options, **given)
        if rule.start is not None:
            mask = rule.start(KEY, weights, mask)
        return rule.update(KEY, jnp.int32(10), weights, weights, mask)

    return call


# Every public function that asks which leaves count.
ASKING = {
    masks.total: lambda w, m, **p: masks.total(w, **p),
    masks.count: lambda w, m, **p: masks.count(m, **p),
    masks.density: lambda w, m, **p: masks.density(m, **p),
    masks.layer_densities: lambda w, m, **p: masks.layer_densities(m, **p),
    masks.layers: lambda w, m, **p: masks.layers(m, **p),
    masks.overlap: lambda w, m, **p: masks.overlap(m, m, **p),
    masks.overlaps: lambda w, m, **p: masks.overlaps({"a": m, "b": m}, **p),
    masks.shuffle: lambda w, m, **p: masks.shuffle(KEY, m, **p),
    masks.random: lambda w, m, **p: masks.random(KEY, w, 0.5, **p),
    masks.cuttable: lambda w, m, **p: masks.cuttable(m, exclude=(), **p),
    masks.resolve: lambda w, m, prunable=None: masks.resolve(m, prunable),
    prune.global_topk: lambda w, m, **p: prune.global_topk(w, m, fraction=0.5, **p),
    prune.layerwise_topk: lambda w, m, **p: prune.layerwise_topk(
        w, m, fraction=0.5, **p
    ),
    prune.to_density: lambda w, m, **p: prune.to_density(w, m, 0.5, **p),
    prune.n_of_m: lambda w, m, **p: prune.n_of_m(w, m, 1, 2, axis=0, **p),
    prune.keep_counts: lambda w, m, **p: prune.keep_counts(w, 0.5, **p),
    prune.to_counts: lambda w, m, **p: prune.to_counts(w, m, (12,), **p),
    dynamic.gradual_magnitude: acting(dynamic.gradual_magnitude, 0, 10, 10),
    dynamic.gradual_random: acting(dynamic.gradual_random, 0, 10, 10),
    dynamic.gradual_saliency: acting(dynamic.gradual_saliency, 0, 10, 10),
    dynamic.one_shot_magnitude: acting(dynamic.one_shot_magnitude, 10),
    dynamic.periodic_magnitude: acting(dynamic.periodic_magnitude, 0, 10, 10),
    dynamic.static_sparse: acting(dynamic.static_sparse),
    dynamic.sparse_evolutionary: acting(dynamic.sparse_evolutionary, 10, 10),
    dynamic.rigl: acting(dynamic.rigl, 10, 10),
    compact.saving: lambda w, m, **p: compact.saving(
        compact.Subnetwork(w, m), compact.Subnetwork(w, m), **p
    ),
}


def test_every_function_that_takes_prunable_is_asked():
    found = {
        function
        for module in (masks, prune, dynamic, compact)
        for function in vars(module).values()
        if inspect.isfunction(function)
        and function.__module__.startswith(module.__name__)
        and not function.__name__.startswith("_")
        and {"prunable", "prunable_"} & {*inspect.signature(function).parameters}
    }
    assert found == {*ASKING}


@pytest.mark.slow
@pytest.mark.parametrize("function", ASKING, ids=lambda function: function.__name__)
def test_every_function_takes_what_its_error_suggests(function):
    call, weights = ASKING[function], unclear_tree()
    mask = masks.ones_like(weights)
    if function is masks.cuttable:  # whose second argument is not optional
        call = lambda w, m, prunable=None: masks.cuttable(m, prunable, ())  # noqa: E731
    with pytest.raises(ValueError, match=r"whether \['table'\] are weights") as caught:
        call(weights, mask)
    ways = advice(str(caught.value))
    assert len(ways) == 2
    for way in ways:
        call(weights, mask, prunable=way)
    assert masks.total(weights, ways[0]) == 32 + 24
    assert masks.total(weights, ways[1]) == 32


def test_a_task_takes_what_the_error_suggests():
    task = toys.classification()
    weights = lambda key: (unclear_tree(), {}, ())  # noqa: E731
    task = task._replace(init=weights)
    with pytest.raises(ValueError, match=r"whether \['table'\]") as caught:
        masks.of_task(task)
    for way, counted in zip(advice(str(caught.value)), (2, 1)):
        assert (
            sum(jax.tree.leaves(masks.of_task(task._replace(prunable=way)))) == counted
        )


def test_names_are_patterns_that_find_nothing_else():
    tree = {
        "a.b": jnp.ones((2, 2)),
        "axb": jnp.ones((2, 2)),
        "a.b(1)": jnp.ones((2, 2)),
    }
    with pytest.raises(ValueError) as caught:
        masks.prunable(tree, exclude="axb")
    (way,) = advice(str(caught.value))
    assert names_of(tree, way(tree)) == ["a.b", "a.b(1)"]


def test_integers_are_weights_only_if_they_are_named():
    tree = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2), int)}}
    with pytest.raises(
        ValueError, match=r"whether \['b/kernel'\] are weights"
    ) as caught:
        masks.prunable(tree)
    ways = [names_of(tree, way(tree)) for way in advice(str(caught.value))]
    assert ways == [["a/kernel", "b/kernel"], ["a/kernel"]]


def test_complex_weights_have_magnitudes_and_complex_scores_are_refused():
    tree = {"kernel": jnp.array([[3 + 4j, 1j], [2.0, 6j]])}
    ones = masks.ones_like(tree)
    mask = prune.global_topk(lj.scores.magnitude(tree), ones, fraction=0.5)
    assert mask["kernel"].tolist() == [[True, False], [False, True]]
    with pytest.raises(
        ValueError, match="'kernel' has dtype complex64; it must be real"
    ):
        prune.global_topk(tree, ones, fraction=0.5)


def test_cells_and_a_head_are_pruned_together():
    """A density is one of all matrices, those of a recurrent cell too."""
    params = eqx.filter(
        {"cell": eqx.nn.GRUCell(8, 8, key=KEY), "head": eqx.nn.Linear(8, 2, key=KEY)},
        eqx.is_inexact_array,
    )
    mask = jax.jit(lambda s, m: prune.to_density(s, m, 0.1))(
        lj.scores.magnitude(params), masks.ones_like(params)
    )
    matrices = [m for m in jax.tree.leaves(mask) if m.ndim == 2]
    assert len(matrices) == 3
    left = sum(int(m.sum()) for m in matrices)
    assert left == round(0.1 * (2 * 24 * 8 + 2 * 8)) == int(masks.count(mask))
