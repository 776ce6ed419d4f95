"""Networks without their dead units: the same function, gradients and training."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery_jax import compact, masks, models, tickets, transforms, trees, units
from lottery_jax.compact import Subnetwork

pytestmark = pytest.mark.usefixtures("compiled_quickly")

MODELS = {
    "mlp": models.MLP(5, (20, 12), models.Choices(bias="torch")),
    "residual mlp": models.ResidualMLP(5, 24),
    "convolutions": models.ConvNet(5, (6,), dense=(16, 10)),
    "vgg": models.VGG(5, layers=(1, 1), widths=(6, 8)),
    "resnet": models.ResNet(5, layers=(1, 1), width=6),
    # One stage: four pixels are left of eight rows, for statistics of enough examples.
    "bottlenecks": models.ResNet(5, (2,), 4, bottleneck=True, imagenet=True),
}
NAMES = tuple(MODELS)


def drawn(model, x):
    """Variables without compiling the law of a network, statistics as after training."""
    rng = np.random.default_rng(1)

    def one(path, leaf):
        values = rng.standard_normal(leaf.shape)
        if leaf.ndim > 1:
            values *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif trees.leaf_path(path).endswith(("scale", "var")):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            values *= 0.3
        return jnp.asarray(values, leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(one, shapes)


def masked(mask, tree):
    """By NumPy, so that nothing is compiled for each shape."""
    return jax.tree.map(lambda m, p: np.where(m, p, np.zeros_like(p)), mask, tree)


def survivors(mask):
    return sum(int(np.sum(np.asarray(m))) for m in jax.tree.leaves(mask) if m.ndim > 1)


@cache
def build(name, density=0.5, cut=0.4):
    """A model, a network some of whose units are read by nothing, a batch.

    A random mask, and of every group a share `cut` of the units loses what reads it.
    """
    shape = (6, 12) if "mlp" in name else (6, 8, 8, 3)
    x = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)
    variables = drawn(MODELS[name], x)
    params = variables["params"]
    axes = units.of_params(MODELS[name], params)
    rng = np.random.default_rng(0)
    unread = {}

    def one(path, leaf):
        path = trees.leaf_path(path)
        if leaf.ndim < 2:
            return np.ones(leaf.shape, bool)
        mask, axis = rng.random(leaf.shape) < density, axes[path][-2]
        if axis.group is not None:
            n = leaf.shape[-2] // axis.repeats
            if axis.group not in unread:
                unread[axis.group] = rng.permutation(n) < round(cut * n)
            mask &= ~np.tile(unread[axis.group], axis.repeats)[:, None]
        return mask

    mask = jax.tree_util.tree_map_with_path(one, params)
    state = {k: v for k, v in variables.items() if k != "params"}
    network = Subnetwork(
        *jax.tree.map(jnp.asarray, (masked(mask, params), mask, state))
    )
    return MODELS[name], network, x, unread


def count_units(small):
    return {group: len(units) for group, units in small.kept.items()}


def close(a, b):
    """Equal up to the order of summation.

    A sum of n terms of either sign is off by about sqrt(n) roundings of 6e-8 of its size;
    with at most 800 terms and some ten layers that stays below 2e-5 of the largest entry.
    Entries that only rounding makes differ from 0 (gradients of biases that a norm takes
    away again) are sums of terms of about a hundredth.
    """
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(np.abs(b).max(), 1e-2))


def training_pass(model, network, x):
    """Logits in use; gradients and new statistics in training; on the host."""
    return trees.host(_training_pass(model, network, x))


@partial(quick.jit, static_argnums=0)
def _training_pass(model, network, x):

    def loss(params):
        logits, state = model.apply(
            {"params": params, **network.model_state}, x, True, mutable=["batch_stats"]
        )
        labels = jnp.arange(len(x)) % logits.shape[-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), state

    gradients, state = jax.grad(loss, has_aux=True)(network.params)
    logits = model.apply({"params": network.params, **network.model_state}, x)
    return logits, gradients, state


def as_network(small):
    return Subnetwork(small.params, small.mask, small.model_state)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_function_gradients_and_statistics_are_those_of_the_full_network(name):
    model, network, x, unread = build(name)
    small = compact.shrink(model, network)
    dead = compact.removable(units.of_params(model, network.params), network.mask)
    for group, gone in unread.items():
        assert (dead[group] | ~gone).all() and 0 < dead[group].sum() < len(gone)

    logits, gradients, state = training_pass(model, network, x)
    got = training_pass(model, as_network(small), x)
    assert np.std(logits, axis=0).max() > 1e-3  # a network, not a constant
    close(got[0], logits)

    axes = units.of_params(model, network.params)
    kept = masked(small.mask, compact.take(axes, gradients, small.kept))
    jax.tree.map(close, masked(small.mask, got[1]), kept)
    # Of surviving weights, the gradients in the removed ones are 0 and not just small.
    removed = jax.tree.map(
        lambda here, full: full & ~here,
        trees.host(compact.expand(model, small).mask),
        trees.host(network.mask),
    )
    assert any(m.any() for m in jax.tree.leaves(removed))
    for g, m in zip(jax.tree.leaves(gradients), jax.tree.leaves(removed)):
        assert not g[m].any()
    if state:
        axes = units.of_state(model, network.params, state)
        jax.tree.map(close, got[2], compact.take(axes, state, small.kept))


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name):
    model, network, _, _ = build(name)
    small = compact.shrink(model, network)
    # Nothing more goes; what is left is the same.
    again = compact.shrink(model, small)
    assert count_units(again) == count_units(small) == again.widths
    jax.tree.map(np.testing.assert_array_equal, as_network(again), as_network(small))
    jax.tree.map(
        np.testing.assert_array_equal,
        compact.expand(model, small, like=network),
        network,
    )
    # Without a network to take them from: zeros, and in the mask what the leaf is like.
    full = trees.host(compact.expand(model, small))
    jax.tree.map(
        np.testing.assert_array_equal,
        as_network(compact.shrink(model, full)),
        as_network(small),
    )
    counts = [survivors(m) for m in (full.mask, small.mask, network.mask)]
    assert counts[0] == counts[1] < counts[2]
    outside = jax.tree.map(
        lambda a, b: (a & ~np.asarray(b)).any(), full.mask, network.mask
    )
    assert not any(jax.tree.leaves(outside))
    saving = compact.saving(network, small)
    assert saving.surviving_after == counts[1] and saving.surviving_before == counts[2]
    assert saving.before == masks.total(network.params) > saving.after > counts[1]
    assert saving.share == 1 - saving.after / saving.before
    for path, leaf in jax.tree_util.tree_leaves_with_path(full.mask):
        assert leaf.ndim > 1 or leaf.all(), path
    for path, leaf in jax.tree_util.tree_leaves_with_path(full.model_state):
        group = units.of_state(model, full.params, full.model_state)
        group = group[trees.leaf_path(path)][0].group
        gone = np.setdiff1d(np.arange(small.widths[group]), small.kept[group])
        assert (leaf[gone] == trees.leaf_path(path).endswith("var")).all()


@pytest.mark.parametrize(
    "name, optimizer",
    [("mlp", "sgd"), ("mlp", "adam"), ("resnet", "sgd")],
)
def test_training_commutes_with_shrinking(name, optimizer):
    model, network, x, _ = build(name)
    tx = optax.sgd(0.01, 0.9) if optimizer == "sgd" else optax.adam(1e-3)
    tx = transforms.masked(tx)

    @quick.jit
    def step(network, opt_state, gradients, state):
        updates, opt_state = tx.update(
            gradients, opt_state, network.params, mask=network.mask
        )
        params = optax.apply_updates(network.params, updates)
        return Subnetwork(params, network.mask, state), opt_state

    def trained(network, opt_state):
        for _ in range(4):
            _, gradients, state = training_pass(model, network, x)
            network, opt_state = step(network, opt_state, gradients, state)
        return network, opt_state

    full, opt_state = trained(network, tx.init(network.params))
    small = compact.shrink(model, network)
    little, little_state = trained(as_network(small), tx.init(small.params))
    axes = units.of_params(model, network.params)
    for a, b, start in zip(*map(jax.tree.leaves, (little, full, network))):
        if a.dtype == np.float32:
            b = np.asarray(b)
            assert np.abs(b - np.asarray(start)).max() > 1e-4 or not b.any()
    jax.tree.map(close, little.params, compact.take(axes, full.params, small.kept))
    # Moments, too, so that training may be compacted at any step.
    moments = {"sgd": lambda s: [s[0].trace], "adam": lambda s: [s[0].mu, s[0].nu]}
    for a, b in zip(moments[optimizer](little_state), moments[optimizer](opt_state)):
        jax.tree.map(close, a, compact.take(axes, b, small.kept))
    # In the full shapes: the trained survivors, and what was removed as it was.
    back = compact.expand(
        model, small._replace(params=little.params, model_state=little.model_state)
    )
    kept = compact.take(axes, back.params, small.kept)
    jax.tree.map(np.testing.assert_array_equal, kept, little.params)


def test_a_full_mask_removes_nothing():
    model, network, x, _ = build("convolutions")
    dense = network._replace(mask=masks.ones_like(network.params))
    small = compact.shrink(model, dense)
    jax.tree.map(np.testing.assert_array_equal, small.params, network.params)
    assert count_units(small) == small.widths
    assert compact.saving(dense, small).share == 0


# --- small networks by hand -----------------------------------------------------------


def mlp(*sizes, weights):
    """An MLP of ones with the kernels' masks given as lists of rows."""
    names = [*(f"dense_{i}" for i in range(len(sizes) - 2)), "head"]
    shapes = list(zip(sizes, sizes[1:]))
    params = {
        n: {"kernel": np.ones(s, np.float32), "bias": np.ones(s[1], np.float32)}
        for n, s in zip(names, shapes)
    }
    mask = {
        n: {"kernel": np.array(w, bool), "bias": np.ones(s[1], bool)}
        for n, s, w in zip(names, shapes, weights)
    }
    return models.MLP(sizes[-1], sizes[1:-1]), Subnetwork(params, mask)


