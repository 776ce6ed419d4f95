"""How a task calls a model: a Linen module, or two pure functions of any library.

Both come out as the same thing, a `Model`. What may differ from model to model is read
off signatures, once: whether training, a key and example weights are asked for, and
whether there is a model state.

The last batch of an epoch may be padded. The loss leaves padding out by itself; a model
state that is computed from the batch (BatchNorm) cannot, unless the model is told. A
module or function with a parameter `weights` is; Flax's own `nn.BatchNorm` is given a
mask here; anything else with a model state is refused rather than slightly wrong.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from lottery_jax import models, trees
from lottery_jax.keys import of_seed
from lottery_jax.types import Array, Key, ModelState, Params, PyTree


class Model(Protocol):
    """What a task needs of a model."""

    def init(self, key: Key, /) -> tuple[Params, ModelState]:
        """A draw of the initialisation."""
        ...

    def apply(
        self,
        params: Params,
        model_state: ModelState,
        images: Array,
        /,
        *,
        train: bool,
        key: Key | None = None,
        weights: Array | None = None,
    ) -> tuple[Array, ModelState]:
        """Logits `[B, classes]`, and the model state after a training pass.

        Args:
          params: the weights.
          model_state: in evaluation it comes back as it is.
          images: `[B, ...]`.
          train: training or evaluation.
          key: of what training draws; None in evaluation.
          weights: of the examples, `[B]`; None in evaluation.
        """
        ...


# --- Linen ----------------------------------------------------------------------------

_TRAINING = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""What modules call the switch between training and evaluation: its value in training."""


@dataclasses.dataclass(frozen=True)
class Linen:
    """A Linen module.

    Attributes:
      module: the module.
      shape: of one example.
      options: which parameters of its `__call__` are given a value.
      padded: whether there are padded batches.
    """

    module: nn.Module
    shape: tuple[int, ...]
    options: tuple[str, ...]
    padded: bool

    def init(self, key: Key) -> tuple[Params, ModelState]:
        images = jnp.zeros((1, *self.shape), jnp.float32)
        variables = self.module.init(key, images, **self._given(False, None))
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        return variables["params"], rest

    def apply(
        self,
        params: Params,
        model_state: ModelState,
        images: Array,
        /,
        *,
        train: bool,
        key: Key | None = None,
        weights: Array | None = None,
    ) -> tuple[Array, ModelState]:
        variables: dict[str, Any] = {"params": params, **model_state}
        given = self._given(train, weights)
        if not train:
            logits: Any = self.module.apply(variables, images, **given)
            return logits, model_state
        masking = functools.partial(_masked, weights if self.padded else None)
        with nn.intercept_methods(masking):
            out: Any = self.module.apply(
                variables,
                images,
                **given,
                mutable=list(model_state),
                rngs={} if key is None else {"dropout": key},
            )
        return out

    def statistics(
        self, params: Params, model_state: ModelState, batch: PyTree
    ) -> PyTree:
        """The moments of a batch at every BatchNorm, in training mode: dropout is on.

        `Task.statistics` has no key, so each batch draws by its labels: another mask for
        every batch, and the same ones for every network that is compared.
        """
        label = batch["label"].astype(jnp.uint32)
        key = jax.random.fold_in(
            of_seed(0),
            jnp.sum(label * jnp.arange(1, len(label) + 1, dtype=jnp.uint32)),
        )
        with nn.intercept_methods(_of_this_batch):
            _, state = self.apply(
                params,
                model_state,
                batch["image"],
                train=True,
                key=key,
                weights=batch["weight"],
            )
        return _each_norm(_moments, model_state, state)

    def _given(self, train: bool, weights: Array | None) -> dict[str, Any]:
        values: dict[str, Any] = {"weights": weights}
        values |= {name: train == training for name, training in _TRAINING.items()}
        return {name: values[name] for name in self.options}


def pool(moments: PyTree) -> ModelState:
    """The running statistics that averaged moments make."""
    return _each_norm(_pooled, moments)


# Squares are taken around a constant that all batches share: around 0 the variance of
# channels whose mean is large would be the small difference of two large numbers.


def _moments(before: PyTree, norm: PyTree) -> PyTree:
    around = before["mean"]
    square = norm["var"] + jnp.square(norm["mean"] - around)
    return {"mean": norm["mean"], "square": square, "around": around}


def _pooled(norm: PyTree) -> PyTree:
    of_means = jnp.square(norm["mean"] - norm["around"])
    return {"mean": norm["mean"], "var": jnp.maximum(norm["square"] - of_means, 0)}


def linen(module: nn.Module, shape: tuple[int, ...], padded: bool) -> Linen:
    """A Linen module as a model."""
    parameters = inspect.signature(type(module).__call__).parameters
    known = (*_TRAINING, "weights")
    return Linen(module, shape, tuple(n for n in known if n in parameters), padded)


def has_foreign_state(model: Linen) -> bool:
    """Whether a module has a state that is no BatchNorm's, Flax's or this library's."""
    norms = set()

    def note(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm | models.BatchNorm):
            norms.add("/".join(("batch_stats", *context.module.path)))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        _, state = jax.eval_shape(model.init, jax.eval_shape(of_seed, 0))
    return any(path.rpartition("/")[0] not in norms for path in trees.paths(state))


