"""How far a twin is from its target: a bound that is proved, and an attack from below.

Both speak of the largest Euclidean distance of the outputs over the ball of the inputs,
|x| <= radius, for the two networks as functions of real numbers. With biases as weights of a
constant input, the ball is that of inputs with their 1.

With E_l the errors of layer l, W_l its weights, e_l the distance of the two networks behind
layer l and n_l the size of the target's activations there:

    e_l <= (|W_l| + |E_l|) e_(l-1) + |E_l| n_(l-1),     n_l <= |W_l| n_(l-1)

in spectral norms, from e_0 = 0 and n_0 = radius. docs/strong.md has the proof.
"""

from typing import NamedTuple

import numpy as np

from lottery_jax import errors
from lottery_jax.strong import targets
from lottery_jax.strong.twins import Twin
from lottery_jax.types import Key

# Norms are computed in float64, sums of m products with m roundings each.
_NORM_SLACK = 2.0**-30
_SUM_SLACK = 2.0**-52


def bound(twin: Twin, radius: float = 1.0) -> float:
    """No two outputs of twin and target are farther apart on the ball: proved.

    From the realised errors of all weights, in real arithmetic. What was computed in
    float64 to know them is allowed for; the rounding of a network that is applied in
    float32 is not part of it.

    Args:
      twin: from `twins.build`.
      radius: of the ball of inputs, above 0.

    Returns:
      A Euclidean distance of outputs.

    Raises:
      ValueError: a radius that is not above 0.
    """
    _check_radius(radius)
    apart, size = 0.0, float(radius)
    for matrix, own in zip(twin.target, twin.errors):
        # Positive and negative parts of one input beside each other: a vector of its norm.
        weight = _norm(matrix.astype(np.float64))
        # A coefficient is at most sum |c| <= m max |c|; its sum is m times rounded.
        terms = twin.counts.neurons
        slack = _SUM_SLACK * terms**2 * twin.scale * _largest_product(twin)
        error = _norm(own.reshape(-1, own.shape[-1])) + slack * own.size**0.5
        apart = (weight + error) * apart + error * size
        size = weight * size
    return apart * (1 + _NORM_SLACK)


def _norm(matrix: np.ndarray) -> float:
    """The spectral norm, from above: LAPACK's is exact for a matrix that is this close."""
    return float(np.linalg.norm(matrix, 2)) * (1 + _NORM_SLACK)


def _largest_product(twin: Twin) -> float:
    largest = [float(abs(w).max()) for w in targets.from_params(twin.weights)]
    return max(a * b for a, b in zip(largest[::2], largest[1::2]))


class Attack(NamedTuple):
    """What a search for inputs found on which twin and target differ.

    Attributes:
      distance: the largest Euclidean distance of their outputs: a lower bound.
      x: the input, float64 `[in]`, on the sphere.
    """

    distance: float
    x: np.ndarray


