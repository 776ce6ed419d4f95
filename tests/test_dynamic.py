"""`dynamic`: rules that change a mask during training, one by one and in loops of one's own.

For what the runner makes of them see `test_dynamic_runs`.
"""

import inspect
import math
import re
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import toys
from dynamic_methods import (
    DROPPED,
    END,
    GROUPS,
    LAYERS,
    METHODS,
    N_OF_M,
    NUMBER,
    SCOPES,
    SHAPES,
    grouped,
    through_as,
    wanted,
    weights,
)

from lottery_jax import dynamic, errors, masks, transforms
from lottery_jax.dynamic import MaskUpdate, gradual_magnitude
from lottery_jax.granularity import Block, Channel, NofM

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_gradual_magnitude_reaches_the_exact_density_by_nested_masks(getkey):
    shape = (40, 25)
    params = {
        "dense": {"kernel": jax.random.normal(getkey(), shape), "bias": jnp.zeros(25)}
    }
    rule = gradual_magnitude(0.0333, 100, 600, every=50)
    assert rule.steps() == list(range(100, 601, 50))
    ones = jax.tree.map(jnp.ones_like, params)
    mask, total, kept = masks.ones_like(params), 1000, []
    compiled = quick.jit(rule.update)
    for step in rule.steps():
        key = getkey()
        new = compiled(key, jnp.int32(step), params, ones, mask)
        assert masks.is_subset(new, mask)
        magnitudes = np.abs(np.asarray(params["dense"]["kernel"]))
        alive = np.asarray(new["dense"]["kernel"])
        if not alive.all():
            assert magnitudes[alive].min() > magnitudes[~alive].max()
        kept.append(int(masks.count(new)))
        assert np.asarray(new["dense"]["bias"]).all()
        mask = new
    t = (np.array(rule.steps()) - 100) / 500
    expected = total * (0.0333 + (1 - 0.0333) * (1 - t) ** 3)
    np.testing.assert_allclose(kept, expected, atol=0.51)
    assert kept[0] == total and kept[-1] == round(Fraction("0.0333") * total)
    # Early steps remove more; a mask that is sparser already is left alone.
    assert (np.diff(kept, 2) >= -1).all()
    sparser = masks.random(getkey(), params, 0.01)
    same = compiled(key, jnp.int32(600), params, ones, sparser)
    toys.assert_equal(same, sparser)


def test_gradual_magnitude_counts_what_it_spares(getkey):
    params = {
        name: {"kernel": jax.random.normal(getkey(), (10, 10))}
        for name in ("a", "head")
    }
    rule = gradual_magnitude(0.6, 0, 10, every=5, exclude="head")
    full = masks.ones_like(params)
    mask = quick.jit(rule.update)(getkey(), jnp.int32(10), params, params, full)
    assert int(mask["a"]["kernel"].sum()) == 20
    assert mask["head"]["kernel"].all()


def test_the_last_count_is_exact_where_float32_is_not(getkey):
    params = {"kernel": jax.random.normal(getkey(), (10, 19))}
    assert round(Fraction("0.15") * 190) == 28  # 28.5, half to even
    assert np.round(np.float32(0.15) * np.float32(190)) == 29
    rule = gradual_magnitude(0.15, 0, 10, every=5)
    full = masks.ones_like(params)
    step = quick.jit(rule.update)
    mask = step(getkey(), jnp.int32(10), params, params, full)
    assert int(masks.count(mask)) == 28


@pytest.mark.parametrize(
    "every, begin, end, steps",
    [
        (100, 0, 300, [0, 100, 200, 300]),
        (100, 150, 400, [200, 300, 400]),
        (1, 3, 5, [3, 4, 5]),
        (50, 49, 50, [50]),
        (50, 60, 90, []),
    ],
)
def test_the_steps_at_which_a_rule_acts(every, begin, end, steps):
    rule = MaskUpdate(lambda *args: None, every, begin, end)
    assert rule.steps() == steps


# --- all methods ----------------------------------------------------------------------

LAST = {
    "weights": Fraction(3, 10),
    "blocks": Fraction(3, 10),
    "channels": Fraction(1, 2),
}

CASES = [
    (name, scope, groups)
    for name, method in METHODS.items()
    for scope in method.scopes
    for groups in GROUPS
]


def test_every_method_is_in_the_table():
    def returns(function):
        return inspect.signature(function).return_annotation in (
            MaskUpdate,
            "MaskUpdate",
        )

    public = {
        name
        for name, function in vars(dynamic).items()
        if inspect.isfunction(function) and returns(function)
    }
    assert public == {through_as(name) for name in METHODS}
    # Of those that have a choice of scopes and granularities, all are tried.
    for name in public:
        takes = inspect.signature(getattr(dynamic, name)).parameters
        assert {"scope", "granularity", "prunable", "exclude"} <= set(takes)


