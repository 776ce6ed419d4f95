"""What a study of pre-trained tickets is determined by, and what is trained in it."""

import dataclasses
from typing import Any, Literal

from experiments import recipes
from experiments.identity import FREE, Where
from experiments.kinds import images
from experiments.kinds.contrasts import Contrasting
from experiments.recipes import Recipe, Setup
from experiments.transfer import pairs
from lottery_jax import data, errors, imp

SIMCLR, SUPERVISED = "simclr", "supervised"

RANDOM = "random"
"""What the start is called that was not pre-trained."""

HELD_OUT = "held_out"
"""The target whose classes no pre-training has seen."""

ADAPTED: dict[tuple[int, ...], Any] = {(28, 28, 1): "grey28", (32, 32, 3): "colour32"}
"""How images are given a shape, a value of `Recipe.inputs`."""

Pretraining = Literal["simclr", "supervised"]
Control = Literal["random_mask", "shuffled_weights"]


@dataclasses.dataclass(frozen=True)
class Config(Where, Contrasting, Recipe):
    """Everything that a study is determined by, and where and how it runs.

    `data` and `classes` are what is pre-trained on; `steps`, `batch_size`, the learning
    rate and the optimizer those of the downstream tasks. Pre-training has its own, with
    Adam, a cosine and no weight decay.
    """

    data: str = "cifar10"
    """Images of the pre-training."""
    classes: int | None = 5
    """Classes whose images are pre-trained on, the first ones; None for all."""
    model: str = "resnet-8-8"
    """Network; its head is a projection where nothing is classified."""
    pretrainings: tuple[Pretraining, ...] = ("simclr", "supervised")
    """How networks are pre-trained, on the same images: without labels, and with them."""
    targets: tuple[str, ...] = ("cifar10", "fashion_mnist")
    """Downstream data sets, made to fit the network; held_out are the other classes of
    `data`."""
    labels: int | None = 5000
    """Training examples of a target, the first ones; None for all."""
    validation: int | None = 0
    """Training examples held out for validation; nothing is chosen by it."""
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    """See `Recipe`."""
    learning_rate: float = 0.1
    """See `Recipe`."""
    weight_decay: float = 2e-4
    """See `Recipe`."""
    schedule: Literal["constant", "step", "cosine", "linear"] = "step"
    """See `Recipe`."""
    simclr_steps: str = "1500it"
    """Length of pre-training by SimCLR, in iterations or epochs."""
    simclr_level_steps: str = "150it"
    """Length of a level of pruning on SimCLR, from the pre-trained weights."""
    simclr_batch_size: int = 128
    """Images per step, each seen twice."""
    simclr_learning_rate: float = 1e-3
    """Peak learning rate of pre-training."""
    simclr_level_learning_rate: float = 3e-4
    """Peak learning rate of a level of pruning."""
    supervised_steps: str = "1500it"
    """Likewise of pre-training with labels."""
    supervised_level_steps: str = "150it"
    """Likewise."""
    supervised_batch_size: int = 128
    """Likewise."""
    supervised_learning_rate: float = 1e-3
    """Likewise."""
    supervised_level_learning_rate: float = 3e-4
    """Likewise."""
    levels: tuple[int, ...] = (1, 2, 3, 4)
    """Levels of pruning whose tickets are trained downstream, rising. Densities are those
    of all prunable layers but `kept` and the head, which are never pruned."""
    fraction: float = 0.55
    """Share of the surviving weights removed at each level."""
    kept: tuple[str, ...] = ("^stem/",)
    """Patterns of layers that are never pruned and count in no density, beside the head."""
    controls: tuple[Control, ...] = ("random_mask",)
    """Beside the tickets of a target, from the same start."""
    neighbours: int = 20
    """Of the nearest-neighbour probe of pre-trained networks."""
    every: int = 100
    """Steps of a segment; checkpoints are written between segments."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent runs, each with its own initialisation, pre-training and noise."""
    tolerance: float = dataclasses.field(default=0.002, metadata=FREE)
    """How far above the dense network's error a matching ticket may be."""


def origins(cfg: Config) -> tuple[str, ...]:
    """What networks start from downstream."""
    return (*cfg.pretrainings, RANDOM)


# --- recipes --------------------------------------------------------------------------


