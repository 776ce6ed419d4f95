"""What is timed in JAX: the library's training, rulers, and what it is compared with.

Each public function is a `setup` of `benchmarks.worker` and returns named programs.
Data sets are synthetic, with the shapes and dtypes of the real ones.
"""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.worker import Program, Programs
from lottery_jax import (
    convolution,
    engine,
    imp,
    masks,
    models,
    replicas,
    tasks,
    training,
    transforms,
)
from lottery_jax.connectivity import branches as branches_
from lottery_jax.connectivity import linear, points
from lottery_jax.data import Dataset
from lottery_jax.replicas import Execution
from lottery_jax.types import Array, Key, Metrics, Network, PyTree, Task, TrainState

Train = Callable[..., tuple[TrainState, Metrics]]


# --- setups ---------------------------------------------------------------------------


def lenet(
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
    peak_size: int,
    peak_steps: int,
) -> Programs:
    """Masked Adam 1.2e-3 on a dense network, and two rulers, on all devices.

    Programs: `train`, in replica-steps; `ruler`, the matrix products of a step alone, in
    steps; `peak`, square products, in floating-point operations.

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
      peak_size: side of the square matrices.
      peak_steps: products of each device per call.
    """
    task = _task(model, shape, examples, batch)
    tx = optax.adam(1.2e-3)
    execution = Execution(jax.device_count(), 1)
    args = _arguments(task, tx, execution, replicas, density, steps)
    run = _compiled(task, tx, execution, steps)
    side = peak_size
    return {
        "train": _program(run, args, replicas * steps),
        "ruler": _on_each_device(_step_products(ruler, batch, ruler_steps)),
        "peak": _on_each_device(_square_products(side, peak_steps)),
    }


def resnet(
    *,
    model: str,
    examples: int,
    batch: int,
    density: float,
    replicas: int,
    steps: int,
) -> Programs:
    """Masked SGD 0.01 with momentum on a residual network, in the library's loop.

    Args:
      model: a name of `models.make`.
      examples: in the training set, of CIFAR's shape.
      batch: examples per step.
      density: of the random masks.
      replicas: a multiple of the devices.
      steps: of each replica per call.
    """
    task, tx = _task(model, [32, 32, 3], examples, batch), optax.sgd(0.01, 0.9)
    execution = Execution(jax.device_count(), 1)
    args = _arguments(task, tx, execution, replicas, density, steps)
    run = _compiled(task, tx, execution, steps)
    return {"train": _program(run, args, replicas * steps)}


