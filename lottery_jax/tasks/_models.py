"""How a task calls a model: a Linen module, or two pure functions of any library.

Both come out as the same thing, a `Model`. What may differ from model to model is read
off signatures, once: whether training, a key and example weights are asked for, and
whether there is a model state.

The last batch of an epoch may be padded. The loss leaves padding out by itself; a model
state that is computed from the batch (BatchNorm) cannot, unless the model is told. A
module or function with a parameter `weights` is; Flax's own `nn.BatchNorm` is given a
mask here; anything else with a model state is refused rather than slightly wrong.

What a Linen module carries from step to step are the collections that `init` makes and
that keep their shapes. Those that a call only leaves something in are no state: what is
sown into them grows with every call, a perturbation has a row for every example. They
are left out, as Flax leaves out "intermediates".
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import errors as flax_errors
from flax import linen as nn

from lottery_jax import errors, models, trees
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
        inputs: PyTree,
        /,
        *,
        train: bool,
        key: Key | None = None,
        weights: Array | None = None,
    ) -> tuple[Array, ModelState]:
        """What the model says `[B, ...]`, and the model state after a training pass.

        Args:
          params: the weights.
          model_state: in evaluation it comes back as it is.
          inputs: `[B, ...]`: images, or a pytree such as `data.text.Tokens`.
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
      shape: of one example: of an image; or a hashable pytree of shapes and dtypes.
      options: which parameters of its `__call__` are given a value.
      padded: whether there are padded batches.
      state: the collections that are its model state.
      passing: those that a call only leaves something in.
      foreign: whether there is a state that is no BatchNorm's, Flax's or this library's.
    """

    module: nn.Module
    shape: PyTree
    options: tuple[str, ...]
    padded: bool
    state: tuple[str, ...] = ()
    passing: tuple[str, ...] = ()
    foreign: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"model={type(self.module).__name__}"

    def init(self, key: Key) -> tuple[Params, ModelState]:
        variables = self.variables(key)
        return variables["params"], {name: variables[name] for name in self.state}

    def variables(self, key: Key, examples: int = 1) -> dict[str, PyTree]:
        """Everything that the module makes of some examples."""
        inputs = zeros(self.shape, examples)
        return dict(self.module.init(key, inputs, **self._given(False, None)))

    def apply(
        self,
        params: Params,
        model_state: ModelState,
        inputs: PyTree,
        /,
        *,
        train: bool,
        key: Key | None = None,
        weights: Array | None = None,
    ) -> tuple[Array, ModelState]:
        variables: dict[str, Any] = {"params": params, **model_state}
        given = self._given(train, weights)
        if not train:
            logits: Any = self.module.apply(variables, inputs, **given)
            return logits, model_state
        masking = functools.partial(_masked, weights if self.padded else None)
        with nn.intercept_methods(masking):
            out: Any = self.module.apply(
                variables, inputs, **given, mutable=list(self.state), rngs=_rngs(key)
            )
        return out

    def statistics(
        self, params: Params, model_state: ModelState, batch: PyTree
    ) -> PyTree:
        """Mean and variance of a batch at every BatchNorm, in training mode: dropout is on.

        `Task.statistics` has no key, so each batch draws by its labels, from key 0:
        another mask for every batch, and the same ones for every network that is
        compared, at every point between them and whenever it is done again.
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
        return state

    def _given(self, train: bool, weights: Array | None) -> dict[str, Any]:
        values: dict[str, Any] = {"weights": weights}
        values |= {name: train == training for name, training in _TRAINING.items()}
        return {name: values[name] for name in self.options}


def pool(moments: PyTree) -> ModelState:
    """The running statistics that those of several batches make, `[batches, ...]` each.

    The variance is that of all examples together. Around the mean of all: the difference
    of mean squares would lose channels whose mean is large.
    """
    if "mean" not in moments:
        return {name: pool(inner) for name, inner in moments.items()}
    means, variances = moments["mean"], moments["var"]
    mean = jnp.mean(means, axis=0, keepdims=True)
    apart = jnp.square(means - mean)
    return {"mean": mean[0], "var": jnp.mean(variances + apart, axis=0)}


