"""Language modelling: which token comes next in a long text.

A recurrent model reads the text as it stands. It is laid out as `batch_size` columns that
are read at once, a window at each step; what the network carries from one window to the
next is the stream state of the task, and zero again where an epoch begins. Nothing is
shuffled, so that dropout is all that is drawn in training.

Another model is given windows of the text in any order, as examples of their own.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from lottery_jax import activations, errors, trees
from lottery_jax.data.text import Texts
from lottery_jax.keys import settled
from lottery_jax.tasks import _batches, _models, _texts, metrics
from lottery_jax.types import (
    Array,
    Batch,
    Key,
    Metrics,
    ModelState,
    Params,
    Prunable,
    PyTree,
    StreamState,
    Task,
)

# --- windows in any order -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Shuffled:
    """The static part of a task of windows; its methods are the Task's functions."""

    model: _models.Model
    windows: _batches.Drawn

    @settled
    def init(self, key: Key) -> tuple[Params, ModelState, StreamState]:
        params, model_state = self.model.init(key)
        return params, model_state, ()

    def batch(self, data: PyTree, indices: Array, noise_key: Key, step: Array) -> Batch:
        return self.windows.gathered(data, indices)

    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        ids, weight = batch["ids"], batch["weight"]
        logits, model_state = self.model.apply(
            params, model_state, ids[:, :-1], train=True, key=key, weights=weight
        )
        losses, wrong = _of_tokens(logits, ids[:, 1:])
        share = (weight / jnp.sum(weight))[:, None] / losses.shape[1]
        loss = jnp.sum(losses * share)
        found = {"loss": loss, "error": jnp.sum(wrong * share)}
        return loss, (model_state, stream_state, found)

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        def sums(batch: Batch) -> tuple[Array, Array]:
            logits = self.outputs(params, model_state, batch)
            losses, wrong = _of_tokens(logits, batch["ids"][:, 1:])
            weight = batch["weight"][:, None]
            return jnp.sum(losses * weight), jnp.sum(wrong * weight)

        arrays = data[split]
        losses, wrong = self.windows.each(arrays, sums)
        return _summed(losses, wrong, _tokens(arrays))

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Array:
        arrays = data[split]
        found = self.windows.each(
            arrays, lambda batch: _likeliest(self.outputs(params, model_state, batch))
        )
        return found.reshape(-1)[: _tokens(arrays)]

    def outputs(self, params: Params, model_state: ModelState, batch: Batch) -> Array:
        inputs = batch["ids"][:, :-1]
        logits, _ = self.model.apply(params, model_state, inputs, train=False)
        return activations.wide(logits)


# --- in one go ------------------------------------------------------------------------


class _Carried(Protocol):
    """A recurrent model, as a task calls it."""

    def make(self, key: Key, /) -> Params:
        """A draw of the initialisation."""
        ...

    def initial(self, batch: int, /) -> StreamState:
        """What a text begins with."""
        ...

    def apply(
        self,
        params: Params,
        carry: StreamState,
        ids: Array,
        /,
        *,
        train: bool,
        key: Key | None,
    ) -> tuple[Array, StreamState]:
        """Logits, and what is carried on."""
        ...


