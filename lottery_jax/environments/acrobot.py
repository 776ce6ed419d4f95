"""Two links, of which only the joint between them is driven, to be swung up.

Sutton, Generalization in reinforcement learning, 1996; the equations as in Sutton and
Barto, Reinforcement Learning, section 11.3, by the Runge-Kutta method of order 4. As it is
measured everywhere, gymnasium's Acrobot-v1.
"""

import math

import jax
import jax.numpy as jnp

from lottery_jax.environments.environment import Environment
from lottery_jax.keys import settled
from lottery_jax.types import Array, Key

_GRAVITY = 9.8
_MASS = _LENGTH = _INERTIA = 1.0
"""Of each of the two links."""
_CENTRE = 0.5
_SECONDS = 0.2
_FASTEST = (4 * math.pi, 9 * math.pi)
_BEGINS = 0.1
_LIMIT = 500


def acrobot() -> Environment:
    """Two links to be swung above a height: 6 numbers are seen, 3 actions.

    The state is the angle of the upper link from hanging down, that of the lower one from
    the upper, and their angular speeds; the angles are seen as cosine and sine. The torque
    is -1, 0 or 1. An episode terminates where the tip is one link's length above the
    pivot, and is truncated after 500 steps. Each step before costs 1, so the return lies
    between -500 and 0.
    """
    name = "acrobot-v1"
    return Environment(name, _reset, _step, _observe, 3, _LIMIT, -float(_LIMIT), 0.0)


@settled
def _reset(key: Key) -> Array:
    return jax.random.uniform(key, (4,), jnp.float32, -_BEGINS, _BEGINS)


def _observe(state: Array) -> Array:
    upper, lower, *speeds = state
    angles = [jnp.cos(upper), jnp.sin(upper), jnp.cos(lower), jnp.sin(lower)]
    return jnp.stack([*angles, *speeds])


def _step(key: Key, state: Array, action: Array) -> tuple[Array, Array, Array]:
    torque = action.astype(jnp.float32) - 1
    half = _SECONDS / 2
    first = _slope(state, torque)
    second = _slope(state + half * first, torque)
    third = _slope(state + half * second, torque)
    fourth = _slope(state + _SECONDS * third, torque)
    state = state + _SECONDS / 6 * (first + 2 * second + 2 * third + fourth)
    angles = [_around(angle) for angle in state[:2]]
    speeds = [jnp.clip(x, -most, most) for x, most in zip(state[2:], _FASTEST)]
    state = jnp.stack([*angles, *speeds])
    terminated = -jnp.cos(state[0]) - jnp.cos(state[0] + state[1]) > _LENGTH
    return state, jnp.where(terminated, jnp.float32(0), jnp.float32(-1)), terminated


def _around(angle: Array) -> Array:
    """The same angle in [-pi, pi]; one that is there comes back to the bit."""
    turns = jnp.round(angle / (2 * math.pi))
    return angle - turns * (2 * math.pi)


def _slope(state: Array, torque: Array) -> Array:
    """What the state changes by in a second."""
    upper, lower, upper_speed, lower_speed = state
    sine, cosine = jnp.sin(lower), jnp.cos(lower)
    coupled = _MASS * _LENGTH * _CENTRE
    own = _MASS * _CENTRE**2 + _INERTIA
    both = 2 * own + _MASS * _LENGTH**2 + 2 * coupled * cosine
    lower_on_upper = own + coupled * cosine
    # Angles are measured from hanging down: cos(angle - pi / 2) is sin(angle).
    weight = _MASS * _CENTRE * _GRAVITY * jnp.sin(upper + lower)
    swing = -coupled * lower_speed * (lower_speed + 2 * upper_speed) * sine
    lift = _MASS * (_CENTRE + _LENGTH) * _GRAVITY * jnp.sin(upper)
    upper_forces = swing + lift + weight
    share = lower_on_upper / both
    driven = torque + share * upper_forces - coupled * upper_speed**2 * sine - weight
    lower_turns = driven / (own - lower_on_upper * share)
    upper_turns = -(lower_on_upper * lower_turns + upper_forces) / both
    return jnp.stack([upper_speed, lower_speed, upper_turns, lower_turns])
