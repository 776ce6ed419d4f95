"""What is trained and how: the fields that all experiments share, and what they make."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import identity
from experiments.identity import FREE, UNLESS_DEFAULT, Where
from experiments.kinds import (
    adversaries,
    contrasts,
    encoders,
    images,
    language_models,
    policies,
)
from lottery_jax import errors, streams, tasks, training, trees
from lottery_jax.connectivity import Measure, points
from lottery_jax.connectivity.measure import BatchNorm
from lottery_jax.execution import Activations, Precision
from lottery_jax.optimizers.settings import Optimizer, axes
from lottery_jax.types import Array, Network, Task
from lottery_jax.verdicts import ERROR, LOSS, Metric


def _later(default: Any) -> Any:
    return dataclasses.field(default=default, metadata=UNLESS_DEFAULT)


C = TypeVar("C", bound="Recipe")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A task, made of a data set and a model; an optimizer, and a number of steps."""

    task: str = _later("classification")
    """What is trained, a name of `experiments.recipes.TASKS`."""
    data: str = "mnist1d"
    """Data set: mnist1d and digits need no download; mnist, fashion_mnist, kmnist,
    cifar10, cifar100, svhn are read through tensorflow-datasets; usps from its files.
    Read while runs train: imagenet, places365, tiny_imagenet from their prepared maps, or a
    folder, of a map or of class folders."""
    side: int | None = _later(None)
    """Of a folder of images: pixels of the square that they are decoded to; None for images
    of one size."""
    skip_corrupt: bool = _later(False)
    """Of a folder of images: whether the next one that can be read stands in for a corrupt
    one; results count them. By default the first one stops the run, and is named."""
    shared_order: bool = _later(False)
    """Whether all networks see the examples in one order, and so share what is read. What
    augmentation draws is each replica's own."""
    validation: int | None = None
    """Training examples held out for validation; None for the data set's default."""
    subset: int | None = None
    """Number of training examples to use; None for all."""
    label_noise: float = 0.0
    """Share of the training labels that are replaced by uniform draws."""
    blur: float | None = None
    """Factor by which training images are blurred; None for none."""
    normalization: Literal["dataset", "imagenet", "none", "unit_l2"] = "dataset"
    """Statistics that images are normalised with; open_lth uses imagenet on CIFAR."""
    inputs: Literal["own", "grey28", "colour32"] = _later("own")
    """Images as they are, or all as 28x28 grey or 32x32 colour ones: resized, or padded."""
    classes: int | None = _later(None)
    """Use examples of the first so many classes alone; None for all."""
    half: Literal["a", "b"] | None = _later(None)
    """One of two disjoint halves of the training examples; None for both."""
    from_class: int = _later(0)
    """Leave out the classes before this one; the others are renumbered from 0."""
    augment: tuple[Literal["flip", "crop", "resized_crop"], ...] = ()
    """Augmentation, in this order: flip, crop (a shift), or both; or resized_crop (a
    random window, resized), and then flip."""
    crop: int | None = _later(None)
    """Pixels of a side of the square that networks see: the middle of an image, but where
    training makes a resized crop; None for images as they are stored."""
    label_smoothing: float = _later(0.0)
    """Share of each label that is spread over all classes in the training loss."""
    model: str = "mlp-100-100"
    """lenet-300-100, mlp-W1-W2, residual-mlp-W, conv-2|4|6|8, resnet-D[-W], vgg-D, ..."""
    initializer: Literal["kaiming_normal", "glorot_normal"] = "kaiming_normal"
    """Law of the kernels."""
    bias: Literal["zeros", "torch"] = "zeros"
    """Law of the biases: zeros, or PyTorch's U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    norm_scale: Literal["ones", "uniform"] = "ones"
    """Law of the BatchNorm scales: 1, or open_lth's U(0, 1)."""
    unbiased_variance: bool = False
    """Unbiased running variance in BatchNorm, as in PyTorch."""
    batch_size: int = 100
    """Examples per step; the last partial batch of an epoch is kept."""
    pretrained: str = _later("")
    """For texts: what an encoder starts from, a folder with config.json,
    model.safetensors and a tokeniser, or a hub's name."""
    pooler: Literal["head", "pruned"] = _later("head")
    """For texts: whether the pooler of an encoder belongs to the head, or is pruned."""
    length: int = _later(128)
    """For texts: tokens of a window, or of the longest sequence."""
    embeddings: Literal["pruned", "kept"] = _later("pruned")
    """For language models: whether embeddings count among the prunable weights."""
    evaluated: int | None = _later(None)
    """For texts: examples of the test split and of the validation split, the first ones,
    that networks are measured on, at most; None for all."""
    dropout: float | None = _later(None)
    """For texts: dropout of the network; None for its own."""
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "adam"
    """Optimizer; rmsprop averages squared gradients with 0.99."""
    learning_rate: float = 5e-3
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD; unused by Adam."""
    weight_decay: float = 0.0
    """L2 penalty, added to the gradient; of adamw, its own decay."""
    epsilon: float = _later(1e-8)
    """Epsilon of Adam, AdamW and RMSprop, outside of the root."""
    clip: float | None = _later(None)
    """Largest norm of a gradient; longer ones are shortened. None for any."""
    schedule: Literal["constant", "step", "cosine", "linear"] = "constant"
    """Learning rate over steps; "step" multiplies by `drop_factor` at each of `drops`,
    "cosine" and "linear" fall to 0."""
    drops: tuple[str, ...] = ()
    """Steps at which the learning rate drops: 20000it, 80ep ..."""
    drop_factor: float = 0.1
    """See `schedule`."""
    warmup: str = "0it"
    """Linear warm-up from 0, or `warmup_from`, over this many steps."""
    warmup_from: float = _later(0.0)
    """The learning rate that a warm-up begins with, no more than the peak."""
    sweep_learning_rate: tuple[float, ...] = _later(())
    """Peak learning rates, instead of one: all settings train side by side."""
    sweep_weight_decay: tuple[float, ...] = _later(())
    """L2 penalties, likewise; all combinations of what is swept."""
    sweep_momentum: tuple[float, ...] = _later(())
    """Momenta of SGD, likewise."""
    sweep_warmup: tuple[str, ...] = _later(())
    """Lengths of the warm-up, likewise: 0it, 500it ..."""
    steps: str = "1500it"
    """Length of a training run, in iterations or epochs."""
    exclude: tuple[str, ...] = ()
    """Patterns of layers that count as prunable and are never cut, such as head."""
    precision: Precision | None = None
    """What operands of products are rounded to; None for the platform's default. Changes
    results, unlike devices, chunk and convolution, and so belongs to the run."""
    activations: Activations = _later("float32")
    """What layers store and pass on: float32, or bfloat16 for half the bytes. Changes
    results like precision."""
    seed: int = 0
    """All keys follow from it and the replica's number."""


