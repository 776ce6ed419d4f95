"""A data folder of made-up texts and a small encoder, laid out as the published ones.

What experiments on texts read is there, and nothing of it is real: they run in tests
without a download, in seconds.
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import pretrained, trees
from lottery_jax.data.text import Tokens, corpora, files, glue, published
from lottery_jax.keys import of_seed
from lottery_jax.models import Bert, BertShape

ENCODER = "bert-tiny-mlm"
"""The name of the folder with the encoder, which presets mean."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = (
    "the a of in who what is was it they we not all some red green old new "
    "cat dog bird tree house river stone road king queen boy girl man woman "
    "sees hears finds eats keeps likes leaves makes ##s ##ed . , ? -"
)
WORDS = _WORDS.split()
PLAIN = tuple(word for word in WORDS if word.isalpha())

SHAPE = BertShape(
    vocabulary=len(SPECIAL) + len(WORDS),
    width=16,
    layers=1,
    heads=2,
    inner=24,
    positions=32,
)

TRAIN, TEST = 80, 24
"""Examples of each data set of sentences, and questions."""


def write(folder: pathlib.Path) -> pathlib.Path:
    """Makes the data folder, the same one every time."""
    _encoder(folder / "models" / ENCODER)
    random = np.random.default_rng(0)
    for form in glue.FORMATS.values():
        own = files.folder("glue", folder) / form.folder
        _put(own / form.train, _table(random, form, TRAIN))
        _put(own / form.test, _table(random, form, TEST))
    for name, number in zip(published.SQUAD, (TRAIN, TEST)):
        text = json.dumps({"version": "1.1", "data": _articles(random, number)})
        _put(files.folder("squad", folder) / name, text)
    for name in corpora.WIKITEXT.values():
        lines = [f" {_sentence(random, 12)} <unk> @-@ . \n" for _ in range(100)]
        _put(files.folder("wikitext2", folder) / name, "".join(lines))
    lines = [f"{_sentence(random, 8)}.\n" for _ in range(400)]
    _put(files.folder("tiny_shakespeare", folder) / "input.txt", "".join(lines))
    return folder


def _put(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    # What is made of files is cached under names that their times are part of.
    os.utime(path, (10**9, 10**9))


def _sentence(random: np.random.Generator, words: int) -> str:
    return " ".join(random.choice(PLAIN, words).tolist())


def _table(random: np.random.Generator, form: glue.Format, number: int) -> str:
    """A file of GLUE, of the columns that are read and no others."""
    read = [form.first, form.second, form.label]
    header = form.header or tuple(name for name in read if name is not None)
    lines = [] if form.header else ["\t".join(header)]
    for row in range(number):
        labels = form.labels or [f"{x / 4:.2f}" for x in range(21)]
        values = dict.fromkeys(header, "x")
        values[form.first] = _sentence(random, random.integers(3, 7))
        if form.second is not None:
            values[form.second] = _sentence(random, random.integers(3, 7))
        values[form.label] = labels[row % len(labels)]
        lines.append("\t".join(values[name] for name in header))
    return "\n".join(lines) + "\n"


def _articles(random: np.random.Generator, number: int) -> list[dict]:
    """Articles of SQuAD, of four questions each."""
    found = []
    for article in range(number // 4):
        context = _sentence(random, 8)
        words, asked = context.split(" "), []
        for which in range(4):
            first = int(random.integers(0, 7))
            answer = " ".join(words[first : first + 2])
            start = len(" ".join(words[:first])) + (first > 0)
            asked.append(
                {
                    "id": f"{article}-{which}",
                    "question": f"what is {_sentence(random, 2)} ?",
                    "answers": [{"text": answer, "answer_start": start}],
                }
            )
        title = f"article {article}"
        found.append(
            {"title": title, "paragraphs": [{"context": context, "qas": asked}]}
        )
    return found


def _encoder(folder: pathlib.Path) -> None:
    """An encoder with a head for masked tokens, its weights drawn, and its tokeniser."""
    vocabulary = folder.with_name("vocabulary")
    _put(vocabulary / "vocab.txt", "\n".join([*SPECIAL, *WORDS]) + "\n")
    row = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    tokens = Tokens(row, row, jax.ShapeDtypeStruct((1, 4), jnp.bool_), row)
    model = Bert(SHAPE, head="masked_lm")
    shapes = jax.eval_shape(model.init, of_seed(0), tokens)["params"]
    random = np.random.default_rng(1)
    params = trees.map_by_path(
        lambda path, x: np.float32(
            0.3 * random.normal(size=x.shape) + path.endswith("scale")
        ),
        shapes,
    )
    pretrained.save(folder, SHAPE, params, tokenizer=vocabulary)
