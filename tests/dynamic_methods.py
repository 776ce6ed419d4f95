"""Every method that prunes during training, and how much each shall leave, worked out anew.

One table for all tests of `dynamic`: what is not in it fails `test_dynamic`.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import dynamic, transforms
from lottery_jax.dynamic import MaskUpdate
from lottery_jax.granularity import Block, Channel, NofM

BEGIN, END, EVERY, DROPPED = 2, 8, 2, 0.4

SCOPES = ("global", "uniform", "erk")

GROUPS = {"weights": None, "blocks": Block((2, 2)), "channels": Channel()}
"""What lives and dies together, but for n of m, which has a density of its own."""

N_OF_M = NofM(1, 2)


class Method(NamedTuple):
    """One method.

    Attributes:
      make: the rule for a density and the options of `prune.to_density`.
      steps: at which it acts.
      left: the density after a step, for the last one.
      through: whether weights off the mask go on training.
      regrows: whether weights come back, as many as go in each layer.
      scopes: what it takes.
    """

    make: Callable[..., MaskUpdate]
    steps: tuple[int, ...]
    left: Callable[[int, Fraction], Fraction]
    through: bool = False
    regrows: bool = False
    scopes: tuple[str, ...] = SCOPES

    def optimizer(self, tx: optax.GradientTransformation):
        """The optimizer for it."""
        return transforms.straight_through(tx) if self.through else tx

    @property
    def starts(self) -> bool:
        """Whether it is sparse before the first step."""
        return self.regrows or not self.steps


def cubic(step: int, last: Fraction) -> Fraction:
    """The density of gradual pruning: Zhu and Gupta, equation 1."""
    return last + (1 - last) * (1 - Fraction(step - BEGIN, END - BEGIN)) ** 3


def constant(step: int, last: Fraction) -> Fraction:
    return last


SCHEDULE, AGAIN = (2, 4, 6, 8), (3, 6)

METHODS = {
    "gradual_magnitude": Method(
        lambda d, **o: dynamic.gradual_magnitude(d, BEGIN, END, EVERY, **o),
        *(SCHEDULE, cubic),
    ),
    "gradual_random": Method(
        lambda d, **o: dynamic.gradual_random(d, BEGIN, END, EVERY, **o),
        *(SCHEDULE, cubic),
    ),
    "gradual_saliency": Method(
        lambda d, **o: dynamic.gradual_saliency(d, BEGIN, END, EVERY, **o),
        *(SCHEDULE, cubic),
    ),
    "one_shot_magnitude": Method(
        lambda d, **o: dynamic.one_shot_magnitude(d, 5, **o), (5,), constant
    ),
    "periodic_magnitude": Method(
        lambda d, **o: dynamic.periodic_magnitude(d, BEGIN, END, 3, **o),
        *(AGAIN, constant),
    ),
    "static_sparse": Method(lambda d, **o: dynamic.static_sparse(d, **o), (), constant),
    "sparse_evolutionary": Method(
        lambda d, **o: dynamic.sparse_evolutionary(
            d, END, EVERY, drop_fraction=DROPPED, decay="constant", **o
        ),
        *(SCHEDULE, constant, False, True, ("uniform", "erk")),
    ),
    "rigl": Method(
        lambda d, **o: dynamic.rigl(d, END, EVERY, drop_fraction=DROPPED, **o),
        *(SCHEDULE, constant, False, True, ("uniform", "erk")),
    ),
    "straight-through gradual_magnitude": Method(
        lambda d, **o: dynamic.gradual_magnitude(d, BEGIN, END, EVERY, **o),
        *(SCHEDULE, cubic, True),
    ),
    "straight-through periodic_magnitude": Method(
        lambda d, **o: dynamic.periodic_magnitude(d, BEGIN, END, 3, **o),
        *(AGAIN, constant, True),
    ),
}


def through_as(name: str) -> str:
    """The function that a method is, whatever the optimizer."""
    return name.removeprefix("straight-through ")


# --- a small tree ---------------------------------------------------------------------

SHAPES = {
    "conv": {"kernel": (2, 2, 2, 4), "bias": (4,)},
    "norm": {"scale": (4,), "bias": (4,)},
    "hidden": {"kernel": (16, 6), "bias": (6,)},
    "head": {"kernel": (6, 4), "bias": (4,)},
}
LAYERS = ("conv", "head", "hidden")
"""Those that are pruned, in the order of the tree."""

NUMBER = {
    "weights": {"conv": 32, "hidden": 96, "head": 24},
    "blocks": {"conv": 4 * 1 * 2, "hidden": 8 * 3, "head": 3 * 2},
    "channels": {"conv": 4, "hidden": 6, "head": 4},
}
"""How many groups each layer has."""


def weights(seed: int):
    """Weights without ties; norm scales and biases too."""
    rng = np.random.default_rng(seed)
    return {
        layer: {
            name: jnp.asarray(rng.normal(size=shape), jnp.float32)
            for name, shape in leaves.items()
        }
        for layer, leaves in SHAPES.items()
    }


def grouped(layer: str, kernel: np.ndarray, groups: str) -> np.ndarray:
    """A kernel as `[groups, weights of each]`."""
    if groups == "weights":
        return kernel.reshape(-1, 1)
    if groups == "channels":
        return kernel.reshape(-1, kernel.shape[-1]).T
    *window, i, o = kernel.shape
    cut = kernel.reshape(math.prod(window), i // 2, 2, o // 2, 2)
    return cut.transpose(0, 1, 3, 2, 4).reshape(-1, 4)


def shared_out(
    density: Fraction, shapes: list[tuple[int, ...]], sizes: list[int], scope: str
) -> list[int]:
    """How many of each layer's groups stay: Evci et al., section 3, in whole numbers.

    Shares of ERK are as (n_in + n_out + kw + kh) / (n_in n_out kw kh), and what exceeds 1
    is dense; what rounding leaves goes to the largest remainders.
    """
    budget, dense = round(density * sum(sizes)), set()
    raw = [
        Fraction(sum(s), math.prod(s)) if scope == "erk" else Fraction(1)
        for s in shapes
    ]
    while True:
        rest = [i for i in range(len(sizes)) if i not in dense]
        if not rest:
            return list(sizes)
        left = budget - sum(sizes[i] for i in dense)
        eps = left / sum(raw[i] * sizes[i] for i in rest)
        over = {i for i in rest if eps * raw[i] > 1}
        if not over:
            break
        dense |= over
    share = [
        Fraction(n) if i in dense else eps * raw[i] * n for i, n in enumerate(sizes)
    ]
    kept = [math.floor(x) for x in share]
    order = sorted(rest, key=lambda i: kept[i] - share[i])
    for i in order[: budget - sum(kept)]:
        kept[i] += 1
    return kept


def wanted(method: Method, last: Fraction, scope: str, groups: str):
    """How many groups each layer keeps after each step, `[steps][layers]`; or the total."""
    sizes = [NUMBER[groups][layer] for layer in LAYERS]
    shapes = [SHAPES[layer]["kernel"] for layer in LAYERS]
    densities = [method.left(step, last) for step in method.steps] or [last]
    if scope == "global":
        return [[round(d * sum(sizes))] for d in densities]
    rows = [shared_out(d, shapes, sizes, scope) for d in densities]
    # No layer grows while the network shrinks.
    for early, late in zip(rows[-2::-1], rows[:0:-1]):
        early[:] = [max(a, b) for a, b in zip(early, late)]
    return rows