def resnet_stock(
    *, model: str, examples: int, batch: int, density: float, steps: int
) -> Programs:
    """The same network and step, stock convolutions, one jitted step per Python call.

    Replaces the convolution of this process by `lax.conv_general_dilated`, as
    `flax.linen.Conv` calls it. Arguments as in `resnet`; one replica.
    """
    mock.patch.object(convolution, "conv", _stock_conv).start()
    task, tx = _task(model, [32, 32, 3], examples, batch), optax.sgd(0.01, 0.9)
    data, states, keys, orders, *_ = _arguments(
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

    Arguments as in `lenet`.
    """
    task, tx = _task(model, shape, examples, batch), optax.adam(learning_rate)
    execution = Execution(jax.device_count(), 1)
    args = _arguments(task, tx, execution, replicas, density, steps)
    data, state, *rest = args
    dense = (data, state._replace(mask=()), *rest)
    masked = _compiled(task, tx, execution, steps)
    unmasked = _compiled(task, tx, execution, steps, _train_unmasked)
    return {
        "masked": _program(masked, args, replicas * steps),
        "unmasked": _program(unmasked, dense, replicas * steps),
    }


def scaling(
    *,
    model: str,
    shape: list[int],
    examples: int,
    batch: int,
    replicas: list[int],
    densities: list[float],
    steps: int,
) -> Programs:
    """`lenet`'s training with several numbers of replicas, on all devices.

    Programs: `R replicas` for each R, with a random mask of the first density; for the
    largest R also `density D` for each further one, through the same program.

    Args:
      model: a name of `models.make`.
      shape: of one image.
      examples: in the training set.
      batch: examples per step.
      replicas: numbers of replicas, multiples of the devices.
      densities: of random masks.
      steps: replica-steps per call, a multiple of each number of replicas.
    """
    task, tx = _task(model, shape, examples, batch), optax.adam(1.2e-3)
    execution = Execution(jax.device_count(), 1)
    programs = {}
    for number in replicas:
        each = steps // number
        run = _compiled(task, tx, execution, each)
        prepare = partial(_arguments, task, tx, execution, number, steps=each)
        several = densities if number == max(replicas) else densities[:1]
        for density in several:
            name = (
                f"{number} replicas"
                if density == several[0]
                else f"density {density:.3f}"
            )
            programs[name] = _program(run, prepare(density), number * each)
    return programs


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
    tx = optax.sgd(0.01, 0.9) if sgd else optax.adam(1.2e-3)
    task = _task(model, shape, 2 * batch, batch)
    execution = Execution(jax.device_count(), 1)
    args = _arguments(task, tx, execution, replicas, 1.0, 10)
    run = _compiled(task, tx, execution, 10)

    def compile_once() -> dict[str, float]:
        begin = time.perf_counter()
        lowered = run.lower(*args)
        traced = time.perf_counter()
        lowered.compile()
        end = time.perf_counter()
        return {"trace_seconds": traced - begin, "compile_seconds": end - traced}

    return {"compile": compile_once}


def compilations(*, levels: int) -> Programs:
    """`study`: how often JAX compiles in a tiny study of three arms, by level.

    Args:
      levels: number of prunings.
    """

    def study() -> dict[str, Any]:
        counts: Counter[str] = Counter()
        at_end: dict[int, int] = {}
        built: list[engine.Programs] = []

        def listen(event: str, duration_secs: float, **_: Any) -> None:
            counts[event] += 1

        def watch(moment: imp.Moment) -> None:
            at_end[moment.level] = counts[_COMPILED]

        def build(*args: Any, **kwargs: Any) -> engine.Programs:
            built.append(original(*args, **kwargs))
            return built[-1]

        task = _task("mlp-8", [6], 64, 8, validation=16, test=16)
        plan = imp.Plan(steps=16, validate_every=8)
        original = engine.compile_programs
        jax.monitoring.register_event_duration_secs_listener(listen)
        with mock.patch.object(engine, "compile_programs", build):
            imp.run(
                task,
                optax.adam(1e-3),
                plan,
                levels=levels,
                replicas=(0, 1),
                watch=watch,
            )
        ends = [at_end[level] for level in range(levels + 1)]
        by_level = [ends[0], *(b - a for a, b in zip(ends, ends[1:]))]
        programs = built[0]._asdict().items()
        return {
            "arms": len(plan.arms),
            "compilations_by_level": by_level,
            "compilations_after": counts[_COMPILED] - ends[-1],
            "traces": counts[_TRACED],
            "programs": {name: program._cache_size() for name, program in programs},
        }

    return {"study": study}


_COMPILED = "/jax/core/compile/backend_compile_duration"
_TRACED = "/jax/core/compile/jaxpr_trace_duration"


def study(
    *,
    model: str,
    shape: list[int],
    examples: int,
    held_out: int,
    batch: int,
    steps: int,
    validate_every: int,
    levels: int,
    replicas: int,
) -> Programs:
    """`study`: where the time of a pruning study of three arms goes, by program.

    Each compiled program is timed until its results are there; compiling is timed apart.

    Args:
      model: a name of `models.make`.
      shape: of one image.
      examples: in the training set.
      held_out: in the validation set; the test set has twice as many.
      batch: examples per step.
      steps: of a training run.
      validate_every: steps between validations.
      levels: number of prunings.
      replicas: number of replicas.
    """
    task = _task(model, shape, examples, batch, validation=held_out, test=2 * held_out)
    plan = imp.Plan(steps=steps, validate_every=validate_every)

    def run() -> dict[str, Any]:
        seconds: dict[str, float] = defaultdict(float)
        timed = partial(_timed_parallel, original, seconds)
        # Wherever it was imported by name.
        users = [
            module
            for name, module in sys.modules.items()
            if name.startswith("lottery_jax")
            and getattr(module, "parallel", None) is original
        ]
        events: dict[str, float] = defaultdict(float)

        def listen(event: str, duration_secs: float, **_: Any) -> None:
            events[event] += duration_secs

        jax.monitoring.register_event_duration_secs_listener(listen)
        begin = time.perf_counter()
        with ExitStack() as stack:
            for module in users:
                stack.enter_context(mock.patch.object(module, "parallel", timed))
            imp.run(
                task,
                optax.adam(1.2e-3),
                plan,
                levels=levels,
                replicas=range(replicas),
            )
        wall = time.perf_counter() - begin
        # What is not timed, eager calls, compiles too; tracing it counts as the rest.
        eager = events[_COMPILED] - seconds.pop("backend")
        compiling = seconds.pop("compile") + eager
        training_ = seconds["train"] + seconds["validate"]
        return {
            "wall_seconds": wall,
            "compile_seconds": compiling,
            "eager_compile_seconds": eager,
            "program_seconds": dict(seconds),
            "other_seconds": wall - compiling - sum(seconds.values()),
            "share_of_wall": training_ / wall,
            "share_after_compiling": training_ / (wall - compiling),
        }

    original = engine.replicas.parallel
    return {"study": run}


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
    task = _task(model, shape, 100, 100, test=test)
    execution = Execution(jax.device_count(), 1)
    networks, which, weights = _points(task, pairs, alphas)
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
    products, _ = _forward_products(ruler, ruler_batch, steps)
    return {
        "paths": run,
        "ruler": _on_each_device((products, steps * ruler_batch)),
    }


def paths_memory(
    *, model: str, shape: list[int], test: int, pairs: int, alphas: list[int]
) -> Programs:
    """`memory`: temporary and output bytes of the compiled paths, by number of alphas."""
    task = _task(model, shape, 100, 100, test=test)
    networks, _, _ = _points(task, pairs, 2)
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
    task, tx = _task(model, shape, examples, batch), optax.adam(1.2e-3)
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
    args = _arguments(task, tx, execution, number, 1.0, steps)
    plain = _compiled(task, tx, execution, steps)
    return {"branches": run, "plain": _program(plain, args, number * steps)}


# --- what they are made of ------------------------------------------------------------


def _task(
    model: str,
    shape: Sequence[int],
    examples: int,
    batch: int,
    *,
    validation: int = 0,
    test: int = 0,
) -> Task:
    """Classification of noise: uint8 images, or float32 vectors."""
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
    return tasks.classification(dataset, models.make(model, 10), batch_size=batch)


def _points(
    task: Task, pairs: int, alphas: int
) -> tuple[Network, np.ndarray, np.ndarray]:
    """A stack of networks, and the points of the paths between successive ones."""
    generator = np.random.default_rng(3)
    params, model_state, _ = jax.tree_util.tree_map_with_path(
        partial(_draw, generator, pairs + 1),
        jax.eval_shape(task.init, jax.random.key(0)),
    )
    ends = np.stack([np.arange(pairs), np.arange(pairs) + 1], axis=1)
    at = np.linspace(0, 1, alphas)
    weights = np.tile(np.stack([1 - at, at], axis=1), (pairs, 1))
    return Network(params, model_state), np.repeat(ends, alphas, axis=0), weights


def _arguments(
    task: Task,
    tx: optax.GradientTransformation,
    execution: Execution,
    number: int,
    density: float,
    steps: int,
) -> tuple[Any, ...]:
    """What a program of `_compiled` is called with: data, states, keys, orders, bounds."""
    place = partial(replicas.place, execution=execution)
    generator = np.random.default_rng(2)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    params, model_state, stream = jax.tree_util.tree_map_with_path(
        partial(_draw, generator, number), shapes
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
    orders = place(_orders(task, number, steps))
    data = jax.device_put(task.data, replicas.shared(execution))
    return data, states, keys, orders, np.int32(0), np.int32(steps)


def _draw(
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


def _orders(task: Task, number: int, steps: int) -> np.ndarray:
    """What `training.orders` draws for each replica, drawn on the host."""
    epochs = training.epochs_of(task, steps)
    one = jax.eval_shape(task.order, jax.random.key(0), jnp.int32(0))
    generator = np.random.default_rng(1)
    orders = np.full((number, epochs, one.size), -1, np.int32)
    examples = len(task.data["train"]["label"])
    for replica, epoch in np.ndindex(number, epochs):
        orders[replica, epoch, :examples] = generator.permutation(examples)
    return orders.reshape(number, epochs, *one.shape)


def _compiled(
    task: Task,
    tx: optax.GradientTransformation,
    execution: Execution,
    capacity: int,
    train: Train = training.train,
) -> Any:
    """A segment of training of all replicas, one at a time on each device."""
    functions = task.functions

    def segment(
        data: PyTree, state: TrainState, key: Key, order: Array, a: Array, b: Array
    ) -> tuple[TrainState, Metrics]:
        bound = functions._replace(data=data)
        return train(bound, tx, state, key, order, a, b, capacity=capacity)

    return replicas.parallel(segment, (None, 0, 0, 0, None, None), execution)


def _program(run: Callable[..., Any], args: tuple[Any, ...], units: int) -> Program:
    def program() -> int:
        jax.block_until_ready(run(*args))
        return units

    return program


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


def _timed_parallel(
    parallel: Callable[..., Any],
    seconds: dict[str, float],
    function: Callable[..., Any],
    in_axes: Sequence[int | None],
    execution: Execution,
) -> Callable[..., Any]:
    """`replicas.parallel` that adds the time of its calls to `seconds`."""
    run = parallel(function, in_axes, execution)
    name = getattr(getattr(function, "func", function), "__name__", "other").strip(
        "_<>"
    )
    executables: dict[Any, Any] = {}

    def timed(*args: Any) -> Any:
        begin = time.perf_counter()
        leaves, structure = jax.tree.flatten(args)
        layout = [(x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves]
        key = (structure, tuple(layout))
        if key not in executables:
            lowered = run.lower(*args)
            middle = time.perf_counter()
            executables[key] = lowered.compile()
            seconds["backend"] += time.perf_counter() - middle
        compiled = time.perf_counter()
        out = jax.block_until_ready(executables[key](*args))
        seconds["compile"] += compiled - begin
        seconds[name] += time.perf_counter() - compiled
        return out

    return timed


# --- rulers ---------------------------------------------------------------------------


def _step_products(
    sizes: Sequence[int], batch: int, steps: int
) -> tuple[Callable[[Key], PyTree], int]:
    """The matrix products of one step at their own shapes, over and over."""

    def run(key: Key) -> PyTree:
        keys = jax.random.split(key, len(sizes))
        weights = [
            jax.random.normal(k, shape) / shape[0] ** 0.5
            for k, shape in zip(keys[1:], zip(sizes, sizes[1:]))
        ]

        def step(_: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            x, weights, _ = carry
            inputs = [x]
            for weight in weights:
                inputs.append(inputs[-1] @ weight)
            g = inputs.pop()
            gradients = []
            for i in reversed(range(len(weights))):
                gradients.append(inputs[i].T @ g)
                g = g @ weights[i].T if i else g
            gradients.reverse()
            # One number of the last product goes into all operands of the next step: so
            # nothing is hoisted out of the loop or left out, and nothing is copied.
            last = gradients[0][0, 0]
            mixed = [_set_first(weight, last) for weight in weights]
            return _set_first(x, last), mixed, gradients

        x = jax.random.normal(keys[0], (batch, sizes[0]))
        zeros = [jnp.zeros_like(w) for w in weights]
        return lax.fori_loop(0, steps, step, (x, weights, zeros))

    return run, steps


def _forward_products(
    sizes: Sequence[int], batch: int, steps: int
) -> tuple[Callable[[Key], PyTree], int]:
    """The matrix products of one forward pass at their own shapes, over and over."""

    def run(key: Key) -> PyTree:
        keys = jax.random.split(key, len(sizes))
        weights = [
            jax.random.normal(k, shape) / shape[0] ** 0.5
            for k, shape in zip(keys[1:], zip(sizes, sizes[1:]))
        ]

        def step(_: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            x, weights = carry
            y = x
            for weight in weights:
                y = y @ weight
            # As in `_step_products`: nothing can be hoisted, left out or fused away.
            return _set_first(x, y[0, 0]), [_set_first(w, y[0, 0]) for w in weights]

        x = jax.random.normal(keys[0], (batch, sizes[0]))
        return lax.fori_loop(0, steps, step, (x, weights))

    return run, steps


def _square_products(side: int, steps: int) -> tuple[Callable[[Key], PyTree], int]:
    """Products of two square matrices; units are floating-point operations."""

    def run(key: Key) -> PyTree:
        a, b = jax.random.normal(key, (2, side, side))

        def step(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            a, _ = carry
            product = a @ b
            return _set_first(a, product[0, 0]), product

        return lax.fori_loop(0, steps, step, (a, jnp.zeros_like(a)))

    return run, 2 * side**3 * steps


def _set_first(matrix: Array, number: Array) -> Array:
    return matrix.at[0, 0].set(jnp.tanh(number))


def _on_each_device(work: tuple[Callable[[Key], PyTree], int]) -> Program:
    """The same work on every device at once."""
    function, units = work
    number = jax.device_count()
    execution = Execution(number, 1)
    keys = replicas.place(jax.random.split(jax.random.key(0), number), execution)
    run = replicas.parallel(function, (0,), execution)
    return _program(run, (keys,), number * units)
