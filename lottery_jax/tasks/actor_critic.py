"""Reinforcement learning: advantage actor-critic, with many games played at once.

    task = tasks.actor_critic(
        environments.cartpole(), models.policy.make("actor-critic-128-128-128", 2)
    )

A step of training plays every game on for `horizon` time steps, on the device, and learns
from these. Games, their clocks and their returns are the stream state of the task: carried
from step to step, restored with the weights of a rewind step, and drawn anew from the noise
where an episode is over. So the noise key and the step say all that is drawn: actions,
resets, and what an environment itself draws.

Mnih et al., Asynchronous methods for deep reinforcement learning, 2016, in its synchronous
form; Yu et al., Playing the Lottery with Rewards and Multiple Languages, 2020,
prune the policies that it trains.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lottery_jax import activations, errors, masks, trees
from lottery_jax.environments import Environment
from lottery_jax.environments import check as check_environment
from lottery_jax.keys import of_seed, settled
from lottery_jax.tasks import _models
from lottery_jax.types import (
    Array,
    Batch,
    Key,
    Metrics,
    ModelState,
    Params,
    Prunable,
    PyTree,
    StreamState,
    Task,
)


class Games(NamedTuple):
    """Games that are played at once: the stream state, `[games]` each.

    Attributes:
      state: of the environments.
      steps: of the episode under way, int32.
      over: whether it has ended, so that the next step begins another.
      running: its return so far, float32.
      last: the return of the last episode that has ended; 0 before the first.
      ended: how many have, int32.
    """

    state: PyTree
    steps: Array
    over: Array
    running: Array
    last: Array
    ended: Array


class Played(NamedTuple):
    """What was seen, done and gained, `[horizon, games]` each.

    Attributes:
      observation: before the action.
      action: int32.
      reward: as the environment gives it, float32.
      terminated: whether the episode came to an end of its own.
      truncated: whether it was cut off at the limit instead.
      after: the observation after the action, that of an ended episode too.
    """

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    after: Array


def targets(
    reward: Array, terminated: Array, truncated: Array, value: Array, gamma: float
) -> Array:
    """What each state of a few time steps turned out to be worth.

    Rewards are added up to the end of the episode or of the time steps, discounted. What
    was cut off there, by the limit of an episode or by the horizon, is worth what the
    critic says of the state that follows; what has terminated is worth nothing more. Mnih
    et al. 2016, algorithm S3.

    Args:
      reward: float `[horizon, games]`.
      terminated: bool, likewise.
      truncated: bool, likewise.
      value: of the state after each, as the critic says, likewise.
      gamma: how much less a reward counts that comes a step later, in (0, 1].

    Returns:
      float `[horizon, games]`.
    """

    def earlier(worth: Array, at: tuple[Array, ...]) -> tuple[Array, Array]:
        reward, terminated, truncated, value = at
        follows = jnp.where(truncated, value, worth)
        worth = reward + gamma * jnp.where(terminated, 0.0, follows)
        return worth, worth

    given = (reward, terminated, truncated, value)
    return jax.lax.scan(earlier, value[-1], given, reverse=True)[1]


def chosen(logits: Array, drawn: Array) -> Array:
    """Actions by their probabilities.

    Args:
      logits: `[games, actions]`.
      drawn: one number in [0, 1) for each game.

    Returns:
      int32 `[games]`.
    """
    below = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    action = jnp.sum(drawn[:, None] >= below, axis=-1, dtype=jnp.int32)
    return jnp.minimum(action, logits.shape[-1] - 1)  # where they add up to less than 1


@dataclasses.dataclass(frozen=True)
class _ActorCritic:
    """The static part of a task; its methods are the Task's functions.

    Attributes:
      environment: what is played.
      model: says of observations `[B, ...]` logits and values.
      games: how many are played at once.
      horizon: time steps of a step of training.
      gamma: see `targets`.
      entropy_weight: of the policy's entropy in the loss, which is to stay high.
      value_weight: of the critic's squared error.
      reward_scale: what rewards are multiplied by before anything is learned from them.
      greedy: whether the likeliest action is taken in evaluation.
    """

    environment: Environment
    model: _models.Model
    games: int
    horizon: int
    gamma: float
    entropy_weight: float
    value_weight: float
    reward_scale: float
    greedy: bool

    @settled
    def init(self, key: Key) -> tuple[Params, ModelState, StreamState]:
        params, model_state = self.model.init(key)
        # No game is under way: the noise draws what the first step begins with.
        state = jax.eval_shape(self.environment.reset, key)
        none = jnp.zeros(self.games, jnp.int32)
        nothing = jnp.zeros(self.games, jnp.float32)
        games = Games(
            jax.tree.map(lambda x: jnp.zeros((self.games, *x.shape), x.dtype), state),
            none,
            jnp.ones(self.games, jnp.bool_),
            nothing,
            nothing,
            none,
        )
        return params, model_state, games

    def order(self, noise_key: Key, step: Array) -> Array:
        return jnp.zeros(1, jnp.int32)  # there are no examples

    def batch(self, data: PyTree, indices: Array, noise_key: Key, step: Array) -> Batch:
        return {}

    # --- training

    @settled
    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        played, games = self.play(params, model_state, stream_state, key)
        fixed = jax.lax.stop_gradient(params)
        _, after = self._says(fixed, model_state, _flat(played.after))
        worth = targets(
            self.reward_scale * played.reward,
            played.terminated,
            played.truncated,
            after.reshape(played.reward.shape),
            self.gamma,
        ).reshape(-1)
        (logits, value), model_state = self.model.apply(
            params, model_state, _flat(played.observation), train=True, key=key
        )
        logits, value = activations.wide(logits), activations.wide(value)
        log = jax.nn.log_softmax(logits)
        taken = jnp.take_along_axis(log, played.action.reshape(-1, 1), axis=-1)[:, 0]
        advantage = worth - value
        policy = -jnp.mean(taken * jax.lax.stop_gradient(advantage))
        critic = jnp.mean(jnp.square(advantage))
        entropy = -jnp.mean(jnp.sum(jnp.exp(log) * log, axis=-1))
        loss = policy + self.value_weight * critic - self.entropy_weight * entropy
        # A unit that is off may hide what is not finite in an observation.
        loss = jnp.where(_finite(played), loss, jnp.nan)
        number = jnp.sum(games.ended > 0)
        metrics = {
            "loss": loss,
            "value_loss": critic,
            "entropy": entropy,
            # nan before the first episode has ended
            "return": jnp.sum(games.last) / number,
        }
        return loss, (model_state, games, metrics)

    def play(
        self, params: Params, model_state: ModelState, games: Games, key: Key
    ) -> tuple[Played, Games]:
        """Plays all games on for `horizon` time steps; nothing is differentiated."""
        params = jax.lax.stop_gradient(params)
        environment, shape = self.environment, (self.horizon, self.games)
        acting, resetting, moving = jax.random.split(key, 3)
        drawn = (
            jax.random.uniform(acting, shape, jnp.float32),
            _each(_each(environment.reset))(jax.random.split(resetting, shape)),
            jax.random.split(moving, shape),
        )

        def turn(games: Games, drawn: Any) -> tuple[Games, Played]:
            number, fresh, key = drawn
            over = games.over
            state = jax.tree.map(
                lambda new, old: jnp.where(_beside(over, new), new, old),
                fresh,
                games.state,
            )
            seen = _each(environment.observe)(state)
            logits, _ = self._says(params, model_state, seen)
            action = chosen(logits, number)
            state, reward, terminated = _each(environment.step)(key, state, action)
            reward = reward.astype(jnp.float32)
            steps = jnp.where(over, 0, games.steps) + 1
            truncated = (steps >= environment.limit) & ~terminated
            running = jnp.where(over, 0.0, games.running) + reward
            after = _each(environment.observe)(state)
            over = terminated | truncated
            games = Games(
                state,
                steps,
                over,
                running,
                jnp.where(over, running, games.last),
                games.ended + over.astype(jnp.int32),
            )
            return games, Played(seen, action, reward, terminated, truncated, after)

        games, played = jax.lax.scan(turn, games, drawn)
        return played, games

    def _says(
        self, params: Params, model_state: ModelState, seen: Array
    ) -> tuple[Array, Array]:
        (logits, value), _ = self.model.apply(params, model_state, seen, train=False)
        return activations.wide(logits), activations.wide(value)

    # --- evaluation

    @settled
    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        environment = self.environment
        roots = _each(of_seed)(jnp.asarray(data[split]["seed"], jnp.uint32))

        def of_step(step: Array) -> Key:
            return _each(lambda root: jax.random.fold_in(root, step))(roots)

        def turn(carry: Any) -> Any:
            step, state, going, gained, sound = carry
            seen = _each(environment.observe)(state)
            logits, _ = self._says(params, model_state, seen)
            acting, moving = _each(lambda key: tuple(jax.random.split(key)))(
                of_step(step + 1)
            )
            if self.greedy:
                action = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            else:
                number = _each(lambda key: jax.random.uniform(key, (), jnp.float32))
                action = chosen(logits, number(acting))
            state, reward, terminated = _each(environment.step)(moving, state, action)
            gained = gained + jnp.where(going, reward.astype(jnp.float32), 0.0)
            fine = _finite_rows(seen) & _finite_rows(logits)
            return step + 1, state, going & ~terminated, gained, sound & (fine | ~going)

        def unfinished(carry: Any) -> Array:
            step, _, going, _, _ = carry
            return (step < environment.limit) & jnp.any(going)

        number = roots.shape[0]
        begins = (
            jnp.int32(0),
            _each(environment.reset)(of_step(jnp.int32(0))),
            jnp.ones(number, jnp.bool_),
            jnp.zeros(number, jnp.float32),
            jnp.ones(number, jnp.bool_),
        )
        *_, gained, sound = jax.lax.while_loop(unfinished, turn, begins)
        found = jnp.where(jnp.all(sound), jnp.mean(gained), jnp.nan)
        best, low = environment.best, environment.low
        error = (best - found) / (best - low)
        return {"loss": error, "error": error, "return": found}


# --- arrays ---------------------------------------------------------------------------


_each = jax.vmap


def _flat(x: Array) -> Array:
    """`[horizon, games, ...]` as a batch."""
    return x.reshape(-1, *x.shape[2:])


def _beside(flag: Array, x: Array) -> Array:
    """A flag of each game, `[games]`, with as many axes as `x`."""
    return flag.reshape(-1, *(1,) * (x.ndim - 1))


def _finite(played: Played) -> Array:
    found = (played.observation, played.after, played.reward)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in found]))


def _finite_rows(x: Array) -> Array:
    return jnp.all(jnp.isfinite(x), axis=range(1, x.ndim))


# --- a task ---------------------------------------------------------------------------

_VALUE = "(^|/)value/"
_HEAD = ("(^|/)policy/", _VALUE)


@dataclasses.dataclass(frozen=True)
class _Counted:
    """Which leaves of a policy count as prunable."""

    leaves: str
    critic: str

    def __call__(self, params: Params) -> Prunable:
        include = (".",) if self.leaves == "all" else None
        flags = masks.prunable(params, include)
        if self.critic == "pruned":
            return flags
        value = trees.matching(params, (_VALUE,))
        return jax.tree.map(lambda flag, out: flag and not out, flags, value)


def _of_model(
    model: nn.Module | None,
    init: Callable[..., Any] | None,
    apply: Callable[..., Any] | None,
    environment: Environment,
    games: int,
    shape: tuple[int, ...],
) -> tuple[_models.Model, Params]:
    """A model that fits an environment, and the shapes of its params."""
    used = _models.of(model, init, apply, shape, False)

    def joined(
        params: Params, state: ModelState, seen: Array, *, train: bool, key: Key | None
    ) -> tuple[Array, ModelState]:
        # What is checked is one array.
        out: Any
        out, after = used.apply(params, state, seen, train=train, key=key)
        if not isinstance(out, tuple) or len(out) != 2:
            must = "two arrays, (logits, value)"
            raise errors.wrong(f"{used.name}: it returns", errors.shown(out), must)
        logits, value = out
        if getattr(value, "shape", None) != (games,):
            must = f"({games},): one number for each observation"
            shape = getattr(value, "shape", errors.shown(value))
            raise errors.wrong(f"{used.name}: shape of its values", shape, must)
        return jnp.concatenate([logits, value[:, None]], axis=-1), after

    form = _models.Functions(used.init, joined, True, ("train", "key"))
    seen = _models.batched(shape, games)
    wanted = (games, environment.actions + 1)
    axes = f"[games, {environment.actions} actions and a value]"
    return used, _models.check(form, seen, wanted, axes)


def actor_critic(
    environment: Environment,
    model: nn.Module | None = None,
    *,
    init: Callable[..., Any] | None = None,
    apply: Callable[..., Any] | None = None,
    games: int = 32,
    horizon: int = 4,
    gamma: float = 0.99,
    entropy_weight: float = 0.01,
    value_weight: float = 0.5,
    reward_scale: float = 0.01,
    episodes: int = 100,
    validation: bool = True,
    actions: Literal["sampled", "greedy"] = "sampled",
    leaves: Literal["kernels", "all"] = "kernels",
    critic: Literal["pruned", "kept"] = "pruned",
    prunable: Callable[[Params], Prunable] | None = None,
    exclude: tuple[str, ...] = (),
    head: tuple[str, ...] | None = None,
) -> Task:
    """Advantage actor-critic on an environment that is stepped on the device.

    Each step plays `games` games on for `horizon` time steps, by sampled actions, and takes
    the gradient of

        -mean(log p(action) advantage) + value_weight mean(advantage^2)
            - entropy_weight mean(entropy)

    with the advantage that `targets` has over the critic's values, whose gradient the first
    term leaves out. Yu et al. 2020 play 32 games for 4 time steps and divide rewards by 100;
    gamma and the two weights they do not state.

    `evaluate` plays fresh episodes to their end, whose seeds are the data: the same ones for
    every network, others in each split. It gives their mean `return`, as `error` how much of
    the way from `environment.low` to `environment.best` is missing, (best - return) / (best -
    low), and the same as `loss`: so the step of the lowest validation loss is that of the
    highest return. Nan where an observation or a logit is not finite. Of training the
    `return` is the mean over games of their last episode that has ended, nan before the
    first; `value_loss` and `entropy` are the parts of the loss.

    Instead of a module, `init` and `apply` of any library, which return (logits, value); see
    `tasks.classification`. A model acts in evaluation mode, and learns in training mode.

    Args:
      environment: what is played.
      model: a Linen module, called with observations `[B, ...]`; it returns logits `[B,
        actions]` and values `[B]`, such as `models.policy.ActorCritic`.
      init: see above.
      apply: see above.
      games: played at once.
      horizon: time steps of a step, at most the longest episode.
      gamma: how much less a reward counts that comes a step later, in (0, 1].
      entropy_weight: see above, 0 or more.
      value_weight: see above, 0 or more.
      reward_scale: what rewards are multiplied by before they are learned from, above 0.
      episodes: of each split that are played in evaluation.
      validation: whether there is a validation split.
      actions: how a policy acts in evaluation: as in training, or always the likeliest.
      leaves: what counts as prunable: kernels, as everywhere in this library, or all
        leaves, biases included, as in Yu et al. 2020.
      critic: whether the critic's output layer, `value`, counts; by default it does.
      prunable: `params -> Prunable`, instead of the two before.
      exclude: patterns of leaves that count as prunable and are never cut.
      head: patterns of the output layers' leaves; None for those called `policy` and
        `value`, if there are such.

    Raises:
      ValueError: a field that makes no sense, or does not fit the environment; no
        environment, or one without an end; a model that does not return real logits and
        values of the right shapes; patterns that match nothing. All of it before anything
        is compiled.
    """
    shape = check_environment(environment)
    games, episodes = (
        errors.whole(field, value, 1)
        for field, value in (("games", games), ("episodes", episodes))
    )
    of = f"the longest episode of {environment.name}"
    horizon = errors.whole("horizon", horizon, 1, environment.limit, of)
    weights = {
        "gamma": gamma,
        "entropy_weight": entropy_weight,
        "value_weight": value_weight,
        "reward_scale": reward_scale,
    }
    for field, value in weights.items():
        errors.at_least(field, value, 0)
        if not math.isfinite(value):
            raise errors.wrong(field, value, "a finite number")
    if not 0 < gamma <= 1:
        raise errors.wrong("gamma", gamma, "in (0, 1]")
    if not reward_scale > 0:
        raise errors.wrong("reward_scale", reward_scale, "above 0")
    errors.flag("validation", validation)
    errors.one_of("actions", actions, ("sampled", "greedy"))
    errors.one_of("leaves", leaves, ("kernels", "all"))
    errors.one_of("critic", critic, ("pruned", "kept"))
    used, params = _of_model(model, init, apply, environment, games, shape)
    if prunable is None and (leaves, critic) != ("kernels", "pruned"):
        if critic == "kept":
            _models.check_found(params, critic=(_VALUE,))
        prunable = _Counted(leaves, critic)
    elif prunable is not None:
        _models.check_prunable(prunable)
        if (leaves, critic) != ("kernels", "pruned"):
            must = "None with leaves or critic, which say the same"
            raise errors.wrong("prunable", errors.shown(prunable), must)
    if head is None:
        paths = trees.paths(params)
        head = tuple(p for p in _HEAD if any(re.search(p, path) for path in paths))
    exclude = _models.patterns("exclude", exclude)
    head = _models.patterns("head", head)
    _models.check_found(params, exclude=exclude, head=head)
    static = _ActorCritic(
        environment,
        used,
        games,
        horizon,
        greedy=actions == "greedy",
        **{field: float(value) for field, value in weights.items()},
    )
    seeds = np.arange(3 * episodes, dtype=np.uint32).reshape(3, episodes)
    data = dict(zip(("train", "test", "validation"), ({"seed": own} for own in seeds)))
    if not validation:
        del data["validation"]
    return Task(
        data=data,
        init=static.init,
        order=static.order,
        batch=static.batch,
        loss=static.loss,
        evaluate=static.evaluate,
        steps_per_epoch=-(-environment.limit // horizon),
        prunable=prunable,
        exclude=exclude,
        head=head,
        validates=validation,
    )
