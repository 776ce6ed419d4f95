"""Curves between networks that no line connects, and planes through three of them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

import lottery_jax as lj
from lottery_jax import connectivity, masks, training
from lottery_jax.connectivity import curves
from lottery_jax.replicas import Execution
from lottery_jax.types import Network

TWO = Execution(devices=2, chunk=1)
STEPS, POINTS = 150, 9
KINDS = ("bezier", "chain")


# --- positions on a curve -------------------------------------------------------------


@functools.cache
def coefficient_program(kind, bends):
    return jax.jit(functools.partial(connectivity.coefficients, kind, bends=bends))


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
            functools.partial(connectivity.coefficients, kind, bends=bends),
        ):
            np.testing.assert_array_equal(function(t), expected)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_curves_written_out(t):
    quadratic = [(1 - t) ** 2, 2 * t * (1 - t), t**2]
    np.testing.assert_allclose(
        connectivity.coefficients("bezier", t), quadratic, rtol=1e-6
    )
    cubic = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    np.testing.assert_allclose(
        connectivity.coefficients("bezier", t, 2), cubic, rtol=1e-6
    )
    # A chain with one bend goes to it in the first half and away from it in the second.
    s = 2 * t if t < 0.5 else 2 * t - 1
    pieces = [1 - s, s, 0] if t < 0.5 else [0, 1 - s, s]
    np.testing.assert_allclose(connectivity.coefficients("chain", t), pieces, atol=1e-6)


@pytest.mark.parametrize("bends", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_straight_bends_make_the_line(kind, bends):
    rng = np.random.default_rng(0)
    a, b = ({"w": rng.normal(size=5).astype(np.float32)} for _ in range(2))
    middle = connectivity.straight(a, b, bends)
    assert len(middle) == bends
    for i, bend in enumerate(middle):
        alpha = (i + 1) / (bends + 1)
        line = (1 - alpha) * a["w"] + alpha * b["w"]
        np.testing.assert_allclose(bend["w"], line, rtol=1e-6)
    for t in np.linspace(0, 1, 7):
        at = connectivity.coefficients(kind, t, bends)
        point = connectivity.combine([a, *middle, b], at)
        expected = (1 - t) * a["w"] + t * b["w"]
        np.testing.assert_allclose(point["w"], expected, atol=1e-6)


def test_curves_of_no_sense_are_refused():
    a = {"w": jnp.zeros(3)}
    task = toys.classification()
    for kind, bends, message in (
        ("spline", 1, "kind='spline'"),
        ("bezier", 0, "bends=0"),
        ("chain", -1, "bends=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            connectivity.coefficients(kind, 0.5, bends)
        with pytest.raises(ValueError, match=message):
            connectivity.curve_task(task, a, a, kind=kind, bends=bends)
    with pytest.raises(ValueError, match="'w' has shape"):
        connectivity.curve_task(task, a, {"w": jnp.zeros(4)})


# --- training a curve -----------------------------------------------------------------


@functools.cache
def task():
    return toys.classification(lj.models.make("mlp-5", 4, bias="torch"))


@functools.cache
def ends():
    """Two networks, trained from two initialisations under two noises."""
    tx = optax.adam(0.05)

    @jax.jit
    def trained(key):
        params, model_state, stream = task().init(key)
        mask = masks.ones_like(params)
        state = training.start(tx, Network(params, model_state), stream, mask)
        order = training.orders(task(), key, training.epochs_of(task(), STEPS))
        state, _ = training.train(
            task(), tx, state, key, order, 0, STEPS, capacity=STEPS
        )
        return Network(state.params, state.model_state)

    return tuple(trained(jax.random.key(seed)) for seed in (0, 1))


@functools.cache
def curve_program(kind="bezier", bends=1):
    """A compiled function that trains a curve between any two networks."""
    tx = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def run(a, b, mask, key):
        curve = connectivity.curve_task(task(), a, b, kind=kind, bends=bends)
        start = Network(connectivity.straight(a, b, bends), {})
        state = training.start(tx, start, (), (mask,) * bends)
        order = training.orders(curve, key, training.epochs_of(curve, STEPS))
        state, metrics = training.train(
            curve, tx, state, key, order, 0, STEPS, capacity=STEPS
        )
        return state.params, metrics

    return run


@functools.cache
def found_curve(kind="bezier"):
    a, b = (end.params for end in ends())
    return curve_program(kind)(a, b, masks.ones_like(a), jax.random.key(5))


def along(bends, a, b, kind="bezier"):
    return connectivity.error_along_curve(
        task(), a, b, bends, POINTS, kind=kind, batch_norm=None, execution=TWO
    )


@functools.cache
def line():
    return connectivity.paths(
        task(),
        jax.tree.map(lambda *x: jnp.stack(x), *ends()),
        [(0, 1)],
        POINTS,
        batch_norm=None,
        execution=TWO,
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
    bends, _ = found_curve(kind)
    found = along(bends, *ends(), kind)
    assert found.loss[0, 0].mean() < line().loss[0, 0].mean() - 0.1
    assert found.error[0, 0].mean() < line().error[0, 0].mean() - 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_a_curve_stay_the_networks(kind):
    found = along(found_curve(kind)[0], *ends(), kind)
    for end, at in ((0, 0), (1, -1)):
        for row, split in enumerate(("train", "test")):
            expected = evaluator(split)(ends()[end])
            np.testing.assert_array_equal(found.error[0, row, at], expected["error"])
            np.testing.assert_allclose(
                found.loss[0, row, at], expected["loss"], rtol=1e-6
            )
    np.testing.assert_array_equal(found.error[..., [0, -1]], line().error[..., [0, -1]])


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("chain", 1), ("chain", 2)])
def test_the_curve_of_straight_bends_has_the_errors_of_the_line(kind, bends):
    a, b = ends()
    straight = connectivity.straight(a.params, b.params, bends)
    found = along(straight, a, b, kind)
    np.testing.assert_array_equal(found.alphas, line().alphas)
    np.testing.assert_allclose(found.loss, line().loss, rtol=1e-5)
    np.testing.assert_allclose(found.error, line().error, atol=1e-6)


def test_a_masked_curve_stays_on_the_mask():
    rng = np.random.default_rng(0)
    mask = jax.tree.map(
        lambda p: jnp.asarray(rng.random(p.shape) < 0.6), ends()[0].params
    )
    a, b = (masks.apply(mask, end.params) for end in ends())
    bends, metrics = curve_program()(a, b, mask, jax.random.key(5))
    assert np.isfinite(metrics["loss"]).all()
    before = connectivity.straight(a, b)[0]
    for t in (0.0, 0.3, 1.0):
        at = connectivity.coefficients("bezier", t)
        point = connectivity.combine([a, *bends, b], at)
        for m, p in zip(jax.tree.leaves(mask), jax.tree.leaves(point)):
            assert (np.asarray(p)[~np.asarray(m)] == 0).all()
    for m, x, y in zip(*map(jax.tree.leaves, (mask, bends[0], before))):
        assert (np.asarray(x) != y)[np.asarray(m)].any()  # and it moved


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("chain", 2)])
def test_the_gradient_of_a_bend_is_its_share_of_the_gradient_there(kind, bends):
    a, b = (end.params for end in ends())
    curve = connectivity.curve_task(task(), a, b, kind=kind, bends=bends)
    middle = connectivity.straight(a, b, bends)
    indices = task().order(jax.random.key(1), jnp.int32(0))[0]
    noise, key = jax.random.key(2), jax.random.key(3)
    batch = curve.batch(curve.data, indices, noise, jnp.int32(0))
    (value, (_, _, metrics)), found = jax.jit(
        jax.value_and_grad(
            lambda bends: curve.loss(bends, {}, (), batch, key), has_aux=True
        )
    )(middle)
    # On the line every point is known without the curve: only the position is drawn.
    a64, b64 = (jax.tree.map(lambda x: np.asarray(x, np.float64), x) for x in (a, b))
    inner = task().batch(task().data, indices, noise, jnp.int32(0))
    there = jax.jit(
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

    curve = connectivity.curve_task(task()._replace(loss=loss), zero, one)
    batch = (None, zero, one)
    middle = connectivity.straight(zero, one)
    keys = jax.random.split(jax.random.key(0), 400)
    found = np.asarray(
        jax.jit(jax.vmap(lambda key: curve.loss(middle, (), (), batch, key)[0]))(keys)
    )
    assert found.min() >= 0 and found.max() <= 1
    counts = np.histogram(found, bins=10, range=(0, 1))[0]
    # 40 each, with a standard deviation of 6.
    assert (np.abs(counts - 40) < 5 * 6).all()


def test_a_curves_task_is_the_tasks_in_all_but_the_weights():
    a, b = (end.params for end in ends())
    curve = connectivity.curve_task(task(), a, b)
    hash(curve.functions)  # a static argument of programs
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        curve.order(key, jnp.int32(1)), task().order(key, jnp.int32(1))
    )
    assert curve.steps_per_epoch == task().steps_per_epoch
    bends, _ = found_curve()
    at = connectivity.coefficients("bezier", 0.5)
    middle = connectivity.combine([a, *bends, b], at)
    found = jax.jit(lambda: curve.evaluate(bends, {}, curve.data, key, "test"))()
    toys.assert_close(found, evaluator("test")(Network(middle, {})))
    with pytest.raises(NotImplementedError, match="straight"):
        curve.init(key)


@functools.cache
def normed():
    made = toys.classification(toys.ChosenNet())
    params, model_state, _ = jax.jit(jax.vmap(made.init))(
        jax.random.split(jax.random.key(0), 3)
    )
    return made, [
        Network(*jax.tree.map(lambda x, i=i: x[i], (params, model_state)))
        for i in range(3)
    ]


def test_curves_between_networks_with_statistics():
    made, (a, b, _) = normed()
    bends = connectivity.straight(a.params, b.params)
    options = {"kind": "bezier", "statistics_batches": 2, "execution": TWO}
    with pytest.raises(ValueError, match="batch_norm='interpolate'.*'recompute'"):
        connectivity.error_along_curve(
            made, a, b, bends, 3, batch_norm="interpolate", **options
        )
    with pytest.raises(ValueError, match="batch_norm: this network has"):
        connectivity.error_along_curve(made, a, b, bends, 3, batch_norm=None, **options)
    found = connectivity.error_along_curve(
        made, a, b, bends, 3, batch_norm="recompute", **options
    )
    path = connectivity.paths(
        made,
        jax.tree.map(lambda *x: jnp.stack(x), a, b),
        [(0, 1)],
        3,
        batch_norm="recompute",
        statistics_batches=2,
        execution=TWO,
    )
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
    params, model_state, _ = task().init(jax.random.key(11))
    return a, b, Network(params, model_state)


def draw(networks, size=5, margin=0.5, **options):
    return connectivity.plane(
        task(),
        *networks,
        batch_norm=None,
        size=size,
        margin=margin,
        splits=("train", "test"),
        execution=TWO,
        **options,
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
        connectivity.plane(made, *networks, batch_norm="interpolate")
    with pytest.raises(ValueError, match="batch_norm: this network has"):
        connectivity.plane(made, *networks, batch_norm=None)
    a, b, _ = three()
    with pytest.raises(ValueError, match="leaf"):
        draw((a, b, networks[0]))
    seen = []
    draw((a, b, three()[2]), size=2, watch=lambda *moment: seen.append(moment))
    assert seen[-1] == (4, 4)


def test_binomials_of_a_curve_of_many_bends():
    at = np.asarray(connectivity.coefficients("bezier", 0.5, 6), np.float64)
    expected = [math.comb(7, i) / 2**7 for i in range(8)]
    np.testing.assert_allclose(at, expected, rtol=1e-6)
    assert curves.Plane._fields[:3] == ("x", "y", "networks")