def batched(shape: PyTree, examples: int) -> PyTree:
    """The shapes and dtypes of so many examples.

    Args:
      shape: of one: numbers, of a float32 image; or a pytree of `jax.ShapeDtypeStruct`.
      examples: how many.
    """
    if isinstance(shape, tuple) and all(isinstance(size, int) for size in shape):
        return jax.ShapeDtypeStruct((examples, *shape), jnp.float32)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((examples, *x.shape), x.dtype), shape
    )


def zeros(shape: PyTree, examples: int) -> PyTree:
    """So many examples that are all 0; see `batched`."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batched(shape, examples))


def linen(module: nn.Module, shape: PyTree, padded: bool) -> Linen:
    """A Linen module as a model; it is traced to see what its state is.

    Args:
      module: the module.
      shape: of one example, see `batched`.
      padded: whether there are padded batches.

    Raises:
      ValueError: no module, or one whose state cannot be told from what it leaves behind.
    """
    errors.is_a("model", module, nn.Module, "a Linen module, an instance and no class")
    parameters = inspect.signature(type(module).__call__).parameters
    known = (*_TRAINING, "weights")
    options = tuple(n for n in known if n in parameters)
    model = Linen(module, shape, options, padded)
    norms = set()

    def note(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm | models.BatchNorm):
            norms.add("/".join(("batch_stats", *context.module.path)))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        made = jax.eval_shape(model.variables, jax.eval_shape(of_seed, 0))
    if not jax.tree.leaves(made.get("params")):
        raise ValueError(f"{model.name}: it has no params; there must be some to train")
    found = {name: tree for name, tree in made.items() if name != "params"}
    # Few models have more than BatchNorm: only they are traced again.
    passing: tuple[str, ...] = ()
    if _others(found, norms):
        passing = _passing(model, tuple(found))
    state = tuple(name for name in found if name not in passing)
    rest = {name: found[name] for name in state}
    return dataclasses.replace(
        model, state=state, passing=passing, foreign=_others(rest, norms)
    )


def _others(collections: Mapping[str, PyTree], norms: set[str]) -> bool:
    """Whether there is anything but the statistics of norms."""
    return any(
        path.rpartition("/")[0] not in norms for path in trees.paths(collections)
    )


def _passing(model: Linen, names: tuple[str, ...]) -> tuple[str, ...]:
    """The collections in which every variable grows with the calls or with the batch."""

    def shapes(examples: int) -> tuple[PyTree, PyTree]:
        def once(key: Key) -> tuple[PyTree, PyTree]:
            before = model.variables(key, examples)
            inputs = zeros(model.shape, examples)
            given = model._given(True, jnp.ones(examples, jnp.float32))
            _, after = model.module.apply(
                before, inputs, **given, mutable=list(names), rngs=_rngs(key)
            )
            return before, after

        return jax.eval_shape(once, jax.eval_shape(of_seed, 0))

    def by_variable(tree: PyTree) -> dict[str, Any]:
        leaves = jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda x: not isinstance(x, Mapping)
        )
        return {
            trees.leaf_path(path): jax.tree.map(lambda x: x.shape, x)
            for path, x in leaves
        }

    try:
        (one, after), (two, _) = shapes(1), shapes(2)
    except Exception as error:
        raise ValueError(
            f"{model.name}: with its collections {list(names)} a call cannot follow "
            f"another: {_first_line(error)}"
        ) from error
    out = []
    for name in names:
        seen = [by_variable(tree.get(name, {})) for tree in (one, after, two)]
        every = {path for found in seen for path in found}
        moved = sorted(
            path
            for path in every
            if not seen[0].get(path) == seen[1].get(path) == seen[2].get(path)
        )
        if moved and len(moved) < len(every):
            raise ValueError(
                f"{model.name}: collection {name!r} holds {moved[0]!r}, which grows with "
                "every call or with the batch, beside what stays; it must be in a "
                "collection of its own, such as 'intermediates'"
            )
        if moved:
            out.append(name)
    return tuple(out)


_NOT_DROPOUT = 0x5EED


def _rngs(key: Key | None) -> dict[str, Key]:
    """The keys of a module in training: dropout's, and one for every other name.

    Flax draws from "params" what a module asks for under a name that is not there.
    """
    if key is None:
        return {}
    return {"dropout": key, "params": jax.random.fold_in(key, _NOT_DROPOUT)}


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

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"apply={errors.shown(self.call)}"

    @property
    def foreign(self) -> bool:
        """Whether there is a state, of which nothing is known; as `Linen.foreign`."""
        return self.stateful

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
        inputs: PyTree,
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
            return self.call(params, inputs, **given), model_state
        out = self.call(params, model_state, inputs, **given)
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
    for field, value in (("init", init), ("apply", apply)):
        errors.is_a(field, value, Callable, "a function")  # type: ignore[arg-type]
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
            f"apply={errors.shown(apply)}; it must be apply(params, images) or apply(params, "
            "model_state, images), with train=, key= and weights= as it needs them; its "
            f"parameters are {[str(p) for p in parameters]}"
        )
    options = tuple(p.name for p in parameters if p.name in _OPTIONS)
    return Functions(init, apply, len(names) == 3, options)


def of(
    model: nn.Module | None,
    init: Callable[..., Any] | None,
    apply: Callable[..., Any] | None,
    shape: PyTree,
    padded: bool,
) -> Linen | Functions:
    """What a task was given: a Linen module, or two functions.

    Args:
      model: the module, or None.
      init: the functions, or None.
      apply: likewise.
      shape: of one example, see `batched`.
      padded: whether there are padded batches.

    Raises:
      ValueError: neither or both; or as `linen` and `functions`.
    """
    if model is not None and init is None and apply is None:
        return linen(model, shape, padded)
    if model is None and init is not None and apply is not None:
        return functions(init, apply)
    names = {"model": model, "init": init, "apply": apply}
    given = [name for name, value in names.items() if value is not None]
    raise ValueError(
        f"given are {given}; it must be either model, or init and apply both"
    )


def patterns(field: str, patterns: Any) -> tuple[str, ...]:
    """Patterns as a tuple; one alone is one of them."""
    found = (patterns,) if isinstance(patterns, str) else errors.names(field, patterns)
    for pattern in found:
        try:
            re.compile(pattern)
        except re.error as error:
            must = f"a regular expression ({error})"
            raise errors.wrong(field, repr(pattern), must) from None
    return found


def check_prunable(prunable: Any) -> None:
    """Raises a ValueError if a task's `prunable` is neither a function nor None."""
    if prunable is not None:
        must = "a function of params, or None"
        errors.is_a("prunable", prunable, Callable, must)  # type: ignore[arg-type]


