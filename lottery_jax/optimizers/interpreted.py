"""Small programs run once: by NumPy, operation by operation, without compiling.

To try a function on a handful of numbers, XLA would compile for longer than all else
takes. What NumPy does not know here, and loops, are left to JAX.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from lottery_jax.types import PyTree

DRAWN = 0x4D3C2B1A
"""All bits that are drawn: what is drawn by shapes is then the same for parts of them."""


def interpreted(function: Callable[..., Any], *like: PyTree) -> Callable[..., Any]:
    """A function, traced for arrays like these and run by NumPy.

    Its random draws are all the same number, so that they do not depend on shapes.

    Args:
      function: of arrays, without effects.
      *like: arguments, or their shapes.

    Returns:
      The function, from and to trees of NumPy arrays.

    Raises:
      ValueError: in the function: arguments of another structure.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*like)
    given: Any = jax.tree.structure(like)
    structure = jax.tree.structure(shape)

    def run(*args: PyTree) -> PyTree:
        leaves, found = jax.tree.flatten(args)
        if found != given:
            raise ValueError(f"arguments of structure {found}, not {given}")
        with np.errstate(all="ignore"):
            outs = _run(closed.jaxpr, closed.consts, leaves)
        return jax.tree.unflatten(structure, outs)

    return run


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))

    def read(x: Any) -> Any:
        return x.val if isinstance(x, Literal) else known[x]

    for eqn in jaxpr.eqns:
        outs = _operation(jaxpr, eqn, [read(x) for x in eqn.invars])
        for variable, out in zip(eqn.outvars, outs):
            dtype = variable.aval.dtype
            if isinstance(dtype, np.dtype):
                out = np.asarray(out, dtype)
            known[variable] = out
    return [read(x) for x in jaxpr.outvars]


def _operation(jaxpr: Any, eqn: Any, ins: list[Any]) -> Sequence[Any]:
    """The outputs of one operation of a program."""
    name, params = eqn.primitive.name, eqn.params
    aval = eqn.outvars[0].aval if eqn.outvars else None
    if name == "random_bits":
        assert aval is not None
        return [np.full(aval.shape, DRAWN % 2 ** (8 * aval.dtype.itemsize), aval.dtype)]
    if name == "cond":
        branch = params["branches"][
            int(np.clip(ins[0], 0, len(params["branches"]) - 1))
        ]
        return _run(branch.jaxpr, branch.consts, ins[1:])
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if inner is not None and name != "scan":
        own = getattr(inner, "consts", ())
        return _run(getattr(inner, "jaxpr", inner), own, ins)
    known = _KNOWN.get(name)
    numbers = all(isinstance(x, np.ndarray | np.generic | int | float) for x in ins)
    if known and numbers and aval is not None and isinstance(aval.dtype, np.dtype):
        with_params = known in _WITH_PARAMS
        return [known(params, aval, *ins) if with_params else known(*ins)]
    given = {v: x for v, x in zip(eqn.invars, ins) if not isinstance(v, Literal)}
    alone = jaxpr.replace(
        constvars=[],
        invars=list(given),
        outvars=list(eqn.outvars),
        eqns=[eqn],
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jax.core.eval_jaxpr(alone, (), *given.values())


def _broadcast(params: Any, aval: Any, x: Any) -> Any:
    shape = [1] * len(aval.shape)
    for size, axis in zip(np.shape(x), params["broadcast_dimensions"]):
        shape[axis] = size
    return np.broadcast_to(np.reshape(x, shape), aval.shape)


def _iota(params: Any, aval: Any) -> Any:
    shape = [1] * len(aval.shape)
    shape[params["dimension"]] = -1
    counted = np.arange(aval.shape[params["dimension"]]).reshape(shape)
    return np.broadcast_to(counted, aval.shape)


def _product(params: Any, aval: Any, a: Any, b: Any) -> Any:
    (left, right), (also, same) = params["dimension_numbers"]
    if also or same:
        return jax.lax.dot_general(a, b, params["dimension_numbers"])
    return np.tensordot(a, b, (left, right))


def _slice(params: Any, aval: Any, x: Any) -> Any:
    steps = params["strides"] or [1] * x.ndim
    limits = zip(params["start_indices"], params["limit_indices"], steps)
    return x[tuple(slice(*limit) for limit in limits)]


def _select(which: Any, *cases: Any) -> Any:
    if len(cases) == 2:
        return np.where(which, cases[1], cases[0])
    return np.choose(np.asarray(which, int), cases)


def _divide(a: Any, b: Any) -> Any:
    if np.issubdtype(np.asarray(a).dtype, np.integer):
        return np.trunc(np.divide(a, b))
    return np.divide(a, b)


def _reduce(function: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(params: Any, aval: Any, x: Any) -> Any:
        return function(x, axis=tuple(params["axes"]))

    return reduce


def _power(params: Any, aval: Any, a: Any, b: Any) -> Any:
    return np.power(np.asarray(a, aval.dtype), b)


_PARAMETRIC: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda params, aval, x: np.reshape(x, aval.shape),
    "squeeze": lambda params, aval, x: np.reshape(x, aval.shape),
    "expand_dims": lambda params, aval, x: np.reshape(x, aval.shape),
    "transpose": lambda params, aval, x: np.transpose(x, params["permutation"]),
    "convert_element_type": lambda params, aval, x: np.asarray(x).astype(aval.dtype),
    "integer_pow": lambda params, aval, x: np.power(
        np.asarray(x), np.asarray(params["y"], aval.dtype)
    ),
    "pow": _power,
    "iota": _iota,
    "dot_general": _product,
    "slice": _slice,
    "concatenate": lambda params, aval, *x: np.concatenate(x, params["dimension"]),
    "reduce_sum": _reduce(np.sum),
    "reduce_prod": _reduce(np.prod),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "reduce_and": _reduce(np.all),
    "reduce_or": _reduce(np.any),
}

_PLAIN: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _divide,
    "rem": np.fmod,
    "neg": np.negative,
    "sign": np.sign,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "square": np.square,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: np.asarray(1, np.asarray(x).dtype) / np.sqrt(x),
    "cbrt": np.cbrt,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "ceil": np.ceil,
    "real": np.real,
    "imag": np.imag,
    "conj": np.conj,
    "is_finite": np.isfinite,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "select_n": _select,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "stop_gradient": lambda x: x,
}

_KNOWN = _PLAIN | _PARAMETRIC
_WITH_PARAMS = set(_PARAMETRIC.values())
