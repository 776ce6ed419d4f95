"""Small networks of every family, and what their training step is measured by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import quick

from lottery_jax import models, trees

CASES = {
    "lenet-300-100": ((28, 28, 1), 60),
    "mlp-64": ((40,), 60),
    "residual-mlp-100": ((40,), 60),
    "conv-2-16": ((16, 16, 3), 32),
    "vgg-11-8": ((16, 16, 3), 32),
    "resnet-8-8": ((16, 16, 3), 32),
    "imagenet-resnet-18-4": ((32, 32, 3), 16),
}
"""A member of each family: shape of an example, examples in a batch."""


@functools.cache
def initial(name):
    """The model, and its law as a quickly compiled function of a key."""
    model = models.make(name, 10)
    image = jnp.zeros((1, *CASES[name][0]), jnp.float32)
    return model, quick.jit(lambda key: model.init(key, image))


def inputs(name, seed):
    """The first variables, images and labels, float32."""
    shape, batch = CASES[name]
    init = initial(name)[1]
    rng = np.random.RandomState(seed)
    x = rng.normal(size=(batch, *shape)).astype(np.float32)
    y = rng.randint(0, 10, size=batch).astype(np.int32)
    return jax.tree.map(np.asarray, init(jax.random.key(seed))), x, y


def step(model):
    """`(variables, x, y) -> loss, statistics, gradients` of one training step."""

    def loss(params, state, x, y):
        ones = jnp.ones(len(x), x.dtype)
        logits, after = model.apply(
            {"params": params, **state}, x, True, ones, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.mean(losses), after

    def one(variables, x, y):
        state = {k: v for k, v in variables.items() if k != "params"}
        of = jax.value_and_grad(loss, has_aux=True)
        (value, after), gradients = of(variables["params"], state, x, y)
        return value, after, gradients

    return one


def layers(tree):
    """The numbers of each layer as one vector, by the layer's key path."""
    found = {}
    for path, leaf in trees.by_path(tree).items():
        parts = path.removeprefix("batch_stats/").rpartition("/")
        found.setdefault(parts[0], []).append(np.asarray(leaf, np.float64).ravel())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def errors(found, exact):
    """The relative error of each layer, in the Euclidean norm."""
    found, exact = layers(found), layers(exact)
    return {
        name: float(np.linalg.norm(found[name] - x) / np.linalg.norm(x))
        for name, x in exact.items()
    }
