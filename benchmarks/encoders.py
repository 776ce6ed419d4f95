"""Sizes of encoders, and noise of the shape of their texts; for both libraries.

Nothing here imports JAX or PyTorch.
"""

import numpy as np

from benchmarks.rows import Sizes

CLASSES, MASK, RATE = 2, 4, 0.15
"""Of sentences; the id of what stands for a token to be guessed; how many are."""

_WORDS = 5  # the first id that is no special token


def sizes_of(name: str) -> tuple[int, int, int, int]:
    """Layers, width, heads and inner width: of "bert-2-128-2-512", say."""
    layers, width, heads, inner = map(int, name.split("-")[1:])
    return layers, width, heads, inner


def guessed(sizes: Sizes) -> int:
    """How many tokens of a window are to be guessed."""
    return round(RATE * sizes.shape[0])


def draw_arrays(sizes: Sizes) -> dict[str, np.ndarray]:
    """Random words, one type of sentence, random classes; nothing is padded."""
    generator = np.random.default_rng(0)
    size = (sizes.examples, *sizes.shape)
    return {
        "ids": generator.integers(_WORDS, sizes.vocabulary, size, np.int32),
        "types": np.zeros(size, np.int32),
        "label": generator.integers(0, CLASSES, sizes.examples, np.int32),
    }
