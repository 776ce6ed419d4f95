"""Policies, from a recipe: an environment, and a network that plays it.

The data of a recipe is the environment, the examples of a step are its time steps: as many
games are played at once as `batch_size` is times the horizon.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import flax.linen as nn

from lottery_jax import environments, errors, models, tasks
from lottery_jax.types import Task
from lottery_jax.verdicts import RETURN, Metric

if TYPE_CHECKING:
    from experiments.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Playing:
    """How policies play and learn: the fields of this kind alone."""

    horizon: int = 4
    """Time steps that each game is played on for in a step of training."""
    gamma: float = 0.99
    """How much less a reward counts that comes a time step later, in (0, 1]."""
    entropy_weight: float = 0.01
    """Weight of the policy's entropy in the loss."""
    value_weight: float = 0.5
    """Weight of the critic's squared error in the loss."""
    reward_scale: float = 0.01
    """What rewards are multiplied by before they are learned from."""
    episodes: int = 100
    """Episodes that a network is measured by, on each split."""
    acting: Literal["sampled", "greedy"] = "sampled"
    """How a policy acts in evaluation: as in training, or always the likeliest."""
    leaves: Literal["kernels", "all"] = "all"
    """What counts as prunable: kernels, or all leaves, biases included."""
    critic: Literal["pruned", "kept"] = "pruned"
    """Whether the critic's output layer counts as prunable."""


FIELDS = (
    *(field.name for field in dataclasses.fields(Playing)),
    "initializer",
    "bias",
)
"""The fields of a recipe that this kind uses and others do not."""


def environment(recipe: "Recipe") -> environments.Environment:
    """What a recipe plays.

    Raises:
      ValueError: an unknown name.
    """
    errors.one_of("data", recipe.data, environments.NAMES)
    return environments.make(recipe.data)


def make_model(recipe: "Recipe") -> nn.Module:
    """The policy of a recipe.

    Raises:
      ValueError: an unknown name or choice.
    """
    choices = {"initializer": recipe.initializer, "bias": recipe.bias}
    try:
        return models.policy.make(recipe.model, environment(recipe).actions, **choices)
    except ValueError as error:
        raise ValueError(f"model={recipe.model!r}: {error}") from None


def make_actor_critic(recipe: Any) -> Task:
    """The actor-critic of a recipe with the fields of `Playing`.

    Raises:
      ValueError: an unknown name or a field out of range.
    """
    played = environment(recipe)
    of = f"the longest episode of {played.name}"
    horizon = errors.whole("horizon", recipe.horizon, 1, played.limit, of)
    games, rest = divmod(errors.whole("batch_size", recipe.batch_size, 1), horizon)
    if rest:
        must = f"a multiple of horizon={horizon}: the time steps of all games together"
        raise errors.wrong("batch_size", recipe.batch_size, must)
    if recipe.validation not in (None, 0):
        must = "None, for episodes of its own, or 0, for none"
        raise errors.wrong("validation", recipe.validation, must)
    if recipe.subset is not None:
        must = "None: there are no examples, each episode is played anew"
        raise errors.wrong("subset", recipe.subset, must)
    errors.one_of("acting", recipe.acting, ("sampled", "greedy"))
    return tasks.actor_critic(
        played,
        make_model(recipe),
        games=games,
        horizon=horizon,
        gamma=recipe.gamma,
        entropy_weight=recipe.entropy_weight,
        value_weight=recipe.value_weight,
        reward_scale=recipe.reward_scale,
        episodes=recipe.episodes,
        validation=recipe.validation is None,
        actions=recipe.acting,
        leaves=recipe.leaves,
        critic=recipe.critic,
        exclude=recipe.exclude,
    )


def metric(recipe: "Recipe") -> Metric:
    """What policies are compared by: their return."""
    return RETURN


def note(recipe: "Recipe") -> str:
    """What must be said of an environment: nothing."""
    return ""