def check_found(params: Params, **fields: tuple[str, ...]) -> None:
    """Raises a ValueError that names the field whose patterns match no leaf.

    Args:
      params: arrays or shapes.
      **fields: patterns by the names of a task's arguments.
    """
    for field, found in fields.items():
        try:
            trees.matching(params, found)
        except ValueError as error:
            raise ValueError(f"{field}={found}: {error}") from None


# --- do they fit? ---------------------------------------------------------------------


def check(
    model: Linen | Functions,
    inputs: PyTree,
    outputs: tuple[int | None, ...],
    axes: str,
) -> Params:
    """Refuses a model that does not fit the data, before anything is compiled.

    Args:
      model: the model.
      inputs: shapes and dtypes of one batch.
      outputs: the shape of what it must say of one; None for an axis of any size.
      axes: what the axes of that shape are, for messages.

    Returns:
      The shapes of its params.

    Raises:
      ValueError: it draws no params that can be trained, its logits have another shape
        or no real dtype, in training or in evaluation, its state does not keep its form,
        or it draws random numbers in evaluation.
    """
    wanted = str(outputs).replace("None", "any")
    examples = jax.tree.leaves(inputs)[0].shape[:1]
    weights = jax.ShapeDtypeStruct(examples, jnp.float32)

    def in_training(key: Key, inputs: PyTree, weights: Array) -> PyTree:
        params, state = model.init(key)
        _check_drawn(params, state)
        logits, after = model.apply(
            params, state, inputs, train=True, key=key, weights=weights
        )
        _check_logits(f"{model.name}: its logits", logits)
        return params, state, after

    def in_evaluation(params: Params, state: ModelState, inputs: PyTree) -> PyTree:
        logits, _ = model.apply(params, state, inputs, train=False)
        _check_logits(f"{model.name}: in evaluation its logits", logits)
        return logits

    def _check_logits(what: str, logits: Any) -> None:
        if not hasattr(logits, "shape") or not hasattr(logits, "dtype"):
            raise ValueError(
                f"{what} are {errors.shown(logits)}; it must be one array {wanted}, {axes}"
            )
        sizes = logits.shape
        if len(sizes) == len(outputs):
            sizes = tuple(n if m is None else m for n, m in zip(sizes, outputs))
        if logits.shape != sizes or len(sizes) != len(outputs) or 0 in sizes:
            raise ValueError(
                f"{what} have shape {logits.shape}; it must be {wanted}, {axes}"
            )
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(f"{what} have dtype {logits.dtype}; it must be real")

    key = jax.eval_shape(of_seed, 0)
    try:
        params, state, after = jax.eval_shape(in_training, key, inputs, weights)
        _check_kept(model.name, state, after)
        jax.eval_shape(in_evaluation, params, state, inputs)
    except flax_errors.InvalidRngError as error:
        raise ValueError(
            f"{model.name}: {_first_line(error)} in evaluation, which draws nothing; "
            "dropout must be off there: give `__call__` a parameter `train`"
        ) from error
    except flax_errors.FlaxError as error:
        without = ""
        if isinstance(model, Linen) and model.passing:
            without = (
                f" (its collections {list(model.passing)} grow with every call or with "
                "the batch, so they are no state that is carried)"
            )
        raise ValueError(f"{model.name}: {_first_line(error)}{without}") from error
    return params


