"""Three bilinear maps as JAX primitives, and their rules.

    forward(x, kernel) -> y,  input_gradient(g, kernel),  kernel_gradient(x, g)

The two transposes of each are the other two, so `jvp`, `grad` and any nesting of the two
stay among them. Every operand carries a leading axis R, one kernel per entry: a `vmap`
over kernels makes R longer. How R is executed is chosen when the program is lowered.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from lottery_jax.convolution.geometry import Geometry
from lottery_jax.types import Array

# The primitives. Operands: x [R, N, H, W, Ci], kernel [R, h, w, Ci, Co] and
# g [R, N, H', W', Co], a gradient in the output. Each of the three axes N, Ci and Co is
# shared by two of them.

forward_p = Primitive("lottery_conv")
input_gradient_p = Primitive("lottery_conv_input_gradient")
kernel_gradient_p = Primitive("lottery_conv_kernel_gradient")


def _define(
    primitive: Primitive,
    shape: Callable[[Any, Any, Geometry], tuple[int, ...]],
    transposes: tuple[Callable[..., Array], Callable[..., Array]],
    joins: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """Gives a bilinear map its rules.

    Args:
      primitive: of two operands.
      shape: shape of the result, from the operands and the geometry.
      transposes: gradients in the first and in the second operand, from the gradient
        in the result and both operands, one of which is unknown.
      joins: for each operand the axis that it contributes to the result and the other
        operand lacks: its position in the operand and in the result.
    """

    def abstract(a, b, *, geometry, dtype, precision, method):
        # `update` keeps what else an abstract value says (mesh axes it varies over).
        return a.update(shape=shape(a, b, geometry), dtype=dtype, weak_type=False)

    def transpose(operand, gradient, a, b, *, dtype, **params):
        # JAX calls what is unknown by more than one class.
        unknown = (a, b)[operand].aval
        return transposes[operand](gradient, a, b, dtype=unknown.dtype, **params)

    def batch(operands, axes, **params):
        (a, b), (batch_a, batch_b) = operands, axes
        if batch_a is not None and batch_b is not None:
            a, split = _join(a, batch_a, 0)
            b, split = _join(b, batch_b, 0)
            at = 0
        # A batch of one operand alone needs no groups: it joins the axis that only
        # this operand contributes. Inputs become more images, kernels more channels.
        elif batch_a is not None:
            axis, at = joins[0]
            a, split = _join(a, batch_a, axis)
        else:
            axis, at = joins[1]
            b, split = _join(b, batch_b, axis)
        out = primitive.bind(a, b, **params)
        return out.reshape(*out.shape[:at], *split, *out.shape[at + 1 :]), at

    static = ("geometry", "dtype", "precision", "method")
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=static))
    primitive.def_abstract_eval(abstract)
    ad.defbilinear(primitive, partial(transpose, 0), partial(transpose, 1))
    batching.primitive_batchers[primitive] = batch


def _join(operand: Array, batch: int, axis: int) -> tuple[Array, tuple[int, ...]]:
    """Makes one axis of a batch and another one; how to split it again."""
    operand = jnp.moveaxis(operand, batch, axis)
    split = operand.shape[axis : axis + 2]
    shape = (*operand.shape[:axis], split[0] * split[1], *operand.shape[axis + 2 :])
    return operand.reshape(shape), split


_define(
    forward_p,
    shape=lambda x, kernel, geometry: (
        *x.shape[:2],
        *geometry.output,
        kernel.shape[4],
    ),
    transposes=(
        lambda g, x, kernel, **params: input_gradient_p.bind(g, kernel, **params),
        lambda g, x, kernel, **params: kernel_gradient_p.bind(x, g, **params),
    ),
    joins=((1, 1), (4, 4)),
)
_define(
    input_gradient_p,
    shape=lambda g, kernel, geometry: (
        *g.shape[:2],
        *geometry.size,
        kernel.shape[3],
    ),
    transposes=(
        lambda x, g, kernel, **params: forward_p.bind(x, kernel, **params),
        lambda x, g, kernel, **params: kernel_gradient_p.bind(x, g, **params),
    ),
    joins=((1, 1), (3, 4)),
)
_define(
    kernel_gradient_p,
    shape=lambda x, g, geometry: (
        x.shape[0],
        *geometry.window,
        x.shape[4],
        g.shape[4],
    ),
    transposes=(
        lambda kernel, x, g, **params: input_gradient_p.bind(g, kernel, **params),
        lambda kernel, x, g, **params: forward_p.bind(x, kernel, **params),
    ),
    joins=((4, 3), (4, 4)),
)
