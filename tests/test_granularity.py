"""`granularity`: blocks, channels and n of m of every layout, against NumPy."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lottery_jax import granularity, masks, prune
from lottery_jax.granularity import Block, Channel, NofM

pytestmark = pytest.mark.usefixtures("compiled_quickly")


class Case(NamedTuple):
    """A leaf and what lies beside it; its axes, written down by hand.

    Attributes:
      name: of the leaf, in a tree of the shapes by name.
      shapes: of all leaves.
      stack, window, inputs, outputs: its axes; several are read as one.
    """

    name: str
    shapes: dict
    stack: tuple = ()
    window: tuple = ()
    inputs: tuple = (0,)
    outputs: tuple = (1,)

    @property
    def shape(self):
        return self.shapes[self.name]


ATTENTION = {
    "query/kernel": (8, 2, 4),
    "query/bias": (2, 4),
    "out/kernel": (2, 4, 6),
    "out/bias": (6,),
}

CASES = {
    "linen dense": Case("kernel", {"kernel": (8, 6), "bias": (6,)}),
    "linen conv": Case(
        "Conv_0/kernel",
        {"Conv_0/kernel": (3, 2, 4, 6), "Conv_0/bias": (6,)},
        *((), (0, 1), (2,), (3,)),
    ),
    "haiku": Case("linear/w", {"linear/w": (4, 2), "linear/b": (2,)}),
    "equinox linear": Case(
        "weight", {"weight": (6, 8), "bias": (6,)}, inputs=(1,), outputs=(0,)
    ),
    "equinox conv": Case(
        "weight",
        {"weight": (6, 4, 3, 2), "bias": (6, 1, 1)},
        *((), (2, 3), (1,), (0,)),
    ),
    "pytorch conv": Case(
        "0/weight",
        {"0/weight": (6, 4, 3, 2), "0/bias": (6,)},
        *((), (2, 3), (1,), (0,)),
    ),
    "linen query": Case("query/kernel", ATTENTION, (), (), (0,), (1, 2)),
    "linen out": Case("out/kernel", ATTENTION, (), (), (0, 1), (2,)),
    "scanned dense": Case(
        "kernel", {"kernel": (3, 8, 6), "bias": (3, 6)}, (0,), (), (1,), (2,)
    ),
    "scanned conv": Case(
        "kernel",
        {"kernel": (2, 3, 3, 4, 6), "bias": (2, 6)},
        *((0,), (1, 2), (3,), (4,)),
    ),
    "equinox stacked": Case(
        "weight", {"weight": (3, 6, 8), "bias": (3, 6)}, (0,), (), (2,), (1,)
    ),
}


def tree_of(case, leaf, dtype=np.float32):
    """The tree of a case with one leaf given; the others are zeros."""
    tree = {}
    for name, shape in case.shapes.items():
        *way, last = name.split("/")
        at = tree
        for part in way:
            at = at.setdefault(part, {})
        at[last] = jnp.asarray(leaf if name == case.name else np.zeros(shape, dtype))
    return tree


def leaf_of(case, tree):
    for part in case.name.split("/"):
        tree = tree[part]
    return np.asarray(tree)


def flags_of(case):
    tree = tree_of(case, np.zeros(case.shape))
    names = list(sorted_names(tree))
    return [name == case.name for name in names]


def sorted_names(tree, above=""):
    for key, value in sorted(tree.items()):
        if isinstance(value, dict):
            yield from sorted_names(value, f"{above}{key}/")
        else:
            yield f"{above}{key}"


def along(case, axes):
    """The place of each weight along axes that are read as one."""
    at = np.zeros(case.shape, int)
    places = np.indices(case.shape)
    for axis in axes:
        at = at * case.shape[axis] + places[axis]
    return at


def ids_of(case, groups):
    """To which group each weight belongs: whole numbers, as many as there are groups."""
    i, o = along(case, case.inputs), along(case, case.outputs)
    if isinstance(groups, Channel):
        own = [along(case, case.stack), o]
    else:
        a, b = groups.shape
        own = [along(case, case.stack), along(case, case.window), i // a, o // b]
    found = np.zeros(case.shape, int)
    for x in own:
        found = found * (x.max() + 1) + x
    return found


GROUPS = [
    Block((2, 2)),
    Block((4, 1), pool="max"),
    Block((1, 2)),
    Channel(),
    Channel(pool="max"),
]


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_groups_are_those_of_numpy(name, groups):
    case, rng = CASES[name], np.random.default_rng(0)
    ids = ids_of(case, groups)
    number, size = ids.max() + 1, np.bincount(ids.reshape(-1))
    assert (size == size[0]).all()
    flags = flags_of(case)
    values = rng.normal(size=case.shape).astype(np.float32)

    found = granularity.reduced(groups, tree_of(case, values), flags)
    found = leaf_of(case, found)
    members = [values[ids == g] for g in range(number)]
    pool = np.max if groups.pool == "max" else np.mean
    expected = np.array([pool(np.float64(x)) for x in members])
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-4, atol=1e-6)
    (shape,) = granularity.numbers(groups, tree_of(case, values), flags).values()
    assert shape == found.shape and math.prod(shape) == number

    # Dead is a group of which no weight lives.
    alive = rng.random(case.shape) < 0.7 / size[0]
    mask = tree_of(case, alive, bool)
    living = leaf_of(case, granularity.alive(groups, mask, flags))
    expected = [alive[ids == g].any() for g in range(number)]
    np.testing.assert_array_equal(living.reshape(-1), expected)

    # Groups that live again as weights, and these as groups.
    chosen = rng.random(found.shape) < 0.5
    ones = tree_of(case, np.ones(case.shape, bool), bool)
    of_groups = tree_of(case, chosen, bool)
    whole = granularity.expanded(groups, of_groups, ones, flags)
    np.testing.assert_array_equal(leaf_of(case, whole), chosen.reshape(-1)[ids])
    again = granularity.alive(groups, whole, flags)
    np.testing.assert_array_equal(leaf_of(case, again), chosen)
    # It is a subset of what was given.
    part = leaf_of(case, granularity.expanded(groups, of_groups, mask, flags))
    np.testing.assert_array_equal(part, alive & chosen.reshape(-1)[ids])


@pytest.mark.parametrize("groups", GROUPS[:1] + GROUPS[3:], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_density_keeps_the_best_groups_whole(name, groups):
    case = CASES[name]
    ids, rng = ids_of(case, groups), np.random.default_rng(1)
    number = ids.max() + 1
    scores = rng.integers(0, 9, case.shape).astype(np.float32)  # with ties
    pool = np.max if groups.pool == "max" else np.mean
    worth = np.array([pool(scores[ids == g]) for g in range(number)])
    flags = jax.tree.unflatten(
        jax.tree.structure(tree_of(case, scores)), flags_of(case)
    )
    mask = prune.to_density(
        *(tree_of(case, scores), tree_of(case, np.ones(case.shape, bool), bool), 0.5),
        granularity=groups,
        prunable=flags,
    )
    keep = round(number / 2)  # half to even
    # Of equal groups the first go; groups lie in the order of their shape.
    (shape,) = granularity.numbers(
        groups, tree_of(case, scores), flags_of(case)
    ).values()
    assert math.prod(shape) == number
    best = np.argsort(worth, kind="stable")[number - keep :]
    np.testing.assert_array_equal(leaf_of(case, mask), np.isin(ids, best))


@pytest.mark.parametrize("name", CASES)
def test_n_of_m_lie_along_the_inputs(name):
    case, rng = CASES[name], np.random.default_rng(2)
    scores = rng.permutation(math.prod(case.shape)).reshape(case.shape)
    scores = scores.astype(np.float32)
    flags = jax.tree.unflatten(
        jax.tree.structure(tree_of(case, scores)), flags_of(case)
    )
    ones = tree_of(case, np.ones(case.shape, bool), bool)
    mask = prune.to_density(
        *(tree_of(case, scores), ones, 0.25),
        granularity=NofM(1, 4),
        prunable=flags,
    )
    found = leaf_of(case, mask)
    inputs = along(case, case.inputs)
    rest = [along(case, axes) for axes in (case.stack, case.window, case.outputs)]
    group = inputs // 4
    for x in rest:
        group = group * (x.max() + 1) + x
    for g in range(group.max() + 1):
        mine = group == g
        assert mine.sum() == 4
        assert found[mine].tolist() == (scores[mine] == scores[mine].max()).tolist()
    same = prune.n_of_m(tree_of(case, scores), ones, 1, 4, prunable=flags)
    jax.tree.map(np.testing.assert_array_equal, mask, same)


def test_axes_may_be_named_where_names_do_not_say():
    scores = {"mix": {"kernel": jnp.arange(48.0).reshape(4, 3, 4)}}
    ones = masks.ones_like(scores)

    def cut(groups):
        mask = prune.to_density(scores, ones, 0.5, granularity=groups)
        return np.asarray(mask["mix"]["kernel"])

    for groups, say in (
        (Channel(), r"granularity=Channel\(axis=...\)"),
        (Block((2, 2)), r"granularity=Block\(\(2, 2\), axes=...\)"),
    ):
        with pytest.raises(ValueError, match=f"the name 'mix/kernel'.*; pass {say}"):
            cut(groups)
    assert cut(Channel(axis=0)).all((1, 2)).tolist() == [False, False, True, True]
    assert cut(Channel(axis=-1)).all((0, 1)).tolist() == [False, False, True, True]
    blocks = cut(Block((2, 2), axes=(0, -1)))
    assert (blocks.reshape(2, 2, 3, 2, 2).sum((1, 4)) % 4 == 0).all()
    assert blocks.sum() == 24 and not blocks[:2].all() and blocks[2:].all()
    for groups, message in (
        (
            Channel(axis=3),
            r"granularity.axis=3; it must be different axes of 'mix/kern",
        ),
        (Block((2, 2), axes=(0, -3)), r"granularity.axes=\(0, -3\); it must be diff"),
        (Block((2, 2), axes=(0, 7)), r"granularity.axes=\(0, 7\); it must be diff"),
        (NofM(1, 2, axis=5), r"'mix/kernel', shape \(4, 3, 4\), has no axis 5"),
        (NofM(1, 2, axis=1), r"'mix/kernel', .*axis 1 that is divisible by m=2"),
    ):
        with pytest.raises(ValueError, match=message):
            cut(groups)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            Block((3, 2)),
            r"Block\(\(3, 2\)\): 'b/kernel', .* has 8 inputs, which 3 does",
        ),
        (Block((2, 8)), r"Block\(\(2, 8\)\): 'b/kernel', .* has 4 outputs, which 8"),
        (NofM(1, 3), r"'b/kernel', shape \(8, 4\), has no axis -2 that is div.* m=3"),
        (NofM(1, 3, axis=0), r"'b/kernel', shape \(8, 4\), has no axis 0 that is div"),
    ],
    ids=str,
)
def test_what_does_not_divide_a_leaf_is_refused_by_its_name(groups, message):
    scores = {"a": {"kernel": jnp.ones((6, 8))}, "b": {"kernel": jnp.ones((8, 4))}}
    density = 1 / 3 if isinstance(groups, NofM) else 0.5
    cut = {"granularity": groups}
    with pytest.raises(ValueError, match=f"{message}.*; name the leaf in exclude="):
        prune.to_density(scores, masks.ones_like(scores), density, **cut)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda s: prune.to_density(s, masks.ones_like(s), density, **cut), scores
        )
    spared = {"a": "a/", "b": "b/"}[message.split("'")[1][0]]
    fine = prune.to_density(
        scores, masks.ones_like(scores), density, **cut, exclude=spared
    )
    assert masks.is_subset(fine, masks.ones_like(scores))


NO_GRANULARITY = [
    (lambda: Block((2,)), r"shape=\(2,\); it must be two numbers"),
    (lambda: Block((2, 0)), "shape=0; it must be 1 or more"),
    (lambda: Block((2, 2.0)), "shape=2.0; it must be a whole number, 1 or more"),
    (lambda: Block((True, 2)), "shape=True; it must be a whole number"),
    (lambda: Block(4), "shape=4; it must be a tuple"),
    (lambda: Block("44"), "shape='44'; it must be a tuple"),
    (lambda: Block((2, 2), axes=(0,)), r"axes=\(0,\); it must be two numbers"),
    (lambda: Block((2, 2), axes=(0, 1.0)), "axes=1.0; it must be a whole number"),
    (lambda: Block((2, 2), pool="sum"), "pool='sum'; it must be one of mean, max"),
    (lambda: Channel("out"), "axis='out'; it must be a whole number"),
    (lambda: Channel(True), "axis=True; it must be a whole number"),
    (lambda: Channel(pool=None), "pool=None; it must be one of mean, max"),
    (lambda: NofM(2, 2), "n=2, m=2; 0 < n < m must hold"),
    (lambda: NofM(0, 4), "n=0; it must be 1 or more"),
    (lambda: NofM(2, 4.0), "m=4.0; it must be a whole number, 2 or more"),
    (lambda: NofM("2", 4), "n='2'; it must be a whole number"),
    (lambda: NofM(2, 4, axis=0.5), "axis=0.5; it must be a whole number"),
]


@pytest.mark.parametrize(("make", "message"), NO_GRANULARITY)
def test_what_is_no_granularity_is_refused_by_its_field(make, message):
    with pytest.raises(ValueError, match=message):
        make()


TREE = {
    "a": {"kernel": np.ones((8, 6), np.float32), "bias": np.ones(6, np.float32)},
    "b": {"kernel": np.ones((6, 4), np.float32), "bias": np.ones(4, np.float32)},
}


@pytest.mark.parametrize(
    ("density", "options", "message"),
    [
        # 12 + 6 blocks, of which 0.36 are none.
        (0.02, {"granularity": Block((2, 2))}, "density=0.02; .* 18 groups of Block"),
        (0.04, {"granularity": Channel()}, "density=0.04; .* 10 groups of Channel"),
        # Of layers that count by themselves each must keep one.
        (
            0.06,
            {"granularity": Block((2, 2)), "scope": "uniform"},
            "density=0.06; .*'b/kernel', which has 6 groups",
        ),
        (0.006, {}, "density=0.006; .* that of 'the network', which has 72 weights"),
        (
            0.006,
            {"scope": "uniform"},
            "density=0.006; .* that of 'the network', which has 72",
        ),
        (
            0.006,
            {"scope": "erk"},
            "density=0.006; .* that of 'the network', which has 72",
        ),
        (0.4, {"granularity": NofM(1, 2)}, "density=0.4; it must be 0.5, that of NofM"),
        (
            0.5,
            {"granularity": NofM(1, 2), "scope": "erk"},
            "scope='erk'; it must be 'global' or 'uniform': n of m is the same",
        ),
        (0.5, {"granularity": "channel"}, "granularity='channel'; it must be None, or"),
        (0.5, {"granularity": 4}, "granularity=4; it must be None, or a granularity"),
        (0.5, {"granularity": Block}, "granularity=.*Block; it must be None, or"),
        (0.5, {"scope": "layerwise"}, "scope='layerwise'; it must be 'global', 'unif"),
        ("half", {}, r"density=half|density='half'; it must be a number in \(0, 1\)"),
        (True, {}, "density=True; it must be a number"),
        (math.nan, {}, "density=nan; it must be in"),
        (-0.5, {}, "density=-0.5; it must be in"),
    ],
    ids=str,
)
def test_a_density_that_cannot_be_reached_is_refused(density, options, message):
    with pytest.raises(ValueError, match=message):
        prune.to_density(TREE, masks.ones_like(TREE), density, **options)


def test_the_whole_of_it_is_allowed_where_counts_are_asked_for():
    for granularity_, total in ((None, 72), (Block((2, 2)), 18), (Channel(), 10)):
        for scope in ("global", "uniform", "erk"):
            cut = {"granularity": granularity_, "scope": scope}
            assert sum(prune.keep_counts(TREE, 1.0, **cut)) == total
    assert prune.keep_counts(TREE, 1.0, granularity=NofM(1, 2)) == (2,)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_what_is_dead_has_no_part_in_the_score_of_its_group(pool):
    scores = {"kernel": jnp.array([[9.0, 1, 2, 3], [0.5, 1, 2, 3]])}
    mask = {"kernel": jnp.ones((2, 4), bool).at[0, 0].set(False)}
    for dead in (9.0, jnp.nan):
        own = jax.tree.map(lambda s, d=dead: s.at[0, 0].set(d), scores)
        new = prune.to_density(own, mask, 0.25, granularity=Channel(pool=pool))
        expected = np.zeros((2, 4), bool)
        expected[:, 3] = True
        np.testing.assert_array_equal(new["kernel"], expected)


@pytest.mark.parametrize("how", [{"scope": "global"}, {"granularity": NofM(1, 2)}])
def test_counts_of_another_scope_are_refused(how):
    ones = {
        "a": {"kernel": jnp.ones((4, 4), bool)},
        "b": {"kernel": jnp.ones((4, 2), bool)},
    }
    scores = jax.tree.map(lambda m: m.astype(jnp.float32), ones)
    with pytest.raises(ValueError, match=r"len\(counts\)=2; it must be 1"):
        prune.to_counts(scores, ones, [3, 2], **how)


def test_a_layer_without_weights_keeps_none():
    assert masks.layer_counts([(4, 4), (0, 4)], 0.5, "erk") == [8, 0]
