"""Where time and memory of the compiled training loop go."""

import time
from typing import Any

import jax
import optax

from benchmarks import flops, profile
from benchmarks.jax_sides.common import compile_training, make_arguments, make_task
from benchmarks.jax_sides.rulers import convolution_steps, on_each_device
from benchmarks.worker import Programs
from lottery_jax import masks
from lottery_jax.replicas import Execution
from lottery_jax.types import Task


def _setting(
    model: str, shape: list[int], batch: int, sgd: bool
) -> tuple[Task, optax.GradientTransformation]:
    tx = optax.sgd(0.01, 0.9) if sgd else optax.adam(1.2e-3)
    return make_task(model, shape, 4 * batch, batch), tx


def times(
    *, model: str, shape: list[int], batch: int, sgd: bool, density: float, steps: int
) -> Programs:
    """`times`: a step's milliseconds on one device, and its operations by kind.

    Args:
      model: a name of `models.make`.
      shape: of one image.
      batch: examples per step.
      sgd: SGD with momentum instead of Adam.
      density: of the random masks.
      steps: of one replica.
    """
    task, tx = _setting(model, shape, batch, sgd)
    execution = Execution(1, 1)
    args = make_arguments(task, tx, execution, 1, density, steps)
    compiled = compile_training(task, tx, execution, steps).lower(*args).compile()

    def run() -> None:
        jax.block_until_ready(compiled(*args))

    def account() -> dict[str, Any]:
        run()
        begin = time.perf_counter()
        run()
        seconds = time.perf_counter() - begin
        params = jax.eval_shape(task.init, jax.random.key(0))[0]
        weights = {tuple(leaf.shape) for leaf in jax.tree.leaves(params)}
        return {
            "milliseconds": 1e3 * seconds / steps,
            "flops": flops.step(task),
            "shares": profile.shares(run, compiled.as_text(), weights, batch),
        }

    return {"times": account}


def memory(
    *, model: str, shape: list[int], batch: int, sgd: bool, replicas: list[int]
) -> Programs:
    """`memory`: XLA's account of the training program by number of replicas, in bytes.

    Args:
      model: a name of `models.make`.
      shape: of one image.
      batch: examples per step.
      sgd: SGD with momentum instead of Adam.
      replicas: multiples of the devices.
    """
    task, tx = _setting(model, shape, batch, sgd)
    execution = Execution(jax.device_count(), 1)

    def account() -> dict[str, Any]:
        few = jax.device_count()
        args = make_arguments(task, tx, execution, few, 1.0, 4)
        data, *own, a, b = args
        run = compile_training(task, tx, execution, 4)
        found: dict[str, Any] = {
            "activations": flops.activations(task),
            "state": sum(x.nbytes for x in jax.tree.leaves(own[0])) // few,
            "weights": masks.total(jax.tree.map(lambda x: x[0], own[0].params)),
            "programs": {},
        }
        for number in replicas:

            def resized(x: Any, number: int = number) -> jax.ShapeDtypeStruct:
                shape = (number, *x.shape[1:])
                return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

            wide = jax.tree.map(resized, own)
            analysis = run.lower(data, *wide, a, b).compile().memory_analysis()
            found["programs"][str(number)] = {
                "temporary": analysis.temp_size_in_bytes,
                "arguments": analysis.argument_size_in_bytes,
                "outputs": analysis.output_size_in_bytes,
            }
        return found

    return {"memory": account}


def compiling(
    *, model: str, shape: list[int], batch: int, replicas: int, sgd: bool
) -> Programs:
    """`compile`: seconds to trace and to compile one training program.

    Args:
      model: a name of `models.make`.
      shape: of one image.
      batch: examples per step.
      replicas: a multiple of the devices.
      sgd: SGD with momentum instead of Adam.
    """
    task, tx = _setting(model, shape, batch, sgd)
    execution = Execution(jax.device_count(), 1)
    args = make_arguments(task, tx, execution, replicas, 1.0, 10)
    run = compile_training(task, tx, execution, 10)

    def compile_once() -> dict[str, float]:
        begin = time.perf_counter()
        lowered = run.lower(*args)
        traced = time.perf_counter()
        lowered.compile()
        end = time.perf_counter()
        return {"trace_seconds": traced - begin, "compile_seconds": end - traced}

    return {"compile": compile_once}


def convolutions(*, batch: int, operations: float, shapes: list[list[int]]) -> Programs:
    """3x3 convolutions alone in a loop, forward and both gradients, on each device.

    Units are floating-point operations.

    Args:
      batch: images on each device.
      operations: about how many operations each device does per call.
      shapes: input size, channels in, channels out and stride of each; its program is
        named after its position.
    """
    return {
        str(i): on_each_device(convolution_steps(batch, operations, *shape))
        for i, shape in enumerate(shapes)
    }
