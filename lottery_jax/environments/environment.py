"""What an environment is, and whether something is one."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lottery_jax import errors, trees
from lottery_jax.keys import of_seed
from lottery_jax.types import Array, Key, PyTree

Reset: TypeAlias = Callable[[Key], PyTree]
"""`key -> state`: what an episode begins with."""

Step: TypeAlias = Callable[[Key, PyTree, Array], tuple[PyTree, Array, Array]]
"""`(key, state, action) -> (state, reward, terminated)`; the action is int32 `[]`."""

Observe: TypeAlias = Callable[[PyTree], Array]
"""`state -> observation`, float32 `[n]` or `[H, W, C]`: what a policy sees."""


class Environment(NamedTuple):
    """A game with a finite number of actions, as pure functions of one game; hashable.

    An episode ends where `step` says that it has terminated, and is truncated after `limit`
    steps, which the functions know nothing of.

    Attributes:
      name: for messages and results.
      reset: `key -> state`, a pytree of arrays.
      step: `(key, state, action) -> (state, reward, terminated)`: the next state, a real
        number and a bool. It does not reset.
      observe: `state -> observation`, float32 `[n]` or `[H, W, C]`.
      actions: how many there are, 2 or more: 0, 1, ...
      limit: the longest episode, in steps, 1 or more.
      low: a return that no episode, or no policy of any use, is below.
      best: the highest return of an episode, or what counts as solved.
    """

    name: str
    reset: Reset
    step: Step
    observe: Observe
    actions: int
    limit: int
    low: float
    best: float


def check(environment: Environment) -> tuple[int, ...]:
    """The shape of an observation, once it is sure that this is an environment.

    Nothing is played: the functions are traced.

    Raises:
      ValueError: no environment, or a field of it that makes no sense; names it.
    """
    must = "an environments.Environment, such as environments.cartpole()"
    errors.is_a("environment", environment, Environment, must)
    name = environment.name
    errors.is_a("name", name, str, "the name of an environment")
    for field in ("reset", "step", "observe"):
        value = getattr(environment, field)
        must = "a function"
        errors.is_a(f"{name}: {field}", value, Callable, must)  # type: ignore[arg-type]
    of = "its actions, which are numbers of a finite set"
    errors.whole(f"{name}: actions", environment.actions, 2, None, of)
    of = "the longest episode in steps, without which none may ever end"
    errors.whole(f"{name}: limit", environment.limit, 1, None, of)
    errors.finite(f"{name}: (low, best)", (environment.low, environment.best))
    if environment.best <= environment.low:
        must = f"above low={environment.low}"
        raise errors.wrong(f"{name}: best", environment.best, must)
    try:
        hash(environment)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; its functions must be hashable") from None

    key = jax.eval_shape(lambda: of_seed(0))
    state = jax.eval_shape(environment.reset, key)
    action = jax.ShapeDtypeStruct((), jnp.int32)
    out = jax.eval_shape(environment.step, key, state, action)
    if not isinstance(out, tuple) or len(out) != 3:
        must = "(state, reward, terminated)"
        raise errors.wrong(f"{name}: step returns", errors.shown(out), must)
    after, reward, terminated = out
    try:
        trees.same(state, after, ("the state of reset", "that of step"))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    for (path, x), y in zip(trees.by_path(state).items(), jax.tree.leaves(after)):
        if x.dtype != y.dtype:
            field = f"{name}: dtype of leaf {path!r} of the state of step"
            raise errors.wrong(field, y.dtype, f"{x.dtype}, as reset has it")
    real = jnp.issubdtype(reward.dtype, jnp.floating)
    if reward.shape != () or not real:
        value = f"{reward.dtype} of shape {reward.shape}"
        raise errors.wrong(f"{name}: reward", value, "a real number")
    if terminated.shape != () or terminated.dtype != jnp.bool_:
        value = f"{terminated.dtype} of shape {terminated.shape}"
        raise errors.wrong(f"{name}: terminated", value, "one bool")
    seen = jax.eval_shape(environment.observe, state)
    shape = getattr(seen, "shape", ())
    if not shape or getattr(seen, "dtype", None) != jnp.float32:
        must = "float32 of shape [n] or [H, W, C]"
        raise errors.wrong(f"{name}: observe returns", errors.shown(seen), must)
    return shape
