"""Advantage actor-critic: its loss written out in NumPy, its games, what the runner makes."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import toys

import lottery_jax as lj
from lottery_jax import environments, imp, keys, masks, models, training, trees
from lottery_jax.environments import Environment
from lottery_jax.execution import Execution
from lottery_jax.tasks.actor_critic import chosen, targets

pytestmark = pytest.mark.usefixtures("compiled_quickly")

GAMES, HORIZON, LIMIT, EPISODES = 5, 4, 7, 3
TX = optax.rmsprop(0.01, 0.99, 1e-8, eps_in_sqrt=False)
ONE = Execution(1, 1)


# A walk that ends at 2 or -2 and pays where it goes; what it begins with is drawn.


def reset(key):
    where = jax.random.randint(key, (), -1, 2, jnp.int32).astype(jnp.float32)
    return {"where": where, "drift": jax.random.uniform(key, (), jnp.float32)}


def step(key, state, action):
    pushed = 0.6 * jax.random.normal(key, (), jnp.float32)
    where = state["where"] + 1.0 * action.astype(jnp.float32) - 1.0 + 0.5 * pushed
    after = {"where": where, "drift": state["drift"]}
    return after, where + state["drift"], jnp.abs(where) > 2


def observe(state):
    return jnp.stack([state["where"], state["drift"]])


WALK = Environment("walk", reset, step, observe, 3, LIMIT, -10.0, 10.0)


class Linear(nn.Module):
    """Nothing but both output layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="policy")(x), nn.Dense(1, name="value")(x)[:, 0]


NET = models.policy.make("actor-critic-6-5", 3)


def made(model=NET, environment=WALK, **options):
    options = {"games": GAMES, "horizon": HORIZON, "episodes": EPISODES} | options
    return lj.tasks.actor_critic(environment, model, **options)


@functools.cache
def of(model=NET):
    return made(model)


def key_of(seed):
    return keys.of_seed(seed)


# --- what a state turned out to be worth ----------------------------------------------


def worth_in_numpy(reward, terminated, truncated, value, gamma):
    found = np.zeros(reward.shape)
    for game in range(reward.shape[1]):
        for t in range(len(reward)):
            discount = 1.0
            for later in range(t, len(reward)):
                found[t, game] += discount * reward[later, game]
                discount *= gamma
                if terminated[later, game]:
                    break
                if truncated[later, game] or later == len(reward) - 1:
                    found[t, game] += discount * value[later, game]
                    break
    return found


def test_rewards_are_added_up_to_the_end_and_the_critic_stands_for_what_is_cut_off():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 6, 40)).astype(np.float32)
    ends = rng.integers(0, 6, size=(6, 40))
    terminated, truncated = ends == 0, ends == 1
    assert terminated[-1].any() and truncated[-1].any()
    for gamma in (1.0, 0.9):
        found = quick.jit(targets)(reward, terminated, truncated, value, gamma)
        expected = worth_in_numpy(reward, terminated, truncated, value, gamma)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_truncated_episode_is_worth_more_than_it_gained_and_a_terminated_one_is_not():
    one, no, yes = np.ones((1, 1), np.float32), np.array([[False]]), np.array([[True]])
    args = (10 * one, 0.5)
    worth = quick.jit(targets, static_argnums=4)
    assert worth(one, yes, no, *args) == 1.0
    assert worth(one, no, yes, *args) == worth(one, no, no, *args) == 6.0


def test_actions_are_drawn_by_their_probabilities():
    p = np.array([0.5, 0.0, 0.2, 0.3])
    logits = jnp.log(jnp.asarray(p, jnp.float32)) + 3.0
    drawn = jnp.arange(1000, dtype=jnp.float32) / 1000
    found = np.asarray(quick.jit(chosen)(jnp.broadcast_to(logits, (1000, 4)), drawn))
    counts = np.bincount(found, minlength=4)
    np.testing.assert_allclose(counts / 1000, p, atol=1.5e-3)
    assert counts[1] == 0
    # Rounding never makes an action that there is not.
    high = np.nextafter(np.float32(1), np.float32(0))
    assert chosen(jnp.zeros((1, 7)), jnp.array([high]))[0] == 6


