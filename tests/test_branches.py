"""Branches of a trunk differ in their noise and in nothing else; instability analysis."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import toys
from hypothesis import given
from hypothesis import strategies as st

import lottery_jax as lj
from lottery_jax import connectivity, training
from lottery_jax import keys as keys_
from lottery_jax.connectivity import Measure, analysis, branches
from lottery_jax.data import Dataset
from lottery_jax.execution import Execution, Where
from lottery_jax.training import Runs
from lottery_jax.trees import rows
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TWO = Execution(2, 1, "loop", "float32")  # the default on a CPU
KEPT, STOP, EVERY = (0, 3, 6), 12, 4
EXAMPLES, BATCH, SIDE = 32, 8, 6


def images(model):
    """Four full steps an epoch, flipped and shifted images of three classes."""
    rng = np.random.default_rng(0)
    arrays = {
        split: {
            "image": rng.integers(1, 256, (number, SIDE, SIDE, 1), np.uint8),
            "label": rng.integers(0, 3, number).astype(np.int32),
        }
        for split, number in (("train", EXAMPLES), ("test", 24))
    }
    data = Dataset(arrays, 3, (SIDE, SIDE, 1), (0.5,), (0.25,), "noise")
    return lj.tasks.classification(
        data, model, batch_size=BATCH, augment=("flip", "crop"), evaluation_batch=12
    )


TX = optax.sgd(toys.SCHEDULE, momentum=0.9)


@functools.cache
def setting():
    """A task, and the keys of two replicas."""
    task = images(lj.models.make("mlp-4", 3, bias="torch"))
    return task, keys_.of_replicas(0, (0, 1))


def grow(steps=KEPT, **where):
    task, keys = setting()
    where = Where(TWO, checkpoint_seconds=0.0, **where)
    return branches.train_trunk(
        task, TX, keys.init, keys.noise, steps, every=EVERY, where=where
    )


@functools.cache
def trunk():
    return grow()


@functools.cache
def plainly(stop):
    """The replicas' states after `stop` steps of one segment of `train_steps`."""
    return _plain_program()(stop)


@functools.cache
def _plain_program():
    task, keys = setting()

    def first(init):
        params, model_state, stream = task.init(init)
        mask = lj.masks.ones_like(params)
        return training.start(TX, Network(params, model_state), stream, mask)

    def train(data, state, noise, stop, active):
        bound = task._replace(data=data)
        return training.train_steps(
            bound, TX, state, noise, 0, stop, capacity=STOP, active=active
        )[0]

    # `active` is traced as for branches: XLA fuses a loop outside of `cond` otherwise,
    # which rounds otherwise.
    program = TWO.parallel(train, (None, 0, 0, None, 0))
    init, noise, active = TWO.place((keys.init, keys.noise, np.ones(2, bool)))
    data = TWO.share(task.data)
    start = TWO.parallel(first, (0,))(init)
    return lambda stop: jax.tree.map(
        np.asarray, program(data, start, noise, np.int32(stop), active)
    )


# --- trunks ---------------------------------------------------------------------------


def test_a_trunk_keeps_the_states_of_plain_training():
    found = trunk()
    assert found.steps == KEPT
    for step in KEPT:
        toys.assert_equal(found.at(step), plainly(step))
    moved = [
        (np.asarray(a) != b).any()
        for a, b in zip(*(jax.tree.leaves(plainly(k).params) for k in (3, 6)))
    ]
    assert all(moved)


def test_the_steps_of_a_trunk_may_come_in_any_order():
    found = grow((6, 3, 3))
    assert found.steps == (3, 6)
    for step in found.steps:
        toys.assert_equal(found.at(step), trunk().at(step))


def test_a_trunk_of_initialisations_alone_trains_nothing():
    found = grow((0,))
    assert found.steps == (0,)
    toys.assert_equal(found.at(0), trunk().at(0))


def test_a_step_that_was_not_kept():
    with pytest.raises(ValueError, match=r"step=4; .* kept, \(0, 3, 6\)"):
        trunk().at(4)


@pytest.mark.parametrize("steps", [(), (3, -1)])
def test_steps_that_make_no_trunk(steps):
    with pytest.raises(ValueError, match=r"steps=\(.*0 or more"):
        grow(steps)


class Killed(Exception):
    pass


def kill_at(step):
    """A watcher that raises once training gets there."""

    def watch(progress):
        if progress.done >= step:
            raise Killed

    return watch


