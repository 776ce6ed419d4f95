"""What the sides in JAX are made of: tasks on noise, arguments, compiled programs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.worker import Program
from lottery_jax import masks, models, replicas, tasks, training
from lottery_jax.data import Dataset
from lottery_jax.replicas import Execution
from lottery_jax.types import Array, Key, Metrics, Network, PyTree, Task, TrainState

Train = Callable[..., tuple[TrainState, Metrics]]


def make_task(
    model: str,
    shape: Sequence[int],
    examples: int,
    batch: int,
    *,
    validation: int = 0,
    test: int = 0,
    augment: tuple[str, ...] = (),
) -> Task:
    """Classification of noise: uint8 images, or float32 vectors.

    Args:
      model: a name of `models.make`.
      shape: of one example.
      examples: in the training set.
      batch: examples per step.
      validation: examples of that split; 0 for none.
      test: likewise.
      augment: as in `tasks.classification`.
    """
    generator = np.random.default_rng(0)
    is_image = len(shape) == 3

    def split(number: int) -> dict[str, np.ndarray]:
        size = (number, *shape)
        if is_image:
            image = generator.integers(0, 256, size, np.uint8)
        else:
            image = generator.standard_normal(size, np.float32)
        label = generator.integers(0, 10, number, np.int32)
        return {"image": image, "label": label}

    arrays = {"train": split(examples)}
    if validation:
        arrays["validation"] = split(validation)
    if test:
        arrays["test"] = split(test)
    channels = shape[-1] if is_image else 1
    mean, std = ((0.5,) * channels, (0.3,) * channels) if is_image else ((0.0,), (1.0,))
    dataset = Dataset(arrays, 10, tuple(shape), mean, std, "noise")
    return tasks.classification(
        dataset, models.make(model, 10), batch_size=batch, augment=augment
    )


def make_arguments(
    task: Task,
    tx: optax.GradientTransformation,
    execution: Execution,
    number: int,
    density: float,
    steps: int,
) -> tuple[Any, ...]:
    """What a program of `compile_training` is called with, all placed.

    Args:
      task: what is trained.
      tx: the optimizer.
      execution: where.
      number: of replicas, a multiple of the devices.
      density: of the random masks.
      steps: that the data orders reach, and the last bound.

    Returns:
      Data, states, keys, orders, the first step and the last.
    """
    place = partial(replicas.place, execution=execution)
    generator = np.random.default_rng(2)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    params, model_state, stream = jax.tree_util.tree_map_with_path(
        partial(draw, generator, number), shapes
    )
    prunable = masks.prunable(shapes[0])
    mask = jax.tree.map(
        lambda p, take: generator.random(p.shape) < (density if take else 1),
        params,
        prunable,
    )
    start = replicas.parallel(partial(training.start, tx), (0, 0, 0), execution)
    states = start(place(Network(params, model_state)), place(stream), place(mask))
    keys = place(jax.random.split(jax.random.key(0), number))
    orders = place(draw_orders(task, number, steps))
    data = jax.device_put(task.data, replicas.shared(execution))
    return data, states, keys, orders, np.int32(0), np.int32(steps)


def draw(
    generator: np.random.Generator, number: int, path: tuple, leaf: Any
) -> np.ndarray:
    """Initial weights of all replicas, drawn on the host.

    Compiling the law of a residual network takes longer than a run of it here.
    """
    shape = (number, *leaf.shape)
    if leaf.ndim > 1:
        scale = (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return generator.standard_normal(shape, np.float32) * np.float32(scale)
    is_scale = masks.leaf_path(path).endswith(("scale", "var"))
    return np.full(shape, float(is_scale), np.float32)


def draw_orders(task: Task, number: int, steps: int) -> np.ndarray:
    """What `training.orders` draws for each replica, drawn on the host."""
    epochs = training.epochs_of(task, steps)
    one = jax.eval_shape(task.order, jax.random.key(0), jnp.int32(0))
    generator = np.random.default_rng(1)
    orders = np.full((number, epochs, one.size), -1, np.int32)
    examples = len(task.data["train"]["label"])
    for replica, epoch in np.ndindex(number, epochs):
        orders[replica, epoch, :examples] = generator.permutation(examples)
    return orders.reshape(number, epochs, *one.shape)


def compile_training(
    task: Task,
    tx: optax.GradientTransformation,
    execution: Execution,
    capacity: int,
    train: Train = training.train,
) -> Any:
    """A segment of training of all replicas, as `execution` says.

    Args:
      task: what is trained; its data is not looked at.
      tx: the optimizer.
      execution: where.
      capacity: the longest segment.
      train: `training.train`, or something with its arguments.

    Returns:
      A compiled function of what `make_arguments` returns.
    """
    functions = task.functions

    def segment(
        data: PyTree, state: TrainState, key: Key, order: Array, a: Array, b: Array
    ) -> tuple[TrainState, Metrics]:
        bound = functions._replace(data=data)
        return train(bound, tx, state, key, order, a, b, capacity=capacity)

    return replicas.parallel(segment, (None, 0, 0, 0, None, None), execution)


def as_program(run: Callable[..., Any], args: tuple[Any, ...], units: int) -> Program:
    """Calls a function until its results are there.

    Args:
      run: the function.
      args: its arguments.
      units: of work in a call.
    """

    def program() -> int:
        jax.block_until_ready(run(*args))
        return units

    return program
