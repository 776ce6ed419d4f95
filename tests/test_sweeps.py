"""Sweeps: each run of a batch has its own hyperparameters, and they are replicas."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import imp, keys, training, transforms, trees
from lottery_jax.optimizers import settings
from lottery_jax.training import segment

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS = 6


@pytest.fixture(scope="module")
def task():
    return toys.classification(lj.models.make("mlp-6", 4))


def sgd(learning_rate, momentum=0.9, weight_decay=1e-3):
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum),
    )


def warmed(peak, warmup):
    return optax.adam(lambda step: peak * jnp.minimum(1.0, step / warmup))


def cosine(learning_rate, momentum):
    return sgd(optax.cosine_decay_schedule(learning_rate, STEPS), momentum)


SWEEPS = {
    "sgd": (sgd, {"learning_rate": [0.01, 0.1, 1e4], "weight_decay": [0.0, 0.1]}),
    "adam": (optax.adam, {"learning_rate": [0.003, 0.01]}),
    "warm-up": (warmed, {"peak": [0.01, 0.1], "warmup": [2.0, 5.0]}),
}


def numbers(trained, at):
    """All that came out for one run; keys in an optimizer's state as their words."""
    curves = {name: x[at] for name, x in trained.curves.values.items()}
    state = jax.tree.map(
        lambda x: jax.random.key_data(x) if trees.is_key(x) else x,
        trees.rows(trained.state, at),
    )
    return state, curves, trained.curves.first_nan[at]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != next(iter(SWEEPS))))
        for name in SWEEPS
    ],
)
def test_each_run_of_a_sweep_is_the_same_run_alone(name, task):
    make, sweep = SWEEPS[name]
    done = lj.train(task, make, STEPS, 2, sweep=sweep, validate_every=3)
    grid = settings.settings(sweep)
    assert len(done.places) == 2 * len(grid)
    for at in (1, 2 * len(grid) - 2):
        own, replica = grid[at // 2], (at % 2,)
        one = {name: [value] for name, value in own.items()}
        alone = lj.train(task, make, STEPS, replica, sweep=one, validate_every=3)
        toys.assert_equal(numbers(done, at), numbers(alone, 0))
        # And as an optimizer that was built of these numbers.
        plain = lj.train(task, make(**own), STEPS, replica, validate_every=3)
        toys.assert_equal(numbers(done, at), numbers(plain, 0))


@pytest.mark.slow
def test_a_setting_that_diverges_harms_no_other(task):
    sweep = {"learning_rate": [0.01, 1e30]}
    done = lj.train(task, sgd, STEPS, 2, sweep=sweep, validate_every=3)
    alone = lj.train(task, sgd(0.01), STEPS, 2, validate_every=3)
    assert np.isnan(done.curves.first_nan[:2]).all()
    assert np.isfinite(done.curves.first_nan[2:]).all()
    for at in (0, 1):
        toys.assert_equal(numbers(done, at), numbers(alone, at))


def test_settings_are_paired_and_named_by_axes(task):
    sweep = {"learning_rate": [0.1, 0.01], "momentum": [0.5, 0.0, 0.9]}
    done = lj.train(task, sgd, STEPS, (4, 2), sweep=sweep, validate_every=3, keep=(0,))
    start = done.kept.params["dense_0"]["kernel"].reshape(6, 2, -1)
    assert (start == start[:1]).all() and (start[:, 0] != start[:, 1]).any()
    assert done.hyper["learning_rate"].tolist() == pytest.approx([0.1] * 6 + [0.01] * 6)
    found = done.dataset(note="said")
    assert found["train_loss"].dims == ("learning_rate", "momentum", "replica", "step")
    assert found["first_nan"].dims == ("learning_rate", "momentum", "replica")
    assert found["momentum"].values.tolist() == [0.5, 0.0, 0.9]
    assert found["replica"].values.tolist() == [4, 2]
    assert found["step"].values.tolist() == [3, 6]
    assert found.attrs["note"] == "said"
    one = found["train_loss"].sel(learning_rate=0.01, momentum=0.5, replica=2)
    np.testing.assert_array_equal(one, done.curves.values["train_loss"][7])


def test_runs_of_a_caller_have_an_axis_of_runs(task):
    own = keys.of_replicas(0, np.array([0, 0, 1]))
    hyper = {"learning_rate": [0.1, 0.01, 0.1]}
    runs = training.fresh(task, optax.adam, own.init, own.noise, hyper=hyper)
    both = training.concatenate([runs, runs])
    assert both.hyper["learning_rate"].shape == (6,)
    done = training.train(task, optax.adam, runs, STEPS, every=3)
    found = done.dataset()
    assert found["train_loss"].dims == ("run", "step")
    assert found["learning_rate"].dims == ("run",)
    plain = training.fresh(task, optax.adam(0.1), own.init, own.noise)
    with pytest.raises(ValueError, match=r"runs\[1\].hyper=\[\]; it must be \['learn"):
        training.concatenate([runs, plain])


def test_other_values_compile_nothing(task, monkeypatch):
    compiled, built = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: "backend_compile" in event and compiled.append(event)
    )
    first = segment.train_rows

    def counted(*parts):
        built.append(parts)
        return first(*parts)

    monkeypatch.setattr(segment, "train_rows", counted)
    sweep = {"learning_rate": [0.01, 0.02]}
    plan = imp.Plan(steps=STEPS, rewind_step=2, validate_every=3)
    lj.train(task, sgd, STEPS, 2, sweep=sweep)
    imp.run(task, sgd, plan, levels=1, replicas=2, sweep=sweep)
    assert compiled and len(built) == 2  # of segments of other lengths
    before = len(compiled)
    sweep = {"learning_rate": [0.3, 0.5]}
    lj.train(task, sgd, STEPS, 2, sweep=sweep)
    imp.run(task, sgd, plan, levels=1, replicas=2, sweep=sweep)
    assert len(compiled) == before and len(built) == 2


