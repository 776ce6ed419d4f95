"""Tiny tasks of three kinds, and two small studies of them that several tests read.

The tasks live outside the package on purpose: they show that a new kind of training needs
nothing but a `Task`.
"""

import dataclasses
import functools
import pathlib
import tempfile
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lottery_jax as lj
from lottery_jax import imp
from lottery_jax.data import Dataset
from lottery_jax.execution import Execution
from lottery_jax.types import Network, Task, TrainState

# --- classification -------------------------------------------------------------------

TRAIN, VALIDATION, TEST, BATCH = 150, 40, 60, 32
"""Sizes of the splits; the last batch of an epoch holds 22 examples."""


class NormNet(nn.Module):
    """One hidden layer with BatchNorm, scales drawn from U(0, 1)."""

    num_classes: int = 4
    width: int = 12

    @nn.compact
    def __call__(self, x, train=False, weights=None):
        x = nn.Dense(self.width, name="hidden")(x)
        x = lj.models.BatchNorm(norm_scale="uniform", name="norm")(x, train, weights)
        return nn.Dense(self.num_classes, name="head")(jax.nn.relu(x))


class ChosenNet(nn.Module):
    """BatchNorm over groups of four inputs; says with `choices` what its statistics are.

    The norm sees `[examples, 2, width]`: more than one activation of an example.
    """

    num_classes: int = 4
    width: int = 5
    choices: lj.models.Choices = lj.models.Choices()

    @nn.compact
    def __call__(self, x, train=False, weights=None):
        x = x.reshape(x.shape[0], -1, 4)
        x = nn.Dense(self.width, name="hidden")(x)
        momentum, unbiased = self.choices.momentum, self.choices.unbiased
        norm = lj.models.BatchNorm(momentum=momentum, unbiased=unbiased, name="norm")
        x = jax.nn.relu(norm(x, train, weights)).reshape(x.shape[0], -1)
        return nn.Dense(self.num_classes, name="head")(x)


