"""Floating-point operations in the products of a training step, counted from shapes.

Only convolutions and matrix products with weights count, as is usual: neither
normalisation (whose sums may be computed as products) nor the optimizer.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lottery_jax.types import Task


def dense_step(sizes: Sequence[int], batch: int) -> int:
    """Of one step of a dense network.

    Forward, gradients in the weights, gradients in the inputs of all but the first layer.

    Args:
      sizes: units of each layer, the inputs first.
      batch: examples per step.
    """
    weights = [a * b for a, b in zip(sizes, sizes[1:])]
    return 2 * batch * (3 * sum(weights) - weights[0])


def step(task: "Task") -> int:
    """Of one step of any network with a batch of the task.

    As many for the gradients in the weights as forward, and as many for those in the
    inputs of all layers but the first.
    """
    products = [flops for flops, _ in forward(task)]
    return 3 * sum(products) - products[0]


def activations(task: "Task") -> int:
    """Bytes that the backward pass of one replica needs at least, by arithmetic.

    The batch, and of each product its result and what follows it (normalised, rectified),
    in float32.
    """
    batch, _ = _batch_and_loss(task)
    image = math.prod(batch["image"].shape)
    return 4 * (image + 2 * sum(size for _, size in forward(task)))


def forward(task: "Task") -> list[tuple[int, int]]:
    """(operations, numbers in the result) of each product of a forward pass."""
    _, jaxpr = _batch_and_loss(task)
    return list(_products(jaxpr.jaxpr))


def _batch_and_loss(task: "Task") -> tuple[Any, Any]:
    import jax  # only here: rows count operations where JAX is not imported

    key = jax.random.key(0)
    params, model_state, stream = jax.eval_shape(task.init, key)
    order = jax.eval_shape(task.order, key, 0)
    batch = jax.eval_shape(
        lambda data, indices: task.batch(data, indices, key, jax.numpy.int32(0)),
        task.data,
        jax.ShapeDtypeStruct(order.shape[1:], order.dtype),
    )
    jaxpr = jax.make_jaxpr(task.loss)(params, model_state, stream, batch, key)
    return batch, jaxpr


def _products(jaxpr: Any) -> Iterator[tuple[int, int]]:
    for equation in jaxpr.eqns:
        inner = [x for v in equation.params.values() for x in _jaxprs(v)]
        for body in inner:
            yield from _products(body)
        if inner or "norm" in str(equation.source_info.name_stack):
            continue
        size = math.prod(equation.outvars[0].aval.shape)
        shapes = [v.aval.shape for v in equation.invars]
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                yield 2 * size * math.prod(shapes[0][i] for i in contracted), size
            case "conv_general_dilated":
                kernel = equation.params["dimension_numbers"].rhs_spec
                inputs = math.prod(shapes[1]) // shapes[1][kernel[0]]
                yield 2 * size * inputs, size
            case "lottery_conv":  # [replica, height, width, channels in, out]
                yield 2 * size * math.prod(shapes[1][1:-1]), size


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [x for v in value for x in _jaxprs(v)]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    return [value] if hasattr(value, "eqns") else []
