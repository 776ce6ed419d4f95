"""One run, one segment: a pure function over steps [start, stop) of any Task.

`train_steps` is a compiled loop whose bounds are traced, so one compilation serves segments of
every length, levels and arms with their own masks, and branches that start late. What is
not training (evaluation, snapshots, checkpoints, new masks) happens between segments:

    state = lj.training.start(tx, network, stream_state, mask)
    for a, b in lj.training.segments(0, 3000, every=100):
        state, metrics = train_steps(task, tx, state, key, a, b, capacity=100)

All randomness of a step is a function of the noise key and the step: any split into
segments gives the same bits. To carry many runs through time, see `training.runs`.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax

from lottery_jax import masks, streams, transforms
from lottery_jax.dynamic.rules import StartMask, UpdateMask, act
from lottery_jax.execution import DATA_AXIS
from lottery_jax.keys import noise_keys
from lottery_jax.optimizers.updates import loss_arguments, update_with
from lottery_jax.types import (
    Array,
    Key,
    Mask,
    Metrics,
    ModelState,
    Network,
    Params,
    PyTree,
    StreamState,
    Task,
    TrainState,
)


def start(
    tx: optax.GradientTransformation,
    network: Network,
    stream_state: StreamState,
    mask: Mask,
    step: Array | int = 0,
) -> TrainState:
    """A network about to be trained: masked, with a fresh optimizer.

    Args:
      tx: the optimizer.
      network: weights and model state.
      stream_state: of the noise.
      mask: which weights are trained; the others are set to 0.
      step: after how many updates the schedules and counters of `tx` stand.

    Raises:
      ValueError: the mask does not fit the weights, names the leaf; an optimizer that
        does not see the subnetwork alone (`transforms.check`), or, where step is known,
        that cannot begin at it (`transforms.check_reset`).
    """
    params = masks.apply(mask, network.params)
    transforms.check(tx, params)
    opt_state = transforms.at_schedule_step(tx, tx.init(params), params, step)
    return TrainState(params, network.model_state, stream_state, opt_state, mask)


def step_gradient(
    task: Task, state: TrainState, key: Key, step: Array
) -> tuple[Params, TrainState, Metrics]:
    """The dense gradient at one step's batch, the state after its forward pass, metrics.

    Args:
      task: the task.
      state: the network in training.
      key: the replica's noise key.
      step: int32 `[]`.
    """
    loss = _loss_at(task, state, key, step)
    (value, (model_state, stream_state, metrics)), gradients = jax.value_and_grad(
        loss, has_aux=True
    )(state.params)
    return (
        gradients,
        state._replace(model_state=model_state, stream_state=stream_state),
        {"loss": value} | metrics,
    )


def _loss_at(
    task: Task, state: TrainState, key: Key, step: Array
) -> Callable[[Params], tuple[Array, tuple[ModelState, StreamState, Metrics]]]:
    """The loss of one step's batch as a function of the weights alone."""
    streams.check_whole(
        *(task.data, "a loop of one's own"),
        "training.train reads it, or the task be given what streams.read returns",
        split="train",
    )
    keys = noise_keys(key)
    indices = task.order(keys.order, step)
    batch = _divided(task.batch(task.data, indices, keys.batch, step), indices.shape[0])
    loss_key = jax.random.fold_in(keys.loss, step)
    return lambda params: task.loss(
        params, state.model_state, state.stream_state, batch, loss_key
    )


