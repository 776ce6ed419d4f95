"""What tasks on texts share: examples as tokens, and models that are given them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lottery_jax import errors, masks
from lottery_jax.data.text import Texts, Tokens
from lottery_jax.data.text import check as check_texts
from lottery_jax.tasks import _batches, _models
from lottery_jax.types import Array, Batch, MakeBatch, Params, Prunable, PyTree, Task

HEAD = ("^head/",)
"""Patterns of the leaves that belong to one task alone, in models of this library."""


def checked(texts: Texts, *names: str) -> Texts:
    """Texts that hold together, and have what a task needs.

    Args:
      texts: the data set.
      *names: of the arrays that every split must have.

    Raises:
      ValueError: an array that is missing, or what `data.text.check` refuses.
    """
    texts = check_texts(texts)
    for split, arrays in texts.arrays.items():
        if missing := [name for name in names if name not in arrays]:
            must = f"{list(names)} among them, and {missing} are not"
            raise errors.wrong(f"{texts.name}: arrays of {split!r}", list(arrays), must)
    return texts


def check_metric(texts: Texts, measured: tuple[str, ...]) -> None:
    """Raises a ValueError where texts name a metric that their task does not have.

    Args:
      texts: the data set.
      measured: the names of what `evaluate` returns.
    """
    if texts.metric is not None:
        errors.one_of(f"{texts.name}: metric", texts.metric, measured)


@dataclasses.dataclass(frozen=True)
class Sequences(_batches.Drawn):
    """Padded sequences, as an encoder is given them.

    Attributes:
      num_train: see `Drawn`.
      batch_size: likewise.
      drop_last: likewise.
      evaluation_batch: likewise.
      pad: the id of padding; None for whole windows.
    """

    pad: int | None

    def batch(self, data: PyTree, indices: Array, noise_key: Any, step: Array) -> Batch:
        return self.gathered(data, indices)

    def tokens(self, batch: Batch) -> Tokens:
        """What a model is given of a batch."""
        ids = batch["ids"]
        types = batch.get("types", jnp.zeros_like(ids))
        present = (
            jnp.ones(ids.shape, jnp.bool_) if self.pad is None else ids != self.pad
        )
        return Tokens(ids, types, present, batch.get("positions"))


def sequences(
    texts: Texts, *, batch_size: int, drop_last: bool, evaluation_batch: int
) -> Sequences:
    """How the sequences of a data set are drawn (ValueError where they cannot be)."""
    drawn = _batches.of_examples(
        texts.arrays["train"],
        texts.name,
        batch_size=batch_size,
        drop_last=drop_last,
        evaluation_batch=evaluation_batch,
    )
    return Sequences(**dataclasses.asdict(drawn), pad=texts.vocabulary.pad)


def shape(length: int, positions: int | None = None) -> Tokens:
    """The shapes and dtypes of one example.

    Args:
      length: tokens of a sequence.
      positions: how many of them are to be guessed; None where none are.
    """

    def array(size: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((size,), dtype)

    ids = array(length, jnp.int32)
    at = None if positions is None else array(positions, jnp.int32)
    return Tokens(ids, ids, array(length, jnp.bool_), at)


@dataclasses.dataclass(frozen=True)
class Counted:
    """The leaves of a network that count: those that its model names."""

    patterns: tuple[str, ...]

    def __call__(self, params: Params) -> Prunable:
        return masks.prunable(params, include=self.patterns)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A model that fits some texts, and what a task says of its leaves.

    Attributes:
      model: the model.
      prunable: which leaves count.
      exclude: patterns of those that count and are never cut.
      head: patterns of those that belong to this task alone.
    """

    model: _models.Model
    prunable: Callable[[Params], PyTree] | None
    exclude: tuple[str, ...]
    head: tuple[str, ...]


def fit(
    texts: Texts,
    module: nn.Module | None,
    functions: tuple[Callable[..., Any] | None, Callable[..., Any] | None],
    drawn: Sequences,
    example: Tokens,
    outputs: tuple[int, ...],
    axes: str,
    *,
    prunable: Callable[[Params], PyTree] | None,
    exclude: tuple[str, ...],
    head: tuple[str, ...],
) -> Fitted:
    """The model of a task, once it is sure that it fits.

    Args:
      texts: what it is given.
      module: a Linen module, or None.
      functions: `init` and `apply`, or None twice.
      drawn: how examples are drawn.
      example: see `shape`.
      outputs: the shape of what it must say of an example.
      axes: in words.
      prunable: see `classification`; None for the leaves that the module's
        `prunable_patterns` name, or those of `masks.prunable`.
      exclude: see `classification`.
      head: likewise.

    Raises:
      ValueError: what does not fit; names it.
    """
    _models.check_prunable(prunable)
    exclude, head = _models.patterns("exclude", exclude), _models.patterns("head", head)
    types = [int(own["types"].max()) for own in texts.arrays.values() if "types" in own]
    for what, needed in (
        ("vocabulary", texts.vocabulary.size),
        ("types", max(types, default=0) + 1),
    ):
        # What has no embedding would find nan, or another's.
        number = getattr(module, what, None)
        if number is not None and number < needed:
            must = f"{number} at most, the embeddings of {type(module).__name__}"
            raise errors.wrong(f"the {what} of {texts.name}", needed, must)
    used = _models.of(module, *functions, example, drawn.padded)
    size = drawn.batch_size
    params = _models.check(used, _models.batched(example, size), (size, *outputs), axes)
    state = used.foreign
    if state or (isinstance(used, _models.Linen) and used.state):
        raise ValueError(
            f"{used.name}: it has a model state; a task on texts carries none"
        )
    patterns = getattr(module, "prunable_patterns", None)
    if prunable is None and patterns is not None:
        prunable = Counted(tuple(patterns))
    _models.check_found(params, exclude=exclude, head=head)
    return Fitted(used, prunable, exclude, head)


def task(
    texts: Texts,
    drawn: Sequences,
    fitted: Fitted,
    static: Any,
    *,
    batch: MakeBatch | None = None,
    predicts: bool = True,
) -> Task:
    """A task of padded sequences or windows, from its parts.

    Args:
      texts: its data.
      drawn: how they are drawn.
      fitted: its model.
      static: whose methods are the task's functions.
      batch: makes one step's batch; None for the examples as they are stored.
      predicts: whether the network says a class of each example.
    """
    return Task(
        data=texts.arrays,
        init=static.init,
        order=drawn.order,
        batch=batch or drawn.batch,
        loss=static.loss,
        evaluate=static.evaluate,
        steps_per_epoch=drawn.steps_per_epoch,
        predict=static.predict if predicts else None,
        outputs=static.outputs,
        prunable=fitted.prunable,
        exclude=fitted.exclude,
        head=fitted.head,
        validates="validation" in texts.arrays,
    )