def test_an_interrupted_trunk_goes_on_where_it_was(tmp_path):
    with pytest.raises(Killed):
        grow(folder=tmp_path, watch=kill_at(6))
    seen = []
    found = grow(folder=tmp_path, watch=seen.append)
    toys.assert_equal(found, trunk())
    first, *later = seen
    assert (first.stage, first.done, first.total, first.rows) == ("trunk", 4, 6, 2)
    assert first.resumed and [p.done for p in later] == [6]
    assert not any(p.resumed for p in later)
    again = grow(folder=tmp_path, watch=seen.append)
    toys.assert_equal(again, trunk())
    assert [p.done for p in seen] == [4, 6, 6]  # what is complete is read
    # Nor is it taken for a trunk that was kept elsewhere on its way.
    for other in ((0, 6), (0, 4, 6)):
        with pytest.raises(ValueError, match=r"keep=.*0, 3, 6.*choose another folder"):
            grow(other, folder=tmp_path)


# --- branches -------------------------------------------------------------------------


def test_branches_start_from_the_trunks_states():
    at = branches.layout(trunk(), 3)
    runs = branches.of_trunk(trunk(), setting()[1].noise, 3)
    grid = list(itertools.product(KEPT, range(2), range(3)))
    assert list(zip(*(x.tolist() for x in at))) == grid
    assert runs.joins.tolist() == at.step.tolist() and not runs.offset.any()
    for row, (step, r, branch) in enumerate(grid):
        toys.assert_equal(rows(runs.state, row), rows(plainly(step), r))
        own = keys_.branch_keys(setting()[1].noise[r], 3)[branch]
        toys.assert_equal(runs.noise[row], own)


def test_no_branch_is_refused():
    with pytest.raises(ValueError, match="number=0"):
        branches.layout(trunk(), 0)


def train(runs, stop=STOP, every=EVERY, task=None, execution=TWO, **where):
    return training.train(
        task or setting()[0],
        TX,
        runs,
        stop,
        every=every,
        stage="branches",
        where=Where(execution, checkpoint_seconds=0.0, **where),
    )


def two_each():
    """Two branches of every state, each under its own noise."""
    return branches.of_trunk(trunk(), setting()[1].noise, 2)


@functools.cache
def same_noise():
    """Two branches of every state, both under the trunk's own noise."""
    noise = setting()[1].noise[branches.layout(trunk(), 2).replica]
    return train(two_each()._replace(noise=noise))


@functools.cache
def own_noise():
    return train(two_each())


def test_under_the_trunks_noise_a_branch_is_the_trunk():
    expected, found = plainly(STOP).network, same_noise().networks
    for row, r in enumerate(branches.layout(trunk(), 2).replica):
        toys.assert_equal(rows(found, row), rows(expected, r))


def test_branches_of_one_state_end_apart_through_their_noise_alone():
    runs = two_each()
    for row in range(0, len(runs.joins), 2):
        toys.assert_equal(rows(runs.state, row), rows(runs.state, row + 1))
        first, second, trunks = (
            jax.tree.leaves(rows(networks, row + shift).params)
            for networks, shift in (
                (own_noise().networks, 0),
                (own_noise().networks, 1),
                (same_noise().networks, 0),
            )
        )
        for x, y, z in zip(first, second, trunks):
            assert (x != y).any() and (x != z).any() and (y != z).any()
    # One replica's branches of all rewind steps share their noise.
    assert len(np.unique(jax.random.key_data(runs.noise), axis=0)) == 4


def test_noise_keys_are_all_different():
    _, keys = setting()
    many = jax.vmap(lambda key: keys_.branch_keys(key, 5))(keys.noise)
    roles = jax.vmap(lambda key: jnp.stack(keys_.noise_keys(key)))(keys.noise)
    everything = [many.reshape(-1), roles.reshape(-1), keys.noise, keys.init]
    data = jax.random.key_data(jnp.concatenate(everything))
    assert len(np.unique(data, axis=0)) == len(data) == 10 + 10 + 2 + 2
    fewer = keys_.branch_keys(keys.noise[1], 2)
    np.testing.assert_array_equal(
        jax.random.key_data(fewer), jax.random.key_data(many[1, :2])
    )


