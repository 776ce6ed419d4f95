"""Branches of a trunk differ in their noise and in nothing else; instability analysis."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

import lottery_jax as lj
from lottery_jax import arms, connectivity, replicas, training
from lottery_jax.connectivity import analysis, branches
from lottery_jax.data import Dataset
from lottery_jax.replicas import Execution
from lottery_jax.types import Network

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
    keys = jax.vmap(lambda i: arms.replica_keys(0, i))(jnp.arange(2))
    return task, keys


def grow(steps=KEPT, **options):
    task, keys = setting()
    return branches.train_trunk(
        task, TX, keys.init, keys.noise, steps, execution=TWO, every=EVERY, **options
    )


@functools.cache
def trunk():
    return grow()


@functools.cache
def plainly(stop):
    """The replicas' states after `stop` steps of `training.train` in one segment."""
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
        order = training.orders(bound, noise, training.epochs_of(bound, STOP))
        return training.train(
            bound, TX, state, noise, order, 0, stop, capacity=STOP, active=active
        )[0]

    # `active` is traced as for branches: XLA fuses a loop outside of `cond` otherwise,
    # which rounds otherwise.
    program = replicas.parallel(train, (None, 0, 0, None, 0), TWO)
    init, noise, active = replicas.place((keys.init, keys.noise, np.ones(2, bool)), TWO)
    data = jax.device_put(task.data, replicas.shared(TWO))
    start = replicas.parallel(first, (0,), TWO)(init)
    return lambda stop: jax.tree.map(
        np.asarray, program(data, start, noise, np.int32(stop), active)
    )


def rows(tree, where):
    return jax.tree.map(lambda x: x[where], tree)


def network(state):
    return Network(state.params, state.model_state)


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


def test_a_step_that_was_not_kept():
    with pytest.raises(ValueError, match=r"step 4 was not kept; .* \(0, 3, 6\)"):
        trunk().at(4)


@pytest.mark.parametrize("steps", [(), (3, -1)])
def test_steps_that_make_no_trunk(steps):
    with pytest.raises(ValueError, match=r"steps=\(.*0 or more"):
        grow(steps)


class Killed(Exception):
    pass


def kill_at(step):
    """A watcher that raises once training gets there."""

    def watch(at, *_):
        if at >= step:
            raise Killed

    return watch


def test_an_interrupted_trunk_goes_on_where_it_was(tmp_path):
    with pytest.raises(Killed):
        grow(folder=tmp_path, watch=kill_at(6))
    seen = []
    found = grow(folder=tmp_path, watch=lambda *moment: seen.append(moment))
    toys.assert_equal(found, trunk())
    assert seen[0] == (3, 6, 2, True)  # from its last rewind step
    assert all(step > 3 and not resumed for step, _, _, resumed in seen[1:])
    assert seen[-1][0] == 6
    again = grow(folder=tmp_path, watch=lambda step, *_: seen.append(step))
    toys.assert_equal(again, trunk())
    with pytest.raises(ValueError, match=r"a trunk with steps=\[0, 3, 6\], not \[0, 6"):
        grow((0, 6), folder=tmp_path)


# --- branches -------------------------------------------------------------------------


def lay_out(number=2):
    return branches.starts(trunk(), number)


def test_branches_start_from_the_trunks_states():
    starts, joins, replica, branch = lay_out(3)
    grid = list(itertools.product(KEPT, range(2), range(3)))
    assert list(zip(joins.tolist(), replica.tolist(), branch.tolist())) == grid
    for row, (step, r, _) in enumerate(grid):
        toys.assert_equal(rows(starts, row), rows(plainly(step), r))


@pytest.mark.parametrize("number", [0, 1])
def test_one_branch_is_no_pair(number):
    with pytest.raises(ValueError, match=f"branches={number}"):
        lay_out(number)


def train(starts, joins, noise, stop=STOP, every=EVERY, execution=TWO, **options):
    task, _ = setting()
    return branches.train(
        task,
        TX,
        starts,
        joins,
        noise,
        stop,
        execution=execution,
        every=every,
        **options,
    )


