"""Weights that lie on several devices: the same masks, placed as the weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lottery_jax import dynamic, masks, prune, scores
from lottery_jax.granularity import Block, Channel, NofM

pytestmark = pytest.mark.usefixtures("compiled_quickly")

P = jax.sharding.PartitionSpec
SHAPES = {
    "conv": {"kernel": (2, 2, 4, 6), "bias": (6,)},
    "dense": {"kernel": (8, 4), "bias": (4,)},
}


def over(mesh, *spec):
    return jax.sharding.NamedSharding(mesh, P(*spec))


def explicit():
    mesh = jax.make_mesh((2,), ("x",))
    return {
        "conv": {"kernel": over(mesh, None, None, None, "x"), "bias": over(mesh)},
        "dense": {"kernel": over(mesh, "x", None), "bias": over(mesh, "x")},
    }


def automatic():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    return {
        "conv": {"kernel": over(mesh, None, None, "x"), "bias": over(mesh, "x")},
        "dense": {"kernel": over(mesh, None, "x"), "bias": over(mesh)},
    }


def two_meshes():
    first, second = (jax.make_mesh((2,), (name,)) for name in "xy")
    return {
        "conv": {"kernel": over(first, None, None, "x"), "bias": over(first)},
        "dense": {"kernel": over(second, "y"), "bias": over(second)},
    }


def two_devices():
    first, second = map(jax.sharding.SingleDeviceSharding, jax.devices()[:2])
    return {
        "conv": {"kernel": first, "bias": first},
        "dense": {"kernel": second, "bias": second},
    }


def second_device():
    own = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    return jax.tree.map(lambda _: own, explicit())


PLACES = [automatic, two_meshes, two_devices, second_device]


def weights(seed):
    """Few different values, so that there are ties."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.integers(-9, 9, shape).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def a_mask(seed=0, density=0.7):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: (rng.random(p.shape) < density) | (p.ndim < 2), weights(seed)
    )


def key():
    return jax.random.key(3)


def rigl(granularity=None):
    return dynamic.rigl(0.5, 4, 2, scope="uniform", granularity=granularity)


# Of weights, a mask and another mask within it: each gives a mask.
MAKE = {
    "ones_like": lambda w, m, n: masks.ones_like(w),
    "random": lambda w, m, n: masks.random(key(), w, 0.3),
    "random erk": lambda w, m, n: masks.random(key(), w, 0.3, "erk"),
    "shuffle": lambda w, m, n: masks.shuffle(key(), m),
    "shuffle all": lambda w, m, n: masks.shuffle(key(), m, "global"),
    "unpack": lambda w, m, n: masks.unpack(masks.pack(m)),
    "global": lambda w, m, n: prune.global_topk(scores.magnitude(w), m, fraction=0.4),
    "global keep": lambda w, m, n: prune.global_topk(scores.magnitude(w), m, keep=31),
    "open_lth": lambda w, m, n: prune.global_topk(
        scores.magnitude(w), m, fraction=0.4, rule="open_lth"
    ),
    "layerwise": lambda w, m, n: prune.layerwise_topk(
        scores.magnitude(w), m, fraction={"conv": 0.5, "dense": 0.1}
    ),
    "layerwise keep": lambda w, m, n: prune.layerwise_topk(
        scores.taylor(w, w), m, keep=jnp.array([20, 7]), exclude="dense"
    ),
    "to_density": lambda w, m, n: prune.to_density(scores.movement(w, w), m, 0.2),
    "to_density erk": lambda w, m, n: prune.to_density(
        scores.magnitude(w), m, 0.2, scope="erk"
    ),
    "random scores": lambda w, m, n: prune.global_topk(
        scores.random(key(), w), m, fraction=0.5
    ),
    "n_of_m": lambda w, m, n: prune.n_of_m(scores.magnitude(w), m, 2, 4),
    "blocks": lambda w, m, n: prune.to_density(
        scores.magnitude(w), m, 0.4, granularity=Block((2, 2))
    ),
    "channels": lambda w, m, n: prune.to_density(
        scores.magnitude(w), m, 0.4, scope="uniform", granularity=Channel()
    ),
    "rigl": lambda w, m, n: rigl().update(key(), jnp.int32(2), w, w, m),
    "rigl start": lambda w, m, n: rigl().start(key(), w, m),
    "rigl of n of m": lambda w, m, n: rigl(NofM(2, 4)).update(
        key(), jnp.int32(2), w, w, m
    ),
}
MEASURE = {
    "apply": lambda w, m, n: masks.apply(m, w),
    "count": lambda w, m, n: masks.count(m),
    "density": lambda w, m, n: masks.density(m),
    "layer_densities": lambda w, m, n: masks.layer_densities(m),
    "is_subset": lambda w, m, n: (masks.is_subset(n, m), masks.is_subset(m, n)),
    "overlap": lambda w, m, n: masks.overlap(m, n),
    "pack": lambda w, m, n: masks.pack(m).bits,
}


