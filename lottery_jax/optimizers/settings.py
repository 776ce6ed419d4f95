"""An optimizer as a function of named hyperparameters, which differ from run to run.

    def make_tx(learning_rate, weight_decay=1e-4):
        return optax.adamw(learning_rate, weight_decay=weight_decay)

    settings({"learning_rate": [0.01, 0.03]})      # all combinations, in order
    at(make_tx, {"learning_rate": rate})           # inside a program, of a traced value

A *setting* is one combination of values. What is known of an optimizer without its
numbers (`places`, `clocks`) is known of the function and the names, once for all settings.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
import optax
from jax.extend.core import primitives

from lottery_jax import errors
from lottery_jax.types import Params, PyTree

Sweep: TypeAlias = Mapping[str, Sequence[float]]
"""Values by the names of hyperparameters."""

Optimizer: TypeAlias = (
    optax.GradientTransformation | Callable[..., optax.GradientTransformation]
)
"""An optimizer, or a function of named hyperparameters that makes one."""


class Apart(NamedTuple):
    """An optimizer, and the values that it was made of.

    Attributes:
      tx: the optimizer, or the function that makes it.
      values: by name; none of an optimizer as it is.
    """

    tx: Any
    values: Mapping[str, Any]


def at(tx: Optimizer, values: Mapping[str, Any]) -> Any:
    """The optimizer at a setting.

    Args:
      tx: a function of the names, or an optimizer where there are none.
      values: of each hyperparameter, float32 `[]`, may be traced; with the weight of a
        Python number, so that they promote no dtype.
    """
    if not values:
        return tx
    assert callable(tx)
    made = tx(**{name: _weak(x) for name, x in values.items()})
    errors.optimizer(made)

    def init(params: Params) -> PyTree:
        return made.init(params)

    # For `apart`: what is kept of an optimizer must not hold traced values.
    init.apart = Apart(tx, dict(values))  # type: ignore[attr-defined]
    if through(made) is not None:
        init.through = at(_inside(tx), values)  # type: ignore[attr-defined]
    extra = isinstance(made, optax.GradientTransformationExtraArgs)
    kind = (
        optax.GradientTransformationExtraArgs if extra else optax.GradientTransformation
    )
    return kind(init, made.update)


def _weak(x: Any) -> Any:
    if isinstance(x, float):
        return x
    convert = primitives.convert_element_type_p.bind
    return convert(x, new_dtype=x.dtype, weak_type=True, sharding=None)


def through(tx: optax.GradientTransformation) -> Any:
    """What `transforms.straight_through` made an optimizer of; None for any other."""
    return getattr(tx.init, "through", None)


@functools.lru_cache(maxsize=128)
def _inside(tx: Callable[..., Any]) -> Callable[..., Any]:
    # One function for one optimizer: what is known of it is kept by it.
    return lambda **values: through(tx(**values))


def apart(tx: optax.GradientTransformation) -> Apart:
    """What `at` made an optimizer from."""
    return getattr(tx.init, "apart", Apart(tx, {}))


def is_traced(tx: optax.GradientTransformation) -> bool:
    """Whether an optimizer was made of values that are not known."""
    return any(isinstance(x, jax.core.Tracer) for x in apart(tx).values.values())


def like(names: Sequence[str]) -> dict[str, Any]:
    """The shapes of the values of a setting, to trace a function of them."""
    return {name: jax.ShapeDtypeStruct((), np.float32) for name in names}


def each(tx: Optimizer, hyper: Mapping[str, np.ndarray]) -> list[Any]:
    """The optimizer at each setting of many runs, of known values.

    Args:
      tx: a function of the names, or an optimizer where there are none.
      hyper: values of the runs by name, `[R]`.
    """
    if not hyper:
        return [tx]
    rows = zip(*(map(plain, x) for x in hyper.values()))
    return [_known(tx, tuple(zip(hyper, row))) for row in dict.fromkeys(rows)]


@functools.lru_cache(maxsize=128)
def _known(tx: Any, values: tuple[tuple[str, float], ...]) -> Any:
    # The same object each time: what is found of it by trying is kept by it.
    return at(tx, dict(values))


# --- what is asked for ----------------------------------------------------------------

_AXES = ("chain", "arm", "replica", "level", "layer", "step", "run")
_RECORDS = ("first_nan", "alive", "density", "layer_density", "diverged")
_RECORDED = ("train_", "validation_", "test_", "early_stop")


def axes(sweep: Sweep) -> dict[str, tuple[float, ...]]:
    """The values of each hyperparameter of a sweep, as Python's own numbers.

    Raises:
      ValueError: no name, no value, one twice or one that is no finite number; a name that
        something else has in results.
    """
    must = (
        "values by the names of hyperparameters, such as {'learning_rate': [0.01, 0.1]}"
    )
    errors.is_a("sweep", sweep, Mapping, must)
    if not sweep:
        raise errors.wrong("sweep", sweep, must)
    found = {}
    for name, given in sweep.items():
        errors.is_a("sweep", name, str, must)
        if name in (*_AXES, *_RECORDS) or name.startswith(_RECORDED):
            raise errors.wrong(
                "sweep", repr(name), "a name that results do not have yet"
            )
        field = f"sweep[{name!r}]"
        values = errors.several(field, given, "a list of numbers, such as [0.01, 0.1]")
        errors.finite(field, values)
        found[name] = tuple(map(float, values))
        with np.errstate(over="ignore"):
            narrow = np.array(found[name], np.float32).tolist()
        errors.finite(f"{field} in float32", narrow)
        if not values or len(set(narrow)) < len(narrow):
            must = "some numbers, all different in float32"
            raise errors.wrong(field, list(found[name]), must)
    return found


def settings(sweep: Sweep) -> list[dict[str, float]]:
    """All combinations of the values of a sweep, the last name's varying fastest.

    Raises:
      ValueError: as `axes`.

    Example:
      >>> settings({"learning_rate": [0.1, 0.2], "momentum": [0.9]})
      [{'learning_rate': 0.1, 'momentum': 0.9}, {'learning_rate': 0.2, 'momentum': 0.9}]
    """
    found = axes(sweep)
    return [dict(zip(found, one)) for one in itertools.product(*found.values())]


def words(hyper: Mapping[str, float]) -> str:
    """What a name says of a setting, behind what else it says.

    Example:
      >>> words({"learning_rate": 0.01, "momentum": 0.9})
      ', learning_rate=0.01, momentum=0.9'
    """

    def number(x: float) -> str:
        return f"{x:g}" if float(f"{x:g}") == x else repr(x)

    return "".join(f", {name}={number(float(x))}" for name, x in hyper.items())


def check(tx: Optimizer, names: Sequence[str]) -> None:
    """Raises a ValueError if `tx` is not what the hyperparameters of a sweep need.

    Args:
      tx: an optimizer where there are no names; or a function of exactly these, and of
        others that have defaults.
      names: of the hyperparameters.
    """
    if not names:
        return errors.optimizer(tx)
    listed = ", ".join(names)
    if not callable(tx) or isinstance(tx, type):
        must = f"a function of {listed} that makes an optimizer, such as optax.sgd"
        raise errors.wrong("tx", errors.shown(tx), f"{must}, for a sweep")
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    takes = [p for p in inspect.signature(tx).parameters.values() if p.kind in kinds]
    named = ", ".join(p.name for p in takes)
    function = f"{getattr(tx, '__name__', 'tx')}({named})"
    for name in names:
        if name not in [p.name for p in takes]:
            raise errors.wrong("sweep", repr(name), f"a parameter of tx={function}")
    for one in takes:
        if one.default is one.empty and one.name not in names:
            raise ValueError(
                f"sweep: there must be values of {one.name!r}, which tx={function} has no "
                f"default for; it has those of {listed}"
            )


def plain(x: Any) -> float:
    """The shortest number that is this one in float32: 0.1, not 0.10000000149."""
    return float(str(np.float32(x)))
