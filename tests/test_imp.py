"""Studies: replicas, chains, interruptions, divergence, retraining, errors."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import checkpoints, imp, keys, tickets
from lottery_jax.execution import Execution
from lottery_jax.imp import levels
from lottery_jax.types import Network

# The studies of `toys` are shared by several files: all compile them alike.
pytestmark = pytest.mark.usefixtures("compiled_quickly")


def again(found, **changes):
    """A watched study run again, perhaps with other arguments, or elsewhere."""
    elsewhere = {
        name: changes.pop(name)
        for name in ("execution", "folder", "checkpoint_seconds", "watch")
        if name in changes
    }
    where = lj.Where(**({"execution": found.execution} | elsewhere))
    arguments = {"levels": found.levels, "replicas": found.ids, "where": where}
    return imp.run(found.task, found.tx, found.plan, **(arguments | changes))


class Killed(Exception):
    """Stands for a kill."""


def killed_after(number):
    """Something to watch a run with, that kills it after so many segments."""
    seen = []

    def watch(progress):
        if not progress.resumed and progress.done > progress.start:
            seen.append(progress)
            if len(seen) > number:
                raise Killed

    return watch


# --- compilation ----------------------------------------------------------------------


def test_one_compilation_serves_all_levels_chains_and_arms():
    study = toys.many_chains()
    assert study.levels == 3 and len(study.plan.chains) == 8
    # The folder's identity and level 0's first segment trace the loss; then nothing does.
    assert len(set(study.traces[1:])) == 1 and study.traces[1] <= 4


def test_a_second_study_compiles_nothing():
    """Also where all its parts were made anew by the same calls."""

    def small():
        task = toys.classification(lj.models.make("mlp-5", 4))
        tx = optax.adam(optax.cosine_decay_schedule(0.02, 4))
        plan = imp.Plan(steps=4, validate_every=2)
        where = lj.Where(Execution(2, 1))
        return imp.run(task, tx, plan, levels=1, replicas=(0, 1), where=where)

    first, compiled = small(), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: (
            compiled.append(name) if name.endswith("backend_compile_duration") else None
        )
    )
    second = small()
    assert compiled == []
    toys.assert_same_records(first.records, second.records)


# --- one replica, one chain -----------------------------------------------------------


@pytest.fixture(scope="module")
def one_of_many():
    """Replica 1 and the first chain of the large study, alone."""
    study = toys.many_chains()
    plan = toys.only(study, "imp")
    return toys.watched(study.task, study.tx, plan, (1,), study.execution, levels=2)


def test_a_chain_and_a_replica_alone_give_the_same_bits(one_of_many):
    together = toys.many_chains()
    where, into = np.index_exp[:1, :, 1:2, :3], np.index_exp[:]
    a, b = together.study.records, one_of_many.study.records
    toys.assert_same_records(a, b, where, into)
    for name in ("step", "layer"):
        np.testing.assert_array_equal(a[name][1], b[name][1])
    for level in range(3):
        for arm in together.plan.arms:
            toys.assert_equal(
                together.start("imp", 1, arm, level),
                one_of_many.start("imp", 1, arm, level),
            )
            toys.assert_equal(
                together.end("imp", 1, arm, level),
                one_of_many.end("imp", 1, arm, level),
            )


def test_chains_of_several_rewind_steps_equal_studies_of_one_each():
    """Level 0, snapshots, masks, fresh draws and fine-tuning all follow the own step."""
    own = {"late": ("rewind", 6), "tuned": ("finetune", 9)}
    chains = {
        name: imp.Chain(name, retrain=retrain, rewind_step=step)
        for name, (retrain, step) in own.items()
    }
    plan = imp.Plan(
        steps=20,
        chains=tuple(chains.values()),
        arms=("ticket", "reinit"),
        validate_every=10,
    )
    assert plan.rewind_steps == (6, 9)
    task = toys.classification(lj.models.make("mlp-6", 4))
    execution = Execution(devices=2, chunk=1)
    tx = optax.sgd(toys.SCHEDULE, momentum=0.9)
    where = lj.Where(execution)
    run = functools.partial(imp.run, task, tx, levels=1, replicas=(0, 1), where=where)
    together = run(plan).records
    for index, (name, chain) in enumerate(chains.items()):
        alone = dataclasses.replace(
            plan,
            rewind_step=own[name][1],
            chains=(dataclasses.replace(chain, rewind_step=None),),
        )
        records = run(alone).records
        assert np.isfinite(records["test_loss"][1]).all()
        for key, (axes, values) in records.items():
            if axes[0] == "chain":
                np.testing.assert_array_equal(
                    together[key][1][index], values[0], err_msg=f"{name}: {key}"
                )
    # They are different studies of the same dense networks.
    late, tuned = together["test_loss"][1]
    assert (late[:, :, 1] != tuned[:, :, 1]).all()
    np.testing.assert_array_equal(late[:, :, 0], tuned[:, :, 0])


def test_a_chain_s_rewind_step_must_lie_in_the_run():
    plan = imp.Plan(steps=4, chains=(imp.Chain(rewind_step=4),))
    with pytest.raises(ValueError, match=r"rewind_step=4 .* \[0, 4\)"):
        imp.check(plan)


def test_records_have_named_axes():
    study = toys.many_chains()
    chains, arms, replicas, levels = 8, 5, 3, 4
    for name, (axes, values) in study.study.records.items():
        assert len(axes) == values.ndim, name
        if axes[0] == "chain":
            assert axes[:4] == ("chain", "arm", "replica", "level")
            assert values.shape[:4] == (chains, arms, replicas, levels)
    records = study.study.records
    assert records["validation_loss"][0][4:] == ("step",)
    np.testing.assert_array_equal(records["step"][1], [10, 20])
    assert list(records["layer"][1]) == ["head/kernel", "hidden/kernel"]
    density = records["layer_density"][1] * np.array([48, 96])
    np.testing.assert_allclose(density.sum(axis=-1), records["alive"][1])
    assert study.study.execution == study.execution


def test_records_are_what_the_networks_score():
    study = toys.many_chains()
    task = study.task
    evaluate = jax.jit(task.evaluate, static_argnums=4)
    for chain, arm, level in (("imp", "ticket", 0), ("finetune", "random_mask", 3)):
        network = study.end(chain, 2, arm, level)
        for split, names in {
            "test": ("test_error", "test_loss"),
            "validation": ("validation_error", "validation_loss"),
        }.items():
            metrics = evaluate(*network, task.data, jax.random.key(0), split)
            for name, metric in zip(names, ("error", "loss")):
                value = study.record(name, chain, arm)[2, level]
                last = value if split == "test" else value[-1]
                np.testing.assert_allclose(last, metrics[metric], rtol=1e-5)


def test_early_stopping_takes_the_minimum_of_validation_loss():
    study = toys.many_chains()
    records = {name: values for name, (_, values) in study.study.records.items()}
    best = records["step"][records["validation_loss"].argmin(axis=-1)]
    np.testing.assert_array_equal(records["early_stop_step"], best)
    at_end = best == toys.STEPS
    assert at_end.any() and not at_end.all()
    for name in ("test_error", "test_loss"):
        early, late = records[f"{name}_early"], records[name]
        np.testing.assert_array_equal(early[at_end], late[at_end])
    assert (records["test_loss_early"] != records["test_loss"])[~at_end].all()


def test_training_curves_are_means_over_the_steps_a_row_trained():
    study = toys.one_chain()
    own = keys.replica_keys(study.plan.seed, 0)
    task = study.task

    @jax.jit
    def by_hand(init, noise):
        params, model_state, stream = task.init(init)
        full = lj.masks.ones_like(params)
        state = lj.training.start(study.tx, Network(params, model_state), stream, full)
        return lj.training.train_steps(
            task, study.tx, state, noise, 0, 12, capacity=12
        )[1]

    metrics = by_hand(own.init, own.noise)
    for name in ("loss", "error"):
        expected = np.asarray(metrics[name]).reshape(3, 4).mean(axis=1)
        got = study.record(f"train_{name}", "imp", "ticket")[0, 0]
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    # After rewinding to step 6 the first column is the mean of steps 6 to 9.
    rewound = toys.many_chains().record("train_loss", "imp", "ticket")
    assert np.isfinite(rewound).all()
    steps = [toys.many_chains().steps(level) for level in range(4)]
    assert steps == [[0, 6, 10, 20]] + 3 * [[6, 10, 20]]


# --- interruptions --------------------------------------------------------------------


def test_a_run_that_is_killed_in_every_segment_ends_in_the_same_bits(tmp_path):
    study, kills, levels = toys.one_chain(), 0, 2
    while True:
        try:
            done = again(
                study,
                levels=levels,
                folder=tmp_path,
                checkpoint_seconds=0,
                watch=killed_after(1),
            )
        except Killed:
            kills += 1
            continue
        if levels == 4:
            break
        levels = 4  # what is finished is extended
    # Three segments for each of five levels; each call gets through one, the last
    # before either end through two.
    assert kills == 5 * 3 - 2
    toys.assert_same_records(study.study.records, done.records)
    toys.assert_equal(study.study.masks, done.masks)
    toys.assert_equal(study.study.rewound, done.rewound)
    for level in range(5):
        for replica in study.ids:
            paths = [
                imp.ticket_path(folder, "imp", level, replica)
                for folder in (study.folder, tmp_path)
            ]
            assert paths[0].read_bytes() == paths[1].read_bytes()
    # A finished run trains nothing more, and hands out the same.
    repeated = again(study, folder=tmp_path, watch=killed_after(0))
    toys.assert_same_records(study.study.records, repeated.records)
    toys.assert_equal(study.study.rewound, repeated.rewound)


@pytest.mark.parametrize(("segments", "level"), [(4, 1), (6, 2)])
def test_chains_that_keep_weights_resume_and_hand_out_what_they_started_from(
    tmp_path, segments, level
):
    study = toys.many_chains()
    watch = killed_after(segments)
    with pytest.raises(Killed):
        again(study, folder=tmp_path, checkpoint_seconds=0, watch=watch)
    assert checkpoints.metadata(tmp_path / "checkpoints")["level"] == level
    done = again(study, folder=tmp_path)
    repeated = again(study, folder=tmp_path, watch=killed_after(0))
    for other in (done, repeated):
        toys.assert_same_records(study.study.records, other.records)
        toys.assert_equal(study.study.masks, other.masks)
        toys.assert_equal(study.study.rewound, other.rewound)


def test_a_run_goes_on_with_fewer_devices_from_its_exact_state(tmp_path):
    study = toys.one_chain()
    with pytest.raises(Killed):
        again(study, folder=tmp_path, checkpoint_seconds=0, watch=killed_after(4))
    seen = []
    done = again(study, folder=tmp_path, execution=Execution(1, 1), watch=seen.append)
    # Taken up in the middle of level 1, after its first segment.
    assert [(m.level, m.done, m.resumed) for m in seen[:2]] == [
        (1, 4, True),
        (1, 8, False),
    ]
    assert done.execution == Execution(1, 1)
    # One after another on one device or two: the same bits.
    toys.assert_same_records(study.study.records, done.records)
    toys.assert_equal(jax.tree.map(np.asarray, study.study.masks), done.masks)


def test_stored_settings_are_reused_and_others_recorded(tmp_path):
    study = toys.one_chain()
    with pytest.raises(Killed):
        again(study, folder=tmp_path, checkpoint_seconds=0, watch=killed_after(1))
    done = again(study, folder=tmp_path, execution=None, levels=0)
    assert done.execution == study.execution and done.changes == ()
    done = again(study, folder=tmp_path, execution=Execution(1, 1), levels=1)
    assert done.execution == Execution(1, 1)
    assert done.changes == (imp.Change(1, 0, Execution(1, 1)),)


def test_a_folder_with_another_plan_is_refused(tmp_path):
    study = toys.one_chain()
    with pytest.raises(Killed):
        again(study, folder=tmp_path, checkpoint_seconds=0, watch=killed_after(1))
    for field, value in {"seed": 4, "rewind_step": 2, "arms": ("ticket",)}.items():
        other = study._replace(plan=dataclasses.replace(study.plan, **{field: value}))
        with pytest.raises(ValueError, match=f"another study: plan.{field}="):
            again(other, folder=tmp_path)
    with pytest.raises(ValueError, match="another study: plan.replicas="):
        again(study, folder=tmp_path, replicas=(0, 2))


def test_checkpoints_are_as_rare_as_asked(tmp_path):
    study = toys.one_chain()
    with pytest.raises(Killed):
        again(study, folder=tmp_path, watch=killed_after(5))
    assert checkpoints.latest(tmp_path / "checkpoints") is None
    again(study, folder=tmp_path, levels=1)
    assert checkpoints.latest(tmp_path / "checkpoints") == 1


# --- divergence and given weights -----------------------------------------------------


@pytest.fixture(scope="module")
def poisoned():
    """Three replicas from given weights, of which the second breaks at step 7."""
    task = toys.fragile()
    plan = imp.Plan(
        steps=10, rewind_step=3, arms=("ticket", "reinit"), validate_every=5
    )
    draws = jax.vmap(lambda i: task.init(jax.random.fold_in(jax.random.key(77), i))[0])
    params = draws(jnp.arange(3))
    start = Network(params, {"bad_step": jnp.array([-1, 7, -1])})
    study = toys.watched(
        task, optax.sgd(0.1), plan, (4, 5, 6), Execution(1, 1), 2, start=start
    )
    return study, start


def test_given_weights_are_started_from_and_fresh_ones_are_not(poisoned):
    study, start = poisoned
    for position, replica in enumerate(study.ids):
        began = study.start("imp", replica, "ticket", 0)
        given = jax.tree.map(lambda x, i=position: np.asarray(x[i]), start)
        toys.assert_equal(began.network, given)
        own = keys.replica_keys(study.plan.seed, replica)
        fresh = jax.jit(study.task.init)(own.fresh_init)[0]
        began = study.start("imp", replica, "reinit", 0)
        toys.assert_equal(began.params, jax.tree.map(np.asarray, fresh))


def test_a_replica_that_breaks_is_reported_by_name_and_step(poisoned):
    study, _ = poisoned
    first_nan = study.record("first_nan", "imp", "ticket")
    np.testing.assert_array_equal(first_nan[1], [7, 7, 7])
    assert np.isnan(first_nan[[0, 2]]).all()
    np.testing.assert_array_equal(
        study.record("diverged", "imp", "ticket"), [[0] * 3, [1] * 3, [0] * 3]
    )
    # Its reinit trains well under a mask made from nan weights, which is no control.
    np.testing.assert_array_equal(
        study.record("diverged", "imp", "reinit")[1], [0, 1, 1]
    )
    assert np.isfinite(study.record("test_loss", "imp", "reinit")).all()
    assert np.isnan(study.record("first_nan", "imp", "reinit")).all()
    # What it did before it broke is on record; counts are exact all the same.
    loss = study.record("validation_loss", "imp", "ticket")[1]
    assert np.isfinite(loss[:, 0]).all() and np.isnan(loss[:, 1]).all()
    np.testing.assert_array_equal(
        study.record("early_stop_step", "imp", "ticket")[1], 5
    )
    alive = study.record("alive", "imp", "ticket")
    assert (alive == alive[0]).all() and alive[0, 2] < alive[0, 1] < alive[0, 0]


def test_a_replica_that_breaks_harms_no_other(poisoned):
    study, start = poisoned
    healthy = start._replace(model_state={"bad_step": jnp.full(3, -1)})
    other = again(study, start=healthy)
    assert not other.records["diverged"][1].any()
    for replica in (0, 2):
        at = np.index_exp[:, :, replica]
        toys.assert_same_records(study.study.records, other.records, at, at)
    one = jax.tree.map(lambda m: np.asarray(m[0, [0, 2]]), study.study.masks)
    toys.assert_equal(
        one, jax.tree.map(lambda m: np.asarray(m[0, [0, 2]]), other.masks)
    )


def test_weights_that_break_in_the_last_update_are_noticed():
    """No training loss has seen them; the test loss has."""
    inner = toys.classification(lj.models.make("mlp-6", 4))

    def evaluate(params, model_state, data, key, split):
        found = inner.evaluate(params, model_state, data, key, split)
        # A network that breaks in its very last step is one that tests as nan.
        odd = jnp.abs(params["head"]["bias"][0]) * 1e4 % 2 >= 1
        bad = odd & (split == "test")
        return found | {"loss": jnp.where(bad, jnp.nan, found["loss"])}

    plan = imp.Plan(steps=6, validate_every=3)
    task = inner._replace(evaluate=evaluate)
    where = lj.Where(Execution(2, 1))
    study = imp.run(
        task, optax.sgd(0.1), plan, levels=1, replicas=range(6), where=where
    )
    loss, diverged = (study.records[n][1][0] for n in ("test_loss", "diverged"))
    assert np.isnan(study.records["first_nan"][1]).all()
    broken = np.isnan(loss)  # [arm, replica, level]
    assert broken[0, :, 0].any() and not broken.all()
    np.testing.assert_array_equal(diverged[..., 0], broken[..., 0])
    # A mask made from a broken ticket is no mask for its controls, either.
    np.testing.assert_array_equal(
        diverged[..., 1], broken[..., 1] | broken[None, 0, :, 0]
    )


# --- training a stored level again ----------------------------------------------------


def stored(study, chain, level, ids=None):
    """A level's tickets, from the disk."""
    return [
        [
            tickets.load(imp.ticket_path(study.folder, chain, level, replica))
            for replica in (study.ids if ids is None else ids)
        ]
    ]


