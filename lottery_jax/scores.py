"""How important is a weight?  Pure functions of arrays, and one protocol over them.

The array functions are what one imports: `magnitude(trained)`, `taylor(params,
gradients)`. A `Score` is what a pruning loop calls: `score(key, inputs)`, where `inputs`
holds everything that a criterion may ask for. `SCORES` lists the scores by name; a new one
is one function and one entry, and inherits the tests.

Scores are ranked, never compared in size, and never normalised by layer. They are float32
at least, whatever the weights are: products of half-precision numbers underflow there, and
weights of equal score are cut by position. Of complex weights it is the magnitudes that are
compared. Integers and bools are no weights: refused by name.

The mask criteria of Zhou et al. (2019, figure 2 and section 5) ask about the initial
weights w_i and the final ones w_f. `magnitude` is what they call large_final. Scores of
one sign class put the other class last: there the weight goes first whose final value
lies farthest on the wrong side of 0.

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


def small_final(trained: Params) -> Scores:
    """-|w_final|: small weights survive, a control (Zhou et al. 2019, figure 2)."""
    return jax.tree.map(lambda f: -jnp.abs(f), _wide(trained, "trained"))


def large_init(initial: Params) -> Scores:
    """|w_init|: weights that started large survive (Zhou et al. 2019, figure 2)."""
    return jax.tree.map(jnp.abs, _wide(initial, "initial"))


def small_init(initial: Params) -> Scores:
    """-|w_init|: weights that started small survive (Zhou et al. 2019, figure 2)."""
    return jax.tree.map(lambda i: -jnp.abs(i), _wide(initial, "initial"))


def large_init_large_final(
    trained: Params, initial: Params, mask: Mask | None = None
) -> Scores:
    """Weights survive that are large both at the start and at the end.

    The smaller of two percentiles: that of |w_init| and that of |w_final| among the
    survivors of the layer, so that the best n of a layer are those for which both lie
    beyond a common percentile, whatever n is (Zhou et al. 2019, figure 2). Where two
    weights share it, the one goes first that was the smaller at the start.

    Args:
      trained: the final weights.
      initial: those at step 0, of the same shapes.
      mask: the current mask; None if all survive.

    Returns:
      Percentiles (rank + 1) / survivors in (0, 1], half a rank lower where the initial
      one is the smaller; 0 off the mask. Of equal magnitudes the first in the leaf ranks
      lower. Ranked over all layers at once they keep one common percentile in each, and
      do not see, as magnitudes do, that one layer's weights are larger than another's.

    Raises:
      ValueError: leaves that are no weights, or that do not fit.
    """
    pair = _wide(trained, "trained"), _wide(initial, "initial")
    final, start = (jax.tree.map(jnp.abs, tree) for tree in pair)
    return _both(final, start, mask)


def small_init_small_final(
    trained: Params, initial: Params, mask: Mask | None = None
) -> Scores:
    """Weights survive that are small both at the start and at the end, a control.

    As `large_init_large_final`, of -|w_init| and -|w_final|.

    Args:
      trained: the final weights.
      initial: those at step 0, of the same shapes.
      mask: the current mask; None if all survive.
    """
    return _both(small_final(trained), small_init(initial), mask)


def large_final_same_sign(trained: Params, initial: Params) -> Scores:
    """w_final sign(w_init): large weights survive that kept their sign.

    Those that changed it come last (Zhou et al. 2019, section 5, where all of these
    score 0).
    """
    pair = _wide(trained, "trained"), _wide(initial, "initial")
    return jax.tree.map(lambda f, i: jnp.real(f * jnp.conj(jnp.sign(i))), *pair)


def large_final_diff_sign(trained: Params, initial: Params) -> Scores:
    """-w_final sign(w_init): large weights survive that changed their sign, a control."""
    return jax.tree.map(jnp.negative, large_final_same_sign(trained, initial))


def magnitude_increase_same_sign(trained: Params, initial: Params) -> Scores:
    """|w_final| - |w_init| of weights that kept their sign; the others come last.

    (Zhou et al. 2019, section 5.)
    """
    return _of_class(large_final_same_sign, trained, initial)


def magnitude_increase_diff_sign(trained: Params, initial: Params) -> Scores:
    """|w_final| - |w_init| of weights that changed their sign, a control."""
    return _of_class(large_final_diff_sign, trained, initial)


_LAST = 2.0**64
"""A power of two scales floats without rounding: their order is what it was."""

_NOTHING = 2.0**-40
"""The other class ranks below -_LAST * _NOTHING: no magnitude shrinks by so much."""


def _of_class(
    side: Callable[[Params, Params], Scores], trained: Params, initial: Params
) -> Scores:
    """How much magnitudes grew on one side of 0; below them those of the other side."""

    def leaf(at: Array, grown: Array) -> Array:
        return jnp.where(at > 0, grown, -_LAST * jnp.maximum(-at, _NOTHING))

    grown = magnitude_increase(trained, initial)
    return jax.tree.map(leaf, side(trained, initial), grown)


def _both(final: Scores, initial: Scores, mask: Mask | None) -> Scores:
    """The smaller percentile of two rankings within each leaf."""
    alive = masks.ones_like(final) if mask is None else mask
    masks.check(alive, final, "trained")
    trees.same(final, initial, ("trained", "initial"))

    def rank(x: Array, m: Array) -> Array:
        # What is dead ranks below all others.
        order = jnp.lexsort((x.reshape(-1), m.reshape(-1)))
        places = jnp.arange(x.size, dtype=jnp.int32)
        return jnp.zeros_like(places).at[order].set(places).reshape(x.shape)

    def percentile(f: Array, i: Array, m: Array) -> Array:
        of_final, of_initial = rank(f, m), rank(i, m)
        number = jnp.sum(m, dtype=jnp.int32)
        lower = jnp.minimum(of_final, of_initial) + 1 - (m.size - number)
        # Two weights may share a lower rank: one by its end, one by its start.
        lower = lower.astype(f.dtype) - 0.5 * (of_initial < of_final)
        lower = lower / jnp.maximum(number, 1).astype(f.dtype)
        lower = jnp.where(jnp.isnan(f) | jnp.isnan(i), jnp.nan, lower)
        return jnp.where(m, lower, 0)

    return jax.tree.map(percentile, *trees.gathered(final, initial, alive))


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


class MissingInputError(ValueError):
    """A score is not given what it looks at."""


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
        raise MissingInputError("this score needs inputs.loss and inputs.batches")
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


def _small_final(key: Key, inputs: Inputs) -> Scores:
    return small_final(inputs.trained)


def _large_init(key: Key, inputs: Inputs) -> Scores:
    return large_init(_given(inputs.initial))


def _small_init(key: Key, inputs: Inputs) -> Scores:
    return small_init(_given(inputs.initial))


def _large_init_large_final(key: Key, inputs: Inputs) -> Scores:
    return large_init_large_final(inputs.trained, _given(inputs.initial), inputs.mask)


def _small_init_small_final(key: Key, inputs: Inputs) -> Scores:
    return small_init_small_final(inputs.trained, _given(inputs.initial), inputs.mask)


def _large_final_same_sign(key: Key, inputs: Inputs) -> Scores:
    return large_final_same_sign(inputs.trained, _given(inputs.initial))


def _large_final_diff_sign(key: Key, inputs: Inputs) -> Scores:
    return large_final_diff_sign(inputs.trained, _given(inputs.initial))


def _magnitude_increase_same_sign(key: Key, inputs: Inputs) -> Scores:
    return magnitude_increase_same_sign(inputs.trained, _given(inputs.initial))


def _magnitude_increase_diff_sign(key: Key, inputs: Inputs) -> Scores:
    return magnitude_increase_diff_sign(inputs.trained, _given(inputs.initial))


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
    "small_final": _small_final,
    "large_init": _large_init,
    "small_init": _small_init,
    "large_init_large_final": _large_init_large_final,
    "small_init_small_final": _small_init_small_final,
    "large_final_same_sign": _large_final_same_sign,
    "large_final_diff_sign": _large_final_diff_sign,
    "magnitude_increase_same_sign": _magnitude_increase_same_sign,
    "magnitude_increase_diff_sign": _magnitude_increase_diff_sign,
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
        raise MissingInputError(
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
