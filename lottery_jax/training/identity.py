"""What a folder must have in common with what goes on there, field by field.

A folder holds numbers that follow from a task, its data, an optimizer, a plan and what was
started from. Each is a named field: a value, or a digest of what a function computes or of
all that arrays hold. `check` compares those of a folder with those of now and names the
ones that differ. How something runs (devices, replicas at once) is no field: it may change
while something goes on.
"""

import json
import pathlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import keys, masks, streams, trees
from lottery_jax.dynamic.rules import MaskUpdate, StartMask, UpdateMask
from lottery_jax.execution import Where
from lottery_jax.optimizers import settings
from lottery_jax.storage.records import versions
from lottery_jax.training import digests, loop
from lottery_jax.training.programs import remembered
from lottery_jax.types import (
    Array,
    Key,
    Network,
    Params,
    PyTree,
    Task,
)

Fields = dict[str, Any]
"""By name: a digest, or something else that JSON holds."""

_KEY = "identity"

BITS, TRACED = "bits:", "jaxpr:"
"""How digests of arrays and of functions begin."""


# --- the fields -----------------------------------------------------------------------

Traced = tuple[Any, ...]
"""A function, and the shapes that it is traced on."""


def of_function(name: str, trace: Callable[..., Traced], *parts: Any) -> Fields:
    """What a function computes, under a name; traced once for parts that are the same.

    Args:
      name: of the field.
      trace: a module-level function of the parts, which returns what is to be traced: a
        pure function and its arguments, arrays or `jax.ShapeDtypeStruct`.
      *parts: what it depends on, as for `programs.program`.

    Raises:
      ValueError: the function holds something that cannot be told from another; names it.
    """
    return {name: remembered(_of_function, name, trace, *parts)}


def _of_function(name: str, trace: Callable[..., Traced], *parts: Any) -> str:
    try:
        return TRACED + digests.of_function(*trace(*parts))
    except digests.OpaqueError as error:
        raise ValueError(
            f"{name}: {error}, so that a folder could not say what it holds; leave the "
            "folder out (None), or compute it another way"
        ) from None


def of_task(task: Task, names: Sequence[str], splits: Sequence[str] = ()) -> Fields:
    """What a task does: a digest for each of its functions, its other fields by value.

    Args:
      task: the task.
      names: fields of `Task`, without `data`, `evaluate` and `predict`.
      splits: on which `evaluate` is asked for.

    Raises:
      ValueError: a function holds something that cannot be told from another; names it.
    """
    functions = task.functions
    found: Fields = {}
    for name in names:
        if name in _TRACES:
            parts = _TRACES[name], functions, trees.shapes_of(task.data)
            found |= of_function(f"task.{name}", *parts)
        elif name == "prunable":
            params = task.shapes[0]
            flags = masks.resolve(params, masks.of_task(task))
            leaves = zip(trees.paths(params), flags)
            found["task.prunable"] = [path for path, take in leaves if take]
        else:
            found[f"task.{name}"] = getattr(task, name)
    for split in splits:
        at = functions, trees.shapes_of(task.data), split
        found |= of_function(f"task.evaluate on {split!r}", _evaluate, *at)
    return found


# How each function of a task is called: (task without data, shapes of the data).


def _init(task: Task, data: PyTree) -> Traced:
    return task.init, _key()


def _order(task: Task, data: PyTree) -> Traced:
    return task.order, _key(), _STEP


def _batch(task: Task, data: PyTree) -> Traced:
    indices = jax.eval_shape(task.order, _key(), _STEP)
    return task.batch, data, indices, _key(), _STEP


def _shape_of_batch(task: Task, data: PyTree) -> PyTree:
    batch, *at = _batch(task, data)
    return jax.eval_shape(batch, *at)


def _loss(task: Task, data: PyTree) -> Traced:
    # As it is trained: what a rule of differentiation does is part of it.
    gradient = jax.value_and_grad(task.loss, has_aux=True)
    return gradient, *task.shapes, _shape_of_batch(task, data), _key()


def _statistics(task: Task, data: PyTree) -> Traced:
    return task.statistics, *task.shapes[:2], _shape_of_batch(task, data)