# --- the loss and its gradient, written out -------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def loss_in_numpy(params, played, *, gamma, entropy_weight, value_weight, scale):
    """Of `Linear`, in float64, and its gradient in both output layers."""
    w, c = (np.asarray(params["policy"][n], np.float64) for n in ("kernel", "bias"))
    v, b = (np.asarray(params["value"][n], np.float64) for n in ("kernel", "bias"))
    played = jax.tree.map(lambda x: np.asarray(x), played)
    worth = worth_in_numpy(
        scale * played.reward.astype(np.float64),
        played.terminated,
        played.truncated,
        (played.after @ v + b)[..., 0],
        gamma,
    ).reshape(-1)
    x = played.observation.reshape(-1, 2).astype(np.float64)
    n, action = len(x), played.action.reshape(-1)
    p, value = softmax(x @ w + c), (x @ v + b)[:, 0]
    advantage, log = worth - value, np.log(p)
    entropy = -(p * log).sum(-1)
    policy = -(log[np.arange(n), action] * advantage).mean()
    loss = policy + value_weight * (advantage**2).mean()
    loss -= entropy_weight * entropy.mean()
    of_logits = -advantage[:, None] * (np.eye(3)[action] - p)
    of_logits += entropy_weight * p * (log + entropy[:, None])
    of_value = -2 * value_weight * advantage[:, None]
    slopes = {
        "policy": {"kernel": x.T @ of_logits / n, "bias": of_logits.mean(0)},
        "value": {"kernel": x.T @ of_value / n, "bias": of_value.mean(0)},
    }
    return loss, slopes, entropy.mean(), (advantage**2).mean()


def test_loss_and_gradient_are_those_written_out():
    options = dict(gamma=0.9, entropy_weight=0.3, value_weight=0.7)
    task = made(Linear(), reward_scale=0.5, **options)
    static = task.loss.__self__

    @quick.jit
    def at(params, games, key):
        loss = jax.value_and_grad(task.loss, has_aux=True)
        played, _ = static.play(params, {}, games, key)
        return loss(params, {}, games, {}, key), played

    params, _, games = task.init(key_of(0))
    ends = np.zeros(2)
    for number in range(6):
        ((value, (_, after, found)), slopes), played = at(params, games, key_of(number))
        expected = loss_in_numpy(params, played, scale=0.5, **options)
        np.testing.assert_allclose(value, expected[0], rtol=1e-4, atol=1e-5)
        toys.assert_close(slopes, expected[1], atol=2e-5)
        np.testing.assert_allclose(found["entropy"], expected[2], rtol=1e-5)
        np.testing.assert_allclose(found["value_loss"], expected[3], rtol=1e-4)
        ends += int(played.terminated.sum()), int(played.truncated.sum())
        games = after
    assert (ends > 0).all()


# --- the games ------------------------------------------------------------------------


@functools.cache
def stepped(number=8):
    """Games before and after some steps, what was played, and the metrics of each."""
    task, found = of(), []
    params, _, games = task.init(key_of(0))

    @quick.jit
    def at(games, key):
        played, _ = task.loss.__self__.play(params, {}, games, key)
        return played, task.loss(params, {}, games, {}, key)[1]

    for i in range(number):
        played, (_, after, metrics) = at(games, jax.random.fold_in(key_of(1), i))
        found.append(jax.tree.map(np.asarray, (games, played, after, metrics)))
        games = after
    return found


def test_games_go_on_where_they_were_and_begin_anew_where_they_are_over():
    number, reward = np.zeros(GAMES, int), np.zeros(GAMES)
    over, last, truncated = np.ones(GAMES, bool), np.zeros(GAMES), 0
    before = None
    for games, played, after, _ in stepped():
        np.testing.assert_array_equal(games.over, over)
        for t in range(HORIZON):
            # A game that goes on is seen as it was left.
            same = (
                (played.observation[t] == before).all(-1) if before is not None else 0
            )
            assert np.array_equal(same, ~over) or before is None
            number, reward = np.where(over, 0, number) + 1, np.where(over, 0, reward)
            reward = reward + played.reward[t]
            far = np.abs(played.after[t, :, 0]) > 2
            np.testing.assert_array_equal(played.terminated[t], far)
            np.testing.assert_array_equal(played.truncated[t], (number == LIMIT) & ~far)
            over = far | (number == LIMIT)
            truncated += int(((number == LIMIT) & ~far).sum())
            last, before = np.where(over, reward, last), played.after[t]
        np.testing.assert_array_equal(after.steps, number)
        np.testing.assert_allclose(after.running, reward, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after.last, last, rtol=1e-5, atol=1e-6)
    assert truncated > 2 and after.ended.sum() > truncated