def key_of(step):
    return jax.random.fold_in(jax.random.key(11), step)


class Lived(NamedTuple):
    """What a network had before and after each step of a rule; of numpy arrays.

    Attributes:
      steps: at which it acted, first the start.
      masks: after each.
      worth: the weights that it saw.
      slopes: the gradients.
    """

    steps: list
    masks: list
    worth: list
    slopes: list


def lived(method, rule):
    """Weights that move at random, and are masked unless all of them train."""
    full = mask = masks.ones_like(weights(0))
    steps, found, worth, slopes = [], [], [], []
    if rule.start is not None:
        mask = rule.start(key_of(100), weights(0), mask)
        steps, found, worth, slopes = [None], [mask], [weights(0)], [None]
    for step in rule.steps():
        seen, slope = weights(step), weights(50 + step)
        if not method.through:
            seen = masks.apply(mask, seen)
        living = full if method.through else mask
        mask = rule.update(key_of(step), jnp.int32(step), seen, slope, living)
        steps.append(step)
        found.append(mask)
        worth.append(seen)
        slopes.append(slope)
    return Lived(steps, *jax.tree.map(np.asarray, (found, worth, slopes)))


def kernel(tree, layer):
    return tree[layer]["kernel"]


def alive_groups(mask, groups):
    """Which groups of each layer live; each lives as a whole or not at all."""
    found = [grouped(layer, kernel(mask, layer), groups) for layer in LAYERS]
    for one in found:
        assert (one == one[:, :1]).all()
    return [one[:, 0] for one in found]


@pytest.mark.parametrize(("name", "scope", "groups"), CASES)
def test_every_count_is_exact_after_every_step(name, scope, groups):
    method, last = METHODS[name], LAST[groups]
    rule = method.make(float(last), scope=scope, granularity=GROUPS[groups])
    assert rule.steps() == list(method.steps)
    assert (rule.start is not None) == method.starts
    assert rule.grows == method.regrows
    found = lived(method, rule)
    rows = wanted(method, last, scope, groups)
    if method.starts and method.steps:
        rows = [rows[-1], *rows]  # the start has the density of all later steps
    assert len(rows) == len(found.masks)
    for row, mask in zip(rows, found.masks):
        alive = [int(one.sum()) for one in alive_groups(mask, groups)]
        assert ([sum(alive)] if scope == "global" else alive) == row
        for layer, leaves in SHAPES.items():
            rest = [mask[layer][n] for n in leaves if n != "kernel"]
            assert all(one.all() for one in rest)
    size = sum(NUMBER[groups].values())
    assert sum(rows[-1]) == round(last * size)
    if not method.through and not method.regrows:
        for before, after in zip(found.masks, found.masks[1:]):
            assert masks.is_subset(after, before)
    if method.through and groups == "weights":
        # All weights compete anew each time, so some come back.
        pairs = zip(found.masks, found.masks[1:])
        assert not all(masks.is_subset(after, before) for before, after in pairs)


@pytest.mark.parametrize("name", METHODS)
def test_of_every_two_inputs_one_lives_at_the_end(name):
    method = METHODS[name]
    rule = method.make(0.5, scope="uniform", granularity=N_OF_M)
    found = lived(method, rule)
    left = [math.ceil(2 * method.left(s, Fraction(1, 2))) for s in method.steps]
    left = [1] * method.starts + left
    assert len(left) == len(found.masks) and left[-1:] in ([1], [])
    for number, mask in zip(left, found.masks):
        for layer in LAYERS:
            one = kernel(mask, layer)
            pairs = np.moveaxis(one, -2, -1).reshape(-1, 2).sum(1)
            assert (pairs == number).all()
    if method.regrows:
        assert any((a != b).any() for a, b in by_layer(found.masks[:2]))


def by_layer(two):
    return [(kernel(two[0], layer), kernel(two[1], layer)) for layer in LAYERS]


def pooled(scores, layer, groups):
    """The mean over each group, in float64."""
    return np.mean(grouped(layer, np.float64(kernel(scores, layer)), groups), axis=1)