def test_branches_see_other_batches_in_another_order():
    task, keys = setting()
    noise = keys_.branch_keys(keys.noise[0], 3)
    orders = [
        np.stack(
            [toys.order_of(task, keys_.noise_keys(key).order, i) for i in range(3)]
        )
        for key in noise
    ]
    whole = np.arange(EXAMPLES)
    for order in orders:
        for epoch in order:
            np.testing.assert_array_equal(np.sort(epoch.ravel()), whole)
    for a, b in itertools.combinations(orders, 2):
        # Not one step of twelve has the same examples, in whatever order.
        for x, y in zip(a.reshape(-1, BATCH), b.reshape(-1, BATCH)):
            assert set(x.tolist()) != set(y.tolist())


def test_branches_see_the_same_example_otherwise():
    task, keys = setting()
    same = jnp.arange(BATCH)

    @quick.jit
    def batch(noise, step):
        key = keys_.noise_keys(noise).batch
        return task.batch(task.data, same, key, step)

    noise = keys_.branch_keys(keys.noise[0], 2)
    one, other = (
        np.stack([batch(key, step)["image"] for step in range(3)]) for key in noise
    )
    differ = (one != other).any(axis=(2, 3, 4))
    # One of 162 views each: nearly all differ, but never all of nothing.
    assert differ.mean() > 0.8
    np.testing.assert_array_equal(
        batch(noise[0], 2)["image"], batch(noise[0], 2)["image"]
    )
    assert (one[0] != one[1]).any()  # and another at every step


def test_rows_that_join_late_are_what_they_would_be_alone():
    runs, found = two_each(), own_noise()
    late = np.flatnonzero(runs.joins == 6)
    alone = train(rows(runs, late))
    toys.assert_equal(alone.networks, rows(found.networks, late))
    toys.assert_equal(alone.curves.values, rows(found.curves.values, late))
    toys.assert_equal(alone.curves.first_nan, found.curves.first_nan[late])


