"""Paths between networks, and branches of shared trunks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.jax_sides.common import (
    as_program,
    compile_training,
    draw,
    make_arguments,
    make_task,
)
from benchmarks.jax_sides.rulers import forward_products, on_each_device
from benchmarks.worker import Programs
from lottery_jax.connectivity import branches as branches_
from lottery_jax.connectivity import linear, points
from lottery_jax.replicas import Execution
from lottery_jax.types import Network, Task


def paths(
    *,
    model: str,
    shape: list[int],
    test: int,
    pairs: int,
    alphas: int,
    ruler: list[int],
    ruler_batch: int,
) -> Programs:
    """Paths between networks, all (pair, alpha) in one pass, and their products alone.

    Programs: `paths` and `ruler`, both in images.

    Args:
      model: a name of `models.make`.
      shape: of one image.
      test: images that every point is evaluated on.
      pairs: of two networks each; three branches make three pairs.
      alphas: points of a path.
      ruler: units of each layer, the inputs first.
      ruler_batch: rows of a product; that of the evaluation.
    """
    task = make_task(model, shape, 100, 100, test=test)
    execution = Execution(jax.device_count(), 1)
    networks, which, weights = _make_points(task, pairs, alphas)
    images = len(which) * test

    def run() -> int:
        points.evaluate_many(
            task,
            networks,
            which,
            weights,
            batch_norm=None,
            splits=("test",),
            execution=execution,
        )
        return images

    steps = images // jax.device_count() // ruler_batch
    products, _ = forward_products(ruler, ruler_batch, steps)
    return {
        "paths": run,
        "ruler": on_each_device((products, steps * ruler_batch)),
    }


def paths_memory(
    *, model: str, shape: list[int], test: int, pairs: int, alphas: list[int]
) -> Programs:
    """`memory`: temporary and output bytes of the compiled paths, by number of alphas."""
    task = make_task(model, shape, 100, 100, test=test)
    networks, _, _ = _make_points(task, pairs, 2)
    a, b = (
        jax.tree.map(lambda x, i=i: jnp.asarray(x[i : i + pairs]), networks)
        for i in (0, 1)
    )

    def memory() -> dict[str, Any]:
        found = {}
        for number in alphas:
            along = partial(
                linear.error_along_path,
                task,
                alphas=number,
                batch_norm=None,
                splits=("test",),
            )
            compiled = jax.jit(
                lambda a, b, f=along: jax.lax.map(lambda ab: f(*ab), (a, b))
            )
            analysis = compiled.lower(a, b).compile().memory_analysis()
            found[str(number)] = {
                "temporary": analysis.temp_size_in_bytes,
                "output": analysis.output_size_in_bytes,
            }
        return found

    return {"memory": memory}


def branching(
    *,
    model: str,
    shape: list[int],
    examples: int,
    batch: int,
    inits: int,
    branches: int,
    rewind_steps: list[int],
    steps: int,
) -> Programs:
    """Branches of shared trunks that join at their rewind steps, and plain training.

    Programs: `branches`, everything from the starts to the networks on the host; `plain`,
    one segment of as many replicas as there are devices; both in replica-steps.

    Args:
      model: a name of `models.make`.
      shape: of one image.
      examples: in the training set.
      batch: examples per step.
      inits: initialisations.
      branches: of each init and rewind step.
      rewind_steps: where branches start.
      steps: where they end.
    """
    task, tx = make_task(model, shape, examples, batch), optax.adam(1.2e-3)
    execution = Execution(jax.device_count(), 1)
    keys = jax.random.split(jax.random.key(0), (2, inits))
    trunk = branches_.train_trunk(task, tx, keys[0], keys[1], rewind_steps, every=steps)
    starts, joins, replica, branch = branches_.starts(trunk, branches)
    noise = jax.vmap(lambda key: branches_.branch_keys(key, branches))(keys[1])
    noise = noise[replica, branch]
    total = int((steps - joins).sum())

    def run() -> int:
        branches_.train(
            task, tx, starts, joins, noise, steps, execution=execution, every=steps
        )
        return total

    number = jax.device_count()
    args = make_arguments(task, tx, execution, number, 1.0, steps)
    plain = compile_training(task, tx, execution, steps)
    return {"branches": run, "plain": as_program(plain, args, number * steps)}


def _make_points(
    task: Task, pairs: int, alphas: int
) -> tuple[Network, np.ndarray, np.ndarray]:
    """A stack of networks, and the points of the paths between successive ones."""
    generator = np.random.default_rng(3)
    params, model_state, _ = jax.tree_util.tree_map_with_path(
        partial(draw, generator, pairs + 1),
        jax.eval_shape(task.init, jax.random.key(0)),
    )
    ends = np.stack([np.arange(pairs), np.arange(pairs) + 1], axis=1)
    at = np.linspace(0, 1, alphas)
    weights = np.tile(np.stack([1 - at, at], axis=1), (pairs, 1))
    return Network(params, model_state), np.repeat(ends, alphas, axis=0), weights