def test_a_removed_unit_takes_those_with_it_that_only_it_reads():
    # Unit 1 of the last layer is read by nothing; unit 0 of the middle one by it alone;
    # unit 2 of the first by that alone. Unit 1 of the first has nothing coming in.
    first = [[1, 0, 1], [1, 0, 1]]
    middle = [[0, 1], [0, 1], [1, 0]]
    last = [[0, 1], [1, 1]]
    model, network = mlp(2, 3, 2, 2, 1, weights=(first, middle, last, [[1], [0]]))
    small = compact.shrink(model, network)
    kept = {group: units.tolist() for group, units in small.kept.items()}
    assert kept == {"dense_0": [0, 1], "dense_1": [1], "dense_2": [0]}
    assert small.widths == {"dense_0": 3, "dense_1": 2, "dense_2": 2}
    assert small.mask["dense_0"]["kernel"].tolist() == [[True, False]] * 2
    saving = compact.saving(network, small)
    assert saving == (6 + 6 + 4 + 2, 4 + 2 + 1 + 1, 4 + 3 + 3 + 1, 2 + 2 + 1 + 1)


def test_a_group_that_is_dead_altogether_keeps_its_first_unit():
    model, network = mlp(2, 2, 2, 1, weights=([[1, 1]] * 2, [[1, 1]] * 2, [[0], [0]]))
    small = compact.shrink(model, network)
    assert {g: u.tolist() for g, u in small.kept.items()} == {
        "dense_0": [0],
        "dense_1": [0],
    }
    x = jnp.ones((3, 2))
    assert (model.apply({"params": small.params}, x) == 1).all()  # the head's bias
    gradients = training_pass(model, as_network(small), x)[1]
    assert not any(g.any() for g in jax.tree.leaves(gradients["dense_0"]))


