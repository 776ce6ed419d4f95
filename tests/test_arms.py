"""The controls: what each arm of each chain starts a level from, to the bit."""

import functools
import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import imp, tickets, training
from lottery_jax.execution import Execution
from lottery_jax.imp import arms
from lottery_jax.keys import replica_keys
from lottery_jax.types import Network

# The studies of `toys` are shared by several files: all compile them alike.
pytestmark = pytest.mark.usefixtures("compiled_quickly")

K, STEPS, LEVELS = toys.REWIND, toys.STEPS, 3
SIZES = {"head": 12 * 4, "hidden": 8 * 12}
TOTAL = sum(SIZES.values())
ITERATIVE = ("imp", "linear", "lr_rewind", "finetune", "open_lth", "by_layer")
ALL = tuple(chain.name for chain in toys.CHAINS)


@pytest.fixture(scope="module")
def study():
    return toys.many_chains()


def kernels(mask):
    """The prunable leaves, in tree order."""
    return {name: np.asarray(mask[name]["kernel"]) for name in SIZES}


def masked(mask, params):
    """Weights with zeros off the mask, by NumPy."""
    return jax.tree.map(lambda m, p: np.where(m, p, 0), mask, params)


def step_of(began):
    """Where the schedule of a run stands."""
    return toys.schedule_step(began.opt_state)


def moments_of(began):
    """The optimizer's state without its schedule."""
    return began.opt_state[0]


# --- by itself ------------------------------------------------------------------------


def _half_masked(seed):
    rng = np.random.default_rng(seed)
    params = {
        name: {"kernel": rng.normal(size=shape), "bias": rng.normal(size=shape[-1:])}
        for name, shape in {"a": (5, 7), "b": (3, 3, 2, 4)}.items()
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    mask = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    for name in mask:
        mask[name]["kernel"] = jnp.asarray(
            rng.random(params[name]["kernel"].shape) < 0.4
        )
    return params, mask


@pytest.mark.parametrize("seed", range(3))
def test_surviving_weights_are_dealt_anew_among_the_surviving_places(seed):
    params, mask = _half_masked(seed)
    shuffled = arms.shuffle_surviving(jax.random.key(seed), params, mask)
    for name in params:
        old, new = (
            np.asarray(params[name]["kernel"]),
            np.asarray(shuffled[name]["kernel"]),
        )
        alive = np.asarray(mask[name]["kernel"])
        np.testing.assert_array_equal(np.sort(new[alive]), np.sort(old[alive]))
        assert (new[alive] != old[alive]).any()
        np.testing.assert_array_equal(shuffled[name]["bias"], params[name]["bias"])
    again = arms.shuffle_surviving(jax.random.key(seed + 50), params, mask)
    assert (again["b"]["kernel"] != shuffled["b"]["kernel"]).any()


def test_every_place_is_equally_likely():
    params = {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3)}
    mask = {"kernel": jnp.array([[True, False, True], [True, True, False]])}
    keys = jax.random.split(jax.random.key(0), 2000)
    deal = jax.vmap(lambda key: arms.shuffle_surviving(key, params, mask)["kernel"])
    first = np.asarray(jax.jit(deal)(keys))[:, 0, 0]
    counts = [(first == value).sum() for value in (1, 3, 4, 5)]
    assert sum(counts) == 2000 and min(counts) > 500 - 6 * np.sqrt(2000 * 3 / 16)


def test_keys_of_replicas_and_roles_all_differ():
    keys = [k for seed in (0, 1) for i in range(4) for k in replica_keys(seed, i)]
    assert len({tuple(np.asarray(jax.random.key_data(k))) for k in keys}) == len(keys)


# --- masks ----------------------------------------------------------------------------


def geometric(level, fraction=0.2):
    """Counts of removing round(fraction * alive), half to even, exactly."""
    alive = {name: size for name, size in SIZES.items()} | {"all": TOTAL}
    for _ in range(level):
        alive = {n: a - round(Fraction(str(fraction)) * a) for n, a in alive.items()}
    return alive