def retrain(study, level, **changes):
    """A stored level of a watched study, trained again."""
    arguments = {
        "task": study.task,
        "tx": study.tx,
        "plan": study.plan,
        "found": stored(study, "imp", level),
        "dense": stored(study, "imp", 0),
        "level": level,
        "replicas": study.ids,
        "where": lj.Where(study.execution),
    } | changes
    return imp.retrain(**arguments)


@pytest.mark.parametrize("level", [1, 4])
def test_a_level_from_step_0_is_reproduced_bit_for_bit(level):
    study = toys.one_chain()
    again = retrain(study, level)
    at = np.index_exp[:, :, :, level : level + 1]
    toys.assert_same_records(study.study.records, again.records, at)
    began = study.start("imp", 0, "ticket", level)
    toys.assert_equal(
        jax.tree.map(lambda m: np.asarray(m[0, 0]), again.masks), began.mask
    )


def test_a_rewound_level_is_reproduced_bit_for_bit_with_all_arms(one_of_many):
    again = retrain(one_of_many, 2)
    at = np.index_exp[:, :, :, 2:3]
    toys.assert_same_records(one_of_many.study.records, again.records, at)


def test_a_level_of_kept_weights_is_reproduced():
    """By the loop of `test_arms`, which the tickets of such chains must fit as well."""
    study = toys.many_chains()
    found = stored(study, "lr_rewind", 2)
    for ticket, replica in zip(found[0], study.ids):
        mask = ticket.mask
        before = study.end("lr_rewind", replica, "ticket", 1).params
        kept = jax.tree.map(lambda m, p: np.where(m, p, 0), mask, before)
        toys.assert_equal(ticket.params, kept)