def _pool(task: Task, data: PyTree) -> Traced:
    statistics, *at = _statistics(task, data)
    one = jax.eval_shape(statistics, *at)
    two = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), one)
    return task.pool, two


def _narrow(task: Task, data: PyTree) -> Traced:
    law = task.narrow
    assert law is not None
    half = masks.total(task.shapes[0], masks.of_task(task)) // 2

    def narrow(key: Key) -> PyTree:
        return law(key, half)

    try:
        jax.eval_shape(narrow, _key())
    except jax.errors.JAXTypeError:
        # It is called outside of programs, so it may count on the host: by what it draws.
        drawn = narrow(keys.replica_keys(0, 0).fresh_init)
        return (lambda: drawn,)
    return narrow, _key()


def _evaluate(task: Task, data: PyTree, split: str) -> Traced:
    def evaluate(params: Params, model_state: PyTree, data: PyTree, key: Key) -> PyTree:
        return task.evaluate(params, model_state, data, key, split)

    return evaluate, *task.shapes[:2], data, _key()


_TRACES: Mapping[str, Callable[[Task, PyTree], Traced]] = {
    "init": _init,
    "order": _order,
    "batch": _batch,
    "loss": _loss,
    "statistics": _statistics,
    "pool": _pool,
    "narrow": _narrow,
}

_STEP = jax.ShapeDtypeStruct((), np.int32)


def of_data(task: Task, where: Where) -> Fields:
    """A digest of all that a task's data hold; made once for all that goes on `where`.

    Of a split that is streamed it is that of its examples, a field of its own.
    """
    # As with the copy on the devices: what is written into an array afterwards is seen by
    # neither. The arrays stay with it, so that their ids stay their own.
    leaves, structure = jax.tree.flatten(task.data)
    known = _of_data.setdefault(where.held, {})
    at = (*map(id, leaves), structure)
    if at not in known:
        known[at] = BITS + trees.fingerprint(streams.resident(task.data)), leaves
    away = streams.streamed(task.data)
    return {"data": known[at][0]} | {
        f"data[{split!r}]": BITS + examples.digest for split, examples in away.items()
    }


_of_data: weakref.WeakKeyDictionary[Any, dict[Any, tuple[str, list[Any]]]] = (
    weakref.WeakKeyDictionary()
)


def of_arrays(**named: PyTree) -> Fields:
    """Digests of all that some trees of arrays hold, under the names given."""
    return {name: BITS + trees.fingerprint(tree) for name, tree in named.items()}


def of_optimizer(
    task: Task, tx: settings.Optimizer, names: Sequence[str] = ()
) -> Fields:
    """What an optimizer does with weights of a task's shapes: its start and its step.

    Args:
      task: whose weights it moves.
      tx: the optimizer.
      names: of the hyperparameters that it is a function of.
    """
    return of_function("optimizer", _optimizer, task.functions, tx, tuple(names))


def _optimizer(task: Task, tx: settings.Optimizer, names: tuple[str, ...]) -> Traced:
    def start_and_step(
        params: Params, mask: PyTree, key: Key, values: PyTree
    ) -> PyTree:
        own = settings.at(tx, values)
        state = loop.start(own, Network(params, ()), (), mask)
        after, _ = loop.train_steps(_LINEAR, own, state, key, 0, 1, capacity=1)
        return state, after

    params = task.shapes[0]
    return start_and_step, params, _mask(params), _key(), settings.like(names)


def of_rule(
    task: Task,
    tx: settings.Optimizer,
    rule: MaskUpdate | None,
    names: Sequence[str] = (),
) -> Fields:
    """What a rule does to masks and to the optimizer's state, and when.

    Args:
      task: whose weights it masks.
      tx: the optimizer.
      rule: changes the mask; None for none.
      names: of the hyperparameters that `tx` is a function of.
    """
    if rule is None:
        return {"rule": None}
    at: Fields = {"rule": [rule.every, rule.begin, rule.end]}
    of = task.functions, tx
    if rule.steps():
        at |= of_function("rule.update", _rule, *of, rule.update, tuple(names))
    if rule.start is not None:
        at |= of_function("rule.start", _rule_start, *of, rule.start, tuple(names))
    return at


