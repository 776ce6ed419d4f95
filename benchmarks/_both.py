"""The few names of lottery_jax that are called otherwise in older checkouts.

`--against DIR` runs the same sides with the library of DIR, which may be older: what was
renamed since is looked up here and nowhere else. Once no comparison with a checkout from
before `lottery_jax.execution` is wanted, the old halves go, and then this file.
"""

import importlib
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

import lottery_jax as lj
from lottery_jax import connectivity, imp, training
from lottery_jax.connectivity import branches

NEW = hasattr(lj, "execution")
"""Whether this is the library in which `Where` says how and where things run."""

if NEW:
    Execution, Where = lj.execution.Execution, lj.execution.Where
    sparse = importlib.import_module("lottery_jax.sparse")
    train = training.train_steps
    place, share, parallel = Execution.place, Execution.share, Execution.parallel
else:
    replicas, sparse = lj.replicas, lj.compact
    Execution = replicas.Execution
    train = training.train

    def place(execution: Execution, tree: Any) -> Any:
        """Puts arrays with a replica axis onto the devices."""
        return replicas.place(tree, execution)

    def share(execution: Execution, tree: Any) -> Any:
        """Puts arrays that all replicas share onto the devices."""
        return jax.device_put(tree, replicas.shared(execution))

    def parallel(
        execution: Execution, function: Callable[..., Any], in_axes: Sequence[Any]
    ) -> Any:
        """A compiled function of R replicas from a function of one."""
        return replicas.parallel(function, in_axes, execution)


def plan(steps: int, fraction: float, every: int, **options: Any) -> Any:
    """A plan with one iterative chain."""
    if NEW:
        chain = imp.Chain(densities=imp.Geometric(fraction))
    else:
        chain = imp.Chain(fraction=fraction)
    return imp.Plan(steps, chains=(chain,), validate_every=every, **options)


def run_study(
    *args: Any,
    execution: Execution | None = None,
    folder: pathlib.Path | str | None = None,
    watch: Callable[[int], None] = lambda level: None,
    **options: Any,
) -> Any:
    """`imp.run`; `watch` is called with the level after every segment of training."""

    def at(progress: Any) -> None:
        if not NEW or progress.done > progress.start:
            watch(progress.level)

    where: dict[str, Any] = {"execution": execution, "folder": folder, "watch": at}
    where = {"where": Where(**where)} if NEW else where
    return imp.run(*args, **where, **options)


def branches_of(
    task: Any, tx: Any, trunk: Any, noise: Any, number: int, execution: Execution
) -> tuple[Any, Callable[[int], Any]]:
    """At which step each branch of a trunk starts, and what trains them to a step."""
    if NEW:
        where, runs = (
            Where(execution=execution),
            branches.of_trunk(trunk, noise, number),
        )
        train = partial(training.train, task, tx, runs, where=where)
        return runs.joins, lambda stop: train(stop, every=stop).state
    starts, joins, replica, _ = branches.starts(trunk, number)
    train = partial(branches.train, task, tx, starts, joins, noise[replica])
    return joins, lambda stop: train(stop, every=stop, execution=execution)


def paths(
    task: Any, networks: Any, pairs: Any, alphas: int, execution: Execution
) -> Any:
    """`connectivity.paths` on the test split, of networks without statistics."""
    if NEW:
        measure, where = _measure(alphas), Where(execution=execution)
        return connectivity.paths(task, networks, pairs, measure, where=where)
    options = {"batch_norm": None, "splits": ("test",), "execution": execution}
    return connectivity.paths(task, networks, pairs, alphas, **options)


def error_along_path(task: Any, alphas: int) -> Callable[[Any, Any], Any]:
    """`connectivity.error_along_path` likewise, as a function of the two ends."""
    along = partial(connectivity.error_along_path, task)
    if NEW:
        return lambda a, b: along(a, b, _measure(alphas))
    return lambda a, b: along(a, b, alphas, batch_norm=None, splits=("test",))


def _measure(alphas: int) -> Any:
    return connectivity.Measure(alphas=alphas, splits=("test",))