def test_the_return_of_training_is_that_of_the_last_episodes_that_ended():
    means = []
    for _, _, after, metrics in stepped():
        ended = after.ended > 0
        mean = after.last[ended].mean() if ended.any() else np.nan
        np.testing.assert_allclose(metrics["return"], mean, rtol=1e-5)
        means.append(mean)
    assert np.isfinite(means[2:]).all()


def test_nothing_ended_is_no_return_of_zero():
    task = made(
        environment=environments.cartpole(),
        model=models.policy.make("actor-critic-3", 2),
        horizon=1,
    )
    params, _, games = task.init(key_of(0))
    _, (_, _, found) = quick.jit(task.loss)(params, {}, games, {}, key_of(1))
    assert np.isnan(found["return"]) and np.isfinite(found["loss"])


def test_what_games_begin_with_is_drawn_from_the_noise_and_not_from_the_init():
    task = of()
    first, other = (task.init(key_of(i)) for i in (0, 5))
    toys.assert_equal(first[2], other[2])
    kernels = (np.asarray(x[0]["policy"]["kernel"]) for x in (first, other))
    assert not np.array_equal(*kernels)
    play = quick.jit(task.loss.__self__.play)

    def begins(init, noise):
        return np.asarray(play(init[0], {}, init[2], key_of(noise))[0].observation[0])

    np.testing.assert_array_equal(begins(first, 1), begins(other, 1))
    assert (begins(first, 1) != begins(first, 2)).any()
    # No two games begin alike.
    assert len(np.unique(begins(first, 1)[:, 1])) == GAMES


# --- what is measured -----------------------------------------------------------------