def expected_count(chain, level):
    if chain == "linear":
        return TOTAL - round(Fraction("0.2") * level * TOTAL)
    if chain == "open_lth":
        alive = TOTAL
        for _ in range(level):  # np.sort(...)[ceil(fraction * alive)] goes too
            alive -= -(-alive // 5) + 1
        return alive
    if chain == "by_layer":
        return geometric(level, 0.1)["head"] + geometric(level, 0.3)["hidden"]
    return geometric(level)["all"]


@pytest.mark.parametrize("chain", ALL)
def test_counts_are_those_of_the_schedule(study, chain):
    expected = [expected_count(chain, level) for level in range(LEVELS + 1)]
    for arm in study.plan.arms:
        alive = study.record("alive", chain, arm)
        np.testing.assert_array_equal(alive, [expected] * len(study.ids))
    density = study.record("density", chain, "ticket")
    np.testing.assert_allclose(density[0], np.array(expected) / TOTAL)


def test_shares_of_layers_count_in_each_layer(study):
    for replica in study.ids:
        for level in range(LEVELS + 1):
            mask = kernels(study.start("by_layer", replica, "ticket", level).mask)
            assert mask["head"].sum() == geometric(level, 0.1)["head"]
            assert mask["hidden"].sum() == geometric(level, 0.3)["hidden"]


@pytest.mark.parametrize("chain", ALL)
@pytest.mark.parametrize("arm", ["ticket", "random_mask"])
def test_masks_are_nested_and_spare_what_is_not_prunable(study, chain, arm):
    for replica in study.ids:
        for level in range(1, LEVELS + 1):
            outer = study.start(chain, replica, arm, level - 1).mask
            inner = study.start(chain, replica, arm, level).mask
            within = jax.tree.map(lambda i, o: (~i | o).all(), inner, outer)
            assert all(jax.tree.leaves(within))
            for leaf in (inner["hidden"]["bias"], *jax.tree.leaves(inner["norm"])):
                assert leaf.all()


@pytest.mark.parametrize("chain", ALL)
def test_masks_keep_the_largest_weights(study, chain):
    """Which they are is found here by a stable sort of what the level before ended with."""
    for replica in study.ids:
        for level in range(1, LEVELS + 1):
            once = chain.startswith("one_shot")
            before = 0 if once else level - 1
            params = study.end(chain, replica, "ticket", before).params
            outer = kernels(study.start(chain, replica, "ticket", before).mask)
            got = kernels(study.start(chain, replica, "ticket", level).mask)
            groups = [[n] for n in SIZES] if chain == "by_layer" else [list(SIZES)]
            for group in groups:
                size = np.concatenate(
                    [np.abs(params[n]["kernel"]).reshape(-1) for n in group]
                )
                alive = np.concatenate([outer[n].reshape(-1) for n in group])
                found = np.concatenate([got[n].reshape(-1) for n in group])
                order = np.argsort(np.where(alive, size, np.inf), kind="stable")
                expected = alive.copy()
                expected[order[: alive.sum() - found.sum()]] = False
                np.testing.assert_array_equal(found, expected)


def test_controls_share_the_chains_mask(study):
    for chain in ALL:
        for level in range(LEVELS + 1):
            mask = study.start(chain, 1, "ticket", level).mask
            for arm in ("reinit", "reinit_raw", "shuffled_weights"):
                toys.assert_equal(study.start(chain, 1, arm, level).mask, mask)


def test_random_masks_have_the_tickets_layer_counts_and_no_more_of_it(study):
    for chain in ALL:
        for replica in study.ids:
            for level in range(1, LEVELS + 1):
                ticket = kernels(study.start(chain, replica, "ticket", level).mask)
                random = kernels(study.start(chain, replica, "random_mask", level).mask)
                for name in SIZES:
                    assert random[name].sum() == ticket[name].sum()
                    assert (random[name] != ticket[name]).any()
        density = study.record("layer_density", chain, "random_mask")
        np.testing.assert_array_equal(
            density, study.record("layer_density", chain, "ticket")
        )
    one, other = (
        kernels(study.start("imp", i, "random_mask", LEVELS).mask)["hidden"]
        for i in (0, 1)
    )
    assert (one != other).any()


# --- weights --------------------------------------------------------------------------


@functools.cache
def reference():
    """The same networks by a plain loop over one replica: jit and nothing else."""
    study = toys.many_chains()

    @jax.jit
    def draw(init_key):
        params, model_state, _ = study.task.init(init_key)
        return Network(params, model_state)

    @jax.jit
    def train(network, mask, key, a, b, offset):
        state = training.start(study.tx, network, (), mask, step=a + offset)
        state, _ = training.train_steps(
            study.task,
            study.tx,
            state,
            key,
            a,
            b,
            capacity=STEPS,
            offset=offset,
        )
        return Network(state.params, state.model_state)

    def run(init, noise, mask, a, b, network=None, offset=0):
        network = draw(init) if network is None else network
        mask = jax.tree.map(jnp.asarray, mask)
        return train(network, mask, noise, *map(np.int32, (a, b, offset)))

    return draw, run


def test_at_level_0_the_controls_of_masks_and_places_are_the_ticket(study):
    for name, (axes, values) in study.study.records.items():
        if axes[0] == "chain":
            arm = dict(zip(study.plan.arms, np.moveaxis(values, 1, 0)))
            for control in ("random_mask", "shuffled_weights"):
                np.testing.assert_array_equal(
                    arm[control][:, :, 0], arm["ticket"][:, :, 0], err_msg=name
                )
            np.testing.assert_array_equal(
                arm["reinit"][:, :, 0], arm["reinit_raw"][:, :, 0]
            )
    loss = study.record("test_loss", "imp", "ticket")
    assert (loss[:, 0] != study.record("test_loss", "imp", "reinit")[:, 0]).all()
    assert (loss[:, 1:] != study.record("test_loss", "imp", "random_mask")[:, 1:]).all()


@pytest.mark.parametrize("chain", ["imp", "linear", "one_shot", "open_lth", "by_layer"])
def test_rewound_weights_are_those_of_the_rewind_step_bit_for_bit(study, chain):
    for replica in study.ids:
        keys = replica_keys(study.plan.seed, replica)
        # What level 0's ticket holds is the whole network at the rewind step.
        trunk = tickets.load(imp.ticket_path(study.folder, chain, 0, replica))
        full = study.start(chain, replica, "ticket", 0).mask
        by_hand = _numpy(reference()[1](keys.init, keys.noise, full, 0, K))
        toys.assert_close(Network(trunk.params, trunk.model_state), by_hand, 1e-6)
        for level in range(1, LEVELS + 1):
            for arm in ("ticket", "random_mask"):
                began = study.start(chain, replica, arm, level)
                assert step_of(began) == K
                toys.assert_equal(began.model_state, trunk.model_state)
                toys.assert_equal(began.params, masked(began.mask, trunk.params))


def test_rewinding_resets_momentum_and_trains_with_the_noise_of_the_rewind_step(study):
    keys = replica_keys(study.plan.seed, 2)
    began = study.start("imp", 2, "ticket", 2)
    end = reference()[1](keys.init, keys.noise, began.mask, K, STEPS, began.network)
    toys.assert_close(_numpy(end), study.end("imp", 2, "ticket", 2))
    assert study.plan.level_optimizer == "reset"
    assert not any(x.any() for x in jax.tree.leaves(moments_of(began)))


@pytest.mark.parametrize("chain", ["lr_rewind", "finetune"])
def test_chains_that_keep_weights_go_on_from_the_last_level(study, chain):
    for level in range(1, LEVELS + 1):
        for replica in study.ids:
            began = study.start(chain, replica, "ticket", level)
            final = study.end(chain, replica, "ticket", level - 1)
            kept = final._replace(params=masked(began.mask, final.params))
            toys.assert_equal(began.network, kept)


def test_one_shot_finetuning_starts_from_the_dense_network_at_every_level(study):
    for level in range(1, LEVELS + 1):
        for replica in study.ids:
            began = study.start("one_shot_finetune", replica, "ticket", level)
            dense = study.end("one_shot_finetune", replica, "ticket", 0)
            kept = dense._replace(params=masked(began.mask, dense.params))
            toys.assert_equal(began.network, kept)


@pytest.mark.parametrize(
    ("chain", "offset"),
    [("lr_rewind", 0), ("finetune", STEPS - K), ("one_shot_finetune", STEPS - K)],
)
def test_schedules_are_rewound_or_go_on_past_the_end(study, chain, offset):
    keys = replica_keys(study.plan.seed, 0)
    began = study.start(chain, 0, "ticket", 1)
    assert step_of(began) == K + offset

    def retrained(offset):
        return _numpy(
            reference()[1](
                keys.init, keys.noise, began.mask, K, STEPS, began.network, offset
            )
        )

    got = study.end(chain, 0, "ticket", 1)
    toys.assert_close(retrained(offset), got)
    elsewhere = retrained(STEPS - K - offset)
    assert (
        np.abs(elsewhere.params["head"]["kernel"] - got.params["head"]["kernel"]).max()
        > 1e-3
    )
    fresh = study.start(chain, 0, "reinit", 1)  # has its own trunk, at k
    assert step_of(fresh) == K


def test_reinit_is_a_fresh_draw_trained_to_the_rewind_step_under_its_own_noise(study):
    draw, run = reference()
    for replica in study.ids:
        keys = replica_keys(study.plan.seed, replica)
        full = study.start("imp", replica, "ticket", 0).mask
        trained = run(keys.fresh_init, keys.fresh_noise, full, 0, K)
        # Level 0 passes the rewind step on its way: there is the whole trunk.
        trunk = study.at("imp", replica, "reinit", 0, K).network
        toys.assert_close(trunk, _numpy(trained), 1e-6)
        for chain in ("imp", "finetune"):
            for level in (1, LEVELS):
                began = study.start(chain, replica, "reinit", level)
                assert step_of(began) == K
                kept = trunk._replace(params=masked(began.mask, trunk.params))
                toys.assert_equal(began.network, kept)
        ticket = study.start("imp", replica, "ticket", 1)
        drawn = draw(keys.init).params
        fresh = draw(keys.fresh_init).params
        for name in ("hidden", "head"):
            alive = began.mask[name]["kernel"] & ticket.mask[name]["kernel"]
            own, other = (x.params[name]["kernel"] for x in (began, ticket))
            assert (own[alive] != other[alive]).all() and alive.any()
        # Norm scales are part of the law, and drawn anew.
        assert (fresh["norm"]["scale"] != drawn["norm"]["scale"]).all()
        assert ((fresh["norm"]["scale"] > 0) & (fresh["norm"]["scale"] < 1)).all()
    # The noise is its own, too: under the ticket's it would be elsewhere.
    other = run(keys.fresh_init, keys.noise, full, 0, K)
    difference = other.params["head"]["kernel"] - trained.params["head"]["kernel"]
    assert np.abs(difference).max() > 1e-3


def test_raw_reinits_are_untrained(study):
    for replica in study.ids:
        keys = replica_keys(study.plan.seed, replica)
        drawn = _numpy(reference()[0](keys.fresh_init))
        for level in range(1, LEVELS + 1):
            began = study.start("imp", replica, "reinit_raw", level)
            kept = drawn._replace(params=masked(began.mask, drawn.params))
            toys.assert_equal(began.network, kept)
            assert step_of(began) == K


def test_shuffled_weights_are_the_tickets_in_other_places(study):
    for chain in ("imp", "lr_rewind"):
        for replica in study.ids:
            for level in range(1, LEVELS + 1):
                ticket = study.start(chain, replica, "ticket", level)
                shuffled = study.start(chain, replica, "shuffled_weights", level)
                mask = kernels(ticket.mask)
                for name in SIZES:
                    a = ticket.params[name]["kernel"][mask[name]]
                    b = shuffled.params[name]["kernel"][mask[name]]
                    np.testing.assert_array_equal(np.sort(a), np.sort(b))
                    assert (a != b).any()
                for leaf in ("norm", "hidden"):
                    for part in set(ticket.params[leaf]) - {"kernel"}:
                        np.testing.assert_array_equal(
                            shuffled.params[leaf][part],
                            ticket.params[leaf][part],
                        )
                toys.assert_equal(shuffled.model_state, ticket.model_state)


@functools.cache
def signed():
    """A small study of the arms of signs and constants, rewound to step 2."""
    plan = imp.Plan(
        steps=4,
        rewind_step=2,
        chains=(imp.Chain("imp"), imp.Chain("lr_rewind", retrain="lr_rewind")),
        arms=(
            *("ticket", "reinit", "shuffled_weights", "reinit_signed"),
            *("shuffled_weights_signed", "constant", "constant_signed"),
            "random_ticket",
        ),
        validate_every=2,
    )
    tx, execution = optax.sgd(0.05, momentum=0.9), Execution(devices=2, chunk=1)
    return toys.watched(toys.classification(), tx, plan, (0, 1), execution, levels=2)


def began(arm, chain="imp", replica=0, level=2):
    return signed().start(chain, replica, arm, level)


@pytest.mark.parametrize("arm", ["reinit", "shuffled_weights"])
@pytest.mark.parametrize("chain", ["imp", "lr_rewind"])
def test_signed_arms_have_the_magnitudes_of_the_others_and_the_tickets_signs(
    arm, chain
):
    for replica in (0, 1):
        ticket, plain, own = (
            began(name, chain, replica) for name in ("ticket", arm, f"{arm}_signed")
        )
        toys.assert_equal(own.mask, ticket.mask)
        for name in SIZES:
            t, p, o = (x.params[name]["kernel"] for x in (ticket, plain, own))
            np.testing.assert_array_equal(o, np.abs(p) * np.sign(t))
            assert (np.sign(p) != np.sign(t)).any()
            np.testing.assert_array_equal(
                own.params[name]["bias"], plain.params[name]["bias"]
            )
        toys.assert_equal(own.params["norm"], plain.params["norm"])
        toys.assert_equal(own.model_state, plain.model_state)


@pytest.mark.parametrize("chain", ["imp", "lr_rewind"])
def test_constants_are_the_deviation_of_the_whole_layer_at_the_rewind_step(chain):
    for replica in (0, 1):
        path = imp.ticket_path(signed().folder, chain, 0, replica)
        dense = tickets.load(path).params  # the whole network at the rewind step
        for level in (1, 2):
            ticket, random, own = (
                began(name, chain, replica, level)
                for name in ("ticket", "constant", "constant_signed")
            )
            mask = kernels(ticket.mask)
            for name, alive in mask.items():
                expected = np.float64(dense[name]["kernel"]).std()
                for arm in (random, own):
                    value = arm.params[name]["kernel"]
                    assert len(np.unique(np.abs(value[alive]))) == 1
                    np.testing.assert_allclose(np.abs(value[alive]), expected, 1e-6)
                    assert (value[~alive] == 0).all()
                t, r, o = (x.params[name]["kernel"] for x in (ticket, random, own))
                np.testing.assert_array_equal(np.sign(o), np.sign(t))
                assert {*np.sign(r[alive])} == {-1, 1} and (
                    np.sign(r) != np.sign(t)
                ).any()
                # One draw for all levels and chains, another for each replica.
                first = began("constant", "imp", replica, 1).params[name]["kernel"]
                np.testing.assert_array_equal(np.sign(r[alive]), np.sign(first[alive]))
            for arm in (random, own):
                toys.assert_equal(arm.params["norm"], ticket.params["norm"])
                toys.assert_equal(arm.model_state, ticket.model_state)
    one, other = (began("constant", replica=i, level=1) for i in (0, 1))
    assert (np.sign(one.params["hidden"]["kernel"]) != 0).any()
    both = one.mask["hidden"]["kernel"] & other.mask["hidden"]["kernel"]
    a, b = (np.sign(x.params["hidden"]["kernel"][both]) for x in (one, other))
    assert (a != b).any()


@pytest.mark.parametrize("chain", ["imp", "lr_rewind"])
def test_random_tickets_have_the_random_mask_and_the_reinits_weights(chain):
    for replica in (0, 1):
        key = replica_keys(signed().plan.seed, replica).mask_shuffle
        for level in (1, 2):
            own, fresh = (
                began(name, chain, replica, level)
                for name in ("random_ticket", "reinit")
            )
            random = lj.masks.shuffle(key, fresh.mask)  # the key of random masks
            toys.assert_equal(own.mask, lj.trees.host(random))
            both = jax.tree.map(np.logical_and, own.mask, fresh.mask)
            toys.assert_equal(masked(both, own.params), masked(both, fresh.params))
            toys.assert_equal(own.params, masked(own.mask, own.params))
            toys.assert_equal(own.model_state, fresh.model_state)
            assert (
                own.mask["hidden"]["kernel"] & ~fresh.mask["hidden"]["kernel"]
            ).any()


def test_at_level_0_they_are_what_their_arm_is():
    study = signed()
    of_fresh = {arm.name: arm.fresh for arm in arms.ARMS}
    for arm in study.plan.arms:
        like = "reinit" if of_fresh[arm] else "ticket"
        for chain in ("imp", "lr_rewind"):
            loss, other = (
                study.record("test_loss", chain, a)[:, 0] for a in (arm, like)
            )
            np.testing.assert_array_equal(loss, other)
            later = study.record("test_loss", chain, arm)[:, 1:]
            assert (
                arm == like
                or (later != study.record("test_loss", chain, like)[:, 1:]).all()
            )


def test_signs_are_even_and_differ_between_leaves_and_keys():
    params = {"a": jnp.zeros((50, 40)), "b": jnp.zeros((50, 40), jnp.bfloat16)}
    first, other = (arms.random_signs(jax.random.key(i), params) for i in (0, 1))
    for name, x in first.items():
        assert x.dtype == params[name].dtype and {*np.unique(x).tolist()} == {-1, 1}
        assert abs(float(np.float32(x).sum())) < 6 * np.sqrt(2000)
        assert (x != other[name]).any()
    assert (np.float32(first["a"]) != np.float32(first["b"])).any()


@pytest.mark.slow
def test_a_level_of_constants_trains_again_from_the_same_weights():
    """Tickets have lost weights that the deviation of a layer is one of."""
    study, plan = signed(), toys.only(signed(), "imp")

    def stored(level):
        path = functools.partial(imp.ticket_path, study.folder, "imp", level)
        return [[tickets.load(path(replica)) for replica in study.ids]]

    again = functools.partial(
        imp.retrain, study.task, study.tx, plan, stored(1), level=1, replicas=study.ids
    )
    found = again(dense=stored(0), where=lj.Where(study.execution))
    at = np.index_exp[:1, :, :, 1:2]
    for name in ("test_loss", "train_loss"):
        expected = study.study.records[name][1][at]
        np.testing.assert_array_equal(found.records[name][1], expected, err_msg=name)
    # The same as a stack of networks, which all chains have in common.
    whole = [Network(t.params, t.model_state) for t in stored(0)[0]]
    same = again(dense=lj.trees.stack(whole), where=lj.Where(study.execution))
    for name in ("test_loss", "train_loss"):
        np.testing.assert_array_equal(same.records[name][1], found.records[name][1])
    with pytest.raises(ValueError, match="dense: the arm 'constant' needs the tickets"):
        again()
    with pytest.raises(ValueError, match="dense=1 networks; it must be a stack of"):
        again(dense=lj.trees.stack(whole[:1]))


def test_weights_off_the_mask_end_at_exactly_zero(study):
    for (level, _), state in study.moments.items():
        for m, p in zip(*map(jax.tree.leaves, (state.mask, state.params))):
            assert (p[~m] == 0).all() and np.isfinite(p).all()
        assert level == 0 or not all(m.all() for m in jax.tree.leaves(state.mask))


def _numpy(tree):
    return jax.tree.map(np.asarray, tree)


# --- what is handed out and stored ----------------------------------------------------


@pytest.mark.parametrize("chain", ALL)
def test_tickets_hold_what_their_level_started_from(study, chain):
    for replica in study.ids:
        for level in range(LEVELS + 1):
            path = imp.ticket_path(study.folder, chain, level, replica)
            ticket = tickets.load(path)
            began = study.start(chain, replica, "ticket", level)
            toys.assert_equal(ticket.mask, began.mask)
            assert ticket.metadata["level"] == level
            assert ticket.metadata["rewind_step"] == K
            assert ticket.metadata["init"] == {"seed": 0, "replica": replica}
            if level > 0:
                toys.assert_equal(ticket.params, began.params)
                toys.assert_equal(ticket.model_state, began.model_state)


def test_a_study_hands_out_the_last_level(study):
    for c, chain in enumerate(ALL):
        for replica in study.ids:
            began = study.start(chain, replica, "ticket", LEVELS)

            def own(tree, at=(c, replica)):
                return jax.tree.map(lambda x: np.asarray(x[at]), tree)

            toys.assert_equal(own(study.study.masks), began.mask)
            rewound = own(study.study.rewound)
            kept = rewound._replace(params=masked(began.mask, rewound.params))
            toys.assert_equal(kept, began.network)


def test_tickets_without_a_folder_are_those_that_were_stored(study):
    found = imp.tickets_of(study.study)
    for c, chain in enumerate(ALL):
        for r, replica in enumerate(study.ids):
            path = imp.ticket_path(study.folder, chain, LEVELS, replica)
            stored = tickets.load(path)
            toys.assert_equal(found[c][r].mask, stored.mask)
            params = masked(stored.mask, found[c][r].params)
            toys.assert_equal(params, stored.params)
            toys.assert_equal(found[c][r].model_state, stored.model_state)
            plain = json.loads(json.dumps(found[c][r].metadata))
            assert plain == stored.metadata


# --- from step 0, with kept moments, and narrow ---------------------------------------


def test_at_rewind_step_0_weights_are_the_draws_themselves():
    study = toys.one_chain()
    init = jax.jit(study.task.init)
    for replica in study.ids:
        keys = replica_keys(study.plan.seed, replica)
        drawn, fresh = (_numpy(init(k)[0]) for k in (keys.init, keys.fresh_init))
        for level in range(1, 5):
            for arm, params in (
                ("ticket", drawn),
                ("random_mask", drawn),
                ("reinit", fresh),
            ):
                began = study.start("imp", replica, arm, level)
                toys.assert_equal(began.params, masked(began.mask, params))
                assert study.steps(level)[0] == 0


@functools.cache
def kept_moments():
    """Moments of the rewind step kept; a narrow network, whose environment is nothing."""
    plan = imp.Plan(
        steps=8,
        rewind_step=3,
        chains=(imp.Chain("imp"), imp.Chain("finetune", retrain="finetune")),
        arms=("ticket", "reinit", "reinit_raw", "random_mask", "small_dense"),
        validate_every=4,
        level_optimizer="rewind",
    )
    task = toys.classification()._replace(narrow=toys.narrow)
    tx = optax.adam(toys.SCHEDULE)
    return toys.watched(task, tx, plan, (0,), Execution(1, 1), levels=2)


@pytest.mark.slow
def test_kept_moments_are_those_of_the_rewind_step_masked_where_the_schedule_is():
    study = kept_moments()
    keys = replica_keys(0, 0)

    @jax.jit
    def to_k(init, noise):
        params, model_state, stream = study.task.init(init)
        network, full = Network(params, model_state), lj.masks.ones_like(params)
        state = training.start(study.tx, network, stream, full)
        state, _ = training.train_steps(
            study.task, study.tx, state, noise, 0, 3, capacity=3
        )
        return state.opt_state

    own, fresh = to_k(keys.init, keys.noise), to_k(keys.fresh_init, keys.fresh_noise)
    assert int(own[0].count) == int(own[1].count) == 3
    for chain, arm, expected, step, count in (
        ("imp", "ticket", own, 3, 3),
        ("imp", "random_mask", own, 3, 3),
        ("imp", "reinit", fresh, 3, 3),
        ("imp", "reinit_raw", None, 3, 0),
        ("finetune", "ticket", own, 8, 3),
        ("imp", "small_dense", None, 0, 0),
    ):
        for level in (1, 2):
            began = study.start(chain, 0, arm, level)
            adam = moments_of(began)
            assert (step_of(began), int(adam.count)) == (step, count)
            if expected is None:
                assert not any(x.any() for x in jax.tree.leaves((adam.mu, adam.nu)))
                continue
            for got, stored in ((adam.mu, expected[0].mu), (adam.nu, expected[0].nu)):
                kept = masked(began.mask, _numpy(stored))
                toys.assert_close(got, kept, atol=1e-7)


def test_small_dense_networks_start_from_step_0_with_as_many_weights():
    study = kept_moments()
    keys = replica_keys(0, 0)
    for level in (1, 2):
        began = study.start("imp", 0, "small_dense", level)
        assert step_of(began) == 0
        alive = geometric(level)["all"]
        network, mask = _numpy(toys.narrow(keys.fresh_init, alive))
        network = network._replace(params=masked(mask, network.params))
        toys.assert_equal((began.network, began.mask), (network, mask))
        units = round(alive / 12)
        assert study.record("alive", "imp", "small_dense")[0, level] == 12 * units
        # It trains from 0; the others join at k.
        assert study.steps(level) == [0, 3, 4, 8]
        for arm, waits in (("ticket", True), ("small_dense", False)):
            before, at_k, after = (
                study.at("imp", 0, arm, level, step).params for step in (0, 3, 4)
            )
            same = jax.tree.map(lambda x, y: (x == y).all(), before, at_k)
            assert all(jax.tree.leaves(same)) == waits
            assert (after["head"]["bias"] != at_k["head"]["bias"]).any()
