"""Tickets on other tasks: what is carried, what is drawn, and what does not fit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_own_models as own_models
import toys

import lottery_jax as lj
from lottery_jax import imp, keys, masks, tickets, training, transfer, trees
from lottery_jax.storage.tickets import Ticket
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS, K = 12, 4
IDS = (0, 1)


def of_three_classes(**options):
    """Another data set, of three classes instead of four."""
    made = toys.dataset(seed=1)
    arrays = {
        split: fields | {"label": fields["label"] % 3}
        for split, fields in made.arrays.items()
    }
    return lj.tasks.classification(
        made._replace(arrays=arrays, num_classes=3),
        toys.NormNet(num_classes=3),
        **{"batch_size": 30} | options,
    )


@functools.cache
def source():
    """Tickets that were rewound to step 4, pruned twice."""
    plan = imp.Plan(STEPS, K, arms=("ticket",), validate_every=6)
    chain = imp.Chain(densities=imp.Geometric(0.4))
    plan = dataclasses.replace(plan, chains=(chain,))
    study = imp.run(toys.classification(), optax.sgd(0.1), plan, levels=2, replicas=IDS)
    return study, imp.tickets_of(study)


def a_ticket():
    """The first replica's; its statistics and norms are those of the rewind step."""
    return source()[1][0][0]


def drawn(task, key):
    """What a task draws, on the host."""
    params, state, _ = task.init(key)
    return trees.host(Network(params, state))


# --- one ticket -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [toys.classification, of_three_classes])
def test_all_but_the_head_is_the_tickets_and_the_head_is_the_targets_draw(make, getkey):
    ticket, task, key = a_ticket(), make(), getkey()
    network, mask = transfer.graft(ticket, task, key)
    own = drawn(task, key)
    assert jax.tree.structure(network.params) == jax.tree.structure(own.params)
    for part in ("hidden", "norm"):
        alive = ticket.mask[part]
        toys.assert_equal(mask[part], alive)
        kept = jax.tree.map(lambda m, p: np.where(m, p, 0), alive, ticket.params[part])
        toys.assert_equal(network.params[part], kept)
    toys.assert_equal(network.params["head"], own.params["head"])
    assert all(leaf.all() for leaf in jax.tree.leaves(mask["head"]))
    # BatchNorm's statistics moved until the rewind step, and are carried.
    toys.assert_equal(network.model_state, ticket.model_state)
    fresh = jax.tree.leaves(own.model_state)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(network[1]), fresh))
    # Weights of another key differ in the head alone.
    other, same = transfer.graft(ticket, task, getkey())
    toys.assert_equal(same, mask)
    toys.assert_equal(other.params["hidden"], network.params["hidden"])
    kernels = (x.params["head"]["kernel"] for x in (other, network))
    assert np.not_equal(*kernels).all()


def test_without_a_head_a_ticket_stays_as_it_is(getkey):
    ticket, task = a_ticket(), toys.classification(seed=1)._replace(head=())
    network, mask = transfer.graft(ticket, task, getkey())
    toys.assert_equal(mask, ticket.mask)
    toys.assert_equal(network.params, trees.host(masks.apply(mask, ticket.params)))
    assert not ticket.mask["head"]["kernel"].all()


def test_the_density_of_a_graft_counts_the_whole_head(getkey):
    ticket, task = a_ticket(), of_three_classes()
    alive = int(ticket.mask["hidden"]["kernel"].sum())
    mask = transfer.graft(ticket, task, getkey())[1]
    assert int(masks.count(mask)) == alive + 12 * 3
    assert float(masks.density(mask)) == pytest.approx(
        (alive + 12 * 3) / (8 * 12 + 12 * 3)
    )


def test_what_lies_off_the_mask_is_0_whatever_the_ticket_has_there(getkey):
    ticket, task = a_ticket(), toys.classification()
    dirty = jax.tree.map(
        lambda m, p: np.where(m, p, np.nan), ticket.mask, ticket.params
    )
    network, mask = transfer.graft(ticket._replace(params=dirty), task, getkey())
    for m, p in zip(*map(jax.tree.leaves, (mask, network.params))):
        assert (p[~m] == 0).all() and np.isfinite(p).all()


