"""Environments of other libraries, those of gymnax and its kin."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lottery_jax import errors
from lottery_jax.environments.environment import Environment, check
from lottery_jax.keys import of_seed, settled
from lottery_jax.types import Array, Key, PyTree

_VALUES = (
    "(observation, state, reward, terminated, truncated, info), or the same without "
    "truncated"
)


class _Shown(NamedTuple):
    """The state of an adapted environment: with it what is seen of it."""

    state: PyTree
    observation: Array


@dataclasses.dataclass(frozen=True)
class _Adapted:
    """The functions of another library; its methods are the `Environment`'s."""

    made: Callable[..., Any]
    moved: Callable[..., Any]
    params: Any

    @settled
    def reset(self, key: Key) -> _Shown:
        observation, state = self.made(key, self.params)
        return _shown(state, observation)

    @settled
    def step(
        self, key: Key, state: _Shown, action: Array
    ) -> tuple[_Shown, Array, Array]:
        observation, after, reward, terminated, *_ = self.moved(
            key, state.state, action, self.params
        )
        after = jax.tree.map(_as_before, after, state.state)
        reward, ends = jnp.asarray(reward, jnp.float32), jnp.asarray(terminated)
        return _shown(after, observation), reward, ends.astype(jnp.bool_)

    def observe(self, state: _Shown) -> Array:
        return state.observation


def _as_before(new: Any, old: Array) -> Array:
    """A leaf of the next state, of the dtype that it began with.

    Counters that are Python's numbers come back wider. A whole number that becomes a real
    one is left, for `check` to refuse: it would lose what is behind the point.
    """
    new = jnp.asarray(new)
    kinds = (jnp.integer, jnp.floating, jnp.bool_)
    alike = any(
        jnp.issubdtype(new.dtype, kind) and jnp.issubdtype(old.dtype, kind)
        for kind in kinds
    )
    return new.astype(old.dtype) if alike else new


def _shown(state: PyTree, observation: Array) -> _Shown:
    seen = jnp.asarray(observation, jnp.float32)
    return _Shown(jax.tree.map(jnp.asarray, state), seen)


def adapted(
    reset: Callable[..., Any],
    step: Callable[..., Any],
    params: Hashable = None,
    *,
    name: str,
    actions: int,
    limit: int,
    low: float,
    best: float,
) -> Environment:
    """An environment of another library, such as gymnax, whose functions have its form.

        game, params = gymnax.make("Breakout-MinAtar")
        breakout = environments.adapted(
            game.reset_env, game.step_env, params, name="breakout",
            actions=game.num_actions, limit=1000, low=0.0, best=50.0,
        )

    Args:
      reset: `(key, params) -> (observation, state)`.
      step: `(key, state, action, params) -> (observation, state, reward, terminated,
        truncated, info)`, as gymnax 1.0 has it, or without `truncated`, as before. It is
        to be the one that does not reset (`step_env`): of a truncated episode the last
        observation is needed.
      params: of the environment, hashable; they are part of the program.
      name: for messages and results.
      actions: how many there are.
      limit: the longest episode in steps. What the environment itself truncates is not
        looked at: no higher than its own, and below it if its step has no `truncated`,
        whose last step it would call terminated.
      low: see `Environment`.
      best: see `Environment`.

    Raises:
      ValueError: a field that makes no sense, functions of another form; names it.
    """
    for field, value in (("reset", reset), ("step", step)):
        errors.is_a(field, value, Callable, "a function")  # type: ignore[arg-type]
    try:
        hash(params)
    except TypeError:
        must = "hashable: numbers, and no arrays"
        raise errors.wrong("params", errors.shown(params), must) from None
    key = jax.eval_shape(lambda: of_seed(0))
    made = jax.eval_shape(lambda key: reset(key, params), key)
    if not isinstance(made, tuple) or len(made) != 2:
        must = "(observation, state)"
        raise errors.wrong("reset returns", errors.shown(made), must)
    moved = jax.eval_shape(
        lambda key, state: step(key, state, jnp.int32(0), params), key, made[1]
    )
    if not isinstance(moved, tuple) or len(moved) not in (5, 6):
        raise errors.wrong("step returns", errors.shown(moved), _VALUES)
    own = _Adapted(reset, step, params)
    found = Environment(
        name, own.reset, own.step, own.observe, actions, limit, low, best
    )
    check(found)
    return found
