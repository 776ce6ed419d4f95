"""Random streams of the host: the same numbers on every version of NumPy."""

import zlib

import numpy as np

from lottery_jax.keys import check_seed


def random_state(seed: int, purpose: str) -> np.random.RandomState:
    """An own stream for each (seed, purpose).

    `RandomState`, because NumPy promises never to change its numbers, which it does not
    for `Generator`: a split must be the same split in five years.

    Args:
      seed: in [0, 2**32).
      purpose: what is drawn; streams of different purposes are independent.

    Returns:
      A generator of its own; the global one is left alone.

    Raises:
      ValueError: `seed` is no integer, or out of range.
    """
    return np.random.RandomState([check_seed(seed), zlib.crc32(purpose.encode())])