def inputs(places=None):
    mask = a_mask()
    inner = jax.tree.map(np.logical_and, mask, a_mask(1))
    out = (weights(0), mask, inner)
    if places is None:
        return jax.tree.map(jnp.asarray, out)
    return tuple(jax.tree.map(jax.device_put, tree, places) for tree in out)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), y), a, b)


def assert_placed(mask, places):
    for m, place in zip(jax.tree.leaves(mask), jax.tree.leaves(places)):
        assert m.sharding.is_equivalent_to(place, m.ndim), (m.sharding, place)


def everything(weights, mask, inner):
    return {name: f(weights, mask, inner) for name, f in (MAKE | MEASURE).items()}


@pytest.fixture(scope="module")
def expected():
    return jax.jit(everything)(*inputs())


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE | MEASURE)
def test_weights_sharded_over_explicit_axes_give_the_same_masks(name, expected):
    found = (MAKE | MEASURE)[name](*inputs(explicit()))
    assert_equal(found, expected[name])
    if name in MAKE or name == "apply":
        assert_placed(found, explicit())


@pytest.mark.parametrize("where", PLACES, ids=lambda where: where.__name__)
@pytest.mark.parametrize(
    "name",
    ["ones_like", "unpack", "global", "overlap"],
)
def test_where_weights_lie_changes_no_result(where, name, expected):
    found = (MAKE | MEASURE)[name](*inputs(where()))
    assert_equal(found, expected[name])
    if name in MAKE:
        assert_placed(found, where())


@pytest.mark.parametrize("where", [explicit, automatic])
def test_where_weights_lie_changes_no_compiled_result(where, expected):
    found = jax.jit(everything)(*inputs(where()))
    assert_equal(found, expected)
    if where is explicit:
        for name in [*MAKE, "apply"]:
            assert_placed(found[name], where())


def test_a_program_that_only_reads_shapes_places_its_mask_too():
    """JAX knows the devices of a program by the arguments that it uses."""
    weights = inputs(explicit())[0]
    for make in (masks.ones_like, lambda w: masks.random(key(), w, 0.3)):
        assert_placed(jax.jit(make)(weights), explicit())


def test_a_mesh_may_be_set(expected):
    with jax.set_mesh(explicit()["dense"]["kernel"].mesh):
        given = inputs(explicit())
        for name in ("global", "random scores"):
            found = MAKE[name](*given)
            assert_equal(found, expected[name])
            assert_placed(found, explicit())


def test_a_mask_that_was_put_nowhere_goes_where_the_weights_are(expected):
    weights, mask, _ = inputs(explicit())
    mask = jax.tree.map(np.asarray, mask)  # as a ticket holds it
    found = MAKE["global"](weights, mask, None)
    assert_equal(found, expected["global"])
    assert_placed(found, explicit())
    assert_placed(masks.apply(mask, weights), explicit())


def test_leaves_of_two_meshes_are_refused_in_a_program():
    with pytest.raises(
        ValueError, match=r"axes \[\('x',\), \('y',\)\]; inside jit it must"
    ):
        jax.jit(MAKE["global"])(*inputs(two_meshes()))
    with pytest.raises(ValueError, match="inside jit it must be one mesh"):
        jax.jit(masks.count)(inputs(two_meshes())[1])
