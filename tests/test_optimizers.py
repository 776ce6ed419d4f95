"""All optimizers and wrappers of the installed optax, under masks and rewinding.

Each is found by looking, and either in the battery or in a list with a reason. Whole
runs go through NumPy (`optimizers.interpreted`), so that nothing has to be compiled.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from lottery_jax import transforms, trees
from lottery_jax.optimizers.clocks import clocks
from lottery_jax.optimizers.interpreted import interpreted
from lottery_jax.optimizers.states import places
from lottery_jax.optimizers.updates import loss_arguments, update_with
from lottery_jax.trees import shapes_of

pytestmark = pytest.mark.slow

SHAPES = {"kernel": (4, 3), "bias": (4,)}
STEPS, SHRINKS, K = 40, 17, 11
COSINE = optax.cosine_decay_schedule(0.1, 50)


def kernels(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "kernel" if "kernel" in str(path) else "other", params
    )


def even(step, **_):
    return step % 2 == 0


def adam():
    return optax.adam(COSINE)


def multi(inner, every):
    return optax.MultiSteps(inner, every).gradient_transformation()


# What cannot be made with a learning rate, or with nothing at all.
ARGUMENTS = {
    "MultiSteps": lambda: multi(adam(), 4),
    "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.1),
    "add_decayed_weights": lambda: optax.add_decayed_weights(COSINE),
    "add_noise": lambda: optax.add_noise(0.1, 0.5, key=0),
    "adopt": lambda: optax.contrib.adopt(0.1, use_clipping=False),
    "apply_every": lambda: optax.apply_every(3),
    "apply_if_finite": lambda: optax.apply_if_finite(adam(), 3),
    "chain": lambda: optax.chain(optax.clip(0.3), adam()),
    "conditionally_mask": lambda: optax.conditionally_mask(adam(), even),
    "conditionally_transform": lambda: optax.conditionally_transform(adam(), even),
    "differentially_private_aggregate": lambda: (
        optax.contrib.differentially_private_aggregate(1.0, 0.1, 0)
    ),
    "dpsgd": lambda: optax.contrib.dpsgd(0.1, 1.0, 0.1, 0),
    "ema": lambda: optax.ema(0.9),
    "flatten": lambda: optax.flatten(adam()),
    "freeze": lambda: optax.freeze({"kernel": False, "bias": True}),
    "galore": lambda: optax.contrib.galore(0.1, rank=2),
    "hutchinson_estimator_diag_hessian": lambda: optax.chain(
        optax.contrib.hutchinson_estimator_diag_hessian(), optax.scale(-0.05)
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(COSINE),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(
        optax.adam
    )(optax.WrappedSchedule(COSINE)),
    "lookahead": lambda: optax.lookahead(adam(), 3, 0.5),
    "masked": lambda: optax.masked(adam(), {"kernel": True, "bias": False}),
    "measure_with_ema": lambda: optax.measure_with_ema(lambda updates: updates, 0.9),
    "mechanize": lambda: optax.contrib.mechanize(adam()),
    "monitor": lambda: optax.monitor(
        {"norm": lambda updates, *_, **__: optax.tree.norm(updates)}
    ),
    "multi_transform": lambda: optax.multi_transform(
        {"kernel": adam(), "other": optax.adam(0.05)}, kernels
    ),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(0.3)), ("a", adam())),
    "noisy_sgd": lambda: optax.noisy_sgd(COSINE, key=0),
    "partition": lambda: optax.partition(
        {"kernel": adam(), "other": optax.sgd(0.1, 0.9)}, kernels
    ),
    "sam": lambda: optax.contrib.sam(adam(), optax.sgd(0.05), sync_period=2),
    "scale_by_adopt": lambda: optax.contrib.scale_by_adopt(use_clipping=False),
    "scale_by_backtracking_linesearch": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)
    ),
    "scale_by_galore": lambda: optax.contrib.scale_by_galore(rank=2),
    "scale_by_schedule": lambda: optax.scale_by_schedule(COSINE),
    "scale_by_zoom_linesearch": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_zoom_linesearch(5)
    ),
    "scale_by_factored_rms": lambda: optax.scale_by_factored_rms(
        min_dim_size_to_factor=2
    ),
    "scale_by_muon": lambda: optax.contrib.scale_by_muon(),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), COSINE),
    "selective_transform": lambda: optax.selective_transform(
        adam(), freeze_mask={"kernel": False, "bias": True}
    ),
    "snapshot": lambda: optax.snapshot(
        "norm", lambda updates, *_, **__: optax.tree.norm(updates)
    ),
    "split_real_and_imaginary": lambda: optax.contrib.split_real_and_imaginary(adam()),
    "stateless": lambda: optax.stateless(lambda updates, _: updates),
    "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(
        lambda update, _: update
    ),
    "with_extra_args_support": lambda: optax.with_extra_args_support(adam()),
}

MORE = {
    "adafactor, by weights": lambda: optax.adafactor(
        COSINE,
        factored=False,
        multiply_by_parameter_scale=False,
        clipping_threshold=None,
    ),
    "injected chain of MultiSteps": lambda: optax.inject_hyperparams(
        lambda rate: optax.chain(optax.clip(0.3), multi(optax.adam(rate), 3))
    )(COSINE),
    "MultiSteps of MultiSteps": lambda: multi(multi(adam(), 2), 3),
    "MultiSteps by a schedule": lambda: multi(
        adam(), lambda step: jnp.where(step < 3, 2, 3)
    ),
    "MultiSteps that skips": lambda: optax.MultiSteps(
        adam(), 2, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
    "multi_transform of two adams": lambda: optax.multi_transform(
        {"kernel": multi(adam(), 2), "other": optax.flatten(adam())}, kernels
    ),
    "opaque SAM": lambda: optax.contrib.sam(adam(), optax.sgd(0.05), opaque_mode=True),
    "plateau in a chain": lambda: optax.chain(
        adam(), optax.contrib.reduce_on_plateau(patience=2)
    ),
    "lbfgs without a search": lambda: optax.lbfgs(
        COSINE, memory_size=3, linesearch=None
    ),
    "decay of matrices": lambda: optax.adamw(
        COSINE, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.5), adam()),
    "momo by a schedule": lambda: optax.contrib.momo(COSINE),
    "prodigy by a schedule": lambda: optax.contrib.prodigy(COSINE),
    "dadapt_adamw by a schedule": lambda: optax.contrib.dadapt_adamw(COSINE),
    "dog by a schedule": lambda: optax.contrib.dog(COSINE),
}

# Cannot be right under a mask, or cannot be used as an optimizer is.
REFUSED = {
    "adafactor": "multiply_by_parameter_scale=False",
    "adaptive_grad_clip": "norms of units",
    "centralize": "means of rows",
    "clip_by_block_rms": "a mean over all entries",
    "differentially_private_aggregate": "does not run on weights like these",
    "dpsgd": "does not run on weights like these",
    "galore": "mixes weights of 'kernel'",
    "lookahead": r"optax.lookahead\(masked",
    "monitor": "changes its structure",
    "muon": "orthogonalises whole matrices",
    "scale_by_factored_rms": "factored=False",
    "scale_by_galore": "mixes weights of 'kernel'",
    "scale_by_muon": "orthogonalises whole matrices",
    "scale_by_param_block_rms": "a mean over all weights",
    "scale_by_sm3": "mixes weights of 'kernel'",
    "sm3": "mixes weights of 'kernel'",
}

# A new state of these cannot stand at a later step.
ONLY_FROM_THE_START = {
    "madgrad": r"\[1\].count",
    "plateau in a chain": r"plateau_count, .*level_optimizer='rewind'",
    "reduce_on_plateau": "plateau_count",
    "scale_by_madgrad": "count",
}


NO_TRANSFORMATIONS = {
    *("matrix_inverse_pth_root", "schedule_free_eval_params", "update_moment"),
    *("sigmoid_binary_cross_entropy", "update_infinity_moment"),
    "update_moment_per_elem_norm",
}
"""Functions of optax without an annotation of what they return."""


def transformations():
    """All public functions of optax that return a transformation, by name."""
    found = {"MultiSteps": optax.MultiSteps}
    for module in (optax, optax.contrib):
        for name, function in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            returned = str(inspect.signature(function).return_annotation)
            known = "GradientTransformation" in returned or name in ARGUMENTS
            if known or made(function) is not None:
                found[name] = function
    return found


def made(function):
    """What a function returns for a learning rate, or for nothing."""
    for arguments in ((0.1,), ()):
        try:
            tx = function(*arguments)
        except Exception:  # it wants something else
            continue
        if isinstance(tx, optax.GradientTransformation):
            return tx
    return None


FOUND = transformations()


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    """Rounding then hides nothing; and optax multiplies `[1]` by whole leaves somewhere."""
    before = jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_enable_x64", before[0])
    jax.config.update("jax_numpy_rank_promotion", before[1])


def one(name):
    """A member of the battery."""
    if name in MORE or name in ARGUMENTS:
        return (MORE.get(name) or ARGUMENTS[name])()
    tx = made(FOUND[name])
    # What has no rate is a part of an optimizer.
    whole = "learning_rate" in inspect.signature(FOUND[name]).parameters
    return tx if whole else optax.chain(tx, optax.scale(-0.05))


MEMBERS = sorted({*FOUND, *MORE} - set(REFUSED))


def normals(seed, *axes):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=axes + s) for n, s in SHAPES.items()}


def random_mask(seed, density):
    rng = np.random.default_rng(seed)
    return {n: rng.random(s) < density for n, s in SHAPES.items()}


START, NOISE = normals(1), {n: 0.3 * x for n, x in normals(2, STEPS).items()}
MASK = random_mask(3, 0.7)
SMALLER = {n: m & x for (n, m), x in zip(MASK.items(), random_mask(4, 0.7).values())}
INSIDE = {n: SMALLER[n][MASK[n]] for n in SHAPES}


def alive(tree, mask):
    """The vectors of survivors; kernels keep their rank."""
    return {
        n: (v := np.asarray(x)[..., mask[n]]).reshape(
            *v.shape, *[1] * (len(SHAPES[n]) - 1)
        )
        for n, x in tree.items()
    }


def loss_of(slope):
    def loss(params):
        terms = jax.tree.map(lambda s, p: jnp.sum(s * p + 0.15 * p * p), slope, params)
        return sum(jax.tree.leaves(terms)) + 1.0

    return loss


def alone(tx, params, state, slopes):
    """An optimizer by itself: weights after each step, and the last state."""

    def step(params, state, slope):
        loss = loss_of(slope)
        value, gradients = jax.value_and_grad(loss)(params)
        extra = loss_arguments(loss, value, gradients)
        updates, state = update_with(tx, gradients, state, params, extra)
        return optax.apply_updates(params, updates), state

    slope = jax.tree.map(lambda x: x[0], slopes)
    run, history = interpreted(step, params, state, slope), []
    for i in range(len(slopes["bias"])):
        params, state = run(params, state, jax.tree.map(lambda x, i=i: x[i], slopes))
        history.append(params)
    return history, state


def under_mask(tx, params, state, slopes, mask):
    """The same under a mask; gradients off it are nan."""

    def step(params, state, slope):
        loss = loss_of(slope)
        value, gradients = jax.value_and_grad(loss)(
            jax.tree.map(lambda m, p: jnp.where(m, p, 0), mask, params)
        )
        gradients = jax.tree.map(lambda m, g: jnp.where(m, g, jnp.nan), mask, gradients)
        extra = loss_arguments(loss, value, gradients) | {"mask": mask}
        updates, state = update_with(
            transforms.masked(tx), gradients, state, params, extra
        )
        return optax.apply_updates(params, updates), state

    slope = jax.tree.map(lambda x: x[0], slopes)
    run, history = interpreted(step, params, state, slope), []
    for i in range(len(slopes["bias"])):
        params, state = run(params, state, jax.tree.map(lambda x, i=i: x[i], slopes))
        history.append(params)
    return history, state


def bits(tree, mask):
    """Those off the mask."""
    return np.concatenate([x[~mask[n]].view(np.uint64) for n, x in tree.items()])


def assert_equal_runs(history, reference, mask, first):
    """Survivors move alike, to rounding; what is off the mask is 0."""
    flat = lambda tree: np.concatenate([x.reshape(-1) for x in tree.values()])  # noqa: E731
    first = flat(alive(first, mask))
    for found, expected in zip(history, reference, strict=True):
        assert (bits(found, mask) == 0).all()
        a, b = flat(alive(found, mask)), flat(expected)
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * abs(b - first).max())
    return abs(b - first).max()


def part(steps):
    return {n: x[steps] for n, x in NOISE.items()}


def within(tx, state, inside):
    """A state of survivors without those that die."""
    like = {
        n: np.zeros((m.size, *[1] * (len(SHAPES[n]) - 1))) for n, m in inside.items()
    }
    leaves, structure = jax.tree.flatten(state)
    order = sorted(SHAPES)
    for i, place in enumerate(places(tx, shapes_of(like))):
        take = [inside[order[j]] for j in place.of]
        if place.kind == "weights":
            axis = leaves[i].ndim - len(SHAPES[order[place.of[0]]])
            leaves[i] = np.compress(take[0], leaves[i], axis)
        elif place.kind == "flat":
            leaves[i] = leaves[i][np.concatenate(take)]
    return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize("name", MEMBERS)
def test_survivors_move_as_if_there_were_no_others(name):
    """From dense weights, over 40 steps, in the middle of which the mask shrinks."""
    tx = one(name)
    masked = transforms.masked(tx)
    state = interpreted(masked.init, START)(START)
    history, state = under_mask(tx, START, state, part(slice(SHRINKS)), MASK)
    own = alive(START, MASK)
    reference, own_state = alone(
        tx, own, interpreted(tx.init, own)(own), alive(part(slice(SHRINKS)), MASK)
    )
    moved = assert_equal_runs(history, reference, MASK, START)

    state = transforms.mask_state(masked, state, SMALLER)
    last = history[-1]
    later, _ = under_mask(tx, last, state, part(slice(SHRINKS, None)), SMALLER)
    own = {n: np.compress(INSIDE[n], x, 0) for n, x in reference[-1].items()}
    expected, _ = alone(
        tx,
        own,
        within(tx, own_state, INSIDE),
        alive(part(slice(SHRINKS, None)), SMALLER),
    )
    moved += assert_equal_runs(later, expected, SMALLER, last)
    assert moved > 0 or name in ("freeze", "set_to_zero", "selective_transform")


GROWN = random_mask(15, 0.6)
"""Of these some lived before, and some are new."""


def on_survivors(tx, state, mask):
    """A state as it is of the surviving weights alone."""
    leaves, structure = jax.tree.flatten(state)
    order = sorted(SHAPES)
    for i, place in enumerate(places(tx, shapes_of(START))):
        x, own = leaves[i], [mask[order[j]] for j in place.of]
        if place.kind == "weights":
            x = np.asarray(x)[..., own[0]]
            leaves[i] = x.reshape(*x.shape, *[1] * (own[0].ndim - 1))
        elif place.kind == "flat":
            leaves[i] = x[np.concatenate([m.reshape(-1) for m in own])]
    return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize("name", MEMBERS)
def test_what_grows_is_new_what_goes_is_zero_and_what_stays_goes_on(name):
    """After some steps the mask changes: the state, and the steps that follow."""
    tx = one(name)
    masked = transforms.masked(tx)
    state = interpreted(masked.init, START)(START)
    history, state = under_mask(tx, START, state, part(slice(SHRINKS)), MASK)
    given = state, history[-1], MASK, GROWN
    change = partial(transforms.change_mask, masked)
    params, state_of_new = interpreted(change, *given)(*given)
    for n in SHAPES:
        expected = np.where(MASK[n] & GROWN[n], history[-1][n], 0)
        np.testing.assert_array_equal(params[n], expected)

    inner, found = (x.inner if has_begun(x) else x for x in (state, state_of_new))
    new = interpreted(tx.init, params)(params)
    order = sorted(SHAPES)
    for place, old, now, fresh in zip(
        places(tx, shapes_of(START)), *map(jax.tree.leaves, (inner, found, new))
    ):
        if place.kind not in ("weights", "flat"):
            assert_same(now, old)
            continue
        flat = place.kind == "flat"
        before, after = (
            np.concatenate([m[order[j]].reshape(-1) for j in place.of])
            if flat
            else m[order[place.of[0]]]
            for m in (MASK, GROWN)
        )
        kept, grown = before & after, after & ~before
        assert kept.any() and grown.any()
        expected = np.where(kept, old, np.where(grown, fresh, 0))
        np.testing.assert_array_equal(now, expected)

    later, _ = under_mask(tx, params, state_of_new, part(slice(SHRINKS, None)), GROWN)
    own = alive(params, GROWN)
    steps = alive(part(slice(SHRINKS, None)), GROWN)
    expected, _ = alone(tx, own, on_survivors(tx, found, GROWN), steps)
    assert_equal_runs(later, expected, GROWN, params)


def has_begun(state):
    """Whether a state says if the first update has come."""
    return isinstance(state, transforms.FromDense)


def test_the_list_is_whole():
    """Nothing that optax exports is overlooked, and no exception is stale."""
    assert {*ARGUMENTS} <= {*FOUND} and {*REFUSED} <= {*FOUND}
    assert not {*MORE} & {*FOUND}
    assert all(isinstance(one(n), optax.GradientTransformation) for n in MEMBERS)
    assert len(MEMBERS) > 110
    rest = set()
    for module in (optax, optax.contrib):
        for name, function in vars(module).items():
            if not inspect.isfunction(function) or name in {*FOUND}:
                continue
            returned = inspect.signature(function).return_annotation
            if returned is inspect.Signature.empty and not name.startswith("_"):
                rest.add(name)
    # Without an annotation one cannot know; these were looked at.
    assert rest <= NO_TRANSFORMATIONS, sorted(rest - NO_TRANSFORMATIONS)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(name):
    tx = ARGUMENTS[name]() if name in ARGUMENTS else made(FOUND[name])
    with pytest.raises(ValueError, match=REFUSED[name]) as error:
        transforms.masked(tx).init(START)
    assert "tx=" in str(error.value)


@pytest.mark.parametrize("name", MEMBERS)
def test_counters_stand_where_updates_lead(name):
    """All that follows from the number of updates, and nothing else, is as after 11."""
    tx = one(name)
    new = interpreted(tx.init, START)(START)
    if name in ONLY_FROM_THE_START:
        with pytest.raises(ValueError, match=ONLY_FROM_THE_START[name]):
            transforms.at_schedule_step(tx, new, START, K)
        return
    _, there = alone(tx, START, new, part(slice(K)))
    moved = clocks(tx, shapes_of(START)).moved
    at = interpreted(partial(transforms.at_schedule_step, tx), new, START, 0)
    leaves = zip(
        *map(jax.tree.leaves, (at(new, START, K), there, new, at(new, START, 0)))
    )
    for i, (found, expected, first, same) in enumerate(leaves):
        assert_same(found, expected if i in moved else first)
        assert_same(same, first)


def assert_same(a, b):
    if trees.is_key(a):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_allclose(a, b, rtol=1e-5)


def scheduled():
    """What takes a schedule for its learning rate."""
    for name, function in FOUND.items():
        rate = inspect.signature(function).parameters.get("learning_rate")
        takes = rate is not None and "Callable" in str(rate.annotation)
        if takes and name not in (*NO_SCHEDULE, *REFUSED):
            yield name


NO_SCHEDULE = {"optimistic_adam"}
"""Says itself that it takes none."""

TWICE = {
    "schedule_free": lambda learning_rate: optax.contrib.schedule_free(
        optax.sgd(learning_rate), learning_rate
    )
}

UNDECIDED = {"adopt", "madgrad", "scale_by_madgrad"}
"""A root of their counter is read, which may be an age or a schedule."""


@pytest.mark.parametrize("name", sorted(scheduled()))
def test_a_schedule_is_where_it_was(name):
    """With almost no rate from step 11 on nothing moves, with none before it does."""
    if name in UNDECIDED:
        with pytest.raises(ValueError, match="may be an age as well as a position"):
            transforms.check_reset(FOUND[name](learning_rate=COSINE), START)
        return
    changes = []
    none = 1e-9 if name in ("prodigy", "dadapt_adamw") else 0.0  # these divide by it
    for early, late in ((0.1, none), (none, 0.1)):
        rate = lambda step, a=early, b=late: jnp.where(step < K, a, b)  # noqa: E731
        tx = TWICE.get(name, FOUND[name])(learning_rate=rate)
        new = interpreted(tx.init, START)(START)
        at = interpreted(partial(transforms.at_schedule_step, tx), new, START, 0)
        history, _ = alone(tx, START, at(new, START, K), part(slice(3)))
        changes.append(max(abs(x - START[n]).max() for n, x in history[-1].items()))
    assert changes[0] < 1e-6 * changes[1]