def residual(loops, head):
    """A `ResidualMLP` of three units on two inputs; masks of its last two kernels."""
    model = models.ResidualMLP(1, 3)
    params = drawn(model, np.ones((1, 2), np.float32))["params"]
    mask = jax.tree.map(lambda p: np.ones(p.shape, bool), params)
    mask["dense_1"]["kernel"] = np.array(loops, bool)
    mask["head"]["kernel"] = np.array(head, bool)
    return model, Subnetwork(masked(mask, params), mask)


def test_a_unit_of_a_residual_stream_stays_if_anything_reads_it():
    # The head reads unit 0, the block reads unit 1 for unit 0, nothing reads unit 2.
    model, network = residual([[0, 0, 0], [1, 0, 0], [0, 0, 0]], [[1], [0], [0]])
    assert compact.shrink(model, network).kept["stream"].tolist() == [0, 1]
    # Units 1 and 2 read each other and themselves, and nothing else reads them.
    model, network = residual([[1, 1, 1], [0, 1, 1], [0, 1, 1]], [[1], [0], [0]])
    small = compact.shrink(model, network)
    assert small.kept["stream"].tolist() == [0]
    x = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    apply = quick.jit(model.apply)
    close(*(apply({"params": n.params}, x) for n in (small, network)))


def test_a_stream_of_a_residual_network_is_as_wide_in_all_its_layers():
    model, network, _, _ = build("resnet")
    small = compact.shrink(model, network).params
    stem = small["stem"]["kernel"].shape[-1]
    first = small["stage_0_block_0"]
    assert first["conv_0"]["kernel"].shape[-2] == stem
    assert first["conv_1"]["kernel"].shape[-1] == stem
    assert small["stage_1_block_0"]["shortcut"]["kernel"].shape[-2] == stem < 6


