"""The vocabulary: what the words of this library stand for, documented once.

Shapes are written for one replica. Under `vmap` or `Execution.parallel` every array
has one more, leading axis `[R]`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any

Key: TypeAlias = jax.Array
"""A typed PRNG key, shape `[]`: `jax.random.key`, of the implementation threefry2x32."""

Params: TypeAlias = PyTree
"""Trainable arrays: any pytree (Linen, NNX state, Equinox, Haiku, dicts)."""

Mask: TypeAlias = PyTree
"""Structure and leaf shapes of params, **bool** leaves; True = the weight survives."""

Scores: TypeAlias = PyTree
"""Structure and leaf shapes of params, real leaves; higher = kept for longer."""

Prunable: TypeAlias = PyTree
"""Structure of params, one Python bool per leaf: may pruning touch this leaf?"""

ModelState: TypeAlias = PyTree
"""What belongs to the network and is not trained: BatchNorm statistics."""

StreamState: TypeAlias = PyTree
"""What belongs to the noise and is carried along: environments, replay buffers."""

Batch: TypeAlias = PyTree
Metrics: TypeAlias = dict[str, Array]


class Init(Protocol):
    """The law of the initialisation: a draw of everything a network starts from."""

    def __call__(self, key: Key, /) -> tuple[Params, ModelState, StreamState]: ...


class Order(Protocol):
    """The data order: the indices of one step's batch, an int32 array of any shape.

    The key is that of the order (`keys.NoiseKeys`), the same for all steps; the step
    counts on through the epochs. `data.shuffled` makes one.
    """

    def __call__(self, key: Key, step: Array, /) -> Array: ...


class MakeBatch(Protocol):
    """One step's batch: gather by `indices` (from `Order`) and augment.

    The key is that of batches (`keys.NoiseKeys`), the same for all steps.
    """

    def __call__(
        self, data: PyTree, indices: Array, key: Key, step: Array, /
    ) -> Batch: ...


class Loss(Protocol):
    """Mean training loss of a batch, a real scalar, and what the step leaves behind."""

    def __call__(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
        /,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]: ...


class Evaluate(Protocol):
    """Metrics on a named split ("train", "validation", "test"), without any noise.

    Returns at least `loss`; what else there is (`error`, a fraction in [0, 1],
    `perplexity`, ...) is recorded under its own name. All are real scalars.
    """

    def __call__(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
        /,
    ) -> Metrics: ...


class Task(NamedTuple):
    """Everything that is trained, as data and pure functions of it.

    The functions are hashable and never close over arrays: `data` reaches them as an
    argument, so that a compiled program can be used for other data of the same shapes.
    All randomness of training is a function of (noise key, step): resuming and
    rewinding are exact, and branches differ in noise and in nothing else.

    Attributes:
      data: pytree of arrays, shared by all replicas.
      init: the law of the initialisation.
      order: the data order: which examples make up which step's batch.
      batch: gathers and augments one step's batch. A last partial batch is padded and
        carries example weights.
      loss: mean loss of a batch; returns the new states and a dict of scalar metrics.
      evaluate: metrics on a named split.
      steps_per_epoch: after how many steps every example was seen once.
      statistics: optional; `(params, model_state, batch) -> moments` of one batch in
        training mode, such as the mean and variance that each BatchNorm normalises by.
      pool: optional; `moments -> model_state`, from those of several batches, stacked:
        `[batches, ...]` each. Its variances include the variance of the batch means.
      predict: optional; `(params, model_state, data, key, split) -> classes`, int32
        `[examples]`: what disagreement compares.
      outputs: optional; `(params, model_state, batch) -> real array [examples, ...]`: what
        the network says of a batch, logits say, in evaluation mode.
      prunable: optional; `params -> Prunable`, the default prunable leaves. None means
        `masks.prunable`.
      exclude: key-path patterns of leaves that count as prunable but are never cut.
      head: key-path patterns of the output layer, which transfer replaces.
      narrow: optional; `(key, count) -> (Network, Mask)`, a fresh draw of a narrower dense
        network of about `count` prunable weights, laid into the full shapes.
      validates: whether there is a validation split.
    """

    data: PyTree
    init: Init
    order: Order
    batch: MakeBatch
    loss: Loss
    evaluate: Evaluate
    steps_per_epoch: int
    statistics: Callable[[Params, ModelState, Batch], PyTree] | None = None
    pool: Callable[[PyTree], ModelState] | None = None
    predict: Callable[[Params, ModelState, PyTree, Key, str], Array] | None = None
    outputs: Callable[[Params, ModelState, Batch], Array] | None = None
    prunable: Callable[[Params], Prunable] | None = None
    exclude: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    narrow: Callable[[Key, int], tuple["Network", Mask]] | None = None
    validates: bool = True

    @property
    def functions(self) -> "Task":
        """The task without its data: hashable, so a static argument of a program."""
        return self._replace(data=None)

    @property
    def shapes(self) -> tuple[Params, ModelState, StreamState]:
        """Shapes and dtypes of what `init` draws; nothing is computed."""
        return _shapes(self.init)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=64)
def _shapes(init: Init) -> tuple[Params, ModelState, StreamState]:
    # Many ask, and tracing a deep network takes time.
    return jax.eval_shape(init, jax.random.key(0, impl="threefry2x32"))


class TrainState(NamedTuple):
    """A network in training, complete: with the noise key it determines what follows.

    Attributes:
      params: the weights; exactly 0 wherever `mask` is False.
      model_state: rewound and stored with the weights.
      stream_state: belongs to the noise; carried, never interpolated.
      opt_state: state of the optax transformation.
      mask: constant inside a compiled segment.
    """

    params: Params
    model_state: ModelState
    stream_state: StreamState
    opt_state: PyTree
    mask: Mask

    @property
    def network(self) -> "Network":
        """The weights and the model state."""
        return Network(self.params, self.model_state)


class Curves(NamedTuple):
    """What was recorded while runs trained, one column per recorded step.

    Attributes:
      steps: the recorded steps, int32 `[V]`.
      values: by name, float32 `[R, V]`; nan where nothing was recorded (yet).
        `train_NAME` is the mean of a scalar of the task's loss over the steps since the
        column before, `validation_NAME` a scalar of its `evaluate`, `density` the
        surviving share where a rule changes masks.
      first_nan: the first step whose training loss was not finite, float32 `[R]`; nan for
        a run that never diverged.
    """

    steps: np.ndarray
    values: dict[str, np.ndarray]
    first_nan: np.ndarray


class Network(NamedTuple):
    """What is evaluated, stored and rewound to: weights and model state."""

    params: Params
    model_state: ModelState
