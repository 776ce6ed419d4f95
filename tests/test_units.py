"""Units of the models, and narrower networks inside the full shapes."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lottery_jax import masks, models

NAMES = ("mlp-20-12", "residual-mlp-200", "conv-4-4", "vgg-11-4", "resnet-8-6")


@functools.cache
def build(name):
    """A model, its variables, inputs, and its function in training mode and not."""
    shape = (12,) if "mlp" in name else (16, 16, 3)
    model = models.make(name, 5, bias="torch")
    x = jax.random.normal(jax.random.key(1), (4, *shape))
    # Compiled as a whole: one by one, the operations of a network take much longer.
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)

    def apply(variables, train):
        if train:
            return model.apply(variables, x, train=True, mutable=True)[0]
        return model.apply(variables, x, train=False)

    return model, variables, jax.jit(apply, static_argnums=1)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_units_of_a_group_does_not_change_the_function(name):
    model, variables, apply = build(name)
    axes = models.units(model, variables["params"])
    groups = {a.group for leaf in axes.values() for a in leaf} - {None}
    rng = np.random.default_rng(0)
    order = {}

    def permuted(path, leaf):
        name = masks.leaf_path(path)
        for i, axis in enumerate(axes[name]):
            if axis.group is None:
                continue
            size = leaf.shape[i] // axis.repeats
            p = order.setdefault(axis.group, rng.permutation(size))
            index = (np.arange(axis.repeats)[:, None] * size + p).ravel()
            leaf = np.take(np.asarray(leaf), index, axis=i)
        return leaf

    params = jax.tree_util.tree_map_with_path(permuted, variables["params"])
    assert set(order) == groups and groups
    moved = apply({**variables, "params": params}, False)
    np.testing.assert_allclose(moved, apply(variables, False), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_narrow_network_has_the_count_and_ignores_what_is_beyond(name):
    model, variables, apply = build(name)
    params = variables["params"]
    total = masks.total(params)
    count = round(0.4 * total)
    narrowed, mask = models.narrow(model, params, count)
    assert abs(int(masks.count(mask)) - count) <= 0.02 * count
    kept = masks.apply(mask, narrowed)
    out = apply({**variables, "params": kept}, True)
    # Biases and norms of absent units reach nothing, in training mode too.
    axes = models.units(model, params)
    sizes = {}
    for path, m in zip(masks.paths(mask), jax.tree.leaves(mask)):
        if path.endswith("kernel") and axes[path][-1].group:
            present = np.asarray(m).reshape(-1, m.shape[-1]).any(axis=0)
            sizes[axes[path][-1].group] = present

    def noise(path, leaf):
        axis = axes[masks.leaf_path(path)][-1]
        if leaf.ndim == 1 and axis.group:
            return jnp.where(sizes[axis.group], leaf, leaf + 3.0)
        return leaf

    noisy = jax.tree_util.tree_map_with_path(noise, kept)
    again = apply({**variables, "params": noisy}, True)
    np.testing.assert_array_equal(out, again)


@pytest.mark.parametrize("initializer", ["kaiming_normal", "glorot_normal"])
def test_narrow_draws_have_the_law_of_the_narrow_fan_in(initializer):
    model = models.make("mlp-400-300", 10, initializer=initializer)
    params = model.init(jax.random.key(0), jnp.zeros((1, 50)))["params"]
    narrowed, mask = models.narrow(model, params, round(0.3 * masks.total(params)))
    kernel, m = (np.asarray(t["dense_1"]["kernel"]) for t in (narrowed, mask))
    fan_in, fan_out = m.any(axis=1).sum(), m.any(axis=0).sum()
    assert m[:fan_in, :fan_out].all() and m.sum() == fan_in * fan_out
    expected = 2 / fan_in if initializer == "kaiming_normal" else 2 / (fan_in + fan_out)
    assert np.isclose(kernel[m].var(), expected, rtol=0.05)


def test_unknown_models_are_refused():
    from flax import linen as nn

    with pytest.raises(ValueError, match="no model of lottery_jax"):
        models.units(nn.Dense(3), {})