def _first_line(error: Exception) -> str:
    return str(error).split(" (https://")[0].splitlines()[0]


def _check_drawn(params: Params, state: ModelState) -> None:
    """Whether what an initialisation draws can be trained, stored and carried."""
    for what, tree in (("params", params), ("model state", state)):
        for path, leaf in trees.by_path(tree).items():
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
                raise errors.wrong(
                    f"init: leaf {path!r} of the {what}",
                    errors.shown(leaf),
                    "an array (of an Equinox model eqx.filter takes the arrays)",
                )
    found = trees.by_path(params)
    if not found:
        raise errors.wrong("init: params", params, "arrays to train, one at least")
    for path, leaf in found.items():
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise errors.wrong(
                f"init: leaf {path!r} of the params",
                f"{leaf.dtype} of shape {leaf.shape}",
                "real: what is not trained belongs into the model state",
            )


def _check_kept(name: str, before: ModelState, after: ModelState) -> None:
    """Whether the state after a step can be that of the next one."""
    try:
        trees.same(before, after, ("the model state", "the one that apply returns"))
    except ValueError as error:
        raise ValueError(
            f"{name}: {error}. What a call only leaves behind is no state: leave it out "
            "of what apply returns (of NNX, nnx.pop(net, nnx.Intermediate))"
        ) from None
    for (path, x), y in zip(trees.by_path(before).items(), jax.tree.leaves(after)):
        if x.dtype != y.dtype:
            raise ValueError(
                f"{name}: leaf {path!r} of the model state is {x.dtype} at first and "
                f"{y.dtype} after a step; it must keep its dtype"
            )