# --- studies --------------------------------------------------------------------------


def assert_same_chain(study, at, alone):
    """A chain of a study is the only one of another, in all that came out."""
    for name, (axes, x) in study.records.items():
        if axes[0] == "chain":
            np.testing.assert_array_equal(x[at], alone.records[name][1][0], name)
    own = trees.rows(trees.host((study.masks, study.rewound)), at)
    other = trees.rows(trees.host((alone.masks, alone.rewound)), 0)
    toys.assert_equal(own, other)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        pytest.param(sgd, {"rewind_step": 2}, id="k=2"),
        pytest.param(sgd, {}, id="k=0", marks=pytest.mark.slow),
        pytest.param(
            optax.adam,
            {"rewind_step": 2, "level_optimizer": "rewind"},
            id="optimizer rewound",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            cosine,
            {"rewind_step": 2, "chains": (imp.Chain(retrain="finetune"),)},
            id="fine-tuned",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_each_setting_of_a_study_is_a_study_alone(make, changes, task):
    plan = imp.Plan(steps=STEPS, validate_every=3, **changes)
    sweep = {"learning_rate": [0.01, 0.1]}
    if make is cosine:
        sweep |= {"momentum": [0.5, 0.9]}
    given = dict(levels=2, replicas=(1, 3))
    study = imp.run(task, make, plan, **given, sweep=sweep)
    own = dict(study.plan.chains[-1].hyper)
    plain = imp.run(task, make(**own), plan, **given)
    assert_same_chain(study, -1, plain)
    if not changes:
        one = {name: [value] for name, value in own.items()}
        alone = imp.run(task, make, plan, **given, sweep=one)
        assert_same_chain(study, -1, alone)


@pytest.mark.slow
def test_every_setting_retrains_the_same_tickets(task):
    plan = imp.Plan(steps=STEPS, rewind_step=2, validate_every=3)
    given = dict(level=1, replicas=(0, 1))
    dense = imp.tickets_of(imp.run(task, sgd(0.1), plan, levels=0, replicas=2))
    found = imp.tickets_of(imp.run(task, sgd(0.1), plan, levels=1, replicas=2))
    sweep = {"learning_rate": [0.03, 0.1]}
    study = imp.retrain(task, sgd, plan, found, dense=dense, **given, sweep=sweep)
    plain = imp.retrain(task, sgd(0.03), plan, found, dense=dense, **given)
    assert_same_chain(study, 0, plain)
    assert study.dataset()["test_error"].sizes["learning_rate"] == 2
    # The plan of its outcome says all; each chain has its own tickets then.
    again = imp.retrain(
        *(task, sgd, study.plan, [*found, *found]), dense=[*dense, *dense], **given
    )
    toys.assert_same_records(again.records, study.records)


@pytest.mark.slow
def test_a_sweep_unfolds_the_axis_of_chains(task):
    chains = (imp.Chain("global"), imp.Chain("layerwise", scope="layerwise"))
    plan = imp.Plan(steps=STEPS, chains=chains, arms=("ticket",), validate_every=6)
    sweep = {"weight_decay": [0.0, 0.1], "learning_rate": [0.01, 0.02, 0.03]}
    study = imp.run(task, sgd, plan, levels=1, replicas=1, sweep=sweep)
    found = study.dataset()
    axes = ("chain", "weight_decay", "learning_rate", "arm", "replica", "level")
    assert found["test_loss"].dims == axes
    assert found["chain"].values.tolist() == ["global", "layerwise"]
    assert {name: found[name].values.tolist() for name in sweep} == sweep
    at = dict(chain="layerwise", weight_decay=0.1, learning_rate=0.02)
    place = 6 + 3 + 1
    assert study.plan.chains[place].hyper == tuple(list(at.items())[1:])
    np.testing.assert_array_equal(
        found["test_loss"].sel(at), study.records["test_loss"][1][place]
    )
    ticket = imp.tickets_of(study)[place][0]
    assert ticket.metadata["chain"]["name"].endswith(
        "weight_decay=0.1, learning_rate=0.02"
    )
    assert ticket.metadata["chain"]["hyper"] == dict(list(at.items())[1:])
    plain = imp.run(task, sgd(0.01), plan, levels=0, replicas=1).dataset()
    assert plain["test_loss"].dims == ("chain", "arm", "replica", "level")


def test_a_plan_is_swept_once_and_whole():
    plan = imp.Plan(steps=4, chains=(imp.Chain("a"), imp.Chain("b", one_shot=True)))
    swept = imp.swept(plan, {"rate": [1, 1e-5], "x": [0.1]})
    names = ["a, rate=1, x=0.1", "a, rate=1e-05, x=0.1"]
    assert [chain.name for chain in swept.chains[:2]] == names
    assert imp.check(swept) == swept
    assert swept.procedures == plan.chains and plan.procedures == plan.chains
    assert swept.sweep == {"rate": (1.0, 1e-5), "x": (0.1,)} and plan.sweep == {}
    with pytest.raises(ValueError, match="sweep=.*; it must be None: the plan has"):
        imp.swept(swept, {"y": [1]})
    a, b, c, d = swept.chains
    for chains in ((a, b, c), (a, c, b, d), (a, b, c, d, imp.Chain())):
        with pytest.raises(ValueError, match="chains=.*; it must be all chains at all"):
            imp.check(dataclasses.replace(swept, chains=chains))


# --- folders --------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_an_interrupted_sweep_goes_on_and_a_folder_refuses_another(task, tmp_path):
    plan = imp.Plan(steps=STEPS, rewind_step=2, validate_every=3)
    sweep = {"learning_rate": [0.01, 0.1]}

    def kill(progress):
        if progress.level == 1 and progress.done == 3:
            raise Killed

    def run(sweep, folder=None, watch=None):
        where = lj.Where(folder=folder, checkpoint_seconds=0, watch=watch)
        return imp.run(task, sgd, plan, levels=1, replicas=1, sweep=sweep, where=where)

    with pytest.raises(Killed):
        run(sweep, tmp_path, kill)
    with pytest.raises(ValueError, match="plan.chains=.*learning_rate=0.1.*, not"):
        run({"learning_rate": [0.01, 0.2]}, tmp_path)
    with pytest.raises(ValueError, match="another optimizer"):
        run({"momentum": [0.5, 0.9], "learning_rate": [0.1]}, tmp_path)
    found, whole = run(sweep, tmp_path), run(sweep)
    toys.assert_same_records(found.records, whole.records)
    path = imp.ticket_path(tmp_path, "imp, learning_rate=0.1", 1, 0)
    toys.assert_equal(lj.tickets.load(path).mask, imp.tickets_of(whole)[1][0].mask)


def test_a_folder_of_runs_refuses_other_values_by_name(task, tmp_path):
    where = lj.Where(folder=tmp_path)
    sweep = {"learning_rate": [0.01, 0.1]}
    first = lj.train(task, optax.adam, 4, 1, sweep=sweep, where=where)
    again = lj.train(task, optax.adam, 4, 1, sweep=sweep, where=where)
    toys.assert_equal(first.state, again.state)
    with pytest.raises(
        ValueError, match=r"hyper.learning_rate=\[0.01, 0.1\], not \[0.01, 0.2\]"
    ):
        other = {"learning_rate": [0.01, 0.2]}
        lj.train(task, optax.adam, 4, 1, sweep=other, where=where)


# --- optimizers of traced values ------------------------------------------------------


def test_what_is_no_function_of_the_names_is_refused(task):
    def needs(learning_rate, momentum):
        return sgd(learning_rate, momentum)

    def chooses(rate):
        return sgd(rate) if rate > 0.1 else optax.adam(rate)

    def linear(rate, steps):
        return optax.sgd(optax.linear_schedule(0.0, rate, steps))

    for make, sweep, message in (
        (optax.adam, None, "tx=.*adam; it must be an optax.Gradient.*needs a sweep"),
        (
            sgd,
            {"lr": [1]},
            "sweep='lr'; it must be a parameter of tx=sgd.learning_rate",
        ),
        (needs, {"momentum": [1]}, "sweep: there must be values of 'learning_rate'"),
        (chooses, {"rate": [1]}, "tx=.*chooses; it must be one function for all sett"),
        (linear, {"rate": [1], "steps": [2]}, "tx=.*linear; it must be one function"),
        (lambda x: x, {"x": [1]}, "tx=.*; it must be an optax.GradientTransformation"),
        (optax.adafactor, {"learning_rate": [1]}, "tx=.*surviving weights alone"),
        (optax.inject_hyperparams, {"inner_factory": [1]}, "tx=.*one function for all"),
    ):
        with pytest.raises(ValueError, match=message):
            lj.train(task, make, 4, 1, sweep=sweep)


def test_no_traced_value_outlives_its_trace():
    params = {"w": jnp.ones((3, 2))}
    mask = {"w": jnp.arange(6).reshape(3, 2) > 1}

    def step(rate, count):
        tx = settings.at(optax.inject_hyperparams(sgd), {"learning_rate": rate})
        state = training.start(tx, lj.Network(params, ()), (), mask, count).opt_state
        updates, state = transforms.masked(tx).update(params, state, params, mask=mask)
        return updates, transforms.mask_state(tx, state, mask)

    with jax.checking_leaks():
        updates, _ = jax.jit(step)(jnp.float32(0.1), jnp.int32(3))
    other, _ = jax.jit(step)(jnp.float32(0.2), jnp.int32(3))
    alive = np.asarray(mask["w"])
    np.testing.assert_allclose(other["w"][alive], 2 * updates["w"][alive], rtol=1e-6)


@pytest.mark.parametrize("kept", [False, True])
def test_counters_stand_where_those_of_the_same_values_do(kept):
    def injected(peak, warmup):
        return optax.inject_hyperparams(optax.adam)(
            lambda step: peak * jnp.minimum(1.0, step / warmup)
        )

    params, values = {"w": jnp.ones((3, 2))}, {"peak": 0.3, "warmup": 8.0}
    traced = {name: jnp.float32(x) for name, x in values.items()}

    def there(values, step):
        tx = settings.at(injected, values)
        state = tx.init(params)
        return transforms.at_schedule_step(tx, state, params, step, kept=kept)

    found = jax.jit(there)(traced, jnp.int32(5))
    tx = injected(**values)
    state = tx.init(params)
    for _ in range(5):
        state = tx.update({"w": jnp.zeros((3, 2))}, state, params)[1]
    assert float(found.hyperparams["learning_rate"]) == pytest.approx(0.3 * 4 / 8)
    toys.assert_close(found.hyperparams, state.hyperparams, 1e-7)
    assert int(found.count) == 5


def test_values_promote_no_dtype():
    params = {"w": jnp.ones((3, 2), jnp.bfloat16)}

    def step(rate):
        tx = settings.at(sgd, {"learning_rate": rate, "momentum": rate})
        state = tx.init(params)
        return tx.update(params, state, params)

    updates, state = jax.eval_shape(step, jnp.float32(0.1))
    dtypes = {x.dtype for x in jax.tree.leaves((updates, state))}
    assert dtypes <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.int32)}


