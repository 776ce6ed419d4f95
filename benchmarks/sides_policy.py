"""An actor-critic trained in plain JAX, as somebody would write it who knows no masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.rows import GAMES, HORIZON, Sizes
from benchmarks.run import Programs
from benchmarks.sides_jax import as_program, draw, make_tx
from lottery_jax import environments, models

_GAMMA, _ENTROPY, _VALUE, _SCALE = 0.99, 0.01, 0.5, 0.01


def plain(sizes: Sizes) -> Programs:
    """The network and environment of the other side under optax alone, in one program."""
    game = environments.make(sizes.data)
    model, tx = models.policy.make(sizes.model, game.actions), make_tx(sizes)

    def policy(params: Any, seen: Any) -> Any:
        return model.apply({"params": params}, seen)

    def turn(carry: Any, key: Any) -> Any:
        params, states, times = carry
        act, move, begin = jax.random.split(key, 3)
        seen = jax.vmap(game.observe)(states)
        actions = jax.random.categorical(act, policy(params, seen)[0])
        moves = jax.random.split(move, GAMES)
        after, rewards, failed = jax.vmap(game.step)(moves, states, actions)
        late = (times + 1 >= game.limit) & ~failed
        fresh = jax.vmap(game.reset)(jax.random.split(begin, GAMES))
        over = failed | late
        states = jnp.where(over[:, None], fresh, after)
        times = jnp.where(over, 0, times + 1)
        seen_after = jax.vmap(game.observe)(after)
        return (params, states, times), (
            *(seen, actions, rewards, failed, late, seen_after),
        )

    def update(i: Any, carry: Any) -> Any:
        params, opt_state, states, times, key = carry
        keys = jax.random.split(jax.random.fold_in(key, i), HORIZON)
        (_, states, times), played = jax.lax.scan(turn, (params, states, times), keys)
        seen, actions, rewards, failed, late, after = played
        values_after = policy(params, after.reshape(-1, after.shape[-1]))[1]
        values_after = values_after.reshape(rewards.shape)

        def back(value: Any, at: Any) -> Any:
            reward, failed, late, critic = at
            value = jnp.where(failed, 0.0, jnp.where(late, critic, value))
            value = _SCALE * reward + _GAMMA * value
            return value, value

        given = rewards, failed, late, values_after
        worth = jax.lax.scan(back, values_after[-1], given, reverse=True)[1].reshape(-1)

        def loss(params: Any) -> Any:
            logits, values = policy(params, seen.reshape(-1, seen.shape[-1]))
            log = jax.nn.log_softmax(logits)
            own = jnp.take_along_axis(log, actions.reshape(-1, 1), 1)[:, 0]
            advantage = worth - values
            entropy = -(jnp.exp(log) * log).sum(1).mean()
            gain = (own * jax.lax.stop_gradient(advantage)).mean()
            return _VALUE * (advantage**2).mean() - gain - _ENTROPY * entropy

        gradients = jax.grad(loss)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, states, times, key

    @jax.jit
    def run(params: Any, states: Any, times: Any, key: Any) -> Any:
        carry = params, tx.init(params), states, times, key
        return jax.lax.fori_loop(0, sizes.steps, update, carry)

    key = jax.random.key(0)
    states = jax.vmap(game.reset)(jax.random.split(key, GAMES))
    seen = jax.eval_shape(jax.vmap(game.observe), states)
    shapes = jax.eval_shape(model.init, key, seen)["params"]
    params = draw(np.random.default_rng(2), 1, shapes)
    params = jax.tree.map(lambda x: jnp.array(x[0]), params)
    times = jnp.zeros(GAMES, jnp.int32)
    return as_program(run, (params, states, times, key), sizes.steps)