def best(scores, alive, number):
    """The highest of the living; of equal ones the last stay."""
    order = [i for i in np.argsort(scores, kind="stable") if alive[i]]
    out = np.zeros(len(scores), bool)
    out[order[len(order) - number :]] = True
    return out


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "name", [n for n in METHODS if "magnitude" in n or "saliency" in n]
)
def test_what_is_kept_is_what_is_largest(name, scope, groups):
    method = METHODS[name]
    rule = method.make(float(LAST[groups]), scope=scope, granularity=GROUPS[groups])
    found = lived(method, rule)
    rows = wanted(method, LAST[groups], scope, groups)
    alive = [np.ones(NUMBER[groups][layer], bool) for layer in LAYERS]
    for row, mask, worth, slope in zip(rows, *found[1:]):
        scored = worth
        if "saliency" in name:
            scored = jax.tree.map(lambda w, g: w * g, worth, slope)
        sizes = [pooled(jax.tree.map(abs, scored), layer, groups) for layer in LAYERS]
        living = [np.ones_like(a) for a in alive] if method.through else alive
        if scope == "global":
            flat = best(np.concatenate(sizes), np.concatenate(living), row[0])
            alive = np.split(flat, np.cumsum([len(a) for a in alive])[:-1])
        else:
            alive = [best(s, a, n) for s, a, n in zip(sizes, living, row)]
        for expected, one in zip(alive, alive_groups(mask, groups)):
            np.testing.assert_array_equal(one, expected)


# --- what drops and what grows --------------------------------------------------------


def reference_drops(name, alive, step):
    """Evci et al., section 3; rounded down."""
    share = DROPPED
    if name == "rigl":
        share = DROPPED / 2 * (1 + np.cos(step * np.pi / END))
    return int(np.floor(share * alive))


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("scope", ["uniform", "erk"])
@pytest.mark.parametrize("name", ["rigl", "sparse_evolutionary"])
def test_the_smallest_drop_and_as_many_grow(name, scope, groups):
    rule = METHODS[name].make(
        float(LAST[groups]), scope=scope, granularity=GROUPS[groups]
    )
    found = lived(METHODS[name], rule)
    moved = 0
    for i in range(1, len(found.masks)):
        step, before, after = found.steps[i], *found.masks[i - 1 : i + 1]
        for layer, old, new in zip(
            LAYERS, alive_groups(before, groups), alive_groups(after, groups)
        ):
            drop = reference_drops(name, old.sum(), step)
            sizes = pooled(jax.tree.map(abs, found.worth[i]), layer, groups)
            stay = best(sizes, old, old.sum() - drop)
            assert new[stay].all() and new.sum() == old.sum()
            if name == "rigl":
                slopes = pooled(jax.tree.map(abs, found.slopes[i]), layer, groups)
                np.testing.assert_array_equal(new, stay | best(slopes, ~stay, drop))
            moved += int((new & ~old).sum())
    assert moved > 0 or groups == "channels"  # of so few what drops may be what grows


def test_of_every_two_inputs_the_smallest_drop_and_as_many_grow_beside_them():
    rule = METHODS["rigl"].make(0.5, scope="uniform", granularity=N_OF_M)
    found = lived(METHODS["rigl"], rule)
    for i in range(1, len(found.masks)):
        for layer in LAYERS:
            old, new, worth, slopes = (
                np.moveaxis(kernel(tree, layer), -2, -1).reshape(-1)
                for tree in (
                    *found.masks[i - 1 : i + 1],
                    found.worth[i],
                    found.slopes[i],
                )
            )
            drop = reference_drops("rigl", old.sum(), found.steps[i])
            stay = best(abs(worth), old, old.sum() - drop)
            gone = (old & ~stay).reshape(-1, 2).sum(1)
            rows = zip(abs(slopes).reshape(-1, 2), ~stay.reshape(-1, 2), gone)
            grown = np.concatenate([best(*row) for row in rows])
            np.testing.assert_array_equal(new, stay | grown)


def test_of_equals_the_last_stay_and_the_last_grow():
    """Ties go by position: of equal weights, and of equal gradients, the first lose."""
    rule = dynamic.rigl(0.5, 2, 2, drop_fraction=0.5, decay="constant", scope="uniform")
    params = {"kernel": jnp.ones((2, 4))}
    mask = {"kernel": jnp.array([[True] * 4, [False] * 4])}
    slopes = {"kernel": jnp.zeros((2, 4))}
    new = rule.update(key_of(0), jnp.int32(2), params, slopes, mask)["kernel"]
    assert new.astype(int).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_drop_counts_are_those_of_the_paper(decay):
    steps = list(range(0, 1001, 100))
    counts = dynamic.drop_counts(12_345, steps, 1000, 0.3, decay)
    share = 0.15 * (1 + np.cos(np.pi * np.array(steps) / 1000))
    share = share if decay == "cosine" else np.full(len(steps), 0.3)
    assert counts == np.floor(share * 12_345).astype(int).tolist()
    if decay == "cosine":
        assert counts[0] == 3703 and counts[5] == 1851 and counts[-1] == 0


