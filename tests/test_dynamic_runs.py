"""What the runner makes of rules: every method of `dynamic`, over many runs at once."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from dynamic_methods import METHODS

import lottery_jax as lj
from lottery_jax import dynamic, keys, masks, training, transforms
from lottery_jax.data import Dataset
from lottery_jax.execution import Execution
from lottery_jax.training import segment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

STOP, EVERY = 12, 2
JOINS = (0, 5, 0, 4)
ONE, TWO = Execution(1, 1), Execution(2, 1)
SGD = optax.sgd(toys.SCHEDULE, momentum=0.9)


class Net(nn.Module):
    """A convolution, a norm and a head, for images of 2 x 2 pixels and 2 channels."""

    @nn.compact
    def __call__(self, x, train=False, weights=None):
        x = nn.Conv(4, (2, 2), name="conv")(x)
        x = lj.models.BatchNorm(name="norm")(x, train, weights)
        return nn.Dense(4, name="head")(jax.nn.relu(x).reshape(x.shape[0], -1))


@functools.cache
def task():
    return toys.classification(lj.models.make("mlp-6", 4))


@functools.cache
def convolutional():
    arrays = {
        split: {"image": a["image"].reshape(-1, 2, 2, 2), "label": a["label"]}
        for split, a in toys.dataset().arrays.items()
    }
    images = Dataset(arrays, 4, (2, 2, 2), (0.0, 0.0), (1.0, 1.0), "toy images")
    return lj.tasks.classification(images, Net(), batch_size=50, evaluation_batch=20)


def rule_of(name):
    scope = "uniform" if METHODS[name].regrows else "global"
    return METHODS[name].make(0.3, scope=scope)


@functools.cache
def optimizer(through):
    return transforms.straight_through(SGD) if through else SGD


@functools.cache
def runs(through):
    """Four runs of their own initialisation and noise that join at three steps."""
    own = keys.of_replicas(0, range(len(JOINS)))
    tx = optimizer(through)
    found = training.fresh(task(), tx, own.init, own.noise, where=lj.Where(ONE))
    state = lj.trees.host(found.state)
    zeros = np.zeros(len(JOINS), int)
    return training.Runs(state, own.noise, np.array(JOINS), zeros)


def some(of, index):
    index = np.array(index)
    return training.Runs(
        lj.trees.rows(of.state, index),
        of.noise[index],
        of.joins[index],
        of.offset[index],
    )


def train(name, of=None, where=None, rule=None, **options):
    through = METHODS[name].through
    options = {"every": EVERY, "validate": True, "keep": range(STOP + 1)} | options
    return training.train(
        task(),
        optimizer(through),
        runs(through) if of is None else of,
        STOP,
        rule=rule_of(name) if rule is None else rule,
        where=where or lj.Where(ONE),
        **options,
    )


def outcome(done):
    best = lj.trees.rows(lj.trees.host(done.best), done.places)
    return done.state, best, done.curves, done.kept


@functools.cache
def calls_and_whole(name):
    """A run that nothing interrupts, and how often its programs were called."""
    called = []

    def counted(build, *parts):
        made = segment_program(build, *parts)

        class Called:
            ahead, lower = made.ahead, made.lower

            def __call__(self, *args):
                called.append(build.__name__)
                return made(*args)

        return Called()

    segment_program = segment.program
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "program", counted)
        done = train(name)
    return called, done


def whole(name):
    return calls_and_whole(name)[1]


def of_weights(tree):
    """The prunable leaves of `[R, K, ...]` as `[R, K, weights]`."""
    found = [tree[layer]["kernel"] for layer in ("dense_0", "head")]
    return np.concatenate([k.reshape(*k.shape[:2], -1) for k in found], axis=-1)


@pytest.mark.parametrize("name", METHODS)
def test_off_the_mask_is_zero_at_every_step_and_the_last_density_is_exact(name):
    method, done = METHODS[name], whole(name)
    weights, alive = of_weights(done.kept.params), of_weights(done.kept.mask)
    for run, join in enumerate(JOINS):
        mine, own = weights[run, join:], alive[run, join:]
        assert (mine[~own] == 0).all() and np.isfinite(mine).all()
        counts = own.sum(axis=-1)
        assert counts[-1] == round(0.3 * 72) == 22
        if method.starts:
            assert counts[0] == 72 and (counts[1:] == 22).all()
        if not method.through and not method.regrows:
            assert not (own[1:] & ~own[:-1]).any()
        # It acts before a step is trained, at its steps and at no other.
        changed = {
            join + i for i in range(len(own) - 1) if (own[i + 1] != own[i]).any()
        }
        allowed = {s for s in method.steps if s >= join} | (
            {join} if method.starts else set()
        )
        assert changed <= allowed
        if method.regrows:
            assert join or len(changed) > 1  # at the end none drops of so few
            by_layer = [done.kept.mask[n]["kernel"] for n in ("dense_0", "head")]
            first, last = (
                [x[run, at].sum() for x in by_layer] for at in (join + 1, STOP)
            )
            assert first == last
    if not method.through:  # what the optimizer knows of what is gone
        moments = jax.tree.leaves(done.state.opt_state[0].trace)
        for m, v in zip(jax.tree.leaves(done.state.mask), moments):
            assert (v[~m] == 0).all() and (v[m] != 0).any()
    shown = done.curves.values["density"]
    np.testing.assert_allclose(shown[:, -1], 22 / 72, rtol=1e-6)
    at = done.curves.steps[None] > np.array(JOINS)[:, None]
    np.testing.assert_array_equal(np.isfinite(shown), at)
    # Of several runs each has a mask of its own.
    assert (alive[0, -1] != alive[2, -1]).any()


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_is_computed_at_the_steps_of_the_rule_and_at_no_other(name):
    called, _ = calls_and_whole(name)
    method = METHODS[name]
    assert called.count("_update_mask") == len(method.steps)
    assert called.count("_start_mask") == len(set(JOINS)) * method.starts
    assert called.count("train_rows") > 3


@pytest.mark.parametrize("name", METHODS)
def test_a_run_alone_is_itself_among_others(name):
    for index in (1,), (3,):
        done = train(
            name, some(runs(METHODS[name].through), index), keep=range(5, STOP + 1)
        )
        state, best, curves, kept = outcome(whole(name))
        take = functools.partial(lj.trees.rows, index=np.array(index))
        toys.assert_equal(done.state, take(state))
        toys.assert_equal(outcome(done)[1], take(best))
        late = jax.tree.map(lambda x: x[:, 5:], take(kept))
        toys.assert_equal(done.kept, late)


class Killed(BaseException):
    """Not an error that anybody would catch."""


def killed_at(step, began):
    """Who kills at a step, and writes down from which one it went on."""
    first = itertools.count()

    def watch(progress):
        if next(first) == 0:
            began.append((progress.resumed, progress.done))
        if progress.done == step:
            raise Killed

    return watch


@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_it_ends_in_the_same_bits(name, tmp_path):
    """Before the first step, and twice where it acts next: what is stored is even."""
    began = []
    for step in (0, 3, 6):
        watch = killed_at(step, began)
        with pytest.raises(Killed):
            train(name, where=lj.Where(ONE, tmp_path, 0, watch))
    done = train(name, where=lj.Where(ONE, tmp_path, 0, killed_at(-1, began)))
    assert began == [(False, 0), (False, 0), (True, 2), (True, 4)]
    toys.assert_equal(outcome(done), outcome(whole(name)))


# --- a folder is that of one rule -----------------------------------------------------


def rigl(density=0.3, every=2, **options):
    options = {"drop_fraction": 0.4, "scope": "uniform"} | options
    return dynamic.rigl(density, 8, every, **options)


OTHERS = {
    "density": (lambda: rigl(0.4), "rule.start"),
    "drop fraction": (lambda: rigl(drop_fraction=0.5), "rule.update"),
    "decay": (lambda: rigl(decay="constant"), "rule.update"),
    "scope": (lambda: rigl(scope="erk"), "rule.start"),
    "blocks": (
        lambda: rigl(granularity=lj.granularity.Block((2, 2))),
        "rule.start.*rule.update|rule.update.*rule.start",
    ),
    "begin": (lambda: rigl(begin=0), "rule="),
    "every": (lambda: rigl(every=4), "rule="),
    "leaves": (
        lambda: rigl(prunable=lambda p: masks.prunable(p, include="dense_0/kernel")),
        "rule.start|rule.update",
    ),
    "growth": (
        lambda: dynamic.sparse_evolutionary(
            0.3, 8, 2, drop_fraction=0.4, scope="uniform"
        ),
        "rule.update",
    ),
    "none": (lambda: None, "rule"),
    "start": (lambda: rigl()._replace(start=None, on=None), "rule.start"),
    "static": (lambda: dynamic.static_sparse(0.3, scope="uniform"), "rule="),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train("rigl", where=lj.Where(ONE, folder), rule=rigl())
    return folder


@pytest.mark.parametrize("change", OTHERS)
def test_a_folder_of_another_rule_is_refused_by_name(change, finished):
    made, field = OTHERS[change]
    of = runs(False)
    with pytest.raises(ValueError, match=f"holds other runs: .*({field})"):
        training.train(
            *(task(), SGD, of, STOP),
            every=EVERY,
            validate=True,
            keep=range(STOP + 1),
            rule=made(),
            where=lj.Where(ONE, finished),
        )


def test_the_same_rule_made_anew_is_what_was_there(finished):
    seen = []
    train("rigl", where=lj.Where(ONE, finished, watch=seen.append), rule=rigl())
    assert [(p.resumed, p.done) for p in seen] == [(True, STOP)]


# --- one that diverges, late ones, devices --------------------------------------------


@pytest.mark.parametrize("name", ["rigl", "straight-through gradual_magnitude"])
def test_a_run_that_diverges_harms_no_other(name):
    of = runs(METHODS[name].through)

    def huge(x):
        x = np.array(x)
        x[2] *= 1e30
        return x

    params = jax.tree.map(huge, of.state.params)
    state = of.state._replace(params=params)
    if METHODS[name].through:
        state = state._replace(opt_state=state.opt_state._replace(dense=params))
    done = train(name, of._replace(state=state))
    assert np.isfinite(done.curves.first_nan).tolist() == [False, False, True, False]
    assert np.isnan(of_weights(done.kept.params)[2, -1]).any()
    # Its mask has as many weights as any other.
    assert of_weights(done.kept.mask)[2, -1].sum() == 22
    take = functools.partial(lj.trees.rows, index=np.array([0, 1, 3]))
    toys.assert_equal(take(done.state), take(whole(name).state))
    toys.assert_equal(take(done.kept), take(whole(name).kept))


@pytest.mark.parametrize("name", ["rigl", "static_sparse"])
def test_a_start_is_of_the_run_and_not_of_its_step_or_the_others(name):
    """The mask that a run begins with follows from its noise, whenever it joins."""
    of = runs(False)
    moved = some(of, (1,))._replace(joins=np.array([2]), offset=np.array([0]))
    done = train(name, moved, keep=range(2, STOP + 1))
    early = of_weights(done.kept.mask)[0, 1]
    rule = rule_of(name).on(prunable=None, exclude=())
    drawn = keys.noise_keys(of.noise[1]).rule_start
    first = lj.trees.rows(of.state, 1)
    start = rule.start(drawn, first.params, first.mask)
    as_kept = jax.tree.map(lambda m: np.asarray(m)[None, None], start)
    expected = of_weights(as_kept)[0, 0]
    if name == "static_sparse":
        late = of_weights(whole(name).kept.mask)[1, -1]
        np.testing.assert_array_equal(early, late)
        np.testing.assert_array_equal(early, expected)
    assert expected.sum() == early.sum() == 22


@pytest.mark.parametrize("name", ["rigl", "straight-through periodic_magnitude"])
def test_two_devices_and_other_segments_give_the_same_bits(name):
    done = train(name, where=lj.Where(TWO), marks=(1, 2, 7, 11))
    toys.assert_equal(outcome(done), outcome(whole(name)))


def test_one_compilation_serves_all_segments_and_a_second_run_compiles_nothing():
    traced, compiled = [], []
    base = rule_of("rigl")

    def update(*args):
        traced.append(1)
        return base.update(*args)

    rule = base._replace(update=update, on=None)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: "backend_compile" in event and compiled.append(event)
    )
    train("rigl", rule=rule, keep=(STOP,), every=4)
    compiled.clear()
    train("rigl", rule=rule, keep=(STOP,), every=4, marks=(1, 3, 7, 10))
    # To see whether it fits, and for the one program of its steps.
    assert len(traced) == 2
    assert not compiled


# --- the same in a loop of one's own --------------------------------------------------


@functools.cache
def looped(name):
    """One run as `dynamic.masked` makes it: weights and mask after each step."""
    rule = rule_of(name)
    of = runs(METHODS[name].through)
    tx = dynamic.masked(METHODS[name].optimizer(SGD), rule, key=of.noise[0], steps=STOP)
    state = lj.trees.rows(of.state, 0)

    @jax.jit
    def step(state, i):
        slopes, state, _ = training.step_gradient(task(), state, of.noise[0], i)
        updates, own = tx.update(slopes, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=own, mask=own.mask)

    own = tx.init(state.params)
    params = masks.apply(own.mask, state.params)
    state = state._replace(params=params, opt_state=own, mask=own.mask)
    found = [state]
    for i in range(STOP):
        found.append(step(found[-1], jnp.int32(i)))
    return found


def flat(tree):
    return np.concatenate([np.asarray(tree[n]["kernel"]).ravel() for n in LAYERS])


LAYERS = ("dense_0", "head")


@pytest.mark.parametrize(
    "name", ["static_sparse", "gradual_random", "gradual_magnitude", "rigl"]
)
def test_a_loop_of_ones_own_follows_the_runner(name):
    """Draws are the same throughout, and all is until a rule has acted once."""
    found, kept = looped(name), whole(name).kept
    alive, weights = (of_weights(x)[0] for x in (kept.mask, kept.params))
    # The first step before which the mask changes: with a start, the next after it.
    acts = METHODS[name].steps[1:2] if "gradual" in name else METHODS[name].steps[:1]
    last = acts[0] + 1 if acts else STOP
    for step in range(1, STOP + 1):
        mine, own = flat(found[step].mask), flat(found[step].params)
        if step <= last or name == "gradual_random":
            np.testing.assert_array_equal(mine, alive[step])
        if step < last or name == "static_sparse":
            np.testing.assert_allclose(own, weights[step], rtol=1e-5, atol=1e-6)
        assert mine.sum() == alive[step].sum() and (own[~mine] == 0).all()


# --- refused before a step is compiled ------------------------------------------------

UNFIT = {
    "after the end": lambda: dynamic.one_shot_magnitude(0.5, STOP),
    "n of m": lambda: dynamic.rigl(
        0.5, 8, 2, scope="uniform", granularity=lj.granularity.NofM(2, 4)
    ),
    "too few": lambda: dynamic.static_sparse(
        0.02, granularity=lj.granularity.Channel()
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused_before_a_step_is_compiled(name, monkeypatch):
    def never(*args):
        raise AssertionError("a program was made")

    of = runs(False)
    monkeypatch.setattr(segment, "program", never)
    with pytest.raises(ValueError, match="; it must|name the leaf in exclude="):
        training.train(task(), SGD, of, STOP, rule=UNFIT[name](), where=lj.Where(ONE))


# --- a convolution with a norm --------------------------------------------------------


def test_rigl_on_a_convolution_with_a_norm_and_adam():
    rule = dynamic.rigl(0.4, 6, 2, scope="erk")
    done = lj.train(
        *(convolutional(), optax.adamw(1e-2), 8, 2),
        validate_every=4,
        keep=range(1, 9),
        rule=rule,
        where=lj.Where(ONE),
    )
    kept = done.kept
    sizes = {"conv": 2 * 2 * 2 * 4, "head": 16 * 4}
    counts = {n: kept.mask[n]["kernel"].reshape(2, 8, -1).sum(-1) for n in sizes}
    # Evci et al., section 3; the window of the convolution counts.
    raw = {"conv": (2 + 2 + 2 + 4) / 32, "head": (16 + 4) / (16 * 4)}
    eps = 0.4 * 96 / sum(raw[n] * sizes[n] for n in sizes)
    for n, size in sizes.items():
        share = eps * raw[n]
        assert (counts[n] == counts[n][0, 0]).all()
        assert abs(counts[n][0, 0] - share * size) < 1
    assert (counts["conv"] + counts["head"] == round(0.4 * 96)).all()
    for m, p in zip(jax.tree.leaves(kept.mask), jax.tree.leaves(kept.params)):
        assert (p[~m] == 0).all() and (p[m] != 0).any()
    for norm in ("scale", "bias"):
        assert kept.mask["norm"][norm].all()
    adam = done.state.opt_state[0]
    for moment in (adam.mu, adam.nu):
        for m, v in zip(jax.tree.leaves(done.state.mask), jax.tree.leaves(moment)):
            assert (v[~m] == 0).all()
    assert (counts["conv"][:, 1:] > 0).all()
    moved = kept.mask["conv"]["kernel"][:, 0] != kept.mask["conv"]["kernel"][:, -1]
    assert moved.any()


# --- the leaves of the task, sweeps, and runs that come late --------------------------


def layer_densities(of, rule):
    options = {"replicas": 1, "rule": rule, "where": lj.Where(ONE)}
    done = lj.train(of, SGD, 6, **options)
    return {
        name: float(share[0])
        for name, share in jax.vmap(
            lambda m: masks.layer_densities(m, lambda t: masks.prunable(t))
        )(done.state.mask).items()
    }


def test_what_a_rule_does_not_say_of_its_leaves_is_as_in_the_task():
    first = task()._replace(
        prunable=lambda tree: masks.prunable(tree, "dense_0/kernel")
    )
    rule = dynamic.gradual_magnitude(0.5, 2, 4, 2, exclude="head/bias")
    found = layer_densities(first, rule)
    assert found == {"dense_0/kernel": 0.5, "head/kernel": 1.0}
    spared = task()._replace(exclude=("head",))
    rule = dynamic.gradual_magnitude(0.5, 2, 4, 2, prunable=masks.prunable)
    found = layer_densities(spared, rule)
    assert found["head/kernel"] == 1.0 and found["dense_0/kernel"] < 0.5


def test_straight_through_under_a_sweep_is_straight_through_at_each_rate():
    rule = dynamic.periodic_magnitude(0.5, 2, 4, 2)

    def make(learning_rate):
        return transforms.straight_through(optax.sgd(learning_rate))

    where = lj.Where(ONE)
    rates = {"learning_rate": [0.1, 0.2]}
    both = lj.train(task(), make, 6, (1,), rule=rule, sweep=rates, where=where)
    alone = lj.train(task(), make(0.2), 6, (1,), rule=rule, where=where)
    toys.assert_close(
        jax.tree.map(lambda x: x[1], both.networks.params),
        jax.tree.map(lambda x: x[0], alone.networks.params),
        atol=1e-6,
    )
    assert (both.curves.values["density"][:, -1] == 0.5).all()


def test_a_run_that_joins_after_the_last_cut_is_warned_of():
    rule = dynamic.one_shot_magnitude(0.5, 3)
    of = some(runs(False), (0, 1))._replace(joins=np.array([0, 5]))
    with pytest.warns(RuntimeWarning, match="joins=5.*after step 3"):
        done = training.train(task(), SGD, of, 8, rule=rule, where=lj.Where(ONE))
    assert done.curves.values["density"][:, -1].tolist() == [0.5, 1.0]


def test_other_weights_at_a_rewind_step_are_what_straight_through_trains_on():
    """An arm with weights of its own under the kept state of the trunk's optimizer."""
    tx = transforms.straight_through(optax.sgd(0.1))
    params = {"kernel": jnp.arange(1.0, 5.0).reshape(2, 2)}
    mask = {"kernel": jnp.array([[True, False], [True, True]])}
    kept = tx.init(jax.tree.map(lambda x: 10 * x, params))
    state = transforms.with_weights(tx, kept, params, mask)
    zeros = jax.tree.map(jnp.zeros_like, params)
    own = masks.apply(mask, params)
    updates, after = tx.update(zeros, state, own, mask=mask)
    toys.assert_equal(optax.apply_updates(own, updates), own)
    assert float(after.dense["kernel"][0, 1]) == 20.0  # off the mask as it was kept
