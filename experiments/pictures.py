"""Small pictures of masks for results: at each place, the share of weights that survive.

Results hold numbers alone, and tickets every bit of a mask. Between them lie these: coarse
enough to be kept with every run, fine enough to see what a mask looks like.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lottery_jax import imp, tickets, trees

MOST = 48
"""Places along a side of a picture."""

NAMES = ("mask_picture", "mask_rows", "mask_columns")
"""The variables of results that hold pictures."""


def picture(mask: np.ndarray) -> np.ndarray:
    """A mask as a picture of at most `MOST` by `MOST` places.

    Args:
      mask: bool, of any shape with a weight in it; its last axis is that of units.

    Returns:
      uint8 `[units, inputs]`, or blocks of them, equal within one: 255 where all weights
      survive, 0 where none does. The axes before the last one lie behind each other.
    """
    matrix = mask.reshape(-1, mask.shape[-1] if mask.ndim else 1).T.astype(np.float64)
    for axis in (0, 1):
        size = matrix.shape[axis]
        number = min(size, MOST)
        first = np.arange(number) * size // number
        count = np.diff(np.append(first, size))
        total = np.add.reduceat(matrix, first, axis=axis)
        matrix = total / np.expand_dims(count, 1 - axis)
    return np.round(255 * matrix).astype(np.uint8)


def of_masks(every: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> imp.Records:
    """Masks as records of results.

    Args:
      every: by chain and level, the masks of the prunable leaves by their key paths; the
        same leaves everywhere.

    Returns:
      `mask_picture`, uint8 `[chain, level, layer, row, column]`, 0 beyond the sides of a
      layer's picture; `mask_rows` and `mask_columns`, int32 `[layer]`: these sides.
    """
    drawn = [
        [[picture(np.asarray(leaf)) for leaf in level.values()] for level in chain]
        for chain in every
    ]
    sides = np.array([one.shape for one in drawn[0][0]], np.int32)
    shape = len(drawn), len(drawn[0]), len(sides), *sides.max(axis=0)
    pictures = np.zeros(shape, np.uint8)
    for c, chain in enumerate(drawn):
        for i, level in enumerate(chain):
            for j, one in enumerate(level):
                pictures[c, i, j, : one.shape[0], : one.shape[1]] = one
    return {
        "mask_picture": (("chain", "level", "layer", "row", "column"), pictures),
        "mask_rows": (("layer",), sides[:, 0]),
        "mask_columns": (("layer",), sides[:, 1]),
    }


def of_study(study: imp.Study, folder: pathlib.Path, replica: int = 0) -> imp.Records:
    """Pictures of the masks that a study has stored, of one replica.

    Args:
      study: whose tickets they are.
      folder: of the study.
      replica: its id.

    Returns:
      As `of_masks`, of all levels; nothing where the study has not that replica, or not
      all of its tickets lie there any more.
    """
    names = [str(name) for name in study.records["layer"][1]]
    paths = [
        [imp.ticket_path(folder, chain.name, level, replica) for level in study.levels]
        for chain in study.plan.chains
    ]
    if replica not in study.replicas:
        return {}
    if not all(path.is_file() for own in paths for path in own):
        return {}

    def masks(path: pathlib.Path) -> dict[str, np.ndarray]:
        leaves = trees.by_path(tickets.contents(path).mask)
        return {name: leaves[name] for name in names}

    return of_masks([[masks(path) for path in own] for own in paths])