@pytest.mark.parametrize("name", METHODS)
def test_what_is_excluded_counts_and_is_never_cut(name):
    method = METHODS[name]
    scope = "uniform" if method.regrows else "global"
    rule = method.make(0.5, scope=scope, exclude="head", prunable=chosen)
    found = lived(method, rule)
    for mask in found.masks:
        assert kernel(mask, "head").all() and kernel(mask, "hidden").all()
    # Half of the 56 that count, of which the head keeps its 24.
    assert kernel(found.masks[-1], "conv").sum() == 28 - 24
    assert rule.on is None  # it has leaves of its own, whatever the task says


def chosen(params):
    return masks.prunable(params, include=("conv/kernel", "head/kernel"))


# --- loops of one's own ---------------------------------------------------------------

ROWS, INPUTS, OUTPUTS, LAST_STEP = 24, 6, 4, 12


def regression():
    """Points of a linear map: weights, inputs, targets."""
    rng = np.random.default_rng(5)
    shapes = (INPUTS, OUTPUTS), (ROWS, INPUTS), (ROWS, OUTPUTS)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def slope_of(weights, x, y):
    return x.T @ (x @ weights - y) / ROWS


def loop(tx, key=None, steps=LAST_STEP):
    """A loop as anybody writes it: weights and masks after each step."""
    first, x, y = map(jnp.asarray, regression())
    params = {"kernel": first}

    @quick.jit
    def step(params, state):
        slopes = {"kernel": slope_of(params["kernel"], x, y)}
        updates, state = tx.update(slopes, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    params = masks.apply(state.mask, params)
    seen, found = [params], [state]
    for _ in range(steps):
        params, state = step(params, state)
        seen.append(params)
        found.append(state)
    return [np.asarray(p["kernel"]) for p in seen], found


def masks_of(states):
    return [np.asarray(state.mask["kernel"]) for state in states]


def test_rigl_in_a_loop_equals_numpy():
    """Algorithm 1 of Evci et al. under momentum: what grows begins at 0 without any."""
    rule = dynamic.rigl(0.5, 8, 2, drop_fraction=0.5, scope="uniform")
    tx = dynamic.masked(
        optax.sgd(0.1, momentum=0.9), rule, key=jax.random.key(2), steps=LAST_STEP
    )
    weights_, states = loop(tx, steps=LAST_STEP)
    first, x, y = (np.float64(a) for a in regression())
    mask = masks_of(states)[0]
    assert mask.sum() == 12
    w, velocity, grown = np.where(mask, first, 0), np.zeros_like(first), 0
    for step in range(LAST_STEP):
        slope = slope_of(w, x, y)
        if step in (2, 4, 6, 8):
            drop = int(np.floor(0.25 * (1 + np.cos(np.pi * step / 8)) * 12))
            old = mask.reshape(-1)
            stay = best(abs(w).reshape(-1), old, 12 - drop)
            grow = best(abs(slope).reshape(-1), ~stay, drop)
            mask = (stay | grow).reshape(mask.shape)
            w = np.where(mask, w, 0)
            velocity = np.where(mask & old.reshape(mask.shape), velocity, 0)
            grown += int((mask.reshape(-1) & ~old).sum())
        velocity = np.where(mask, 0.9 * velocity + slope, 0)
        w = np.where(mask, w - 0.1 * velocity, 0)
        np.testing.assert_array_equal(masks_of(states)[step + 1], mask)
        np.testing.assert_allclose(weights_[step + 1], w, rtol=1e-4, atol=1e-5)
        held = np.asarray(states[step + 1].inner[0].trace["kernel"])
        np.testing.assert_allclose(held, velocity, rtol=1e-4, atol=1e-5)
    assert grown > 3


@pytest.mark.parametrize("kind", ["gradual", "periodic"])
def test_straight_through_equals_numpy(kind):
    """Dense weights move by the gradient at the masked ones; the mask follows them."""
    rule = {
        "gradual": dynamic.gradual_magnitude(0.25, 2, 8, 2),
        "periodic": dynamic.periodic_magnitude(0.25, 0, 11, 1),
    }[kind]
    tx = transforms.straight_through(optax.sgd(0.2, momentum=0.9))
    seen, states = loop(dynamic.masked(tx, rule))
    first, x, y = (np.float64(a) for a in regression())
    dense, velocity, mask = first, np.zeros_like(first), np.ones(first.shape, bool)
    back = 0
    for step in range(LAST_STEP):
        slope = slope_of(np.where(mask, dense, 0), x, y)
        if step in rule.steps():
            left = Fraction(1, 4)
            if kind == "gradual":
                left += Fraction(3, 4) * (1 - Fraction(step - 2, 6)) ** 3
            everything = np.ones(dense.size, bool)
            new = best(abs(dense).reshape(-1), everything, round(left * dense.size))
            new = new.reshape(mask.shape)
            back += int((new & ~mask).sum())
            mask = new
        velocity = 0.9 * velocity + slope
        dense = dense - 0.2 * velocity
        np.testing.assert_array_equal(masks_of(states)[step + 1], mask)
        assert (seen[step + 1][~mask] == 0).all()
        held = np.asarray(states[step + 1].inner.dense["kernel"])
        np.testing.assert_allclose(held, dense, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            seen[step + 1], np.where(mask, dense, 0), rtol=1e-4, atol=1e-5
        )
    assert back > 0 and mask.sum() == 6


OPTIMIZERS = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "adagrad": lambda: optax.adagrad(0.1, initial_accumulator_value=0.3),
    "rmsprop": lambda: optax.rmsprop(0.1, initial_scale=0.2, momentum=0.9),
    "lion": lambda: optax.lion(0.05),
    "MultiSteps": lambda: optax.MultiSteps(
        optax.adam(0.1), 3
    ).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(0.1), optax.add_decayed_weights(0.1), optax.lamb(0.1)
    ),
    "of first weights": lambda: optax.contrib.dog(0.5),
    "straight-through": lambda: transforms.straight_through(optax.adam(0.1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_off_the_mask_is_zero_after_every_step_of_every_optimizer(name):
    rule = dynamic.rigl(0.5, 8, 2, drop_fraction=0.5, scope="uniform")
    if name == "straight-through":
        rule = dynamic.periodic_magnitude(0.5, 0, 8, 2)
    tx = dynamic.masked(OPTIMIZERS[name](), rule, key=jax.random.key(2), steps=9)
    seen, states = loop(tx, steps=9)
    found = masks_of(states)
    for weights_, mask in zip(seen[1:], found[1:]):
        assert (weights_[~mask] == 0).all() and np.isfinite(weights_).all()
        assert mask.sum() == 12
    assert len({mask.tobytes() for mask in found}) > 1
    assert (seen[-1] != seen[1]).any()


def test_a_loop_that_starts_from_dense_weights_is_masked_by_its_first_step():
    rule = dynamic.rigl(0.5, 2, 2, scope="uniform")
    tx = dynamic.masked(optax.adam(0.1), rule, key=jax.random.key(2))
    params = {"kernel": jnp.asarray(regression()[0])}
    state = tx.init(params)
    updates, new = quick.jit(tx.update)(params, state, params)
    mask = np.asarray(new.mask["kernel"])
    after = np.asarray(optax.apply_updates(params, updates)["kernel"])
    assert (after[~mask] == 0).all() and (after[mask] != 0).all() and not mask.all()
    # Until then what grows would begin where the caller's dense weights are.
    at_once = dynamic.rigl(0.5, 2, 2, begin=0, scope="uniform")
    with pytest.raises(
        ValueError, match="rule.begin=0; it must be 1 or more in a loop"
    ):
        dynamic.masked(optax.adam(0.1), at_once, key=jax.random.key(2))


# --- no mask is computed between the steps of a rule ----------------------------------


def watched(seen, every=3, end=6):
    """A rule that says when it is run, and takes a weight each time."""

    def update(key, step, params, gradients, mask):
        jax.debug.callback(lambda s: seen.append(int(s)), step)
        alive = mask["w"]
        return {"w": alive & (jnp.cumsum(alive) > 1)}

    return MaskUpdate(update, every, 0, end)


def stepped(tx):
    def step(carry, _=None):
        params, state = carry
        updates, state = tx.update({"w": params["w"]}, state, params)
        return optax.apply_updates(params, updates), state

    return step


def begun(tx, *axes):
    params = {"w": jnp.ones((*axes, 5))}
    init = tx.init
    for _ in axes:
        init = jax.vmap(init)
    return params, init(params)


def by_jit(step, carry, steps, axes):
    compiled = quick.jit(vmapped(step, axes))
    for _ in range(steps):
        carry = compiled(carry)
    return carry


def by_scan(step, carry, steps, axes):
    def scan(carry):
        return jax.lax.scan(lambda c, _: (step(c), None), carry, length=steps)[0]

    return quick.jit(vmapped(scan, axes))(carry)


def by_scan_of_many(step, carry, steps, axes):
    many = vmapped(step, axes)
    return quick.jit(
        lambda c: jax.lax.scan(lambda c, _: (many(c), None), c, length=steps)[0]
    )(carry)


def by_fori(step, carry, steps, axes):
    def run(carry):
        return jax.lax.fori_loop(0, steps, lambda _, c: step(c), carry)

    return quick.jit(vmapped(run, axes))(carry)


def vmapped(function, axes):
    for _ in axes:
        function = jax.vmap(function)
    return function


@pytest.mark.parametrize("axes", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("how", [by_jit, by_scan, by_scan_of_many, by_fori])
def test_a_rule_is_run_at_its_steps_alone(how, axes):
    seen = []
    tx = dynamic.masked(optax.sgd(0.1), watched(seen))
    params, state = how(stepped(tx), begun(tx, *axes), 10, axes)
    jax.effects_barrier()
    assert sorted(set(seen)) == [0, 3, 6]
    assert len(seen) == 3 * math.prod(axes)
    assert (np.asarray(state.mask["w"]).sum(-1) == 2).all()
    assert (np.asarray(params["w"])[~np.asarray(state.mask["w"])] == 0).all()


def test_replicas_at_steps_of_their_own_act_at_their_own():
    seen = []
    tx = dynamic.masked(optax.sgd(0.1), watched(seen))
    params, state = begun(tx, 3)
    state = state._replace(step=jnp.array([0, 1, 5], jnp.int32))
    step, left = quick.jit(jax.vmap(stepped(tx))), []
    for _ in range(6):
        params, state = step((params, state))
        left.append(np.asarray(state.mask["w"]).sum(-1).tolist())
    # At steps 0, 3 and 6 of each.
    assert left == [[4, 5, 5], [4, 5, 4], [4, 4, 4], [3, 4, 4], [3, 4, 4], [3, 3, 4]]
    jax.effects_barrier()
    assert len(seen) == 3 * 5  # five moments at which one of three was due


def inner_jaxprs(eqn):
    for value in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
        if hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value


def everywhere(jaxpr, within=()):
    """All operations of a program, and what they lie in."""
    for eqn in jaxpr.eqns:
        yield eqn, within
        for inner in inner_jaxprs(eqn):
            yield from everywhere(inner, (*within, eqn))


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(2,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", ["rigl", "gradual_magnitude", "gradual_random"])
def test_the_rule_lies_in_a_loop_whose_condition_is_one_for_all_replicas(name, axes):
    rule = METHODS[name].make(0.3, scope=METHODS[name].scopes[-1])
    key = jax.random.key(0)
    tx = dynamic.masked(optax.adam(0.1), rule, key=key)
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (*axes, *x.shape)), weights(0))
    state = jax.eval_shape(vmapped(tx.init, axes), params)
    step = vmapped(tx.update, axes)
    program = jax.make_jaxpr(step)(params, state, params).jaxpr
    loops = [
        eqn
        for eqn, within in everywhere(program)
        if eqn.primitive.name == "while"
        and not any(outer.primitive.name == "while" for outer in within)
    ]
    # One loop, of one round, that is asked with one bool.
    (loop,) = loops
    assert loop.params["cond_jaxpr"].out_avals[0].shape == ()
    assert loop.invars[-len(loop.params["body_jaxpr"].out_avals)].aval.shape == ()

    def alone(*args):
        return vmapped(lambda *own: rule.update(key, jnp.int32(4), *own), axes)(*args)

    mask = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    names = {
        eqn.primitive.name
        for eqn, _ in everywhere(jax.make_jaxpr(alone)(params, params, mask).jaxpr)
    }
    outside = {
        eqn.primitive.name
        for eqn, within in everywhere(program)
        if loop is not eqn and loop not in within
    }
    # What selects: nothing of it is done at each step.
    special = names & SELECTING
    assert special and not outside & SELECTING, outside & SELECTING


SELECTING = {"sort", "while", "bitcast_convert_type", "random_bits"}
"""Of these a selection is made, and no step of an optimizer."""


# --- bad input ------------------------------------------------------------------------

GOOD = {
    "gradual_magnitude": {"final_density": 0.3, "begin": 0, "end": 8, "every": 2},
    "gradual_random": {"final_density": 0.3, "begin": 0, "end": 8, "every": 2},
    "gradual_saliency": {"final_density": 0.3, "begin": 0, "end": 8, "every": 2},
    "one_shot_magnitude": {"density": 0.3, "step": 4},
    "periodic_magnitude": {"density": 0.3, "begin": 0, "end": 8, "every": 2},
    "static_sparse": {"density": 0.3},
    "sparse_evolutionary": {"density": 0.3, "end": 8, "every": 2},
    "rigl": {"density": 0.3, "end": 8, "every": 2},
}
"""Arguments with which each can be made; all others have defaults."""

NO_SHARE = ("0.3", True, math.nan, -0.1, 0, 1, 2, [0.3])
NO_STEP = ("2ep", 2.0, True, math.nan, -1)

BAD = {
    "density": NO_SHARE + (None,),
    "final_density": NO_SHARE + (None,),
    "initial_density": ("1", True, math.nan, -1, 0.1, 1.5, None),
    "begin": NO_STEP,
    "end": NO_STEP + (None,),
    "step": NO_STEP + (None,),
    "every": NO_STEP + (0, None),
    "drop_fraction": NO_SHARE + (None,),
    "decay": ("linear", None, 3),
    "scope": ("layer", None, 3, True),
    "granularity": ("blocks", 4, Block, (2, 2)),
    "prunable": (5, "kernel"),
    "exclude": (5, (5,), "nothing", ("conv", "hidden", "head")),
}
NAMED = {"exclude": "exclude=|pattern", "prunable": "prunable: "}
"""What the message says of a field, where that is not `field=value`."""


@pytest.mark.parametrize("name", GOOD)
def test_an_argument_that_makes_no_sense_is_refused_by_name(name):
    make, shapes = getattr(dynamic, name), jax.eval_shape(lambda: weights(0))
    assert set(inspect.signature(make).parameters) <= set(BAD)
    for field in inspect.signature(make).parameters:
        for value in BAD[field]:
            with pytest.raises(ValueError) as caught:
                # Before anything is trained: when it is made, or when leaves are known.
                dynamic.check(make(**GOOD[name] | {field: value}), shapes, steps=20)
            message = str(caught.value)
            if field not in NAMED:
                assert f"{field}={errors.shown(value)}" in message.replace("'", "") or (
                    f"{field}={value!r}" in message
                ), message
            else:
                assert re.match(NAMED[field], message), message


def test_every_method_has_arguments_to_be_wrong():
    assert set(GOOD) == {through_as(name) for name in METHODS}


def check(rule, **options):
    return lambda: dynamic.check(rule, **options)


def rigl(**options):
    return dynamic.rigl(**{"density": 0.5, "end": 8, "every": 2} | options)


def masked(rule, tx=None, **options):
    tx = optax.sgd(0.1) if tx is None else tx
    return lambda: dynamic.masked(tx, rule, **options).init(weights(0))


SHAPES_OF = {"params": jax.eval_shape(lambda: weights(0))}

MISFITS = [
    # Periods and ends beyond what is trained.
    (
        lambda: dynamic.periodic_magnitude(0.5, 1, 90, 100),
        "every=100, begin=1, end=90; there must be a multiple",
    ),
    (lambda: rigl(end=90, every=100), "every=100, begin=100, end=90; there must"),
    (
        check(rigl(end=200, every=100), steps=90),
        "rule: acts at step 200; it must end before stop=90",
    ),
    (check(rigl(), steps=8), "rule: acts at step 8; it must end before stop=8"),
    (
        check(rigl(end=999, every=500), steps=700),
        "rule: end=999; it must end before stop=700",
    ),
    (check(dynamic.one_shot_magnitude(0.5, 9), steps=9), "rule: acts at step 9; it"),
    (
        check(MaskUpdate(rigl().update, 100, 1, 50), steps=60),
        "rule: every=100, begin=1, end=50 is no step",
    ),
    (check(rigl(), steps="8"), "steps='8'; it must be a whole number"),
    # Rules made by hand.
    (
        check(dynamic.rigl),
        "rule=lottery_jax.dynamic.*rigl; it must be a dynamic.MaskUp",
    ),
    (check(MaskUpdate(3, 1, 0, 5)), "rule.update=3; it must be a function"),
    (check(MaskUpdate(rigl().update, 0, 0, 5)), "rule.every=0; it must be 1 or more"),
    (check(MaskUpdate(rigl().update, 1.5, 0, 5)), "rule.every=1.5; it must be a whole"),
    (check(MaskUpdate(rigl().update, 1, -5, 5)), "rule.begin=-5; it must be 0 or more"),
    (check(MaskUpdate(rigl().update, 1, 0, "5")), "rule.end='5'; it must be a whole"),
    (check(rigl()._replace(start=3, on=None)), "rule.start=3; it must be a function"),
    (
        check(rigl()._replace(grows="no", on=None)),
        "rule.grows='no'; it must be True or",
    ),
    (
        check(MaskUpdate(lambda *args: None, 1, 0, 5), **SHAPES_OF),
        "mask: its leaves .* are not those of params",
    ),
    (
        check(MaskUpdate(lambda *args: args[2], 1, 0, 5), **SHAPES_OF),
        "mask: leaf .* has dtype float32, not bool",
    ),
    # One that is changed would be made anew on the leaves of a task.
    (check(rigl()._replace(every=3)), "rule: was changed since it was made"),
    (check(rigl()._replace(update=print)), "rule: was changed since it was made"),
    # What cannot be cut so.
    (
        check(
            rigl(granularity=NofM(1, 3), density=1 / 3, scope="uniform"), **SHAPES_OF
        ),
        "n_of_m: 'conv/kernel', .* divisible by m=3; name the leaf in exclude=",
    ),
    (
        check(rigl(granularity=NofM(1, 2), scope="uniform", density=0.4), **SHAPES_OF),
        "density=0.4; it must be 0.5",
    ),
    (
        check(rigl(granularity=NofM(1, 2)), **SHAPES_OF),
        "scope='erk'; it must be 'global' or 'uniform': n of m",
    ),
    (
        check(dynamic.static_sparse(0.01, granularity=Channel()), **SHAPES_OF),
        "density=0.01; it must be so large that of 'conv/kernel', which has 4 groups",
    ),
    (
        check(dynamic.gradual_magnitude(0.001, 0, 8, 2), **SHAPES_OF),
        "density=0.001; it must be so large",
    ),
    # Optimizers and keys.
    (
        check(rigl(), tx=transforms.straight_through(optax.sgd(0.1))),
        "rule: lets weights off the mask come back",
    ),
    (
        masked(rigl(), transforms.straight_through(optax.sgd(0.1))),
        "rule: lets weights off the mask come back",
    ),
    (masked(rigl(), optax.sgd), "tx=optax.*sgd; it must be an optax.Gradient"),
    (masked(rigl()), "key=None; it must be a key: rigl draws from it"),
    (
        masked(dynamic.gradual_random(0.5, 0, 8, 2)),
        "key=None; it must be a key: gradual_random draws from it",
    ),
    (masked(dynamic.static_sparse(0.5)), "key=None; it must be a key: static_sparse"),
    (masked(rigl(), key=3), "key=int; it must be keys of threefry2x32"),
    (masked(rigl(), key=jax.random.key(0, impl="rbg")), "key=key<rbg>; it must be"),
    (masked(rigl(), key=jax.random.key(0), steps=8), "rule: acts at step 8; it must"),
    (lambda: transforms.straight_through(optax.sgd), "tx=optax.*sgd; it must be an op"),
    # Numbers of what is dropped.
    (lambda: dynamic.drop_counts("9", [0], 2), "alive='9'; it must be a whole number"),
    (lambda: dynamic.drop_counts(-9, [0], 2), "alive=-9; it must be 0 or more"),
    (lambda: dynamic.drop_counts(9, 0, 2), "steps=0; it must be a tuple"),
    (lambda: dynamic.drop_counts(9, [0.5], 2), "steps=0.5; it must be a whole number"),
    (lambda: dynamic.drop_counts(9, [0], 0), "end=0; it must be 1 or more"),
    (lambda: dynamic.drop_counts(9, [0], 2, 1.7), "drop_fraction=1.7; it must be in"),
    (lambda: dynamic.drop_counts(9, [0], 2, 0.3, "x"), "decay='x'; it must be one of"),
]


@pytest.mark.parametrize(("call", "message"), MISFITS)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert re.match(message, str(caught.value)), str(caught.value)


def test_an_update_needs_weights_and_a_mask():
    params = weights(0)
    tx = dynamic.masked(optax.sgd(0.1), dynamic.gradual_magnitude(0.5, 0, 8, 2))
    with pytest.raises(ValueError, match="dynamic.masked: pass params to update"):
        tx.update(params, tx.init(params))
    tx = transforms.straight_through(optax.sgd(0.1))
    mask = masks.ones_like(params)
    for arguments, message in (
        ({}, "pass a mask either when building"),
        ({"mask": {"w": mask}}, "mask: it"),
    ):
        with pytest.raises(ValueError, match=message):
            tx.update(params, tx.init(params), params, **arguments)
    with pytest.raises(ValueError, match="straight_through: pass params to update"):
        tx.update(params, tx.init(params), mask=mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradual_magnitude(0.1, 0, 150), "end=150 .*every=100"),
        (lambda: gradual_magnitude(0.1, 0, 100, every=0), "every=0"),
        (lambda: gradual_magnitude(0.1, 100, 100), "begin=100, end=100"),
        (lambda: gradual_magnitude(1.5, 0, 100), "final_density=1.5"),
        (lambda: gradual_magnitude(0.0, 0, 100), "final_density=0.0"),
    ],
)
def test_errors_name_the_argument_and_what_would_be_valid(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("through", [False, True])
def test_a_step_may_donate_its_weights_and_its_state(through):
    inner = optax.adam(0.1)
    tx = dynamic.masked(
        transforms.straight_through(inner) if through else inner,
        dynamic.periodic_magnitude(0.5, 0, 4, 2),
    )

    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params = {"kernel": jnp.arange(1.0, 9.0).reshape(2, 4)}
    state = tx.init(params)
    donating = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(3):
        params, state = donating(params, state)
    assert int((params["kernel"] != 0).sum()) == 4


def test_shares_of_drops_are_those_that_were_meant():
    assert dynamic.drop_counts(100, [0], 100, 0.29) == [29]
    assert dynamic.drop_counts(100, [0], 100, 0.57, "constant") == [57]
