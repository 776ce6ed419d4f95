"""Which examples are held out: by a fixed permutation, as for images."""

import numpy as np

from lottery_jax import errors
from lottery_jax.data._random import random_state


def held_out(
    groups: np.ndarray, number: int, seed: int, purpose: str = "split"
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in a random order, the first ones of which are held out.

    What belongs together stays together: rows of one group are all held out or none, so
    that of two examples about one text not one is trained on and the other tested.

    Args:
      groups: the group of each row, `[N]`; `numpy.arange(N)` where none belong together.
      number: rows that are held out, at least: whole groups, the fewest.
      seed: fixes the order, in [0, 2**32).
      purpose: orders of different purposes are independent.

    Returns:
      The rows that are kept and those that are held out, int64.
    """
    _, group = np.unique(groups, return_inverse=True)
    last = int(group.max(initial=-1)) + 1
    rank = np.empty(last, np.int64)
    rank[random_state(seed, purpose).permutation(last)] = np.arange(last)
    order = np.argsort(rank[group], kind="stable")
    if not number:
        return order, order[:0]
    # To the end of the group that the last of them is in.
    ranks = rank[group][order]
    end = int(np.searchsorted(ranks, ranks[number - 1], side="right"))
    return order[end:], order[:end]


def train_and_validation(
    groups: np.ndarray, validation: int | None, seed: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a training file that are trained on, and those that are validated on.

    Args:
      groups: as for `held_out`.
      validation: rows that are held out; None for a tenth, 0 for none.
      seed: as for `held_out`.
      name: of the data set, for messages.

    Returns:
      Two arrays of rows, int64.

    Raises:
      ValueError: nothing would be left to train on.
    """
    number = len(groups)
    held = errors.whole(
        "validation",
        number // 10 if validation is None else validation,
        0,
        number - 1,
        f"one less than the examples of {name}",
    )
    rows, held_rows = held_out(groups, held, seed)
    if not len(rows):
        must = f"fewer: nothing of {name} would be left to train on"
        raise errors.wrong("validation", held, must)
    return rows, held_rows


def first(rows: np.ndarray, subset: int | None, name: str) -> np.ndarray:
    """The first rows of a training split, so that smaller subsets lie within larger ones.

    Args:
      rows: of the split.
      subset: how many are kept; None for all.
      name: of the data set, for messages.

    Raises:
      ValueError: there are fewer.
    """
    if subset is None:
        return rows
    most = f"what {name} has to train on"
    return rows[: errors.whole("subset", subset, 1, len(rows), most)]


def cuts(cut: dict[str, np.ndarray], length: int) -> list[str]:
    """What to note of sequences that were cut.

    Args:
      cut: of each split, bool `[N]`.
      length: to which they were cut.

    Returns:
      One sentence, or none where nothing was cut.
    """
    found = [
        f"{int(rows.sum())} of {len(rows)} of {split}"
        for split, rows in cut.items()
        if rows.any()
    ]
    return [f"sequences cut at length={length}: {', '.join(found)}"] if found else []