def test_a_channel_stays_if_one_pixel_of_it_is_read():
    model, network, _, _ = build("convolutions", 1.0, 0.0)
    kernel = np.zeros(network.mask["dense_0"]["kernel"].shape, bool)
    kernel[6 * 7 + 4, 3] = True  # pixel 7 of channel 4
    layer = {**network.mask["dense_0"], "kernel": kernel}
    thin = network._replace(mask={**network.mask, "dense_0": layer})
    small = compact.shrink(model, thin)
    assert small.kept["conv_1"].tolist() == [4]
    # Unit 3 alone has something coming in; the others are constants, and not removed.
    assert len(small.kept["dense_0"]) == 16
    shape = (kernel.shape[0] // 6, 16)
    assert small.params["dense_0"]["kernel"].shape == shape
    assert np.argwhere(small.mask["dense_0"]["kernel"]).tolist() == [[7, 3]]


def test_a_projection_stays_where_both_its_sides_become_equally_wide():
    model = models.ResNet(3, layers=(1,), width=2, bottleneck=True)
    x = np.random.default_rng(1).normal(size=(2, 5, 5, 3)).astype(np.float32)
    variables = drawn(model, x)
    params = variables["params"]
    mask = jax.tree.map(lambda p: np.ones(p.shape, bool), params)
    mask["head"]["kernel"][2:] = False
    state = {"batch_stats": variables["batch_stats"]}
    network = Subnetwork(masked(mask, params), mask, state)
    small = compact.shrink(model, network)
    block = small.params["stage_0_block_0"]
    assert block["shortcut"]["kernel"].shape == (1, 1, 2, 2)
    full, got = (
        np.asarray(quick.jit(model.apply)({"params": n.params, **n.model_state}, x))
        for n in (network, small)
    )
    assert np.std(full, axis=0).max() > 1e-3
    close(got, full)


# Whole numbers add up exactly in any order (below 2^24), so nothing needs a tolerance.
_SIZES = (3, 4, 3, 2)
_X = jnp.array([[1, -2, 3], [0, 1, 1], [-1, -1, 2]], jnp.float32)


@quick.jit
def _exact_pass(params):
    def total(params):
        logits = models.MLP(2, (4, 3)).apply({"params": params}, _X)
        return jnp.sum(logits * jnp.array([[1, -2], [3, 1], [-1, 2.0]])), logits

    return jax.grad(total, has_aux=True)(params)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**30), st.sampled_from([0.0, 0.1, 0.2, 0.4, 0.7]))
def test_any_mask_exactly(seed, density):
    rng = np.random.default_rng(seed)
    shapes = list(zip(_SIZES, _SIZES[1:]))
    weights = [rng.random(shape) < density for shape in shapes]
    model, network = mlp(*_SIZES, weights=weights)
    params = jax.tree.map(
        lambda p: np.float32(rng.integers(-3, 4, p.shape)), network.params
    )
    network = network._replace(params=masked(network.mask, params))
    small = compact.shrink(model, network)
    gradients, logits = trees.host(_exact_pass(network.params))
    got, small_logits = trees.host(_exact_pass(small.params))
    np.testing.assert_array_equal(small_logits, logits)
    axes = units.of_params(model, network.params)
    kept = compact.take(axes, gradients, small.kept)
    jax.tree.map(
        np.testing.assert_array_equal,
        masked(small.mask, got),
        masked(small.mask, kept),
    )
    # Each unit that is left leads to an output, or is the only one of its group.
    widths = count_units(small)
    reaches = np.ones(2, bool)
    for name, group in (("head", "dense_1"), ("dense_1", "dense_0")):
        reaches = np.asarray(small.mask[name]["kernel"])[:, reaches].any(axis=1)
        assert reaches.all() or widths[group] == 1
    sparse = compact.to_bcoo(model, small)
    assert sum(k.nse for k in sparse.kernels) == survivors(small.mask)


# --- for inference --------------------------------------------------------------------


