"""What is timed in JAX: the library's programs, loops without them, and rulers.

Each setup takes `Sizes` and returns programs by name. Data are noise, but for studies whose
accuracy is a result; weights are drawn on the host, because compiling the law of a residual
network takes longer than a run of it here.
"""

import contextlib
import pathlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial, wraps
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from scipy import stats

import lottery_jax as lj
from benchmarks import encoders, profile
from benchmarks.rows import (
    GAMES,
    GROWTH,
    HORIZON,
    MORE,
    OPERATIONS,
    STEP,
    TRAINED,
    Sizes,
)
from benchmarks.run import Compiling, Programs, Spread, spread
from lottery_jax import (
    connectivity,
    convolution,
    dynamic,
    environments,
    granularity,
    imp,
    masks,
    permutations,
    prune,
    scores,
    selection,
    sparse,
    supermask,
    training,
    transfer,
    transforms,
    trees,
)
from lottery_jax.connectivity import branches as branches_
from lottery_jax.data import Dataset
from lottery_jax.data.text import Texts, Vocabulary
from lottery_jax.dynamic.rules import act
from lottery_jax.execution import Execution, Progress, Where
from lottery_jax.models import Bert, BertShape
from lottery_jax.types import Network, Task

# --- what sides are made of -----------------------------------------------------------

METHODS = {
    "bernoulli": supermask.bernoulli(),
    "edge-popup": supermask.edge_popup(density=0.5),
}
"""What trains masks instead of weights."""

_LATE = 1_000_000
"""A step that nothing here reaches: between two updates of a mask."""


