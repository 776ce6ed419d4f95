"""Training in the library's compiled loop, and what it is compared with."""

from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.jax_sides.common import (
    as_program,
    compile_training,
    make_arguments,
    make_task,
)
from benchmarks.jax_sides.rulers import on_each_device, peaks, step_products
from benchmarks.worker import Programs
from lottery_jax import convolution, training, transforms
from lottery_jax.replicas import Execution
from lottery_jax.types import Array, Key, Metrics, PyTree, Task, TrainState


def dense(
    *,
    model: str,
    shape: list[int],
    examples: int,
    batch: int,
    density: float,
    replicas: int,
    steps: int,
    ruler: list[int],
    ruler_steps: int,
    peak_sizes: list[int],
    peak_flops: float,
) -> Programs:
    """Masked Adam 1.2e-3 on a dense network, and two rulers, on all devices.

    Programs: `train`, in replica-steps; `ruler`, the matrix products of a step alone, in
    steps; `peak SIZE`, square products, in floating-point operations.

    Args:
      model: a name of `models.make`.
      shape: of one image.
      examples: in the training set.
      batch: examples per step.
      density: of the random masks.
      replicas: a multiple of the devices.
      steps: of each replica per call.
      ruler: units of each layer, the inputs first.
      ruler_steps: of each device per call.
      peak_sizes: sides of the square matrices.
      peak_flops: about how many operations each device does per call.
    """
    task, tx = make_task(model, shape, examples, batch), optax.adam(1.2e-3)
    execution = Execution(jax.device_count(), 1)
    args = make_arguments(task, tx, execution, replicas, density, steps)
    run = compile_training(task, tx, execution, steps)
    return {
        "train": as_program(run, args, replicas * steps),
        "ruler": on_each_device(step_products(ruler, batch, ruler_steps)),
        **peaks(peak_sizes, peak_flops),
    }


def residual(
    *,
    model: str,
    examples: int,
    batch: int,
    density: float,
    replicas: int,
    steps: int,
    peak_sizes: list[int],
    peak_flops: float,
) -> Programs:
    """Masked SGD 0.01 with momentum on a residual network, in the library's loop.

    Programs: `train`, in replica-steps; `peak SIZE`, as in `dense`.

    Args:
      model: a name of `models.make`.
      examples: in the training set, of CIFAR's shape.
      batch: examples per step.
      density: of the random masks.
      replicas: a multiple of the devices.
      steps: of each replica per call.
      peak_sizes: sides of the square matrices.
      peak_flops: about how many operations each device does per call.
    """
    task, tx = make_task(model, [32, 32, 3], examples, batch), optax.sgd(0.01, 0.9)
    execution = Execution(jax.device_count(), 1)
    args = make_arguments(task, tx, execution, replicas, density, steps)
    run = compile_training(task, tx, execution, steps)
    return {
        "train": as_program(run, args, replicas * steps),
        **peaks(peak_sizes, peak_flops),
    }


def residual_stock(
    *, model: str, examples: int, batch: int, density: float, steps: int
) -> Programs:
    """The same network and step, stock convolutions, one jitted step per Python call.

    Replaces the convolution of this process by `lax.conv_general_dilated`, as
    `flax.linen.Conv` calls it. Arguments as in `residual`; one replica.
    """
    mock.patch.object(convolution, "conv", _stock_conv).start()
    task, tx = make_task(model, [32, 32, 3], examples, batch), optax.sgd(0.01, 0.9)
    data, states, keys, orders, *_ = make_arguments(
        task, tx, Execution(1, 1), 1, density, steps
    )
    state, key, order = jax.tree.map(lambda x: x[0], (states, keys, orders))
    optimizer, functions = transforms.masked(tx), task.functions

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, data: PyTree, key: Key, order: Array, i: Array
    ) -> tuple[TrainState, Metrics]:
        bound = functions._replace(data=data)
        gradients, state, metrics = training.step_gradient(bound, state, key, order, i)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, mask=state.mask
        )
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state), metrics

    def train() -> int:
        nonlocal state
        for i in range(steps):
            state, _ = step(state, data, key, order, np.int32(i))
        jax.block_until_ready(state)
        return steps

    return {"train": train}


def masking(
    *,
    model: str,
    shape: list[int],
    examples: int,
    batch: int,
    density: float,
    learning_rate: float,
    replicas: int,
    steps: int,
) -> Programs:
    """Adam with masks (`masked`) and in the same loop without any (`unmasked`).

    Arguments as in `dense`.
    """
    task, tx = make_task(model, shape, examples, batch), optax.adam(learning_rate)
    execution = Execution(jax.device_count(), 1)
    args = make_arguments(task, tx, execution, replicas, density, steps)
    data, state, *rest = args
    dense = (data, state._replace(mask=()), *rest)
    masked = compile_training(task, tx, execution, steps)
    unmasked = compile_training(task, tx, execution, steps, _train_unmasked)
    return {
        "masked": as_program(masked, args, replicas * steps),
        "unmasked": as_program(unmasked, dense, replicas * steps),
    }


def _train_unmasked(
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    key: Key,
    order: Array,
    start: Array,
    stop: Array,
    *,
    capacity: int,
) -> tuple[TrainState, Metrics]:
    """`training.train` as it would be written by someone who knows no masks."""

    def one_step(
        i: Array, carry: tuple[TrainState, Metrics]
    ) -> tuple[TrainState, Metrics]:
        state, buffers = carry
        gradients, state, metrics = training.step_gradient(task, state, key, order, i)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        buffers = {
            name: buffer.at[i - start].set(metrics[name])
            for name, buffer in buffers.items()
        }
        return state._replace(params=params, opt_state=opt_state), buffers

    empty = jnp.full((capacity,), jnp.nan, jnp.float32)
    return lax.fori_loop(
        start, stop, one_step, (state, {"loss": empty, "error": empty})
    )


def _stock_conv(
    x: Array, kernel: Array, *, strides: Sequence[int], padding: Any, **_: Any
) -> Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
