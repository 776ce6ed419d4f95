"""An encoder trained in plain JAX, as somebody would write it who knows no masks."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.encoders import MASK, draw_arrays, guessed
from benchmarks.rows import Sizes
from benchmarks.run import Programs
from benchmarks.sides_jax import draw, make_encoder, make_tx
from lottery_jax.data.text import Tokens


def plain(sizes: Sizes) -> Programs:
    """The model of the other side under optax alone, one jitted step per Python call."""
    model, tx, number = make_encoder(sizes), make_tx(sizes), guessed(sizes)
    arrays = draw_arrays(sizes)
    data = {name: jnp.asarray(x) for name, x in arrays.items()}
    guesses = sizes.head == "masked_lm"
    generator = np.random.default_rng(2)

    def batch_of(data: Any, key: Any) -> tuple[Tokens, Any]:
        order, hide = jax.random.split(key)
        rows = jax.random.randint(order, (sizes.batch,), 0, sizes.examples)
        ids, kinds = data["ids"][rows], data["types"][rows]
        present = jnp.ones(ids.shape, bool)
        if not guesses:
            return Tokens(ids, kinds, present), data["label"][rows]
        _, positions = jax.lax.top_k(jax.random.uniform(hide, ids.shape), number)
        labels = jnp.take_along_axis(ids, positions, 1)
        hidden = ids.at[jnp.arange(sizes.batch)[:, None], positions].set(MASK)
        return Tokens(hidden, kinds, present, positions), labels

    def loss(params: Any, tokens: Tokens, labels: Any, key: Any) -> Any:
        variables, rngs = {"params": params}, {"dropout": key}
        logits = model.apply(variables, tokens, train=True, rngs=rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, data: Any, key: Any, i: Any) -> Any:
        params, opt_state = state
        batch_key, dropout = jax.random.split(jax.random.fold_in(key, i))
        tokens, labels = batch_of(data, batch_key)
        value, gradients = jax.value_and_grad(loss)(params, tokens, labels, dropout)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    def init(key: Any) -> Any:
        tokens, _ = batch_of(data, key)
        return model.init(key, tokens)["params"]

    key = jax.random.key(0)
    shapes = jax.eval_shape(init, key)
    params = jax.tree.map(lambda x: jnp.array(x[0]), draw(generator, 1, shapes))
    state, counter = [(params, tx.init(params))], itertools.count()

    def run() -> int:
        for i in itertools.islice(counter, sizes.steps):
            state[0], value = step(state[0], data, key, i)
        jax.block_until_ready((state[0], value))
        return sizes.steps

    return {"run": run}