@dataclasses.dataclass(frozen=True)
class _Linen:
    """A recurrent Linen module."""

    module: Any

    def make(self, key: Key) -> Params:
        ids = jnp.zeros((1, 1), jnp.int32)
        made = dict(self.module.init(key, ids, self.initial(1)))
        if others := sorted(made.keys() - {"params"}):
            must = (
                "['params'] alone: a recurrent model has no other state than its carry"
            )
            raise errors.wrong("model: its collections", others, must)
        return made["params"]

    def initial(self, batch: int) -> StreamState:
        return self.module.initial(batch)

    def apply(
        self,
        params: Params,
        carry: StreamState,
        ids: Array,
        /,
        *,
        train: bool,
        key: Key | None,
    ) -> tuple[Array, StreamState]:
        rngs = {} if key is None else {"dropout": key}
        return self.module.apply({"params": params}, ids, carry, train, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class _Functions:
    """Three pure functions of a recurrent model."""

    make: Callable[[Key], Params]
    initial: Callable[[int], StreamState]
    call: Callable[..., tuple[Array, StreamState]]
    options: tuple[str, ...]

    def apply(
        self,
        params: Params,
        carry: StreamState,
        ids: Array,
        /,
        *,
        train: bool,
        key: Key | None,
    ) -> tuple[Array, StreamState]:
        values = {"train": train, "key": key}
        return self.call(params, carry, ids, **{n: values[n] for n in self.options})


@dataclasses.dataclass(frozen=True)
class _Stream:
    """The static part of a task of one long text; its methods are the Task's functions.

    Attributes:
      model: a recurrent one.
      columns: of the training text, which are read at once.
      steps: of an epoch: windows of each column.
    """

    model: _Carried
    columns: int
    steps: int

    @settled
    def init(self, key: Key) -> tuple[Params, ModelState, StreamState]:
        return self.model.make(key), {}, self.model.initial(self.columns)

    def order(self, noise_key: Key, step: Array) -> Array:
        return jnp.asarray(step, jnp.int32)[None] % self.steps

    def batch(self, data: PyTree, indices: Array, noise_key: Key, step: Array) -> Batch:
        window = jnp.take(data["train"]["ids"], indices[0], axis=0, mode="clip")
        return {"ids": window, "begins": indices[0] == 0}

    def loss(
        self,
        params: Params,
        model_state: ModelState,
        stream_state: StreamState,
        batch: Batch,
        key: Key,
    ) -> tuple[Array, tuple[ModelState, StreamState, Metrics]]:
        ids, begins = batch["ids"], batch["begins"]
        carry = jax.tree.map(
            lambda first, x: jnp.where(begins, first, x),
            self.model.initial(self.columns),
            stream_state,
        )
        logits, carry = self.model.apply(
            params, carry, ids[:, :-1], train=True, key=key
        )
        losses, wrong = _of_tokens(logits, ids[:, 1:])
        loss = jnp.mean(losses)
        found = {"loss": loss, "error": jnp.mean(wrong)}
        return loss, (model_state, carry, found)

    def evaluate(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Metrics:
        def sums(logits: Array, following: Array) -> tuple[Array, Array]:
            losses, wrong = _of_tokens(logits, following)
            return jnp.sum(losses), jnp.sum(wrong)

        arrays = data[split]
        losses, wrong = self._each(params, arrays, sums)
        return _summed(losses, wrong, _tokens(arrays))

    def predict(
        self,
        params: Params,
        model_state: ModelState,
        data: PyTree,
        key: Key,
        split: str,
    ) -> Array:
        found = self._each(params, data[split], lambda logits, _: _likeliest(logits))
        return found.reshape(-1)

    def outputs(self, params: Params, model_state: ModelState, batch: Batch) -> Array:
        """Of a window as if the text began with it."""
        ids = batch["ids"][:, :-1]
        carry = self.model.initial(len(ids))
        logits, _ = self.model.apply(params, carry, ids, train=False, key=None)
        return activations.wide(logits)

    def _each(
        self,
        params: Params,
        arrays: PyTree,
        measure: Callable[[Array, Array], PyTree],
    ) -> PyTree:
        """`measure(logits, following tokens)` of each window of a split, stacked."""

        def step(carry: StreamState, window: Array) -> tuple[StreamState, PyTree]:
            logits, carry = self.model.apply(
                params, carry, window[:, :-1], train=False, key=None
            )
            return carry, measure(activations.wide(logits), window[:, 1:])

        ids = jnp.asarray(arrays["ids"])
        return jax.lax.scan(step, self.model.initial(ids.shape[1]), ids)[1]


# --- what both share ------------------------------------------------------------------


def _of_tokens(logits: Array, following: Array) -> tuple[Array, Array]:
    """The loss of each token, and whether another one was likelier."""
    logits = activations.wide(logits)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, following)
    return losses, ~metrics.guessed(logits, following)


def _likeliest(logits: Array) -> Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _tokens(arrays: PyTree) -> int:
    """How many tokens of a split are guessed."""
    *windows, length = arrays["ids"].shape
    return int(np.prod(windows)) * (length - 1)


def _summed(losses: Array, wrong: Array, tokens: int) -> Metrics:
    loss = jnp.sum(losses) / tokens
    return {
        "loss": loss,
        "perplexity": jnp.exp(loss),
        "error": jnp.sum(wrong) / tokens,
    }


def in_windows(ids: np.ndarray, window: int) -> np.ndarray:
    """A text cut into windows, each with the token that follows it.

    Args:
      ids: `[T]`.
      window: tokens of each.

    Returns:
      `[(T - 1) // window, window + 1]`; each begins with the last token of the one
      before. A rest that fills no window is left out.
    """
    number = (len(ids) - 1) // window
    first = window * np.arange(number)
    return ids[first[:, None] + np.arange(window + 1)]


def in_columns(ids: np.ndarray, columns: int, window: int) -> np.ndarray:
    """A text laid out in columns, one going on where the one before ends, in windows.

    Args:
      ids: `[T]`.
      columns: how many.
      window: tokens of each window.

    Returns:
      `[windows, columns, window + 1]`; in each column a window begins with the last
      token of the one before. A rest that fills no window of all columns is left out.
    """
    length = (len(ids) - 1) // columns
    cut = [
        in_windows(ids[at : at + length + 1], window)
        for at in range(0, columns * length, length)
    ]
    return np.stack(cut, axis=1)


def _checked(texts: Texts) -> Texts:
    """Texts, once it is sure that each split is one long text."""
    texts = _texts.checked(texts, "ids")
    _texts.check_metric(texts, ("loss", "perplexity", "error"))
    for split, arrays in texts.arrays.items():
        if set(arrays) != {"ids"} or arrays["ids"].ndim != 1:
            found = {name: x.shape for name, x in arrays.items()}
            must = "{'ids': (tokens,)}, one long text, as data.text.stream makes"
            raise errors.wrong(f"{texts.name}: arrays of {split!r}", found, must)
    if "test" not in texts.arrays:
        must = "a split 'test' among them"
        raise errors.wrong(f"{texts.name}: splits", list(texts.arrays), must)
    return texts


def _laid_out(
    texts: Texts, window: int, batch_size: int, evaluation_batch: int, recurrent: bool
) -> dict[str, dict[str, np.ndarray]]:
    """The splits in windows; a ValueError if one is too short for its columns."""
    found = {}
    for split, own in texts.arrays.items():
        number = batch_size if split == "train" else evaluation_batch
        columns, ids = number if recurrent else 1, own["ids"]
        least = columns * window + 1
        if len(ids) < least:
            of = f"{columns} columns of " if recurrent else ""
            must = f"{least} or more: {of}a window of {window}, and the token after it"
            raise errors.wrong(f"{texts.name}: tokens of {split!r}", len(ids), must)
        cut = in_columns(ids, columns, window) if recurrent else in_windows(ids, window)
        found[split] = {"ids": cut}
    return found


_HEAD = ("(^|/)head/",)


def _leaves(
    params: Params,
    prunable: Callable[[Params], Prunable] | None,
    exclude: Any,
    head: Any,
) -> dict[str, Any]:
    """The fields of a Task that say of leaves what they are (ValueError if wrong)."""
    _models.check_prunable(prunable)
    if head is None:
        there = any(re.search(_HEAD[0], path) for path in trees.paths(params))
        head = _HEAD if there else ()
    patterns = {
        "exclude": _models.patterns("exclude", exclude),
        "head": _models.patterns("head", head),
    }
    _models.check_found(params, **patterns)
    return {"prunable": prunable, **patterns}


def _carried(
    model: nn.Module | None,
    init: Callable[..., Any] | None,
    apply: Callable[..., Any] | None,
    initial: Callable[[int], StreamState] | None,
) -> _Carried:
    """A recurrent model, of either kind."""
    if model is not None:
        return _Linen(model)
    assert init is not None and apply is not None and initial is not None
    errors.is_a("initial", initial, Callable, "a function")  # type: ignore[arg-type]
    form = _models.functions(init, apply)
    if not form.stateful:
        must = "apply(params, carry, ids) with train= and key= as it needs them"
        raise errors.wrong("apply", errors.shown(apply), must)
    options = tuple(name for name in form.options if name != "weights")
    return _Functions(init, initial, apply, options)


def _check_carried(model: _Carried, wanted: tuple[int, ...], axes: str) -> Params:
    """The shapes of a recurrent model's params, once it is sure that it fits.

    To `_models` what is carried on is a state like any other.
    """
    columns, window, _ = wanted

    def init(key: Key) -> tuple[Params, StreamState]:
        return model.make(key), model.initial(columns)

    def apply(
        params: Params, carry: StreamState, ids: Array, *, train: bool, key: Key | None
    ) -> tuple[Array, StreamState]:
        return model.apply(params, carry, ids, train=train, key=key)

    form = _models.Functions(init, apply, True, ("train", "key"))
    ids = jax.ShapeDtypeStruct((columns, window), jnp.int32)
    return _models.check(form, ids, wanted, axes)


def language_model(
    texts: Texts,
    model: nn.Module | None = None,
    *,
    init: Callable[..., Any] | None = None,
    apply: Callable[..., Any] | None = None,
    initial: Callable[[int], StreamState] | None = None,
    batch_size: int,
    window: int,
    evaluation_batch: int = 20,
    prunable: Callable[[Params], Prunable] | None = None,
    exclude: tuple[str, ...] = (),
    head: tuple[str, ...] | None = None,
) -> Task:
    """Next-token prediction: a text, a model, cross-entropy.

    A module that has `initial(batch)` is recurrent, such as `models.Recurrent`: called as
    `model(ids, carry, train) -> (logits, carry)`. It reads the text in order, and its carry
    is the stream state: rewound, resumed and branched like the rest. Another one, such as
    `models.Decoder`, is called as `model(ids, train) -> logits` and given windows that
    the noise shuffles; in evaluation too it knows nothing of what lies before a window.

    Instead of a module, pure functions of any library: `init(key) -> params` with
    `apply(params, ids)` or, with `initial(batch) -> carry`, `apply(params, carry, ids) ->
    (logits, carry)`; both may take `train` and `key`. See `tasks.classification`.

    `evaluate` gives the loss in nats per token, its exponential as `perplexity`, and as
    `error` the share of tokens that were not the likeliest one.

    Args:
      texts: splits with `ids`, int32 `[T]`, one long text each.
      model: a Linen module; its dropout draws under the name "dropout".
      init: see above.
      apply: see above; ids are int32 `[batch, window]`.
      initial: see above.
      batch_size: windows per step: those at the same place of as many columns of the
        text, or shuffled ones, the last batch of an epoch padded.
      window: tokens of each; of a recurrent model those that gradients go back over.
      evaluation_batch: columns that a recurrent model reads validation and test in, each
        from a carry of zero; or windows evaluated at once. Training text is evaluated in
        its own columns.
      prunable: `params -> Prunable`; None for the `prunable_patterns` of the model, and
        for those that `masks.prunable` finds, if it has none.
      exclude: patterns of leaves that count as prunable and are never cut.
      head: patterns of the output layer's leaves; None for the layer `head`, if there is
        one: a tied output layer is none.

    Raises:
      ValueError: a split without `ids` `[T]`, ids outside of the vocabulary, a text that
        is too short for its windows, a window beyond the model's positions; not one of
        model and (init, apply); logits that are no real `[batch, window, vocabulary]`; a
        carry that changes its form; a recurrent model with other state than its carry;
        random numbers in evaluation; a metric that `evaluate` does not give; patterns that
        match nothing. All of it before anything is compiled.
    """
    texts = _checked(texts)
    batch_size = errors.whole("batch_size", batch_size, 1)
    window = errors.whole("window", window, 1)
    evaluation_batch = errors.whole("evaluation_batch", evaluation_batch, 1)
    given = {"model": model, "init": init, "apply": apply, "initial": initial}
    named = [name for name, value in given.items() if value is not None]
    if named not in (["model"], ["init", "apply"], ["init", "apply", "initial"]):
        must = "either model, or init and apply, with initial if the model is recurrent"
        raise ValueError(f"given are {named}; it must be {must}")
    if model is not None:
        errors.is_a("model", model, nn.Module, "a Linen module, an instance")
    positions = getattr(model, "positions", window)
    if window > positions:
        must = f"at most {positions}, the positions of the model"
        raise errors.wrong("window", window, must)
    recurrent = initial is not None or hasattr(model, "initial")
    arrays = _laid_out(texts, window, batch_size, evaluation_batch, recurrent)
    wanted = (batch_size, window, texts.vocabulary.size)
    axes = f"[windows, tokens, vocabulary of {texts.name}]"
    static: _Stream | _Shuffled
    if recurrent:
        carried = _carried(model, init, apply, initial)
        params = _check_carried(carried, wanted, axes)
        static = _Stream(carried, batch_size, len(arrays["train"]["ids"]))
        order, steps = static.order, static.steps
    else:
        windows = _batches.of_examples(
            arrays["train"],
            texts.name,
            batch_size=batch_size,
            drop_last=False,
            evaluation_batch=evaluation_batch,
        )
        example = jax.ShapeDtypeStruct((window,), jnp.int32)
        used = _models.of(model, init, apply, example, windows.padded)
        ids = _models.batched(example, batch_size)
        params = _models.check(used, ids, wanted, axes)
        static = _Shuffled(used, windows)
        order, steps = windows.order, windows.steps_per_epoch
    patterns = getattr(model, "prunable_patterns", None)
    if prunable is None and patterns is not None:
        prunable = _texts.Counted(tuple(patterns))
    leaves = _leaves(params, prunable, exclude, head)
    return Task(
        data=arrays,
        init=static.init,
        order=order,
        batch=static.batch,
        loss=static.loss,
        evaluate=static.evaluate,
        steps_per_epoch=steps,
        **leaves,
        predict=static.predict,
        outputs=static.outputs,
        validates="validation" in arrays,
    )
