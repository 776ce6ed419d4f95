"""The few names of lottery_jax that sides need, as they are called in this checkout.

`--against DIR` runs the same sides with the library of DIR, which may be older: what was
renamed since is looked up here and nowhere else. Once no comparison with a checkout from
before `lottery_jax.execution` is wanted, the old halves go, and then this file.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

import lottery_jax as lj
from lottery_jax import connectivity, imp, training
from lottery_jax.connectivity import branches

NEW = hasattr(lj, "execution")
"""Whether this is the library in which `Where` says how and where things run."""

if NEW:
    from lottery_jax.execution import Execution as Execution
    from lottery_jax.execution import Where

    train = training.train_steps
    place: Callable[..., Any] = lambda tree, execution: execution.place(tree)  # noqa: E731
    share: Callable[..., Any] = lambda tree, execution: execution.share(tree)  # noqa: E731
else:
    from lottery_jax import replicas
    from lottery_jax.replicas import Execution as Execution

    train = training.train
    place = replicas.place

    def share(tree: Any, execution: Execution) -> Any:
        """Arrays that all replicas share, on the devices."""
        return jax.device_put(tree, replicas.shared(execution))


def parallel(
    function: Callable[..., Any], in_axes: Sequence[int | None], execution: Execution
) -> Any:
    """A compiled function of R replicas from a function of one."""
    if NEW:
        return execution.parallel(function, in_axes)
    return replicas.parallel(function, in_axes, execution)


def run_study(
    task: Any,
    tx: Any,
    plan: Any,
    *,
    levels: int,
    replicas: Sequence[int],
    execution: Execution | None = None,
    folder: pathlib.Path | str | None = None,
    watch: Callable[[int], None] | None = None,
) -> Any:
    """`imp.run`; `watch` is called with the level after every segment."""

    def at(progress: Any) -> None:
        if watch and progress.level is not None:
            watch(progress.level)

    where: dict[str, Any] = {"execution": execution, "folder": folder, "watch": at}
    if NEW:
        where = {"where": Where(**where)}
    return imp.run(task, tx, plan, levels=levels, replicas=replicas, **where)


def train_branches(
    task: Any, tx: Any, starts: tuple[Any, ...], stop: int, execution: Execution
) -> Any:
    """`connectivity.branches.train`, from the states, joins and noise of `starts`."""
    where: dict[str, Any] = {"execution": execution}
    if NEW:
        where = {"where": Where(**where)}
    return branches.train(task, tx, *starts, stop, every=stop, **where)


def paths(
    task: Any, networks: Any, pairs: Any, alphas: int, execution: Execution
) -> Any:
    """`connectivity.paths` on the test split, of networks without statistics."""
    if NEW:
        measure = connectivity.Measure(alphas=alphas, splits=("test",))
        where = Where(execution=execution)
        return connectivity.paths(task, networks, pairs, measure, where=where)
    return connectivity.paths(
        task,
        networks,
        pairs,
        alphas,
        batch_norm=None,
        splits=("test",),
        execution=execution,
    )
