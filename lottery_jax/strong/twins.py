"""Random networks under the mask that makes them compute what a target computes.

Of each layer of the target two of the random network are spent (Malach et al. 2020, section
2; Pensia et al. 2020, section 3). The first has m neurons of each input, a block: all other
weights of these neurons are pruned, and neuron k of input i says relu(a_ik x_i). The second
has a weight b_ikj from it to each output j. Since

    w x = w relu(x) - w relu(-x),

the neurons with a_ik > 0 stand for relu(x), those with a_ik < 0 for relu(-x), with the
coefficient |a_ik| b_ikj: of the former some are kept whose coefficients add up to nearly w,
of the latter some that add up to nearly -w. Blocks are shared by all outputs; which of their
second weights are kept is each output's own affair. The inputs of later layers are never
negative: there the neurons with a_ik < 0 are all pruned.

Layers with weights outside of [-1, 1] are divided by a power of two, and the outputs are
multiplied by it: f(x) = s g(x) with ReLU between linear layers, exactly so in floating
point, too.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, masks
from lottery_jax.strong import choices, laws, targets
from lottery_jax.strong.laws import Law
from lottery_jax.strong.targets import Layers
from lottery_jax.types import Array, Key, Mask, Params

Method = Literal["single", "golden", "subset_sums", "programme"]
Rescale = Literal["weights", "norm"]
"""What of a layer is brought to 1 or less; see `build`."""

METHODS = get_args(Method)
"""What chooses the candidates of a weight; see `choices`."""

_AT_ONCE = 2**24  # candidates that are looked at together


class Counts(NamedTuple):
    """Both accountings of a construction, all counted from its arrays.

    Attributes:
      target: weights of the target network.
      neurons: random second weights that one weight of the target may be made of, those
        of its input's block: its candidates, of both signs.
      random: all weights of the random network.
      kept: those that are not pruned.
    """

    target: int
    neurons: int
    random: int
    kept: int

    @property
    def per_weight(self) -> float:
        """Random weights for each weight of the target."""
        return self.random / self.target

    @property
    def density(self) -> float:
        """Kept share of the random weights."""
        return self.kept / self.random


class Twin(NamedTuple):
    """A random network, its mask, and how close its weights come to those of a target.

    Attributes:
      weights: as drawn, float32: `dense_0`, ..., `head`, twice the layers of the target.
      mask: bool, of the structure of the weights.
      scale: what the outputs of the masked network are multiplied by, a power of two.
      target: the matrices of the target.
      errors: per layer of the target, float64 `[signs, in, out]`, in the target's units:
        what the kept coefficients add up to, less the weight, for positive inputs, and in
        the first layer for negative ones, too.
      counts: of weights.
    """

    weights: Params
    mask: Mask
    scale: float
    target: Layers
    errors: tuple[np.ndarray, ...]
    counts: Counts

    @property
    def params(self) -> Params:
        """The masked weights: `targets.apply(twin.params, x) * twin.scale`."""
        return masks.apply(self.mask, self.weights)

    @property
    def largest(self) -> float:
        """The largest error of a weight."""
        return max(float(np.abs(own).max()) for own in self.errors)

    def within(self, eps: float) -> float:
        """The share of the target's weights that are within eps, for both signs."""
        close = sum(
            int(np.count_nonzero(np.abs(own).max(0) <= eps)) for own in self.errors
        )
        return close / self.counts.target

    def __call__(self, x: Any) -> Array:
        """What the masked network says of `x`, `[B, ...]` to float32 `[B, out]`."""
        return targets.apply(self.params, x) * jnp.float32(self.scale)


def scales(target: Layers, rescale: Rescale | None) -> tuple[float, ...]:
    """The power of two that each layer is divided by: 1 for weights in range.

    Args:
      target: its matrices.
      rescale: what is brought to 1 or less: the largest of the "weights", or the spectral
        "norm", as the theorems have it; None where nothing may be rescaled.

    Raises:
      ValueError: an unknown way, or a layer has weights outside of [-1, 1] and may not be
        rescaled.
    """
    if rescale is not None:
        errors.one_of("rescale", rescale, get_args(Rescale))
    found = []
    for i, matrix in enumerate(target):
        size = largest = float(np.abs(matrix).max())
        if rescale == "norm":
            size = float(np.linalg.norm(matrix.astype(np.float64), 2))
        power = 2.0 ** max(0, math.ceil(math.log2(size))) if size else 1.0
        if power > 1 and rescale is None:
            must = (
                f"1 or less, the range of the theorems; rescale='weights' divides layer {i} "
                f"by {power:g} and multiplies the outputs by it, and its errors with them"
            )
            raise errors.wrong(f"largest weight of layer {i}", f"{largest:.4g}", must)
        found.append(power)
    return tuple(found)


