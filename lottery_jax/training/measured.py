"""What is measured of networks: the scalars that a task's functions return, by name.

On the way to the names the functions are seen by their shapes: what does not have the
form that `types.Task` asks for is refused here, once for each task.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import activations, errors, means, streams, trees
from lottery_jax.execution import Execution, Where, default_execution
from lottery_jax.keys import of_seed
from lottery_jax.training import checked, windows
from lottery_jax.training.programs import program, remembered
from lottery_jax.training.rows import shared_data
from lottery_jax.types import Array, Key, Metrics, Network, PyTree, Task


def check(
    task: Task,
    *,
    trains: bool = True,
    splits: Sequence[str] = (),
    where: Where | None = None,
) -> None:
    """Raises a ValueError that names what of a task cannot be used; computes nothing.

    It costs a trace of the functions that are not known yet.

    Args:
      task: the task.
      trains: whether its loss is needed.
      splits: where it is evaluated.
      where: how it is executed; activations that no layer of its model reads are refused.
    """
    checked.fields(task)
    if trains:
        loss_metrics(task)
    for split in splits:
        metrics(task, split)
        if split in streams.streamed(task.data):
            batch(task, split)
    execution = None if where is None else where.execution
    if execution is not None and execution.activations != "float32":
        name, shapes = execution.activations, trees.shapes_of(task.data)
        if not remembered(_narrow, task.functions, shapes, name):
            must = (
                "float32 for this task: nothing in its loss becomes narrower. The layers of "
                "lottery_jax.models read it, flax's own and those of others do not"
            )
            raise errors.wrong("activations", repr(name), must)


def loss_metrics(task: Task) -> list[str]:
    """The names of the scalars of a task's loss; nothing is computed.

    Raises:
      ValueError: `init` or `loss` returns what it must not; names the field.
    """
    return remembered(_loss_metrics, task.functions, trees.shapes_of(task.data))


def _first_loss(task: Task, key: Key, data: PyTree) -> tuple[tuple[PyTree, ...], Any]:
    """A draw, and what the loss of its first batch returns."""
    before = _drawn(task, key)
    with _named("task.order"):
        indices = task.order(key, jnp.int32(0))
    with _named("task.batch"):
        batch = task.batch(data, indices, key, jnp.int32(0))
    with _named("task.loss"):
        return before, task.loss(*before, batch, key)


def _narrow(task: Task, data: PyTree, name: activations.Activations) -> bool:
    """Whether activations of a name show in a task's loss: more of it is bfloat16."""

    def narrow(setting: activations.Activations) -> int:
        with activations.stored_as(setting):
            traced = jax.make_jaxpr(partial(_first_loss, task))(of_seed(0), data)
        # As text, where functions within functions are written out.
        return str(traced).count(":bf16[")

    return narrow(name) > narrow("float32")


def _loss_metrics(task: Task, data: PyTree) -> list[str]:
    def one(key: Key, data: PyTree) -> PyTree:
        before, out = _first_loss(task, key, data)
        value, aux = _parts("task.loss", out, ("loss", "(states and metrics)"))
        *after, found = _parts("task.loss", aux, (*_STATES, "metrics"))
        errors.is_a("task.loss: metrics", found, dict, "a dict of arrays by name")
        for name, x in found.items():
            if not hasattr(x, "dtype"):
                field = f"task.loss: metrics[{name!r}]"
                raise errors.wrong(field, errors.shown(x), "an array")
        return {"loss": value} | found, {"loss": value}, before[1:], tuple(after)

    found, value, before, after = jax.eval_shape(one, of_seed(0), data)
    _scalars("task.loss: ", value)
    for name, x, y in zip(_STATES, before, after):
        _kept(name, x, y)
    return _scalars("task.loss: metric ", found)


_STATES = ("model_state", "stream_state")


def metrics(task: Task, split: str) -> list[str]:
    """The names of the scalars of a task's `evaluate`; nothing is computed.

    Raises:
      ValueError: `init` or `evaluate` returns what it must not, or there is no such
        split; names the field.
    """
    return remembered(_metrics, task.functions, trees.shapes_of(task.data), split)


def _metrics(functions: Task, data: PyTree, split: str) -> list[str]:
    found = _evaluated(functions, data, split)
    if "loss" not in found:
        must = "a dict with a scalar `loss`"
        raise errors.wrong("task.evaluate: it returns", list(found), must)
    return _scalars("task.evaluate: ", found)


def batch(task: Task, split: str) -> int:
    """How many examples of a streamed split a task evaluates at once.

    Raises:
      ValueError: it measures something that is no mean over examples, which cannot be put
        together from parts of the split; names it.
    """
    return remembered(_batch, task.functions, trees.shapes_of(task.data), split)