def _often(sizes: Sizes) -> int:
    """A sixth of the steps."""
    return max(1, sizes.steps // 6)


RULES: dict[str, Callable[[Sizes], dynamic.MaskUpdate]] = {
    "static": lambda s: dynamic.static_sparse(s.density),
    "gradual": lambda s: dynamic.gradual_magnitude(s.density, _LATE, 2 * _LATE, _LATE),
    "SET": lambda s: dynamic.sparse_evolutionary(s.density, 2 * _LATE, _LATE),
    "RigL": lambda s: dynamic.rigl(s.density, 2 * _LATE, _LATE),
    "straight-through": lambda s: dynamic.periodic_magnitude(
        s.density, _LATE, 2 * _LATE, _LATE
    ),
    "gradual, every 100": lambda s: dynamic.gradual_magnitude(
        s.density, 0, _often(s) * ((s.steps - 1) // _often(s)), _often(s)
    ),
    "RigL, every 100": lambda s: dynamic.rigl(s.density, s.steps - 1, _often(s)),
}
"""What prunes during training."""


def make_task(sizes: Sizes) -> Task:
    """A task on noise: uint8 images or float32 vectors; an encoder's, or a policy's."""
    if sizes.head == "policy":
        return _of_games(sizes)
    if sizes.head not in ("", "projection"):
        return _of_texts(sizes)
    dataset = make_dataset(sizes)
    if sizes.head:
        model = make_contrasted(sizes)
        return lj.tasks.contrastive(dataset, model, batch_size=sizes.batch)
    task = classification(dataset, sizes)
    return _under_attack(task, dataset, sizes.attack) if sizes.attack else task


def make_contrasted(sizes: Sizes) -> nn.Module:
    """A network with a projection, for contrastive pre-training."""
    return lj.models.make(sizes.model, 64, head="projection", hidden=128)


def make_dataset(sizes: Sizes) -> Dataset:
    """Noise: uint8 images, or float32 vectors."""
    generator = np.random.default_rng(0)
    image = len(sizes.shape) == 3

    def split(number: int) -> dict[str, np.ndarray]:
        size = (number, *sizes.shape)
        if image:
            x = generator.integers(0, 256, size, np.uint8)
        else:
            x = generator.standard_normal(size, np.float32)
        return {"image": x, "label": generator.integers(0, 10, number, np.int32)}

    numbers = {"train": sizes.examples, "validation": sizes.held_out}
    numbers["test"] = sizes.test
    arrays = {name: split(number) for name, number in numbers.items() if number}
    channels = sizes.shape[-1] if image else 1
    mean, std = ((0.5,) * channels, (0.3,) * channels) if image else ((0.0,), (1.0,))
    return Dataset(arrays, 10, sizes.shape, mean, std, "noise")


def _under_attack(task: Task, dataset: Dataset, steps: int) -> Task:
    """The task with an attack of so many steps in its loss."""
    radius = 8 / 255
    attack = lj.tasks.Attack.fgsm(radius)
    if steps > 1:
        attack = lj.tasks.Attack.pgd(radius, steps)
    return lj.tasks.adversarial(task, dataset, attack)


def _of_texts(sizes: Sizes) -> Task:
    """Masked language modelling, or classification of sentences."""
    words = Vocabulary(sizes.vocabulary, 0, 1, 2, 3, encoders.MASK)
    model, arrays = make_encoder(sizes), encoders.draw_arrays(sizes)
    if sizes.head == "masked_lm":
        texts = Texts({"train": {"ids": arrays["ids"]}}, words, "noise")
        rate = encoders.RATE
        return lj.tasks.masked_lm(texts, model, batch_size=sizes.batch, rate=rate)
    texts = Texts({"train": arrays}, words, "noise", encoders.CLASSES)
    return lj.tasks.sentences(texts, model, batch_size=sizes.batch)


def _of_games(sizes: Sizes) -> Task:
    """An actor-critic."""
    game = environments.make(sizes.data)
    model = lj.models.policy.make(sizes.model, game.actions)
    return lj.tasks.actor_critic(game, model, games=GAMES, horizon=HORIZON)


def make_encoder(sizes: Sizes) -> Bert:
    """An encoder with its head, dropout rates as published."""
    layers, width, heads, inner = encoders.sizes_of(sizes.model)
    length = max(512, *sizes.shape)
    shape = BertShape(sizes.vocabulary, width, layers, heads, inner, length)
    return Bert(shape, sizes.head, encoders.CLASSES)  # type: ignore[arg-type]


def classification(dataset: Dataset, sizes: Sizes) -> Task:
    """The task of a data set."""
    augment = ("flip", "crop") if sizes.augment else ()
    model = lj.models.make(sizes.model, dataset.num_classes)
    task = lj.tasks.classification(
        dataset, model, batch_size=sizes.batch, augment=augment
    )
    return supermask.task(task, METHODS[sizes.method]) if sizes.method else task


def make_tx(sizes: Sizes) -> optax.GradientTransformation:
    """The optimizer."""
    if sizes.optimizer == "sgd":
        return optax.sgd(sizes.learning_rate, 0.9)
    if sizes.optimizer == "adamw":
        return optax.adamw(sizes.learning_rate, weight_decay=0.01)
    if sizes.optimizer == "rmsprop":
        return optax.rmsprop(sizes.learning_rate, 0.99, eps_in_sqrt=False)
    return optax.adam(sizes.learning_rate)


def make_execution(sizes: Sizes) -> Execution:
    """The devices and the settings of the sizes."""
    return Execution(
        devices=sizes.devices or jax.device_count(),
        chunk=sizes.chunk,
        convolution=sizes.convolution,
        precision=sizes.precision,
        activations=sizes.activations,
    )


def draw(generator: np.random.Generator, number: int, shapes: Any) -> Any:
    """Weights and statistics of a network, `number` times: equal ones cost as much."""

    def leaf(path: tuple, x: Any) -> np.ndarray:
        if x.ndim > 1:
            one = generator.standard_normal(x.shape, np.float32)
            one *= np.float32((2 / np.prod(x.shape[:-1])) ** 0.5)
        else:
            ones = jax.tree_util.keystr(path, simple=True).endswith(("scale", "var"))
            one = np.full(x.shape, float(ones), np.float32)
        return np.broadcast_to(one, (number, *x.shape))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def make_arguments(task: Task, sizes: Sizes) -> tuple[Any, ...]:
    """What a program of `compile_training` is called with, all placed.

    Returns:
      Data, states, keys, the first step and the last.
    """
    execution, number = make_execution(sizes), sizes.replicas
    generator = np.random.default_rng(2)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    params, model_state = draw(generator, number, shapes[:2])
    stream = jax.tree.map(lambda x: np.zeros((number, *x.shape), x.dtype), shapes[2])
    method = METHODS[sizes.method] if sizes.method else None
    if isinstance(method, supermask.EdgePopup):  # how many each layer keeps is state
        keep = np.array(method.counts(shapes[1].weights), np.int32)
        keep = np.broadcast_to(keep, (number, *keep.shape))
        model_state = model_state._replace(keep=keep)

    def draw_mask(p: Any, prunable: bool) -> np.ndarray:
        one = generator.random(p.shape[1:]) < (sizes.density if prunable else 1)
        return np.broadcast_to(one, p.shape)

    mask = jax.tree.map(draw_mask, params, masks.of_task(task))
    tx = make_tx(sizes)
    start = execution.parallel(partial(training.start, tx), (0, 0, 0))
    own = (Network(params, model_state), stream, mask)
    states = start(*map(execution.place, own))
    keys = jax.random.split(jax.random.key(0), number)
    return (
        execution.share(task.data),
        states,
        execution.place(keys),
        np.int32(0),
        np.int32(sizes.steps),
    )


def compile_training(
    task: Task, sizes: Sizes, train: Callable[..., Any] = training.train_steps
) -> Any:
    """A segment of training of all replicas; `train` has the arguments of the library's."""
    functions, tx = task.functions, make_tx(sizes)

    def segment(data: Any, state: Any, key: Any, a: Any, b: Any) -> Any:
        bound = functions._replace(data=data)
        return train(bound, tx, state, key, a, b, capacity=sizes.steps)

    return make_execution(sizes).parallel(segment, (None, 0, 0, None, None))


@lru_cache(maxsize=2)
def _compiled(sizes: Sizes) -> tuple[Task, Any]:
    task = make_task(sizes)
    return task, compile_training(task, sizes)


def set_up(sizes: Sizes) -> tuple[Task, Any, tuple[Any, ...]]:
    """Task, program and arguments: one program serves all densities."""
    task, run = _compiled(sizes._replace(density=1.0))
    return task, run, make_arguments(task, sizes)


def as_program(run: Callable[..., Any], args: Sequence[Any], units: int) -> Programs:
    """The program `run`: calls a function until its results are there."""

    def program() -> int:
        jax.block_until_ready(run(*args))
        return units

    return {"run": program}


def facts(find: Callable[[Sizes], dict[str, Any]]) -> Callable[[Sizes], Programs]:
    """A setup whose one program finds facts."""
    return wraps(find)(lambda sizes: {"run": partial(find, sizes)})


def table(header: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """A fact that is a table; the names of its columns are separated by bars."""
    return {"header": header.split(" | "), "rows": rows}


# --- training -------------------------------------------------------------------------


def train(sizes: Sizes) -> Programs:
    """The library's compiled loop, in replica-steps."""
    _, run, args = set_up(sizes)
    return as_program(run, args, sizes.replicas * sizes.steps)


def _loop(
    task: Task,
    tx: optax.GradientTransformation,
    state: Any,
    key: Any,
    start: Any,
    stop: Any,
    *,
    capacity: int,
) -> Any:
    """A segment of training, written by someone who knows no masks."""

    def step(i: Any, carry: Any) -> Any:
        state, kept = carry
        gradients, state, metrics = training.step_gradient(task, state, key, i)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        kept = {k: x.at[i - start].set(metrics[k]) for k, x in kept.items()}
        return state._replace(params=params, opt_state=opt_state), kept

    empty = jnp.full((capacity,), jnp.nan, jnp.float32)
    kept = {"loss": empty, "error": empty}
    return lax.fori_loop(start, stop, step, (state, kept))


def unmasked(sizes: Sizes) -> Programs:
    """The library's loop without masks."""
    task = make_task(sizes)
    data, state, *rest = make_arguments(task, sizes)
    args = (data, state._replace(mask=()), *rest)
    run = compile_training(task, sizes, _loop)
    return as_program(run, args, sizes.replicas * sizes.steps)


def own_loop(sizes: Sizes) -> Programs:
    """The same loop; where the sizes name a rule, its optimizer is `dynamic.masked`."""
    task, execution = make_task(sizes), make_execution(sizes)

    def pruning_too(key: Any) -> optax.GradientTransformation:
        tx = make_tx(sizes)
        if not sizes.rule:
            return tx
        if sizes.rule == "straight-through":
            tx = transforms.straight_through(tx)
        return dynamic.masked(tx, RULES[sizes.rule](sizes), key=key)

    def begin(state: Any, key: Any) -> Any:
        opt_state, params = pruning_too(key).init(state.params), state.params
        if sizes.rule:
            params = masks.apply(opt_state.mask, params)
        return state._replace(params=params, opt_state=opt_state, mask=())

    def loop(task: Task, tx: Any, state: Any, key: Any, *rest: Any, **more: Any) -> Any:
        return _loop(task, pruning_too(key), state, key, *rest, **more)

    data, state, keys, *steps = make_arguments(task, sizes._replace(density=1.0))
    state = execution.parallel(begin, (0, 0))(state, keys)
    run = compile_training(task, sizes, loop)
    return as_program(run, (data, state, keys, *steps), sizes.replicas * sizes.steps)


@contextlib.contextmanager
def stock_convolutions() -> Iterator[None]:
    """Traces what is within with `lax.conv_general_dilated` as it comes."""

    def conv(x: Any, kernel: Any, *, strides: Any, padding: Any, **_: Any) -> Any:
        axes = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=axes
        )

    with mock.patch.object(convolution, "conv", conv):
        yield


def stock(sizes: Sizes) -> Programs:
    """The same network and step, stock convolutions, one jitted step per Python call."""
    task = make_task(sizes)
    data, states, keys, *_ = make_arguments(task, sizes)
    state, key = jax.tree.map(lambda x: x[0], (states, keys))
    optimizer, functions = transforms.masked(make_tx(sizes)), task.functions

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, data: Any, i: Any) -> Any:
        bound = functions._replace(data=data)
        gradients, state, metrics = training.step_gradient(bound, state, key, i)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, mask=state.mask
        )
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state), metrics

    with stock_convolutions():
        compiled = step.lower(state, data, np.int32(0)).compile()

    def run() -> int:
        nonlocal state
        for i in range(sizes.steps):
            state, _ = compiled(state, data, np.int32(i))
        jax.block_until_ready(state)
        return sizes.steps

    return {"run": run}


