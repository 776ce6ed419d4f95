"""SimCLR in plain JAX, as somebody would write it who knows no masks."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.rows import Sizes
from benchmarks.run import Programs
from benchmarks.sides_jax import draw, make_contrasted, make_dataset, make_tx
from lottery_jax.data import Views, normalize, views

TEMPERATURE = 0.5


def plain(sizes: Sizes) -> Programs:
    """The network and the views of the other side; one jitted step per Python call."""
    model, tx, dataset = make_contrasted(sizes), make_tx(sizes), make_dataset(sizes)
    images = jnp.asarray(dataset.arrays["train"]["image"])
    generator = np.random.default_rng(2)
    partners = jnp.roll(jnp.arange(2 * sizes.batch), sizes.batch)
    itself = jnp.eye(2 * sizes.batch, dtype=bool)

    def loss(params: Any, state: Any, x: Any) -> Any:
        variables = {"params": params, **state}
        z, state = model.apply(variables, x, train=True, mutable=list(state))
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        scores = jnp.where(itself, -jnp.inf, z @ z.T / TEMPERATURE)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, partners)
        return losses.mean(), state

    @partial(jax.jit, donate_argnums=0)
    def step(carry: Any, images: Any, key: Any, i: Any) -> Any:
        params, state, opt_state = carry
        order, seen = jax.random.split(jax.random.fold_in(key, i))
        rows = jax.random.randint(order, (sizes.batch,), 0, sizes.examples)
        pair = views.two(seen, images[rows].astype(jnp.float32) / 255, Views())
        x = normalize(jnp.concatenate(pair), dataset.mean, dataset.std)
        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(
            params, state, x
        )
        updates, opt_state = tx.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state), value

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((1, *sizes.shape)))

    key = jax.random.key(0)
    made = draw(generator, 1, jax.eval_shape(init, key))
    made = dict(jax.tree.map(lambda x: jnp.array(x[0]), made))
    params = made.pop("params")
    carry, counter = [(params, made, tx.init(params))], itertools.count()

    def run() -> int:
        for i in itertools.islice(counter, sizes.steps):
            carry[0], value = step(carry[0], images, key, i)
        jax.block_until_ready((carry[0], value))
        return sizes.steps

    return {"run": run}
