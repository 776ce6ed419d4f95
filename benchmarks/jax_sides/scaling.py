"""The same training at many sizes: replicas, devices, densities, widths."""

import jax
import optax

from benchmarks import flops
from benchmarks.jax_sides.common import (
    as_program,
    compile_training,
    make_arguments,
    make_task,
)
from benchmarks.jax_sides.rulers import on_each_device, step_products
from benchmarks.worker import Programs
from lottery_jax.replicas import Execution


def replicas(
    *,
    model: str,
    shape: list[int],
    examples: int,
    batch: int,
    numbers: list[int],
    steps: int,
    least: int,
) -> Programs:
    """Masked Adam 1.2e-3 with several numbers of replicas, on all devices.

    Programs: `R` for each number R, in replica-steps.

    Args:
      model: a name of `models.make`.
      shape: of one image.
      examples: in the training set.
      batch: examples per step.
      numbers: of replicas, multiples of the devices.
      steps: replica-steps per call.
      least: steps of a replica per call, if that is more: segments are that long.
    """
    task, tx = make_task(model, shape, examples, batch), optax.adam(1.2e-3)
    execution = Execution(jax.device_count(), 1)
    programs = {}
    for number in numbers:
        each = max(steps // number, least)
        run = compile_training(task, tx, execution, each)
        args = make_arguments(task, tx, execution, number, 1.0, each)
        programs[str(number)] = as_program(run, args, number * each)
    return programs


def densities(
    *,
    model: str,
    shape: list[int],
    examples: int,
    batch: int,
    replicas: int,
    values: list[float],
    steps: int,
) -> Programs:
    """Masks of several densities through one compiled program, on all devices.

    Programs: `0`, `1`, ..., in replica-steps.

    Args:
      model: a name of `models.make`.
      shape: of one image.
      examples: in the training set.
      batch: examples per step.
      replicas: a multiple of the devices.
      values: densities of the random masks.
      steps: of each replica per call.
    """
    task, tx = make_task(model, shape, examples, batch), optax.adam(1.2e-3)
    execution = Execution(jax.device_count(), 1)
    run = compile_training(task, tx, execution, steps)
    return {
        str(i): as_program(
            run,
            make_arguments(task, tx, execution, replicas, density, steps),
            replicas * steps,
        )
        for i, density in enumerate(values)
    }


def widths(
    *,
    networks: list[list[int]],
    shape: list[int],
    examples: int,
    batch: int,
    replicas: int,
    operations: float,
) -> Programs:
    """Dense networks of several sizes, and the products of their steps alone.

    Programs: `I train`, in replica-steps, and `I ruler`, in steps, for the I-th network.

    Args:
      networks: units of the hidden layers of each.
      shape: of one image.
      examples: in the training set.
      batch: examples per step.
      replicas: a multiple of the devices.
      operations: about how many each device does per call, in products.
    """
    tx, execution = optax.adam(1.2e-3), Execution(jax.device_count(), 1)
    pixels = shape[0] * shape[1] * shape[2]
    programs = {}
    for i, hidden in enumerate(networks):
        sizes = [pixels, *hidden, 10]
        name = "-".join(["lenet", *map(str, hidden)])
        task = make_task(name, shape, examples, batch)
        number = round(operations / flops.dense_step(sizes, batch))
        steps = min(max(number, 2), 4000)
        each = max(1, steps * execution.devices // replicas)
        args = make_arguments(task, tx, execution, replicas, 1.0, each)
        run = compile_training(task, tx, execution, each)
        programs[f"{i} train"] = as_program(run, args, replicas * each)
        programs[f"{i} ruler"] = on_each_device(step_products(sizes, batch, steps))
    return programs
