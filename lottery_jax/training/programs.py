"""The one cache of compiled programs, and compiling several of them side by side.

    run = program(_train, task.functions, tx, execution, capacity)   # built once
    run.ahead(*shapes)                                               # compiled meanwhile
    run(*arrays)

A program is built from a module-level function and what it depends on. Tasks and
optimizers are full of closures that are made anew by every call of `optax.adam` or
`tasks.classification`, so two of them count as the same where they must do the same: the
same code, closed over the same values. A second study of equal shapes compiles nothing,
also if all its parts were made again. A wrong hit would be a wrong result, a miss costs
a compilation: in doubt it is a miss.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fractions
import functools
import hashlib
import os
import pathlib
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import linen
from flax.core import FrozenDict

from lottery_jax import trees

T = TypeVar("T")

_MOST = 256
"""Things that are kept. A study needs about fifteen, each under two keys."""


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


class _Entry(NamedTuple):
    """Something that was made, and what it was made from."""

    made: Any
    parts: tuple[Any, ...]


_made: collections.OrderedDict[Any, _Entry] = collections.OrderedDict()
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
    # The very same objects are found at once; walking through others takes milliseconds.
    itself = (make, _identity(parts))
    with _lock:
        entry = _made.get(itself)
    if entry is not None:
        return entry.made
    key = (make, _key(parts))
    with _lock:
        entry = _made.get(key)
    if entry is not None and _still(entry, parts, key[1]):
        made = entry.made
    else:
        made = make(*parts)
        entry = None
    with _lock:
        while len(_made) > _MOST - 2:
            _made.popitem(last=False)
        if entry is None:
            _made[key] = _Entry(made, parts)
        elif key in _made:
            _made.move_to_end(key)
        # It holds the parts, so that their ids stay their own.
        _made[itself] = _Entry(made, parts)
    return made


def _identity(thing: Any) -> Any:
    """A hashable value that is equal for the very same objects, while they live."""
    kind = type(thing)
    if isinstance(thing, tuple):
        return (kind, *map(_identity, thing))
    if kind is dict:
        return (kind, *((name, _identity(x)) for name, x in thing.items()))
    if kind is types.MethodType:
        return (kind, id(thing.__func__), id(thing.__self__))
    if kind in _PLAIN or isinstance(thing, _BY_EQUALITY):
        return (kind, thing)
    return id(thing)


def _still(entry: _Entry, parts: tuple[Any, ...], key: Any) -> bool:
    """Whether what was made earlier would be made for these parts, too.

    For the very same objects it would, as with `jax.jit`. Others are given it only while
    those that it was made from, which it may trace again for other shapes, are what they
    were: somebody may have changed what they close over.
    """
    if _identical(entry.parts, parts):
        return True
    return _numbers(_key(entry.parts, anew=True)) == _numbers(key)


def _numbers(key: Any) -> Any:
    """A key in which 4 and 4.0 are one: optax's schedules turn what they close over."""
    if not isinstance(key, tuple):
        return key
    if len(key) == 2 and key[0] in (int, float):
        with contextlib.suppress(OverflowError):
            return ("number", float(key[1]))
    return tuple(_numbers(part) for part in key)


def _identical(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_identical, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_identical(x, b[n]) for n, x in a.items())
    if isinstance(a, types.MethodType):
        return a.__func__ is b.__func__ and a.__self__ is b.__self__
    return (type(a) in _PLAIN or isinstance(a, _BY_EQUALITY)) and a == b


# --- what counts as the same ----------------------------------------------------------

_known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

_PLAIN = (type(None), bool, int, str, bytes, range, fractions.Fraction)
"""Types whose `==` says all there is to say, between two of exactly this type."""

_BY_EQUALITY: Any = (
    np.dtype,
    pathlib.PurePath,
    jax.ShapeDtypeStruct,
    jax.sharding.Sharding,
    jax.sharding.Mesh,
    jax.sharding.AbstractMesh,
    jax.sharding.PartitionSpec,
)
"""Hashable values of libraries whose `==` can be relied on."""

_OF_FLAX = ("_id", "_state", "_parent_ref")
"""What a Linen module notes for itself; its fields say what it does."""

_JITTED: Any = type(jax.jit(lambda: None))

