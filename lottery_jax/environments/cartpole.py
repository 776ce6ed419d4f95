"""A pole on a cart, to be kept upright by pushing the cart to the left or the right.

Barto, Sutton and Anderson, Neuronlike adaptive elements that can solve difficult learning
control problems, 1983: the equations of its appendix without friction, by Euler's method.
As it is measured everywhere, gymnasium's CartPole.
"""

import math

import jax
import jax.numpy as jnp

from lottery_jax import errors
from lottery_jax.environments.environment import Environment
from lottery_jax.keys import settled
from lottery_jax.types import Array, Key

_GRAVITY = 9.8
_CART, _POLE = 1.0, 0.1
_HALF = 0.5
"""Half of the pole's length."""
_FORCE = 10.0
_SECONDS = 0.02
_FARTHEST, _STEEPEST = 2.4, math.radians(12)
_BEGINS = 0.05


def cartpole(limit: int = 200) -> Environment:
    """The pole on a cart: 4 numbers are seen, 2 actions, a reward of 1 for each step.

    The state is position, speed, angle and angular speed; an episode terminates where the
    cart is 2.4 from the middle or the pole 12 degrees from upright. So the return is the
    length of the episode, between 0 and the limit.

    Args:
      limit: the longest episode in steps: 200 in CartPole-v0, which Yu et al. 2020 play,
        500 in CartPole-v1.

    Raises:
      ValueError: no step.
    """
    limit = errors.whole("limit", limit, 1)
    name = {200: "cartpole-v0", 500: "cartpole-v1"}.get(limit, f"cartpole-{limit}")
    return Environment(name, _reset, _step, _observe, 2, limit, 0.0, float(limit))


@settled
def _reset(key: Key) -> Array:
    return jax.random.uniform(key, (4,), jnp.float32, -_BEGINS, _BEGINS)


def _observe(state: Array) -> Array:
    return state


def _step(key: Key, state: Array, action: Array) -> tuple[Array, Array, Array]:
    x, speed, angle, turning = state
    force = jnp.where(action == 1, jnp.float32(_FORCE), jnp.float32(-_FORCE))
    sine, cosine, mass = jnp.sin(angle), jnp.cos(angle), _CART + _POLE
    pushed = (force + _POLE * _HALF * turning * turning * sine) / mass
    turns = (_GRAVITY * sine - cosine * pushed) / (
        _HALF * (4 / 3 - _POLE * cosine * cosine / mass)
    )
    moves = pushed - _POLE * _HALF * turns * cosine / mass
    change = jnp.stack([speed, moves, turning, turns])
    state = state + _SECONDS * change
    terminated = (jnp.abs(state[0]) > _FARTHEST) | (jnp.abs(state[2]) > _STEEPEST)
    return state, jnp.float32(1), terminated
