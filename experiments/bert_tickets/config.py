"""What a study of an encoder's tickets is determined by, and what is trained in it."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from experiments import recipes
from experiments.identity import FREE, Where
from experiments.kinds import encoders
from experiments.recipes import Recipe, Setup
from lottery_jax import errors, imp

MLM = "mlm"
"""What masked language modelling is called among the tasks."""

SPANS = "squad"

Arm = Literal["random_mask", "reinit", "shuffled_weights", "reinit_raw"]


@dataclasses.dataclass(frozen=True)
class Config(Where, Recipe):
    """Everything that a study is determined by, and where and how it runs.

    `steps`, `batch_size`, `length` and `learning_rate` are those of sentences; masked
    language modelling and questions have their own. All replicas start from the same
    encoder; each has a head, a data order and dropout of its own.
    """

    tasks: tuple[str, ...] = (MLM, "sst2", "mrpc", "cola", "stsb")
    """Sources of tickets and targets: mlm, squad, cola, sst2, mrpc, stsb, rte, wnli, qqp,
    mnli, qnli, qnli-dev."""
    corpus: str = "wikitext2"
    """The text of masked language modelling."""
    model: str = encoders.MODEL
    """The encoder, whose size is that of its weights."""
    pretrained: str = "bert-tiny-mlm"
    """See `Recipe`."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """See `Recipe`."""
    weight_decay: float = 0.01
    """See `Recipe`."""
    schedule: Literal["constant", "step", "cosine", "linear"] = "linear"
    """See `Recipe`."""
    decay_over: Literal["level", "study"] = "level"
    """Whether the learning rate falls over each level anew, or, as in the published code,
    each level begins a schedule over all levels, so that it hardly falls within one."""
    validation: int | None = 0
    """Training examples held out for validation; nothing is chosen by it."""
    length: int = 64
    """Tokens of the longest sentence."""
    lengths: tuple[tuple[str, int], ...] = ()
    """Tasks whose sentences have another length."""
    mlm_steps: str = "200it"
    """Length of a run of masked language modelling, in iterations or epochs."""
    mlm_batch_size: int = 32
    """Windows per step."""
    mlm_length: int = 64
    """Tokens of a window."""
    mlm_learning_rate: float = 1e-3
    """Peak learning rate."""
    mlm_evaluated: int | None = None
    """Windows of the test split, the first ones, that networks are measured on."""
    squad_steps: str = "500it"
    """Likewise of questions."""
    squad_batch_size: int = 16
    """Questions per step."""
    squad_length: int = 192
    """Tokens of a question with the text."""
    squad_learning_rate: float = 3e-4
    """Peak learning rate."""
    repair_steps: str = "2000it"
    """Steps of dense masked language modelling before anything else, whose result is the
    pre-trained encoder of this study: for weights without a head for masked tokens, or
    with one that is of no use. 0it for none."""
    repair_learning_rate: float = 1e-3
    """Peak learning rate of these."""
    levels: int = 7
    """Prunings after level 0, of 10% of the weights each."""
    transfer_level: int = 7
    """The level whose masks are taken from task to task."""
    controls: tuple[int, ...] = (5, 7)
    """Levels at which the controls are trained."""
    arms: tuple[Arm, ...] = ("random_mask", "reinit", "shuffled_weights")
    """Controls: a random mask on the pre-trained weights, the ticket's mask on random
    weights, and on pre-trained ones that are shuffled within each layer."""
    every: int = 100
    """Steps of a segment; checkpoints are written between segments."""
    tolerance: float | None = dataclasses.field(default=None, metadata=FREE)
    """How much worse still counts as equal, in the metric of each task; None for the
    metric's own."""
    replicas: int = 3
    """Independent runs, each with its own head and noise."""


def recipe_of(cfg: Config, name: str) -> Config:
    """The recipe of one of the tasks.

    Args:
      cfg: of the study.
      name: of the task.

    Raises:
      ValueError: there is no such task.
    """
    known = (MLM, SPANS, *encoders.SENTENCES)
    errors.one_of("tasks", name, known)
    if name in encoders.SENTENCES:
        length = dict(cfg.lengths).get(name, cfg.length)
        return dataclasses.replace(cfg, task="sentences", data=name, length=length)
    kind, data = ("masked_lm", cfg.corpus) if name == MLM else ("spans", SPANS)
    fields = ("steps", "batch_size", "length", "learning_rate")
    own = {field: getattr(cfg, f"{name}_{field}") for field in fields}
    if name == MLM:
        own["evaluated"] = cfg.mlm_evaluated
    return dataclasses.replace(cfg, task=kind, data=data, **own)


def plan(recipe: Config, steps: int) -> imp.Plan:
    """How the tickets of a task are found: from the pre-trained weights, k = 0.

    Args:
      recipe: of the task.
      steps: of a level.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    return imp.check(
        imp.Plan(
            steps=steps,
            chains=(imp.Chain("imp", imp.Linear(0.1)),),
            arms=("ticket",),
            validate_every=recipe.every,
            seed=recipe.seed,
        )
    )


def prepare(cfg: Config) -> Mapping[str, Setup]:
    """Task, optimizer and plan of everything that is trained, by the names of tasks.

    Raises:
      ValueError: a field that makes no sense; names it.
      FileNotFoundError: weights or texts that are not there; says how to get them.
    """
    for field in ("tasks", "controls", "arms"):
        errors.some_different(field, getattr(cfg, field))
    for field in ("task", "data"):
        if getattr(cfg, field) != (default := getattr(Config, field)):
            must = f"{default!r}: what is trained is said by tasks={cfg.tasks}"
            raise errors.wrong(field, repr(getattr(cfg, field)), must)
    errors.whole("levels", cfg.levels, 1, 9)
    errors.whole("transfer_level", cfg.transfer_level, 1, cfg.levels)
    for level in cfg.controls:
        errors.whole("controls", level, 1, cfg.levels)
    for name in cfg.tasks:
        recipe_of(cfg, name)
    own = [name for name in cfg.tasks if name in encoders.SENTENCES]
    if rest := [name for name, _ in cfg.lengths if name not in own]:
        raise errors.wrong("lengths", rest, f"of tasks of sentences, {own}")
    setups = {name: _setup(cfg, name) for name in cfg.tasks}
    repair = repair_recipe(cfg)
    # No step is none in epochs, too: then nothing is asked of the corpus.
    if recipes.parse_step(repair, "steps", 1):
        task = setups[MLM].task if MLM in setups else recipes.make_task(repair)
        tx = recipes.make_optimizer(repair, task.steps_per_epoch)
        setups["repair"] = Setup(repair, task, tx)
    return setups


def repair_recipe(cfg: Config) -> Config:
    """The recipe of masked language modelling before all else."""
    return dataclasses.replace(
        recipe_of(cfg, MLM),
        steps=cfg.repair_steps,
        learning_rate=cfg.repair_learning_rate,
    )


def _setup(cfg: Config, name: str) -> Setup:
    recipe = recipe_of(cfg, name)
    task = recipes.make_task(recipe)
    steps = recipes.parse_step(recipe, "steps", task.steps_per_epoch)
    protocol = plan(recipe, steps)
    imp.check_task(task, protocol, cfg.levels)
    whole = steps if cfg.decay_over == "level" else steps * (cfg.levels + 1)
    lasting = dataclasses.replace(recipe, steps=f"{whole}it")
    tx = recipes.make_optimizer(lasting, task.steps_per_epoch)
    return Setup(recipe, task, tx, protocol)