def _nine(sizes: Sizes) -> Callable[[Sequence[float]], None]:
    """Trains all replicas by the runner, at the rates given or at the one of the sizes."""
    task, where = make_task(sizes), Where(make_execution(sizes))
    keys = lj.keys.of_replicas(0, np.arange(sizes.replicas))
    tx: Any = optax.adam if sizes.rates else make_tx(sizes)
    rule = RULES[sizes.rule](sizes) if sizes.rule else None

    def hyper(rates: Sequence[float]) -> dict[str, Any]:
        return {"learning_rate": np.resize(rates, sizes.replicas)} if len(rates) else {}

    first = hyper(sizes.rates)
    runs = training.fresh(task, tx, keys.init, keys.noise, hyper=first, where=where)

    def run(rates: Sequence[float]) -> None:
        own = runs._replace(hyper=hyper(rates))
        done = training.train(
            task, tx, own, sizes.steps, every=sizes.every, rule=rule, where=where
        )
        jax.block_until_ready(done.rows)

    return run


def runner(sizes: Sizes) -> Programs:
    """`training.train` of all replicas, in replica-steps."""
    run = _nine(sizes)

    def program() -> int:
        run(sizes.rates)
        return sizes.replicas * sizes.steps

    return {"run": program}


@facts
def sweeping(sizes: Sizes) -> dict[str, Any]:
    """What a sweep compiles, and then the same one with other rates."""
    compiling, run = Compiling(), _nine(sizes)
    run(sizes.rates)
    first = compiling.count()
    run([2 * rate for rate in sizes.rates])
    return {
        "compilations of a sweep": first,
        "compilations for other rates": compiling.count() - first,
    }