@dataclasses.dataclass(frozen=True)
class PathRecipe(Where, Recipe):
    """Networks that are compared on paths between them; where and how they run."""

    statistics_batches: int = 16
    """Batches of training data that BatchNorm statistics are recomputed on."""
    alphas: int = 30
    """Evenly spaced points of a path, the ends among them."""
    path_train: int | None = None
    """Training examples that a path is measured on, the first ones, or evenly spread ones of
    a set that is read while runs train; None for all."""
    path_test: int | None = None
    """Test examples, likewise."""
    every: int = 500
    """Steps of a segment; checkpoints are written between segments."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent initialisations."""

    @property
    def path_sizes(self) -> dict[str, int | None]:
        """How many examples of each split a path is measured on; None for all."""
        return {"train": self.path_train, "test": self.path_test}

    @property
    def path_splits(self) -> tuple[str, ...]:
        """The names of these splits in a task from `make_path_task`."""
        return tuple(
            split if number is None else f"{split}_part"
            for split, number in self.path_sizes.items()
        )

    def measure(self, batch_norm: BatchNorm | None) -> Measure:
        """How its paths are measured, under a policy for BatchNorm."""
        batches = self.statistics_batches
        return Measure(self.alphas, batch_norm, self.path_splits, batches)


class Setup(NamedTuple):
    """What all groups of replicas of a run share.

    Attributes:
      cfg: the configuration.
      task: what is trained.
      tx: the optimizer; a function of its hyperparameters where these are swept.
      plan: the protocol, if the experiment has one.
    """

    cfg: Any
    task: Task
    tx: Optimizer
    plan: Any = None


