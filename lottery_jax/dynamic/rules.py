"""What a rule is, what is asked of one, and what it does to a network in training."""

from typing import NamedTuple, Protocol

import jax
import numpy as np
import optax

from lottery_jax import errors, keys, masks, transforms, trees
from lottery_jax.masks import Patterns, PrunableLike
from lottery_jax.types import Array, Key, Mask, Params, PyTree


class UpdateMask(Protocol):
    """A new mask from weights, their dense gradient and the mask so far; pure.

    The gradient is that of all weights, also off the mask.
    """

    def __call__(
        self,
        key: Key,
        step: Array,
        params: Params,
        gradients: Params,
        mask: Mask,
        /,
    ) -> Mask: ...


class StartMask(Protocol):
    """A mask of weights that have not been trained yet, a subset of the given one; pure.

    A rule that grows may then grow any weight, also off the mask that the run came with.
    """

    def __call__(self, key: Key, params: Params, mask: Mask, /) -> Mask: ...


class OnLeaves(Protocol):
    """A rule on given leaves: which count, and patterns of those that are never cut."""

    def __call__(
        self, *, prunable: PrunableLike, exclude: Patterns
    ) -> "MaskUpdate": ...


class MaskUpdate(NamedTuple):
    """A rule and the steps at which it acts, before the step is trained.

    Attributes:
      update: the rule.
      every: it acts at multiples of this step that are at least `begin` ...
      begin: ...
      end: ... and at most `end`.
      start: makes the mask that a run begins with; None for that of the run.
      grows: whether weights off the mask may come back.
      on: the same rule on the leaves of a task; None for one that has leaves of its own.

    Example:
      >>> from lottery_jax import prune, scores
      >>> def halve(key, step, params, gradients, mask):
      ...     return prune.global_topk(scores.magnitude(params), mask, fraction=0.5)
      >>> MaskUpdate(halve, every=100, begin=150, end=400).steps()
      [200, 300, 400]
    """

    update: UpdateMask
    every: int
    begin: int
    end: int
    start: StartMask | None = None
    grows: bool = False
    on: OnLeaves | None = None

    def steps(self) -> list[int]:
        """The steps at which the rule acts."""
        first = -(-self.begin // self.every) * self.every
        return list(range(first, self.end + 1, self.every))


def check(
    rule: MaskUpdate,
    params: Params | None = None,
    *,
    steps: int | None = None,
    tx: optax.GradientTransformation | None = None,
) -> None:
    """Raises a ValueError for a rule that does not fit what it shall prune.

    The runner asks this before anything is trained; a loop of one's own can.

    Args:
      rule: the rule.
      params: weights or their shapes: whether they can be cut as the rule wants.
      steps: how many steps are trained: whether it ends before them.
      tx: the optimizer: whether weights can come back under it.

    Raises:
      ValueError: no rule; one that acts after the last step or, for a period that is
        longer than what is trained, never; leaves that cannot be cut so, a density that
        they cannot reach; a rule that lets weights come back, under an optimizer by which
        none is gone.

    Example:
      >>> from lottery_jax import dynamic
      >>> check(dynamic.gradual_magnitude(0.1, 0, 1000), steps=1000)
      Traceback (most recent call last):
      ...
      ValueError: rule: acts at step 1000; it must end before stop=1000, so that what ...
    """
    must = "a dynamic.MaskUpdate, as dynamic.gradual_magnitude(...) makes"
    errors.is_a("rule", rule, MaskUpdate, must)
    made = getattr(rule.on, "made", None)
    if made is not None and rule._replace(on=None) != made:
        raise ValueError(
            "rule: was changed since it was made, which it would forget on the leaves of "
            "a task; make it anew, or replace on=None too: then it has leaves of its own"
        )
    errors.whole("rule.every", rule.every, 1)
    errors.whole("rule.begin", rule.begin, 0)
    errors.whole("rule.end", rule.end, 0)
    errors.flag("rule.grows", rule.grows)
    for field, function in (("update", rule.update), ("start", rule.start)):
        if not callable(function) and (field == "update" or function is not None):
            must = "a function that returns a mask"
            raise errors.wrong(f"rule.{field}", errors.shown(function), must)
    acting = rule.steps()
    if steps is not None:
        steps = errors.whole("steps", steps, 1)
        if acting and (last := max(acting[-1], rule.end)) >= steps:
            what = f"acts at step {last}" if last == acting[-1] else f"end={last}"
            raise ValueError(
                f"rule: {what}; it must end before stop={steps}, so that what is left is "
                "trained"
            )
        if not acting and rule.start is None:
            raise ValueError(
                f"rule: every={rule.every}, begin={rule.begin}, end={rule.end} is no step; "
                "a rule must act, or start with a mask of its own"
            )
    if tx is not None and rule.grows and transforms.trains_all(tx):
        raise ValueError(
            "rule: lets weights off the mask come back, at 0 and with a new state of the "
            "optimizer; under straight_through(tx) these are trained: choose a rule by "
            "magnitude"
        )
    if params is None:
        return
    shapes = trees.shapes_of(params)
    mask = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.bool_), shapes)
    key = jax.eval_shape(lambda: keys.of_seed(0))
    step = jax.ShapeDtypeStruct((), np.int32)
    found = [jax.eval_shape(rule.update, key, step, shapes, shapes, mask)]
    if rule.start is not None:
        found.append(jax.eval_shape(rule.start, key, shapes, mask))
    for one in found:
        masks.check(one, shapes)


def with_leaves(rule: MaskUpdate, on: OnLeaves) -> MaskUpdate:
    """A rule that the leaves of a task are for, where there is a task.

    Args:
      rule: on the leaves that it finds by itself.
      on: the same rule on others.
    """
    on.made = rule  # type: ignore[attr-defined]
    return rule._replace(on=on)


def of_leaves(
    rule: MaskUpdate, prunable: PrunableLike, exclude: Patterns
) -> MaskUpdate:
    """A rule on the leaves of a task, unless it names its own.

    Args:
      rule: the rule.
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.
    """
    return rule if rule.on is None else rule.on(prunable=prunable, exclude=exclude)


def act(
    rule: UpdateMask,
    tx: optax.GradientTransformation,
    key: Key,
    step: Array,
    params: Params,
    gradients: Params,
    mask: Mask,
    opt_state: PyTree,
) -> tuple[Params, Mask, PyTree]:
    """Lets a rule change the mask, and what follows from it for weights and optimizer.

    Args:
      rule: changes the mask.
      tx: the optimizer.
      key: what the rule draws from.
      step: at which its schedule stands, int32 `[]`.
      params: the weights, 0 off the mask.
      gradients: the dense gradient at these.
      mask: the mask so far.
      opt_state: of the optimizer.

    Returns:
      The weights under the new mask, it, and the state: see `transforms.change_mask`.
    """
    weights, living = transforms.trained_weights(tx, opt_state, params, mask)
    new = rule(key, step, weights, gradients, living)
    params, opt_state = transforms.change_mask(tx, opt_state, params, mask, new)
    return params, new, opt_state


def index_of(step: Array, every: int, begin: int) -> Array:
    """At which of its steps a rule stands, from 0; int32 `[]`."""
    return (step - -(-begin // every) * every) // every


def drawn_from(key: Key | None, rule: str) -> Key:
    """The key of a rule that draws.

    Args:
      key: what was given.
      rule: its name.

    Raises:
      ValueError: there is none.
    """
    if key is None:
        raise errors.wrong("key", None, f"a key: {rule} draws from it")
    return key