def test_curves_are_means_over_the_steps_a_row_trained():
    found = own_noise()
    loss = found.curves.values["train_loss"]
    assert loss.shape == (12, STOP // EVERY)
    assert np.isnan(loss[8:, 0]).all()  # joined at step 6
    assert np.isfinite(loss[8:, 1:]).all()
    assert np.isfinite(loss[:8]).all()
    assert np.isnan(found.curves.first_nan).all()
    finer = train(two_each(), every=1)
    toys.assert_equal(finer.networks, found.networks)
    each = finer.curves.values["train_loss"].reshape(12, -1, EVERY)
    trained = np.isfinite(each).any(axis=-1)
    mean = np.nansum(each, -1)[trained] / np.isfinite(each).sum(-1)[trained]
    np.testing.assert_allclose(loss[trained], mean, rtol=1e-6)


@pytest.mark.parametrize(("step", "stored"), [(4, 0), (6, 4), (12, 8)])
def test_interrupted_branches_go_on_where_they_were(tmp_path, step, stored):
    # Segments end at 3, 4, 6, 8 and 12, at joins too; whole columns are stored.
    with pytest.raises(Killed):
        train(two_each(), folder=tmp_path, watch=kill_at(step))
    seen = []
    resumed = train(two_each(), folder=tmp_path, watch=seen.append, execution=None)
    toys.assert_equal(resumed.networks, own_noise().networks)
    toys.assert_equal(resumed.curves, own_noise().curves)
    assert resumed.execution == (TWO if stored else lj.execution.default_execution())
    assert (seen[0].done, seen[0].resumed) == (stored, stored > 0)
    last = seen[-1]
    assert (last.done, last.total, last.rows, last.resumed) == (STOP, STOP, 12, False)
    assert [p.done for p in seen] == [s for s in (0, 3, 4, 6, 8, 12) if s >= stored]
    toys.assert_equal(last.states(), own_noise().state)
    if step < STOP:
        return
    # What is complete is read and not trained.
    seen.clear()
    again = train(two_each(), folder=tmp_path, watch=seen.append)
    toys.assert_equal(again.networks, own_noise().networks)
    assert [(p.done, p.resumed) for p in seen] == [(STOP, True)]
    runs = two_each()
    for arguments, message in (
        ((runs, STOP + 1), "stop=12, not 13"),
        ((runs, STOP, 3), "every=4, not 3"),
        ((runs._replace(joins=runs.joins[::-1]),), r"joins=\[0, 0,.*not \[6, 6,"),
        ((runs._replace(noise=runs.noise[::-1]),), "another noise;"),
    ):
        with pytest.raises(ValueError, match=f"holds other runs: {message}"):
            train(*arguments, folder=tmp_path)


def test_branches_on_a_full_device_go_on_with_fewer_at_once():
    # All twelve, six and three do not fit; fewer at once round otherwise.
    task = toys.full_beyond(setting()[0], 2)
    with pytest.warns(RuntimeWarning, match="in branches, after step 0; .*chunk=1"):
        found = train(two_each(), task=task, execution=TWO._replace(chunk=0))
    assert found.execution == TWO
    assert found.changes == (training.Change(0, TWO),)
    toys.assert_close(found.networks, own_noise().networks)


def test_arguments_that_do_not_fit_are_refused():
    runs = two_each()
    for changed, stop, message in (
        ({"joins": runs.joins[1:]}, STOP, r"joins has shape \(11,\).*\(12,\)"),
        ({"offset": runs.offset[1:]}, STOP, r"offset has shape \(11,\).*\(12,\)"),
        ({"state": rows(runs.state, slice(1, None))}, STOP, "11 states for 12 noise"),
        ({"joins": runs.joins - 1}, STOP, r"joins=-1; .*\[0, 12\)"),
        ({"joins": runs.joins + 6}, STOP, r"joins=12; .*\[0, 12\)"),
        ({}, 5, r"joins=6; .*\[0, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            train(runs._replace(**changed), stop)


def test_a_restarted_run_has_a_fresh_optimizer_and_the_same_weights():
    runs = two_each()
    found = branches.restarted(TX, runs)
    same = dict(opt_state=())
    toys.assert_equal(found.state._replace(**same), runs.state._replace(**same))
    toys.assert_equal(found.noise, runs.noise)
    assert not found.joins.any()
    begun = rows(runs.state, 8)
    fresh = training.start(TX, begun.network, (), begun.mask)
    toys.assert_equal(rows(found.state.opt_state, 8), fresh.opt_state)


def test_branches_of_environments_with_random_keys(tmp_path):
    # Walkers and their keys are state: a branch goes on where the trunk's were.
    task, tx, stop = toys.policy_gradient(), optax.sgd(0.1), 6
    keys = keys_.of_replicas(0, (0, 1))

    def where(name, **options):
        return Where(TWO, tmp_path / name, 0.0, **options)

    grown = functools.partial(
        branches.train_trunk, task, tx, keys.init, keys.noise, (0, 3, stop), every=3
    )
    whole = grown(where=where("trunk"))
    toys.assert_equal(grown(where=where("trunk")), whole)
    found = branches.Trunk((0, 3), rows(whole.states, slice(0, 2)))
    walked = [np.asarray(found.at(k).stream_state["cell"]) for k in (0, 3)]
    assert (walked[0] != walked[1]).any()
    replica = branches.layout(found, 2).replica
    runs = branches.of_trunk(found, keys.noise, 2)._replace(noise=keys.noise[replica])
    trained = functools.partial(training.train, task, tx, runs, stop, every=3)
    with pytest.raises(Killed):
        trained(where=where("branches", watch=kill_at(stop)))
    ends = trained(where=where("branches")).state
    for row, r in enumerate(replica):
        toys.assert_equal(rows(ends, row), rows(whole.at(stop), int(r)))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=25).map(np.array),
    st.integers(1, 5),
)
def test_rows_are_dealt_evenly(joins, devices):
    offset = np.arange(len(joins))
    found = training.rows.joining(joins, offset, Execution(devices, 1))
    deal, back = found.deal, found.places
    assert len(deal) % devices == 0
    assert len(joins) <= len(deal) < len(joins) + devices
    # Every row lies at one place of its own, where it is found again.
    assert len(set(back.tolist())) == len(back) == len(joins)
    np.testing.assert_array_equal(deal[back], offset)
    np.testing.assert_array_equal(found.joins[back], joins)
    np.testing.assert_array_equal(found.offset[back], offset)
    # Whenever it is, no device has more rows in training than its share.
    device = back // (len(deal) // devices)
    for step in range(10):
        busy = np.bincount(device[joins <= step], minlength=devices)
        assert busy.max() == -(-busy.sum() // devices)
    # Further places hold copies of the last to join, and never do.
    copies = np.setdiff1d(np.arange(len(deal)), back)
    assert (joins[deal[copies]] == joins.max()).all()
    assert (found.joins[copies] == np.iinfo(np.int32).max).all()


# --- the analysis ---------------------------------------------------------------------

PLAN = analysis.Plan(
    steps=STOP,
    rewind_steps=(0, 6),
    branches=3,
    batch_norm=("recompute", "interpolate"),
    alphas=5,
    statistics_batches=2,
    schedules=("continued", "restarted"),
    every=EVERY,
)


@functools.cache
def normed():
    """Images for a network with BatchNorm; its loss counts how often it is traced."""
    task, count = images(toys.ChosenNet(num_classes=3, width=3)), [0]
    loss = task.loss

    def counted(*args):
        count[0] += 1
        return loss(*args)

    return task._replace(loss=counted), count


def analyse(plan=PLAN, ids=(0, 1), start=None, **where):
    task, count = normed()
    before = count[0]
    where = Where(TWO, checkpoint_seconds=0.0, **where)
    found = analysis.run(task, TX, plan, replicas=ids, start=start, where=where)
    return found, count[0] - before


@functools.cache
def analysed():
    return analyse()


def test_the_records_of_an_analysis():
    found, _ = analysed()
    sizes = {
        "schedule": 2,
        "rewind_step": 2,
        "replica": 2,
        "pair": 3,
        "branch": 3,
        "batch_norm": 2,
        "split": 2,
        "alpha": 5,
        "step": 3,
    }
    for name, (axes, value) in found.records.items():
        assert value.shape == tuple(sizes[axis] for axis in axes), name
    axes = {name: axes for name, (axes, _) in found.records.items()}
    lead = ("schedule", "rewind_step", "replica")
    assert axes["error"] == (*lead, "pair", "batch_norm", "split", "alpha")
    assert axes["lii"] == axes["lii_loss"] == axes["error"][:-1]
    for name in ("l2", "angle", "disagreement_train", "disagreement_test"):
        assert axes[name] == (*lead, "pair")
    for name in ("travel", "travel_from_init", "first_nan"):
        assert axes[name] == (*lead, "branch")
    for name, values in (
        ("schedule", PLAN.schedules),
        ("rewind_step", PLAN.rewind_steps),
        ("batch_norm", PLAN.batch_norm),
        ("split", PLAN.splits),
        ("alpha", (0, 0.25, 0.5, 0.75, 1)),
    ):
        assert found.records[name][1].tolist() == list(values)
    for leaf in jax.tree.leaves(found.networks):
        assert leaf.shape[:4] == (2, 2, 2, 3)


PICK = (1, 1, 0)
"""Restarted, rewound to step 6, the first replica."""


def test_records_are_those_of_their_networks():
    found, _ = analysed()
    task, _ = normed()
    records = {name: value for name, (_, value) in found.records.items()}
    own = rows(found.networks, PICK)
    pairs = list(itertools.combinations(range(3), 2))
    # All networks, as the analysis has them: the same programs.
    stacked = jax.tree.map(lambda x: x.reshape(-1, *x.shape[4:]), found.networks)
    first = 3 * int(np.ravel_multi_index(PICK, (2, 2, 2)))
    ends = [(3 * i + a, 3 * i + b) for i in range(8) for a, b in pairs]
    where = Where(TWO)
    for index, policy in enumerate(PLAN.batch_norm):
        measure = Measure(5, policy, statistics_batches=2)
        path = connectivity.paths(task, stacked, ends, measure, where=where)
        for name in ("error", "loss"):
            np.testing.assert_array_equal(
                records[name][PICK][:, index],
                getattr(path, name)[
                    [ends.index((first + a, first + b)) for a, b in pairs]
                ],
            )
    error = records["error"].astype(np.float64)
    mean = (error[..., 0] + error[..., -1]) / 2
    np.testing.assert_allclose(records["lii"], error.max(-1) - mean, atol=1e-6)
    high = connectivity.instability(records["loss"])
    np.testing.assert_array_equal(records["lii_loss"], high)

    def flat(tree, i):
        leaves = jax.tree.leaves(tree.params)
        return np.concatenate([np.asarray(x[i], np.float64).ravel() for x in leaves])

    for pair, (i, j) in enumerate(pairs):
        distance = np.linalg.norm(flat(own, i) - flat(own, j))
        np.testing.assert_allclose(records["l2"][PICK][pair], distance, rtol=1e-5)
        a, b = flat(own, i), flat(own, j)
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        np.testing.assert_allclose(
            records["angle"][PICK][pair], 2 / np.pi * np.arccos(cosine), rtol=1e-4
        )
        classes = connectivity.predictions(task, stacked, where=where)[first:]
        np.testing.assert_allclose(
            records["disagreement_test"][PICK][pair],
            (classes[i] != classes[j]).mean(),
            atol=1e-6,
        )
    for name, step in (("travel", 6), ("travel_from_init", 0)):
        begin = flat(found.trunk.at(step), PICK[2])
        for branch in range(3):
            distance = np.linalg.norm(flat(own, branch) - begin)
            np.testing.assert_allclose(records[name][PICK][branch], distance, rtol=1e-5)


def test_branches_of_a_later_state_end_closer_to_each_other():
    distance = analysed()[0].records["l2"][1]  # schedule, rewind step, replica, pair
    assert (distance[0, 1] < 0.9 * distance[0, 0]).all()


def test_restarted_from_the_initialisation_is_continued_from_it():
    found, _ = analysed()
    continued, restarted = (rows(found.networks, i) for i in range(2))
    toys.assert_equal(rows(continued, 0), rows(restarted, 0))
    # From a later state it is not: there are more steps left.
    differ = jax.tree.map(lambda x, y: (x[1] != y[1]).any(), continued, restarted)
    assert any(jax.tree.leaves(differ.params))


def test_a_restarted_branch_trains_all_steps_from_the_trunks_weights():
    found, _ = analysed()
    task, _ = normed()
    noise = jax.vmap(lambda key: keys_.branch_keys(key, 2)[1])(setting()[1].noise)
    zeros = np.zeros(2, np.int32)
    fresh = branches.restarted(TX, Runs(found.trunk.at(6), noise, zeros + 6, zeros))
    # Many times over: as many as the analysis trains, in the same program.
    many = rows(fresh, np.tile(np.arange(2), 12))
    expected = rows(train(many, task=task).networks, slice(2))
    toys.assert_equal(expected, rows(found.networks, (1, 1, slice(None), 1)))


def test_numbers_depend_on_no_other_replica_or_rewind_step():
    # As many branches as before.
    plan = dataclasses.replace(
        PLAN, rewind_steps=(6, 2, 0, 5, 1, 3, 4, 7), schedules=("continued",)
    )
    first, traces = analysed()
    seen = []
    second, more = analyse(plan, ids=(1,), watch=seen.append)
    assert second.trunk.steps == tuple(range(8))
    for name, (axes, value) in second.records.items():
        if "replica" in axes:
            expected = first.records[name][1][0, :, 1]
            np.testing.assert_array_equal(value[0, [0, 6], 0], expected, err_msg=name)
    # One program serves all segments, whatever their lengths, and the next analysis.
    assert [p.done for p in seen if p.stage == "trunk"] == list(range(8))
    assert traces > 0 and more == 0


def test_an_interrupted_analysis_goes_on_where_it_was(tmp_path):
    expected, _ = analysed()
    stages = []

    def kill(progress):
        stages.append(progress.stage)
        if progress.stage == "paths" and progress.done > 0:
            raise Killed

    with pytest.raises(Killed):
        analyse(folder=tmp_path, watch=kill)
    assert list(dict.fromkeys(stages)) == ["trunk", "branches", "paths"]
    seen = []
    resumed, _ = analyse(folder=tmp_path, watch=seen.append)
    toys.assert_equal(resumed.networks, expected.networks)
    for name, (axes, value) in expected.records.items():
        assert resumed.records[name][0] == axes
        np.testing.assert_array_equal(resumed.records[name][1], value, err_msg=name)
    trained = [p for p in seen if p.stage != "paths" and not p.resumed]
    assert not trained
    # Two passes over all points look like one.
    assert [(p.done, p.total) for p in seen if p.stage == "paths"] == [
        (0, 240),
        (120, 240),
        (240, 240),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"every": 0}, "every=0"),
        ({"alphas": 1}, "alphas=1"),
        ({"branches": 1}, "branches=1"),
        ({"rewind_steps": ()}, r"rewind_steps=\(\)"),
        ({"rewind_steps": (0, 12)}, r"rewind_steps=\(0, 12\).*\[0, 12\)"),
        ({"rewind_steps": (-1,)}, r"rewind_steps=\(-1,\)"),
        ({"batch_norm": ("reset",)}, "batch_norm='reset'"),
        ({"batch_norm": ("recompute",) * 2}, "batch_norm=.*all different"),
        ({"schedules": ("stopped",)}, "schedules='stopped'"),
        ({"schedules": ("restarted",) * 2}, "schedules=.*all different"),
        ({"schedules": ()}, "schedules"),
        ({"splits": ()}, "splits"),
    ],
)
def test_a_plan_of_no_sense_is_refused_by_field(changes, message):
    analysis.check(PLAN)
    with pytest.raises(ValueError, match=message):
        analyse(dataclasses.replace(PLAN, **changes))


