"""Every container that JAX knows: names, masks, tickets; and how two that differ are told."""

import collections
import dataclasses
from typing import NamedTuple

import equinox as eqx
import flax.core
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lottery_jax import (
    compact,
    dynamic,
    masks,
    prune,
    scores,
    tickets,
    transforms,
    trees,
    units,
)
from lottery_jax.granularity import Block, Channel

pytestmark = pytest.mark.usefixtures("compiled_quickly")


class Pair(NamedTuple):
    w: jax.Array
    b: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array


@flax.struct.dataclass
class Struct:
    kernel: jax.Array
    bias: jax.Array
    name: str = flax.struct.field(pytree_node=False, default="a")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    """One of its matrices is called like what holds the arrays of NNX."""

    query: jax.Array
    value: jax.Array


@jax.tree_util.register_pytree_node_class
class Nameless:
    """A node that gives its children no names."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@jax.tree_util.register_pytree_with_keys_class
class Keyed:
    """A node with keys of its own kind."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten_with_keys(self):
        keys = (jax.tree_util.GetAttrKey(name) for name in ("w", "b"))
        return tuple(zip(keys, self.children)), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


class Module(eqx.Module):
    weight: jax.Array
    bias: jax.Array
    size: int = eqx.field(static=True, default=3)


class Net(nnx.Module):
    def __init__(self):
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))


def w(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(4, 3)), jnp.float32)


def b():
    return jnp.ones(3)


# The tree, its names, and which of them are the matrices.
TREES = {
    "dict": (lambda: {"a": {"kernel": w(), "bias": b()}}, "a/bias a/kernel"),
    "frozen dict": (
        lambda: flax.core.freeze({"a": {"kernel": w(), "bias": b()}}),
        "a/bias a/kernel",
    ),
    "ordered dict": (
        lambda: collections.OrderedDict(kernel=w(), bias=b()),
        "kernel bias",
    ),
    "default dict": (lambda: collections.defaultdict(list, w=w(), b=b()), "b w"),
    "whole numbers as keys": (lambda: {1: {"w": w()}, 10: {"w": w(1)}}, "1/w 10/w"),
    "list": (lambda: [{"w": w()}, {"w": w(1), "b": b()}], "0/w 1/b 1/w"),
    "list of pairs": (lambda: [(w(), b()), (w(1), b())], "0/0 0/1 1/0 1/1"),
    "tuple": (lambda: (w(), {"kernel": w(1)}), "0 1/kernel"),
    "named tuple": (lambda: [Pair(w(), b())], "0/w 0/b"),
    "dataclass": (lambda: {"a": Layer(w(), b())}, "a/kernel a/bias"),
    "struct": (lambda: Struct(w(), b()), "kernel bias"),
    "node without names": (lambda: {"a": Nameless(w(), [b()])}, "a/0 a/1/0"),
    "node with names": (lambda: Keyed(w(), b()), "w b"),
    "nnx state": (lambda: nnx.state(Net()), "head/bias head/kernel"),
    "nnx module": (lambda: Net(), "head/bias head/kernel"),
    "nnx pure dict": (
        lambda: nnx.to_pure_dict(nnx.state(Net())),
        "head/bias head/kernel",
    ),
    "equinox": (lambda: Module(w(), b()), "weight bias"),
    "one array": (lambda: w(), ""),
    "nones and empties": (
        lambda: {"a": None, "e": {}, "f": [(), {}], "w": w(), "z": [None, b()]},
        "w z/1",
    ),
    "leaves called value": (
        lambda: {"a": {"value": w()}, "b": {"value": w(1), "x": b()}},
        "a/value b/value b/x",
    ),
    "an attribute called value": (
        lambda: {"a": Attention(w(), w(1))},
        "a/query a/value",
    ),
    "slashes and dots": (
        lambda: {"a/b": {".w": w()}, "./c": w(1), "a": {"c": b()}},
        "./c a/c a/b/.w",
    ),
}


def matrices(tree):
    """The leaves of two dimensions and more, whatever they are called."""
    return jax.tree.map(lambda x: x.ndim > 1, tree)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", TREES)