def _rule(
    task: Task, tx: settings.Optimizer, rule: UpdateMask, names: tuple[str, ...]
) -> Traced:
    def update(
        params: Params, mask: PyTree, key: Key, step: Array, values: PyTree
    ) -> PyTree:
        own = settings.at(tx, values)
        state = loop.start(own, Network(params, ()), (), mask)
        return loop.update_mask(_LINEAR, own, rule, state, key, step)

    params = task.shapes[0]
    return update, params, _mask(params), _key(), _STEP, settings.like(names)


def _rule_start(
    task: Task, tx: settings.Optimizer, start: StartMask, names: tuple[str, ...]
) -> Traced:
    def begin(params: Params, mask: PyTree, key: Key, values: PyTree) -> PyTree:
        own = settings.at(tx, values)
        state = loop.start(own, Network(params, ()), (), mask)
        return loop.start_mask(own, start, state, key)

    params = task.shapes[0]
    return begin, params, _mask(params), _key(), settings.like(names)


def of_draws() -> Fields:
    """How numbers are drawn from keys, and of which width they are."""
    names = ("jax_threefry_partitionable", "jax_enable_x64")
    settings = {name: bool(getattr(jax.config, name)) for name in names}
    return {"keys.DRAWS": keys.DRAWS} | settings


def _key() -> Any:
    return jax.eval_shape(lambda: keys.replica_keys(0, 0).noise)


def _mask(params: Params) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.bool_), params)


def _sum(params: Params, *_: Any) -> tuple[Array, Any]:
    sums = [jnp.sum(x) for x in jax.tree.leaves(params)]
    return sum(sums[1:], sums[0]), ((), (), {})


_LINEAR = Task(
    data=(),
    init=lambda key: ((), (), ()),
    order=lambda key, step: jnp.zeros((1,), jnp.int32),
    batch=lambda data, indices, key, step: (),
    loss=_sum,
    evaluate=lambda params, model_state, data, key, split: {},
    steps_per_epoch=1,
)
"""Stands in for a task, so that the loop can be looked at for its optimizer alone."""


# --- comparing ------------------------------------------------------------------------


def stored(fields: Fields) -> dict[str, Any]:
    """What is written with a checkpoint, for `check`."""
    return {_KEY: {"fields": fields, "versions": versions()}}


def check(
    folder: pathlib.Path | str, holds: str, found: Mapping[str, Any], own: Fields
) -> None:
    """Raises a ValueError that names the fields in which a folder is another's.

    Args:
      folder: for the message.
      holds: what it holds then: "other runs".
      found: what was written with its checkpoint.
      own: the fields of what is to go on there.
    """
    there: Any = found.get(_KEY, {"fields": {}, "versions": {}})
    theirs, ours = json.loads(json.dumps([there["fields"], own]))
    differ = [
        (name, theirs.get(name, _MISSING), ours.get(name, _MISSING))
        for name in dict.fromkeys((*ours, *theirs))
    ]
    differ = [(name, old, new) for name, old, new in differ if old != new]
    if not differ:
        return
    # What only one of them has follows from what differs in both.
    both = [one for one in differ if _MISSING not in one] or differ[:1]
    texts = [_text(*one) for one in both]
    doubt = ""
    if any(str(x).startswith(TRACED) for one in both for x in one):
        doubt = _doubt(there["versions"])
    if any(name == "keys.DRAWS" for name, *_ in both):
        by = there["versions"].get("lottery-jax", "of another version")
        doubt = f" (equal seeds drew other numbers in its lottery-jax, {by}){doubt}"
    raise ValueError(
        f"{folder} holds {holds}: {'; '.join(texts)}{doubt}; continue it with what it "
        "began with, or choose another folder"
    )


_MISSING = "missing"


def _text(name: str, there: Any, now: Any) -> str:
    """A difference in words."""
    if any(str(x).startswith((TRACED, BITS)) for x in (there, now)):
        return f"another {name}"
    return f"{name}={there}, not {now}"


def _doubt(there: Mapping[str, str]) -> str:
    """That versions differ: one function may then be traced to two jaxprs."""
    changed = [
        f"{name} {there.get(name)} there, {version} now"
        for name, version in versions().items()
        if there.get(name) != version
    ]
    if not there or not changed:
        return ""
    return (
        f" (or the same: it was written by other versions, {', '.join(changed)}, and what "
        "these trace cannot be compared)"
    )