def _batch(functions: Task, data: PyTree, split: str) -> int:
    with means.as_sums():
        found: dict[str, Any] = _evaluated(functions, data, split)
    for name, x in found.items():
        if not isinstance(x, means.Sums):
            must = (
                f"a mean over examples, made by means.of: the split {split!r} is "
                "streamed, and seen part by part"
            )
            raise errors.wrong("task.evaluate: metric", repr(name), must)
    sizes = {name: x.batch for name, x in found.items()}
    if len({*sizes.values()}) > 1:
        must = f"of batches of one size, in which the streamed split {split!r} is seen"
        raise errors.wrong("task.evaluate: metrics", sizes, must)
    return next(iter(sizes.values()))


def _evaluated(functions: Task, data: PyTree, split: str) -> Metrics:
    """What `evaluate` returns, by its shapes."""
    errors.is_a("split", split, str, "the name of a split, such as 'test'")

    def one(key: Key, data: PyTree) -> Metrics:
        params, model_state, _ = _drawn(functions, key)
        try:
            with _named("task.evaluate"):
                found = functions.evaluate(params, model_state, data, key, split)
        except KeyError as error:
            if error.args != (split,):
                raise
            there = list(data) if isinstance(data, dict) else "other splits"
            must = f"one that the task has: its data holds {there}"
            raise errors.wrong("split", repr(split), must) from error
        errors.is_a(
            "task.evaluate: it returns", found, dict, "a dict of scalars by name"
        )
        return found

    return jax.eval_shape(one, of_seed(0), data)


# --- whether they have the form of a task ---------------------------------------------


@contextlib.contextmanager
def _named(field: str) -> Iterator[None]:
    """Says in which function of a task something went wrong that is its own."""
    try:
        yield
    except Exception as error:
        error.add_note(f"(in {field}, of which only the shapes were asked)")
        raise