def test_every_function_takes_every_container(name, tmp_path):
    make, names = TREES[name]
    params = make()
    assert trees.paths(params) == names.split() or [""] == trees.paths(params) == [
        names
    ]
    assert list(trees.by_path(params)) == trees.paths(params)
    mapped = trees.map_by_path(lambda path, x: x, params)
    assert_same(mapped, params)

    flags, ones = matrices(params), masks.ones_like(params)
    masks.check(ones, params)
    sizes = [x.size for x in jax.tree.leaves(params) if x.ndim > 1]
    assert masks.total(params, flags) == sum(sizes)
    keep = sum(sizes) // 2
    mask = prune.global_topk(scores.magnitude(params), ones, keep=keep, prunable=flags)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert int(masks.count(mask, flags)) == keep
    assert len(masks.layer_densities(mask, flags)) == len(sizes)
    by_layer = prune.layerwise_topk(
        scores.magnitude(params), ones, fraction=0.5, prunable=flags
    )
    draws = (
        masks.shuffle(jax.random.key(0), mask, "global", prunable=flags),
        masks.random(jax.random.key(0), params, 0.5, prunable=flags),
        by_layer,
        prune.n_of_m(scores.magnitude(params), ones, 1, 3, axis=-1, prunable=flags),
        *(
            prune.to_density(
                *(scores.magnitude(params), ones, 0.5),
                granularity=groups,
                prunable=flags,
            )
            for groups in (Channel(axis=-1), Block((2, 3), axes=(0, 1)))
        ),
    )
    for other in draws:
        masks.check(other, params)
        assert 0 < masks.overlap(other, ones, flags).iou < 1
        assert masks.is_subset(other, ones)
    assert_same(masks.unpack(masks.pack(mask)), mask)
    masked = masks.apply(mask, params)
    for x, m, y in zip(*map(jax.tree.leaves, (params, mask, masked))):
        np.testing.assert_array_equal(y, np.where(m, x, 0))

    tx = transforms.masked(optax.sgd(0.1))
    updates, _ = tx.update(params, tx.init(params), masked, mask=mask)
    for m, x in zip(
        *map(jax.tree.leaves, (mask, optax.apply_updates(masked, updates)))
    ):
        assert (np.asarray(x)[~np.asarray(m)] == 0).all()

    rule = dynamic.rigl(0.5, 2, 2, begin=0, scope="uniform", prunable=flags)
    key = jax.random.key(0)
    start = rule.start(key, params, ones)
    new = rule.update(key, jnp.int32(0), params, params, start)
    masks.check(new, params)
    assert masks.count(new, flags) == masks.count(start, flags) == sum(sizes) // 2
    adam = optax.adam(0.1)
    changed = transforms.change_mask(adam, adam.init(params), params, start, new)
    for tree in (changed[0], changed[1][0].mu):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
    for m, x in zip(*map(jax.tree.leaves, (new, changed[0]))):
        assert (np.asarray(x)[~np.asarray(m)] == 0).all()

    # By patterns that find one leaf and no other.
    for path, flag in zip(trees.paths(params), jax.tree.leaves(flags)):
        if flag:
            own = trees.pattern(path, trees.paths(params))
            assert sum(jax.tree.leaves(masks.prunable(params, include=own))) == 1

    file = tmp_path / "ticket.safetensors"
    tickets.save(file, tickets.Ticket(mask, params, {}, {}))
    found = tickets.load(file, like=(params, {}))
    assert_same((found.mask, found.params), (mask, masked))
    plain = tickets.load(file)
    assert_same(trees.fitted(plain.params, params, ("the ticket", "params")), masked)
    # A name in a plain dict is the name it had.
    assert sorted(trees.paths(plain.mask)) == sorted(trees.paths(params))


# --- names ----------------------------------------------------------------------------

TWICE = {
    "slashes": (
        {"a/b": w(), "a": {"b": w()}},
        r"'a/b' is the name .*\['a'\]\['b'\] and",
    ),
    "a number and its text": (
        collections.OrderedDict([(1, w()), ("1", w())]),
        r"'1' is the name of the leaves \[1\] and \['1'\]; it must be that of one",
    ),
}


