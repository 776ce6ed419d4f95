"""What functions compute, as digests that mean the same in any process.

A function is traced on shapes, and what is digested is its jaxpr: each equation, with what
it closes over by value. So two functions have one digest where they compute the same,
however often they were made anew, and two where they differ in a constant. Nothing in a
digest depends on memory addresses, on the names of helpers, on devices, or on the order
in which Python goes through sets.

How something is differentiated, batched or placed is left out: what a rule of
differentiation does shows in the gradient, which is what training traces.
"""

import dataclasses
import enum
import functools
import hashlib
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core

from lottery_jax import activations, convolution, trees
from lottery_jax.training.programs import _globals_of, _installed
from lottery_jax.types import PyTree


class OpaqueError(ValueError):
    """Something of which no digest can be made that tells it from another."""


def of_function(function: Callable[..., PyTree], *args: PyTree) -> str:
    """A digest of what a function computes on arguments of these shapes.

    The precision of products, what layers store and the way to convolve are those of an
    execution, and no part of it.

    Args:
      function: pure, of pytrees of arrays.
      *args: arrays or `jax.ShapeDtypeStruct`; their values are not looked at.

    Raises:
      OpaqueError: an equation has a parameter that cannot be told from another.
    """
    with (
        convolution.batched_by(None),
        activations.stored_as("float32"),
        jax.default_matmul_precision(None),
    ):
        jaxpr, out = jax.make_jaxpr(function, return_shape=True)(*args)
    text = _Text().closed(jaxpr)
    return hashlib.sha256(f"{trees.paths(out)} {text}".encode()).hexdigest()


# --- jaxprs as text -------------------------------------------------------------------

_NOT_COMPUTED = ("debug_callback", "debug_print")
"""Primitives that only show something."""

