"""How important is a weight?  Pure functions of arrays, and one protocol over them.

The array functions are what one imports: `magnitude(trained)`, `taylor(params,
gradients)`. A `Score` is what a pruning loop calls: `score(key, inputs)`, where `inputs`
holds everything that a criterion may ask for. `SCORES` lists the scores by name; a new one
is one function and one entry, and inherits the tests.

Scores are ranked, never compared in size, and never normalised by layer. They are float32
at least, whatever the weights are: products of half-precision numbers underflow there, and
weights of equal score are cut by position. Of complex weights it is the magnitudes that are
compared. Integers and bools are no weights: refused by name.

Gradients are means over the batches given; the loss decides the mode of BatchNorm, and the
losses of this library use batch statistics (training mode).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lottery_jax import masks, trees
from lottery_jax.keys import settled
from lottery_jax.types import Array, Batch, Key, Mask, ModelState, Params, Scores

# --- functions of arrays --------------------------------------------------------------


def magnitude(trained: Params) -> Scores:
    """|w|: large weights survive (Han et al. 2015; Frankle and Carbin 2019)."""
    return jax.tree.map(jnp.abs, _wide(trained, "trained"))


def movement(trained: Params, initial: Params) -> Scores:
    """|w_final - w_init|: weights that moved far survive (Zhou et al. 2019, figure 2)."""
    pair = _wide(trained, "trained"), _wide(initial, "initial")
    return jax.tree.map(lambda f, i: jnp.abs(f - i), *pair)


def magnitude_increase(trained: Params, initial: Params) -> Scores:
    """|w_final| - |w_init|: weights that grew survive (Zhou et al. 2019, figure 2)."""
    pair = _wide(trained, "trained"), _wide(initial, "initial")
    return jax.tree.map(lambda f, i: jnp.abs(f) - jnp.abs(i), *pair)


def gradient(gradients: Params) -> Scores:
    """|g|: weights on which the loss depends most steeply survive."""
    return jax.tree.map(jnp.abs, _wide(gradients, "gradients"))


def taylor(params: Params, gradients: Params) -> Scores:
    """|w g|: first-order change of the loss when the weight is removed.

    At initialisation this is the score of SNIP, up to its normalisation (Lee et al. 2019,
    equation 4), which does not change the ranking.
    """
    pair = _wide(params, "params"), _wide(gradients, "gradients")
    return jax.tree.map(lambda w, g: jnp.abs(w * g), *pair)


@settled
def random(key: Key, params: Params) -> Scores:
    """Uniform in [0, 1), float32: a control, one draw per leaf and key."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.uniform(k, x.shape, jnp.float32) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(structure, draws)


def _wide(tree: Params, name: str) -> Params:
    """Weights or gradients in float32 at least; integers and the like are refused."""
    trees.check_arrays(tree, name)
    for path, leaf in trees.by_path(tree).items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"{name}: leaf {path!r} has dtype {dtype}; it must be floating-point, as "
                "weights are"
            )
    return jax.tree.map(
        lambda x: jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )


# --- the protocol ---------------------------------------------------------------------

BatchLoss = Callable[[Params, ModelState, Batch, Key], Array]


class Inputs(NamedTuple):
    """What a score may look at. Fields that a score does not use may stay None.

    Attributes:
      trained: the weights at the end of training.
      mask: the current mask.
      initial: the weights at step 0.
      rewind: the weights at the rewind step.
      model_state: that of the trained network.
      loss: `(params, model_state, batch, key) -> loss`, the mean over a batch.
      batches: batches for gradients, with a leading axis of their number.
    """

    trained: Params
    mask: Mask
    initial: Params | None = None
    rewind: Params | None = None
    model_state: ModelState = None
    loss: BatchLoss | None = None
    batches: Batch | None = None


class Score(Protocol):
    """A pruning criterion: the importance of each weight, higher = kept."""

    def __call__(self, key: Key, inputs: Inputs, /) -> Scores: ...


def mean_gradient(key: Key, inputs: Inputs, params: Params) -> Params:
    """The gradient of the loss at the masked `params`, a mean over `inputs.batches`.

    Each gradient has the precision of the weights; they are added up in float32 at least,
    in which the mean is returned.

    Raises:
      ValueError: no loss or no batches among the inputs, weights that are none.
    """
    loss = inputs.loss
    if loss is None or inputs.batches is None:
        raise ValueError("this score needs inputs.loss and inputs.batches")
    zeros = jax.tree.map(jnp.zeros_like, _wide(params, "params"))
    params = masks.apply(inputs.mask, params)
    number = jax.tree.leaves(inputs.batches)[0].shape[0]

    def one(total: Params, item: tuple[Key, Batch]) -> tuple[Params, None]:
        batch_key, batch = item
        gradients = jax.grad(loss)(params, inputs.model_state, batch, batch_key)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradients), None

    each = settled(jax.random.split)(key, number), inputs.batches
    return jax.tree.map(lambda t: t / number, jax.lax.scan(one, zeros, each)[0])


def _magnitude(key: Key, inputs: Inputs) -> Scores:
    return magnitude(inputs.trained)


def _movement(key: Key, inputs: Inputs) -> Scores:
    return movement(inputs.trained, _given(inputs.initial))


def _magnitude_increase(key: Key, inputs: Inputs) -> Scores:
    return magnitude_increase(inputs.trained, _given(inputs.initial))


def _gradient(key: Key, inputs: Inputs) -> Scores:
    return gradient(mean_gradient(key, inputs, inputs.trained))


def _taylor(key: Key, inputs: Inputs) -> Scores:
    return taylor(inputs.trained, mean_gradient(key, inputs, inputs.trained))


def _snip(key: Key, inputs: Inputs) -> Scores:
    initial = _given(inputs.initial)
    return taylor(initial, mean_gradient(key, inputs, initial))


def _random(key: Key, inputs: Inputs) -> Scores:
    return random(key, inputs.trained)


def _given(initial: Params | None) -> Params:
    if initial is None:
        raise ValueError("this score needs inputs.initial, the weights at step 0")
    return initial


SCORES: Mapping[str, Score] = {
    "magnitude": _magnitude,
    "movement": _movement,
    "magnitude_increase": _magnitude_increase,
    "gradient": _gradient,
    "taylor": _taylor,
    "snip": _snip,
    "random": _random,
}
"""Every score by its name."""


def by_name(name: str) -> Score:
    """The score of that name.

    Raises:
      ValueError: an unknown name; lists the known ones.
    """
    if name not in SCORES:
        raise ValueError(f"score={name!r}; it must be one of {sorted(SCORES)}")
    return SCORES[name]
