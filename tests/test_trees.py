"""Masks over the parameters of Linen, NNX, Equinox, Haiku and plain dicts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lottery_jax import masks, prune, scores, transforms, trees

pytestmark = pytest.mark.usefixtures("compiled_quickly")

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=2, name="conv")(x)
        x = nn.LayerNorm(name="norm")(nn.relu(x))
        return nn.Dense(2, name="head")(x.reshape(len(x), -1))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, x):
        x = self.norm(nnx.relu(self.conv(x)))
        return self.head(x.reshape(len(x), -1))


def linen():
    model = Linen()
    params = jax.jit(model.init)(jax.random.key(0), X)["params"]
    return params, lambda p: model.apply({"params": p}, X), {}


def nnx_state():
    graph, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)
    return params, lambda p: nnx.merge(graph, p, rest)(X), {}


def equinox():
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.LayerNorm
        head: eqx.nn.Linear

        def __call__(self, x):
            x = self.norm(jax.nn.relu(self.conv(x)))
            return self.head(x.reshape(-1))

    keys = jax.random.split(jax.random.key(0))
    model = Model(
        eqx.nn.Conv2d(3, 4, 3, 2, 1, key=keys[0]),
        eqx.nn.LayerNorm((4, 4, 4)),
        eqx.nn.Linear(64, 2, key=keys[1]),
    )
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def apply(params):
        return jax.vmap(eqx.combine(params, rest))(X.transpose(0, 3, 1, 2))

    return params, apply, {"exclude": "norm"}


def haiku():
    hk = pytest.importorskip("haiku")

    def forward(x):
        x = hk.Conv2D(4, 3, stride=2, name="conv")(x)
        x = hk.LayerNorm(-1, True, True, name="norm")(jax.nn.relu(x))
        return hk.Linear(2, name="head")(x.reshape(len(x), -1))

    model = hk.without_apply_rng(hk.transform(forward))
    return jax.jit(model.init)(jax.random.key(0), X), lambda p: model.apply(p, X), {}


def plain():
    """A tuple, a list and arrays under the names of kernels."""
    rng = np.random.default_rng(0)
    params = (
        {
            "w": jnp.asarray(rng.normal(size=(192, 8)) / 20, jnp.float32),
            "b": jnp.zeros(8),
        },
        [{"kernel": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)}],
    )

    def apply(params):
        hidden = jnp.tanh(X.reshape(4, -1) @ params[0]["w"] + params[0]["b"][None])
        return hidden @ params[1][0]["kernel"]

    return params, apply, {}


TREES = {
    linen: ("conv/kernel", "head/kernel"),
    nnx_state: ("conv/kernel", "head/kernel"),
    equinox: ("conv/weight", "head/weight"),
    haiku: ("conv/w", "head/w"),
    plain: ("0/w", "1/0/kernel"),
}


def names_of(params, flags):
    return [n for n, f in zip(trees.paths(params), jax.tree.leaves(flags)) if f]


@pytest.mark.parametrize("make", TREES, ids=lambda make: make.__name__)
def test_pruning_takes_the_kernels_and_a_masked_step_keeps_them(make):
    params, apply, options = make()
    flags = masks.prunable(params, **options)
    assert all(type(flag) is bool for flag in jax.tree.leaves(flags))
    assert jax.tree.structure(flags) == jax.tree.structure(params)
    # In tree order, which Equinox makes the order of definition.
    assert tuple(names_of(params, flags)) == TREES[make]
    # Resolved once on shapes is the same.
    shapes = jax.eval_shape(lambda: params)
    assert jax.tree.leaves(masks.prunable(shapes, **options)) == jax.tree.leaves(flags)

    tx = transforms.masked(optax.adamw(0.01, weight_decay=0.1))

    @jax.jit
    def prune_and_step(params):
        mask = prune.global_topk(
            scores.magnitude(params),
            masks.ones_like(params),
            fraction=0.75,
            prunable=flags,
        )
        params = masks.apply(mask, params)
        state, losses = tx.init(params), []
        for _ in range(2):
            loss = lambda p: jnp.mean((apply(p) - 1.0) ** 2)  # noqa: E731
            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = tx.update(gradients, state, params, mask=mask)
            params = optax.apply_updates(params, updates)
            losses.append(value)
        return mask, params, transforms.mask_state(tx, state, mask), losses

    mask, after, state, losses = prune_and_step(params)
    masks.check(mask, params)
    total = masks.total(params, flags)
    assert int(masks.count(mask, flags)) == total - round(0.75 * total)
    for name, flag, m, p, before in zip(
        trees.paths(params), *map(jax.tree.leaves, (flags, mask, after, params))
    ):
        m, p, before = map(np.asarray, (m, p, before))
        assert m.all() != flag, name
        assert (p[~m] == 0).all() and (p[m] != before[m]).any(), name
    assert losses[-1] < losses[0]
    moments = state[0].mu  # Adam's, masked by structure
    assert jax.tree.structure(moments) == jax.tree.structure(params)
    for m, moment in zip(jax.tree.leaves(mask), jax.tree.leaves(moments)):
        assert (np.asarray(moment)[~np.asarray(m)] == 0).all()

    # The default finds the same leaves in a mask, or says why it does not.
    if not options:
        assert masks.count(mask) == masks.count(mask, flags)
        assert list(masks.layer_densities(mask)) == list(TREES[make])


# --- names that do not settle what a leaf is ------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda eqx, key: eqx.nn.LayerNorm((4, 4)),
        lambda eqx, key: eqx.nn.Embedding(9, 4, key=key),
        lambda eqx, key: eqx.nn.Linear(4, 4, use_bias=False, key=key),
    ],
    ids=["layer_norm", "embedding", "linear_without_bias"],
)
def test_an_ambiguous_equinox_tree_lists_its_candidates(make):
    eqx = pytest.importorskip("equinox")

    # A neutral name, so that nothing but the arrays can tell.
    layers = {
        "a": eqx.nn.Linear(4, 3, key=jax.random.key(0)),
        "b": make(eqx, jax.random.key(1)),
    }
    params = eqx.filter(layers, eqx.is_inexact_array)
    with pytest.raises(ValueError, match="include= or exclude=") as error:
        masks.prunable(params)
    text = str(error.value)
    assert "['b/weight']" in text and "['a/weight', 'b/weight']" in text
    # Said once, it is settled; everything that takes `prunable` then works.
    out = masks.prunable(params, exclude="b/weight")
    assert names_of(params, out) == ["a/weight"]
    both = masks.prunable(params, include="weight")
    assert names_of(params, both) == ["a/weight", "b/weight"]
    with pytest.raises(ValueError, match="b/weight"):
        masks.density(masks.ones_like(params))
    assert masks.density(masks.ones_like(params), out) == 1


def test_a_one_dimensional_norm_is_no_question():
    eqx = pytest.importorskip("equinox")
    layers = [eqx.nn.Linear(4, 3, key=jax.random.key(0)), eqx.nn.LayerNorm(3)]
    params = eqx.filter(layers, eqx.is_inexact_array)
    assert names_of(params, masks.prunable(params)) == ["0/weight"]


def test_modules_with_functions_in_them_are_filtered_first():
    eqx = pytest.importorskip("equinox")
    mlp = eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0))
    params = eqx.filter(mlp, eqx.is_inexact_array)
    names = [f"layers/{i}/weight" for i in range(3)]
    assert names_of(params, masks.prunable(params)) == names


# --- patterns -------------------------------------------------------------------------


def linen_shapes():
    return jax.eval_shape(Linen().init, jax.random.key(0), X)["params"]


def test_patterns_choose_leaves():
    params = linen_shapes()
    choose = lambda **kw: names_of(params, masks.prunable(params, **kw))  # noqa: E731
    assert choose(include="head") == ["head/bias", "head/kernel"]
    assert choose(include="^head/kernel$") == ["head/kernel"]
    assert choose(include=["norm/scale", "conv/k"]) == ["conv/kernel", "norm/scale"]
    assert choose(exclude="head") == ["conv/kernel"]
    assert choose(include=".", exclude=("bias", "norm")) == [
        "conv/kernel",
        "head/kernel",
    ]
    assert names_of(params, trees.matching(params, "conv|scale")) == [
        "conv/bias",
        "conv/kernel",
        "norm/scale",
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"include": "hed"},
            "pattern 'hed' matches no leaf; there are .*'head/kernel'",
        ),
        (
            {"exclude": "hed"},
            "pattern 'hed' matches no leaf; there are .*'head/kernel'",
        ),
        ({"include": ["head", "hed"]}, "pattern 'hed'"),
        ({"exclude": "kernel"}, "no prunable leaf among .*'conv/kernel'.*include="),
        ({"include": "conv", "exclude": "conv"}, "no prunable leaf"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        masks.prunable(linen_shapes(), **options)


def test_a_tree_without_a_kernel_is_refused_with_its_names():
    params = {"theta": jnp.ones((3, 3)), "kernel": jnp.ones(3)}
    with pytest.raises(
        ValueError, match=r"no prunable leaf among \['kernel', 'theta'\]"
    ):
        masks.prunable(params)
    with pytest.raises(ValueError, match="no prunable leaf"):
        masks.density(masks.ones_like(params))
    assert names_of(params, masks.prunable(params, include="theta")) == ["theta"]
