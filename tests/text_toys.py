"""Tiny data sets of texts, an encoder for them, and tasks of three kinds."""

import jax
import jax.numpy as jnp
import numpy as np

import lottery_jax as lj
from lottery_jax.data.text import Texts, Vocabulary
from lottery_jax.models import Bert, BertShape

VOCABULARY = Vocabulary(size=40, pad=0, unknown=1, first=2, separator=3, mask=4)
FIRST_WORD = 5
"""Ids below are no words."""

LENGTH, TRAIN, TEST, BATCH = 10, 22, 13, 6
"""Tokens of a sequence; the last batch of an epoch holds 4 examples."""

SHAPE = BertShape(
    vocabulary=40,
    width=8,
    layers=1,
    heads=2,
    inner=12,
    positions=12,
    dropout=0.0,
    attention_dropout=0.0,
)
KERNELS = 4 * 8 * 8 + 2 * 8 * 12
"""Weights of the dense layers of its one layer."""


def random(seed=0):
    return np.random.default_rng(seed)


def words(rng, *shape):
    return rng.integers(FIRST_WORD, VOCABULARY.size, shape, np.int32)


def made(split, name, **options):
    """A data set of three splits; `split(rng, number)` makes the arrays of one."""
    sizes = {"train": TRAIN, "validation": 7, "test": TEST}
    arrays = {one: split(random(i), sizes[one]) for i, one in enumerate(sizes)}
    return Texts(arrays, VOCABULARY, name, **options)


def windows():
    """Whole windows: [CLS], words of which some are unknown, [SEP]."""

    def split(rng, number):
        ids = words(rng, number, LENGTH)
        ids[rng.random(ids.shape) < 0.1] = VOCABULARY.unknown
        ids[:, 0], ids[:, -1] = VOCABULARY.first, VOCABULARY.separator
        return {"ids": ids}

    return made(split, "windows")


def pairs(rng, number):
    """Two sentences each, padded: their ids, types, and where the second one begins."""
    ids = np.full((number, LENGTH), VOCABULARY.pad, np.int32)
    types, begins = np.zeros_like(ids), np.zeros(number, np.int32)
    for row in range(number):
        one, two = rng.integers(1, 4), rng.integers(1, 4)
        whole = [VOCABULARY.first, *words(rng, one), VOCABULARY.separator]
        begins[row] = len(whole)
        whole += [*words(rng, two), VOCABULARY.separator]
        ids[row, : len(whole)] = whole
        types[row, begins[row] : len(whole)] = 1
    return ids, types, begins


def labelled(num_classes=2):
    """Pairs of sentences with a class, or with a number."""

    def split(rng, number):
        ids, types, _ = pairs(rng, number)
        if num_classes is None:
            label = rng.uniform(0, 5, number).astype(np.float32)
        else:
            label = rng.integers(0, num_classes, number, np.int32)
        return {"ids": ids, "types": types, "label": label}

    return made(split, f"labels-{num_classes}", num_classes=num_classes)


def questions():
    """Questions whose context has one or two accepted answers."""

    def split(rng, number):
        ids, types, begins = pairs(rng, number)
        answers = np.full((number, 2, 2), -1, np.int32)
        for row in range(number):
            last = int((ids[row] != VOCABULARY.pad).sum()) - 2
            for which in range(rng.integers(1, 3)):
                ends = rng.integers(begins[row], last + 1, 2)
                answers[row, which] = np.sort(ends)
        return {"ids": ids, "types": types, "answers": answers}

    return made(split, "questions")


def masked_lm(texts=None, model=None, **options):
    return lj.tasks.masked_lm(
        windows() if texts is None else texts,
        Bert(SHAPE, head="masked_lm") if model is None else model,
        **{"batch_size": BATCH, "evaluation_batch": 5, "rate": 0.3} | options,
    )


def sentences(num_classes=2, model=None, texts=None, **options):
    return lj.tasks.sentences(
        labelled(num_classes) if texts is None else texts,
        Bert(SHAPE, head="classes", outputs=num_classes or 1)
        if model is None
        else model,
        **{"batch_size": BATCH, "evaluation_batch": 5} | options,
    )


def spans(model=None, texts=None, **options):
    return lj.tasks.spans(
        questions() if texts is None else texts,
        Bert(SHAPE, head="span") if model is None else model,
        **{"batch_size": BATCH, "evaluation_batch": 5, "longest": 2} | options,
    )


def wide(task, seed=0):
    """Params of a size with which a network says something; its law has them at 0.02."""
    rng = random(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.7, x.dtype), task.shapes[0]
    )


def last_batch(task, noise=1):
    """The last batch of an epoch, which may be padded, as training gets it."""
    key, step = lj.keys.of_seed(noise), jnp.int32(task.steps_per_epoch - 1)
    return task.batch(task.data, task.order(key, step), key, step)