@pytest.mark.parametrize("ids", [(), (3, 3)])
def test_replicas_of_no_sense_are_refused(ids):
    with pytest.raises(ValueError, match=r"replicas=\("):
        analyse(ids=ids)


def test_a_plan_must_say_what_becomes_of_statistics():
    task, _ = normed()
    for changes, message in (
        ({"batch_norm": ()}, "batch_norm: this network has running statistics"),
        ({"statistics_batches": 4}, "statistics_batches=4"),
    ):
        with pytest.raises(ValueError, match=message):
            analyse(dataclasses.replace(PLAN, **changes))
    bare = task._replace(statistics=None)
    with pytest.raises(ValueError, match="batch_norm='recompute' needs a task"):
        analysis.check_task(bare, PLAN)
    only = dataclasses.replace(PLAN, batch_norm=("interpolate",))
    assert analysis.check_task(bare, only) == ("interpolate",)
    # Networks without any have no policy, whatever the plan says.
    assert analysis.check_task(setting()[0], PLAN) == (None,)


# --- given weights --------------------------------------------------------------------


@functools.cache
def given_weights():
    """Weights and statistics that the task's law does not draw, of two replicas."""
    task, _ = normed()
    rng = np.random.default_rng(3)
    like = Network(*task.shapes[:2])
    return jax.tree.map(
        lambda x: rng.uniform(0.1, 1, (2, *x.shape)).astype(x.dtype), like
    )


