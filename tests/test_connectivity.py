"""Paths between networks: points, errors, barriers, masks, BatchNorm, distances."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lottery_jax as lj
from lottery_jax import connectivity, masks
from lottery_jax.connectivity import Measure, distances, linear, points
from lottery_jax.connectivity.measure import SPLITS
from lottery_jax.execution import Execution, Where
from lottery_jax.trees import rows as at
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

EPSILON = np.finfo(np.float32).eps
TWO = Where(Execution(devices=2, chunk=1))


@functools.cache
def plain():
    """A task without model state, and a stack of three networks."""
    task = toys.classification(lj.models.make("mlp-6", 4, bias="torch"))
    return task, drawn(task, 3)


@functools.cache
def normed():
    """A task with BatchNorm, and two networks whose running statistics are far off."""
    task = toys.classification(toys.ChosenNet())
    networks = drawn(task, 2)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 3, x.shape), jnp.float32),
        networks.model_state,
    )
    return task, networks._replace(model_state=state)


def drawn(task, number):
    params, model_state, _ = jax.jit(jax.vmap(task.init))(
        jax.random.split(jax.random.key(0), number)
    )
    return Network(params, model_state)


@functools.cache
def evaluator(task_of, split):
    task = task_of()[0]
    return jax.jit(
        lambda network: task.evaluate(
            network.params, network.model_state, task.data, jax.random.key(9), split
        )
    )


def by_hand(task_of, networks):
    """What the task says of some networks, `[splits, networks]`."""
    out = [
        [evaluator(task_of, split)(network) for network in networks] for split in SPLITS
    ]
    return {
        name: np.array([[float(m[name]) for m in row] for row in out])
        for name in ("error", "loss")
    }


def numpy_line(a, b, alpha):
    return jax.tree.map(
        lambda x, y: (
            (1 - alpha) * np.asarray(x, np.float64) + alpha * np.asarray(y, np.float64)
        ).astype(np.float32),
        a,
        b,
    )


def assert_same_path(found, expected):
    # A fraction of examples is a whole number over their number: far above 1e-6.
    np.testing.assert_allclose(found["error"], expected["error"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=2e-5)


# --- interpolation --------------------------------------------------------------------

LEAF = hnp.arrays(
    np.float32,
    st.sampled_from([(), (3,), (2, 3)]),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)
TREE = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
        st.tuples(inner, inner),
        st.lists(inner, min_size=1, max_size=2),
    ),
    max_leaves=5,
)


def like(draw, tree):
    elements = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    return jax.tree.map(
        lambda x: draw(hnp.arrays(np.float32, x.shape, elements=elements)), tree
    )


@settings(max_examples=40, deadline=None)
@given(st.data(), TREE, st.floats(0, 1, width=32, allow_subnormal=False))
def test_interpolation_is_numpys_and_exact_at_the_ends(data, a, alpha):
    b = like(data.draw, a)
    toys.assert_equal(connectivity.interpolate(a, b, 0.0), a)
    toys.assert_equal(connectivity.interpolate(a, b, 1), b)
    found = connectivity.interpolate(a, b, alpha)
    assert jax.tree.structure(found) == jax.tree.structure(a)
    for x, y, z in zip(*map(jax.tree.leaves, (a, b, found))):
        x, y = x.astype(np.float64), y.astype(np.float64)
        size = (1 - alpha) * np.abs(x) + alpha * np.abs(y)
        error = np.abs((1 - alpha) * x + alpha * y - np.asarray(z, np.float64))
        # Three roundings of a term at most, and products that underflow.
        assert (error <= 3 * EPSILON * size + 1e-37).all()


def test_leaves_that_are_no_numbers_to_average_are_those_of_the_first():
    a = {"count": jnp.int32(3), "on": jnp.array([True]), "w": jnp.ones(2, jnp.bfloat16)}
    b = {"count": jnp.int32(8), "on": jnp.array([False]), "w": jnp.full(2, 3.0)}
    b["w"] = b["w"].astype(jnp.bfloat16)
    found = connectivity.interpolate(a, b, 0.5)
    assert {name: x.dtype for name, x in found.items()} == {
        name: x.dtype for name, x in a.items()
    }
    assert int(found["count"]) == 3 and bool(found["on"][0])
    np.testing.assert_array_equal(np.asarray(found["w"], np.float32), [2.0, 2.0])


def test_a_traced_position_works_under_jit_vmap_and_differentiation():
    _, networks = plain()
    a, b = at(networks, 0), at(networks, 1)
    alphas = jnp.linspace(0, 1, 5)
    many = jax.jit(jax.vmap(lambda alpha: connectivity.interpolate(a, b, alpha)))(
        alphas
    )
    for i, alpha in enumerate(np.asarray(alphas)):
        toys.assert_close(at(many, i), numpy_line(a, b, alpha), atol=1e-6)
    toys.assert_equal(at(many, 0), a)
    toys.assert_equal(at(many, 4), b)
    # The derivative along the path is the difference of its ends, wherever it is taken.
    slope = jax.jit(jax.jacfwd(lambda alpha: connectivity.interpolate(a, b, alpha)))(
        0.3
    )
    toys.assert_close(slope, jax.tree.map(jnp.subtract, b, a), atol=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, np.nan])
def test_positions_outside_need_to_be_asked_for(alpha):
    a, b = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([3.0, 5.0])}
    with pytest.raises(ValueError, match=rf"alpha={alpha}.*extrapolate=True"):
        connectivity.interpolate(a, b, alpha)
    found = connectivity.interpolate(a, b, alpha, extrapolate=True)
    np.testing.assert_allclose(found["w"], numpy_line(a, b, alpha)["w"], rtol=1e-6)


W = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            {"x": {"w": W}, "y": W},
            {"x": {"w": W}},
            "only a has a leaf 'y'",
        ),
        ((W,), (W, {"k": W}), "only b has a leaf '1/k'"),
        (
            {"x": {"w": W}},
            {"x": {"w": W.T}},
            r"'x/w' has shape \(2, 3\) in a and \(3, 2\)",
        ),
        ({"x": W}, {"x": W[0]}, r"'x' has shape \(2, 3\) in a and \(3,\) in b"),
        ((W, W), [W, W], "the same leaves in different containers"),
    ],
)
def test_trees_that_do_not_match_say_where(a, b, message):
    with pytest.raises(ValueError, match=message):
        connectivity.interpolate(a, b, 0.5)
    with pytest.raises(ValueError, match=message):
        connectivity.l2(a, b)
    with pytest.raises(ValueError, match=message):
        connectivity.angle(a, b)


# --- the error along a path -----------------------------------------------------------


@functools.cache
def path_program(number=5, chunk=1):
    task, _ = plain()

    def run(a, b):
        return connectivity.error_along_path(task, a, b, Measure(number), chunk=chunk)

    return jax.jit(run)


def test_a_path_is_the_error_of_each_network_on_it():
    _, networks = plain()
    a, b = at(networks, 0), at(networks, 1)
    between = [numpy_line(a, b, alpha) for alpha in np.linspace(0, 1, 5)]
    found = path_program()(a, b)
    assert found["error"].shape == found["loss"].shape == (2, 5)
    assert found["error"].dtype == found["loss"].dtype == jnp.float32
    assert_same_path(found, by_hand(plain, between))
    # The check can fail: networks differ along the path, and splits do.
    assert len(set(np.asarray(found["error"]).ravel().tolist())) > 4


def test_the_ends_of_a_path_are_the_networks_themselves():
    _, networks = plain()
    a, b = at(networks, 0), at(networks, 1)
    found, ends = path_program()(a, b), by_hand(plain, [a, b])
    np.testing.assert_array_equal(found["error"][:, [0, -1]], ends["error"])
    np.testing.assert_allclose(found["loss"][:, [0, -1]], ends["loss"], rtol=1e-6)


def test_a_path_from_the_other_end_is_the_same_path():
    _, networks = plain()
    a, b = at(networks, 0), at(networks, 1)
    there, back = path_program()(a, b), path_program()(b, a)
    assert_same_path(there, {name: x[:, ::-1] for name, x in back.items()})


def test_points_at_once_are_the_same_points():
    # Chunks of three of five points leave a rest.
    _, networks = plain()
    a, b = at(networks, 0), at(networks, 1)
    assert_same_path(path_program(chunk=3)(a, b), path_program()(a, b))


def test_vmapped_over_pairs_is_a_loop_over_pairs():
    _, networks = plain()
    pairs = list(itertools.combinations(range(3), 2))
    first, second = (at(networks, np.array(side)) for side in zip(*pairs))
    many = jax.jit(jax.vmap(path_program()))(first, second)
    for row, (i, j) in enumerate(pairs):
        assert_same_path(
            at(many, row), path_program()(at(networks, i), at(networks, j))
        )


def test_chosen_positions_and_splits():
    task, networks = plain()
    a, b = at(networks, 0), at(networks, 1)
    chosen = (-0.5, 0.0, 0.3, 1.0)
    found = connectivity.error_along_path(
        task, a, b, Measure(chosen, splits=("test",)), extrapolate=True
    )
    assert found["error"].shape == (1, 4)
    expected = by_hand(plain, [numpy_line(a, b, alpha) for alpha in chosen])
    assert_same_path(found, {name: x[1:] for name, x in expected.items()})


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        (1, "alphas=1"),
        ((0.0, 0.5), "contain 0 and 1"),
        ((0.0, 1.0, 0.5), "rising"),
        ((0.0, 0.5, 0.5, 1.0), "rising"),
        ((0.0, 1.0, 1.5), "alpha=1.5"),
        ((0.0, np.nan, 1.0), "alpha=nan"),
    ],
)
def test_positions_that_make_no_path_are_refused(alphas, message):
    with pytest.raises(ValueError, match=message):
        linear.positions(alphas)


def test_networks_that_do_not_match_are_refused():
    task, networks = plain()
    a, b = at(networks, 0), at(networks, 1)
    params = b.params | {"head": b.params["head"] | {"bias": jnp.zeros(3)}}
    with pytest.raises(ValueError, match="'params/head/bias' has shape"):
        connectivity.error_along_path(task, a, b._replace(params=params), Measure(3))


def test_memory_does_not_grow_with_the_number_of_points():
    task = toys.classification(lj.models.make("mlp-64", 4))
    a = jax.eval_shape(lambda: drawn(task, 1))
    a = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), a)

    def temporary(number, chunk=1):
        def run(data, a, b):
            return connectivity.error_along_path(
                task._replace(data=data), a, b, Measure(number), chunk=chunk
            )

        compiled = jax.jit(run).lower(task.data, a, a).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary(5), temporary(50)
    size = sum(4 * np.prod(x.shape) for x in jax.tree.leaves(a.params))
    # What a point leaves: its position, and error and loss on two splits.
    room = 45 * 2 * (4 + 4 * 4)
    assert many - few <= room < size
    assert temporary(50, chunk=50) - few > 45 * size  # the check can fail


# --- many paths -----------------------------------------------------------------------

PAIRS = ((0, 1), (2, 0), (1, 2))


@functools.cache
def many_paths():
    task, networks = plain()
    return connectivity.paths(task, networks, PAIRS, Measure(5), where=TWO)


def test_sharded_paths_are_the_paths_of_each_pair():
    # 15 points on 2 devices: one is a copy.
    _, networks = plain()
    found = many_paths()
    assert found.error.shape == found.loss.shape == (3, 2, 5)
    assert found.splits == ("train", "test")
    np.testing.assert_array_equal(found.alphas, np.linspace(0, 1, 5, dtype=np.float32))
    for row, (i, j) in enumerate(PAIRS):
        expected = path_program()(at(networks, i), at(networks, j))
        assert_same_path({"error": found.error[row], "loss": found.loss[row]}, expected)


def line_points(pairs=PAIRS, number=5):
    alphas = np.linspace(0, 1, number, dtype=np.float32)
    which = np.repeat(np.array(pairs), number, axis=0)
    weights = np.tile(np.stack([1 - alphas, alphas], axis=1), (len(pairs), 1))
    return which, weights


@pytest.mark.parametrize(
    ("execution", "group"),
    [
        (TWO.execution, 4),
        (TWO.execution, 1),
        (Execution(1, 1), 7),
        (TWO.execution, 15),
    ],
)
def test_groups_and_devices_change_nothing(execution, group):
    task, networks = plain()
    seen = []
    found = connectivity.evaluate_many(
        task,
        networks,
        *line_points(),
        Measure(),
        group=group,
        where=Where(execution, watch=seen.append),
    )
    assert_many_paths(found)
    done = [p.done for p in seen]
    assert done == sorted(set(done)) and done[-1] == 15
    assert {(p.stage, p.total, p.rows) for p in seen} == {("paths", 15, 3)}
    # No call evaluates more points than asked for, rounded up to the devices.
    most = -(-group // execution.devices) * execution.devices
    assert max(np.diff([0, *done])) <= most


def assert_many_paths(found, close=False):
    """What is found at `line_points` is what lies on `many_paths`."""
    expected = many_paths()
    shaped = {
        name: np.moveaxis(found[name].reshape(3, 5, 2), 1, 2)
        for name in ("error", "loss")
    }
    if close:
        assert_same_path(shaped, expected.values)
        return
    for name, x in shaped.items():
        np.testing.assert_array_equal(x, getattr(expected, name))


def test_a_full_device_evaluates_fewer_points_at_once():
    # Eight, four and two at once do not fit; the points are the same but for rounding.
    task, networks = plain()
    full = toys.full_beyond(task, 1)
    many = Where(Execution(devices=1, chunk=0))
    found = connectivity.evaluate_many(
        full, networks, *line_points(), Measure(), where=many
    )
    assert_many_paths(found, close=True)
    path = connectivity.paths(full, networks, PAIRS, Measure(5), where=many)
    assert_same_path(path.values, many_paths().values)
    classes = connectivity.predictions(full, networks, where=many)
    expected = connectivity.predictions(task, networks, where=TWO)
    np.testing.assert_array_equal(classes, expected)


def test_a_device_too_small_for_one_point_is_said():
    task, networks = plain()

    def evaluate(*args):
        if not jax.sharding.get_abstract_mesh().empty:  # on devices
            raise toys.FULL
        return task.evaluate(*args)

    none = task._replace(evaluate=evaluate)
    with pytest.raises(MemoryError, match="one replica at a time"):
        connectivity.paths(none, networks, PAIRS, Measure(5), where=TWO)


def test_points_of_three_networks_are_their_weighted_sums():
    task, networks = plain()
    weights = np.array([[0.2, 0.5, 0.3], [1.5, -1.0, 0.5], [0, 0, 1]], np.float32)
    found = connectivity.evaluate_many(
        task,
        networks,
        np.tile([2, 0, 1], (3, 1)),
        weights,
        Measure(),
        where=TWO,
    )
    combined = [
        jax.tree.map(lambda x, w=w: w[0] * x[2] + w[1] * x[0] + w[2] * x[1], networks)
        for w in weights
    ]
    expected = by_hand(plain, combined)
    assert_same_path({name: x.T for name, x in found.items()}, expected)


@pytest.mark.parametrize(
    ("which", "weights", "message"),
    [
        ([[0, 3]], [[0.5, 0.5]], r"outside of \[0, 3\)"),
        ([[-1, 0]], [[0.5, 0.5]], r"outside of \[0, 3\)"),
        ([[0, 1]], [[0.5]], r"shape \(1, 2\) and weights \(1, 1\)"),
        ([0, 1], [0.5, 0.5], r"which has shape \(2,\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "a point at least"),
    ],
)
def test_points_that_make_no_sense_are_refused(which, weights, message):
    task, networks = plain()
    with pytest.raises(ValueError, match=message):
        connectivity.evaluate_many(task, networks, which, weights, Measure())


@pytest.mark.parametrize("pairs", [[], [(0, 3)], [(-1, 0)]])
def test_pairs_of_unknown_networks_are_refused(pairs):
    task, networks = plain()
    with pytest.raises(ValueError, match=r"pairs=.*networks in \[0, 3\)"):
        connectivity.paths(task, networks, pairs, Measure(3))


class Killed(Exception):
    pass


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path):
    task, networks = plain()
    seen = []

    def evaluate(watch, splits=SPLITS, which=None):
        chosen, weights = line_points()
        where = Where(TWO.execution, tmp_path, checkpoint_seconds=0, watch=watch)
        return connectivity.evaluate_many(
            task,
            networks,
            chosen if which is None else which,
            weights,
            Measure(splits=splits),
            group=4,
            where=where,
        )

    def kill(progress):
        if progress.done >= 8:
            raise Killed

    with pytest.raises(Killed):
        evaluate(kill)
    resumed = evaluate(seen.append)
    # The call before the kill was stored.
    assert [p.done for p in seen] == [4, 8, 12, 15]
    assert [p.resumed for p in seen] == [True, False, False, False]
    assert_many_paths(resumed)
    # What is complete is read and not evaluated.
    seen.clear()
    toys.assert_equal(evaluate(seen.append), resumed)
    assert [(p.done, p.total, p.resumed) for p in seen] == [(15, 15, True)]
    for other in ({"splits": ("test",)}, {"which": line_points()[0][::-1]}):
        with pytest.raises(ValueError, match="evaluation of other points"):
            evaluate(None, **other)


# --- instability and barriers ---------------------------------------------------------

HEIGHTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(2, 6)),
    elements=st.floats(0, 1, width=32, allow_subnormal=False),
)


def loop_barrier(values, alphas, reference):
    out = np.empty(values.shape[:-1])
    for index in np.ndindex(*out.shape):
        path = values[index].astype(np.float64)
        highest = -np.inf
        for alpha, height in zip(alphas, path):
            if reference == "mean":
                level = (path[0] + path[-1]) / 2
            else:
                level = (1 - alpha) * path[0] + alpha * path[-1]
            highest = max(highest, height - level)
        out[index] = highest
    return out


@given(HEIGHTS)
def test_instability_is_the_highest_point_over_the_mean_of_the_ends(values):
    even = np.linspace(0, 1, values.shape[-1])
    found = connectivity.instability(values)
    np.testing.assert_allclose(found, loop_barrier(values, even, "mean"), atol=1e-6)
    assert found.shape == values.shape[:-1]
    assert (found >= 0).all()


@given(HEIGHTS, st.data())
def test_the_barrier_over_the_chord(values, data):
    number = values.shape[-1]
    inner = data.draw(
        st.lists(
            st.floats(0.01, 0.99), min_size=number - 2, max_size=number - 2, unique=True
        )
    )
    alphas = np.array([0, *sorted(inner), 1])
    found = connectivity.barrier(values, alphas, reference="chord")
    np.testing.assert_allclose(found, loop_barrier(values, alphas, "chord"), atol=1e-6)
    assert (found >= 0).all()  # exactly: the ends lie on the chord
    # The same from the other end.
    back = connectivity.barrier(values[..., ::-1], 1 - alphas[::-1], reference="chord")
    np.testing.assert_allclose(back, found, atol=1e-6)
    # What rises steadily adds nothing to it, and it is all that the mean's has more.
    rise = np.float32(0.75) * alphas.astype(np.float32)
    tilted = values + rise
    same = connectivity.barrier(tilted, alphas, reference="chord")
    np.testing.assert_allclose(same, found, atol=1e-6)
    level = np.array(values)
    level[..., -1] = level[..., 0]
    np.testing.assert_allclose(
        connectivity.barrier(level, alphas, reference="chord"),
        connectivity.barrier(level, alphas, reference="mean"),
        atol=1e-6,
    )


def test_a_path_that_rises_steadily_has_no_barrier_over_the_chord():
    values = np.linspace(0.125, 0.625, 9, dtype=np.float32)  # exact in binary
    assert connectivity.barrier(values, reference="chord") == 0
    assert connectivity.barrier(values, reference="mean") == 0.25
    bent = values - np.sin(np.pi * np.linspace(0, 1, 9)) / 10  # below the chord
    assert connectivity.barrier(bent, reference="chord") == 0


@pytest.mark.parametrize("reference", ["mean", "chord"])
def test_jax_arrays_have_the_barriers_of_numpy_arrays(reference):
    values = np.random.default_rng(0).random((3, 2, 6), np.float32)
    expected = connectivity.barrier(values, reference=reference)
    assert isinstance(expected, np.ndarray)
    compiled = jax.jit(functools.partial(connectivity.barrier, reference=reference))
    np.testing.assert_allclose(compiled(values), expected, atol=1e-7)
    np.testing.assert_allclose(compiled(values[0, 0]), expected[0, 0], atol=1e-7)


@pytest.mark.parametrize("reference", ["mean", "chord"])
def test_whole_numbers_are_heights_too(reference):
    # Errors in points, say.
    values = [[0, 1, 1], [4, 1, 2]]
    expected = loop_barrier(np.array(values), (0, 0.5, 1), reference)
    np.testing.assert_allclose(
        connectivity.barrier(values, reference=reference), expected
    )


@pytest.mark.parametrize("reference", ["mean", "chord"])
@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_nan_goes_through_and_stays_in_its_path(reference, place, kind):
    values = np.full((2, 5), 0.5, np.float32)
    values[0, place] = np.nan
    found = np.asarray(connectivity.barrier(kind(values), reference=reference))
    assert np.isnan(found[0]) and found[1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "median"}, "reference='median'"),
        ({"reference": "mean", "alphas": [0, 1]}, "3 positions from 0 to 1"),
        ({"reference": "mean", "alphas": [0, 0.5, 2]}, "from 0 to 1"),
        ({"reference": "chord", "alphas": [0.1, 0.5, 1]}, "from 0 to 1"),
    ],
)
def test_barriers_of_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        connectivity.barrier(np.zeros(3), **options)


@given(
    hnp.arrays(np.float32, (4,), elements=st.floats(0, 1, width=32)),
    st.floats(0, 1, width=32),
)
def test_stable_is_below_the_threshold(lii, threshold):
    lii = np.append(lii, np.float32(np.nan))
    found = connectivity.is_stable(lii, threshold)
    assert found.tolist() == [bool(x < threshold) for x in lii[:-1]] + [False]


def test_two_points_of_error_are_the_usual_threshold():
    lii = np.array([0.0, 0.0199, 0.0201, 1.0, np.nan], np.float32)
    assert connectivity.is_stable(lii).tolist() == [True, True, False, False, False]
    traced = jax.jit(connectivity.is_stable)(lii)
    np.testing.assert_array_equal(traced, connectivity.is_stable(lii))


@pytest.mark.parametrize("threshold", [-0.01, np.nan])
def test_thresholds_of_no_sense_are_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold={threshold}"):
        connectivity.is_stable(np.zeros(2), threshold)


@pytest.mark.parametrize("reference", ["mean", "chord"])
def test_the_matrix_holds_the_barrier_of_every_pair(reference):
    task, networks = plain()
    found = connectivity.barrier_matrix(
        task, networks, Measure(5), reference=reference, where=TWO
    )
    assert found.shape == (2, 3, 3)
    np.testing.assert_array_equal(found, np.swapaxes(found, 1, 2))
    np.testing.assert_array_equal(found[:, range(3), range(3)], 0)
    path = many_paths()
    height = loop_barrier(path.error, path.alphas, reference)
    for (i, j), value in zip(PAIRS, height):
        np.testing.assert_allclose(found[:, i, j], value, atol=1e-6)
    assert (found[:, 0, 1] > 0).any()


def test_a_matrix_of_one_network_is_refused():
    task, networks = plain()
    with pytest.raises(ValueError, match="networks: there is 1"):
        connectivity.barrier_matrix(task, at(networks, slice(0, 1)), Measure(3))


# --- masks ----------------------------------------------------------------------------


def random_masks(params, number=2, seed=0):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < 0.6), params)
        for _ in range(number)
    ]


def test_a_path_between_networks_of_one_mask_stays_on_it():
    _, networks = plain()
    params = [at(networks, i).params for i in (0, 1)]
    (mask,) = random_masks(params[0], 1)
    a, b = (masks.apply(mask, p) for p in params)
    for alpha in (0.0, 0.25, 0.7, 1.0):
        point = connectivity.interpolate(a, b, alpha)
        for m, p in zip(jax.tree.leaves(mask), jax.tree.leaves(point)):
            assert (np.asarray(p)[~np.asarray(m)] == 0).all()


def test_masks_that_differ_are_refused_by_leaf_and_count():
    task, networks = plain()
    a, b = at(networks, 0), at(networks, 1)
    first = masks.ones_like(a.params)
    kernel = np.ones((6, 4), bool)
    kernel[[0, 2, 5], [1, 1, 3]] = False
    second = first | {"head": first["head"] | {"kernel": jnp.asarray(kernel)}}
    message = "differ in 3 places of leaf 'head/kernel'"
    connectivity.same_mask(second, jax.tree.map(jnp.array, second))
    with pytest.raises(ValueError, match=message):
        connectivity.same_mask(first, second)
    with pytest.raises(ValueError, match=message):
        connectivity.error_along_path(task, a, b, Measure(3), masks=(first, second))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), first, second, first)
    with pytest.raises(ValueError, match=message):
        connectivity.paths(task, networks, [(0, 2), (2, 1)], Measure(3), masks=stacked)
    # Under jit nothing is known of them.
    jax.jit(connectivity.same_mask)(first, second)
    short = {name: x for name, x in first.items() if name != "head"}
    with pytest.raises(ValueError, match="only the first mask has a leaf 'head"):
        connectivity.same_mask(first, short)


def test_projections():
    _, networks = plain()
    a, b = (at(networks, i).params for i in (0, 1))
    held, other = random_masks(a)
    first, second = connectivity.project(a, b, held, other, "intersection")
    for kept, before in ((first, a), (second, b)):
        for p, q, m, n in zip(*map(jax.tree.leaves, (kept, before, held, other))):
            both = np.asarray(m) & np.asarray(n)
            assert 0 < both.sum() < both.size or both.size < 6
            np.testing.assert_array_equal(p, np.where(both, q, 0))
    toys.assert_equal(connectivity.project(a, b, held, other, "union"), (a, b))
    with pytest.raises(ValueError, match="onto='both'"):
        connectivity.project(a, b, held, other, "both")


def test_paths_between_networks_of_different_masks():
    task, networks = plain()
    three = random_masks(at(networks, 0).params, 3)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *three)
    sparse = networks._replace(
        params=jax.tree.map(lambda m, p: jnp.where(m, p, 0), stacked, networks.params)
    )
    options = {"measure": Measure(5), "where": TWO}
    union = connectivity.paths(
        task, sparse, PAIRS, masks=stacked, projection="union", **options
    )
    toys.assert_equal(union, connectivity.paths(task, sparse, PAIRS, **options))
    cut = connectivity.paths(
        task, sparse, PAIRS, masks=stacked, projection="intersection", **options
    )
    for row, (i, j) in enumerate(PAIRS):
        both = jax.tree.map(jnp.logical_and, three[i], three[j])
        ends = [Network(masks.apply(both, at(networks, k).params), {}) for k in (i, j)]
        found = {"error": cut.error[row], "loss": cut.loss[row]}
        assert_same_path(found, path_program()(*ends))
    assert (cut.loss[..., 0] != union.loss[..., 0]).any()  # an end loses weights, too
    with pytest.raises(ValueError, match="projection='both'; it must be one of"):
        connectivity.paths(
            task, sparse, PAIRS, masks=stacked, projection="both", **options
        )
    with pytest.raises(ValueError, match="projection='union' needs the masks"):
        connectivity.paths(task, sparse, PAIRS, projection="union", **options)


def test_paths_within_one_mask_need_no_projection():
    task, networks = plain()
    (mask,) = random_masks(at(networks, 0).params, 1)
    stacked = jax.tree.map(lambda m: jnp.stack([m] * 3), mask)
    sparse = networks._replace(
        params=jax.tree.map(lambda m, p: jnp.where(m, p, 0), stacked, networks.params)
    )
    found = connectivity.paths(
        task, sparse, PAIRS, Measure(5), masks=stacked, where=TWO
    )
    for row, (i, j) in enumerate(PAIRS):
        expected = path_program()(at(sparse, i), at(sparse, j))
        assert_same_path({"error": found.error[row], "loss": found.loss[row]}, expected)


# --- BatchNorm ------------------------------------------------------------------------


@functools.cache
def recomputed():
    task, _ = normed()

    @functools.partial(jax.jit, static_argnums=1)
    def run(network, batches):
        rows = points.statistics_slice(task, batches)
        return points.recompute(task, network.params, network.model_state, rows)

    return run


def test_recomputed_statistics_are_the_moments_of_all_activations_together():
    (task, networks), batches = normed(), 3
    network = at(networks, 0)
    rows = np.asarray(points.statistics_slice(task, batches)).reshape(-1)
    hidden = jax.tree.map(lambda x: np.asarray(x, np.float64), network.params["hidden"])
    x = np.asarray(task.data["train"]["image"], np.float64)[rows].reshape(-1, 2, 4)
    h = x @ hidden["kernel"] + hidden["bias"]
    found = recomputed()(network, batches)["batch_stats"]["norm"]
    assert found.keys() == {"mean", "var"}
    np.testing.assert_allclose(found["mean"], h.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], h.var((0, 1)), rtol=2e-5)
    # The check can fail: without the variance of batch means it would be less.
    within = h.reshape(batches, -1, h.shape[-1]).var(1).mean(0)
    assert (h.var((0, 1)) - within > 1e-4 * h.var((0, 1))).all()


def test_recomputed_statistics_do_not_depend_on_those_before():
    _, networks = normed()
    network = at(networks, 0)
    expected = recomputed()(network, 3)
    other = jax.tree.map(lambda x: 7 * x + 1, network.model_state)
    toys.assert_equal(recomputed()(network._replace(model_state=other), 3), expected)
    moved = jax.tree.map(lambda p: 1.5 * p, network.params)  # but on the weights
    changed = recomputed()(network._replace(params=moved), 3)
    for x, y in zip(jax.tree.leaves(changed), jax.tree.leaves(expected)):
        assert (x != y).all()


@functools.cache
def normed_path(batch_norm):
    task, networks = normed()
    return connectivity.paths(
        task,
        networks,
        [(0, 1)],
        Measure(5, batch_norm, statistics_batches=3),
        where=TWO,
    )


def with_statistics(a, b, alpha, batch_norm):
    between = numpy_line(a, b, alpha)
    if batch_norm == "recompute":
        return between._replace(model_state=recomputed()(between, 3))
    return between


@pytest.mark.parametrize("batch_norm", ["recompute", "interpolate"])
def test_paths_of_networks_with_statistics(batch_norm):
    task, networks = normed()
    a, b = at(networks, 0), at(networks, 1)
    between = [
        with_statistics(a, b, alpha, batch_norm) for alpha in np.linspace(0, 1, 5)
    ]
    expected = by_hand(normed, between)
    path = normed_path(batch_norm)
    assert_same_path({"error": path.error[0], "loss": path.loss[0]}, expected)
    alone = jax.jit(
        functools.partial(
            connectivity.error_along_path,
            task,
            measure=Measure(5, batch_norm, statistics_batches=3),
        )
    )(a=a, b=b)
    assert_same_path(alone, expected)


def test_the_ends_are_recomputed_like_every_other_point():
    _, networks = normed()
    ends = [at(networks, 0), at(networks, 1)]
    running = by_hand(normed, ends)["loss"]
    own = by_hand(normed, [n._replace(model_state=recomputed()(n, 3)) for n in ends])[
        "loss"
    ]
    found = {name: normed_path(name).loss[0] for name in ("recompute", "interpolate")}
    np.testing.assert_allclose(found["recompute"][:, [0, -1]], own, rtol=1e-5)
    np.testing.assert_allclose(found["interpolate"][:, [0, -1]], running, rtol=1e-5)
    assert (np.abs(own - running) > 1e-2).all()  # so one could tell


def test_it_must_be_said_what_statistics_are():
    task, networks = normed()
    a, b = at(networks, 0), at(networks, 1)
    for function in (
        lambda t, policy: connectivity.error_along_path(t, a, b, Measure(3, policy)),
        lambda t, policy: connectivity.paths(t, networks, [(0, 1)], Measure(3, policy)),
    ):
        with pytest.raises(ValueError, match="batch_norm: .*'batch_stats/norm/mean'"):
            function(task, None)
        with pytest.raises(ValueError, match="batch_norm='reset'"):
            function(task, "reset")
        with pytest.raises(ValueError, match="needs a task with `statistics`"):
            function(task._replace(statistics=None), "recompute")


def test_the_slice_that_statistics_come_from():
    task, _ = normed()
    whole = np.asarray(points.statistics_slice(task, 4))
    assert whole.shape == (4, toys.BATCH)
    assert whole.min() >= 0  # no empty slots: the partial batch is left out
    assert len(np.unique(whole)) == whole.size
    np.testing.assert_array_equal(points.statistics_slice(task, 2), whole[:2])
    for batches in (0, 5):
        with pytest.raises(
            ValueError, match=f"statistics_batches={batches}; .* 1 and 4"
        ):
            points.statistics_slice(task, batches)


# --- distances ------------------------------------------------------------------------


def flat(tree, mask=None):
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    whole = np.concatenate(leaves)
    if mask is None:
        return whole
    return whole[np.concatenate([np.asarray(m).ravel() for m in jax.tree.leaves(mask)])]


@pytest.mark.parametrize("masked", [False, True])
def test_distance_and_angle_are_numpys(masked):
    _, networks = plain()
    a, b = (at(networks, i).params for i in (0, 1))
    mask = random_masks(a, 1)[0] if masked else None
    x, y = flat(a, mask), flat(b, mask)
    l2 = jax.jit(connectivity.l2)(a, b, mask)
    np.testing.assert_allclose(l2, np.linalg.norm(x - y), rtol=1e-5)
    cosine = x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
    angle = jax.jit(connectivity.angle)(a, b, mask)
    np.testing.assert_allclose(angle, 2 / np.pi * np.arccos(cosine), rtol=1e-5)
    assert connectivity.l2(a, b) == connectivity.l2(b, a) > 0
    assert connectivity.l2(a, a) == 0


def test_angles_from_multiples_to_opposites():
    _, networks = plain()
    a = at(networks, 0).params
    for factor, angle in ((1.0, 0), (2.0, 0), (-4.0, 2)):
        found = connectivity.angle(a, jax.tree.map(lambda x, f=factor: f * x, a))
        # The cosine is known to 1e-7, the angle to the root of that.
        np.testing.assert_allclose(found, angle, atol=1e-3)
    rng = np.random.default_rng(0)
    b = jax.tree.map(lambda x: rng.normal(size=x.shape), a)
    share = flat(a) @ flat(b) / (flat(a) @ flat(a))
    orthogonal = jax.tree.map(
        lambda x, y: jnp.asarray(y - share * np.asarray(x), jnp.float32), a, b
    )
    np.testing.assert_allclose(connectivity.angle(a, orthogonal), 1, atol=1e-6)


@given(hnp.arrays(np.int32, (2, 3, 7), elements=st.integers(0, 2)))
def test_disagreement_counts_examples(classes):
    a, b = classes
    expected = [sum(x != y for x, y in zip(r, s)) / 7 for r, s in zip(a, b)]
    for kind in (np.asarray, jnp.asarray):
        found = connectivity.disagreement(kind(a), kind(b))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (connectivity.disagreement(a, a) == 0).all()


@pytest.mark.parametrize("split", SPLITS)
def test_predictions_are_the_largest_logits(split):
    # Three networks on two devices: one is a copy. 60 and 150 examples in batches of 25.
    task, networks = plain()
    found = connectivity.predictions(task, networks, split, where=TWO)
    images, labels = (task.data[split][name] for name in ("image", "label"))
    assert found.shape == (3, len(labels)) and found.dtype == np.int32
    for i in range(3):
        p = jax.tree.map(lambda x: np.asarray(x, np.float64), at(networks, i).params)
        h = np.maximum(images @ p["dense_0"]["kernel"] + p["dense_0"]["bias"], 0)
        logits = h @ p["head"]["kernel"] + p["head"]["bias"]
        np.testing.assert_array_equal(found[i], logits.argmax(axis=1))
    ends = by_hand(plain, [at(networks, i) for i in range(3)])["error"]
    wrong = connectivity.disagreement(found, np.broadcast_to(labels, found.shape))
    np.testing.assert_allclose(wrong, ends[SPLITS.index(split)], atol=1e-6)


def test_predictions_use_running_statistics():
    task, networks = normed()
    found = connectivity.predictions(task, networks, "test", where=TWO)
    labels = np.broadcast_to(task.data["test"]["label"], found.shape)
    ends = by_hand(normed, [at(networks, i) for i in (0, 1)])["error"][1]
    np.testing.assert_allclose(
        connectivity.disagreement(found, labels), ends, atol=1e-6
    )


def test_a_task_without_classes_has_no_predictions():
    task, networks = plain()
    with pytest.raises(ValueError, match="no `predict`"):
        distances.predictions(task._replace(predict=None), networks)


def test_a_diverged_network_has_no_error_and_its_paths_are_not_stable():
    """A prediction made of nan is some class, so it may even be right."""
    task, networks = plain()
    broken = jax.tree.map(lambda x: x.at[0].set(jnp.nan), networks)
    path = linear.paths(task, broken, PAIRS, Measure(5), where=TWO)
    lii = connectivity.instability(path.error)
    assert np.isnan(lii[:2]).all() and np.isfinite(lii[2]).all()
    assert not connectivity.is_stable(lii[:2]).any()


def test_a_folder_of_other_networks_is_refused(tmp_path):
    task, networks = plain()
    where = Where(TWO.execution, tmp_path)
    run = functools.partial(linear.paths, pairs=PAIRS, measure=Measure(5), where=where)
    toys.assert_equal(run(task, networks), many_paths())
    changed = jax.tree.map(lambda x: x + 1, task.data)
    for other in (
        (task, jax.tree.map(lambda x: 2 * x, networks)),
        (task._replace(data=changed), networks),
    ):
        with pytest.raises(ValueError, match="other points"):
            run(*other)
