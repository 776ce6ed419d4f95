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
from typing import Any, NamedTuple, Protocol

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
Outputs = Callable[[Params, ModelState, Batch], Array]


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
      outputs: `(params, model_state, batch) -> [examples, ...]` in evaluation mode, such
        as `Task.outputs`.
    """

    trained: Params
    mask: Mask
    initial: Params | None = None
    rewind: Params | None = None
    model_state: ModelState = None
    loss: BatchLoss | None = None
    batches: Batch | None = None
    outputs: Outputs | None = None


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
    return _mean(jax.grad(loss), key, inputs, params)


def _mean(
    derivative: Callable[..., Params], key: Key, inputs: Inputs, params: Params
) -> Params:
    """The mean over the batches of a derivative at the masked weights, float32 at least."""
    zeros = jax.tree.map(jnp.zeros_like, _wide(params, "params"))
    params = masks.apply(inputs.mask, params)
    number = jax.tree.leaves(inputs.batches)[0].shape[0]

    def one(total: Params, item: tuple[Key, Batch]) -> tuple[Params, None]:
        batch_key, batch = item
        found = derivative(params, inputs.model_state, batch, batch_key)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, found), None

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


def _grasp(key: Key, inputs: Inputs) -> Scores:
    initial = _given(inputs.initial)
    return grasp(initial, mean_hessian_gradient(key, inputs, initial))


def _synflow(key: Key, inputs: Inputs) -> Scores:
    initial = _given(inputs.initial)
    return taylor(initial, flow_gradient(inputs, initial))


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
    "grasp": _grasp,
    "synflow": _synflow,
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


# --- at initialisation ----------------------------------------------------------------


def grasp(params: Params, hessian_gradient: Params) -> Scores:
    """w (H g): weights whose removal takes most from the gradient flow survive.

    To remove weight q is the step d = -w_q e_q. To first order it changes the squared norm
    of the gradient by 2 d^T H g = -2 w_q (H g)_q. GraSP calls S = -w (H g) the score
    (Wang et al. 2020, equation 8) and removes the weights in which it is *highest*: those
    without which the gradient flow grows most, or falls least. Here higher is kept, so
    this is -S.

    Args:
      params: weights.
      hessian_gradient: the Hessian of the loss times its gradient, from
        `mean_hessian_gradient`.

    References:
      Wang, Zhang and Grosse, Picking Winning Tickets Before Training by Preserving
        Gradient Flow, 2020; https://arxiv.org/abs/2002.07376
    """
    pair = _wide(params, "params"), _wide(hessian_gradient, "hessian_gradient")
    return jax.tree.map(lambda w, h: w * h, *pair)


def mean_hessian_gradient(key: Key, inputs: Inputs, params: Params) -> Params:
    """H g of the masked network: of the mean loss over `inputs.batches`.

    g is the gradient by the weights that survive, and 0 elsewhere. The product is a forward
    derivative of the gradient: no Hessian is formed.

    Args:
      key: of what the loss draws; both derivatives see the same draws.
      inputs: with loss and batches.
      params: weights, unmasked.

    Raises:
      ValueError: no loss or no batches among the inputs, weights that are none.
    """
    params = masks.apply(inputs.mask, params)
    mean = masks.apply(inputs.mask, mean_gradient(key, inputs, params))
    along = jax.tree.map(lambda g, p: g.astype(p.dtype), mean, params)
    loss = inputs.loss
    assert loss is not None

    def turned(params: Params, *rest: Any) -> Params:
        # The derivative of the gradient along g, as something to take the mean of.
        return jax.jvp(lambda p: jax.grad(loss)(p, *rest), (params,), (along,))[1]

    return _mean(turned, key, inputs, params)


def flow_gradient(inputs: Inputs, params: Params) -> Params:
    """The derivative of the synaptic flow R by |w|, times some power of two.

    R is the sum of the outputs for an input of ones, when all weights that survive are
    replaced by their magnitudes, biases and the scales of norms included; norms are in
    evaluation mode. |w dR/dw| is SynFlow's score (Tanaka et al. 2020, algorithm 1). Summed
    over a layer it is the same for all layers of a network without biases (their theorem
    2), so that no layer is emptied before the others are down to few weights.

    In deep networks R is too large for float32. Where it is, the input is made smaller by a
    power of two, and what is summed by another: neither changes the ranking in a network
    that gives 0 for 0, as any of ReLUs and convolutions does whose biases are 0.

    Args:
      inputs: with outputs, and with batches, of which only the shapes are looked at.
      params: weights, unmasked.

    Raises:
      ValueError: no outputs or no batches among the inputs, weights that are none.

    References:
      Tanaka, Kunin, Yamins and Ganguli, Pruning neural networks without any data by
        iteratively conserving synaptic flow, 2020; https://arxiv.org/abs/2006.05467
    """
    outputs = inputs.outputs
    if outputs is None or inputs.batches is None:
        raise ValueError(
            "this score needs inputs.outputs, such as Task.outputs, and inputs.batches"
        )
    params = jax.tree.map(jnp.abs, _wide(masks.apply(inputs.mask, params), "params"))

    def flow(params: Params, size: Array) -> Array:
        batch = jax.tree.map(lambda x: _filled(x, size), inputs.batches)
        return jnp.sum(outputs(params, inputs.model_state, batch).astype(jnp.float32))

    # As powers of two: R itself, or if that is infinite, from an input of 2^-100.
    one, tiny = jnp.float32(1), jnp.ldexp(jnp.float32(1), -100)
    whole, part = (jnp.abs(flow(params, size)) for size in (one, tiny))
    fits = jnp.isfinite(whole)
    power = jnp.log2(jnp.where(fits, whole, part)) + jnp.where(fits, 0.0, 100.0)
    power = jnp.where(jnp.isfinite(power), jnp.round(power), 0.0).astype(jnp.int32)
    less = jnp.where(fits, 0, power // 2)
    size, total = (
        jnp.ldexp(one, -jnp.clip(p, -120, 120)) for p in (less, power - less)
    )
    return jax.grad(lambda p: total * flow(p, size))(params)


def _filled(batches: Array, value: Array) -> Array:
    """One example of batches `[number, examples, ...]`, its real numbers replaced."""
    first = batches[0]
    first = first[:1] if first.ndim else first
    if not jnp.issubdtype(first.dtype, jnp.floating):
        return first
    return jnp.full(first.shape, value.astype(first.dtype), first.dtype)