CONTAINERS = {
    "nnx": (own_models.nnx_init, own_models.nnx_apply, "^head/"),
    "haiku": (own_models.hk_init, own_models.hk_apply, "^linear_1/"),
    "equinox": (own_models.eqx_init, own_models.eqx_apply, "^layers/1/"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_stored_ticket_of_nested_dicts_goes_into_trees_of_any_library(
    name, tmp_path, getkey
):
    init, apply, head = CONTAINERS[name]
    task = own_models.functions_task(init, apply, head=(head,))
    params, state, _ = task.init(getkey())
    rng = np.random.default_rng(0)
    mask = jax.tree.map(lambda p: (rng.random(p.shape) < 0.5) | (p.ndim < 2), params)
    tickets.save(tmp_path / "a", Ticket(mask, params, state, {}))
    network, grafted = transfer.graft(
        tickets.load(tmp_path / "a"), task, key := getkey()
    )
    own = drawn(task, key)
    assert jax.tree.structure(network) == jax.tree.structure(own)
    assert trees.same_structure(grafted, network.params)
    is_head = trees.by_path(trees.matching(params, (head,)))
    before, source_mask, now = map(trees.by_path, (params, mask, own.params))
    for path, leaf in trees.by_path(network.params).items():
        alive = trees.by_path(grafted)[path]
        if is_head[path]:
            assert alive.all()
            np.testing.assert_array_equal(leaf, now[path])
        else:
            np.testing.assert_array_equal(alive, source_mask[path])
            np.testing.assert_array_equal(leaf, np.where(alive, before[path], 0))
    toys.assert_equal(network.model_state, trees.host(state))


# --- what does not fit ----------------------------------------------------------------


def with_leaf(tree, path, leaf):
    """A nested dict with another leaf; None takes it out."""
    first, *rest = path
    if rest:
        return tree | {first: with_leaf(tree[first], rest, leaf)}
    return {k: v for k, v in (tree | {first: leaf}).items() if v is not None}


def changed(*path, leaf, mask=None):
    ticket = a_ticket()
    params = with_leaf(ticket.params, path, leaf)
    survivors = None if leaf is None else np.ones(leaf.shape, bool)
    own = with_leaf(ticket.mask, path, survivors if mask is None else mask)
    return ticket._replace(params=params, mask=own)


SHORT, EXTRA = np.zeros((8, 3), np.float32), np.zeros(2, np.float32)

REFUSED = {
    "a leaf that is missing": (
        lambda: changed("hidden", "bias", leaf=None),
        r"ticket.mask must fit the task in all but its head .*: 'hidden/bias' is missing",
    ),
    "a leaf too many": (
        lambda: changed("hidden", "gate", leaf=EXTRA),
        "ticket.mask .*: 'hidden/gate' is no leaf of the task. Source and target need",
    ),
    "another shape": (
        lambda: changed("hidden", "kernel", leaf=SHORT),
        r"ticket.mask .*: 'hidden/kernel' has shape \(8, 3\); the task's is \(8, 12\)",
    ),
    "another dtype": (
        lambda: changed("hidden", "bias", leaf=np.zeros(12, np.float16)),
        "ticket.params .*: 'hidden/bias' has dtype float16; the task's is float32",
    ),
    "a mask of numbers": (
        lambda: changed(
            "hidden", "bias", leaf=np.zeros(12, np.float32), mask=np.ones(12)
        ),
        "ticket.mask .*: 'hidden/bias' has dtype float64; the task's is bool",
    ),
    "several at once": (
        lambda: a_ticket()._replace(
            mask={"hidden": {"kernel": SHORT > 0, "gate": EXTRA > 0}, "head": {}}
        ),
        r"ticket.mask .*: 'hidden/gate' is no leaf of the task; 'hidden/bias' is missing "
        r"in the ticket; 'hidden/kernel' has shape \(8, 3\); the task's is \(8, 12\); "
        "'norm/bias' is missing in the ticket; 'norm/scale' is missing in the ticket. ",
    ),
    "no statistics": (
        lambda: a_ticket()._replace(model_state={}),
        "ticket.model_state .*: 'batch_stats/norm/mean' is missing in the ticket; ",
    ),
    "a pruned bias": (
        lambda: changed(
            *("hidden", "bias"),
            leaf=np.zeros(12, np.float32),
            mask=np.arange(12) > 3,
        ),
        "ticket: leaf 'hidden/bias' is pruned, and does not count as prunable in the",
    ),
    "no ticket": (lambda: {"mask": 1}, "ticket=a dict; it must be a .*tickets.Ticket"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_ticket_that_does_not_fit_is_refused_with_every_leaf(name, getkey):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        transfer.graft(make(), toys.classification(), getkey())


def test_what_is_called_like_a_head_may_be_there_or_not(getkey):
    whole, task, key = a_ticket(), toys.classification(), getkey()
    bare = changed("head", leaf=None)
    more = changed("head", "gate", leaf=EXTRA)
    expected = transfer.graft(whole, task, key)
    for other in (bare, more):
        toys.assert_equal(transfer.graft(other, task, key), expected)


def test_heads_and_keys_that_are_none_are_refused(getkey):
    task = toys.classification()
    with pytest.raises(ValueError, match="task.head: pattern 'logits' matches no leaf"):
        transfer.graft(a_ticket(), task._replace(head=("logits",)), getkey())
    with pytest.raises(ValueError, match="key=.*; it must be keys of threefry2x32"):
        transfer.graft(a_ticket(), task, np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match="key=.*; it must be keys of threefry2x32"):
        transfer.graft(a_ticket(), task, jax.random.key(0, impl="rbg"))


def test_numbers_of_tickets_are_checked():
    row, task = source()[1][0], toys.classification()
    for found, message in (
        ([row], r"found: a chain has 2 tickets; it must be 3, one for each replica"),
        (row, "found=a Ticket; it must be a list of tickets for each chain"),
        ([["a.safetensors"] * 3], "found='a.safetensors'; it must be a list"),
    ):
        with pytest.raises(ValueError, match=message):
            transfer.grafted(found, task, replicas=3)


# --- many, and what is trained --------------------------------------------------------


def test_each_replicas_head_is_the_one_its_own_networks_begin_with():
    ids, task = (3, 5), of_three_classes()
    row = source()[1][0]
    found = transfer.grafted([row, row[::-1]], task, seed=7, replicas=ids)
    own = keys.of_replicas(7, ids)
    runs = training.fresh(task, optax.sgd(0.1), own.init, own.noise)
    for chain, order in zip(found, (row, row[::-1])):
        for i, (one, given) in enumerate(zip(chain, order)):
            expected = trees.rows(trees.host(runs.state.params["head"]), i)
            toys.assert_equal(one.params["head"], expected)
            network, mask = transfer.graft(given, task, own.init[i])
            toys.assert_equal((one.params, one.model_state, one.mask), (*network, mask))
            assert one.metadata == given.metadata


@functools.cache
def retrained(scope="layerwise"):
    """Grafted tickets, structures and random tickets, trained; and how they began."""
    task, tx = of_three_classes(), optax.adam(0.01)
    plan = imp.Plan(
        STEPS,
        K,
        arms=tuple(transfer.CARRIED.values()),
        validate_every=6,
        seed=3,
        random_scope=scope,
    )
    there = transfer.grafted(source()[1], task, seed=3, replicas=IDS)
    states = {}

    def watch(progress):
        if progress.stage != "fresh draws":
            states.setdefault("start", progress.states())
            states["end"] = progress.states()

    study = imp.retrain(
        task, tx, plan, there, level=1, replicas=IDS, where=lj.Where(watch=watch)
    )
    rows = {
        (name, i): r * len(plan.arms) + plan.arms.index(arm)
        for name, arm in transfer.CARRIED.items()
        for r, i in enumerate(IDS)
    }
    at = {
        when: {name: trees.rows(state, row) for name, row in rows.items()}
        for when, state in states.items()
    }
    return task, tx, there, study, at


@pytest.mark.slow
def test_a_ticket_starts_from_its_graft_bit_for_bit():
    _, _, there, _, at = retrained()
    for i in IDS:
        began = at["start"]["ticket", i]
        toys.assert_equal(began.params, there[0][i].params)
        toys.assert_equal(began.mask, there[0][i].mask)
        toys.assert_equal(began.model_state, there[0][i].model_state)


def fresh_trunks():
    """Fresh draws of the target, trained densely to the rewind step."""
    task, tx, *_ = retrained()
    own = keys.of_replicas(3, IDS)
    runs = training.fresh(task, tx, own.fresh_init, own.fresh_noise)
    return trees.host(training.train(task, tx, runs, K, every=K).state)


def test_a_structure_is_the_mask_on_a_fresh_draw_of_the_target_trained_to_k():
    _, _, there, _, at = retrained()
    trunks = fresh_trunks()
    for i in IDS:
        began, trunk = at["start"]["structure", i], trees.rows(trunks, i)
        toys.assert_equal(began.mask, there[0][i].mask)
        kept = trees.host(masks.apply(began.mask, trunk.params))
        toys.assert_equal(began.params, kept)
        toys.assert_equal(began.model_state, trunk.model_state)


def test_a_random_ticket_is_another_mask_of_equal_counts_on_the_same_fresh_draw():
    _, _, there, _, at = retrained()
    trunks = fresh_trunks()
    for i in IDS:
        began, trunk = at["start"]["random ticket", i], trees.rows(trunks, i)
        mine, theirs = (x["hidden"]["kernel"] for x in (began.mask, there[0][i].mask))
        assert mine.sum() == theirs.sum() and (mine != theirs).any()
        assert began.mask["head"]["kernel"].all()
        kept = trees.host(masks.apply(began.mask, trunk.params))
        toys.assert_equal(began.params, kept)
    one, other = (at["start"]["random ticket", i].mask["hidden"]["kernel"] for i in IDS)
    assert (one != other).any()


def test_what_is_compared_shares_its_noise():
    """Structure and random ticket have that of the fresh draw, tickets their replica's."""
    task, tx, _, _, at = retrained()
    own = keys.of_replicas(3, IDS)
    noises = {"ticket": own.noise, "structure": own.fresh_noise}
    noises["random ticket"] = own.fresh_noise
    for name, noise in noises.items():
        state = trees.stack([at["start"][name, i] for i in IDS])
        joins, offset = np.full(len(IDS), K), np.zeros(len(IDS), int)
        runs = training.Runs(jax.tree.map(jnp.asarray, state), noise, joins, offset)
        done = trees.host(training.train(task, tx, runs, STEPS, every=6).state.params)
        for r, i in enumerate(IDS):
            toys.assert_close(trees.rows(done, r), at["end"][name, i].params)


def test_a_global_random_ticket_keeps_its_count_over_all_layers():
    _, _, there, study, at = retrained("global")
    for i in IDS:
        mine, theirs = at["start"]["random ticket", i].mask, there[0][i].mask
        assert int(masks.count(mine)) == int(masks.count(theirs))
        assert (mine["hidden"]["kernel"] != theirs["hidden"]["kernel"]).any()
    alive = study.records["alive"][1][0]
    assert (alive == alive[:1]).all()


def test_a_stored_ticket_grafts_like_the_one_in_memory(tmp_path):
    task, row = of_three_classes(), source()[1][0]
    stored = []
    for i, one in enumerate(row):
        tickets.save(tmp_path / f"{i}", one)
        stored.append(tickets.load(tmp_path / f"{i}"))
    found, again = (
        transfer.grafted([r], task, seed=3, replicas=IDS)[0] for r in (row, stored)
    )
    for one, other in zip(found, again):
        toys.assert_equal(one[:3], other[:3])