@pytest.mark.parametrize("name", TWICE)
def test_two_leaves_of_one_name_are_refused(name):
    tree, message = TWICE[name]
    mask = jax.tree.map(lambda x: x > 0, tree)
    axes = {"a/b": (units.Axis(None),) * 2, "1": (units.Axis(None),) * 2}
    for call in (
        lambda: trees.paths(tree),
        lambda: trees.by_path(tree),
        lambda: masks.prunable(tree),
        lambda: masks.layer_densities(mask, lambda t: jax.tree.map(lambda _: True, t)),
        lambda: masks.density(mask),
        lambda: trees.matching(tree, "a"),
        lambda: trees.fitted(tree, tree, ("a", "b")),
        lambda: trees.same(tree, tree),
        lambda: units.sizes(axes, tree),
        lambda: compact.removable(axes, mask),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    # What needs no names does not mind.
    assert_same(masks.apply(masks.ones_like(tree), tree), tree)
    assert masks.total(tree, jax.tree.map(lambda _: True, tree)) == 24


def test_of_an_nnx_variable_the_array_is_no_part_of_the_name(tmp_path):
    params = nnx.state(Net())
    file = tmp_path / "ticket.safetensors"
    ticket = tickets.Ticket(masks.ones_like(params), params, {}, {})
    tickets.save(file, ticket)
    plain = tickets.load(file)
    assert (
        trees.paths(params) == trees.paths(plain.params) == ["head/bias", "head/kernel"]
    )
    assert masks.density(plain.mask) == 1
    assert plain.params["head"]["kernel"].shape == (4, 3)


# --- two that differ ------------------------------------------------------------------

DIFFERENT = {
    "frozen dict and dict": (
        flax.core.freeze({"a": w()}),
        {"a": w()},
        "at the top, mask: dict, params: FrozenDict",
    ),
    "frozen dict within": (
        {"x": [flax.core.freeze({"a": w()})]},
        {"x": [{"a": w()}]},
        r"at \['x'\]\[0\], mask: dict, params: FrozenDict",
    ),
    "tuple and list": (
        {"x": (w(), w())},
        {"x": [w(), w()]},
        r"at \['x'\], mask: list, params: tuple",
    ),
    "named tuple and tuple": (
        {"x": Pair(w(), b())},
        {"x": (w(), b())},
        r"\['x/0', 'x/1'\] .* at \['x'\], mask: tuple, params: Pair",
    ),
    "ordered dict and dict": (
        collections.OrderedDict(a=w(), b=w()),
        {"a": w(), "b": w()},
        "at the top, mask: dict, params: OrderedDict",
    ),
    "whole numbers and text": (
        {1: w(), 2: w()},
        {"1": w(), "2": w()},
        r"at the top, \['1'\], \['2'\] only in mask and \[1\], \[2\] only in params",
    ),
    "none and nothing": (
        {"a": w(), "n": None},
        {"a": w()},
        r"at the top, \['n'\] only in params",
    ),
    "none and a leaf": (
        {"a": w(), "n": None},
        {"a": w(), "n": w()},
        r"\['a', 'n'\] .* at \['n'\], mask: a leaf, params: None",
    ),
    "empties": (
        {"a": w(), "n": ()},
        {"a": w(), "n": {}},
        r"at \['n'\], mask: dict, params: tuple",
    ),
    "static fields": (
        {"m": Module(w(), b(), 3)},
        {"m": Module(w(), b(), 4)},
        r"at \['m'\], static fields of Module are not the same in both",
    ),
    "a leaf less": (
        {"a": {"w": w(), "b": b()}},
        {"a": {"w": w()}},
        r"\['a/w'\] are not those of params, \['a/b', 'a/w'\]; at \['a'\], "
        r"\['b'\] only in params",
    ),
    "shorter lists": (
        [w(), w()],
        [w()],
        r"at the top, \[1\] only in params",
    ),
    "an nnx state and its dict": (
        nnx.state(Net()),
        nnx.to_pure_dict(nnx.state(Net())),
        "at the top, mask: dict, params: State",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_containers_that_differ_are_named(name):
    params, other, message = DIFFERENT[name]
    mask = masks.ones_like(other)
    tx = transforms.masked(optax.sgd(0.1))
    for call in (
        lambda: masks.check(mask, params),
        lambda: masks.apply(mask, params),
        lambda: jax.jit(masks.apply)(mask, params),
        lambda: tx.update(params, (), params, mask=mask),
    ):
        with pytest.raises(ValueError, match=f"mask: it.*{message}"):
            call()
    flags = jax.tree.map(lambda _: True, other)
    message = message.replace("params", "the tree").replace("mask", "prunable")
    with pytest.raises(ValueError, match=f"prunable: it.*{message}"):
        masks.total(params, flags)
    with pytest.raises(ValueError, match="mask: it.*scores"):
        prune.global_topk(scores.magnitude(params), mask, fraction=0.5)
    with pytest.raises(ValueError):
        trees.same(params, other)
    assert trees.fit(params, params, ("a", "b")) is None


# --- leaves that are no arrays --------------------------------------------------------


class Tagged(eqx.Module):
    weight: jax.Array
    depth: int
    name: str


NO_ARRAYS = {
    "equinox": (
        lambda: eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)),
        "'activation' is the function relu",
    ),
    "a whole number": (lambda: Tagged(w(), 3, "x"), "'depth' is 3"),
    "text": (lambda: {"kernel": w(), "name": "x"}, "'name' is 'x'"),
    "keys": (
        lambda: {"kernel": w(), "key": jax.random.key(0)},
        "'key' is an array of PRNG keys",
    ),
}


@pytest.mark.parametrize("name", NO_ARRAYS)
def test_a_leaf_that_is_no_array_is_named_with_the_way_out(name):
    make, message = NO_ARRAYS[name]
    model = make()
    ones = masks.ones_like(eqx.filter(model, eqx.is_inexact_array))
    for call in (
        lambda: masks.ones_like(model),
        lambda: masks.apply(ones, model),
        lambda: masks.check(ones, model),
        lambda: masks.prunable(model),
        lambda: masks.prunable(model, include="."),
        lambda: masks.density(model),
        lambda: masks.total(model),
        lambda: masks.random(jax.random.key(0), model, 0.5),
        lambda: prune.global_topk(model, ones, fraction=0.5),
        lambda: prune.layerwise_topk(model, ones, fraction=0.5),
        lambda: prune.to_density(model, ones, 0.5),
        lambda: prune.n_of_m(model, ones, 1, 2),
        lambda: transforms.masked(optax.sgd(0.1)).update(model, (), model, mask=ones),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "eqx.filter(model, eqx.is_inexact_array)" in str(caught.value)


def test_numbers_of_python_are_weights_without_dimensions():
    params = {"w": w(), "gain": 2.0}
    mask = masks.ones_like(params)
    assert masks.apply(mask, params)["gain"] == 2.0
    assert masks.density(mask) == 1 and masks.total(params) == 12