def test_a_level_under_other_data_length_and_arms():
    study = toys.one_chain()
    task = study.task
    labels = (task.data["train"]["label"] + 1) % 4
    data = task.data | {"train": task.data["train"] | {"label": labels}}
    plan = dataclasses.replace(study.plan, steps=8, arms=("ticket", "shuffled_weights"))
    again = retrain(
        study,
        3,
        task=task._replace(data=data),
        plan=plan,
        replicas=(1,),
        found=stored(study, "imp", 3, (1,)),
        dense=None,
        where=lj.Where(study.execution),
    )
    axes, error = again.records["test_error"]
    assert axes == ("chain", "arm", "replica", "level") and error.shape == (1, 2, 1, 1)
    np.testing.assert_array_equal(again.records["step"][1], [4, 8])
    alive = study.record("alive", "imp", "ticket")[1, 3]
    assert (again.records["alive"][1] == alive).all()
    first = study.record("train_loss", "imp", "ticket")[1, 3, 0]
    assert again.records["train_loss"][1][0, 0, 0, 0, 0] > first  # the labels moved


def test_masks_and_networks_in_memory_become_the_tickets_of_their_study():
    study = toys.one_chain().study
    expected = imp.tickets_of(study)
    masks, begun = study.masks, study.rewound
    for networks in (
        jax.tree.map(lambda x: x[0], begun),
        [jax.tree.map(lambda x: x[0], begun)],
    ):
        found = imp.tickets_from(
            [jax.tree.map(lambda x: x[0], masks)], networks, {"note": "here"}
        )
        for one, other in zip(found[0], expected[0], strict=True):
            own = jax.tree.map(lambda m, p: np.where(m, p, 0), other.mask, other.params)
            toys.assert_equal(one[:3], (other.mask, own, other.model_state))
            assert one.metadata == {"note": "here"}
            assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(one[:3]))