# Interceptors of Flax: what a module's method is called instead of, `(call, its
# arguments, whose it is)`. They reach norms at any depth, inside of lifted
# transformations too, and change nothing of the modules themselves.


def _masked(
    weights: Array | None, call: Callable, args: tuple, kwargs: dict, context: Any
) -> Any:
    """Flax's BatchNorm without the examples of weight 0."""
    norm = context.module
    if (
        weights is None
        or not isinstance(norm, nn.BatchNorm)
        or context.method_name != "__call__"
        or kwargs.get("mask") is not None
    ):
        return call(*args, **kwargs)
    x = args[0] if args else kwargs["x"]
    axes = (norm.axis,) if isinstance(norm.axis, int) else tuple(norm.axis)
    if x.shape[:1] != weights.shape or any(axis % x.ndim == 0 for axis in axes):
        raise ValueError(
            f"batch_size={len(weights)}; it must divide the number of training examples, "
            "or drop_last be True: the last batch of an epoch is padded, and the "
            f"BatchNorm {'/'.join(norm.path)!r}, whose input has shape {x.shape}, cannot "
            "tell which of it is padding"
        )
    mask = (weights > 0).reshape(-1, *(1,) * (x.ndim - 1))
    return call(*args, **kwargs | {"mask": mask})


def _of_this_batch(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """BatchNorm that leaves the batch's own mean and biased variance behind."""
    norm = context.module
    changes: dict[str, Any] = {"momentum": 0.0}
    if isinstance(norm, models.BatchNorm):
        changes["unbiased"] = False
    elif not isinstance(norm, nn.BatchNorm):
        return call(*args, **kwargs)
    # The copy below comes through here again, and is let through.
    if context.method_name != "__call__" or all(
        getattr(norm, name) == value for name, value in changes.items()
    ):
        return call(*args, **kwargs)
    y, after = norm.clone(**changes).apply(
        norm.variables, *args, **kwargs, mutable=["batch_stats"]
    )
    for name, value in after["batch_stats"].items():
        norm.put_variable("batch_stats", name, value)
    return y


def _each_norm(change: Callable[..., PyTree], *of: PyTree) -> PyTree:
    """Makes a nested dict from the dicts of every BatchNorm in some of them."""
    if "mean" in of[0]:
        return change(*of)
    return {name: _each_norm(change, *(x[name] for x in of)) for name in of[0]}


# --- functions ------------------------------------------------------------------------

_OPTIONS = ("train", "key", "weights")


@dataclasses.dataclass(frozen=True)
class Functions:
    """Two pure functions, `init` and `apply`.

    Attributes:
      make: draws params, or (params, model state).
      call: gives logits, or (logits, model state).
      stateful: whether there is a model state.
      options: which of `train`, `key` and `weights` the second one takes.
    """

    make: Callable[..., Any]
    call: Callable[..., Any]
    stateful: bool
    options: tuple[str, ...]

    def init(self, key: Key) -> tuple[Params, ModelState]:
        made = self.make(key)
        if not self.stateful:
            return made, {}
        if not (isinstance(made, tuple) and len(made) == 2):
            raise ValueError(
                f"init returns {type(made).__name__}; it must be (params, model_state), "
                "since apply takes a model state"
            )
        return made

    def apply(
        self,
        params: Params,
        model_state: ModelState,
        images: Array,
        /,
        *,
        train: bool,
        key: Key | None = None,
        weights: Array | None = None,
    ) -> tuple[Array, ModelState]:
        values = {"train": train, "key": key, "weights": weights}
        given = {name: values[name] for name in self.options}
        # NNX's variables may only change in the transformation that they were made in:
        # these are made here.
        params, model_state = jax.tree.map(lambda x: x, (params, model_state))
        if not self.stateful:
            return self.call(params, images, **given), model_state
        out = self.call(params, model_state, images, **given)
        if not (isinstance(out, tuple) and len(out) == 2):
            raise ValueError(
                f"apply returns {type(out).__name__}; it must be (logits, model_state), "
                "since it takes a model state"
            )
        return out if train else (out[0], model_state)


def functions(init: Callable[..., Any], apply: Callable[..., Any]) -> Functions:
    """Two functions as a model; their form is that of `apply`'s parameters.

    Raises:
      ValueError: neither `(params, images)` nor `(params, model_state, images)`.
    """
    parameters = inspect.signature(apply).parameters.values()
    by_position = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    names = [
        p.name
        for p in parameters
        if p.name not in _OPTIONS and p.kind in by_position and p.default is p.empty
    ]
    if len(names) not in (2, 3):
        raise ValueError(
            f"apply={apply}; it must be apply(params, images) or apply(params, "
            "model_state, images), with train=, key= and weights= as it needs them; its "
            f"parameters are {[str(p) for p in parameters]}"
        )
    options = tuple(p.name for p in parameters if p.name in _OPTIONS)
    return Functions(init, apply, len(names) == 3, options)
