"""What a ticket costs in use: its forward pass and its bytes in three forms."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.worker import Program, Programs
from lottery_jax import compact, masks, models, prune, scores, tasks, training
from lottery_jax.data import Dataset
from lottery_jax.types import Array, Network, PyTree, Task, TrainState

CLASSES = 10
PATTERNS = 3
CELL = 4  # pixels; the patterns are constant over squares of this side


def compaction(
    *,
    model: str,
    side: int,
    examples: int,
    batch: int,
    steps: int,
    fraction: float,
    levels: list[int],
    batches: list[int],
    seconds: float,
) -> Programs:
    """Finds tickets by iterative magnitude pruning, and applies them.

    Programs: `FORM, density D, batch B` with FORM one of "compacted", "BCOO", and `dense,
    batch B`, in images; `facts`, which returns sizes and errors by level.

    Args:
      model: a name of `models.make`, a dense network.
      side: of an image in pixels, a multiple of 4.
      examples: in the training set.
      batch: examples per training step.
      steps: of training at each level.
      fraction: share of the surviving weights removed at each level.
      levels: those whose tickets are taken, ascending.
      batches: images per call.
      seconds: that the calls of one program should take, about.
    """
    task = patterns(model, side, examples, batch)
    network = models.make(model, CLASSES)
    found = tickets(task, steps, fraction, levels)

    @jax.jit
    def dense(params: PyTree, x: Array) -> Array:
        return network.apply({"params": params}, x)

    sparse = jax.jit(compact.apply_bcoo)
    images = jax.random.normal(jax.random.key(2), (max(batches), side, side, 1))
    facts: dict[str, Any] = {
        "dense_error": found.dense_error,
        **{name: {} for name in ("density", "error", "removed", "bytes", "units")},
    }
    programs: dict[str, Program] = {"facts": lambda: facts}
    calls: dict[str, tuple[Callable[[PyTree, Array], Array], PyTree]] = {}
    for level, (state, error) in found.states.items():
        density = f"{float(masks.density(state.mask)):.3g}"
        small = compact.shrink(network, state)
        sizes = compact.sizes(network, state)
        facts["density"][level] = density
        facts["error"][level] = error
        facts["removed"][level] = compact.saving(state, small).share
        facts["units"][level] = {g: len(units) for g, units in small.kept.items()}
        facts["bytes"][level] = {
            "dense": sizes.dense,
            "compacted": sizes.compacted,
            "BCOO": sizes.bcoo,
            "bits and values": sizes.packed,
        }
        # Zeros cost what other numbers cost: one dense side stands for all levels.
        calls.setdefault("dense", (dense, state.params))
        calls[f"compacted, density {density}"] = dense, small.params
        calls[f"BCOO, density {density}"] = sparse, compact.to_bcoo(network, small)
    for name, (function, params) in calls.items():
        for size in batches:
            programs[f"{name}, batch {size}"] = _repeated(
                function, (params, images[:size]), size, seconds
            )
    return programs


def _repeated(
    function: Callable[..., Array], args: tuple, images: int, seconds: float
) -> Program:
    """As many calls, each waited for, as fit into the time; units are images."""

    def call() -> float:
        begin = time.perf_counter()
        function(*args).block_until_ready()
        return time.perf_counter() - begin

    call()  # compiles
    number = max(1, min(20_000, int(seconds / min(call() for _ in range(3)))))

    def program() -> int:
        for _ in range(number):
            function(*args).block_until_ready()
        return number * images

    return program


# --- the tickets ----------------------------------------------------------------------


def patterns(model: str, side: int, examples: int, batch: int) -> Task:
    """Classification of noisy patterns: what pruning finds here is not noise alone.

    Each class has three patterns of squares of random brightness; an image is one of
    them at a random contrast, with noise. As in scanned digits a frame is always empty, so
    that the weights of some pixels are of no use.
    """
    generator = np.random.default_rng(0)
    cells = side // CELL
    bright = generator.standard_normal((CLASSES, PATTERNS, cells, cells))
    means = bright.repeat(CELL, axis=2).repeat(CELL, axis=3)
    frame = side // 8
    inside = np.zeros((side, side))
    inside[frame:-frame, frame:-frame] = 1

    def split(number: int) -> dict[str, np.ndarray]:
        label = generator.integers(0, CLASSES, number, np.int32)
        which = generator.integers(0, PATTERNS, number)
        contrast = generator.uniform(0.2, 1, (number, 1, 1))
        noise = generator.standard_normal((number, side, side))
        image = (contrast * means[label, which] + 1.5 * noise) * inside
        image = np.clip(64 * image, -127, 127) * inside + 128
        return {"image": image.astype(np.uint8)[..., None], "label": label}

    arrays = {name: split(examples) for name in ("train", "test")}
    dataset = Dataset(
        arrays, CLASSES, (side, side, 1), (0.5,), (0.25,), "noisy patterns"
    )
    return tasks.classification(dataset, models.make(model, CLASSES), batch_size=batch)


class Tickets(NamedTuple):
    """What iterative magnitude pruning has found.

    Attributes:
      states: by level (as text), the trained network with its mask and its test error.
      dense_error: test error of the trained dense network.
    """

    states: dict[str, tuple[TrainState, float]]
    dense_error: float


def tickets(task: Task, steps: int, fraction: float, levels: list[int]) -> Tickets:
    """Iterative magnitude pruning, ranked over all layers, rewound to the start."""
    tx = optax.adam(1.2e-3)
    key = jax.random.key(1)
    params, model_state, stream = jax.jit(task.init)(jax.random.key(0))
    functions = task.functions
    order = training.orders(task, key, training.epochs_of(task, steps))

    @jax.jit
    def trained(data: PyTree, state: TrainState) -> tuple[TrainState, Array]:
        bound = functions._replace(data=data)
        state, _ = training.train(
            bound, tx, state, key, order, 0, jnp.int32(steps), capacity=steps
        )
        metrics = task.evaluate(state.params, state.model_state, data, key, "test")
        return state, metrics["error"]

    cut = jax.jit(
        lambda state: prune.global_topk(
            scores.magnitude(state.params), state.mask, fraction=fraction
        )
    )
    mask, states, dense_error = masks.ones_like(params), {}, 1.0
    for level in range(max(levels) + 1):
        start = training.start(tx, Network(params, model_state), stream, mask)
        state, error = trained(task.data, start)
        if level == 0:
            dense_error = float(error)
        if level in levels:
            states[str(level)] = state, float(error)
        mask = cut(state)
    return Tickets(states, dense_error)