def test_branches_from_given_weights_are_those_of_a_law_that_returns_them():
    task, _ = normed()
    given, keys = rows(given_weights(), 0), setting()[1]
    law = task._replace(init=lambda key: (*given, task.init(key)[2]))
    trunk = functools.partial(branches.train_trunk, tx=TX, steps=(0,), where=Where(TWO))
    expected = trunk(law, init=keys.init, noise=keys.noise)
    found, _ = analyse(start=given)
    toys.assert_equal(found.trunk.at(0), expected.at(0))
    runs = branches.of_trunk(expected, keys.noise, 3)
    # As many as the analysis trains, in the same program.
    done = train(rows(runs, np.tile(np.arange(6), 4)), task=task)
    own = rows(found.networks, (0, 0))
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), own)
    toys.assert_equal(flat, rows(done.networks, slice(6)))


def test_each_replica_starts_from_its_own_weights_whoever_else_does():
    task, keys = normed()[0], setting()[1]
    given = given_weights()
    # Leaf by leaf: all replicas share the statistics, and no weights.
    mixed = given._replace(model_state=rows(given.model_state, 0))
    for tx in (TX, optax.adam(0.1), optax.ema(0.9)):
        fresh = functools.partial(training.fresh, task, tx, where=Where(TWO))
        both = lj.trees.host(fresh(keys.init, keys.noise, start=mixed).state)
        drawn = lj.trees.host(fresh(keys.init, keys.noise).state)
        toys.assert_equal(both.params, given.params)
        toys.assert_equal(both.stream_state, drawn.stream_state)
        toys.assert_equal(both.opt_state, drawn.opt_state)
        for r in range(2):
            own = mixed._replace(params=rows(given.params, r))
            alone = fresh(keys.init[r : r + 1], keys.noise[r : r + 1], start=own).state
            toys.assert_equal(rows(lj.trees.host(alone), 0), rows(both, r))


def test_a_sweep_starts_from_the_given_weights_at_every_setting():
    given = given_weights()
    # Neither of them moves a weight by as much as a rounding.
    sweep = {"learning_rate": [0.0, 1e-30]}
    done = lj.train(
        normed()[0], optax.sgd, 1, (4, 7), start=given, sweep=sweep, where=Where(TWO)
    )
    for setting_ in range(2):
        own = slice(2 * setting_, 2 * setting_ + 2)
        toys.assert_equal(rows(done.networks, own).params, given.params)