def pretraining(cfg: Config, name: str, *, level: bool) -> Config:
    """The recipe of a pre-training, or of a level of pruning on it.

    Args:
      cfg: of the study.
      name: of `Config.pretrainings`.
      level: which of the two.
    """
    kind = "contrastive" if name == SIMCLR else "classification"
    at = "_level" if level else ""
    own = {
        field: getattr(cfg, f"{name}{part}_{field}")
        for field, part in (("steps", at), ("batch_size", ""), ("learning_rate", at))
    }
    return dataclasses.replace(
        recipes.as_task(cfg, kind),
        data=cfg.data,
        classes=cfg.classes,
        normalization=cfg.normalization,
        optimizer="adam",
        weight_decay=0.0,
        schedule="cosine",
        drops=(),
        warmup="0it",
        augment=cfg.augment if name == SUPERVISED else (),
        **own,
    )


def target(cfg: Config, name: str) -> Config:
    """The recipe of a downstream task, whose examples have the shape of `data`.

    Raises:
      ValueError: another data set's images that nothing gives this shape; or held-out
        classes where there are none.
      FileNotFoundError: data that are not prepared; says how to.
    """
    recipe = recipes.as_task(cfg, "classification")
    recipe = dataclasses.replace(recipe, classes=None, subset=cfg.labels)

    def load(own: Config) -> data.Dataset:
        try:
            return images.load_data(own)
        except ValueError as error:  # in the words of the configuration
            raise ValueError(str(error).replace("subset", "labels")) from None

    if name == HELD_OUT:
        whole = images.load_data(dataclasses.replace(recipe, subset=None)).num_classes
        if cfg.classes is None or cfg.classes > whole - 2:
            must = f"2 to {whole - 2}: {HELD_OUT} needs two others of the {whole}"
            raise errors.wrong("classes", cfg.classes, must)
        recipe = dataclasses.replace(recipe, from_class=cfg.classes)
        load(recipe)
        return recipe
    if name == cfg.data:
        load(recipe)
        return recipe
    shape = load(recipe).shape
    own = dataclasses.replace(recipe, data=name)
    if load(own).shape == shape:
        return own
    if shape not in ADAPTED:
        must = f"sets whose examples have the shape {shape} of {cfg.data}"
        raise errors.wrong("targets", repr(name), must)
    return dataclasses.replace(own, inputs=ADAPTED[shape])


# --- what is trained ------------------------------------------------------------------


def dense(name: str) -> str:
    """What the dense pre-training is called among the set-ups, beside its pruning."""
    return f"pre-training by {name}"


def prepare(cfg: Config) -> dict[str, Setup]:
    """Task, optimizer and plan of everything that is trained.

    Returns:
      By the names of pre-trainings (a level of pruning on them), of `dense` (the
      pre-training itself), and of targets.

    Raises:
      ValueError: a field that makes no sense; names it.
      FileNotFoundError: data that are not prepared; says how to.
    """
    levels = pairs.check_levels(cfg.levels)
    for field in ("pretrainings", "targets", "controls"):
        errors.some_different(field, getattr(cfg, field))
    if cfg.task != "classification":
        must = "'classification': what is trained is said by pretrainings and targets"
        raise errors.wrong("task", repr(cfg.task), must)
    images.check_whole(cfg, "views and probes are of images as they are stored")
    known = (*data.NAMES, HELD_OUT)
    for name in cfg.targets:
        errors.one_of("targets", name, known)
    errors.whole("neighbours", cfg.neighbours, 1)
    setups = {}
    for name in cfg.pretrainings:
        for called, level in ((dense(name), False), (name, True)):
            recipe = pretraining(cfg, name, level=level)
            setups[called] = _setup(cfg, recipe, ("ticket",), max(levels))
    for name in cfg.targets:
        arms = ("ticket", *cfg.controls)
        setups[name] = _setup(cfg, target(cfg, name), arms, max(levels))
        for source in cfg.pretrainings:
            task = setups[source].task
            pairs.check_graft(f"from {source} to {name}", task, setups[name].task)
    return setups


def _setup(cfg: Config, recipe: Config, arms: tuple[str, ...], levels: int) -> Setup:
    task = pairs.body(recipes.make_task(recipe), cfg.kept)
    protocol = imp.check(
        imp.Plan(
            steps=recipes.parse_step(recipe, "steps", task.steps_per_epoch),
            chains=(imp.Chain(pairs.CHAIN, imp.Geometric(cfg.fraction)),),
            arms=arms,
            validate_every=cfg.every,
            seed=cfg.seed,
        )
    )
    imp.check_task(task, protocol, levels)
    tx = recipes.make_optimizer(recipe, task.steps_per_epoch)
    return Setup(cfg, task, tx, protocol)