def _parts(field: str, out: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """A tuple that a function of a task must return."""
    if not isinstance(out, tuple | list) or len(out) != len(names):
        length = f" of {len(out)}" if isinstance(out, tuple | list) else ""
        must = f"({', '.join(names)})"
        raise errors.wrong(
            f"{field}: it returns", f"{type(out).__name__}{length}", must
        )
    return tuple(out)


def _drawn(task: Task, key: Key) -> tuple[PyTree, PyTree, PyTree]:
    """A draw of a task, of which the weights can be trained."""
    with _named("task.init"):
        out = task.init(key)
    params, model_state, stream = _parts("task.init", out, ("params", *_STATES))
    for name, tree in zip(("params", *_STATES), (params, model_state, stream)):
        for path, leaf in trees.by_path(tree).items():
            field = f"task.init: leaf {path!r} of {name}"
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
                raise errors.wrong(field, errors.shown(leaf), "an array")
            if name == "params" and not jnp.issubdtype(leaf.dtype, jnp.inexact):
                must = "real: what is not trained belongs into model_state"
                raise errors.wrong(field, f"{leaf.dtype} {leaf.shape}", must)
    if not jax.tree.leaves(params):
        raise errors.wrong("task.init: params", params, "arrays to train, one at least")
    return params, model_state, stream


def _kept(name: str, before: PyTree, after: PyTree) -> None:
    """Whether what a step leaves behind can be what the next one begins with."""
    try:
        trees.same(before, after, (f"the {name} of init", "that of loss"))
    except ValueError as error:
        raise ValueError(f"task.loss: {error}") from None
    for (path, x), y in zip(trees.by_path(before).items(), jax.tree.leaves(after)):
        if x.dtype != y.dtype:
            field = f"task.loss: dtype of leaf {path!r} of {name}"
            raise errors.wrong(field, y.dtype, f"{x.dtype}, as init has it")


def _scalars(field: str, found: Metrics) -> list[str]:
    """The names of what is one number; the loss must be one, and none complex."""
    real = (jnp.floating, jnp.integer, jnp.bool_)
    for name, x in found.items():
        if name == "loss" and x.shape != ():
            raise errors.wrong(f"{field}loss", f"shape {x.shape}", "a real scalar")
        if not any(jnp.issubdtype(x.dtype, kind) for kind in real):
            raise errors.wrong(f"{field}{name}", x.dtype, "a real number")
    return [name for name, x in found.items() if x.shape == ()]


# --- on the devices -------------------------------------------------------------------


def evaluate(
    task: Task,
    networks: Network,
    split: str = "test",
    *,
    where: Where | None = None,
) -> dict[str, np.ndarray]:
    """The scalars that a task's `evaluate` returns for each of many networks.

    Args:
      task: the task.
      networks: a stack of R.
      split: name of a split.
      where: the devices; on a full one fewer networks are evaluated at once.

    Returns:
      Arrays `[R]` by name, `loss` among them.

    Raises:
      ValueError: no task that can be evaluated there, or no stack of networks.
      MemoryError: not even one network fits on a device, or not all of their weights.

    Warns:
      RuntimeWarning: a device was full; fewer are evaluated at once from then on.
    """
    where = checked.place(where)
    check(task, trains=False, splits=(split,), where=where)
    number = checked.networks("networks", networks, task)
    execution = (where.execution or default_execution()).check()
    placed = execution.spread(networks)

    def attempt(execution: Execution) -> dict[str, np.ndarray]:
        found = on_split(task, execution, split, where, placed)
        return {name: np.asarray(x)[:number] for name, x in found.items()}

    stage = f"the evaluation on {split!r}"
    return where.room.run(stage, execution, number, attempt)[0]


def on_split(
    task: Task, execution: Execution, split: str, where: Where, networks: Network
) -> Metrics:
    """The scalars of networks on a split, wherever that lies.

    Args:
      task: the task.
      execution: the devices.
      split: its name.
      where: what stays on the devices, and how long these wait for examples.
      networks: rows on them, `[P]`.

    Returns:
      Arrays `[P]` by name.
    """
    if split in streams.streamed(task.data):
        return in_parts(task, execution, split, where, networks)
    data = shared_data(task, execution, where)
    return program(tested, task.functions, execution, split)(data, networks)


def in_parts(
    task: Task, execution: Execution, split: str, where: Where, networks: Network
) -> Metrics:
    """The scalars of networks on a streamed split, put together from its parts.

    Args:
      task: the task.
      execution: the devices.
      split: its name.
      where: is told how long devices wait for examples.
      networks: rows on them, `[P]`.

    Returns:
      Arrays `[P]` by name.

    Raises:
      ValueError: a metric that is no mean over examples; names it.
      streams.SourceError: an example cannot be read; names it.
    """
    one = program(_summed, task.functions, execution, split)
    parts = parts_of(task, execution, split, where)
    found = windows.each(parts, lambda part: one({split: part}, networks))
    return together(execution, found)


def together(execution: Execution, parts: Sequence[dict[str, means.Sums]]) -> Metrics:
    """Means over a split, of the sums of its parts.

    Args:
      execution: the devices.
      parts: by metric, sums `[P, batches]`, in the order of the split.

    Returns:
      Arrays `[P]` by name: the same bits as of the whole split.
    """
    number = sum(next(iter(part.values())).number for part in parts)
    sums = {
        name: jnp.concatenate([part[name].sums for part in parts], axis=1)
        for name in parts[0]
    }
    return program(_together, execution, number)(execution.place(sums))


def _together(execution: Execution, number: int) -> Callable[..., Any]:
    def one(sums: dict[str, Array]) -> Metrics:
        return {name: means.Sums(x, number, number).mean for name, x in sums.items()}

    return execution.parallel(one, (0,))


def parts_of(
    task: Task, execution: Execution, split: str, where: Where
) -> Generator[dict[str, Array], None, None]:
    """The parts of a streamed split, of whole batches, on all devices.

    Args:
      task: the task.
      execution: the devices.
      split: its name.
      where: is told how long these wait.
    """
    examples = streams.streamed(task.data)[split]
    bounds = windows.parts(examples, batch(task, split))
    return windows.of_split(examples, bounds, execution, where.waited)


def _summed(functions: Task, execution: Execution, split: str) -> Callable[..., Any]:
    def test(data: PyTree, network: Network) -> PyTree:
        return summed(functions, network, data, split)

    return execution.parallel(test, (None, 0))


def tested(functions: Task, execution: Execution, split: str) -> Callable[..., Any]:
    """Builds the program that evaluates many networks on a split, `(data, networks)`."""

    def test(data: PyTree, network: Network) -> Metrics:
        return evaluated(functions, network, data, split)

    return execution.parallel(test, (None, 0))


def evaluated(functions: Task, network: Network, data: PyTree, split: str) -> Metrics:
    """The scalars of one network on a split: pure."""
    # Evaluation has one key: it draws nothing that may differ between steps or runs.
    params, model_state = network
    found = functions.evaluate(params, model_state, data, of_seed(0), split)
    return {name: x for name, x in found.items() if jnp.shape(x) == ()}


def summed(
    functions: Task, network: Network, data: PyTree, split: str
) -> dict[str, means.Sums]:
    """What means of one network on a part of a split are made of: pure."""
    params, model_state = network
    with means.as_sums():
        found: Any = functions.evaluate(params, model_state, data, of_seed(0), split)
    return found