def played_in_numpy(task, params, split, greedy=False):
    """The return of each episode, one after the other."""
    environment, model = WALK, NET
    move, says = (
        jax.jit(environment.step),
        jax.jit(lambda x: model.apply({"params": params}, x[None])[0][0]),
    )
    found = []
    for seed in task.data[split]["seed"]:
        root = key_of(int(seed))
        state = environment.reset(jax.random.fold_in(root, 0))
        total = 0.0
        for t in range(environment.limit):
            acting, moving = jax.random.split(jax.random.fold_in(root, t + 1))
            logits = np.asarray(says(observe(state)), np.float64)
            below = np.cumsum(softmax(logits))
            drawn = float(jax.random.uniform(acting, (), jnp.float32))
            action = int(np.searchsorted(below, drawn, side="right"))
            action = int(logits.argmax()) if greedy else min(action, 2)
            state, reward, ends = move(moving, state, jnp.int32(action))
            total += float(reward)
            if ends:
                break
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize(
    "acting", ["sampled", pytest.param("greedy", marks=pytest.mark.slow)]
)
def test_a_policy_is_measured_by_the_episodes_of_fixed_seeds(acting):
    task = made(actions=acting)
    params = task.init(key_of(0))[0]
    evaluate = jax.jit(task.evaluate, static_argnums=4)
    with jax.threefry_partitionable(True):
        expected = played_in_numpy(task, params, "test", acting == "greedy").mean()
    found = evaluate(params, {}, task.data, key_of(9), "test")
    np.testing.assert_allclose(found["return"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["error"], (10 - expected) / 20, rtol=1e-5)
    assert found["loss"] == found["error"]
    toys.assert_equal(found, evaluate(params, {}, task.data, key_of(3), "test"))
    assert evaluate(params, {}, task.data, key_of(9), "train")["return"] != expected


def test_the_seeds_of_splits_are_data_and_all_different():
    task = of()
    seeds = {split: own["seed"] for split, own in task.data.items()}
    assert set(seeds) == {"train", "validation", "test"} and task.validates
    together = np.concatenate(list(seeds.values()))
    assert len(np.unique(together)) == 3 * EPISODES and together.dtype == np.uint32
    without = made(validation=False)
    assert set(without.data) == {"train", "test"} and not without.validates
    np.testing.assert_array_equal(without.data["test"]["seed"], seeds["test"])
    # An epoch is an episode at full length.
    assert task.steps_per_epoch == -(-LIMIT // HORIZON)


# --- what is not finite ---------------------------------------------------------------


def spoiled(value, after=5):
    """The walk, of which something not finite is seen once it has gone on for a while."""

    def worse(key, state, action):
        state, reward, ends = step(key, state, action)
        return {**state, "drift": state["drift"] + 1}, reward, ends

    def seen(state):
        x = observe(state)
        return jnp.where(state["drift"] > after, jnp.float32(value), x)

    return WALK._replace(step=worse, observe=seen)


class Deaf(nn.Module):
    """It never hears of what is not finite."""

    @nn.compact
    def __call__(self, x):
        return Linear()(jnp.nan_to_num(x, posinf=0.0, neginf=0.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "value", [np.nan, pytest.param(-np.inf, marks=pytest.mark.slow)]
)
def test_an_observation_that_is_not_finite_is_a_divergence(value):
    task = made(Deaf(), spoiled(value))
    own = keys.of_replicas(0, range(1))
    runs = training.fresh(task, optax.sgd(0.0), own.init, own.noise)
    done = training.train(task, optax.sgd(0.0), runs, 3, every=3)
    assert done.curves.first_nan[0] in (1, 2)
    params = task.init(key_of(0))[0]
    found = jax.jit(task.evaluate, static_argnums=4)(
        params, {}, task.data, key_of(0), "test"
    )
    assert all(np.isnan(x) for x in found.values())


def test_weights_that_are_not_finite_have_no_return():
    task = of()
    params = jax.tree.map(lambda x: x * jnp.nan, task.init(key_of(0))[0])
    found = jax.jit(task.evaluate, static_argnums=4)(
        params, {}, task.data, key_of(0), "test"
    )
    assert all(np.isnan(x) for x in found.values())


# --- what the runner makes of it ------------------------------------------------------

STEPS, K = 8, 3


class Killed(BaseException):
    """Not an error that anybody would catch."""


def killer(at):
    told = itertools.count()

    def watch(progress):
        if next(told) == at:
            raise Killed

    return watch


@functools.cache
def runs(number=3):
    own = keys.of_replicas(0, range(number))
    found = training.fresh(of(), TX, own.init, own.noise, where=lj.Where(ONE))
    return found._replace(state=trees.host(found.state))


def trained(of_runs, where):
    return training.train(of(), TX, of_runs, STEPS, every=2, validate=True, where=where)


@functools.cache
def whole():
    return trained(runs(), lj.Where(ONE))


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    where = lj.Where(ONE, tmp_path, 0, killer(3))
    with pytest.raises(Killed):
        trained(runs(), where)
    seen = []
    done = trained(runs(), lj.Where(ONE, tmp_path, 0, seen.append))
    assert seen[0].resumed and 0 < seen[0].done < STEPS
    toys.assert_equal(done.state, whole().state)
    toys.assert_equal(done.curves, whole().curves)
    assert (np.asarray(whole().state.stream_state.ended) > 0).any()


@pytest.mark.slow
def test_a_replica_alone_is_itself_among_others():
    every, at = runs(), np.array([2])
    alone = training.Runs(
        trees.rows(every.state, at), every.noise[at], every.joins[at], every.offset[at]
    )
    toys.assert_equal(
        trained(alone, lj.Where(ONE)).state, trees.rows(whole().state, at)
    )
    states = whole().state.stream_state.state["where"]
    assert len(np.unique(states)) == states.size


@pytest.mark.slow
def test_rewinding_restores_the_games():
    plan = imp.Plan(
        steps=STEPS,
        rewind_step=K,
        chains=(imp.Chain("late"), imp.Chain("from_0", rewind_step=0)),
        arms=("ticket", "reinit", "random_mask"),
        validate_every=STEPS,
    )
    found = toys.watched(of(), TX, plan, (0, 1), Execution(2, 1), levels=1)
    games = found.at("late", 1, "ticket", 0, K).stream_state
    assert np.asarray(games.steps).any()
    for arm in ("ticket", "random_mask"):
        toys.assert_equal(found.start("late", 1, arm, 1).stream_state, games)
    own = found.at("late", 1, "reinit", 0, K).stream_state
    toys.assert_equal(found.start("late", 1, "reinit", 1).stream_state, own)
    begun = found.start("from_0", 0, "ticket", 1).stream_state
    toys.assert_equal(begun, of().init(key_of(0))[2])


@pytest.mark.slow
def test_it_learns_what_pays():
    """Of two actions one pays, and which one is seen."""

    def begin(key):
        return jax.random.bernoulli(key).astype(jnp.float32)

    def move(key, state, action):
        right = action == state.astype(jnp.int32)
        return begin(key), right.astype(jnp.float32), jnp.bool_(False)

    game = Environment("match", begin, move, lambda x: x[None], 2, 8, 0.0, 8.0)
    task = lj.tasks.actor_critic(
        game,
        models.policy.make("actor-critic-8", 2),
        games=16,
        gamma=0.5,  # what one does changes nothing later
        reward_scale=1.0,
    )
    done = lj.train(task, optax.adam(0.03), 150, 1, validate_every=75)
    before = training.evaluate(
        task, training.fresh(task, TX, *_two_keys()).state.network
    )
    after = training.evaluate(task, done.networks)
    assert before["return"][0] < 6 < 7.5 < after["return"][0] <= 8
    assert done.curves.values["train_return"][0, -1] > 7
    assert done.curves.values["train_entropy"][0, -1] < 0.3


def _two_keys():
    own = keys.of_replicas(0, range(1))
    return own.init, own.noise


# --- models, and what of them counts --------------------------------------------------


@pytest.mark.slow
def test_functions_of_any_library_are_a_policy():
    def init(key):
        return Linear().init(key, jnp.zeros((1, 2)))["params"]

    def apply(params, x, *, train):
        return Linear().apply({"params": params}, x)

    task, module = made(None, init=init, apply=apply), of(Linear())
    params, state, games = module.init(key_of(0))
    args = (params, state, games, {}, key_of(1))
    toys.assert_equal(quick.jit(task.loss)(*args), quick.jit(module.loss)(*args))
    assert task.head == module.head == ("(^|/)policy/", "(^|/)value/")


@pytest.mark.slow
def test_a_state_of_the_model_is_that_of_the_observations_it_learned_from():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.0)
            return Linear()(norm(x))

    task = made(Normed())
    params, state, games = task.init(key_of(0))
    loss = quick.jit(task.loss)
    _, (after, _, _) = loss(params, state, games, {}, key_of(1))
    play = quick.jit(task.loss.__self__.play)
    seen = np.asarray(play(params, state, games, key_of(1))[0].observation)
    mean = after["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, seen.reshape(-1, 2).mean(0), atol=1e-6)


@pytest.mark.parametrize(
    "leaves, critic, without",
    [
        ("kernels", "pruned", {"bias"}),
        ("all", "pruned", set()),
        ("kernels", "kept", {"bias", "value/kernel"}),
        ("all", "kept", {"value/kernel", "value/bias"}),
    ],
)
def test_what_counts_as_prunable_is_chosen(leaves, critic, without):
    task = made(leaves=leaves, critic=critic)
    params = task.shapes[0]
    flags = trees.by_path(masks.of_task(task))
    for name, flag in flags.items():
        assert flag == (not any(name.endswith(end) for end in without)), name
    assert flags["dense_0/kernel"]
    total = sum(x.size for name, x in trees.by_path(params).items() if flags[name])
    assert masks.total(params, masks.of_task(task)) == total
    assert masks.of_task(made()) == masks.of_task(made(leaves="kernels"))


def test_the_network_of_the_paper_has_its_layers():
    model = models.policy.make("actor-critic-128-128-128", 2)
    params = jax.eval_shape(model.init, key_of(0), jnp.zeros((1, 4)))["params"]
    shapes = {name: x.shape for name, x in trees.by_path(params).items()}
    assert shapes == {
        "dense_0/kernel": (4, 128),
        "dense_0/bias": (128,),
        "dense_1/kernel": (128, 128),
        "dense_1/bias": (128,),
        "dense_2/kernel": (128, 128),
        "dense_2/bias": (128,),
        "policy/kernel": (128, 2),
        "policy/bias": (2,),
        "value/kernel": (128, 1),
        "value/bias": (1,),
    }
    for name in ("actor-critic", "actor-critic-0", "mlp-3", "actor-critic-3-x"):
        with pytest.raises(ValueError, match="must be one of actor-critic-W1"):
            models.policy.make(name, 2)


def test_units_of_a_policy_can_be_left_out():
    axes = lj.units.of_params(NET, of().shapes[0])
    last = {axes[f"{name}/kernel"][0].group for name in ("policy", "value")}
    assert last == {axes["dense_1/kernel"][1].group} and len(last) == 1


# --- what is refused ------------------------------------------------------------------


def says(logits=(3,), value=(), both=True):
    """A policy whose outputs have these shapes for each observation."""

    def apply(params, x):
        scale = jnp.sum(params["w"])
        found = [jnp.zeros((len(x), *shape)) * scale for shape in (logits, value)]
        return tuple(found) if both else found[0]

    return {"model": None, "init": lambda key: {"w": jnp.ones(2)}, "apply": apply}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"horizon": 0}, "horizon=0; it must be between 1 and 7, the longest episode"),
        ({"horizon": 8}, "horizon=8; it must be between 1 and 7, the longest episode"),
        ({"horizon": 2.0}, "horizon=2.0; it must be a whole number"),
        ({"games": 0}, "games=0; it must be 1 or more"),
        ({"episodes": 0}, "episodes=0; it must be 1 or more"),
        ({"gamma": 0.0}, r"gamma=0.0; it must be in \(0, 1\]"),
        ({"gamma": 1.5}, r"gamma=1.5; it must be in \(0, 1\]"),
        ({"gamma": np.nan}, "gamma=nan; it must be"),
        ({"entropy_weight": -0.1}, "entropy_weight=-0.1; it must be 0 or more"),
        ({"value_weight": np.inf}, "value_weight=inf; it must be a finite"),
        ({"reward_scale": 0.0}, "reward_scale=0.0; it must be above 0"),
        ({"validation": 1}, "validation=1; it must be True or False"),
        ({"actions": "best"}, "actions='best'; it must be one of sampled, greedy"),
        ({"leaves": "some"}, "leaves='some'; it must be one of kernels, all"),
        ({"critic": "no"}, "critic='no'; it must be one of pruned, kept"),
        (
            {"environment": "walk"},
            "environment='?walk'?; it must be an environments.Env",
        ),
        (
            {"environment": WALK._replace(limit=None)},
            "walk: limit=None; it must be .*without which none may ever end",
        ),
        ({"environment": WALK._replace(actions=0)}, "walk: actions=0; it must be 2 or"),
        (
            {"environment": WALK._replace(best=-10.0)},
            "walk: best=-10.0; it must be abo",
        ),
        ({"model": 3}, "model=3; it must be a Linen module"),
        (
            {"model": models.policy.make("actor-critic-3", 2)},
            "have shape .5, 3.; it mus",
        ),
        (
            {"model": models.MLP(3, (4,))},
            "it returns=.*must be two arrays, .logits, va",
        ),
        (says(both=False), "it returns=.*must be two arrays, .logits, value"),
        (says(value=(1,)), r"shape of its values=\(5, 1\); it must be \(5,\)"),
        ({"model": None}, "given are ..; it must be either model, or init and apply"),
        ({"exclude": ("body",)}, "exclude=.*: pattern 'body' matches no leaf"),
        ({"head": ("top",)}, "head=.*: pattern 'top' matches no leaf"),
        ({"prunable": 3}, "prunable=3; it must be a function"),
        (
            {"prunable": masks.prunable, "critic": "kept"},
            "prunable=.*; it must be None with leaves or critic",
        ),
        (says() | {"critic": "kept"}, "critic=.*: pattern .* matches no leaf"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        made(**{"model": NET} | changes)


def test_devices_cannot_share_the_games_of_a_network():
    where = lj.Where(Execution(2, 1, data_parallel=2))
    with pytest.raises(ValueError, match="data_parallel=2; it must divide the 1"):
        training.train(of(), TX, runs(), STEPS, every=2, where=where)