class Kind(NamedTuple):
    """What can be trained.

    Attributes:
      make: from a recipe to its task.
      note: what must be said of its data; may be empty.
      metric: what networks of a recipe are compared by.
      fields: those of a recipe that it uses and others do not. Where `Recipe` has not
        got them, an experiment mixes them in: `class Config(imp.Config, Playing)`.
    """

    make: Callable[[Recipe], Task]
    note: Callable[[Recipe], str]
    metric: Callable[[Recipe], Metric] = lambda _: ERROR
    fields: tuple[str, ...] = ()


_IMAGES = (
    "label_noise",
    "blur",
    "normalization",
    "inputs",
    "classes",
    "half",
    "from_class",
    "side",
    "skip_corrupt",
    "augment",
    "crop",
    "label_smoothing",
    "initializer",
    "bias",
    "norm_scale",
    "unbiased_variance",
)
# Without labels; flips and crops are views there.
_LABELLED = ("label_noise", "augment", "crop", "label_smoothing")
_VIEWED = tuple(name for name in _IMAGES if name not in _LABELLED)
# An attack is on images as they are stored.
_WHOLE = tuple(name for name in _IMAGES if name != "crop")
_ENCODER = ("pretrained", "pooler", "length", "dropout", "evaluated")

TASKS: Mapping[str, Kind] = {
    "classification": Kind(images.make_classification, images.note, fields=_IMAGES),
    "contrastive": Kind(
        contrasts.make_contrastive, images.note, fields=(*_VIEWED, *contrasts.FIELDS)
    ),
    "adversarial": Kind(
        adversaries.make_adversarial,
        images.note,
        fields=(*_WHOLE, *adversaries.FIELDS),
    ),
    "masked_lm": Kind(
        encoders.make_masked_lm, encoders.note, encoders.metric, _ENCODER
    ),
    "sentences": Kind(
        encoders.make_sentences, encoders.note, encoders.metric, _ENCODER
    ),
    "spans": Kind(encoders.make_spans, encoders.note, encoders.metric, _ENCODER),
    "language_model": Kind(
        language_models.make_language_model,
        language_models.note,
        lambda _: LOSS,
        ("length", "dropout", "embeddings"),
    ),
    "actor_critic": Kind(
        policies.make_actor_critic, policies.note, policies.metric, policies.FIELDS
    ),
}
"""What can be trained, by the name that a recipe gives."""


def make_task(recipe: Recipe) -> Task:
    """The task of a recipe.

    Raises:
      ValueError: an unknown name or a field out of range.
      FileNotFoundError: data that are not prepared; says how to.
    """
    errors.one_of("task", recipe.task, TASKS)
    kind = TASKS[recipe.task]
    _check_used(recipe, kind)
    task = kind.make(recipe)
    _check_measured(recipe, task, kind.metric(recipe))
    return tasks.shared_order(task, recipe.seed) if recipe.shared_order else task


def as_task(recipe: C, task: str) -> C:
    """A recipe of another kind: fields that it does not use have their defaults.

    Args:
      recipe: of a study that trains several kinds.
      task: a name of `TASKS`.
    """
    errors.one_of("task", task, TASKS)
    fields = _unused(recipe, TASKS[task])
    unused: dict[str, Any] = {field.name: field.default for field in fields}
    return dataclasses.replace(recipe, task=task, **unused)


def _unused(recipe: Recipe, kind: Kind) -> list[dataclasses.Field]:
    """The fields of a recipe that other kinds of tasks use, and this one does not."""
    others = {name for other in TASKS.values() for name in other.fields}
    own = dataclasses.fields(recipe)
    return [f for f in own if f.name in others and f.name not in kind.fields]


def _check_used(recipe: Recipe, kind: Kind) -> None:
    """Raises a ValueError for a field that the task of a recipe would ignore, or lacks."""
    if missing := [name for name in kind.fields if not hasattr(recipe, name)]:
        must = (
            f"another: it is told by {missing}, which are no fields of this experiment"
        )
        raise errors.wrong("task", repr(recipe.task), must)
    for field in _unused(recipe, kind):
        if (value := getattr(recipe, field.name)) != field.default:
            must = f"{field.default!r}: task={recipe.task!r} does not use it"
            raise errors.wrong(field.name, repr(value), must)