@functools.cache
def same_noise():
    """Two branches of every state, both under the trunk's own noise."""
    starts, joins, replica, _ = lay_out()
    return train(starts, joins, setting()[1].noise[replica])


@functools.cache
def own_noise():
    """Two branches of every state, each under its own noise; and the arguments."""
    starts, joins, replica, branch = lay_out()
    keys = jax.vmap(lambda key: branches.branch_keys(key, 2))(setting()[1].noise)
    arguments = starts, joins, keys[replica, branch]
    return train(*arguments), arguments


def test_under_the_trunks_noise_a_branch_is_the_trunk():
    expected = network(plainly(STOP))
    _, _, replica, _ = lay_out()
    for row, r in enumerate(replica):
        toys.assert_equal(rows(same_noise().networks, row), rows(expected, r))


def test_branches_of_one_state_end_apart_through_their_noise_alone():
    found, (starts, joins, noise) = own_noise()
    for row in range(0, len(joins), 2):
        toys.assert_equal(rows(starts, row), rows(starts, row + 1))
        first, second, trunks = (
            jax.tree.leaves(rows(networks, row + shift).params)
            for networks, shift in (
                (found.networks, 0),
                (found.networks, 1),
                (same_noise().networks, 0),
            )
        )
        for x, y, z in zip(first, second, trunks):
            assert (x != y).any() and (x != z).any() and (y != z).any()
    # One replica's branches of all rewind steps share their noise.
    assert len(np.unique(jax.random.key_data(noise), axis=0)) == 4


def test_noise_keys_are_all_different():
    _, keys = setting()
    many = jax.vmap(lambda key: branches.branch_keys(key, 5))(keys.noise)
    roles = jax.vmap(lambda key: jnp.stack(training.noise_keys(key)))(keys.noise)
    everything = [many.reshape(-1), roles.reshape(-1), keys.noise, keys.init]
    data = jax.random.key_data(jnp.concatenate(everything))
    assert len(np.unique(data, axis=0)) == len(data) == 10 + 6 + 2 + 2
    fewer = branches.branch_keys(keys.noise[1], 2)
    np.testing.assert_array_equal(
        jax.random.key_data(fewer), jax.random.key_data(many[1, :2])
    )


def test_branches_see_other_batches_in_another_order():
    task, keys = setting()
    noise = branches.branch_keys(keys.noise[0], 3)
    draw = jax.jit(lambda key: training.orders(task, key, 3))
    orders = [np.asarray(draw(key)) for key in noise]
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

    @jax.jit
    def batch(noise, step):
        key = training.noise_keys(noise).batch
        return task.batch(task.data, same, key, step)

    noise = branches.branch_keys(keys.noise[0], 2)
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
    found, (starts, joins, noise) = own_noise()
    late = np.flatnonzero(joins == 6)
    alone = train(rows(starts, late), joins[late], noise[late])
    toys.assert_equal(alone.networks, rows(found.networks, late))
    for name, x, y in zip(alone.curves._fields, alone.curves, found.curves):
        np.testing.assert_array_equal(x, y[late], err_msg=name)