def _divided(batch: PyTree, examples: int) -> PyTree:
    """Lays a batch over the devices that share it, where there are several.

    The compiler then divides all that follows from it, statistics of BatchNorm included,
    and adds up what is summed over examples: the step of one device, up to rounding.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape.get(DATA_AXIS, 1)
    if shards == 1:
        return batch
    if examples % shards:
        raise ValueError(
            f"data_parallel={shards}; it must divide the {examples} examples of a batch"
        )
    along = jax.sharding.PartitionSpec(DATA_AXIS)

    def lay(x: Array) -> Array:
        whole = x.ndim and x.shape[0] == examples
        return jax.lax.with_sharding_constraint(x, along) if whole else x

    return jax.tree.map(lay, batch)


def train_steps(
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    key: Key,
    start: Array | int,
    stop: Array | int,
    *,
    capacity: int,
    offset: Array | int = 0,
    active: Array | bool = True,
) -> tuple[TrainState, Metrics]:
    """Trains over the steps [start, stop): one segment, in one compiled loop.

    Args:
      task: the task.
      tx: the optimizer, unwrapped: masking is done here.
      state: the network in training; its mask stays as it is.
      key: the replica's noise key.
      start: first step, int32 `[]`, may be traced.
      stop: end, exclusive; may be traced. Shared by all replicas under `vmap`.
      capacity: static length of the metric buffers, at least `stop - start`.
      offset: added to every step's position in the noise; may differ by replica.
      active: False returns the state as it is, for replicas that have not joined.

    Returns:
      The state after the segment, and the metrics of each step: `loss` and what other
      scalars the loss reports, float32 `[capacity]`, nan from index `stop - start` on
      (and throughout for an inactive replica).

    Raises:
      ValueError: outside `jit`, where the bounds are known: a segment longer than
        capacity.
    """
    if isinstance(start, int) and isinstance(stop, int) and stop - start > capacity:
        raise ValueError(
            f"capacity={capacity} is too small for the {stop - start} steps of "
            f"[{start}, {stop})"
        )
    optimizer = transforms.masked(tx)

    def one_step(
        i: Array, carry: tuple[TrainState, Metrics]
    ) -> tuple[TrainState, Metrics]:
        state, buffers = carry
        # Traced only where an optimizer asks for the loss again.
        before, step = state, i + offset
        gradients, state, metrics = step_gradient(task, before, key, step)
        extra = loss_arguments(
            lambda params: _loss_at(task, before, key, step)(params)[0],
            metrics["loss"],
            gradients,
        )
        updates, opt_state = update_with(
            optimizer,
            gradients,
            state.opt_state,
            state.params,
            extra | {"mask": state.mask},
        )
        params = optax.apply_updates(state.params, updates)
        buffers = {
            name: buffer.at[i - start].set(metrics[name].astype(buffer.dtype))
            for name, buffer in buffers.items()
        }
        return state._replace(params=params, opt_state=opt_state), buffers

    start, stop = jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32)
    _, _, shapes = jax.eval_shape(
        lambda *args: step_gradient(task, *args), state, key, start
    )
    buffers = {
        name: jnp.full((capacity,), jnp.nan, jnp.float32)
        for name, x in shapes.items()
        if x.shape == ()
    }

    def run(carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        return jax.lax.fori_loop(start, stop, one_step, carry)

    if active is True:
        return run((state, buffers))
    # A real branch where replicas run one after another; under vmap both sides run and
    # the old state is selected, once per segment.
    return jax.lax.cond(active, run, lambda carry: carry, (state, buffers))


def update_mask(
    task: Task,
    tx: optax.GradientTransformation,
    rule: UpdateMask,
    state: TrainState,
    key: Key,
    step: Array | int,
    offset: Array | int = 0,
) -> TrainState:
    """Lets a rule change the mask between segments, from the gradient at `step`.

    Weights that the new mask removes are set to 0 at once, and their moments with them;
    those that come back begin at 0, with new moments.

    Args:
      task: the task.
      tx: the optimizer, unwrapped.
      rule: changes the mask.
      state: the network in training.
      key: the replica's noise key.
      step: int32 `[]`; the rule's own schedule stands there.
      offset: added to the step's position in the noise.
    """
    step = jnp.asarray(step, jnp.int32)
    gradients, _, _ = step_gradient(task, state, key, step + offset)
    rule_key = jax.random.fold_in(noise_keys(key).rule, step + offset)
    params, mask, opt_state = act(
        *(rule, tx, rule_key, step, state.params, gradients),
        *(state.mask, state.opt_state),
    )
    return state._replace(params=params, mask=mask, opt_state=opt_state)


def start_mask(
    tx: optax.GradientTransformation, start: StartMask, state: TrainState, key: Key
) -> TrainState:
    """Lets a rule make the mask that a run begins with.

    Args:
      tx: the optimizer, unwrapped.
      start: makes it from the weights, and of the mask that the run came with.
      state: the run before its first step.
      key: the replica's noise key.
    """
    weights, living = transforms.trained_weights(
        tx, state.opt_state, state.params, state.mask
    )
    mask = start(noise_keys(key).rule_start, weights, living)
    params, opt_state = transforms.change_mask(
        tx, state.opt_state, state.params, state.mask, mask
    )
    return state._replace(params=params, mask=mask, opt_state=opt_state)


def segments(
    start: int, stop: int, every: int, marks: Iterable[int] = ()
) -> list[tuple[int, int]]:
    """Splits [start, stop) at multiples of `every` and at `marks`.

    Returns:
      Pairs (a, b) of at most `every` steps that follow one another; empty if start = stop.

    Raises:
      ValueError: every below 1, or stop before start.
    """
    if every < 1:
        raise ValueError(f"every={every}; it must be 1 or more")
    if stop < start:
        raise ValueError(f"stop={stop} lies before start={start}")
    cuts = {c for c in range(-(-start // every) * every, stop, every) if start < c}
    cuts |= {m for m in marks if start < m < stop}
    edges = [start, *sorted(cuts), stop]
    return [(a, b) for a, b in zip(edges, edges[1:]) if a < b]


def recorded_steps(stop: int, every: int) -> list[int]:
    """The steps at which a run to `stop` is recorded: multiples of `every`, and the end."""
    return sorted({*range(every, stop, every), stop})


def parse_step(text: str | int, steps_per_epoch: int) -> int:
    """A step from `"500it"`, `"2ep"` or a number of iterations.

    Raises:
      ValueError: any other text, or a negative number.
    """
    if isinstance(text, str):
        number, unit = text[:-2], text[-2:]
        if unit not in ("it", "ep"):
            number, unit = text, "it"
        if not number.isdecimal():
            raise ValueError(
                f"{text!r} is no step; write '500it' (iterations), '2ep' (epochs) or 500"
            )
        return int(number) * (steps_per_epoch if unit == "ep" else 1)
    if text < 0:
        raise ValueError(f"{text} is no step; it must be 0 or more")
    return int(text)
