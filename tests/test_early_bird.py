"""Early-Bird tickets: masks of many networks, their distances, and when to stop."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick

import lottery_jax as lj
from lottery_jax import granularity, keys, masks, prune, scores, training, trees, units
from lottery_jax.dynamic import early_bird as bird

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def networks(key, epochs):
    """Weights of `[epochs, ...]`; sizes that no word of 32 bits divides."""
    keys_ = iter(jax.random.split(key, 4))
    return {
        "dense": {
            "kernel": jax.random.normal(next(keys_), (epochs, 7, 11)),
            "bias": jax.random.normal(next(keys_), (epochs, 11)),
        },
        "head": {
            "kernel": jax.random.normal(next(keys_), (epochs, 11, 3)),
            "bias": jax.random.normal(next(keys_), (epochs, 3)),
        },
    }


# --- masks and distances --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scope": "erk"},
        {"exclude": "head"},
        {"granularity": granularity.Channel(), "exclude": "head"},
        {"score": lambda params: jax.tree.map(lambda w: -jnp.abs(w), params)},
        {"prunable": lambda tree: masks.prunable(tree, include="bias")},
    ],
    ids=["global", "erk", "exclude", "channels", "score", "prunable"],
)
def test_each_mask_is_the_one_that_pruning_its_network_alone_gives(getkey, how):
    weights = networks(getkey(), 3)
    found = bird.draw(weights, 0.3, **how)
    score = how.get("score", scores.magnitude)
    rest = {name: value for name, value in how.items() if name != "score"}
    for epoch in range(3):
        own = trees.rows(weights, epoch)
        alone = prune.to_density(score(own), masks.ones_like(own), 0.3, **rest)
        same = jax.tree.map(jnp.array_equal, trees.rows(found, epoch), alone)
        assert all(jax.tree.leaves(same))
        number = masks.total(own, how.get("prunable"))
        if "granularity" not in how:
            assert masks.count(alone, how.get("prunable")) == round(0.3 * number)


def test_distances_are_those_of_overlap_entry_by_entry(getkey):
    found = bird.draw(networks(getkey(), 5), 0.4)
    distances = bird.mask_distances(found)
    assert distances.dtype == jnp.float32 and distances.shape == (5, 5)
    for i in range(5):
        for j in range(5):
            pair = trees.rows(found, i), trees.rows(found, j)
            assert distances[i, j] == masks.overlap(*pair).hamming


def test_distances_count_what_numpy_counts_over_the_prunable_leaves_alone(getkey):
    stack = {
        "a": {"kernel": jax.random.bernoulli(getkey(), 0.3, (4, 5, 13))},
        "b": {"kernel": jax.random.bernoulli(getkey(), 0.7, (4, 64))},
        "c": {"kernel": jax.random.bernoulli(getkey(), 0.5, (4, 2, 3, 3))},
    }
    flags = {"a": {"kernel": True}, "b": {"kernel": True}, "c": {"kernel": False}}
    distances = np.asarray(bird.mask_distances(stack, flags))
    flat = np.concatenate(
        [np.asarray(stack[n]["kernel"]).reshape(4, -1) for n in "ab"], 1
    )
    reference = (flat[:, None] != flat[None]).sum(-1) / 129
    np.testing.assert_array_equal(distances, reference.astype(np.float32))
    np.testing.assert_array_equal(distances, distances.T)
    assert not np.diag(distances).any()
    opposite = {"w": jnp.array([[True] * 33, [False] * 33])}
    assert bird.mask_distances(opposite, {"w": True})[0, 1] == 1


def test_distances_of_replicas_under_vmap_and_jit_are_those_of_each_alone(getkey):
    found = {
        "a": {"kernel": jax.random.bernoulli(getkey(), 0.3, (2, 3, 5, 13))},
        "b": {"bias": jax.random.bernoulli(getkey(), 0.3, (2, 3, 5))},
    }
    together = quick.jit(jax.vmap(bird.mask_distances))(found)
    for i in range(2):
        alone = bird.mask_distances(trees.rows(found, i))
        np.testing.assert_array_equal(together[i], alone)
        assert (
            together[i, 0, 2]
            == masks.overlap(
                *(trees.rows(found, (i, epoch)) for epoch in (0, 2))
            ).hamming
        )


def test_masks_of_networks_that_diverged_are_said_to_mean_nothing(getkey):
    weights = networks(getkey(), 3)
    weights["dense"]["bias"] = (
        weights["dense"]["bias"].at[0].set(jnp.nan)
    )  # not prunable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bird.draw(weights, 0.5)
    weights["head"]["kernel"] = weights["head"]["kernel"].at[2, 0, 0].set(jnp.inf)
    with pytest.warns(RuntimeWarning, match=r"epochs \[2\] \(from 0\) are not finite"):
        bird.draw(weights, 0.5)


# --- the stop rule --------------------------------------------------------------------


def matrix_of(epochs, near):
    """Distances that are 0.05 for pairs in `near` and 0.5 for others."""
    found = np.full((epochs, epochs), 0.5, np.float32)
    for i, j in near:
        found[i, j] = found[j, i] = 0.05
    np.fill_diagonal(found, 0)
    return found


def test_the_newest_mask_must_be_near_to_all_of_the_queue_and_only_to_these():
    near = [(4, 1), (4, 2), (4, 3)]
    assert bird.drawn_epoch(matrix_of(6, near), window=5) is None  # 0 is far from 4
    assert bird.drawn_epoch(matrix_of(6, near), window=4) == 4
    # Masks of the queue may be far from each other.
    assert bird.drawn_epoch(matrix_of(6, [(5, 3), (5, 4)]), window=3) == 5
    assert bird.drawn_epoch(matrix_of(4, [(1, 0), (3, 2)]), window=2) == 1


def test_a_distance_of_exactly_the_threshold_is_not_below_it():
    found = np.float32([[0, 0.1], [0.1, 0]])
    assert bird.drawn_epoch(found, window=2, threshold=0.1) is None
    assert bird.drawn_epoch(found, window=2, threshold=0.1001) == 1


def drifting(key, epochs, size, settles):
    """Masks `[epochs, size]` of which ever fewer bits change."""
    first, flips = jax.random.split(key)
    mask = jax.random.bernoulli(first, 0.5, (size,))
    stack = []
    for epoch, own in enumerate(jax.random.split(flips, epochs)):
        rate = 0.3 * settles**epoch
        mask = mask ^ jax.random.bernoulli(own, rate, (size,))
        stack.append(mask)
    return {"w": jnp.stack(stack)}


@pytest.mark.parametrize("window, threshold", [(5, 0.1), (2, 0.05), (3, 0.02)])
def test_mask_by_mask_the_rule_finds_the_epoch_that_the_matrix_does(
    getkey, window, threshold
):
    flags = {"w": True}
    stacks = [drifting(getkey(), 14, 70, settles) for settles in (0.3, 0.6, 0.8, 1.0)]
    stack = trees.stack(stacks)
    state = bird.watch(trees.rows(stack, (0, 0)), window=window, prunable=flags)
    assert state.recent.shape == (window - 1, 3)
    state = jax.tree.map(lambda x: jnp.stack([x] * 4), state)
    step = quick.jit(
        jax.vmap(lambda s, m: bird.update(s, m, threshold=threshold, prunable=flags))
    )
    at = []
    for epoch in range(14):
        state = step(state, {"w": stack["w"][:, epoch]})
        at.append(np.asarray(state.found))
    assert state.seen.tolist() == [14] * 4
    found = []
    for i, own in enumerate(stacks):
        distances = bird.mask_distances(own, flags)
        epoch = bird.drawn_epoch(distances, window=window, threshold=threshold)
        found.append(-1 if epoch is None else epoch)
        told = np.flatnonzero([a[i] for a in at])
        assert (told[0] if len(told) else -1) == found[-1]
    assert state.epoch.tolist() == found
    assert len(set(found)) > 2 and -1 in found


def test_equal_masks_are_a_ticket_only_once_the_queue_is_full():
    mask = {"w": jnp.ones(5, jnp.bool_)}
    state = bird.watch(mask, prunable={"w": True})
    # An empty queue holds zeros, which the mask below equals.
    mask = {"w": jnp.zeros(5, jnp.bool_)}
    found = []
    for _ in range(6):
        state = bird.update(state, mask, prunable={"w": True})
        found.append(bool(state.found))
    assert found == [False] * 4 + [True] * 2 and state.epoch == 4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bird.drawn_epoch(np.zeros((6, 6)), window=1), "window=1"),
        (lambda: bird.drawn_epoch(np.zeros((6, 6)), window=2.0), "window=2.0"),
        (lambda: bird.drawn_epoch(np.zeros((6, 6)), threshold=0.0), "threshold=0.0"),
        (lambda: bird.drawn_epoch(np.zeros((6, 6)), threshold=1), "threshold=1"),
        (lambda: bird.drawn_epoch(np.zeros((4, 4))), "those of 4 epochs.*window=5"),
        (lambda: bird.drawn_epoch(np.zeros((5, 6))), r"shape \(5, 6\)"),
        (lambda: bird.drawn_epoch(np.full((5, 5), np.nan)), "0 on the diagonal"),
        (lambda: bird.drawn_epoch(np.ones((5, 5))), "0 on the diagonal"),
        (lambda: bird.drawn_epoch(np.triu(np.ones((5, 5)), 1)), "symmetric"),
        (lambda: bird.watch({"w": jnp.ones((2, 2), bool)}, window=1), "window=1"),
        (
            lambda: bird.mask_distances({"w": jnp.ones((2, 2, 2))}),
            "'w' has dtype float32",
        ),
        (lambda: bird.mask_distances({"w": jnp.ones((), bool)}), "'w' has shape"),
        (
            lambda: bird.mask_distances(
                {"w": jnp.ones((2, 3), bool), "v": jnp.ones((4, 3), bool)}
            ),
            r"leaf 'w' has shape \(2, 3\).*as many epochs",
        ),
        (lambda: bird.draw({"w": jnp.ones((2, 2, 2))}, 1.0), "density=1.0"),
        (lambda: bird.draw({"w": jnp.ones((0, 2, 2))}, 0.5), "an empty stack"),
        (
            lambda: bird.draw({"w": jnp.ones((2, 2, 2))}, 0.5, scope="all"),
            "scope='all'",
        ),
        (
            lambda: bird.update(
                bird.watch({"w": jnp.ones((2, 2), bool)}), {"w": jnp.ones((9, 9), bool)}
            ),
            r"state.recent.shape=\(4, 1\).*81 prunable weights",
        ),
        (
            lambda: bird.draw_units({"a": jnp.ones(3), "b": jnp.ones(5)}, 0.1),
            "2 groups",
        ),
        (lambda: bird.draw_units({"a": jnp.ones(3)}, 1.5), "density=1.5"),
    ],
)
def test_errors_name_the_argument_and_what_would_be_valid(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- whole units ----------------------------------------------------------------------


def resnet():
    """A residual network, its axes, and weights drawn by NumPy."""
    model = lj.models.make("resnet-8-4", 3)
    shapes = jax.eval_shape(model.init, keys.of_seed(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), shapes["params"]
    )
    return model, units.of_params(model, params), params


def test_units_are_ranked_by_the_mean_size_of_the_scales_that_make_them():
    model, axes, params = resnet()
    found = bird.unit_scores(model, params)
    stem = np.abs(params["stem_norm"]["scale"])
    added = np.abs(params["stage_0_block_0"]["norm_1"]["scale"])
    np.testing.assert_allclose(found["stem"], (stem + added) / 2, rtol=1e-6)
    inner = np.abs(params["stage_1_block_0"]["norm_0"]["scale"])
    np.testing.assert_array_equal(found["stage_1_block_0/conv_0"], inner)
    sizes = units.sizes(axes, params)
    assert {group: len(own) for group, own in found.items()} == sizes


def test_the_share_of_units_is_exact_and_no_group_loses_all():
    importance = {"a": jnp.arange(10.0), "b": jnp.array([-9.0, -7.0, -8.0])}
    alive = bird.draw_units(importance, 0.4)
    assert np.flatnonzero(alive["a"]).tolist() == [6, 7, 8, 9]
    assert alive["b"].tolist() == [False, True, False]
    many = jax.tree.map(lambda x: jnp.stack([x, -x]), importance)
    both = jax.vmap(lambda own: bird.draw_units(own, 0.4))(many)
    assert np.flatnonzero(both["a"][1]).tolist() == [0, 1]
    assert [int(sum(x[i].sum() for x in both.values())) for i in (0, 1)] == [5, 5]


def test_under_a_mask_of_whole_units_those_and_no_others_are_dead():
    model, axes, params = resnet()
    rng = np.random.default_rng(1)
    alive = {g: rng.random(n) < 0.5 for g, n in units.sizes(axes, params).items()}
    for own in alive.values():
        own[0], own[1] = False, True
    mask = trees.host(bird.whole_units(axes, params, alive))
    dead = lj.compact.removable(axes, mask)
    for group, own in alive.items():
        np.testing.assert_array_equal(dead[group], ~own, group)
    # All weights between units that survive do so too, and nothing but kernels is cut.
    kept = {group: np.flatnonzero(own) for group, own in alive.items()}
    assert all(m.all() for m in jax.tree.leaves(units.take(axes, mask, kept)))
    total = {path: m.mean() for path, m in trees.by_path(mask).items()}
    assert all((share == 1) != path.endswith("kernel") for path, share in total.items())


def test_a_unit_is_found_again_behind_every_pixel_that_is_flattened():
    axes = {
        "a/kernel": (units.Axis(None), units.Axis("a")),
        "b/kernel": (units.Axis("a", 2), units.Axis(None)),
    }
    params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((6, 1))}}
    alive = {"a": jnp.array([True, False, True])}
    mask = bird.whole_units(axes, params, alive)
    assert mask["a"]["kernel"].tolist() == [[True, False, True]] * 2
    assert mask["b"]["kernel"][:, 0].tolist() == [True, False, True] * 2
    with pytest.raises(ValueError, match="3 units of group 'a'"):
        bird.whole_units(axes, params, {"a": jnp.ones(2, bool)})


def test_a_layer_without_a_norm_is_named():
    model = lj.models.make("mlp-4", 3)
    params = model.init(keys.of_seed(0), jnp.zeros((1, 5)))["params"]
    with pytest.raises(ValueError, match="layer 'dense_0' has no norm with a scale"):
        bird.unit_scores(model, params)


# --- with the runner ------------------------------------------------------------------


@pytest.mark.slow
def test_training_in_chunks_ends_at_the_epoch_that_one_run_finds():
    data = lj.data.load("mnist1d", subset=100)
    task = lj.tasks.classification(data, lj.models.make("mlp-6", 10), batch_size=25)
    tx, epochs = optax.adam(1e-2), [4, 8, 12]
    own = keys.of_replicas(0, range(2))
    runs = training.fresh(task, tx, own.init, own.noise)
    kept = training.train(task, tx, runs, 12, keep=epochs).kept.params
    whole = quick.jit(jax.vmap(lambda w: bird.draw(w, 0.3)))(kept)
    distances = quick.jit(jax.vmap(bird.mask_distances))(whole)
    drawn = [bird.drawn_epoch(x, window=2, threshold=0.2) for x in distances]
    assert set(drawn) - {None}
    start = bird.watch(trees.rows(whole, (0, 0)), window=2)
    state = jax.tree.map(lambda x: jnp.stack([x, x]), start)
    step = quick.jit(jax.vmap(lambda s, m: bird.update(s, m, threshold=0.2)))
    for i, epoch in enumerate(epochs):
        done = training.train(task, tx, runs, epoch)
        runs = runs._replace(state=done.state, joins=np.full(2, epoch, np.int32))
        here = trees.rows(kept, (slice(None), i))
        jax.tree.map(np.testing.assert_array_equal, done.state.params, here)
        state = step(state, trees.rows(whole, (slice(None), i)))
    assert state.epoch.tolist() == [-1 if x is None else x for x in drawn]
