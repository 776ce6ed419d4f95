"""Classification under attack, from a recipe: a data set, a network and an adversary."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, cast

from experiments.kinds import images
from lottery_jax import errors, tasks
from lottery_jax.tasks.adversarial import BatchNorm
from lottery_jax.types import Task

if TYPE_CHECKING:
    from experiments.recipes import Recipe

AttackName = Literal["natural", "fgsm", "pgd"]
"""How networks are trained: on images as they are, under one step, or under several."""

ATTACKS: tuple[AttackName, ...] = ("natural", "fgsm", "pgd")
"""All of them."""


@dataclasses.dataclass(frozen=True)
class Attacked:
    """The fields of a recipe that say how networks are attacked; to be mixed in."""

    attack: AttackName = "pgd"
    """Training: natural, on images as they are; fgsm, one step of the radius; pgd."""
    radius: float = 0.1
    """How far an attack moves a pixel, of pixels in [0, 1]."""
    attack_steps: int = 7
    """Steps of PGD in training."""
    step_size: float | None = None
    """Of PGD in training and in what is measured; None for 2.5 * radius / steps."""
    random_start: bool = True
    """Whether PGD begins at a random point of the ball."""
    attack_batch_norm: BatchNorm = "train"
    """What BatchNorm normalises by inside of an attack in training."""
    measured_steps: int = 10
    """Steps of PGD in what is measured, always from random starts."""
    restarts: int = 2
    """Random starts of what is measured; the worst of each example counts."""
    examples: int = 1000
    """Examples of a split, the first ones, that are attacked to measure networks."""


FIELDS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Attacked))
"""Their names."""


_WHITE = {"digits": 16}
"""The pixel that is 1 of data sets that do not fill 0 to 255."""


def make_attack(recipe: Any) -> tasks.Attack | None:
    """The attack of training; None for natural training.

    Args:
      recipe: with the fields of `Attacked`.

    Raises:
      ValueError: an unknown name or a field out of range.
    """
    errors.one_of("attack", recipe.attack, ATTACKS)
    if recipe.attack == "natural":
        return None
    if recipe.attack == "fgsm":
        return tasks.Attack.fgsm(recipe.radius)
    return _pgd(recipe, "attack_steps", random_start=recipe.random_start)


def make_measured(recipe: Any) -> tasks.Attack:
    """The attack that networks are measured by: PGD with restarts.

    Args:
      recipe: with the fields of `Attacked`.

    Raises:
      ValueError: a field out of range.
    """
    return _pgd(recipe, "measured_steps", restarts=recipe.restarts)


def _pgd(recipe: Any, field: str, **options: Any) -> tasks.Attack:
    steps = errors.whole(field, getattr(recipe, field), 1)
    return tasks.Attack.pgd(recipe.radius, steps, recipe.step_size, **options)


def make_adversarial(recipe: "Recipe") -> Task:
    """Classification under attack, of a recipe.

    Args:
      recipe: with the fields of `Attacked`.

    Raises:
      ValueError: an unknown name or a field out of range; data whose pixels have no known
        range.
      FileNotFoundError: data that are not prepared; says how to.
    """
    own = cast(Any, recipe)
    white = _WHITE.get(recipe.data, 255)
    return tasks.adversarial(
        images.make_classification(recipe),
        images.load_data(recipe),
        make_attack(own),
        measured=make_measured(own),
        examples=own.examples,
        batch_norm=own.attack_batch_norm,
        white=white,
    )