def attack(
    key: Key,
    twin: Twin,
    radius: float = 1.0,
    *,
    starts: int = 32,
    steps: int = 100,
    x: np.ndarray | None = None,
) -> Attack:
    """Looks for the input on which they differ most, by projected gradient ascent.

    Both are positively homogeneous, so the search stays on the sphere. It begins at random
    inputs, at those that the errors of the first layer tell most apart, and at given ones;
    steps are of a length that falls from half the radius. It is made in float64 with the
    coefficients of the masked network; the distance that is returned is that of the masked
    network itself.

    Args:
      key: of the random starts.
      twin: from `twins.build`.
      radius: of the ball of inputs, above 0.
      starts: random inputs to begin with, 1 or more.
      steps: of each, 0 or more.
      x: `[B, in]` further inputs to begin with, of any length but 0.

    Returns:
      The distance and the input.

    Raises:
      ValueError: numbers out of range, or inputs of another shape.
    """
    _check_radius(radius)
    errors.whole("starts", starts, 1)
    errors.whole("steps", steps, 0)
    inputs = twin.target[0].shape[0]
    random = np.random.default_rng(np.asarray(_words(key)))
    at = [random.standard_normal((starts, inputs))]
    # Singular vectors of either sign's errors; and their opposites.
    for own in twin.errors[0]:
        vectors = np.linalg.svd(own, full_matrices=False)[0].T[:4]
        at += [vectors, -vectors]
    if x is not None:
        given = np.asarray(x, np.float64)
        if given.ndim != 2 or given.shape[1] != inputs:
            raise errors.wrong("x.shape", given.shape, f"[some, {inputs}]")
        at.append(given)
    point = _onto(np.concatenate(at), radius)
    pairs = [matrix.astype(np.float64) for matrix in twin.target]
    best, best_point = np.full(len(point), -1.0), point
    for step in range(steps + 1):
        away, gradient = _difference(pairs, twin.errors, point)
        better = away > best
        best = np.where(better, away, best)
        best_point = np.where(better[:, None], point, best_point)
        length = 0.5 * radius * 0.01 ** (step / max(1, steps))
        point = _onto(point + length * _unit(gradient), radius)
    top = best_point[np.argsort(-best)[:8]]
    exact = np.linalg.norm(outputs(twin, top) - targets.forward(pairs, top), axis=1)
    i = int(exact.argmax())
    return Attack(float(exact[i]), top[i])


def outputs(twin: Twin, x: np.ndarray) -> np.ndarray:
    """What the masked network says, computed in float64 on the host.

    Args:
      twin: from `twins.build`.
      x: `[B, in]`.

    Returns:
      float64 `[B, out]`.
    """
    kernels = targets.from_params(twin.params)
    x = np.asarray(x, np.float64)
    return targets.forward([np.asarray(k, np.float64) for k in kernels], x) * twin.scale


def differences(twin: Twin, x: np.ndarray) -> np.ndarray:
    """How far the outputs of twin and target are apart, in float64.

    The twin is taken in its coefficients, which is the same in real arithmetic and needs
    none of its many neurons.

    Args:
      twin: from `twins.build`.
      x: `[B, in]`.

    Returns:
      Euclidean distances, float64 `[B]`.
    """
    pairs = [matrix.astype(np.float64) for matrix in twin.target]
    return _difference(pairs, twin.errors, np.asarray(x, np.float64))[0]


def _difference(
    weights: list[np.ndarray], errors_: tuple[np.ndarray, ...], x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The distance at each input `[B]`, and its gradient `[B, in]`.

    The twin is taken in its coefficients: target and errors added up.
    """
    h = g = x
    seen = []
    for i, (w, e) in enumerate(zip(weights, errors_)):
        signed = (w + e[0], e[1] - w) if i == 0 else (w + e[0],)
        parts = (g.clip(0), (-g).clip(0))[: len(signed)]
        h, g_next = h @ w, sum(p @ s for p, s in zip(parts, signed))
        seen.append((h > 0, g_next > 0, signed, g))
        g = g_next
        if i + 1 < len(weights):
            h, g = h.clip(0), g.clip(0)
    apart = g - h
    distance = np.linalg.norm(apart, axis=1)
    to_g, to_h = _unit(apart), -_unit(apart)
    for i in reversed(range(len(weights))):
        h_on, g_on, signed, before = seen[i]
        if i + 1 < len(weights):
            to_h, to_g = to_h * h_on, to_g * g_on
        to_h = to_h @ weights[i].T
        back = (to_g @ signed[0].T) * (before > 0)
        if len(signed) > 1:
            back = back - (to_g @ signed[1].T) * (before < 0)
        to_g = back
    return distance, to_g + to_h


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)


def _onto(x: np.ndarray, radius: float) -> np.ndarray:
    return radius * _unit(x)


def _words(key: Key) -> np.ndarray:
    import jax

    return np.asarray(jax.random.key_data(key))


def _check_radius(radius: float) -> None:
    if not 0 < radius < np.inf:
        raise errors.wrong("radius", radius, "a finite number above 0")