_HOW = frozenset(
    # How it is differentiated,
    ("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "policy")
    # batched or called,
    + (
        "rule",
        "in_tree",
        "out_tree",
        "out_trees",
        "inline",
        "keep_unused",
        "debug_info",
    )
    # and where it runs.
    + ("sharding", "in_shardings", "out_shardings", "out_sharding", "in_layouts")
    + ("out_layouts", "mesh", "ctx_mesh", "resource_env", "donated_invars")
    + ("compiler_options_kvs",)
)
"""Parameters of equations that do not say what is computed."""

_PLACES = (
    jax.sharding.Sharding,
    jax.sharding.Mesh,
    jax.sharding.AbstractMesh,
    jax.sharding.PartitionSpec,
    jax.Device,
)

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{4,}")


class _Text:
    """Writes jaxprs, and whatever their parameters hold, as text."""

    def __init__(self) -> None:
        self.within: list[int] = []  # ids of the functions that are being written

    def closed(self, closed: Any) -> str:
        """A closed jaxpr: what it closes over by value, then its equations."""
        consts = ",".join(map(self.value, closed.consts))
        return f"[{consts}]{self.open(closed.jaxpr)}"

    def open(self, jaxpr: Any) -> str:
        """A jaxpr, its variables numbered in the order in which they appear."""
        numbers: dict[Any, str] = {}

        def new(var: Any) -> str:
            numbers[var] = str(len(numbers))
            return self._kind(var.aval)

        def old(atom: Any) -> str:
            if not isinstance(atom, core.Literal):
                return numbers[atom]
            return f"{self._kind(atom.aval)}={self.value(np.asarray(atom.val))}"

        lines = [" ".join(map(new, (*jaxpr.constvars, *jaxpr.invars)))]
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            if name in _NOT_COMPUTED:
                for var in eqn.outvars:
                    new(var)
                continue
            try:
                params = self._params(eqn.params)
            except OpaqueError as error:
                raise OpaqueError(f"its {name!r} has {error}") from None
            read = " ".join(map(old, eqn.invars))
            lines.append(f"{' '.join(map(new, eqn.outvars))}:{name}({params}){read}")
        lines.append(" ".join(map(old, jaxpr.outvars)))
        return "{" + "\n".join(lines) + "}"

    def _kind(self, aval: Any) -> str:
        if not hasattr(aval, "shape"):
            return self._plain(aval)
        weak = "~" if getattr(aval, "weak_type", False) else ""
        return f"{aval.dtype}{list(aval.shape)}{weak}"

    def _params(self, params: Mapping[str, Any]) -> str:
        jaxprs = (core.Jaxpr, core.ClosedJaxpr)
        # What has a body does what that says, and not what it is called.
        has_body = any(isinstance(x, jaxprs) for x in params.values())
        return ",".join(
            f"{name}={self.value(params[name])}"
            for name in sorted(params)
            if name not in _HOW and not (name == "name" and has_body)
        )

    def value(self, x: Any) -> str:
        """Anything that a parameter may hold."""
        if x is None or isinstance(x, bool | int | str | bytes | float | complex):
            plain = x.name if isinstance(x, enum.Enum) else x
            return f"{type(x).__name__} {plain!r}"
        if isinstance(x, core.ClosedJaxpr):
            return self.closed(x)
        if isinstance(x, core.Jaxpr):
            return self.open(x)
        if isinstance(x, _PLACES):
            return ""
        if isinstance(x, np.ndarray | np.generic | jax.Array):
            return self._array(x)
        if isinstance(x, np.dtype | enum.Enum):
            return str(x)
        if isinstance(x, type):
            return f"{x.__module__}.{x.__qualname__}"
        if isinstance(x, tuple | list):
            name = type(x).__qualname__ if hasattr(x, "_fields") else ""
            return f"{name}({','.join(map(self.value, x))})"
        if isinstance(x, Mapping):
            items = sorted((self.value(k), self.value(v)) for k, v in x.items())
            return f"{items}"
        if isinstance(x, set | frozenset):
            return f"{sorted(map(self.value, x))}"
        if callable(x) and not dataclasses.is_dataclass(x):
            return self._callable(x)
        if dataclasses.is_dataclass(x):
            names = [f.name for f in dataclasses.fields(x) if f.name not in _HOW]
            own = {name: getattr(x, name) for name in names}
            return f"{type(x).__qualname__}{self.value(own)}"
        return self._plain(x)

    def _array(self, x: Any) -> str:
        array = np.asarray(jax.random.key_data(x) if trees.is_key(x) else x)
        if array.dtype.hasobject:
            raise OpaqueError("an array of Python objects")
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return f"{array.dtype}{list(array.shape)}{digest}"

    def _callable(self, x: Any) -> str:
        """What runs on the host: by its code, and what that reads."""
        if id(x) in self.within:
            return f"again {len(self.within) - self.within.index(id(x))}"
        self.within.append(id(x))
        try:
            if isinstance(x, functools.partial):
                return f"partial{self.value((x.func, x.args, x.keywords))}"
            if isinstance(x, types.MethodType):
                return f"method{self.value((x.__func__, x.__self__))}"
            if isinstance(x, types.FunctionType):
                return self._function(x)
            if isinstance(x, types.BuiltinFunctionType | np.ufunc):
                return f"{x.__name__} of {getattr(x, '__module__', None)}"
            if (inner := getattr(x, "__wrapped__", None)) is not None:
                return self.value(inner)
            return self._plain(x)
        finally:
            self.within.pop()

    def _function(self, function: types.FunctionType) -> str:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        inside: list[Any] = [cells, function.__defaults__, function.__kwdefaults__]
        name = f"{function.__module__}.{function.__qualname__}"
        if not _installed(function.__code__.co_filename):
            name = self._code(function.__code__)
            read = _globals_of(function)
            inside.append(
                {
                    k: v.__name__ if isinstance(v, types.ModuleType) else v
                    for k, v in read.items()
                }
            )
        return f"{name}{self.value(inside)}"

    def _code(self, code: types.CodeType) -> str:
        consts = [
            self._code(x) if isinstance(x, types.CodeType) else self.value(x)
            for x in code.co_consts
        ]
        return f"code {code.co_code.hex()} {code.co_names} {consts}"

    def _plain(self, x: Any) -> str:
        """By what it prints, if that is the same in every process."""
        text = repr(x)
        if _ADDRESS.search(text):
            raise OpaqueError(
                f"a {type(x).__module__}.{type(x).__qualname__}, which cannot be told "
                "from another"
            )
        return f"{type(x).__qualname__} {text}"
