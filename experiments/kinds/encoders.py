"""Tasks on texts, from a recipe: an encoder, its tokeniser, and what it is given.

The encoder, pre-trained, is `recipe.pretrained`: a folder; the name of one below `models`
in the data folder; an installed package that has one inside; or a hub's name.
"""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lottery_jax import data, errors, models, pretrained, tasks
from lottery_jax.data import text
from lottery_jax.data.text import Texts
from lottery_jax.models import Bert
from lottery_jax.pretrained import Pretrained
from lottery_jax.types import Network, Task
from lottery_jax.verdicts import METRICS, Metric

if TYPE_CHECKING:
    from experiments.recipes import Recipe

MODEL = "bert"
"""What recipes call an encoder, whose size is that of its weights."""

SENTENCES = text.SENTENCES
"""Data sets of sentences."""


class Read(NamedTuple):
    """How the texts of a task are read.

    Attributes:
      read: a function of `data.text`.
      names: of the data sets that it reads.
    """

    read: Callable[..., Texts]
    names: tuple[str, ...]


READ: Mapping[str, Read] = {
    "masked_lm": Read(text.windows, text.CORPORA),
    "sentences": Read(text.sentences, SENTENCES),
    "spans": Read(text.squad, ("squad",)),
}
"""Of each task of an encoder."""


def metric(recipe: "Recipe") -> Metric:
    """What encoders on the texts of a recipe are compared by: what these name.

    Of GLUE as in Chen et al. 2020; of tokens to be guessed their error.
    """
    named = load(recipe).metric
    assert named is not None
    return METRICS[named]


def folder(name: str) -> str:
    """The folder of pre-trained weights that a recipe means, or the name as it is.

    Args:
      name: see the module.

    Raises:
      ValueError: no name.
    """
    if not name:
        must = "a folder with config.json, model.safetensors and a tokeniser, or a name"
        raise errors.wrong("pretrained", repr(name), must)
    below = data.prepared.data_dir() / "models" / name
    for path in (pathlib.Path(name).expanduser(), below):
        if path.is_dir():
            return str(path)
    if name.isidentifier() and (found := importlib.util.find_spec(name)):
        for place in found.submodule_search_locations or ():
            for config in sorted(pathlib.Path(place).rglob("config.json")):
                if (config.parent / "model.safetensors").is_file():
                    return str(config.parent)
    return name


@functools.lru_cache(maxsize=2)
def _loaded(source: str) -> Pretrained:
    return pretrained.load(source)


@functools.lru_cache(maxsize=2)
def _tokenizer(source: str) -> text.Tokenizer:
    return text.tokenizer(source)


def weights(recipe: "Recipe") -> Pretrained:
    """The pre-trained weights of a recipe; the last ones are kept.

    Raises:
      ValueError: weights that cannot be used; says why.
      FileNotFoundError: there are none.
    """
    if recipe.model != MODEL:
        must = f"{MODEL!r}: the encoder is that of pretrained={recipe.pretrained!r}"
        raise errors.wrong("model", repr(recipe.model), must)
    return _loaded(folder(recipe.pretrained))


def start(recipe: "Recipe", task: Task, ids: Sequence[int]) -> Network | None:
    """What the runs of a recipe start from instead of a draw; None for a draw.

    Args:
      recipe: the recipe.
      task: of it.
      ids: of the replicas, whose heads are drawn where the weights have none.
    """
    if not recipe.pretrained:
        return None
    return pretrained.start(weights(recipe), task, seed=recipe.seed, replicas=ids)


def _encoder(recipe: "Recipe", **options: Any) -> Bert:
    shape = weights(recipe).shape
    if recipe.dropout is not None:
        rate = recipe.dropout
        shape = dataclasses.replace(shape, dropout=rate, attention_dropout=rate)
    return models.Bert(shape, pooler=recipe.pooler, **options)


def load(recipe: "Recipe") -> Texts:
    """The texts of a recipe, tokenised; the last ones are kept.

    Raises:
      ValueError: a name that is none of these, or an option out of range.
      FileNotFoundError: texts that are not there; says how to prepare them.
    """
    read, names = READ[recipe.task]
    errors.one_of("data", recipe.data, names)
    # Where the weights are: of a hub's name that is the folder of its copy.
    source = str(weights(recipe).folder)
    options = (recipe.length, recipe.validation, recipe.subset)
    found = _texts(read, recipe.data, source, *options)
    return _cut(found, recipe.evaluated)


@functools.lru_cache(maxsize=16)
def _texts(
    read: Callable[..., Texts],
    name: str,
    source: str,
    length: int,
    validation: int | None,
    subset: int | None,
) -> Texts:
    own = () if read is text.squad else (name,)
    return read(
        *own,
        _tokenizer(source),
        length=length,
        validation=validation,
        subset=subset,
    )


def _cut(texts: Texts, number: int | None) -> Texts:
    """Texts with the first so many examples of the splits that are not trained on."""
    if number is None:
        return texts
    errors.whole("evaluated", number, 1)
    arrays = {
        split: own
        if split == "train"
        else {name: array[:number] for name, array in own.items()}
        for split, own in texts.arrays.items()
    }
    return texts._replace(arrays=arrays)


def make_masked_lm(recipe: "Recipe") -> Task:
    """Masked language modelling on windows of a corpus.

    Raises:
      ValueError: an unknown name or a field out of range.
      FileNotFoundError: weights or texts that are not there; says how to get them.
    """
    return tasks.masked_lm(
        load(recipe),
        _encoder(recipe, head="masked_lm"),
        batch_size=recipe.batch_size,
        exclude=recipe.exclude,
    )


def make_sentences(recipe: "Recipe") -> Task:
    """Fine-tuning on sentences; raises as `make_masked_lm`."""
    found = load(recipe)
    return tasks.sentences(
        found,
        _encoder(recipe, head="classes", outputs=found.num_classes or 1),
        batch_size=recipe.batch_size,
        exclude=recipe.exclude,
    )


def make_spans(recipe: "Recipe") -> Task:
    """Fine-tuning on questions whose answers are spans; raises as `make_masked_lm`."""
    return tasks.spans(
        load(recipe),
        _encoder(recipe, head="span"),
        batch_size=recipe.batch_size,
        exclude=recipe.exclude,
    )


def note(recipe: "Recipe") -> str:
    """What must be said of the texts of a recipe; may be empty."""
    return load(recipe).note or ""