def test_exports_compute_what_the_ticket_computes(tmp_path):
    model, network, x, _ = build("mlp")
    ticket = tickets.Ticket(network.mask, network.params, {}, {"level": 3})
    tickets.save(tmp_path / "ticket", ticket)
    ticket = tickets.load(tmp_path / "ticket")
    apply = quick.jit(model.apply)
    expected = apply({"params": network.params}, x)
    dense = compact.export_dense(model, ticket)
    close(apply({"params": dense.params, **dense.model_state}, x), expected)
    for source in (ticket, compact.shrink(model, ticket)):
        sparse = compact.to_bcoo(model, source)
        close(quick.jit(compact.apply_bcoo)(sparse, x), expected)
        assert [k.nse for k in sparse.kernels] == [
            int(np.sum(source.mask[n]["kernel"]))
            for n in ("dense_0", "dense_1", "head")
        ]
    batches = np.stack([x, -np.asarray(x)])
    many = quick.jit(jax.vmap(compact.apply_bcoo, (None, 0)))(sparse, batches)
    close(np.asarray(many)[0], expected)


def test_a_layer_without_survivors_is_its_bias():
    model, network = mlp(2, 2, 1, weights=([[0, 0]] * 2, [[1], [1]]))
    sparse = compact.to_bcoo(model, network)
    assert sparse.kernels[0].nse == 0
    assert compact.apply_bcoo(sparse, jnp.ones((3, 2))).tolist() == [[3.0]] * 3


def test_sizes_by_hand():
    # 3-2-1; unit 1 is dead. Float32 takes 4 bytes, two int32 indices 8.
    first = [[1, 1], [0, 1], [1, 0]]
    model, network = mlp(3, 2, 1, weights=(first, [[1], [0]]))
    sizes = compact.sizes(model, network)
    assert sizes.dense == 4 * (6 + 2 + 2 + 1)
    assert sizes.compacted == 4 * (3 + 1 + 1 + 1)
    assert sizes.bcoo == 12 * (2 + 1) + 4 * (1 + 1)
    # 4 bit vectors of a byte each; 4 + 2 + 1 + 1 values.
    assert sizes.packed == 4 + 4 * 8
    assert compact.sizes(model, network, jnp.int8).bcoo == 6 * (2 + 1) + 4 * (1 + 1)
    model, network, _, _ = build("convolutions")
    assert compact.sizes(model, network).bcoo is None


# --- refusals -------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    model, network, _, _ = build("mlp")
    small = compact.shrink(model, network)
    with pytest.raises(ValueError, match="model=Dense; it must declare"):
        compact.shrink(nn.Dense(3), network)
    wrong = {**network.mask, "head": {**network.mask["head"], "bias": np.ones(7, bool)}}
    with pytest.raises(ValueError, match="mask: leaf 'head/bias' has shape"):
        compact.shrink(model, network._replace(mask=wrong))
    replicas = jax.tree.map(lambda a: jnp.stack([a, a]), network)
    with pytest.raises(ValueError, match=r"dense_0/bias.*without a replica axis"):
        compact.shrink(model, replicas)
    other = build("resnet")[1].model_state
    with pytest.raises(ValueError, match="model_state: leaf"):
        compact.shrink(model, network._replace(model_state=other))
    with pytest.raises(ValueError, match=r"kept\['dense_0'\] has 1 units; it must"):
        compact.expand(model, small._replace(kept=small.kept | {"dense_0": [0]}))
    with pytest.raises(ValueError, match="'dense_0/bias' of like.params has shape"):
        compact.expand(model, small, like=small)
    uneven = {**network.params, "dense_1": network.params["dense_0"]}
    with pytest.raises(ValueError, match="like the leaves before it"):
        axes = units.of_params(model, network.params)
        compact.take(axes, uneven, small.kept)


@pytest.mark.parametrize("name", ["convolutions", "residual mlp"])
def test_bcoo_is_for_networks_of_matrices(name):
    model, network, _, _ = build(name)
    with pytest.raises(ValueError, match="model=.*; it must be an MLP"):
        compact.to_bcoo(model, network)


def test_indices_that_do_not_fit_are_refused():
    model, network = mlp(200, 2, 1, weights=(np.ones((200, 2)), np.ones((2, 1))))
    with pytest.raises(ValueError, match="index_dtype=int8; it must hold 199"):
        compact.to_bcoo(model, network, jnp.int8)


def test_a_kernel_that_is_too_wide_or_lacks_classes_is_refused():
    model, network, x, _ = build("mlp")
    wide = {
        **network.params,
        "dense_0": {"kernel": jnp.ones((12, 21)), "bias": jnp.ones(21)},
    }
    few = {**network.params, "head": {"kernel": jnp.ones((12, 4)), "bias": jnp.ones(4)}}
    for params in (wide, few):
        with pytest.raises(Exception, match="shape"):
            model.apply({"params": params}, x)