_REMEMBERED: Any = (types.FunctionType, functools.partial, _JITTED)

_INSTALLED = tuple(
    os.path.join(path, "")
    for path in {
        *(
            sysconfig.get_paths()[name]
            for name in ("stdlib", "platstdlib", "purelib", "platlib")
        ),
        str(pathlib.Path(__file__).parent.parent),
        str(pathlib.Path(jax.__file__).parent.parent),
    }
)


class _One:
    """Something that is equal to itself alone; holds it, so that its id stays its own."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _One) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def sameness(thing: Any) -> Any:
    """A hashable value that is equal for two things that must behave alike.

    Functions are compared by their code, what they close over and, but for those of
    installed packages, the globals that they read; methods by their object, dataclasses
    and containers by their parts, arrays by their bits. What is none of these is equal to
    itself alone: its own `==` need not mean that it behaves alike.

    Args:
      thing: anything.
    """
    return _Walk().of(thing)


def _key(thing: Any, anew: bool = False) -> Any:
    """`sameness`, but a function stays what it was when it was first seen, unless anew.

    What a function counts or collects must not tell it apart from itself.
    """
    if isinstance(thing, tuple) and (type(thing) is tuple or hasattr(thing, "_fields")):
        return (type(thing), tuple(_key(x, anew) for x in thing))
    if anew or not isinstance(thing, _REMEMBERED):
        return sameness(thing)
    if thing not in _known:
        _known[thing] = sameness(thing)
    return _known[thing]


class _Walk:
    """One walk through a thing and all that it refers to."""

    def __init__(self) -> None:
        self.path: list[int] = []  # ids of what is being walked, outermost first
        self.lowest = 0  # how far out the last thing refers back
        self.seen: dict[int, tuple[Any, Any]] = {}

    def of(self, thing: Any) -> Any:
        """What `sameness` returns."""
        kind = type(thing)
        if kind in _PLAIN or isinstance(thing, _BY_EQUALITY):
            return (kind, thing)
        if kind in (float, complex):
            return (kind, repr(thing))  # nan equals nan, 0.0 is not -0.0
        if id(thing) in self.seen:
            return self.seen[id(thing)][1]
        if id(thing) in self.path:
            # By the distance, so that it means the same wherever the walk began.
            at = self.path.index(id(thing))
            self.lowest = min(self.lowest, at)
            return ("again", len(self.path) - at)
        outside, self.lowest = self.lowest, len(self.path)
        self.path.append(id(thing))
        try:
            found = self._compound(thing)
        finally:
            self.path.pop()
        if self.lowest >= len(self.path):
            # Refers to nothing around it: the same wherever it occurs in this walk.
            self.seen[id(thing)] = (thing, found)
        self.lowest = min(outside, self.lowest)
        return found

    def parts(self, things: Any) -> tuple[Any, ...]:
        return tuple(self.of(x) for x in things)

    def _compound(self, thing: Any) -> Any:
        kind = type(thing)
        if isinstance(thing, type):
            return (_One(thing), self._of_class(thing))
        if kind in (np.ndarray, *_SCALARS) or isinstance(thing, jax.Array):
            return self._bits(thing)
        if (
            kind in (tuple, list)
            or isinstance(thing, tuple)
            and hasattr(kind, "_fields")
        ):
            return (kind, self._class_of(thing), self.parts(thing))
        if kind in (dict, FrozenDict, types.MappingProxyType):
            return (kind, self.parts(thing.keys()), self.parts(thing.values()))
        if kind in (set, frozenset):
            return (kind, frozenset(self.parts(thing)))
        if kind in (functools.partial, jax.tree_util.Partial):
            inside = (thing.func, thing.args, thing.keywords, vars(thing))
            return (kind, self.parts(inside))
        if kind is types.MethodType:
            return ("method", self.parts((thing.__func__, thing.__self__)))
        if kind is types.FunctionType:
            return self._of_function(thing)
        if kind is types.CodeType:
            return (kind, thing)
        if kind in (property, staticmethod, classmethod):
            names = ("fget", "fset", "fdel", "__func__")
            return (kind, self.parts(getattr(thing, n, None) for n in names))
        if dataclasses.is_dataclass(thing):
            return self._of_dataclass(thing)
        if isinstance(thing, _JITTED):
            return self._of_jitted(thing)
        return _One(thing)

    def _of_dataclass(self, thing: Any) -> Any:
        """By all that it has: a subclass, say, may keep more than the fields."""
        own = dict(getattr(thing, "__dict__", {}))
        for name in (f.name for f in dataclasses.fields(thing)):
            own[name] = getattr(thing, name, _MISSING)
        for cls in type(thing).__mro__:
            slots = vars(cls).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if not name.startswith("__"):
                    own[name] = getattr(thing, name, _MISSING)
        if isinstance(thing, linen.Module):
            own = {name: x for name, x in own.items() if name not in _OF_FLAX}
        return ("object", self.of(type(thing)), self.parts((own,)))

    def _of_jitted(self, thing: Any) -> Any:
        try:
            state = thing.__getstate__()
            how = (
                tuple(state["static_argnums"] or ()),
                tuple(state["static_argnames"] or ()),
                state["global_cache_key"],
            )
            hash(how)
        except Exception:  # of another version of JAX
            return _One(thing)
        return ("jitted", self.of(thing.__wrapped__), how)

    def _of_function(self, function: types.FunctionType) -> Any:
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # nothing in it yet
                cells.append(_MISSING)
        code = function.__code__
        inside = [cells, function.__defaults__, function.__kwdefaults__]
        inside.append(_attributes(function))
        if not _installed(code.co_filename):
            inside.append(_globals_of(function))
        return ("function", code, id(function.__globals__), self.parts(inside))

    def _class_of(self, thing: Any) -> Any:
        return () if type(thing) in (tuple, list) else self.of(type(thing))

    def _of_class(self, cls: type) -> Any:
        """The functions and constants of a class that somebody may yet change."""
        found = []
        for own in cls.__mro__:
            if not _own_class(own):
                continue
            for name, value in sorted(vars(own).items()):
                if isinstance(value, _READ) and not name.startswith("__dataclass"):
                    found.append((name, self.of(value)))
        return tuple(found)

    def _bits(self, array: Any) -> Any:
        opaque = isinstance(array.dtype, np.dtype) and array.dtype.hasobject
        if opaque or isinstance(array, jax.core.Tracer):
            return _One(array)
        where: tuple[Any, ...] = ()
        if isinstance(array, jax.Array):
            weak = getattr(array, "weak_type", False)  # keys have none
            where = (weak, array.sharding, array.committed)
        values = jax.random.key_data(array) if trees.is_key(array) else array
        values = np.ascontiguousarray(np.asarray(values))
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        return ("array", type(array), str(array.dtype), array.shape, digest, where)


_MISSING = object()

_SCALARS = tuple({np.dtype(code).type for code in np.typecodes["All"]})

_READ = (
    *(bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset),
    *(np.ndarray, np.generic, jax.Array, functools.partial, types.FunctionType),
    *(staticmethod, classmethod, property),
)
"""What is walked of a class; the rest (slots, descriptors) is as it is."""


@functools.lru_cache(4096)
def _installed(filename: str) -> bool:
    """Whether code belongs to a library, whose globals do not change."""
    return filename.startswith(("<frozen", *_INSTALLED))


def _own_class(cls: type) -> bool:
    """Whether a class belongs to no library."""
    return cls is not object and _own_module(sys.modules.get(cls.__module__))


def _own_module(module: types.ModuleType | None) -> bool:
    """Whether a module is somebody's own: a file in no library, a notebook."""
    if module is None or module.__name__ == "__main__":
        return True
    file = getattr(module, "__file__", None)
    return file is not None and not _installed(file)


def _attributes(function: types.FunctionType) -> dict[str, Any]:
    """What was written onto a function and may be read from it."""
    return {name: x for name, x in vars(function).items() if name != "__wrapped__"}


def _globals_of(function: types.FunctionType) -> dict[str, Any]:
    """The globals that a function reads, by their names."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [x for x in code.co_consts if isinstance(x, types.CodeType)]
    there = function.__globals__
    found = {name: there[name] for name in sorted(names & there.keys())}
    for module in list(found.values()):
        if isinstance(module, types.ModuleType) and _own_module(module):
            inside = vars(module)
            for name in sorted(names & inside.keys()):
                found[f"{module.__name__}.{name}"] = inside[name]
    return found