def with_a_rate():
    """The optimizers of optax that are functions of a learning rate alone."""
    for name in sorted(set(dir(optax))):
        make = getattr(optax, name)
        if name[0] == "_" or not inspect.isfunction(make):
            continue
        parameters = inspect.signature(make).parameters.values()
        needed = {p.name for p in parameters if p.default is p.empty}
        if "learning_rate" in {p.name for p in parameters} and needed <= {
            "learning_rate"
        }:
            yield name


@pytest.mark.slow
@pytest.mark.parametrize("name", [*with_a_rate()])
def test_every_optimizer_of_a_learning_rate_is_swept(name, task):
    make, rate = getattr(optax, name), 0.02
    sweep = {"learning_rate": [0.5, rate]}
    try:
        plain = lj.train(task, make(rate), 3, 1)
    except ValueError as error:
        with pytest.raises(ValueError) as raised:
            lj.train(task, make, 3, 1, sweep=sweep)
        assert type(error) is type(raised.value)
        return
    done = lj.train(task, make, 3, 1, sweep=sweep)
    toys.assert_close(numbers(done, 1), numbers(plain, 0), 1e-6)


def test_procedures_are_the_same_objects_each_time():
    """Programs of pruning are found by them at once, at every level."""
    plan = imp.Plan(steps=10, chains=(imp.Chain("a"), imp.Chain("b")))
    for own in (plan, imp.swept(plan, {"learning_rate": [0.1, 0.2]})):
        assert [chain.name for chain in own.procedures] == ["a", "b"]
        again = own.procedures
        assert all(a is b for a, b in zip(own.procedures, again, strict=True))
