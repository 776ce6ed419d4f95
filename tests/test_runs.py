"""The one runner: many runs through time, whatever happens on the way."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import dynamic, keys, schedules, training
from lottery_jax.execution import Execution
from lottery_jax.storage import checkpoints

STOP, EVERY, NUMBER = 12, 4, 5
TX = optax.sgd(toys.SCHEDULE, momentum=0.9)
JOINS, OFFSET = (0, 6, 0, 3, 6), (0, 0, 2, 0, 3)
KEEP = np.array([[0, 8], [6, 8], [4, 12], [3, 4], [6, 7]])
TWO, ONE = Execution(2, 1), Execution(1, 1)


@functools.cache
def task():
    return toys.classification(lj.models.make("mlp-6", 4))


@functools.cache
def runs():
    """Five runs of their own initialisation and noise that join at three steps."""
    own = keys.of_replicas(0, range(NUMBER))
    found = training.fresh(task(), TX, own.init, own.noise, where=lj.Where(ONE))
    state = lj.trees.host(found.state)
    mask = jax.tree.map(lambda p: np.abs(p) > 0.1, state.params)
    state = state._replace(params=lj.masks.apply(mask, state.params), mask=mask)
    state = lj.trees.host(state)
    return training.Runs(state, own.noise, np.array(JOINS), np.array(OFFSET))


def some(index):
    index = np.array(index)
    found = runs()
    return training.Runs(
        lj.trees.rows(found.state, index),
        found.noise[index],
        found.joins[index],
        found.offset[index],
    )


def train(of, stop=STOP, **options):
    defaults = {"every": EVERY, "validate": True}
    return training.train(task(), TX, of, stop, **defaults | options)


def outcome(done):
    """All numbers, in the order of the runs, on the host."""
    best = lj.trees.rows(lj.trees.host(done.best), done.places)
    return done.state, best, done.curves, done.kept


@functools.cache
def whole():
    """What nothing interrupts, on two devices."""
    return train(runs(), keep=KEEP, where=lj.Where(TWO))


# --- independence ---------------------------------------------------------------------


def test_segments_of_any_length_give_the_same_bits():
    for marks in ((1, 2, 5, 11), range(STOP)):
        done = train(runs(), keep=KEEP, marks=marks, where=lj.Where(TWO))
        toys.assert_equal(outcome(done), outcome(whole()))


def test_one_device_gives_the_same_bits_as_two():
    done = train(runs(), keep=KEEP, where=lj.Where(ONE))
    toys.assert_equal(outcome(done), outcome(whole()))
    # The devices share what there is to do, and rows come back in the order of the runs.
    assert whole().places.tolist() != list(range(NUMBER))
    assert len(whole().rows.params["head"]["bias"]) == 6


@pytest.mark.parametrize("index", [(3,), (4, 1)])
def test_a_run_alone_is_itself_among_others(index):
    done = train(some(index), keep=KEEP[list(index)], where=lj.Where(ONE))
    state, best, curves, kept = outcome(whole())
    take = functools.partial(lj.trees.rows, index=np.array(index))
    toys.assert_equal(done.state, take(state))
    toys.assert_equal(done.kept, take(kept))
    toys.assert_equal(outcome(done)[1], take(best))
    toys.assert_equal(done.curves.values, take(curves.values))
    toys.assert_equal(done.networks, take(whole().networks))


def test_what_is_kept_is_what_a_run_that_stops_there_becomes():
    for stop in (8, 4):
        at, column = np.nonzero((stop == KEEP) & (np.array(JOINS)[:, None] < stop))
        done = train(some(at), stop, where=lj.Where(ONE))
        kept = jax.tree.map(lambda x, i=(at, column): x[i], whole().kept)
        toys.assert_equal(done.state, kept)
    # At the step where it joins, it is what it began with; at the last, what it became.
    kept, first = whole().kept, runs().state
    for run in (0, 1, 3, 4):
        toys.assert_equal(
            jax.tree.map(lambda x, i=run: x[i, 0], kept), lj.trees.rows(first, run)
        )
    last = jax.tree.map(lambda x: x[2, 1], kept)
    toys.assert_equal(last, lj.trees.rows(whole().state, 2))


def test_curves_hold_what_was_trained_and_nothing_else():
    curves = whole().curves
    assert curves.steps.tolist() == [4, 8, 12]
    trained = curves.steps[None] > np.array(JOINS)[:, None]
    for name in ("train_loss", "train_error", "validation_loss", "validation_error"):
        np.testing.assert_array_equal(np.isfinite(curves.values[name]), trained)
    assert np.isnan(curves.first_nan).all()
    best = outcome(whole())[1]
    low = np.nanmin(curves.values["validation_loss"], axis=1)
    np.testing.assert_array_equal(best.loss, low)
    at = np.nanargmin(curves.values["validation_loss"], axis=1)
    np.testing.assert_array_equal(best.step, curves.steps[at])
    again = training.evaluate(task(), best.network, "validation", where=lj.Where(ONE))
    np.testing.assert_allclose(again["loss"], low, rtol=1e-6)


def test_the_mean_of_a_column_is_that_of_its_steps():
    of = some((0, 2))
    short = train(of, every=1, where=lj.Where(ONE)).curves.values["train_loss"]
    means = [np.mean(column, axis=1) for column in np.split(short, 3, axis=1)]
    found = whole().curves.values["train_loss"][[0, 2]]
    np.testing.assert_allclose(found, np.stack(means, axis=1), rtol=1e-5)


def test_an_offset_moves_the_position_in_the_noise():
    """Six steps later in the noise is the same as joining six steps later."""
    first = some((0, 2))
    moved = first._replace(joins=np.array([0, 0]), offset=np.array([6, 6]))
    later = first._replace(joins=np.array([6, 6]), offset=np.array([0, 0]))
    found = train(moved, 4, where=lj.Where(ONE))
    toys.assert_equal(found.state, train(later, 10, where=lj.Where(ONE)).state)
    plain = train(first._replace(offset=np.array([0, 0])), 4, where=lj.Where(ONE))
    assert (
        plain.state.params["head"]["kernel"] != found.state.params["head"]["kernel"]
    ).any()


def test_a_run_that_breaks_harms_no_other_and_is_reported():
    fragile = toys.fragile()
    own = keys.of_replicas(0, range(3))
    found = training.fresh(fragile, TX, own.init, own.noise, where=lj.Where(ONE))
    state = lj.trees.host(found.state)

    def broken_at(*steps):
        bad = state._replace(model_state={"bad_step": np.array(steps, np.int32)})
        of = found._replace(state=bad)
        return training.train(
            fragile, TX, of, STOP, every=EVERY, validate=True, where=lj.Where(ONE)
        )

    healthy, sick = broken_at(-1, -1, -1), broken_at(-1, 6, -1)
    np.testing.assert_array_equal(sick.curves.first_nan, [np.nan, 6, np.nan])
    assert np.isnan(healthy.curves.first_nan).all()
    for name, values in sick.curves.values.items():
        np.testing.assert_array_equal(
            values[[0, 2]], healthy.curves.values[name][[0, 2]]
        )
    assert np.isfinite(sick.curves.values["train_loss"][1]).tolist() == [1, 1, 0]
    # The mean of its last column is that of the steps before.
    assert outcome(sick)[1].step[1] == 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(outcome(sick)[1].network))


# --- interruptions --------------------------------------------------------------------


class Killed(BaseException):
    """Not an error that anybody would catch."""


def killer(at):
    """Who kills the run that it watches, at the n-th thing that it is told."""
    told = itertools.count()

    def watch(progress):
        if next(told) == at:
            raise Killed

    return watch


def killed(folder, at, execution=TWO, **options):
    with pytest.raises(Killed):
        train(
            runs(),
            keep=KEEP,
            where=lj.Where(execution, folder, 0, killer(at)),
            **options,
        )


@pytest.mark.parametrize("execution", [TWO, ONE, None], ids=["same", "fewer", "stored"])
def test_a_run_killed_anywhere_ends_in_the_same_bits(tmp_path, execution):
    told = []
    train(runs(), keep=KEEP, where=lj.Where(TWO, watch=told.append))
    assert [p.done for p in told] == [0, 3, 4, 6, 7, 8, 12]
    for at in range(len(told)):
        folder, seen = tmp_path / str(at), []
        killed(folder, at)
        where = lj.Where(execution, folder, 0, seen.append)
        done = train(runs(), keep=KEEP, where=where)
        toys.assert_equal(outcome(done), outcome(whole()))
        # Nothing before the last whole column was trained twice.
        stored = 8 if at > 5 else 4 if at > 2 else 0
        assert (seen[0].done, seen[0].resumed) == (stored, stored > 0)
        changed = execution == ONE and stored > 0
        assert done.changes == ((training.Change(stored, ONE),) if changed else ())


def test_killed_again_and_again(tmp_path):
    for at in (3, 2, 2):
        killed(tmp_path, at)
    done = train(runs(), keep=KEEP, where=lj.Where(ONE, tmp_path, 0))
    toys.assert_equal(outcome(done), outcome(whole()))
    # What is done is there at once, and is not written again.
    at, seen = checkpoints.latest(tmp_path), []
    done = train(runs(), keep=KEEP, where=lj.Where(ONE, tmp_path, 0, seen.append))
    toys.assert_equal(outcome(done), outcome(whole()))
    assert [p.done for p in seen] == [12] and checkpoints.latest(tmp_path) == at


def test_a_damaged_checkpoint_is_fallen_back_from(tmp_path):
    killed(tmp_path, 6)
    newest = max(p for p in tmp_path.iterdir() if p.name.isdecimal())
    leaves = newest / "leaves.bin"
    leaves.write_bytes(leaves.read_bytes()[:-7])
    seen = []
    with pytest.warns(RuntimeWarning, match="falling back to checkpoint"):
        done = train(runs(), keep=KEEP, where=lj.Where(ONE, tmp_path, 0, seen.append))
    assert seen[0].done == 4
    toys.assert_equal(outcome(done), outcome(whole()))


def changed_runs(**fields):
    return runs()._replace(**fields)


OTHERS = {
    "stop": lambda: (runs(), {"stop": 16}),
    "every": lambda: (runs(), {"every": 2}),
    "joins": lambda: (changed_runs(joins=np.zeros(NUMBER, int)), {}),
    "offset": lambda: (changed_runs(offset=np.zeros(NUMBER, int)), {}),
    "keep": lambda: (runs(), {"keep": KEEP + (KEEP == 8)}),
    "validate": lambda: (runs(), {"validate": False}),
    "rule": lambda: (runs(), {"rule": dynamic.gradual_magnitude(0.5, 0, 8, 4)}),
    "noise": lambda: (changed_runs(noise=runs().noise[::-1]), {}),
}


@pytest.mark.parametrize("field", OTHERS)
def test_a_folder_with_other_runs_is_refused(tmp_path, field):
    killed(tmp_path, 4)
    of, options = OTHERS[field]()
    with pytest.raises(ValueError, match=f"holds other runs: (another )?{field}[=;]"):
        train(of, **{"keep": KEEP, "where": lj.Where(ONE, tmp_path)} | options)


def test_other_weights_or_another_kind_of_checkpoint_are_refused(tmp_path):
    killed(tmp_path / "runs", 4)
    params = jax.tree.map(np.copy, runs().state.params)
    params["head"]["bias"][1, 2] += 1
    other = changed_runs(state=runs().state._replace(params=params))
    with pytest.raises(ValueError, match="holds other runs: another start.params;"):
        train(other, keep=KEEP, where=lj.Where(ONE, tmp_path / "runs"))
    checkpoints.save(tmp_path / "else", {"x": np.zeros(3)}, {"something": 1})
    with pytest.raises(ValueError, match="holds other runs: kind=missing, not runs;"):
        train(runs(), keep=KEEP, where=lj.Where(ONE, tmp_path / "else"))


# --- what is asked for ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "options", "message"),
    [
        ({}, {"stop": 0}, "stop=0; it must be 1 or more"),
        ({}, {"every": -1}, "every=-1; it must be 1 or more"),
        ({"joins": np.array([0, 0, 0, 0, 12])}, {}, "joins=12; runs must start in"),
        ({"joins": np.array([0, -1, 0, 0, 0])}, {}, "joins=-1; runs must start in"),
        ({}, {"keep": [-1]}, "keep has shape"),
        ({}, {"keep": np.zeros((4, 1), int)}, r"keep has shape \(4, 1\)"),
        (
            {},
            {"rule": dynamic.gradual_magnitude(0.5, 0, 12, 4)},
            "rule: acts at step 12; it must end before stop=12",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(of, options, message):
    with pytest.raises(ValueError, match=message):
        train(changed_runs(**of), **{"where": lj.Where(ONE)} | options)


def test_a_state_for_each_noise_key():
    short = lj.trees.rows(runs().state, slice(3))
    with pytest.raises(ValueError, match="runs: 3 states for 5 noise keys"):
        train(changed_runs(state=short), where=lj.Where(ONE))


# --- metrics of any name --------------------------------------------------------------


def test_metrics_have_the_names_that_the_task_gives_them():
    inner = task()

    def loss(*args):
        value, (model_state, stream, metrics) = inner.loss(*args)
        found = {"perplexity": jnp.exp(value), "by_class": jnp.ones(4)}
        return value, (model_state, stream, found)

    def evaluate(*args):
        found = inner.evaluate(*args)
        accuracy = 1 - found["error"]
        return {
            "loss": found["loss"],
            "accuracy": accuracy,
            "f1": accuracy**2,
            "confusion": jnp.ones((4, 4)),
        }

    own = inner._replace(loss=loss, evaluate=evaluate)
    done = lj.train(own, TX, STOP, 2, validate_every=EVERY, where=lj.Where(ONE))
    values = done.curves.values
    assert values.keys() == {
        *("train_loss", "train_perplexity"),
        *("validation_loss", "validation_accuracy", "validation_f1"),
    }
    plain = lj.train(
        inner, TX, STOP, 2, validate_every=EVERY, where=lj.Where(ONE)
    ).curves
    error = plain.values["validation_error"]
    np.testing.assert_allclose(values["validation_accuracy"], 1 - error, atol=1e-6)
    np.testing.assert_allclose(
        values["validation_f1"], values["validation_accuracy"] ** 2, rtol=1e-6
    )
    # A mean over the steps, of each under its own name.
    assert (values["train_perplexity"] >= np.exp(values["train_loss"]) - 1e-5).all()
    found = training.evaluate(own, done.networks, "test", where=lj.Where(ONE))
    assert found.keys() == {"loss", "accuracy", "f1"}


# --- a rule between segments ----------------------------------------------------------

PRUNED = dynamic.gradual_magnitude(0.15, 1, 10, 2)


def pruned(replicas, where, rule=PRUNED):
    options = {"validate_every": EVERY, "keep": range(STOP), "rule": rule}
    return lj.train(task(), TX, STOP, replicas, **options, where=where)


@functools.cache
def pruned_whole():
    return pruned(NUMBER, lj.Where(TWO))


def kernels(mask):
    """The prunable leaves of `[..., R]` masks, each as `[R, K, weights]`."""
    found = [mask[name]["kernel"] for name in ("dense_0", "head")]
    return np.concatenate([k.reshape(*k.shape[:-2], -1) for k in found], axis=-1)


def test_gradual_pruning_follows_the_cubic_schedule():
    done, total = pruned_whole(), 6 * (8 + 4)
    masks = np.concatenate(
        [kernels(done.kept.mask), kernels(done.state.mask)[:, None]], axis=1
    )
    # What holds at a step is what the rule did at its last step before it.
    acted = [
        max([s for s in PRUNED.steps() if s < b], default=0) for b in range(STOP + 1)
    ]
    wanted = [float(schedules.cubic(s, 1, 10, 0.15)) for s in acted]
    density = masks.mean(axis=-1)
    np.testing.assert_allclose(density, np.tile(wanted, (NUMBER, 1)), atol=0.51 / total)
    assert masks[:, -1].sum(axis=-1).tolist() == [round(0.15 * total)] * NUMBER
    np.testing.assert_allclose(
        done.curves.values["density"], density[:, [4, 8, 12]], rtol=1e-6
    )
    # Nested, and what is off the mask is 0 from then on.
    assert not (masks[:, 1:] & ~masks[:, :-1]).any()
    for m, p in zip(jax.tree.leaves(done.kept.mask), jax.tree.leaves(done.kept.params)):
        assert (p[~m] == 0).all()
    moments = jax.tree.leaves(done.state.opt_state[0].trace)
    for m, v in zip(jax.tree.leaves(done.state.mask), moments):
        assert (v[~m] == 0).all()
    # Replicas lose weights of their own.
    assert (masks[0, -1] != masks[1, -1]).any()


def test_gradual_pruning_of_a_replica_alone():
    done = pruned((1,), lj.Where(ONE))
    toys.assert_equal(done.state, lj.trees.rows(pruned_whole().state, [1]))
    np.testing.assert_array_equal(
        done.curves.values["density"], pruned_whole().curves.values["density"][[1]]
    )


@pytest.mark.parametrize("at", [2, 5, 6, 10])
def test_gradual_pruning_killed_and_resumed(tmp_path, at):
    with pytest.raises(Killed):
        pruned(NUMBER, lj.Where(TWO, tmp_path, 0, killer(at)))
    again = dynamic.gradual_magnitude(0.15, 1, 10, 2)  # made anew
    done = pruned(NUMBER, lj.Where(TWO, tmp_path, 0), again)
    toys.assert_equal(outcome(done), outcome(pruned_whole()))


def test_a_rule_stands_where_the_step_is_whatever_the_noise():
    """An offset moves the noise; the schedule of the pruning is that of the steps."""
    of = some((0, 2))._replace(joins=np.array([0, 0]), offset=np.array([0, 3]))
    rule = dynamic.gradual_magnitude(0.2, 0, 8, 4)
    done = train(of, rule=rule, where=lj.Where(ONE))
    density = done.curves.values["density"]
    first = lj.masks.density(lj.trees.rows(of.state.mask, 0))
    assert density[0, 0] <= first
    np.testing.assert_allclose(density[:, 2], 14 / 72, rtol=1e-6)
    assert (density[:, 1] > 14 / 72).all()


# --- the shortest way -----------------------------------------------------------------


def test_a_replica_among_five_is_itself_alone():
    options = {"validate_every": EVERY, "keep": (0, 4)}
    five = lj.train(task(), TX, STOP, replicas=5, **options, where=lj.Where(TWO))
    one = lj.train(task(), TX, STOP, replicas=(3,), **options, where=lj.Where(ONE))
    take = functools.partial(lj.trees.rows, index=np.array([3]))
    toys.assert_equal(one.state, take(five.state))
    toys.assert_equal(one.kept, take(five.kept))
    toys.assert_equal(one.curves.values, take(five.curves.values))
    own = keys.of_replicas(0, (3,))
    params = jax.vmap(task().init)(own.init)[0]
    toys.assert_close(jax.tree.map(lambda x: x[:, 0], one.kept.params), params)
    other = lj.train(
        task(), TX, STOP, (3,), seed=1, validate_every=EVERY, where=lj.Where(ONE)
    )
    assert (
        other.networks.params["head"]["kernel"] != one.networks.params["head"]["kernel"]
    ).any()
    with pytest.raises(ValueError, match="replicas=0; it must be 1 or more"):
        lj.train(task(), TX, STOP, replicas=0)


# --- where, and who watches -----------------------------------------------------------


def test_who_watches_sees_all_of_it():
    told = []

    def watch(progress):
        told.append((progress, progress.states()))

    done = train(runs(), where=lj.Where(TWO, watch=watch))
    first, last = told[0], told[-1]
    assert first[0][:4] == ("training", 0, STOP, NUMBER)
    toys.assert_equal(first[1], runs().state)
    assert last[0].done == STOP
    toys.assert_equal(last[1], done.state)
    toys.assert_equal(last[0].curves, done.curves)
    assert not any(p.resumed for p, _ in told)
    assert {(p.level, p.start) for p, _ in told} == {(None, 0)}


def test_where_names_folders_below_and_renames_what_is_told(tmp_path):
    told = []
    where = lj.Where(ONE, str(tmp_path), 7.0, told.append)
    assert where.store == tmp_path
    assert where.below("a").below("b").store == tmp_path / "a" / "b"
    assert where.below("a").clock is where.clock  # one budget for all
    assert where.by(TWO).execution == TWO
    assert lj.Where().below("a").store is None
    progress = lj.Progress("training", 1, 2, 3)
    where.renamed(stage="trunk", level=4).tell(progress)
    where.tell(progress)
    assert [(p.stage, p.level) for p in told] == [("trunk", 4), ("training", None)]
    lj.Where().renamed(stage="trunk").tell(progress)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds=-1.0; it must be 0 or more"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds=nan"),
        ({"execution": Execution(3, 1)}, "devices=3; it must be between 1 and 2"),
    ],
)
def test_where_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        lj.Where(**options)


def test_checkpoints_take_at_most_a_twentieth_of_the_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock, spent = lj.execution.where.Clock(), 0.0
    costs = itertools.cycle([0.1, 3.0, 0.5])
    while now < 1000:
        now += 0.7
        if clock.due(10.0):
            with clock:
                cost = next(costs)
                now, spent = now + cost, spent + cost
    assert 0.01 < spent / now < 0.06
    # Asked for at every opportunity, it is given.
    now += 0.01
    assert clock.due(0)


def test_checkpoints_are_as_rare_as_asked(tmp_path):
    train(runs(), keep=KEEP, where=lj.Where(ONE, tmp_path / "rare", 3600.0))
    assert len(list((tmp_path / "rare").iterdir())) == 1  # the end
    train(runs(), keep=KEEP, where=lj.Where(ONE, tmp_path / "often", 0))
    assert len(list((tmp_path / "often").iterdir())) == checkpoints.KEEP
    assert checkpoints.latest(tmp_path / "often") > checkpoints.latest(
        tmp_path / "rare"
    )
