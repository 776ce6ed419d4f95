"""Which tensor of a BERT's file is which leaf here."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lottery_jax.models import BertShape

PREFIX = "bert."
"""Of the encoder's tensors, in files of an encoder with a head."""

DECODER = "cls.predictions.decoder.weight"
DECODER_BIAS = "cls.predictions.decoder.bias"

BUFFERS = (r"(^|\.)position_ids$", r"^embeddings\.token_type_ids$")
"""Patterns of tensors that are numbered rows and no weights; of old files."""

_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Leaf(NamedTuple):
    """A leaf here and the tensor there.

    Attributes:
      ours: its key path.
      theirs: the tensor's name, without `PREFIX`, of today's form.
      shape: here.
      turned: whether the tensor is the leaf transposed: `[out, in]` there.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    turned: bool = False

    @property
    def shape_there(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.shape[::-1] if self.turned else self.shape

    def swapped(self, array: np.ndarray) -> np.ndarray:
        """The leaf from the tensor, and the tensor from the leaf."""
        return np.ascontiguousarray(array.T if self.turned else array)


def today(name: str) -> str:
    """A tensor's name without the prefix, in the form that files have today."""
    name = name.removeprefix(PREFIX)
    for old, new in _OLD.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name (`today`) is no weight."""
    return any(re.search(pattern, name) for pattern in BUFFERS)


def body(shape: BertShape) -> list[Leaf]:
    """The leaves of the embeddings and layers."""
    width = shape.width
    tables = (
        ("word", "word_embeddings", shape.vocabulary),
        ("position", "position_embeddings", shape.positions),
        ("type", "token_type_embeddings", shape.types),
    )
    found = [
        Leaf(
            f"embeddings/{ours}/embedding",
            f"embeddings.{theirs}.weight",
            (number, width),
        )
        for ours, theirs, number in tables
    ]
    found += _norm("embeddings/norm", "embeddings.LayerNorm", width)
    for i in range(shape.layers):
        found += _layer(f"layer_{i}", f"encoder.layer.{i}", shape)
    return found


def pooler(shape: BertShape) -> list[Leaf]:
    """The leaves of the pooler."""
    return list(_dense("pooler", "pooler.dense", shape.width, shape.width))


def masked_lm(shape: BertShape) -> list[Leaf]:
    """The leaves of the masked-language head."""
    width, there = shape.width, "cls.predictions"
    found = [
        *_dense("head/transform", f"{there}.transform.dense", width, width),
        *_norm("head/norm", f"{there}.transform.LayerNorm", width),
        Leaf("head/bias", f"{there}.bias", (shape.vocabulary,)),
    ]
    if not shape.tied:
        found.append(Leaf("head/decoder", DECODER, (width, shape.vocabulary), True))
    return found


def _layer(ours: str, theirs: str, shape: BertShape) -> Iterator[Leaf]:
    width, inner = shape.width, shape.inner
    for name in ("query", "key", "value"):
        there = f"{theirs}.attention.self.{name}"
        yield from _dense(f"{ours}/attention/{name}", there, width, width)
    there = f"{theirs}.attention.output"
    yield from _dense(f"{ours}/attention/output", f"{there}.dense", width, width)
    yield from _norm(f"{ours}/attention/norm", f"{there}.LayerNorm", width)
    yield from _dense(f"{ours}/inner", f"{theirs}.intermediate.dense", width, inner)
    yield from _dense(f"{ours}/outer", f"{theirs}.output.dense", inner, width)
    yield from _norm(f"{ours}/norm", f"{theirs}.output.LayerNorm", width)


def _dense(ours: str, theirs: str, inputs: int, outputs: int) -> Iterator[Leaf]:
    yield Leaf(f"{ours}/kernel", f"{theirs}.weight", (inputs, outputs), True)
    yield Leaf(f"{ours}/bias", f"{theirs}.bias", (outputs,))


def _norm(ours: str, theirs: str, width: int) -> Iterator[Leaf]:
    yield Leaf(f"{ours}/scale", f"{theirs}.weight", (width,))
    yield Leaf(f"{ours}/bias", f"{theirs}.bias", (width,))