def _check_measured(recipe: Recipe, task: Task, metric: Metric) -> None:
    """Raises a ValueError if what networks are compared by is not measured of them."""
    measured = training.measured.metrics(task, "test")
    if metric.name not in measured:
        name = f"{recipe.task!r} (compared by {metric.name})"
        raise errors.wrong("task", name, f"one that measures it: this has {measured}")


def metric(recipe: Recipe) -> Metric:
    """What the networks of a recipe are compared by; raises as `make_task` does."""
    errors.one_of("task", recipe.task, TASKS)
    return TASKS[recipe.task].metric(recipe)


by_size = images.by_size


def there(recipe: Recipe) -> bool:
    """Whether the data of a recipe are there, and not only their sizes."""
    return images.there(recipe)


def start(recipe: Recipe, task: Task, ids: Sequence[int]) -> Network | None:
    """What its runs start from instead of a draw of the initialisation, or None.

    Args:
      recipe: the recipe.
      task: of it.
      ids: of the replicas.
    """
    return encoders.start(recipe, task, ids)


def start_digest(recipe: Recipe) -> str:
    """The SHA-256 of the weights that its runs start from; empty for a draw."""
    return encoders.weights(recipe).sha256 if recipe.pretrained else ""


def note(recipe: Recipe) -> str:
    """What must be said of its data wherever results are shown; may be empty."""
    return TASKS[recipe.task].note(recipe)


def ticket_metadata(recipe: Recipe, experiment: str) -> dict[str, Any]:
    """What an experiment alone knows of its tickets: all that is needed to go on elsewhere.

    Args:
      recipe: what is trained and how: a configuration.
      experiment: its name.

    Returns:
      JSON-able: `model` and `task`, the names of the network and the data; `recipe`, the
      fields that `Recipe` has; `experiment` and `config`, its name and the other fields
      that determine its numbers; `training`, the recipe in words; `pretrained_sha256`, of
      weights that it starts from; `dataset`, of a network of images: the shape of an
      example, classes, statistics, and numbers of examples.
    """
    kind = type(recipe)
    fields = identity.as_config(recipe)
    own = {field.name for field in dataclasses.fields(Recipe)}
    rest = fields.keys() - own - set(identity.free(kind))
    found: dict[str, Any] = {
        "model": recipe.model,
        "task": recipe.data,
        "recipe": {name: fields[name] for name in fields if name in own},
        "experiment": experiment,
        "config": {name: fields[name] for name in fields if name in rest},
        "training": in_words(recipe),
    }
    if begins := start_digest(recipe):
        found["pretrained_sha256"] = begins
    if recipe.task in ("classification", "contrastive"):
        dataset = images.load_data(recipe)
        found["dataset"] = {
            "name": dataset.name,
            "shape": list(images.shape_of(recipe)),
            "num_classes": dataset.num_classes,
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "examples": {s: len(x["label"]) for s, x in dataset.arrays.items()},
            "note": dataset.note,
        }
    return found


def in_words(recipe: Recipe) -> str:
    """How a recipe trains, for people: "adam at 0.0012 (constant), 3000it of 60"."""
    laws = {
        "constant": "constant",
        "cosine": "cosine to 0",
        "linear": "linear to 0",
        "step": f"times {recipe.drop_factor:g} at {', '.join(recipe.drops)}",
    }
    law = laws[recipe.schedule]
    if recipe.warmup.rstrip("itep").strip("0"):
        begin = f" from {recipe.warmup_from:g}" if recipe.warmup_from else ""
        law += f", warm-up{begin} over {recipe.warmup}"
    parts = [f"{recipe.optimizer} at {recipe.learning_rate:g} ({law})"]
    if recipe.optimizer == "sgd" and recipe.momentum:
        parts.append(f"momentum {recipe.momentum:g}")
    if recipe.weight_decay:
        parts.append(f"weight decay {recipe.weight_decay:g}")
    parts.append(f"{recipe.steps} of {recipe.batch_size} examples")
    if recipe.augment:
        parts.append(" and ".join(recipe.augment))
    if recipe.crop:
        parts.append(f"{recipe.crop} x {recipe.crop} pixels")
    if recipe.label_smoothing:
        parts.append(f"label smoothing {recipe.label_smoothing:g}")
    return ", ".join(parts)