def test_masks_and_networks_that_do_not_fit_are_no_tickets():
    study = toys.one_chain().study
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731
    mask, network = first(study.masks), first(study.rewound)

    def refused(match, found, networks):
        with pytest.raises(ValueError, match=match):
            imp.tickets_from(found, networks)

    refused("found=a dict; it must be a mask for each chain", mask, network)
    refused("networks: there are 0 for the 0 masks", [], network)
    refused("networks: there are 1 for the 2 masks", [mask] * 2, [network])
    refused("networks=a dict; it must be a lottery_jax.Network", [mask], network.params)
    refused("networks=a dict; .*Network", [mask], [network.params])
    refused("mask: leaf .* has shape", [first(mask)], network)
    refused("mask: leaf .* has dtype float32", [network.params], network)


def _with(ticket, **changes):
    return ticket._replace(**changes)


def test_tickets_that_do_not_fit_are_refused():
    study = toys.one_chain()
    good = stored(study, "imp", 1)

    def refused(match, **changes):
        with pytest.raises(ValueError, match=match):
            retrain(study, 1, **changes)

    refused("found: there must be a ticket", found=[good[0][:1]])
    refused("found: there must be a ticket", found=[])
    refused("dense: there must be a ticket", dense=[])
    refused("dense: the arm 'random_mask' needs", dense=None)
    one, other = good[0]
    cut = jax.tree.map(lambda x: x[:3], one.params)
    refused(
        "leaf .* of found: the params of a ticket",
        found=[[_with(one, params=cut), other]],
    )
    cut = jax.tree.map(lambda x: x[:3], one.mask)
    refused(
        "leaf .* of found: the mask of a ticket", found=[[one, _with(other, mask=cut)]]
    )
    less = {"head": one.params["head"]}
    refused(
        "found: the params of a ticket has", found=[[_with(one, params=less), other]]
    )
    state = {"batch_stats": {"mean": np.zeros(3)}}
    refused(
        "found: the model_state of a ticket",
        found=[[_with(one, model_state=state), other]],
    )
    number = jax.tree.map(lambda m: m.astype(np.float32), one.mask)
    refused("dtype float32; it must be bool", found=[[_with(one, mask=number), other]])
    kept = toys.only(toys.many_chains(), "lr_rewind", steps=12)
    refused("'random_mask' begins from weights that no ticket", plan=kept)