def test_curves_are_means_over_the_steps_a_row_trained():
    found, _ = own_noise()
    assert found.curves.train_loss.shape == (12, STOP // EVERY)
    assert np.isnan(found.curves.train_loss[8:, 0]).all()  # joined at step 6
    assert np.isfinite(found.curves.train_loss[8:, 1:]).all()
    assert np.isfinite(found.curves.train_loss[:8]).all()
    assert np.isnan(found.curves.first_nan).all()
    finer = train(*own_noise()[1], every=1)
    toys.assert_equal(finer.networks, found.networks)
    each = finer.curves.train_loss.reshape(12, -1, EVERY)
    trained = np.isfinite(each).any(axis=-1)
    mean = np.nansum(each, -1)[trained] / np.isfinite(each).sum(-1)[trained]
    np.testing.assert_allclose(found.curves.train_loss[trained], mean, rtol=1e-6)


@pytest.mark.parametrize("step", [4, 6, 12])
def test_interrupted_branches_go_on_where_they_were(tmp_path, step):
    # Segments end at 3, 4, 6, 8 and 12: at joins, too.
    expected, arguments = own_noise()
    options = {"folder": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        train(*arguments, **options, watch=kill_at(step))
    seen = []
    resumed = train(
        *arguments, **options, watch=lambda *moment: seen.append(moment), execution=None
    )
    toys.assert_equal(resumed, expected)
    assert seen[-1] == (STOP, STOP, 12, False)
    steps = [s for s, *_ in seen]
    assert steps == sorted(steps)
    if step > EVERY + 2:
        assert seen[0][3] and seen[0][0] >= EVERY  # not from the start
    if step == STOP:
        # What is complete is read and not trained.
        toys.assert_equal(train(*arguments, **options), expected)
        starts, joins, noise = arguments
        for changed, message in (
            ((starts, joins, noise, STOP + 1), "stop=12, not 13"),
            ((starts, joins, noise, STOP, 3), "every=4, not 3"),
            ((starts, joins[::-1], noise), r"joins=\[0, 0,.*not \[6, 6,"),
        ):
            with pytest.raises(ValueError, match=f"holds branches with {message}"):
                train(*changed, **options)


def test_arguments_that_do_not_fit_are_refused():
    starts, joins, replica, _ = lay_out()
    noise = setting()[1].noise[replica]
    for changed, message in (
        ((starts, joins[1:], noise), r"joins has shape \(11,\) and noise \(12,\)"),
        ((starts, joins, noise[1:]), r"joins has shape \(12,\) and noise \(11,\)"),
        ((starts, joins - 1, noise), r"joins=-1; .*\[0, 12\)"),
        ((starts, joins + 6, noise), r"joins=12; .*\[0, 12\)"),
        ((starts, joins, noise, 5), r"joins=6; .*\[0, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            train(*changed)


def test_a_rewound_state_has_a_fresh_optimizer_and_the_same_weights():
    starts, _, _, _ = lay_out()
    found = branches.rewound(TX, starts, 2)
    toys.assert_equal(found._replace(opt_state=()), starts._replace(opt_state=()))
    fresh = training.start(
        TX, network(rows(starts, 8)), (), rows(starts.mask, 8), step=2
    )
    toys.assert_equal(rows(found.opt_state, 8), fresh.opt_state)


def test_branches_of_environments_with_random_keys(tmp_path):
    # Walkers and their keys are state: a branch goes on where the trunk's were.
    task, tx, stop = toys.policy_gradient(), optax.sgd(0.1), 6
    keys = jax.vmap(lambda i: arms.replica_keys(0, i))(jnp.arange(3))
    options = {"execution": TWO, "every": 3}
    grown = functools.partial(
        branches.train_trunk, task, tx, keys.init, keys.noise, **options
    )
    whole = grown((0, 3, stop), folder=tmp_path / "trunk")
    toys.assert_equal(grown((0, 3, stop), folder=tmp_path / "trunk"), whole)
    found = branches.Trunk((0, 3), rows(whole.states, slice(0, 2)))
    starts, joins, replica, _ = branches.starts(found, 2)
    walked = [np.asarray(found.at(k).stream_state["cell"]) for k in (0, 3)]
    assert (walked[0] != walked[1]).any()
    arguments = task, tx, starts, joins, keys.noise[replica], stop
    options |= {"folder": tmp_path / "branches", "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        branches.train(*arguments, **options, watch=kill_at(stop))
    ends = branches.train(*arguments, **options)
    for row, r in enumerate(replica):
        toys.assert_equal(
            rows(ends.networks, row), rows(network(whole.at(stop)), int(r))
        )


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=25).map(np.array),
    st.integers(1, 5),
)
def test_rows_are_dealt_evenly(joins, devices):
    deal, back = branches.dealt(joins, Execution(devices, 1))
    assert len(deal) % devices == 0
    assert len(joins) <= len(deal) < len(joins) + devices
    # Every row lies at one place of its own, where it is found again.
    assert len(set(back.tolist())) == len(back) == len(joins)
    np.testing.assert_array_equal(deal[back], np.arange(len(joins)))
    # Whenever it is, no device has two more rows in training than another.
    device = back // (len(deal) // devices)
    for step in range(10):
        busy = np.bincount(device[joins <= step], minlength=devices)
        assert busy.max() - busy.min() <= 1
    # Further places hold copies of the last to join.
    copies = np.setdiff1d(np.arange(len(deal)), back)
    assert (joins[deal[copies]] == joins.max()).all()


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


def analyse(plan=PLAN, ids=(0, 1), **options):
    task, count = normed()
    before = count[0]
    found = analysis.run(task, TX, plan, replicas=ids, execution=TWO, **options)
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
    for index, policy in enumerate(PLAN.batch_norm):
        path = connectivity.paths(
            task, own, pairs, 5, batch_norm=policy, statistics_batches=2, execution=TWO
        )
        for name in ("error", "loss"):
            np.testing.assert_allclose(
                records[name][PICK][:, index], getattr(path, name), rtol=1e-6
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
        classes = connectivity.predictions(task, own, execution=TWO)
        np.testing.assert_allclose(
            records["disagreement_test"][PICK][pair],
            (classes[i] != classes[j]).mean(),
            atol=1e-6,
        )
    for name, step in (("travel", 6), ("travel_from_init", 0)):
        begin = flat(network(found.trunk.at(step)), PICK[2])
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
    _, keys = setting()
    fresh = branches.rewound(TX, found.trunk.at(6))
    noise = jax.vmap(lambda key: branches.branch_keys(key, 2)[1])(keys.noise)
    expected = branches.train(
        task, TX, fresh, [0, 0], noise, STOP, execution=TWO, every=EVERY
    )
    toys.assert_equal(expected.networks, rows(found.networks, (1, 1, slice(None), 1)))


def test_numbers_depend_on_no_other_replica_or_rewind_step():
    plan = dataclasses.replace(
        PLAN, rewind_steps=(6, 2, 0, 5), schedules=("continued",)
    )
    first, traces = analysed()
    seen = []
    second, more = analyse(
        plan, ids=(1,), watch=lambda p: seen.append((p.stage, p.done, normed()[1][0]))
    )
    assert second.trunk.steps == (0, 2, 5, 6)
    for name, (axes, value) in second.records.items():
        if "replica" in axes:
            expected = first.records[name][1][0, :, 1]
            np.testing.assert_array_equal(value[0, [0, 3], 0], expected, err_msg=name)
    # One program serves all segments of a stage, whatever their lengths and who trains.
    assert [done for stage, done, _ in seen if stage == "trunk"] == [2, 4, 5, 6]
    for stage in ("trunk", "branches"):
        assert len({count for name, _, count in seen if name == stage}) == 1
    assert more <= traces


def test_an_interrupted_analysis_goes_on_where_it_was(tmp_path):
    expected, _ = analysed()
    stages = []

    def kill(progress):
        stages.append(progress.stage)
        if progress.stage == "paths" and progress.done > 0:
            raise Killed

    options = {"folder": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        analyse(**options, watch=kill)
    assert list(dict.fromkeys(stages)) == ["trunk", "branches", "paths"]
    seen = []
    resumed, _ = analyse(**options, watch=seen.append)
    toys.assert_equal(resumed.networks, expected.networks)
    for name, (axes, value) in expected.records.items():
        assert resumed.records[name][0] == axes
        np.testing.assert_array_equal(resumed.records[name][1], value, err_msg=name)
    trained = [p for p in seen if p.stage != "paths" and not p.resumed]
    assert not trained


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
        ({"batch_norm": ("reset",)}, r"batch_norm=\('reset',\)"),
        ({"batch_norm": ("recompute",) * 2}, "batch_norm=.*each once"),
        ({"schedules": ("stopped",)}, r"schedules=\('stopped',\)"),
        ({"schedules": ("restarted",) * 2}, "schedules=.*each once"),
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