def parse_steps(recipe: Recipe, field: str, steps_per_epoch: int) -> tuple[int, ...]:
    """The steps that a field with one or several names.

    Raises:
      ValueError: it names none; says which field.
    """
    given = getattr(recipe, field)
    try:
        return tuple(
            training.parse_step(text, steps_per_epoch)
            for text in ((given,) if isinstance(given, str) else given)
        )
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def parse_step(recipe: Recipe, field: str, steps_per_epoch: int) -> int:
    """The step that a field with one names; raises as `parse_steps` does."""
    (step,) = parse_steps(recipe, field, steps_per_epoch)
    return step


def make_path_task(recipe: PathRecipe) -> Task:
    """The task, with further splits that paths are measured on: SPLIT_part.

    Raises:
      ValueError: as `make_task`; more examples than there are, or none.
    """
    task = make_task(recipe)
    data = dict(task.data)
    for split, number in recipe.path_sizes.items():
        if number is None:
            continue
        most = trees.count(data[split])
        if not 1 <= number <= most:
            raise ValueError(
                f"path_{split}={number}; it must be between 1 and {most}, the examples "
                "of the split"
            )
        rows: Any = slice(number)
        if split in streams.streamed(task.data):
            # Folders and maps are sorted by class.
            rows = np.arange(number) * most // number
        data[f"{split}_part"] = trees.rows(data[split], rows)
    return task._replace(data=data)


def set_up_paths(recipe: PathRecipe, *policies: BatchNorm | None) -> Setup:
    """Task and optimizer of networks between which paths are measured.

    Args:
      recipe: what is trained and measured.
      *policies: how BatchNorm statistics are treated on the paths; one is checked at
        least.

    Raises:
      ValueError: a field that makes no sense, or that does not fit the task; names it.
    """
    errors.at_least("alphas", recipe.alphas, 2)
    task = make_path_task(recipe)
    model_state = task.shapes[1]
    for policy in policies or (None,):
        points.check_policy(task, model_state, policy)
        if policy == "recompute" and points.has_statistics(model_state):
            points.statistics_slice(task, recipe.statistics_batches)  # or it raises
    return Setup(recipe, task, make_optimizer(recipe, task.steps_per_epoch))


SWEPT = ("learning_rate", "weight_decay", "momentum", "warmup")
"""What may be swept: the fields sweep_NAME."""


def sweep(recipe: Recipe, steps_per_epoch: int) -> dict[str, tuple[float, ...]]:
    """The values of what a recipe sweeps, by name; none if it sweeps nothing.

    Args:
      recipe: the recipe.
      steps_per_epoch: of its task.

    Raises:
      ValueError: values that make no sense; names the field.
    """
    found: dict[str, tuple[float, ...]] = {}
    for name in SWEPT:
        field = f"sweep_{name}"
        values = getattr(recipe, field)
        if values and name == "momentum" and recipe.optimizer != "sgd":
            must = "empty: only optimizer='sgd' has a momentum"
            raise errors.wrong(field, values, must)
        if name == "warmup":
            values = parse_steps(recipe, field, steps_per_epoch)
        if values:
            try:
                found |= axes({name: values})
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None
            for value in found[name]:
                errors.at_least(field, value, 0.0)
    return found


def at_setting(recipe: C, hyper: Mapping[str, float]) -> C:
    """A recipe at one setting of its sweep.

    Args:
      recipe: what is swept.
      hyper: values by name, such as those of `imp.Chain.hyper`; {} without a sweep.
    """
    own: dict[str, Any] = {f"sweep_{name}": () for name in SWEPT}
    own |= {name: x if name != "warmup" else f"{x:g}it" for name, x in hyper.items()}
    return dataclasses.replace(recipe, **own)


