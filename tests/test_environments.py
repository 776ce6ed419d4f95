"""Environments: theirs, step by step, and those of other libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
import toys

from lottery_jax import environments
from lottery_jax.environments import Environment

PLAYED = {"cartpole-v1": "CartPole-v1", "acrobot-v1": "Acrobot-v1"}
STEPS = 2000


def rollout(environment, actions):
    """States, observations, rewards and ends of one game, begun anew where it ends."""

    def turn(state, at):
        key, action = at
        after, reward, ends = environment.step(key, state, action)
        fresh = environment.reset(key)
        found = state, after, environment.observe(after), reward, ends
        return jnp.where(ends, fresh, after), found

    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), len(actions))
    run = quick.jit(lambda first: jax.lax.scan(turn, first, (keys, actions))[1])
    return jax.tree.map(np.asarray, run(environment.reset(keys[0])))


@pytest.mark.parametrize("name", PLAYED)
def test_every_step_is_that_of_gymnasium(name):
    gymnasium = pytest.importorskip("gymnasium")
    environment, theirs = environments.make(name), PLAYED[name]
    assert environment.limit == gymnasium.spec(theirs).max_episode_steps
    game = gymnasium.make(theirs).unwrapped
    assert environment.actions == game.action_space.n
    assert environments.check(environment) == game.observation_space.shape
    game.reset(seed=0)
    rng = np.random.default_rng(0)
    # The same action for a while: an Acrobot that is pushed at random never gets up.
    actions = rng.integers(environment.actions, size=STEPS // 5).repeat(5)
    before, after, seen, reward, ends = rollout(environment, actions.astype(np.int32))
    assert before.dtype == seen.dtype == reward.dtype == np.float32
    for t, action in enumerate(actions):
        game.state = before[t].astype(np.float64)
        game.steps_beyond_terminated = None
        observation, gained, terminated, _, _ = game.step(action)
        np.testing.assert_allclose(after[t], game.state, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(seen[t], observation, rtol=2e-6, atol=2e-6)
        assert (reward[t], ends[t]) == (gained, terminated)
    assert 0 < ends.sum() < STEPS


@pytest.mark.parametrize("name", PLAYED)
def test_episodes_begin_where_those_of_gymnasium_do(name):
    gymnasium = pytest.importorskip("gymnasium")
    environment = environments.make(name)
    keys = jax.random.split(jax.random.key(1, impl="threefry2x32"), 4000)
    ours = np.asarray(jax.vmap(environment.reset)(keys))
    game = gymnasium.make(PLAYED[name]).unwrapped
    theirs = []
    for seed in range(300):
        game.reset(seed=seed)
        theirs.append(game.state)
    bound = np.ceil(100 * np.abs(theirs).max()) / 100
    assert np.abs(ours).max() <= bound < 1.03 * np.abs(ours).max()
    np.testing.assert_allclose(ours.mean(0), 0, atol=0.06 * bound)
    np.testing.assert_allclose(ours.std(0), bound / np.sqrt(3), rtol=0.05)
    # A draw is the same among others as alone.
    toys.assert_equal(environment.reset(keys[7]), ours[7])


def test_angles_of_the_acrobot_stay_within_half_a_turn_and_speeds_within_bounds():
    most = np.array([np.pi, np.pi, 4 * np.pi, 9 * np.pi], np.float32)
    rng = np.random.default_rng(0)
    states = (most * rng.uniform(-1, 1, (50, 4))).astype(np.float32)
    step = quick.jit(jax.vmap(environments.acrobot().step, in_axes=(None, 0, None)))
    after = np.asarray(step(jax.random.key(0), states, jnp.int32(2))[0])
    assert (np.abs(after) <= most).all()
    assert (np.abs(after)[:, 2:] == most[2:]).any()  # some are held back


def test_the_limit_of_cartpole_is_its_best_return():
    found = environments.cartpole(30)
    named = found.name, found.limit, found.low, found.best
    assert named == ("cartpole-30", 30, 0.0, 30.0)
    assert environments.cartpole() == environments.make("cartpole-v0")
    assert environments.make("cartpole-v0").limit == 200
    assert environments.cartpole(500) == environments.make("cartpole-v1")
    assert hash(environments.acrobot()) == hash(environments.acrobot())


# --- of other libraries ---------------------------------------------------------------


class Corridor:
    """The interface of gymnax, as far as it is used: a walk to the right end."""

    num_actions = 2

    def __init__(self, values=6):
        self.values = values

    def reset_env(self, key, params):
        state = {"cell": jax.random.randint(key, (), 0, 2), "time": 0}
        return self.get_obs(state, params), state

    def step_env(self, key, state, action, params):
        cell = jnp.clip(state["cell"] + 2 * action - 1, 0, params - 1)
        state = {"cell": cell, "time": state["time"] + 1}
        arrived, late = cell == params - 1, state["time"] >= 9
        reward = jnp.where(arrived, 1, 0)
        ends = (arrived, late) if self.values == 6 else (arrived | late,)
        return self.get_obs(state, params), state, reward, *ends, {"late": late}

    def get_obs(self, state, params):
        return jnp.arange(params) == state["cell"]


def adapted(corridor, **changes):
    options = dict(name="corridor", actions=2, limit=8, low=0.0, best=1.0)
    return environments.adapted(
        corridor.reset_env, corridor.step_env, 5, **options | changes
    )


@pytest.mark.parametrize("values", [5, 6])
def test_an_environment_of_another_library_is_played_as_it_is(values):
    corridor = Corridor(values)
    environment = adapted(corridor)
    assert environments.check(environment) == (5,)
    key = jax.random.key(3, impl="threefry2x32")
    move = quick.jit(
        lambda *at: (environment.step(*at[:3]), corridor.step_env(key, at[3], at[2], 5))
    )
    state, theirs = environment.reset(key), corridor.reset_env(key, 5)[1]
    for action in (1, 0, 1, 1, 1, 1):
        ours, out = move(key, state, jnp.int32(action), theirs)
        (state, gained, ends), (observation, theirs, reward, arrived, *_) = ours, out
        assert gained.dtype == jnp.float32 and ends.dtype == jnp.bool_
        assert (gained, ends) == (reward, arrived)
        seen = environment.observe(state)
        assert seen.dtype == jnp.float32
        np.testing.assert_array_equal(seen, observation)
        toys.assert_equal(state.state, theirs)
    assert ends


# --- what is refused ------------------------------------------------------------------


def step_of(state=None, reward=None, ends=None):
    def step(key, old, action):
        after = old if state is None else state
        value = jnp.float32(1) if reward is None else reward
        return after, value, jnp.bool_(False) if ends is None else ends

    return step


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": 3}, "name=3; it must be the name"),
        ({"step": 3}, "cartpole-v0: step=3; it must be a function"),
        ({"actions": 0}, "cartpole-v0: actions=0; it must be 2 or more, its actions"),
        ({"actions": 1.5}, "cartpole-v0: actions=1.5; it must be a whole number"),
        ({"limit": None}, "cartpole-v0: limit=None; it must be a whole number, 1 or"),
        ({"limit": 0}, "cartpole-v0: limit=0; it must be 1 or more, the longest"),
        ({"best": float("inf")}, r"\(low, best\)\[1\]=inf; it must be a finite"),
        ({"best": 0.0}, "cartpole-v0: best=0.0; it must be above low=0.0"),
        ({"step": lambda *_: 3}, "step returns=.*; it must be .state, reward, term"),
        ({"step": step_of(state=jnp.zeros(3))}, "cartpole-v0: leaf '' has shape"),
        (
            {"step": step_of(state=jnp.zeros(4, jnp.int32))},
            "dtype of leaf '' of the state of step=int32; it must be float32",
        ),
        ({"step": step_of(reward=jnp.ones(2))}, "reward=float32 of shape .2,."),
        ({"step": step_of(ends=jnp.ones(()))}, "terminated=float32 of shape ..; it"),
        ({"observe": lambda state: state[0]}, "observe returns=.*; it must be float32"),
        ({"observe": lambda state: state > 0}, "observe returns=.*; it must be float"),
    ],
)
def test_what_is_no_environment_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        environments.check(environments.cartpole()._replace(**changes))


def test_what_is_no_environment_at_all_is_refused():
    for wrong in ("cartpole-v0", environments.cartpole, None):
        with pytest.raises(ValueError, match="environment=.*; it must be an env"):
            environments.check(wrong)
    with pytest.raises(ValueError, match="name='pong'; it must be one of cartpole-v0"):
        environments.make("pong")
    for limit in (0, 2.5, True):
        with pytest.raises(ValueError, match="limit=.*; it must be"):
            environments.cartpole(limit)


def test_functions_of_another_form_are_not_adapted():
    good = Corridor()
    reset, step = good.reset_env, good.step_env
    rest = dict(name="corridor", actions=2, limit=8, low=0.0, best=1.0)
    for args, message in (
        ((3, step, 5), "reset=3; it must be a function"),
        ((reset, "step", 5), "step='step'; it must be a function"),
        ((reset, step, jnp.ones(3)), "params=.*; it must be hashable"),
        ((lambda key, params: 3, step, 5), "reset returns=.*; it must be .observation"),
        (
            (reset, lambda key, state, action, params: (1, 2), 5),
            r"step returns=.*; it must be .observation, state, reward, termin",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            environments.adapted(*args, **rest)
    with pytest.raises(ValueError, match="corridor: limit=0"):
        adapted(good, limit=0)


def test_a_state_that_would_be_cut_to_whole_numbers_is_refused():
    def reset(key, params):
        return jnp.zeros(1), {"x": 0}

    def step(key, state, action, params):
        state = {"x": state["x"] + 0.5}
        return jnp.ones(1) * state["x"], state, 0.0, False, {}

    options = dict(name="half steps", actions=2, limit=8, low=0.0, best=1.0)
    leaf = "half steps: dtype of leaf 'state/x' of the state of step"
    message = f"{leaf}=float32; it must be int32"
    with pytest.raises(ValueError, match=message):
        environments.adapted(reset, step, **options)


def test_an_environment_is_hashable():
    assert isinstance(hash(environments.cartpole()), int)
    for field in ("reset", "observe"):
        unhashable = environments.cartpole()._replace(**{field: _Unhashable()})
        with pytest.raises(ValueError, match="cartpole-v0: unhashable.*must be hash"):
            environments.check(unhashable)
    assert isinstance(environments.cartpole(), Environment)


class _Unhashable:
    __hash__ = None

    def __call__(self, key):
        return jnp.zeros(4)