@facts
def account(sizes: Sizes) -> dict[str, Any]:
    """Of one replica: operations of a step, its time, and where that goes."""

    task, run, args = set_up(sizes)
    compiled = run.lower(*args).compile()

    def program() -> None:
        jax.block_until_ready(compiled(*args))

    program()
    begin = time.perf_counter()
    program()
    step = 1e3 * (time.perf_counter() - begin) / sizes.steps
    with stock_convolutions():
        operations = profile.operations(task)
    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    weights = {tuple(leaf.shape) for leaf in jax.tree.leaves(shapes)}
    found: dict[str, Any] = {OPERATIONS: operations, STEP: step}
    try:
        shares = profile.shares(
            profile.trace(program), compiled.as_text(), weights, sizes.batch
        )
    except RuntimeError as error:  # an accelerator names its kernels otherwise
        return found | {"where the time of a step goes": str(error)}
    rows = [
        [kind, f"{100 * share:.1f}", f"{share * step:.3g}"]
        for kind, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    header = "operations of a step, 1 replica on 1 device | % of their time | ms"
    return found | {"where the time of a step goes": table(header, rows)}


@facts
def memory(sizes: Sizes) -> dict[str, Any]:
    """XLA's account of the training program by number of replicas."""

    few = jax.device_count()
    _, run, args = set_up(sizes._replace(replicas=few))
    data, *own, a, b = args
    rows, temporary = [], []
    for number in sorted({few, 2 * few, sizes.replicas}):

        def wide(x: Any, number: int = number) -> jax.ShapeDtypeStruct:
            shape = (number, *x.shape[1:])
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

        found = run.lower(data, *jax.tree.map(wide, own), a, b).compile()
        size = found.memory_analysis()
        temporary.append(size.temp_size_in_bytes)
        parts = (temporary[-1], size.argument_size_in_bytes)
        parts += (size.output_size_in_bytes,)
        rows.append([number, *(f"{1e-6 * part:.1f}" for part in parts)])
    header = "replicas | temporary MB | arguments MB | outputs MB"
    name = "XLA's account of the program on a device, by replicas"
    return {GROWTH: temporary[-1] / temporary[0], name: table(header, rows)}


@facts
def compiling(sizes: Sizes) -> dict[str, Any]:
    """Seconds to trace and to compile one training program."""

    _, run, args = set_up(sizes._replace(steps=10))
    begin = time.perf_counter()
    lowered = run.lower(*args)
    traced = time.perf_counter()
    lowered.compile()
    return {
        f"tracing and lowering {sizes.label}": traced - begin,
        f"compiling {sizes.label}": time.perf_counter() - traced,
    }


# --- rulers ---------------------------------------------------------------------------


def on_each_device(work: Callable[[Any], Any], units: int) -> Programs:
    """The same work on every device at once; it takes a key."""
    number = jax.device_count()
    execution = Execution(number, 1)
    keys = execution.place(jax.random.split(jax.random.key(0), number))
    return as_program(execution.parallel(work, (0,)), (keys,), number * units)


def _first(x: Any, number: Any) -> Any:
    """One number of a product goes into all operands of the next step.

    So nothing is hoisted out of the loop or left out, and nothing is copied.
    """
    return x.at[(0,) * x.ndim].set(jnp.tanh(number))


def _products(sizes: Sizes, steps: int, units: int, backward: bool) -> Programs:
    """The matrix products of a dense network at their own shapes, over and over."""
    widths = [int(np.prod(sizes.shape)), *map(int, sizes.model.split("-")[1:]), 10]

    def step(_: Any, carry: Any) -> Any:
        x, weights, _ = carry
        inputs = [x]
        for weight in weights:
            inputs.append(inputs[-1] @ weight)
        g, gradients = inputs.pop(), []
        for i in reversed(range(len(weights))) if backward else ():
            gradients.insert(0, inputs[i].T @ g)
            g = g @ weights[i].T if i else g
        last = (gradients or [g])[0][0, 0]
        return _first(x, last), [_first(w, last) for w in weights], gradients

    def work(key: Any) -> Any:
        first, *keys = jax.random.split(key, len(widths))
        weights = [
            jax.random.normal(k, shape) / shape[0] ** 0.5
            for k, shape in zip(keys, zip(widths, widths[1:]))
        ]
        x = jax.random.normal(first, (sizes.batch, widths[0]))
        zeros = [jnp.zeros_like(w) for w in weights] if backward else []
        return lax.fori_loop(0, steps, step, (x, weights, zeros))

    return on_each_device(work, units)


def ruler(sizes: Sizes) -> Programs:
    """The products of a step, in steps."""
    return _products(sizes, sizes.steps, sizes.steps, backward=True)


def forward(sizes: Sizes) -> Programs:
    """The products of a forward pass, as often as the paths need them, in images."""
    images = sizes.pairs * sizes.alphas * sizes.test
    steps = max(1, images // jax.device_count() // sizes.batch)
    return _products(sizes, steps, steps * sizes.batch, backward=False)


def peak(sizes: Sizes) -> Programs:
    """Square products on all devices at once, of the size that is fastest here."""
    kind = jnp.bfloat16 if sizes.precision == "bfloat16" else jnp.float32

    def of(side: int, operations: float) -> Programs:
        steps = max(1, round(operations / (2 * side**3)))

        def work(key: Any) -> Any:
            a, b = jax.random.normal(key, (2, side, side), kind)

            def step(_: Any, carry: Any) -> Any:
                a, _ = carry
                product = a @ b
                return _first(a, product[0, 0]), product

            return lax.fori_loop(0, steps, step, (a, jnp.zeros_like(a)))

        return on_each_device(work, 2 * side**3 * steps)

    def rate(side: int) -> float:
        run = of(side, sizes.operations)["run"]
        run()
        begin = time.perf_counter()
        return run() / (time.perf_counter() - begin)

    rates = {side: rate(side) for side in sizes.squares}
    best = max(rates, key=rates.__getitem__)
    # An accelerator does a few in no time, and their launch would count.
    return of(best, max(sizes.operations, sizes.seconds * rates[best]))


# --- connectivity ---------------------------------------------------------------------


def _on_test(alphas: int) -> connectivity.Measure:
    return connectivity.Measure(alphas=alphas, splits=("test",))


def _networks(task: Task, number: int) -> Network:
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    params, model_state, _ = draw(np.random.default_rng(3), number, shapes)
    return Network(params, model_state)


def paths(sizes: Sizes) -> Programs:
    """Paths between successive networks, all (pair, alpha) in one pass, in images."""
    task = make_task(sizes)
    networks = _networks(task, sizes.pairs + 1)
    pairs = [(i, i + 1) for i in range(sizes.pairs)]
    measure, where = _on_test(sizes.alphas), Where(make_execution(sizes))

    def run() -> int:
        connectivity.paths(task, networks, pairs, measure, where=where)
        return sizes.pairs * sizes.alphas * sizes.test

    return {"run": run}


@facts
def paths_memory(sizes: Sizes) -> dict[str, Any]:
    """How temporary memory grows with ten times the alphas, by XLA's account."""

    task = make_task(sizes)
    networks = _networks(task, sizes.pairs + 1)
    a, b = (jax.tree.map(lambda x, i=i: x[i:][: sizes.pairs], networks) for i in (0, 1))
    temporary = {}
    for number in (sizes.alphas, 10 * sizes.alphas):
        along = partial(connectivity.error_along_path, task, measure=_on_test(number))
        run = jax.jit(lambda a, b, f=along: lax.map(lambda ab: f(*ab), (a, b)))
        analysis = run.lower(a, b).compile().memory_analysis()
        temporary[str(number)] = analysis.temp_size_in_bytes
    few, many = temporary.values()
    return {
        MORE: (many - few) / max(few, 1),
        "temporary bytes, by alphas": temporary,
    }


def branches(sizes: Sizes) -> Programs:
    """Branches of shared trunks, from the starts to the networks on the host.

    Three inits, and as many branches of each from three rewind steps.
    """
    task, tx = make_task(sizes), make_tx(sizes)
    execution = make_execution(sizes)
    keys = jax.random.split(jax.random.key(0), (2, 3))
    at = (0, sizes.steps // 10, sizes.steps // 3)
    trunk = branches_.train_trunk(task, tx, *keys, at, every=sizes.steps)
    runs, where = branches_.of_trunk(trunk, keys[1], sizes.pairs), Where(execution)
    total = int((sizes.steps - runs.joins).sum())

    def run() -> int:
        stop = sizes.steps
        done = training.train(task, tx, runs, stop, every=stop, where=where)
        jax.block_until_ready(done.state)
        return total

    return {"run": run}


def permutation(sizes: Sizes) -> Programs:
    """A whole permutation, by itself and by sorting, in places."""
    number, key = sizes.examples, jax.random.key(0)
    places = jnp.arange(number, dtype=jnp.int32)
    keyed = jax.jit(lambda key: permutations.at(key, places, number))
    by_sort = jax.jit(lambda key: jax.random.permutation(key, number))
    return {
        name: as_program(one, (key,), number)["run"]
        for name, one in (("keyed", keyed), ("sorted", by_sort))
    }


def selecting(sizes: Sizes) -> Programs:
    """The mask of the higher half, by counts and by sorting, in values; and milliseconds."""
    number, half = sizes.examples, sizes.examples // 2
    values = jnp.asarray(np.random.default_rng(0).standard_normal(number, np.float32))
    ways = {
        "ours": lambda x: selection.keep_highest(x, half),
        "sorted": lambda x: x >= jnp.sort(x)[number - half],
        "lax.top_k": lambda x: x >= lax.top_k(x, half)[0][half - 1],
    }
    compiled = {name: jax.jit(one) for name, one in ways.items()}
    programs: Programs = {
        name: _repeated(one, (values,), number, sizes.seconds)
        for name, one in compiled.items()
    }

    def fact() -> dict[str, Any]:
        found = milliseconds(partial(compiled["ours"], values), sizes.seconds)
        return {f"selecting, {sizes.label}": found}

    return {**programs, "facts": fact}


def milliseconds(call: Callable[[], Any], seconds: float) -> Spread:
    """The time of a call that is compiled: of as many as fit, five at least."""
    jax.block_until_ready(call())
    taken: list[float] = []
    while len(taken) < 5 or (sum(taken) < 1e3 * seconds and len(taken) < 1000):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(1e3 * (time.perf_counter() - begin))
    return spread(taken)


@facts
def pruning(sizes: Sizes) -> dict[str, Any]:
    """Milliseconds of pruning a network, called from Python and compiled."""
    shapes = jax.eval_shape(make_task(sizes).init, jax.random.key(0))[0]
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(generator.standard_normal(p.shape, np.float32)), shapes
    )
    ranking = scores.magnitude(params)
    mask = prune.global_topk(ranking, masks.ones_like(params), fraction=0.2)
    found = {}
    for rule in (prune.global_topk, prune.layerwise_topk):
        cut = partial(rule, fraction=0.2)
        for how, call in (("", cut), (", compiled", jax.jit(cut))):
            name = f"{rule.__name__}, {sizes.label}{how}"
            found[name] = milliseconds(partial(call, ranking, mask), sizes.seconds)
    return found


@facts
def updating(sizes: Sizes) -> dict[str, Any]:
    """Updates of a mask, compiled: of a network, and each of eight."""
    shapes = jax.eval_shape(make_task(sizes).init, jax.random.key(0))[0]
    generator, tx = np.random.default_rng(0), make_tx(sizes)
    spared = [
        name
        for name, x in trees.by_path(shapes).items()
        if x.ndim > 1 and (x.shape[-2] % 4 or x.shape[-1] % 4)
    ]
    step, last = 100, partial(dynamic.one_shot_magnitude, step=100)
    groups = {"exclude": spared, "scope": "uniform"}
    rules = {
        "global": last(sizes.density),
        "uniform": last(sizes.density, scope="uniform"),
        "2 of 4": last(0.5, granularity=granularity.NofM(2, 4), exclude=spared),
        "blocks": last(sizes.density, granularity=granularity.Block((4, 4)), **groups),
        "channels": last(sizes.density, granularity=granularity.Channel(), **groups),
        "RigL": dynamic.rigl(sizes.density, 2 * step, step),
    }

    def taken(rule: dynamic.MaskUpdate, number: int) -> str:
        """By one network of so many."""

        def drawn(p: Any) -> Any:
            return jnp.asarray(
                generator.standard_normal((number, *p.shape), np.float32)
            )

        def begin(key: Any, params: Any) -> Any:
            mask = masks.ones_like(params)
            if rule.start is not None:
                mask = rule.start(key, params, mask)
            params = masks.apply(mask, params)
            return params, mask, tx.init(params)

        def change(key: Any, params: Any, gradients: Any, *own: Any) -> Any:
            return act(rule.update, tx, key, jnp.int32(step), params, gradients, *own)

        params, gradients = (jax.tree.map(drawn, shapes) for _ in range(2))
        keys = jax.random.split(lj.keys.of_seed(0), number)
        params, *own = jax.jit(jax.vmap(begin))(keys, params)
        arguments = keys, params, gradients, *own
        if number == 1:
            arguments, call = trees.rows(arguments, 0), change
        else:
            call = jax.vmap(change)
        found = milliseconds(partial(jax.jit(call), *arguments), sizes.seconds)
        median, low, high = (one / number for one in found)
        return f"{median:.3g} ({low:.3g} to {high:.3g})"

    rows = [(name, taken(rule, 1), taken(rule, 8)) for name, rule in rules.items()]
    what = f"milliseconds of an update of the mask, {sizes.label}"
    return {what: table("update | one network | each of 8", rows)}


# --- studies --------------------------------------------------------------------------


def _plan(sizes: Sizes, **options: Any) -> Any:
    chain = imp.Chain(densities=imp.Geometric(sizes.fraction))
    return imp.Plan(sizes.steps, chains=(chain,), validate_every=sizes.every, **options)


def _run(sizes: Sizes, task: Task, plan: Any, **where: Any) -> Any:
    """The study of the sizes."""
    tx, number = make_tx(sizes), max(sizes.levels)
    at, replicas = Where(**where), range(sizes.replicas)
    return imp.run(task, tx, plan, levels=number, replicas=replicas, where=at)


@facts
def study(sizes: Sizes) -> dict[str, Any]:
    """Seconds of two equal studies in one process, and what the second compiles."""

    def once() -> float:
        task = make_task(sizes)
        begin = time.perf_counter()
        _run(sizes, task, _plan(sizes))
        return time.perf_counter() - begin

    compiling = Compiling()
    first, programs = once(), compiling.count()
    return {
        "first call": first,
        "second call": once(),
        "compilations in the first call": programs,
        "compilations in the second call": compiling.count() - programs,
    }


@facts
def levels(sizes: Sizes) -> dict[str, Any]:
    """What the levels of a study in a folder cost, watched after each segment."""

    compiling, clock = Compiling(), time.perf_counter
    ends: dict[int, list[float]] = defaultdict(list)
    begin, number, plan = clock(), max(sizes.levels), _plan(sizes)

    def watch(progress: Progress) -> None:
        if progress.done > progress.start:
            ends[progress.level].append(clock())

    with tempfile.TemporaryDirectory() as folder:
        _run(sizes, make_task(sizes), plan, folder=folder, watch=watch)
    wall, compiled = clock() - begin, compiling.seconds()
    # The first segment of a level begins within its preparation: the others stand
    # for it, and their median keeps checkpoints out.
    segments = [
        [b - a - compiling.seconds(a, b) for a, b in zip(own, own[1:])]
        for own in (ends[level] for level in range(number + 1))
    ]
    typical = [statistics.median(own) for own in segments]
    trained = sum(m * (len(own) + 1) for m, own in zip(typical, segments))
    last = [ends[level][-1] for level in range(number + 1)]
    starts = [float("-inf"), *last]
    by_level = [compiling.count(a, b) for a, b in zip(starts, last)]
    rows = sizes.replicas * len(plan.arms)
    per_ms = sizes.every * rows / 1e3
    slower = spread([b / a for a, b in zip(segments[1], segments[-1])])
    return {
        "time of the last level against level 1": list(slower),
        f"{TRAINED} without compiling": trained / (wall - compiled),
        TRAINED: trained / wall,
        "wall time": wall,
        "tracing and compiling": compiled,
        "compilations from level 2 on": sum(by_level[2:]),
        "compilations in levels 0, 1, 2 ...": by_level,
        "compilations after the last level": compiling.count(last[-1]),
        "ms of a replica-step by level": [
            [level, *(x / per_ms for x in spread(own))]
            for level, own in enumerate(segments)
        ],
    }


@facts
def precision(sizes: Sizes) -> dict[str, Any]:
    """What rounding the operands of products does to the errors of a study."""
    return _rounding(sizes, "precision", ("float32", "tensorfloat32", "bfloat16"))


@facts
def activations(sizes: Sizes) -> dict[str, Any]:
    """What storing bfloat16 between layers does to them; its products are bfloat16's."""
    return _rounding(sizes, "activations", ("float32", "bfloat16"))


def _rounding(sizes: Sizes, field: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Errors under the values of a setting, against those of the first, in pairs."""
    label, plain = sizes.label or sizes.data, names[0]
    task = classification(lj.data.load(sizes.data), sizes)
    plan = _plan(sizes._replace(every=sizes.steps), arms=("ticket",))
    number = max(sizes.levels)
    errors, seconds, density = {}, {}, np.ones(number + 1)
    for own in names:
        begin = time.perf_counter()
        execution = make_execution(sizes._replace(**{field: own}))
        found = _run(sizes, task, plan, execution=execution)
        seconds[own] = time.perf_counter() - begin
        errors[own] = 100 * found.records["test_error"][1][0, 0]  # [replica, level]
        density = found.records["density"][1][0, 0].mean(axis=0)
    changes: dict[str, Any] = {f"seconds, {label}": seconds}
    for when, level in {"first": 0, **({"last": number} if number else {})}.items():
        name = f"test error, {label}, {when} level"
        changes[f"{name}, density"] = float(density[level])
        for own, error in errors.items():
            changes[f"{name}, {own}, %"] = float(error[:, level].mean())
            if own != plain:
                change = (error - errors[plain])[:, level]
                changes[f"{name}, {own}: change"] = list(interval(change))
    return changes


def interval(differences: np.ndarray) -> Spread:
    """The mean with its 95% t interval; without one for a single number."""
    mean, number = float(differences.mean()), len(differences)
    if number < 2:
        return Spread(mean, mean, mean)
    half = stats.t.ppf(0.975, number - 1) * differences.std(ddof=1) / number**0.5
    return Spread(mean, mean - float(half), mean + float(half))


def transferred(sizes: Sizes) -> Programs:
    """Tickets of as many chains as `pairs`, on another task, from the graft to results."""
    task, tx = make_task(sizes), make_tx(sizes)
    generator = np.random.default_rng(4)
    shapes = Network(*task.shapes[:2])

    def found() -> lj.tickets.Ticket:
        network = jax.tree.map(lambda x: x[0], draw(generator, 1, shapes))
        flags = masks.prunable(shapes.params)
        mask = jax.tree.map(
            lambda p, prunable: (
                generator.random(p.shape) < (sizes.density if prunable else 1)
            ),
            *(network.params, flags),
        )
        return lj.tickets.Ticket(mask, *network, {})

    source = [[found() for _ in range(sizes.replicas)] for _ in range(sizes.pairs)]
    plan = imp.Plan(
        sizes.steps,
        chains=tuple(imp.Chain(f"source {i}") for i in range(sizes.pairs)),
        arms=("ticket",),
        validate_every=sizes.every,
    )
    where = Where(make_execution(sizes))

    def run() -> int:
        there = transfer.grafted(source, task, replicas=sizes.replicas)
        own = {"level": 1, "replicas": sizes.replicas, "where": where}
        imp.retrain(task, tx, plan, there, **own)
        return sizes.pairs * sizes.replicas * sizes.steps

    return {"run": run}


def untransferred(sizes: Sizes) -> Programs:
    """As many dense networks of the same task, trained and validated alike."""
    task, tx = make_task(sizes), make_tx(sizes)
    number = sizes.pairs * sizes.replicas
    keys, where = lj.keys.of_replicas(0, range(number)), Where(make_execution(sizes))

    def run() -> int:
        runs = training.fresh(task, tx, keys.init, keys.noise, where=where)
        own = {"every": sizes.every, "validate": True, "where": where}
        done = training.train(task, tx, runs, sizes.steps, **own)
        jax.block_until_ready(done.state)
        return number * sizes.steps

    return {"run": run}


# --- tickets in use -------------------------------------------------------------------


def patterns(sizes: Sizes) -> Task:
    """Classification of noisy patterns: what pruning finds here is not noise alone.

    Each class has three patterns of squares of 4 pixels; an image is one of them at a
    random contrast, with noise. As in scanned digits a frame is always empty, so that the
    weights of some pixels are of no use.
    """
    generator, side = np.random.default_rng(0), sizes.shape[0]
    means = generator.standard_normal((10, 3, side // 4, side // 4))
    means = means.repeat(4, axis=2).repeat(4, axis=3)
    inside = np.pad(np.ones((side - 2 * (side // 8),) * 2), side // 8)

    def split(number: int) -> dict[str, np.ndarray]:
        label = generator.integers(0, 10, number, np.int32)
        contrast = generator.uniform(0.2, 1, (number, 1, 1))
        noise = 1.5 * generator.standard_normal((number, side, side))
        image = contrast * means[label, generator.integers(0, 3, number)] + noise
        image = np.clip(64 * image * inside, -127, 127) + 128
        return {"image": image.astype(np.uint8)[..., None], "label": label}

    arrays = {"train": split(sizes.examples), "test": split(sizes.test)}
    dataset = Dataset(arrays, 10, sizes.shape, (0.5,), (0.25,), "noisy patterns")
    return classification(dataset, sizes)


def compaction(sizes: Sizes) -> Programs:
    """Forward passes of tickets in three forms, in images; and facts about their sizes.

    Programs: `FORM LEVEL BATCH` with FORM one of "compacted" and "BCOO", `dense BATCH`,
    and `facts`.
    """
    task, network = patterns(sizes), lj.models.make(sizes.model, 10)
    with tempfile.TemporaryDirectory() as folder:
        found = _run(sizes, task, _plan(sizes, arms=("ticket",)), folder=folder)
        files = {
            level: next(pathlib.Path(folder).rglob(f"level{level:02d}-*.safetensors"))
            for level in sizes.levels
        }
        tickets = {level: lj.tickets.load(path) for level, path in files.items()}
    errors = found.records["test_error"][1][0, 0, 0]
    dense = jax.jit(lambda params, x: network.apply({"params": params}, x))
    product = jax.jit(sparse.apply_bcoo)
    # Zeros cost what other numbers cost: one dense side stands for all levels.
    forms = {"dense": (dense, tickets[sizes.levels[0]].params)}
    rows = []
    for level, ticket in tickets.items():
        small = lj.compact.shrink(network, ticket)
        forms[f"compacted {level}"] = dense, small.params
        forms[f"BCOO {level}"] = product, sparse.to_bcoo(network, small)
        size = lj.compact.sizes(network, ticket)
        removed = 100 * lj.compact.saving(ticket, small).share
        rows.append(
            [
                level,
                f"{float(masks.density(ticket.mask)):.3g}",
                f"{100 * errors[level]:.1f}",
                f"{removed:.1f}",
                *(f"{n:,}" for n in size),
                ", ".join(f"{group} {len(kept)}" for group, kept in small.kept.items()),
            ]
        )
    header = (
        "level | density | test error, % | % of kernel weights removed | dense, bytes"
    )
    header += " | compacted | BCOO | bits and values | units left"
    tickets_ = {"the tickets": table(header, rows)}
    programs: dict[str, Callable[[], Any]] = {"facts": lambda: tickets_}
    images = jax.random.normal(jax.random.key(2), (1024, *sizes.shape))
    for form, (function, params) in forms.items():
        for batch in (1, 128, 1024):
            args = (params, images[:batch])
            name = f"{form} {batch}"
            programs[name] = _repeated(function, args, batch, sizes.seconds)
    return programs


def _repeated(
    function: Callable[..., Any], args: tuple, units: int, seconds: float
) -> Callable[[], int]:
    """As many calls, each waited for, as fit into the time; counted when it is warm."""
    number = 0

    def call() -> float:
        begin = time.perf_counter()
        function(*args).block_until_ready()
        return time.perf_counter() - begin

    def program() -> int:
        nonlocal number
        if not number:
            call()  # compiles
            taken = call()
            if taken < seconds:
                taken = min(taken, call(), call())
            number = max(1, min(20_000, int(seconds / taken)))
        for _ in range(number):
            function(*args).block_until_ready()
        return number * units

    return program