def build(
    key: Key,
    target: Layers,
    method: Method = "subset_sums",
    *,
    neurons: int | None = None,
    eps: float | None = None,
    rescale: Rescale | None = None,
    law: Law | None = None,
    limit: int | None = None,
    seconds: float = 60.0,
) -> Twin:
    """Draws a random network and finds the mask under which it computes the target.

    Args:
      key: of the draw.
      target: matrices, from `targets.layers`.
      method: what chooses: "single" (Malach et al.), "golden" (Orseau et al.),
        "subset_sums" or "programme" (Pensia et al.).
      neurons: m, hidden neurons of each input; None for as many as `laws.neurons` says
        for eps.
      eps: in (0, 1), the largest error that a weight may have, in the target's units; None
        to take what comes. "golden" needs it.
      rescale: None, or what of each layer is brought to 1 or less by a power of two: the
        largest of its "weights", or its spectral "norm". Errors are multiplied by it again;
        but a weight of 1/4 is reached by fewer candidates than one of 1.
      law: of the random weights; None for U[-1, 1], for "golden" the hyperbolic one.
      limit: see `choices.subset_sums`; None for 20, or what eps needs beyond.
      seconds: see `choices.programme`.

    Returns:
      The twin.

    Raises:
      ValueError: a target that `targets.layers` refuses, weights outside of [-1, 1], an
        unknown method or way to rescale, numbers out of range, neither neurons nor eps, or
        an error above eps: says how many neurons would do.
    """
    errors.one_of("method", method, METHODS)
    target = targets.layers(list(errors.several("target", target)))
    size = sum(matrix.size for matrix in target)
    powers = scales(target, rescale)
    if eps is not None:
        errors.share("eps", eps)
    if eps is None and (neurons is None or method == "golden"):
        raise errors.wrong("eps", eps, "given: it says what is wanted")
    own_eps = None if eps is None else eps / max(powers)
    enough = None if own_eps is None else laws.neurons(method, own_eps, size)
    m = enough if neurons is None else errors.whole("neurons", neurons, 1)
    assert m is not None
    if law is None:
        golden = method == "golden" and own_eps is not None
        law = laws.hyperbolic(own_eps) if golden else laws.Uniform()  # type: ignore[arg-type]
    if limit is None:
        limit = laws.compared(own_eps)
    choose = _chooser(method, own_eps, limit, seconds)
    weights: list[Array] = []
    mask: list[Array] = []
    found: list[np.ndarray] = []
    for i, (matrix, power) in enumerate(zip(target, powers)):
        inputs, outputs = matrix.shape
        shapes = ((inputs, inputs * m), (inputs * m, outputs))
        drawn = [
            law.draw(jax.random.fold_in(key, 2 * i + j), shape)
            for j, shape in enumerate(shapes)
        ]
        signs = (1, -1) if i == 0 else (1,)
        kept, own = _layer(matrix / np.float64(power), drawn, signs, choose)
        weights += drawn
        mask += map(jnp.asarray, kept)
        found.append(own * power)
    twin = Twin(
        weights=targets.as_params(weights),
        mask=targets.as_params(mask),
        scale=math.prod(powers),
        target=target,
        errors=tuple(found),
        counts=Counts(
            target=size,
            neurons=m,
            random=sum(w.size for w in weights),
            kept=sum(int(np.count_nonzero(k)) for k in mask),
        ),
    )
    if eps is not None and twin.largest > eps:
        must = (
            f"about {max(enough or m, m + 1)} for every weight to be within eps={eps}: the "
            f"largest error is {twin.largest:.3g}, and {twin.within(eps):.2%} are within"
        )
        raise errors.wrong("neurons", m, must)
    return twin


Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _chooser(method: str, eps: float | None, limit: int, seconds: float) -> Choose:
    if method == "single":
        return choices.single
    if method == "golden" and eps is not None:
        return lambda c, z: choices.golden(c, z, eps)
    if method == "programme":
        return lambda c, z: choices.programme(c, z, seconds)
    errors.whole("limit", limit, 1, choices.MOST)
    return lambda c, z: choices.subset_sums(c, z, limit)


def _layer(
    wanted: np.ndarray, drawn: list[Array], signs: tuple[int, ...], choose: Choose
) -> tuple[list[np.ndarray], np.ndarray]:
    """The masks of two random layers, and the errors of the layer they stand for.

    Args:
      wanted: float64 `[in, out]`, in [-1, 1].
      drawn: the weights, `[in, in m]` and `[in m, out]`.
      signs: of the inputs.
      choose: candidates and targets -> what is kept.
    """
    (inputs, outputs), m = wanted.shape, drawn[1].shape[0] // wanted.shape[0]
    own = np.arange(inputs)
    a = np.asarray(drawn[0]).reshape(inputs, inputs, m)[own, own].astype(np.float64)
    b = np.asarray(drawn[1]).reshape(inputs, m, outputs)
    # Products of float32 are exact in float64.
    coefficients = np.abs(a)[..., None] * b
    kept = np.zeros(b.shape, bool)
    found = []
    for sign in signs:
        right = sign * a > 0
        most = max(1, int(right.sum(1).max()))
        order = np.argsort(~right, axis=1, kind="stable")[:, :most, None]
        some = np.where(right[..., None], coefficients, 0.0)
        some = np.take_along_axis(some, order, axis=1)
        rows = some.transpose(0, 2, 1).reshape(inputs * outputs, most)
        aims = (sign * wanted).reshape(-1, 1)
        step = max(1, _AT_ONCE // most)
        chosen = np.concatenate(
            [
                choose(rows[i : i + step], aims[i : i + step])[:, 0]
                for i in range(0, len(rows), step)
            ]
        )
        sums = np.where(chosen, rows, 0.0).sum(1).reshape(inputs, outputs)
        found.append(sums - sign * wanted)
        chosen = chosen.reshape(inputs, outputs, most).transpose(0, 2, 1)
        there = np.take_along_axis(kept, order, axis=1)
        np.put_along_axis(kept, order, chosen | there, axis=1)
    first = np.zeros((inputs, inputs, m), bool)
    first[own, own] = kept.any(2)
    both = [first.reshape(inputs, inputs * m), kept.reshape(inputs * m, outputs)]
    return both, np.stack(found)