# --- what makes no sense --------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0; it must be 1 or more"),
        ({"validate_every": 0}, "validate_every=0"),
        ({"rewind_step": 10}, r"rewind_step=10 .* \[0, 10\)"),
        ({"rewind_step": -1}, "rewind_step=-1"),
        ({"level_optimizer": "keep"}, "level_optimizer='keep'; .* reset, rewind"),
        ({"random_scope": "all"}, "random_scope='all'"),
        ({"arms": ("ticket", "tocket")}, "arms='tocket'; .* small_dense"),
        ({"arms": ("reinit",)}, "'ticket' must be among"),
        ({"arms": ("ticket", "ticket")}, "each arm once"),
        ({"chains": ()}, "chains="),
        ({"chains": (imp.Chain(), imp.Chain())}, "chains=.* all different"),
    ],
)
def test_plans_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        imp.check(dataclasses.replace(imp.Plan(steps=10), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"densities": "cubic"}, "densities='cubic'; .* a Geometric or a Linear"),
        ({"scope": "both"}, "scope='both'"),
        ({"rule": "close"}, "rule='close'"),
        ({"retrain": "rewund"}, "retrain='rewund'"),
        ({"score": "size"}, "score='size'; .*magnitude"),
        ({"densities": imp.Geometric(0.0)}, "fraction=0.0"),
        ({"densities": imp.Linear(1.0)}, "of_original=1.0"),
        (
            {"scope": "layerwise", "densities": imp.Geometric(0.2, (("a", 1.5),))},
            "by_layer=1.5",
        ),
        (
            {"densities": imp.Geometric(by_layer=(("head", 0.1),))},
            "by_layer=.* scope='layerwise'",
        ),
        ({"rule": "open_lth", "scope": "layerwise"}, "rule='open_lth' needs"),
        ({"rule": "open_lth", "one_shot": True}, "rule='open_lth' needs"),
        ({"rule": "open_lth", "densities": imp.Linear()}, "rule='open_lth' needs"),
    ],
)
def test_chains_that_make_no_sense(changes, message):
    chain = dataclasses.replace(imp.Chain(), **changes)
    with pytest.raises(ValueError, match=message):
        imp.check(imp.Plan(steps=10, chains=(chain,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": -1}, "levels=-1"),
        ({"replicas": ()}, r"replicas=\(\)"),
        ({"replicas": (1, 1)}, "replicas=.*all different"),
        ({"execution": Execution(3, 1)}, "devices=3"),
    ],
)
def test_runs_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        again(toys.one_chain(), **changes)


def test_starts_that_do_not_fit():
    study = toys.one_chain()
    params = study.start("imp", 0, "ticket", 0).params

    def set_up(params):
        start = Network(params, {})
        execution = study.execution
        return levels.set_up(study.task, study.tx, study.plan, (0, 1), execution, start)

    def refused(params, message):
        with pytest.raises(ValueError, match=message):
            set_up(params)

    refused({name: params[name] for name in ("dense_0", "head")}, "start: its leaves")
    longer = params | {"head": params["head"] | {"bias": np.zeros(5)}}
    refused(longer, r"start: leaf 'params/head/bias' has shape \(5,\); .* \(2, 4\)")
    set_up(params)


def test_a_start_that_all_replicas_share_is_held_once():
    study = toys.one_chain()
    start = Network(study.start("imp", 0, "ticket", 0).params, {})
    plan = dataclasses.replace(study.plan, arms=("ticket", "random_mask"))
    bench = levels.set_up(study.task, study.tx, plan, (0, 1, 2), study.execution, start)
    for whole, one in zip(*map(jax.tree.leaves, (bench.first, start))):
        assert whole.shape == (6, *one.shape) and whole.strides[0] == 0


def test_a_start_is_stored_for_none_of_the_networks_that_have_it(tmp_path):
    study = toys.one_chain()
    start = Network(study.start("imp", 0, "ticket", 0).params, {})
    sizes = []

    def watch(progress):
        found = sorted((tmp_path / "checkpoints").glob("*/leaves.bin"))
        if found:
            sizes.append((progress.level, found[-1].stat().st_size))

    plan = dataclasses.replace(study.plan, chains=(imp.Chain(retrain="finetune"),))
    plan = dataclasses.replace(plan, rewind_step=0, arms=("ticket", "random_mask"))
    at = dict(folder=tmp_path, checkpoint_seconds=0, watch=watch)
    again(study._replace(plan=plan), levels=2, start=start, **at)
    of_level = {level: [s for at, s in sizes if at == level] for level in range(3)}
    network = sum(x.nbytes for x in jax.tree.leaves(start))
    mask, pairs = network // 4, len(study.ids)
    # Nothing; then the last networks and the masks; and then what a level began with.
    assert set(of_level[0]) == {0}
    for level in (1, 2):
        left = of_level[level][0] - pairs * mask
        assert left // (pairs * network) == level  # what is recorded is less than one
    whole = tmp_path / "checkpoints"
    assert checkpoints.metadata(whole)["level"] == 3


def test_tickets_of_given_weights_may_hold_digests_of_them(tmp_path):
    study = toys.one_chain()
    shared = study.start("imp", 0, "ticket", 0).params
    ids = range(len(study.ids))
    # The head of each replica is its own, the layers before it are those of all.
    heads = jax.tree.map(lambda x: np.stack([x + i for i in ids]), shared["head"])
    start = Network(shared | {"head": heads}, {})
    run = functools.partial(again, study, levels=1, start=start, folder=tmp_path)
    run(weights="digest")
    for position, replica in enumerate(study.ids):
        path = imp.ticket_path(tmp_path, "imp", 1, replica)
        with pytest.raises(ValueError, match="start="):
            tickets.load(path)
        own = lj.training.of_replica(start, study.task, position).params
        ticket = tickets.load(path, start=own)
        kept = jax.tree.map(lambda m, p: np.where(m, p, 0), ticket.mask, own)
        toys.assert_equal(ticket.params, kept)
        assert 0 < lj.masks.density(ticket.mask) < 1
        other = lj.training.of_replica(start, study.task, 1 - position).params
        with pytest.raises(ValueError, match=r"start\['head'\].*SHA-256"):
            tickets.load(path, start=other)


def test_digests_need_weights_that_were_given_and_are_rewound_to():
    study = toys.one_chain()
    start = Network(study.start("imp", 0, "ticket", 0).params, {})
    late = study._replace(plan=dataclasses.replace(study.plan, rewind_step=2))
    for of, given in ((study, None), (late, start)):
        with pytest.raises(ValueError, match="weights='digest' needs a start"):
            again(of, start=given, weights="digest")


def test_levels_that_would_remove_everything():
    with pytest.raises(ValueError, match="levels=5 .* at most 4"):
        again(toys.many_chains(), levels=5)


def test_small_dense_needs_a_task_that_narrows():
    study = toys.one_chain()
    plan = dataclasses.replace(study.plan, arms=("ticket", "small_dense"), steps=2)
    with pytest.raises(ValueError, match="arms: 'small_dense' needs a task"):
        imp.run(
            study.task._replace(narrow=None),
            study.tx,
            plan,
            levels=1,
            replicas=(0,),
            where=lj.Where(Execution(1, 1)),
        )


# --- counts ---------------------------------------------------------------------------

SHAPES = {
    "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 2, 5), np.float32)},
    "head": {
        "bias": jax.ShapeDtypeStruct((7,), np.float32),
        "kernel": jax.ShapeDtypeStruct((11, 7), np.float32),
    },
}


def counts(level, **chain):
    flags = lj.masks.prunable(SHAPES)
    return imp.keep_counts(imp.Chain(**chain), SHAPES, level, flags).tolist()


def test_keep_counts():
    assert counts(0) == [167, 90, 77]
    assert counts(1) == [167 - 33, 90 - 18, 77 - 15]
    assert counts(2)[0] == 134 - 27
    assert counts(2, one_shot=True) == counts(2)
    assert counts(3, densities=imp.Linear(0.1)) == [117, 63, 77 - 23]
    by_layer = imp.Geometric(by_layer=(("head", 0.1), ("kernel", 0.5)))
    assert counts(1, scope="layerwise", densities=by_layer) == [45 + 69, 45, 69]
    # They replace the one share, whose levels would long be exhausted.
    linear = imp.Linear(0.5, by_layer=(("kernel", 0.05),))
    assert counts(3, scope="layerwise", densities=linear) == [76 + 65, 76, 65]


def test_keep_counts_names_the_layer_without_a_share():
    def count(*by_layer):
        return counts(1, scope="layerwise", densities=imp.Geometric(by_layer=by_layer))

    with pytest.raises(ValueError, match="by_layer: no pattern .*'conv/kernel'"):
        count(("head", 0.1))
    with pytest.raises(ValueError, match="pattern 'haed' matches no leaf"):
        count(("haed", 0.1), ("conv", 0.1))


def test_moments_and_metadata_are_json(tmp_path):
    study, seen = toys.one_chain(), []
    meta = {"model": "mlp", "task": "toy", "config": {"lr": 0.1}}
    again(study, levels=0, folder=tmp_path, metadata=meta, watch=seen.append)
    assert [(m.level, m.done, m.start, m.total, m.rows) for m in seen] == [
        (0, step, 0, 12, 6) for step in (0, 4, 8, 12)
    ]
    ticket = tickets.load(imp.ticket_path(tmp_path, "imp", 0, 1))
    assert ticket.metadata["model"] == "mlp" and ticket.metadata["task"] == "toy"
    assert ticket.metadata["density"] == 1.0
    assert ticket.metadata["config"] == {"lr": 0.1}
    json.dumps(ticket.metadata)


# --- metrics, labels ------------------------------------------------------------------


def several_metrics():
    """Classification whose loss and evaluation report metrics of other names."""
    inner = toys.classification(lj.models.make("mlp-5", 4))

    def loss(*args):
        value, (state, stream, found) = inner.loss(*args)
        more = {"perplexity": jnp.exp(value), "per_class": jnp.zeros(4)}
        return value, (state, stream, found | more)

    def evaluate(*args):
        found = inner.evaluate(*args)
        accuracy = 1 - found.pop("error")
        return found | {"accuracy": accuracy, "confusion": jnp.zeros((4, 4))}

    return inner._replace(loss=loss, evaluate=evaluate)


def test_metrics_of_any_name_are_recorded():
    plan = imp.Plan(steps=4, validate_every=2)
    where = lj.Where(Execution(2, 1))
    study = imp.run(
        several_metrics(), optax.sgd(0.1), plan, levels=1, replicas=(0, 1), where=where
    )
    records = {name: values for name, (_, values) in study.records.items()}
    for name in ("accuracy", "loss"):
        for part in (f"test_{name}", f"test_{name}_early", f"validation_{name}"):
            assert np.isfinite(records[part]).all(), part
    mean = records["train_perplexity"]
    assert (mean >= np.exp(records["train_loss"]) - 1e-4).all()  # Jensen
    # What is no number of a network, and what nobody reports, is not there.
    absent = ("train_per_class", "test_confusion", "test_error", "validation_error")
    assert not set(absent) & set(records)
    found = study.dataset(note="toy")
    assert found.attrs["note"] == "toy" and found.attrs["steps"] == 4
    picked = found["test_accuracy"].sel(arm="ticket", replica=1, level=1).item()
    assert picked == records["test_accuracy"][0, 0, 1, 1]


def test_a_score_of_ones_own_in_a_study():
    def smallest_go_last(key, inputs):
        return jax.tree.map(lambda p: -jnp.abs(p), inputs.trained)

    study = toys.one_chain()
    plan = dataclasses.replace(
        study.plan, chains=(imp.Chain(score=smallest_go_last),), arms=("ticket",)
    )
    found = imp.run(
        study.task, study.tx, plan, levels=1, where=lj.Where(study.execution)
    )
    mask = np.asarray(found.masks["head"]["kernel"][0, 0])
    trained = study.end("imp", 0, "ticket", 0).params["head"]["kernel"]
    assert 0 < mask.sum() < mask.size
    assert np.abs(trained[mask]).max() <= np.abs(trained[~mask]).min()
    assert "smallest_go_last" in imp.tickets_of(found)[0][0].metadata["found"]
