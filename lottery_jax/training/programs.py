"""The one cache of compiled programs, and compiling several of them side by side.

    run = program(_train, task.functions, tx, execution, capacity)   # built once
    run.ahead(*shapes)                                               # compiled meanwhile
    run(*arrays)

A program is built from a module-level function and what it depends on. Tasks and
optimizers are full of closures that are made anew by every call of `optax.adam` or
`tasks.classification`, so two of them count as the same where they must do the same: the
same code, closed over the same values. A second study of equal shapes compiles nothing,
also if all its parts were made again.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from lottery_jax import trees

T = TypeVar("T")

_MOST = 128
"""Things that are kept. A study needs about fifteen."""


class Program:
    """A jitted function that may be compiled before it is called."""

    def __init__(self, jitted: Callable[..., Any]) -> None:
        self.jitted = jitted
        self._coming: list[concurrent.futures.Future[Any]] = []
        self._seen = set[Any]()

    def __call__(self, *args: Any) -> Any:
        while self._coming:
            self._coming.pop().result()
        return self.jitted(*args)

    def ahead(self, *specs: Any) -> None:
        """Compiles for these shapes in the background; the next call waits for it.

        Args:
          *specs: pytrees of `jax.ShapeDtypeStruct` with the shardings of the call's
            arguments: another sharding would be another program.
        """
        leaves, structure = jax.tree.flatten(specs)
        key = (structure, tuple((x.shape, x.dtype, x.sharding) for x in leaves))
        if key not in self._seen:
            self._seen.add(key)
            self._coming.append(_pool().submit(self._compile, specs))

    def _compile(self, specs: tuple[Any, ...]) -> None:
        self.lower(*specs).compile()

    def lower(self, *specs: Any) -> Any:
        """Traced and lowered, as `jax.jit` has it."""
        return self.jitted.lower(*specs)  # type: ignore[attr-defined]


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    # XLA compiles outside of Python's lock: as many at once as there are cores.
    return concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))


_made: collections.OrderedDict[Any, Any] = collections.OrderedDict()
_lock = threading.Lock()


def program(build: Callable[..., Callable[..., Any]], *parts: Any) -> Program:
    """The program that `build(*parts)` makes, built once for parts that are the same.

    Args:
      build: a module-level function that returns a jitted one.
      *parts: what it depends on: functions, tasks without data, optimizers, settings.
    """
    return remembered(_build, build, *parts)


def _build(build: Callable[..., Callable[..., Any]], *parts: Any) -> Program:
    return Program(build(*parts))


def remembered(make: Callable[..., T], *parts: Any) -> T:
    """What `make(*parts)` returns, made once for parts that are the same."""
    key = (make, tuple(sameness(part) for part in parts))
    with _lock:
        if key in _made:
            _made.move_to_end(key)
            return _made[key]
    made = make(*parts)
    with _lock:
        while len(_made) >= _MOST:
            _made.popitem(last=False)
        return _made.setdefault(key, made)


# --- what counts as the same ----------------------------------------------------------

_known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class _One:
    """Something that is equal to itself alone; holds it, so that its id stays its own."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _One) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def sameness(thing: Any, within: tuple[int, ...] = ()) -> Any:
    """A hashable value that is equal for two things that must behave alike.

    Functions are compared by their code and what they close over, methods by their object,
    dataclasses and containers by their parts, arrays by their bits. What is none of these
    is compared by its own `==` if it is hashable, and is equal to itself alone if not.

    Args:
      thing: anything.
      within: ids of what it is a part of; for functions that refer to themselves.
    """
    if id(thing) in within:
        return ("again", within.index(id(thing)))
    within = (*within, id(thing))

    def parts(things: Any) -> tuple[Any, ...]:
        return tuple(sameness(x, within) for x in things)

    match thing:
        case None | bool() | int() | str() | bytes() | np.dtype() | type():
            return (type(thing), thing)
        case float() | complex():
            return (type(thing), repr(thing))  # nan equals nan, 0.0 is not -0.0
        case np.ndarray() | np.generic() | jax.Array():
            return ("array", *_bits(thing))
        case tuple() | list():
            return (type(thing), parts(thing))
        case dict():
            return (type(thing), parts(thing.keys()), parts(thing.values()))
        case functools.partial():
            return ("partial", parts((thing.func, thing.args, thing.keywords)))
        case types.MethodType():
            return ("method", parts((thing.__func__, thing.__self__)))
        case types.FunctionType():
            return _of_function(thing, within)
    if dataclasses.is_dataclass(thing):
        fields = [getattr(thing, f.name) for f in dataclasses.fields(thing)]
        return (type(thing), parts(fields))
    if isinstance(thing, _JITTED):
        return (type(thing), parts((thing.__wrapped__,)))
    try:
        hash(thing)
    except TypeError:
        return _One(thing)
    return (type(thing), thing)


def _of_function(function: types.FunctionType, within: tuple[int, ...]) -> Any:
    # Remembered by the object: what a closure counts or collects must not tell it apart
    # from itself, and walking a large one takes time.
    if function in _known:
        return _known[function]
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # nothing in it yet
            cells.append(_EMPTY)
    inside = (cells, function.__defaults__, function.__kwdefaults__)
    found = (
        "function",
        function.__code__,
        id(function.__globals__),
        tuple(sameness(x, within) for x in inside),
    )
    _known[function] = found
    return found


_EMPTY = object()
_JITTED: Any = type(jax.jit(lambda: None))


def _bits(array: Any) -> tuple[Any, ...]:
    if isinstance(array, jax.core.Tracer):
        return (_One(array),)
    values = jax.random.key_data(array) if trees.is_key(array) else array
    values = np.ascontiguousarray(np.asarray(values))
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    return (str(array.dtype), array.shape, digest)