def dataset(seed: int = 0) -> Dataset:
    """Gaussian points with the labels of a random linear map, 4 classes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(TRAIN + VALIDATION + TEST, 8)).astype(np.float32)
    y = np.argmax(x @ rng.normal(size=(8, 4)), axis=-1).astype(np.int32)
    edges = np.cumsum([0, TRAIN, VALIDATION, TEST])
    names = ("train", "validation", "test")
    arrays = {
        name: {"image": x[a:b], "label": y[a:b]}
        for name, a, b in zip(names, edges, edges[1:])
    }
    return Dataset(arrays, 4, (8,), (0.0,), (1.0,), "toy")


def pictures(channels: int = 3, number: int = 44, side: int = 8) -> Dataset:
    """Noise as uint8 images: some to train on, ten to validate on and eleven to test on."""
    rng = np.random.default_rng(0)
    arrays = {
        name: {
            "image": rng.integers(0, 256, (n, side, side, channels), np.uint8),
            "label": (np.arange(n) % 4).astype(np.int32),
        }
        for name, n in (("train", number), ("validation", 10), ("test", 11))
    }
    shape = (side, side, channels)
    return Dataset(arrays, 4, shape, (0.5,), (0.25,), "pictures")


def contrastive(model: nn.Module | None = None, **options) -> Task:
    """Four steps an epoch of 10 pictures; prunable weights outside of the head."""
    if model is None:
        choices = lj.models.Choices(head="projection", hidden=5)
        model = lj.models.ResNet(6, (1,), 2, choices=choices)
    return lj.tasks.contrastive(pictures(), model, **{"batch_size": 10} | options)


def classification(model: nn.Module | None = None, seed: int = 0, **options) -> Task:
    """Five steps an epoch, prunable weights 8 x 12 + 12 x 4."""
    return lj.tasks.classification(
        dataset(seed),
        NormNet() if model is None else model,
        **{"batch_size": BATCH, "evaluation_batch": 25} | options,
    )


def fragile() -> Task:
    """Classification whose loss is nan at the step that is named in the model state."""
    inner = classification(lj.models.make("mlp-6", 4))

    def init(key):
        params, _, stream = inner.init(key)
        return params, {"bad_step": jnp.int32(-1)}, stream

    def batch(data, indices, key, step):
        return {"of": inner.batch(data, indices, key, step), "step": step}

    def loss(params, model_state, stream, batch, key):
        value, (_, stream, metrics) = inner.loss(params, {}, stream, batch["of"], key)
        value *= jnp.where(batch["step"] == model_state["bad_step"], jnp.nan, 1.0)
        return value, (model_state, stream, {"error": metrics["error"]})

    def evaluate(params, model_state, data, key, split):
        return inner.evaluate(params, {}, data, key, split)

    return inner._replace(init=init, batch=batch, loss=loss, evaluate=evaluate)


def narrow(key: jax.Array, count: int) -> tuple[Network, Any]:
    """A `NormNet` whose first units alone live, with about `count` weights."""
    params, model_state, _ = classification().init(key)
    alive = jnp.arange(12) < jnp.maximum(1, round(count / (8 + 4)))
    mask = lj.masks.ones_like(params)
    mask["hidden"]["kernel"] = jnp.broadcast_to(alive[None, :], (8, 12))
    mask["head"]["kernel"] = jnp.broadcast_to(alive[:, None], (12, 4))
    return Network(params, model_state), mask


FULL = jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."
)


def full_beyond(task: Task, most: int) -> Task:
    """The task on devices that have no room for more than `most` of it at once.

    A program that vmaps more of them says so when it is made, in the words of XLA.
    """

    @jax.custom_batching.custom_vmap
    def here(x):
        return x

    @here.def_vmap
    def of_many(axis_size, in_batched, x):
        if axis_size > most:
            raise FULL
        return x, in_batched[0]

    def batch(data, indices, key, step):
        return task.batch(data, here(indices), key, step)

    def evaluate(params, *rest):
        return task.evaluate(jax.tree.map(here, params), *rest)

    def predict(params, *rest):
        return task.predict(jax.tree.map(here, params), *rest)

    return task._replace(batch=batch, evaluate=evaluate, predict=predict)


# --- a language model -----------------------------------------------------------------

VOCABULARY, WINDOW = 7, 6


def _text(length: int) -> np.ndarray:
    """A sequence in which two tokens mostly settle the next."""
    rng = np.random.default_rng(0)
    tokens = [1, 2]
    for _ in range(length - 2):
        following = min(tokens[-2:]) + 1
        noisy = rng.random() < 0.3
        tokens.append(int(rng.integers(VOCABULARY)) if noisy else following)
    return np.array(tokens, np.int32) % VOCABULARY


class LanguageModel(NamedTuple):
    """Plain dicts of arrays: an embedding, a hidden layer over two tokens, an output."""

    embedding: jax.Array
    layers: dict[str, jax.Array]


def language_model(batch_size: int = 20, dropout: float = 0.1) -> Task:
    """Next-token prediction; explicit prunable patterns, no model state, dropout."""
    train, validation, test = np.split(_text(400), (190, 300))
    data = {"train": train, "validation": validation, "test": test}
    windows = len(data["train"]) - WINDOW

    def init(key):
        keys = jax.random.split(key, 3)
        normal = jax.random.normal
        layers = {
            "hidden": normal(keys[1], (16, 24)) * 0.3,
            "hidden_bias": jnp.zeros(24),
            "output": normal(keys[2], (24, VOCABULARY)) * 0.2,
        }
        embedding = normal(keys[0], (VOCABULARY, 8))
        return LanguageModel(embedding, layers), (), ()

    def logits(params, tokens, key=None):
        x = jnp.take(params.embedding, tokens, axis=0)
        pairs = jnp.concatenate([x[..., :-2, :], x[..., 1:-1, :]], axis=-1)
        h = pairs @ params.layers["hidden"]
        h = jax.nn.relu(h + jnp.broadcast_to(params.layers["hidden_bias"], h.shape))
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - dropout, h.shape)
            h = jnp.where(kept, h / (1 - dropout), 0)
        return h @ params.layers["output"]

    def loss(params, model_state, stream_state, batch, key):
        out = logits(params, batch["tokens"], key)
        target, weight = batch["tokens"][:, 2:], batch["weight"][:, None]
        share = weight / (jnp.sum(weight) * target.shape[1])
        losses = optax.softmax_cross_entropy_with_integer_labels(out, target)
        value = jnp.sum(losses * share)
        wrong = jnp.sum((jnp.argmax(out, -1) != target) * share)
        metrics = {"loss": value, "error": wrong}
        return value, (model_state, stream_state, metrics)

    def order(key, step):
        return lj.data.shuffled(key, step, windows, batch_size)

    def batch(data, indices, key, step):
        real = indices >= 0
        at = jnp.where(real, indices, 0)[:, None] + jnp.arange(WINDOW)[None, :]
        tokens = jnp.take(data["train"], at, axis=0)
        return {"tokens": tokens, "weight": real.astype(jnp.float32)}

    def evaluate(params, model_state, data, key, split):
        tokens = data[split]
        out, target = logits(params, tokens), tokens[2:]
        losses = optax.softmax_cross_entropy_with_integer_labels(out, target)
        wrong = jnp.argmax(out, -1) != target
        return {"loss": jnp.mean(losses), "error": jnp.mean(wrong)}

    return Task(
        data=data,
        init=init,
        order=order,
        batch=batch,
        loss=loss,
        evaluate=evaluate,
        steps_per_epoch=lj.data.steps_per_epoch(windows, batch_size),
        prunable=lambda params: lj.masks.prunable(
            params, include=("layers/hidden$", "layers/output$")
        ),
    )


# --- reinforcement learning -----------------------------------------------------------

CELLS, ENVIRONMENTS, HORIZON = 6, 16, 5


def policy_gradient() -> Task:
    """REINFORCE in a corridor whose last cell pays; its walkers live in stream_state.

    Walkers go on where the last step left them, and appear at a random cell, drawn from
    a key of their own, after they were paid.
    """
    data = {"reward": np.eye(CELLS, dtype=np.float32)[-1]}

    def init(key):
        keys = jax.random.split(key, 4)
        params = {
            "hidden": {"kernel": jax.random.normal(keys[0], (CELLS, 16)) * 0.5},
            "action": {"kernel": jax.random.normal(keys[1], (16, 2)) * 0.5},
        }
        walkers = jax.random.randint(keys[2], (ENVIRONMENTS,), 0, CELLS - 1)
        return params, (), {"cell": walkers, "resets": keys[3]}

    def log_policy(params, cell):
        seen = jax.nn.one_hot(cell, CELLS)
        hidden = jnp.tanh(seen @ params["hidden"]["kernel"])
        return jax.nn.log_softmax(hidden @ params["action"]["kernel"])

    def loss(params, model_state, stream_state, batch, key):
        def step(stream, key):
            policy = log_policy(params, stream["cell"])
            action = jax.random.categorical(key, jax.lax.stop_gradient(policy))
            chosen = jnp.take_along_axis(policy, action[:, None], axis=1)[:, 0]
            cell = jnp.clip(stream["cell"] + 2 * action - 1, 0, CELLS - 1)
            reward = jnp.take(batch["reward"], cell)
            now, later = jax.random.split(stream["resets"])
            fresh = jax.random.randint(now, cell.shape, 0, CELLS - 1)
            cell = jnp.where(reward > 0, fresh, cell)
            return {"cell": cell, "resets": later}, (chosen, reward)

        keys = jax.random.split(key, HORIZON)
        stream_state, (chosen, reward) = jax.lax.scan(step, stream_state, keys)
        to_go = jnp.cumsum(reward[::-1], axis=0)[::-1]
        advantage = to_go - jnp.mean(to_go, axis=1, keepdims=True)
        value = -jnp.mean(jnp.sum(chosen * advantage, axis=0))
        metrics = {"loss": value, "reward": jnp.mean(reward)}
        return value, (model_state, stream_state, metrics)

    def evaluate(params, model_state, data, key, split):
        policy = log_policy(params, jnp.arange(CELLS - 1))
        return {
            "error": jnp.mean(jnp.argmax(policy, axis=-1) != 1),
            "loss": -jnp.mean(policy[:, 1]),
        }

    return Task(
        data=data,
        init=init,
        order=lambda key, step: jnp.zeros((1,), jnp.int32),
        batch=lambda data, indices, key, step: data,
        loss=loss,
        evaluate=evaluate,
        steps_per_epoch=10,
    )


# --- studies --------------------------------------------------------------------------


_folders: list[tempfile.TemporaryDirectory] = []  # removed when Python ends


class Watched(NamedTuple):
    """A study, and what went on inside it; runs are in the order chain, replica, arm.

    Attributes:
      task, tx, plan, ids, execution: what was run.
      study: its outcome.
      moments: the training states that who watches saw, by (level, step), `[R]`; the
        first of a level is what it began with, the last what it became.
      traces: how often the loss had been traced at each of them.
      folder: with its tickets and checkpoints.
    """

    task: Task
    tx: optax.GradientTransformation
    plan: imp.Plan
    ids: tuple[int, ...]
    execution: Execution
    study: imp.Study
    moments: dict[tuple[int, int], TrainState]
    traces: list[int]
    folder: pathlib.Path

    @property
    def levels(self) -> int:
        """The last level."""
        return max(level for level, _ in self.moments)

    def steps(self, level: int) -> list[int]:
        """The ends of the segments of a level, and its first step."""
        return sorted(step for own, step in self.moments if own == level)

    def row(self, chain: str, replica: int, arm: str) -> int:
        """The run of a network."""
        names, arms = [c.name for c in self.plan.chains], self.plan.arms
        at = names.index(chain), self.ids.index(replica), arms.index(arm)
        return int(np.ravel_multi_index(at, (len(names), len(self.ids), len(arms))))

    def at(
        self, chain: str, replica: int, arm: str, level: int, step: int
    ) -> TrainState:
        """The state of one run after a segment."""
        return lj.trees.rows(self.moments[level, step], self.row(chain, replica, arm))

    def start(self, chain: str, replica: int, arm: str, level: int) -> TrainState:
        """What one run of a level began with, masked."""
        return self.at(chain, replica, arm, level, self.steps(level)[0])

    def end(self, chain: str, replica: int, arm: str, level: int) -> Network:
        """What one run of a level became."""
        return self.at(chain, replica, arm, level, self.plan.steps).network

    def record(self, name: str, chain: str, arm: str) -> np.ndarray:
        """A record, `[replica, level, ...]`."""
        names = [c.name for c in self.plan.chains]
        at = names.index(chain), self.plan.arms.index(arm)
        return self.study.records[name][1][at]


def watched(task, tx, plan, ids, execution, levels, start=None) -> Watched:
    """Runs a study and sees all that who watches it is shown."""
    token, loss = object(), task.loss  # the token makes this a function like no other
    count = {token: 0}

    def counted(*args):
        count[token] += 1
        return loss(*args)

    task = task._replace(loss=counted)
    moments, traces = {}, []

    def watch(progress: lj.Progress):
        moments[progress.level, progress.done] = progress.states()
        traces.append(count[token])

    _folders.append(tempfile.TemporaryDirectory(prefix="lottery-jax-test-"))
    folder = pathlib.Path(_folders[-1].name)
    where = lj.Where(execution, folder, 3600.0, watch)
    study = imp.run(
        task, tx, plan, levels=levels, replicas=ids, start=start, where=where
    )
    return Watched(task, tx, plan, ids, execution, study, moments, traces, folder)


def schedule_step(opt_state: Any) -> int:
    """Where the learning-rate schedule of one run stands."""
    found = [
        int(state.count)
        for state in jax.tree.leaves(
            opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState)
        )
        if isinstance(state, optax.ScaleByScheduleState)
    ]
    assert len(found) == 1
    return found[0]


STEPS, REWIND = 20, 6

SCHEDULE = optax.exponential_decay(0.1, transition_steps=10, decay_rate=0.5)

CHAINS = (
    imp.Chain("imp"),
    imp.Chain("linear", imp.Linear(0.2)),
    imp.Chain("one_shot", one_shot=True),
    imp.Chain("lr_rewind", retrain="lr_rewind"),
    imp.Chain("finetune", retrain="finetune"),
    imp.Chain("one_shot_finetune", one_shot=True, retrain="finetune"),
    imp.Chain("open_lth", rule="open_lth"),
    imp.Chain(
        "by_layer",
        imp.Geometric(by_layer=(("head/kernel", 0.1), ("kernel", 0.3))),
        scope="layerwise",
    ),
)


@functools.cache
def many_chains() -> Watched:
    """Eight chains, five arms, three replicas, three prunings, rewound to step 6."""
    plan = imp.Plan(
        steps=STEPS,
        rewind_step=REWIND,
        chains=CHAINS,
        arms=("ticket", "reinit", "reinit_raw", "random_mask", "shuffled_weights"),
        validate_every=10,
    )
    tx = optax.sgd(SCHEDULE, momentum=0.9)
    execution = Execution(devices=2, chunk=1)
    return watched(classification(), tx, plan, (0, 1, 2), execution, levels=3)


@functools.cache
def one_chain() -> Watched:
    """The usual study: three arms, two replicas, four prunings, rewound to step 0."""
    plan = imp.Plan(steps=12, validate_every=4, seed=3)
    execution = Execution(devices=2, chunk=1)
    task = classification(lj.models.make("mlp-10-6", 4))
    return watched(task, optax.adam(0.02), plan, (0, 1), execution, levels=4)


def only(found: Watched, *chains: str, **changes) -> imp.Plan:
    """The plan of a study, with some of its chains."""
    kept = tuple(chain for chain in found.plan.chains if chain.name in chains)
    return dataclasses.replace(found.plan, chains=kept, **changes)


# --- comparing ------------------------------------------------------------------------


def order_of(task, key, epoch=0):
    """The data order of an epoch, `[steps_per_epoch, ...]`.

    Args:
      task: the task.
      key: of the order.
      epoch: which.
    """
    steps = jnp.arange(task.steps_per_epoch, dtype=jnp.int32)
    first = epoch * task.steps_per_epoch
    return jax.jit(jax.vmap(lambda step: task.order(key, step)))(steps + first)


def assert_equal(a: Any, b: Any) -> None:
    """The same structure and, leaf by leaf, the same bits (nan equals nan)."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for name, x, y in zip(lj.trees.paths(a), jax.tree.leaves(a), jax.tree.leaves(b)):
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


def assert_close(a: Any, b: Any, atol: float = 1e-5) -> None:
    """The same structure, and values within a tolerance."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for name, x, y in zip(lj.trees.paths(a), jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol, err_msg=name)


def assert_same_records(
    a: imp.Records, b: imp.Records, where: Any = (), into: Any = ()
) -> None:
    """The same bits in every recorded array; `where`, `into` pick parts of a and b."""
    assert a.keys() == b.keys()
    for name in a.keys() - {"step", "layer"}:
        x, y = a[name][1][where], b[name][1][into]
        np.testing.assert_array_equal(x, y, err_msg=name)