def make_optimizer(
    recipe: Recipe, steps_per_epoch: int, *, sweeps: bool = False
) -> Any:
    """The optimizer of a recipe, with its schedule; a function of what it sweeps.

    Args:
      recipe: the recipe.
      steps_per_epoch: of its task.
      sweeps: whether the experiment says of each setting what it says of one; where it
        does not, a sweep is refused.

    Raises:
      ValueError: a field out of range.
    """
    for field in ("learning_rate", "weight_decay", "momentum"):
        value = getattr(recipe, field)
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{field}={value}; it must be 0 or more")
    for field, value in (("epsilon", recipe.epsilon), ("clip", recipe.clip)):
        if value is not None and not 0.0 < value < math.inf:
            raise ValueError(f"{field}={value}; it must be above 0")
    swept = sweep(recipe, steps_per_epoch)
    for name in () if sweeps else swept:
        field = f"sweep_{name}"
        raise errors.wrong(
            field, getattr(recipe, field), "empty: there is no sweep here"
        )
    fixed = parse_step(recipe, "warmup", steps_per_epoch)
    errors.within("warmup_from", recipe.warmup_from, 0.0, recipe.learning_rate)
    if recipe.warmup_from and (swept or not fixed):
        must = "0 in a sweep" if swept else f"0 with warmup={recipe.warmup!r}"
        raise errors.wrong("warmup_from", recipe.warmup_from, must)
    # Of the peak; 0 where the peak is.
    first = recipe.warmup_from / (recipe.learning_rate or 1.0)
    law = _law(recipe, steps_per_epoch)

    def there(name: str, value: float) -> bool:
        # What is 0 at all settings is left out; what is swept has one structure.
        return name in swept or bool(value)

    def make_tx(
        learning_rate: float = recipe.learning_rate,
        weight_decay: float = recipe.weight_decay,
        momentum: float = recipe.momentum,
        warmup: float = fixed,
    ) -> optax.GradientTransformation:
        rate = law(learning_rate)
        if there("warmup", warmup):
            rate = _warmed(rate, warmup, first)
        elif recipe.schedule == "constant":
            # At a constant rate optax keeps no counter, and levels start alike.
            rate = learning_rate
        before = [] if recipe.clip is None else [optax.clip_by_global_norm(recipe.clip)]
        if recipe.optimizer == "sgd":
            own = momentum if there("momentum", momentum) else None
            tx = optax.sgd(rate, momentum=own)
        elif recipe.optimizer == "adam":
            tx = optax.adam(rate, eps=recipe.epsilon)
        elif recipe.optimizer == "rmsprop":
            # As in PyTorch and Yu et al. 2020, not optax's defaults (0.9, inside).
            tx = optax.rmsprop(rate, 0.99, recipe.epsilon, eps_in_sqrt=False)
        else:
            tx = optax.adamw(rate, eps=recipe.epsilon, weight_decay=weight_decay)
        if recipe.optimizer != "adamw" and there("weight_decay", weight_decay):
            before.append(optax.add_decayed_weights(weight_decay))
        return optax.chain(*before, tx) if before else tx

    return make_tx if swept else make_tx()


def _law(recipe: Recipe, steps_per_epoch: int) -> Callable[[float], Any]:
    """The schedule without its warm-up, as a function of the peak rate."""
    steps = parse_step(recipe, "steps", steps_per_epoch)
    if recipe.schedule == "cosine":
        return lambda peak: optax.cosine_decay_schedule(peak, steps)
    if recipe.schedule == "linear":
        return lambda peak: optax.linear_schedule(peak, 0.0, steps)
    if recipe.schedule == "step":
        if not recipe.drops:
            raise ValueError("schedule='step' needs drops, such as --drops 80ep 120ep")
        drops = parse_steps(recipe, "drops", steps_per_epoch)
        boundaries = dict.fromkeys(drops, recipe.drop_factor)
        return lambda peak: optax.piecewise_constant_schedule(peak, boundaries)
    return optax.constant_schedule


def _warmed(law: Any, warmup: Any, first: float) -> Any:
    """A schedule after its warm-up, which begins at this share of its peak."""
    if first:

        def from_first(step: Array) -> Array:
            risen = jnp.minimum(1.0, step / warmup)
            return law(step) * (first + (1.0 - first) * risen)

        return from_first
    # The first step is taken at rate 0, as in open_lth.
    if isinstance(warmup, jax.Array):  # swept, and perhaps 0
        return lambda step: (
            law(step) * jnp.where(step < warmup, step / jnp.maximum(warmup, 1.0), 1.0)
        )

    def warmed(step: Array) -> Array:
        return law(step) * jnp.minimum(1.0, step / warmup)

    return warmed
