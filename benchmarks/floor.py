"""What no arrangement of a program's work can go below, by arithmetic.

Products (convolutions and dense layers) are kernels of their own, as those of every
library are: each reads its operands and writes its result. What lies between them is as
few passes over the activations as there can be. Counted from the traced forward pass of
one replica, in the dtypes of the trace, each once per replica:

| bytes of | training | evaluation | statistics |
|---|---|---|---|
| inputs and results of products | 3 | 1 | 1 |
| normalised activations | 8 | 2 | 3 |
| sums of a block and its input | 2 | 1 | 1 |
| a batch, as stored and as the first layer reads it | 1 | 1 | 1 |
| weights | 3 | 1 | 1 |
| state of the optimizer | 2 | | |
| masks | 1 | | |

A product's forward pass and both gradients move its input and its result once each; the
first layer needs no gradient in its input. A normalised activation is read for its
statistics, read and written; backward it is read twice with its gradient, and one gradient
is written. Of a sum in a residual network what is added is read beside the rest, and so is
one gradient. Weights are read forward and backward and written; a point of a path is made
of two networks first, three times the weights.

For ResNets that is about 15 passes over the results of convolutions. Activations, pooling,
losses, and gradients of weights that an update could take as they come cost nothing here.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxprs_in_params

from benchmarks.sides_jax import make_tx
from benchmarks.targets import Asked
from lottery_jax.keys import of_seed


class Forward(NamedTuple):
    """Bytes of one forward pass of one replica, each counted once.

    Attributes:
      products: inputs and results of all products.
      first: of the first one.
      norms: normalised activations.
      sums: of blocks and their inputs.
      batch: as it is stored, and as the first layer reads it.
    """

    products: int
    first: int
    norms: int
    sums: int
    batch: int


def _bytes(x: Any) -> int:
    aval = getattr(x, "aval", x)
    return math.prod(aval.shape) * aval.dtype.itemsize


def _equations(jaxpr: Any, scope: str = "") -> Iterator[tuple[str, Any]]:
    """All equations, with the names of the layers that they belong to."""
    for one in jaxpr.eqns:
        own = "/".join(filter(None, (scope, str(one.source_info.name_stack))))
        inside = list(jaxprs_in_params(one.params))
        yield own, one
        for other in inside:
            yield from _equations(getattr(other, "jaxpr", other), own)


def _is_product(scope: str, name: str) -> bool:
    # In a normalisation products are sums over examples.
    known = ("dot_general", "conv_general_dilated")
    return (name in known or name.startswith("lottery_")) and "norm" not in scope


def forward(function: Any, *args: Any) -> Forward:
    """What is counted of a forward pass.

    Args:
      function: of shapes; the stored batch and that of the first layer are its last
        arguments.
      *args: shapes.
    """
    *own, stored, batch = args
    closed = jax.make_jaxpr(function)(*own, batch)
    products: list[int] = []
    norms: dict[str, Any] = {}
    sums, made_in = 0, dict[int, str]()  # by ids: literals are not hashable
    for scope, one in _equations(closed.jaxpr):
        name, result = one.primitive.name, one.outvars[0]
        if name != "broadcast_in_dim":  # of a bias, say
            made_in |= {id(out): scope for out in one.outvars}
        if _is_product(scope, name):
            # The other operand are weights; a trace has one kernel for all examples.
            products.append(_bytes(one.invars[0]) + _bytes(result))
        elif "norm" in scope:
            if result.aval.size >= norms.get(scope, result).aval.size:
                norms[scope] = result
        elif name == "add" and result.aval.ndim > 1:
            scopes = [made_in.get(id(x)) for x in one.invars]
            # What a normalisation has just made is not read again.
            if None not in scopes and any("norm" not in s for s in scopes):
                sums += _bytes(result)
    return Forward(
        products=sum(products),
        first=products[0] if products else 0,
        norms=sum(map(_bytes, norms.values())),
        sums=sums,
        batch=sum(map(_bytes, jax.tree.leaves((stored, batch)))),
    )


def _batch(task: Any) -> tuple[Any, Any]:
    """Shapes of the training batch, as it is stored and as the first layer reads it."""

    def made(data: Any, key: Any) -> Any:
        indices = task.order(key, 0)
        stored = jax.tree.map(lambda x: x[indices], data["train"])
        return stored, task.batch(data, indices, key, 0)

    return jax.eval_shape(made, task.data, of_seed(0))


def floor(program: str, asked: Asked) -> float:
    """Bytes that a program of a classification task must move, of all replicas.

    Args:
      program: one of `targets.PROGRAMS`: a step of training, a pass over the test set, or
        a point of a path with recomputed statistics.
      asked: task, sizes and how replicas run.
    """
    task, sizes = asked.task, asked.sizes
    params, model_state, stream = task.shapes
    stored, batch = _batch(task)
    weights = sum(map(_bytes, jax.tree.leaves(params)))
    masks = sum(x.size for x in jax.tree.leaves(params))
    optimizer = jax.eval_shape(make_tx(sizes).init, params)
    moments = sum(map(_bytes, jax.tree.leaves(optimizer)))

    def loss(*args: Any) -> Any:
        return task.loss(*args, of_seed(0))

    with asked.execution.settings():
        if program == "train":
            one = forward(loss, params, model_state, stream, stored, batch)
            passes = 3 * one.products - one.first + 8 * one.norms + 2 * one.sums
            weighed = 3 * weights + 2 * moments + masks
            return sizes.replicas * (passes + one.batch + weighed)
        one = forward(task.outputs, params, model_state, stored, batch)
        times = sizes.test / sizes.batch
        passes = one.products + 2 * one.norms + one.sums + one.batch
        total = times * passes + weights
        if program == "interpolate" and jax.tree.leaves(model_state):
            one = forward(task.statistics, params, model_state, stored, batch)
            passes = one.products + 3 * one.norms + one.sums + one.batch
            total += asked.measure.statistics_batches * (passes + weights)
        if program == "interpolate":
            total += 3 * weights
    return sizes.replicas * total
