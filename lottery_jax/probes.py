"""What a representation is worth: probes of frozen networks, of many replicas at once.

    train, test = (
        probes.features(model, networks, dataset.arrays[split]["image"], dataset)
        for split in ("train", "test")
    )
    error = probes.nearest(train, train_labels, test, test_labels)

Functions of networks, and no part of a `Task`: labels are used, which pre-training has not
seen, and nothing of the network is trained. Both are deterministic.

References:
  Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
    2018, section 3.4: weighted nearest neighbours.
  Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
    2020, section 2.3 and appendix B.8.1: linear evaluation.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import data, errors, models, streams, trees
from lottery_jax.execution import Execution, Where, default_execution
from lottery_jax.keys import of_seed
from lottery_jax.training import checked
from lottery_jax.training.programs import program
from lottery_jax.types import Array, Network, PyTree

_AT_ONCE = 200
"""Test examples whose neighbours are looked for at once."""


def features(
    model: nn.Module,
    networks: Network,
    images: np.ndarray,
    dataset: data.Dataset,
    *,
    batch: int = 500,
    where: Where | None = None,
) -> np.ndarray:
    """The representation of each image: what goes into the head, in evaluation mode.

    Args:
      model: a model of images of `lottery_jax.models`, with whatever head.
      networks: a stack of R networks of it; leaves of their head are not looked at.
      images: uint8 or float `[N, ...]`, as they are stored.
      dataset: says how they are normalised, by its `mean` and `std`.
      batch: images at once.
      where: the devices.

    Returns:
      Float32 `[R, N, width]`.

    Raises:
      ValueError: a model without such a representation, networks or images that do not
        fit it.
      MemoryError: not even one network fits on a device.
    """
    errors.is_a("model", model, nn.Module, "a Linen module, an instance and no class")
    errors.is_a("networks", networks, Network, "a lottery_jax.Network, a stack of many")
    errors.is_a("dataset", dataset, data.Dataset, "a lottery_jax.data.Dataset")
    errors.whole("batch", batch, 1)
    given: Any = images
    if isinstance(given, streams.Column):
        must = "an array, such as streams.read(images.examples, numbers)['image']"
        raise errors.wrong("images", "streamed", must)
    images = np.asarray(images)
    if images.shape[1:] != dataset.shape or not len(images):
        must = f"[N, {', '.join(map(str, dataset.shape))}], some of {dataset.name}"
        raise errors.wrong("images.shape", images.shape, must)
    bare = models.headless(model)
    params = networks.params
    try:
        body = {name: leaf for name, leaf in dict(params).items() if name != "head"}
    except (TypeError, ValueError) as error:
        must = "a dict of layers, as Linen makes them"
        raise errors.wrong("networks.params", errors.shown(params), must) from error
    networks = Network(body, networks.model_state)
    _check_networks(bare, networks, dataset.shape)
    where = checked.place(where)
    size = min(batch, len(images))

    def build(execution: Execution) -> Callable[..., Any]:
        return program(represented, bare, dataset.mean, dataset.std, size, execution)

    return _each(where, "representations", build, (images,), networks)


def represented(
    model: nn.Module,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: int,
    execution: Execution,
) -> Callable[..., Any]:
    """Builds the program that applies networks without a head, `(images, networks)`.

    Args:
      model: from `models.headless`.
      mean: what images are normalised by.
      std: likewise.
      size: images at once.
      execution: see `Execution`.
    """

    def one(images: Array, network: Network) -> Array:
        variables = {"params": network.params, **network.model_state}

        def some(rows: Array) -> Array:
            batch = data.gather({"image": images}, rows)["image"]
            found: Any = model.apply(variables, data.normalize(batch, mean, std))
            return found

        found = jax.lax.map(some, data.sequential(len(images), size))
        return found.reshape(-1, found.shape[-1])[: len(images)]

    return execution.parallel(one, (None, 0))


def nearest(
    train: np.ndarray,
    train_label: np.ndarray,
    test: np.ndarray,
    test_label: np.ndarray,
    *,
    neighbours: int = 200,
    temperature: float = 0.07,
    where: Where | None = None,
) -> np.ndarray:
    """The error of weighted nearest neighbours.

    A test example is of the class that most of its nearest training examples are of, by
    the cosine; each votes with the weight exp(cosine / temperature). Of equally strong
    classes the first one wins, of equally near examples the ones that come first vote.

    Args:
      train: representations of training examples, float `[R, N, width]`.
      train_label: their classes, int `[N]`, the same for all replicas.
      test: those of test examples, `[R, M, width]`.
      test_label: likewise, `[M]`.
      neighbours: how many vote, at most N; 200 by Wu et al.
      temperature: above 0; 0.07 by Wu et al.
      where: the devices.

    Returns:
      Float32 `[R]` in [0, 1]; nan where a representation is not finite.

    Raises:
      ValueError: arrays that do not fit, or a number out of range.
      MemoryError: not even one replica fits on a device.
    """
    classes = _check(train, train_label, test, test_label)
    neighbours = errors.whole(
        "neighbours", neighbours, 1, len(train_label), "the training examples"
    )
    if not 0 < temperature < np.inf:
        raise errors.wrong("temperature", temperature, "above 0, and finite")
    where = checked.place(where)

    def build(execution: Execution) -> Callable[..., Any]:
        return program(voted, classes, neighbours, float(temperature), execution)

    labels = tuple(np.asarray(x, np.int32) for x in (train_label, test_label))
    return _each(where, "nearest neighbours", build, labels, (train, test))


def voted(
    classes: int, neighbours: int, temperature: float, execution: Execution
) -> Callable[..., Any]:
    """Builds the program of `nearest`, `(labels, representations)`.

    Args:
      classes: how many there are.
      neighbours: see `nearest`.
      temperature: likewise.
      execution: see `Execution`.
    """

    def one(train_label: Array, test_label: Array, both: tuple[Array, Array]) -> Array:
        train, test = map(_unit, both)
        size = min(_AT_ONCE, len(test))

        def some(rows: Array) -> Array:
            own = data.gather({"x": test, "label": test_label}, rows)
            cosines = jnp.einsum("id,jd->ij", own["x"], train, precision="highest")
            near, which = jax.lax.top_k(cosines, neighbours)
            # The nearest one's weight is 1: no temperature overflows.
            weights = jnp.exp((near - near[:, :1]) / temperature)
            votes = jax.nn.one_hot(train_label[which], classes, dtype=jnp.float32)
            score = jnp.einsum("ij,ijc->ic", weights, votes, precision="highest")
            wrong = jnp.argmax(score, axis=1).astype(jnp.int32) != own["label"]
            return jnp.sum(wrong * own["weight"])

        found = jax.lax.map(some, data.sequential(len(test), size))
        return _where_finite(jnp.sum(found) / len(test), both)

    return execution.parallel(one, (None, None, 0))


def linear(
    train: np.ndarray,
    train_label: np.ndarray,
    test: np.ndarray,
    test_label: np.ndarray,
    *,
    penalty: float = 1e-4,
    steps: int = 100,
    where: Where | None = None,
) -> np.ndarray:
    """The error of a linear classifier that is trained on the representations.

    Multinomial regression on all training examples at once, by L-BFGS from 0:
    representations are standardised by the training examples' mean and standard deviation
    (those that never change are left out), and what is minimised is the mean
    cross-entropy plus `penalty / 2` times the squared norm of the weights, without the
    biases.

    Args:
      train: see `nearest`.
      train_label: likewise.
      test: likewise.
      test_label: likewise.
      penalty: above 0, so that there is one minimum; scikit-learn's C is
        1 / (N * penalty).
      steps: of L-BFGS, 1 or more.
      where: the devices.

    Returns:
      Float32 `[R]` in [0, 1]; nan where a representation is not finite.

    Raises:
      ValueError: arrays that do not fit, or a number out of range.
      MemoryError: not even one replica fits on a device.
    """
    classes = _check(train, train_label, test, test_label)
    if not 0 < penalty < np.inf:
        raise errors.wrong("penalty", penalty, "above 0, and finite")
    errors.whole("steps", steps, 1)
    where = checked.place(where)

    def build(execution: Execution) -> Callable[..., Any]:
        return program(fitted, classes, float(penalty), steps, execution)

    labels = tuple(np.asarray(x, np.int32) for x in (train_label, test_label))
    return _each(where, "linear evaluation", build, labels, (train, test))


def fitted(
    classes: int, penalty: float, steps: int, execution: Execution
) -> Callable[..., Any]:
    """Builds the program of `linear`, `(labels, representations)`.

    Args:
      classes: how many there are.
      penalty: see `linear`.
      steps: likewise.
      execution: see `Execution`.
    """

    def logits(weights: Any, x: Array) -> Array:
        y = jnp.matmul(x, weights["kernel"], precision="highest")
        return y + jnp.broadcast_to(weights["bias"], y.shape)

    def one(train_label: Array, test_label: Array, both: tuple[Array, Array]) -> Array:
        train, test = _standardised(*both)

        def loss(weights: Any) -> Array:
            own = optax.softmax_cross_entropy_with_integer_labels(
                logits(weights, train), train_label
            )
            return jnp.mean(own) + penalty / 2 * jnp.sum(weights["kernel"] ** 2)

        tx = optax.lbfgs()
        kernel = jnp.zeros((train.shape[1], classes), jnp.float32)
        start = {"kernel": kernel, "bias": jnp.zeros((classes,), jnp.float32)}
        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(_: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            weights, state = carry
            value, grad = value_and_grad(weights, state=state)
            updates, state = tx.update(
                grad, state, weights, value=value, grad=grad, value_fn=loss
            )
            return optax.apply_updates(weights, updates), state

        weights, _ = jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))
        guesses = jnp.argmax(logits(weights, test), axis=1).astype(jnp.int32)
        error = jnp.mean((guesses != test_label).astype(jnp.float32))
        return _where_finite(error, both)

    return execution.parallel(one, (None, None, 0))


# --- what they share ------------------------------------------------------------------


def _each(
    where: Where,
    stage: str,
    build: Callable[[Execution], Callable[..., Any]],
    shared: tuple[np.ndarray, ...],
    own: PyTree,
) -> np.ndarray:
    """Runs a program over a stack; with fewer replicas at once where a device is full."""
    number = trees.count(own)
    execution = (where.execution or default_execution()).check()
    placed, together = execution.spread(own), execution.share(shared)

    def attempt(execution: Execution) -> np.ndarray:
        return np.asarray(build(execution)(*together, placed))[:number]

    return where.room.run(stage, execution, number, attempt)[0]


def _unit(x: Array) -> Array:
    length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    return x / jnp.where(length > 0, length, 1)


def _standardised(train: Array, test: Array) -> tuple[Array, Array]:
    mean = jnp.mean(train, axis=0, keepdims=True)
    spread = jnp.sqrt(jnp.mean((train - mean) ** 2, axis=0, keepdims=True))
    # What is constant but for rounding would be rounding alone.
    least = 1e-6 * jnp.maximum(jnp.abs(mean), 1e-6)
    scale = jnp.where(spread > least, 1 / jnp.where(spread > least, spread, 1), 0)
    return (train - mean) * scale, (test - mean) * scale


def _where_finite(error: Array, both: tuple[Array, Array]) -> Array:
    finite = jnp.all(jnp.isfinite(both[0])) & jnp.all(jnp.isfinite(both[1]))
    return jnp.where(finite, error, jnp.nan).astype(jnp.float32)


def _check(
    train: np.ndarray, train_label: np.ndarray, test: np.ndarray, test_label: np.ndarray
) -> int:
    """Whether representations and labels fit; how many classes there are."""
    for field, x in (("train", train), ("test", test)):
        if not hasattr(x, "dtype") or x.ndim != 3 or not x.size:
            must = "representations [R, N, width], as probes.features makes"
            raise errors.wrong(field, errors.shown(x), must)
        if x.dtype != np.float32:
            raise errors.wrong(f"{field}.dtype", x.dtype, "float32")
    if train.shape[::2] != test.shape[::2]:
        must = f"[{train.shape[0]}, M, {train.shape[2]}], like train"
        raise errors.wrong("test.shape", test.shape, must)
    for field, label, x in (
        ("train_label", train_label, train),
        ("test_label", test_label, test),
    ):
        label = np.asarray(label)
        if label.dtype.kind not in "iu" or label.shape != x.shape[1:2]:
            must = f"integers [{x.shape[1]}], the classes of the examples"
            raise errors.wrong(field, f"{label.dtype} of shape {label.shape}", must)
        if label.min() < 0:
            raise errors.wrong(field, label.min(), "0 or more: classes count from 0")
    return int(max(np.max(train_label), np.max(test_label))) + 1


def _check_networks(
    model: nn.Module, networks: Network, shape: tuple[int, ...]
) -> None:
    """Whether the bodies of networks are those of a model."""
    one = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x)[1:], x.dtype), networks
    )
    if len({np.shape(x)[:1] for x in jax.tree.leaves(networks)}) != 1:
        must = "a stack: all leaves with the same number of networks first"
        raise errors.wrong("networks", "leaves of several lengths", must)

    def drawn(images: Array) -> PyTree:
        made = dict(model.init(of_seed(0), images))
        return Network(made.pop("params"), made)

    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    wanted = jax.eval_shape(drawn, images)
    trees.same(one, wanted, ("networks", f"a {type(model).__name__}"))
    made: Any = jax.eval_shape(
        lambda n, x: model.apply({"params": n.params, **n.model_state}, x), one, images
    )
    if made.ndim != 2:
        must = "[B, width]: one that reads `choices.head`"
        raise errors.wrong("model: its representation", made.shape, must)
