"""Curves between networks that no line connects, and planes through three of them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import toys
from hypothesis import given
from hypothesis import strategies as st

import lottery_jax as lj
from lottery_jax import connectivity, imp, masks, tasks, training, trees
from lottery_jax.connectivity import Measure, planes
from lottery_jax.execution import Execution, Where
from lottery_jax.training import Runs
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TWO = Where(Execution(devices=2, chunk=1))
STEPS, EARLY, POINTS = 150, 15, 9
KINDS = ("bezier", "polygon")


# --- positions on a curve -------------------------------------------------------------


@functools.cache
def coefficient_program(kind, bends):
    return quick.jit(functools.partial(tasks.coefficients, kind, bends=bends))


@given(
    st.sampled_from(KINDS),
    st.integers(1, 4),
    st.floats(0, 1, width=32, allow_subnormal=False),
)
def test_coefficients_are_shares(kind, bends, t):
    found = np.asarray(coefficient_program(kind, bends)(t))
    assert found.shape == (bends + 2,) and found.dtype == np.float32
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)
    # From the other end they are those of the bends in the other order.
    back = coefficient_program(kind, bends)(np.float32(1) - np.float32(t))
    np.testing.assert_allclose(back[::-1], found, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bends", [1, 2, 3])
def test_curves_begin_and_end_at_the_networks_exactly(kind, bends):
    for t, end in ((0.0, 0), (1.0, -1)):
        expected = np.zeros(bends + 2)
        expected[end] = 1
        for function in (
            coefficient_program(kind, bends),
            functools.partial(tasks.coefficients, kind, bends=bends),
        ):
            np.testing.assert_array_equal(function(t), expected)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_curves_written_out(t):
    quadratic = [(1 - t) ** 2, 2 * t * (1 - t), t**2]
    np.testing.assert_allclose(tasks.coefficients("bezier", t), quadratic, rtol=1e-6)
    cubic = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    np.testing.assert_allclose(tasks.coefficients("bezier", t, 2), cubic, rtol=1e-6)
    # A polygon with one bend goes to it in the first half and away from it in the second.
    s = 2 * t if t < 0.5 else 2 * t - 1
    pieces = [1 - s, s, 0] if t < 0.5 else [0, 1 - s, s]
    np.testing.assert_allclose(tasks.coefficients("polygon", t), pieces, atol=1e-6)


@pytest.mark.parametrize("bends", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_straight_bends_make_the_line(kind, bends):
    rng = np.random.default_rng(0)
    a, b = ({"w": rng.normal(size=5).astype(np.float32)} for _ in range(2))
    middle = tasks.straight(a, b, bends)
    assert len(middle) == bends
    for i, bend in enumerate(middle):
        alpha = (i + 1) / (bends + 1)
        line = (1 - alpha) * a["w"] + alpha * b["w"]
        np.testing.assert_allclose(bend["w"], line, rtol=1e-6)
    for t in np.linspace(0, 1, 7):
        at = tasks.coefficients(kind, t, bends)
        point = connectivity.combine([a, *middle, b], at)
        expected = (1 - t) * a["w"] + t * b["w"]
        np.testing.assert_allclose(point["w"], expected, atol=1e-6)


def test_curves_of_no_sense_are_refused():
    a = {"w": jnp.zeros(3)}
    task = toys.classification()
    for kind, bends, message in (
        ("spline", 1, "kind='spline'"),
        ("bezier", 0, "bends=0"),
        ("polygon", -1, "bends=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.coefficients(kind, 0.5, bends)
        with pytest.raises(ValueError, match=message):
            tasks.curve(task, kind=kind, bends=bends)
    with pytest.raises(ValueError, match="'w' has shape"):
        tasks.between(Network(a, {}), Network({"w": jnp.zeros(4)}, {}))


# --- training a curve -----------------------------------------------------------------


@functools.cache
def task():
    return toys.classification(lj.models.make("mlp-5", 4, bias="torch"))


@functools.cache
def ends():
    """Two networks, trained from two initialisations under two noises."""
    key = jnp.stack([jax.random.key(seed) for seed in (0, 1)])
    tx = optax.adam(0.05)
    runs = training.fresh(task(), tx, key, key, where=TWO)
    done = training.train(task(), tx, runs, STEPS, where=TWO)
    return tuple(trees.rows(done.networks, i) for i in (0, 1))


@functools.cache
def curve(kind="bezier", bends=1):
    return tasks.curve(task(), kind=kind, bends=bends)


TX = optax.sgd(0.1, momentum=0.9)


def random_mask(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.random(p.shape) < 0.6, ends()[0].params)


def pairs(kind="bezier", bends=1):
    """Two curves about to be trained: dense, and on a mask from the other end."""
    a, b = ends()
    mask = random_mask()
    sparse = [n._replace(params=masks.apply(mask, n.params)) for n in (b, a)]
    states = [
        training.start(TX, tasks.between(*two, bends), (), (m,) * bends)
        for two, m in (((a, b), masks.ones_like(a.params)), (sparse, mask))
    ]
    noise = jnp.stack([jax.random.key(5), jax.random.key(6)])
    zeros = np.zeros(2, np.int32)
    return Runs(trees.stack(states), noise, zeros, zeros)


@functools.cache
def found_curves(kind="bezier"):
    """Both pairs, trained at once."""
    return training.train(curve(kind), TX, pairs(kind), STEPS, keep=[EARLY], where=TWO)


def bends_of(kind="bezier", pair=0):
    return trees.rows(found_curves(kind).networks.params, pair)


def along(bends, a, b, kind="bezier"):
    return connectivity.error_along_curve(
        task(), a, b, bends, Measure(POINTS), kind=kind, where=TWO
    )


@functools.cache
def line():
    return connectivity.paths(
        task(),
        trees.stack(ends()),
        [(0, 1)],
        Measure(POINTS),
        where=TWO,
    )


@functools.cache
def evaluator(split):
    return jax.jit(
        lambda network: task().evaluate(
            network.params, network.model_state, task().data, jax.random.key(9), split
        )
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_curve_goes_around_the_barrier(kind):
    # The networks are good, and the line between them is not.
    barrier = connectivity.barrier(line().loss, reference="chord")[0, 0]
    assert barrier > 0.3
    found = along(bends_of(kind), *ends(), kind)
    assert found.loss[0, 0].mean() < line().loss[0, 0].mean() - 0.1
    assert found.error[0, 0].mean() < line().error[0, 0].mean() - 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_a_curve_stay_the_networks(kind):
    found = along(bends_of(kind), *ends(), kind)
    for end, at in ((0, 0), (1, -1)):
        for row, split in enumerate(("train", "test")):
            expected = evaluator(split)(ends()[end])
            np.testing.assert_array_equal(found.error[0, row, at], expected["error"])
            np.testing.assert_allclose(
                found.loss[0, row, at], expected["loss"], rtol=1e-6
            )
    np.testing.assert_array_equal(found.error[..., [0, -1]], line().error[..., [0, -1]])


@pytest.mark.parametrize(
    ("kind", "bends"), [("bezier", 1), ("polygon", 1), ("polygon", 2)]
)
def test_the_curve_of_straight_bends_has_the_errors_of_the_line(kind, bends):
    a, b = ends()
    straight = tasks.straight(a.params, b.params, bends)
    found = along(straight, a, b, kind)
    np.testing.assert_array_equal(found.alphas, line().alphas)
    np.testing.assert_allclose(found.loss, line().loss, rtol=1e-5)
    np.testing.assert_allclose(found.error, line().error, atol=1e-6)


def test_a_masked_curve_stays_on_the_mask():
    mask, bends = random_mask(), bends_of(pair=1)
    assert np.isfinite(found_curves().curves.values["train_loss"]).all()
    a, b = (masks.apply(mask, end.params) for end in ends()[::-1])
    before = tasks.straight(a, b)[0]
    for t in (0.0, 0.3, 1.0):
        at = tasks.coefficients("bezier", t)
        point = connectivity.combine([a, *bends, b], at)
        for m, p in zip(jax.tree.leaves(mask), jax.tree.leaves(point)):
            assert (np.asarray(p)[~np.asarray(m)] == 0).all()
    for m, x, y in zip(*map(jax.tree.leaves, (mask, bends[0], before))):
        assert (np.asarray(x) != y)[np.asarray(m)].any()  # and it moved


@pytest.mark.parametrize("pair", [0, 1])
def test_each_of_two_curves_is_that_curve_trained_alone(pair):
    own = slice(pair, pair + 1)
    alone = training.train(curve(), TX, trees.rows(pairs(), own), STEPS, where=TWO)
    toys.assert_equal(alone.state, trees.rows(found_curves().state, own))
    for name, values in found_curves().curves.values.items():
        np.testing.assert_array_equal(alone.curves.values[name], values[own])
    # The ends are where they were.
    start = trees.rows(trees.host(pairs().state.model_state), own)
    toys.assert_equal(alone.networks.model_state, start)


class Killed(Exception):
    pass


def test_an_interrupted_curve_goes_on_where_it_was(tmp_path):
    seen = []

    def kill(progress):
        if progress.done >= 60:
            raise Killed

    def train(watch):
        where = Where(TWO.execution, tmp_path, 0.0, watch)
        return training.train(curve(), TX, pairs(), STEPS, where=where)

    with pytest.raises(Killed):
        train(kill)
    resumed = train(seen.append)
    assert (seen[0].done, seen[0].resumed) == (45, True)
    toys.assert_equal(resumed.state, found_curves().state)


def test_curves_on_a_full_device_go_on_with_one_at_a_time():
    full = tasks.curve(toys.full_beyond(task(), 1))
    many = Where(Execution(devices=1, chunk=0))
    with pytest.warns(RuntimeWarning, match="after step 0; .* chunk=1"):
        found = training.train(full, TX, pairs(), STEPS, keep=[EARLY], where=many)
    assert found.execution == Execution(1, 1)
    # Later, rounding has grown.
    toys.assert_close(found.kept.network, found_curves().kept.network)
    path = connectivity.error_along_curve(
        toys.full_beyond(task(), 1),
        *ends(),
        bends_of(),
        Measure(POINTS),
        kind="bezier",
        where=many,
    )
    expected = along(bends_of(), *ends())
    np.testing.assert_allclose(path.loss, expected.loss, rtol=2e-5)
    np.testing.assert_allclose(path.error, expected.error, atol=1e-6)


def test_the_bends_of_a_curve_are_pruned_like_any_network():
    # Two ends are drawn for each replica; the mask of the bends is what shrinks. As many
    # steps and runs as the curves of this file: their program.
    plan = imp.Plan(steps=STEPS, validate_every=EARLY, arms=("ticket",))
    study = imp.run(curve(), TX, plan, levels=2, replicas=(0, 1), where=TWO)
    axes, alive = study.records["alive"]
    assert axes == ("chain", "arm", "replica", "level")
    own = sum(
        x.size
        for path, x in trees.by_path(ends()[0].params).items()
        if path.endswith("kernel")
    )
    assert alive.shape == (1, 1, 2, 3) and (alive[..., 0] == own).all()
    for level in (0, 1):
        expected = alive[..., level] - np.round(0.2 * alive[..., level])
        np.testing.assert_array_equal(alive[..., level + 1], expected)
    assert np.isfinite(study.records["test_error"][1]).all()


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("polygon", 2)])
def test_the_gradient_of_a_bend_is_its_share_of_the_gradient_there(kind, bends):
    a, b = (end.params for end in ends())
    made, start = curve(kind, bends), tasks.between(*ends(), bends)
    middle, state = start
    indices = task().order(jax.random.key(1), jnp.int32(0))
    noise, key = jax.random.key(2), jax.random.key(3)
    batch = made.batch(made.data, indices, noise, jnp.int32(0))
    (value, (after, _, metrics)), found = quick.jit(
        jax.value_and_grad(
            lambda bends: made.loss(bends, state, (), batch, key), has_aux=True
        )
    )(middle)
    toys.assert_equal(after, state)
    # On the line every point is known without the curve: only the position is drawn.
    a64, b64 = (jax.tree.map(lambda x: np.asarray(x, np.float64), x) for x in (a, b))
    inner = task().batch(task().data, indices, noise, jnp.int32(0))
    there = quick.jit(
        jax.value_and_grad(lambda params: task().loss(params, {}, (), inner, key)[0])
    )
    draw = jax.random.split(key)[0]
    t = float(jax.random.uniform(draw))
    point = jax.tree.map(
        lambda x, y: jnp.asarray((1 - t) * x + t * y, jnp.float32), a64, b64
    )
    expected, gradient = there(point)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    if kind == "bezier":
        shares = [2 * t * (1 - t)]
    else:
        shares = [max(0, 1 - abs(3 * t - 1)), max(0, 1 - abs(3 * t - 2))]
    for share, bend in zip(shares, found):
        toys.assert_close(
            bend, jax.tree.map(lambda g, s=share: s * g, gradient), atol=1e-6
        )


def test_positions_are_drawn_from_the_whole_curve():
    # Between weights 0 and 1 a straight curve of one number is the position itself.
    zero, one = jnp.float32(0), jnp.float32(1)

    def loss(params, model_state, stream_state, batch, key):
        return params, (model_state, stream_state, {})

    made = tasks.curve(task()._replace(loss=loss))
    middle, state = tasks.between(Network(zero, ()), Network(one, ()))
    keys = jax.random.split(jax.random.key(0), 400)
    found = np.asarray(
        quick.jit(jax.vmap(lambda key: made.loss(middle, state, (), None, key)[0]))(
            keys
        )
    )
    assert found.min() >= 0 and found.max() <= 1
    counts = np.histogram(found, bins=10, range=(0, 1))[0]
    # 40 each, with a standard deviation of 6.
    assert (np.abs(counts - 40) < 5 * 6).all()


def test_a_curves_task_is_the_tasks_in_all_but_the_weights():
    a, b = ends()
    made = curve()
    hash(made.functions)  # a static argument of programs
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        made.order(key, jnp.int32(1)), task().order(key, jnp.int32(1))
    )
    assert made.steps_per_epoch == task().steps_per_epoch
    bends = bends_of()
    at = tasks.coefficients("bezier", 0.5)
    middle = connectivity.combine([a.params, *bends, b.params], at)
    state = tasks.between(a, b).model_state
    found = quick.jit(lambda: made.evaluate(bends, state, made.data, key, "test"))()
    toys.assert_close(found, evaluator("test")(Network(middle, {})))


def test_a_curve_begins_between_two_draws():
    made = curve("polygon", 2)
    key = jax.random.key(3)
    params, state, stream = quick.jit(made.init)(key)
    assert (stream, state.inner) == ((), {})
    draw = quick.jit(lambda key: task().init(key)[0])
    for end, own in zip((state.a, state.b), jax.random.split(key)):
        toys.assert_close(end, draw(own), atol=1e-7)
    toys.assert_close(params, tasks.straight(state.a, state.b, 2), atol=1e-7)
    toys.assert_equal(
        made.prunable(params), (masks.prunable(state.a), masks.prunable(state.a))
    )


@functools.cache
def normed():
    made = toys.classification(toys.ChosenNet())
    params, model_state, _ = quick.jit(jax.vmap(made.init))(
        jax.random.split(jax.random.key(0), 3)
    )
    return made, [
        Network(*jax.tree.map(lambda x, i=i: x[i], (params, model_state)))
        for i in range(3)
    ]


def test_curves_between_networks_with_statistics():
    made, (a, b, _) = normed()
    bends = tasks.straight(a.params, b.params)
    recompute = Measure(3, "recompute", statistics_batches=2)
    found = functools.partial(
        connectivity.error_along_curve, made, a, b, bends, kind="bezier", where=TWO
    )
    with pytest.raises(ValueError, match="batch_norm='interpolate'.*'recompute'"):
        found(recompute._replace(batch_norm="interpolate"))
    with pytest.raises(ValueError, match="batch_norm: this network has"):
        found(recompute._replace(batch_norm=None))
    path = connectivity.paths(made, trees.stack([a, b]), [(0, 1)], recompute, where=TWO)
    found = found(recompute)
    np.testing.assert_allclose(found.loss, path.loss, rtol=1e-5)


def test_bends_of_another_network_are_refused():
    a, b = ends()
    with pytest.raises(ValueError, match="only . has a leaf"):
        along(({"w": jnp.zeros(3)},), a, b)


# --- planes ---------------------------------------------------------------------------


def flat(network):
    leaves = jax.tree.leaves(network.params)
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])


def unflat(vector, network):
    leaves, structure = jax.tree.flatten(network.params)
    edges = np.cumsum([x.size for x in leaves])[:-1]
    parts = np.split(np.asarray(vector, np.float32), edges)
    shaped = [jnp.asarray(p.reshape(x.shape)) for p, x in zip(parts, leaves)]
    return Network(jax.tree.unflatten(structure, shaped), network.model_state)


def orthonormal(a, b, c):
    """Gram and Schmidt, with `a` as the origin."""
    u = flat(b) - flat(a)
    u /= np.linalg.norm(u)
    v = flat(c) - flat(a)
    v -= (v @ u) * u
    return u, v / np.linalg.norm(v)


@functools.cache
def three():
    """The two networks, and a third one that has nothing to do with them."""
    a, b = ends()
    params, model_state, _ = quick.jit(task().init)(jax.random.key(11))
    return a, b, Network(params, model_state)


def draw(networks, size=5, margin=0.5, **options):
    return connectivity.plane(
        task(),
        *networks,
        Measure(),
        size=size,
        margin=margin,
        **{"where": TWO} | options,
    )


@functools.cache
def drawn():
    return draw(three())


def test_places_on_the_plane_have_the_distances_of_the_networks():
    where = drawn().networks
    np.testing.assert_array_equal(where[0], 0)
    assert where[1, 0] > 0 and where[1, 1] == 0 and where[2, 1] > 0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        expected = np.linalg.norm(flat(three()[i]) - flat(three()[j]))
        np.testing.assert_allclose(
            np.linalg.norm(where[i] - where[j]), expected, rtol=1e-5
        )
    u, v = orthonormal(*three())
    c = flat(three()[2]) - flat(three()[0])
    np.testing.assert_allclose(where[2], [c @ u, c @ v], rtol=1e-5)


def test_the_grid_reaches_beyond_the_networks_by_the_margin():
    for axis, places in ((drawn().x, 0), (drawn().y, 1)):
        low, high = (f(drawn().networks[:, places]) for f in (np.min, np.max))
        edge = 0.5 * (high - low)
        np.testing.assert_allclose(axis, np.linspace(low - edge, high + edge, 5))


def test_a_place_of_the_grid_has_the_error_of_the_network_there():
    found, (a, _, _) = drawn(), three()
    assert found.error.shape == found.loss.shape == (2, 5, 5)
    u, v = orthonormal(*three())
    for row, split in enumerate(("train", "test")):
        for i, y in enumerate(found.y):
            for j, x in enumerate(found.x):
                network = unflat(flat(a) + x * u + y * v, a)
                expected = evaluator(split)(network)
                np.testing.assert_allclose(
                    found.loss[row, i, j], expected["loss"], rtol=1e-4
                )
                np.testing.assert_allclose(
                    found.error[row, i, j], expected["error"], atol=1e-6
                )
    assert len(np.unique(found.error)) > 5


def test_the_networks_of_a_right_angle_lie_on_the_grid():
    a, b, c = three()
    _, v = orthonormal(a, b, c)
    c = unflat(flat(a) + 3 * v, a)
    # With this margin the grid's steps are half of each side.
    found = draw((a, b, c))
    for network, i, j in ((a, 1, 1), (b, 1, 3), (c, 3, 1)):
        for row, split in enumerate(("train", "test")):
            expected = evaluator(split)(network)
            np.testing.assert_allclose(
                found.loss[row, i, j], expected["loss"], rtol=1e-4
            )
            np.testing.assert_allclose(
                found.error[row, i, j], expected["error"], atol=1e-6
            )


def test_networks_on_one_line_span_no_plane():
    a, b, c = three()
    between = [
        connectivity.interpolate(a, b, alpha, extrapolate=True)
        for alpha in (*np.random.default_rng(0).uniform(-2, 3, 8), 0.5, 0.0, 1.0)
    ]
    for networks in (
        *((a, b, point) for point in between),
        *((a, point, b) for point in between[:9]),
        (a, a, c),
        (a, b, a),
        (a, a, a),
    ):
        with pytest.raises(ValueError, match="lie on one line"):
            draw(networks)


def test_a_flat_triangle_is_a_plane():
    # A thousandth of the side: far from a line, as float32 goes.
    a, b, c = three()
    u, v = orthonormal(a, b, c)
    side = np.linalg.norm(flat(b) - flat(a))
    near = unflat(flat(a) + 0.4 * side * u + 1e-3 * side * v, a)
    where = draw((a, b, near), size=2).networks
    np.testing.assert_allclose(where[2], [0.4 * side, 1e-3 * side], rtol=1e-3)


def test_planes_of_no_sense_are_refused():
    made, networks = normed()
    with pytest.raises(ValueError, match="batch_norm='interpolate'.*'recompute'"):
        connectivity.plane(made, *networks, Measure(batch_norm="interpolate"))
    with pytest.raises(ValueError, match="batch_norm: this network has"):
        connectivity.plane(made, *networks, Measure())
    a, b, _ = three()
    with pytest.raises(ValueError, match="leaf"):
        draw((a, b, networks[0]))
    seen = []
    draw((a, b, three()[2]), size=2, where=Where(TWO.execution, watch=seen.append))
    assert (seen[-1].done, seen[-1].total, seen[-1].rows) == (4, 4, 3)


def test_binomials_of_a_curve_of_many_bends():
    at = np.asarray(tasks.coefficients("bezier", 0.5, 6), np.float64)
    expected = [math.comb(7, i) / 2**7 for i in range(8)]
    np.testing.assert_allclose(at, expected, rtol=1e-6)
    assert planes.Plane._fields[:3] == ("x", "y", "networks")
