"""Linear paths between networks: their error, instability, barriers.

    measure = lj.connectivity.Measure(batch_norm="recompute")
    path = lj.connectivity.paths(task, networks, [(0, 1), (0, 2)], measure)
    lii = lj.connectivity.instability(path.error)      # [pairs, splits]

References:
  Frankle, Dziugaite, Roy and Carbin, Linear Mode Connectivity and the Lottery Ticket
    Hypothesis, 2020, section 2.
  Paul et al., Unmasking the Lottery Ticket Hypothesis, 2023 (successive levels).
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lottery_jax import masks as masks_
from lottery_jax import streams, trees
from lottery_jax.connectivity import evaluation, points
from lottery_jax.connectivity.measure import Measure, check
from lottery_jax.errors import flag, is_a, one_of, shown, whole, wrong
from lottery_jax.execution import Where
from lottery_jax.training import check as check_task
from lottery_jax.training import checked
from lottery_jax.types import Array, Mask, Metrics, Network, PyTree, Task

Reference: TypeAlias = Literal["mean", "chord"]
Projection: TypeAlias = Literal["intersection", "union"]


class Path(NamedTuple):
    """What was measured on linear paths.

    Attributes:
      alphas: positions, float `[A]`; 0 is a pair's first network, 1 its second.
      values: by metric, all that the task's `evaluate` returns, `[pairs, splits, A]`.
      splits: the names along the second axis.
    """

    alphas: np.ndarray
    values: dict[str, np.ndarray]
    splits: tuple[str, ...]

    @property
    def error(self) -> np.ndarray:
        """Fractions in [0, 1], `[pairs, splits, A]`."""
        return self.values["error"]

    @property
    def loss(self) -> np.ndarray:
        """Likewise, nats."""
        return self.values["loss"]


def positions(alphas: int | ArrayLike, extrapolate: bool = False) -> np.ndarray:
    """Alphas as an array: a number of evenly spaced ones in [0, 1], or those given.

    Raises:
      ValueError: fewer than two, not rising, outside of [0, 1] (unless asked for), or
        without the ends.
    """
    flag("extrapolate", extrapolate)
    if np.ndim(alphas) == 0:
        number = whole("alphas", alphas, 2)  # a path has two ends
        return np.linspace(0, 1, number, dtype=np.float32)
    given = np.asarray(alphas)
    if given.dtype.kind not in "iuf":
        raise wrong("alphas", shown(alphas), "a number of positions, or a list of them")
    given = given.astype(np.float32)
    points.check_alphas(given, extrapolate)
    if given.ndim != 1 or (np.diff(given) <= 0).any():
        raise ValueError("alphas must be a list of rising numbers")
    if not {0.0, 1.0} <= set(given.tolist()):
        raise ValueError(
            "alphas must contain 0 and 1: the ends are what is compared with"
        )
    return given


def error_along_path(
    task: Task,
    a: Network,
    b: Network,
    measure: Measure,
    *,
    masks: tuple[Mask, Mask] | None = None,
    extrapolate: bool = False,
    chunk: int = 1,
) -> Metrics:
    """Error and loss on the line between two networks: pure, vmappable, jittable.

    Args:
      task: the task.
      a: the network at alpha = 0.
      b: the network at alpha = 1.
      measure: positions, splits and the BatchNorm policy, which is required for networks
        with a model state.
      masks: of both ends; checked to be the same where they are known.
      extrapolate: allow positions outside of [0, 1]; not with "interpolate", whose
        variances may become negative there.
      chunk: points that are evaluated at once; memory grows with it and not with the
        number of alphas.

    Returns:
      What the task's `evaluate` returns, `error` and `loss` among it, float32
      `[splits, alphas]`.

    Raises:
      ValueError: trees or masks that do not match, alphas outside of [0, 1], no policy,
        "interpolate" outside.
    """
    measure, chunk = check(measure), whole("chunk", chunk, 1)
    check_task(task, trains=False, splits=measure.splits)
    streams.check_whole(task.data, "error_along_path", "connectivity.paths reads it")
    for name, one_end in (("a", a), ("b", b)):
        is_a(name, one_end, Network, "a lottery_jax.Network")
    trees.same(a, b)
    if masks is not None:
        same_mask(*masks)
    policy = measure.batch_norm
    points.check_policy(task, a.model_state, policy)
    chosen = positions(measure.alphas, extrapolate)
    ends = np.stack([1 - chosen, chosen], axis=1)
    points.check_between(a.model_state, policy, ends)
    at = jnp.asarray(chosen)
    rows = None
    if policy == "recompute" and points.has_statistics(a.model_state):
        rows = points.statistics_slice(task, measure.statistics_batches)

    def one(alpha: Array) -> Metrics:
        return points.evaluate(
            task,
            [a, b],
            jnp.stack([1 - alpha, alpha]),
            splits=measure.splits,
            batch_norm=policy,
            rows=rows,
        )

    found = jax.lax.map(one, at, batch_size=chunk if chunk > 1 else None)
    return {name: jnp.moveaxis(x, 0, -1) for name, x in found.items()}


def paths(
    task: Task,
    networks: Network,
    pairs: Sequence[tuple[int, int]] | np.ndarray,
    measure: Measure,
    *,
    masks: Mask | None = None,
    projection: Projection | None = None,
    extrapolate: bool = False,
    where: Where | None = None,
) -> Path:
    """Error on the lines between many pairs, in one pass over all (pair, alpha).

    Args:
      task: the task.
      networks: a stack, leading axis `[N]`.
      pairs: positions of the two ends in the stack, `[pairs, 2]`.
      measure: positions, splits and the BatchNorm policy, which is required for networks
        with a model state.
      masks: of the networks, leading axis `[N]`. Both ends of a pair must share theirs,
        unless there is a projection.
      projection: where the path lies if the masks differ; see `project`.
      extrapolate: allow positions outside of [0, 1]; not with "interpolate", whose
        variances may become negative there.
      where: devices, and points evaluated at once on each; folder, who watches.

    Raises:
      ValueError: masks that differ, unknown networks, alphas outside of [0, 1], no
        policy for BatchNorm or "interpolate" outside; a checkpoint of other paths.
      MemoryError: see `evaluate_many`, which also says what is warned of.
    """
    measure, where = check(measure), checked.place(where)
    check_task(task, trains=False, splits=measure.splits)
    number = checked.networks("networks", networks, task)
    at = positions(measure.alphas, extrapolate)
    ends = np.asarray(pairs)
    if ends.size and (
        ends.ndim != 2 or ends.shape[1] != 2 or ends.dtype.kind not in "iu"
    ):
        raise wrong(
            "pairs", shown(pairs), "pairs of networks, such as [(0, 1), (0, 2)]"
        )
    ends = ends.astype(np.int32).reshape(-1, 2)
    if not len(ends) or ends.min() < 0 or ends.max() >= number:
        raise ValueError(
            f"pairs={ends.tolist()}; there must be some, of networks in [0, {number})"
        )
    if projection is not None:
        one_of("projection", projection, ("intersection", "union"))
    if projection is not None and masks is None:
        raise ValueError(f"projection={projection!r} needs the masks of the networks")
    if masks is not None:
        if projection is None:
            for i, j in ends.tolist():
                same_mask(trees.rows(masks, i), trees.rows(masks, j))
        else:
            first, second = (trees.rows(networks, ends[:, side]) for side in (0, 1))
            held, other = (trees.rows(masks, ends[:, side]) for side in (0, 1))
            sides = (first.params, second.params, held, other)
            a, b = trees.stack(
                [_projected(sides, i, projection) for i in range(len(ends))]
            )
            both = (first._replace(params=a), second._replace(params=b))
            networks = trees.concatenate(both)
            ends = np.arange(2 * len(ends), dtype=np.int32).reshape(2, -1).T
    found = evaluation.evaluate_many(
        task,
        networks,
        np.repeat(ends, len(at), axis=0),
        np.tile(np.stack([1 - at, at], axis=1), (len(ends), 1)),
        measure,
        rows=len(ends),
        where=where,
    )
    shaped = {
        name: np.moveaxis(x.reshape(len(ends), len(at), -1), 1, 2)
        for name, x in found.items()
    }
    return Path(at, shaped, measure.splits)


# --- masks ----------------------------------------------------------------------------


def same_mask(a: Mask, b: Mask) -> None:
    """Raises a ValueError if two masks differ: says in which leaf, and by how much.

    A path between networks of one mask stays among networks of that mask. Traced masks
    cannot be looked at and pass.
    """
    trees.same(a, b, ("the first mask", "the second"))
    for path, x, y in zip(trees.paths(a), jax.tree.leaves(a), jax.tree.leaves(b)):
        if isinstance(x, jax.core.Tracer) or isinstance(y, jax.core.Tracer):
            continue
        if different := int(np.sum(np.asarray(x) != np.asarray(y))):
            raise ValueError(
                f"the masks of the two ends differ in {different} places of leaf "
                f"{path!r}; the path would leave the subspace. Choose a projection, "
                "'intersection' or 'union', if that is meant"
            )


def project(
    a: PyTree, b: PyTree, mask_a: Mask, mask_b: Mask, onto: Projection
) -> tuple[PyTree, PyTree]:
    """Two networks of different masks, made comparable.

    Args:
      a: weights of the first network.
      b: weights of the second.
      mask_a: mask of the first.
      mask_b: mask of the second.
      onto: "intersection" sets to 0 what is not in both masks: of successive levels, the
        earlier network loses what the later one has lost (Paul et al. 2023, the
        projection of a level's solution onto the next level's axes). "union" leaves the
        weights as they are; the path lies where either mask allows.

    Raises:
      ValueError: an unknown projection.
    """
    one_of("onto", onto, ("intersection", "union"))
    if onto == "union":
        return a, b
    both = jax.tree.map(jnp.logical_and, mask_a, mask_b)
    return masks_.apply(both, a), masks_.apply(both, b)


def _projected(sides: PyTree, i: int, onto: Projection) -> PyTree:
    """One pair of many, on the host: the stacks need not fit on a device."""
    a, b, mask_a, mask_b = (trees.rows(side, i) for side in sides)
    return trees.host(project(a, b, mask_a, mask_b, onto))


# --- instability and barriers ---------------------------------------------------------


def instability(values: ArrayLike) -> Any:
    """Linear interpolation instability: the highest value minus the mean of the ends.

    Args:
      values: error (or loss) along paths, `[..., alphas]`, the ends first and last. NumPy
        and JAX arrays, traced ones too.

    Returns:
      `[...]`; nan where any point is nan.

    References:
      Frankle et al. 2020, section 2; the survey's LII.
    """
    return barrier(values, reference="mean")


def barrier(
    values: ArrayLike, alphas: ArrayLike | None = None, *, reference: Reference
) -> Any:
    """How high a path rises above a reference.

    Args:
      values: error (or loss) along paths, `[..., alphas]`.
      alphas: positions `[alphas]` in [0, 1], ends included; None for evenly spaced ones.
      reference: "mean" of the two ends, or the "chord" between them, for ends of unequal
        error: a path that rises steadily to a worse end has a barrier of 0.

    Returns:
      `[...]`, the highest difference; at least 0 for the chord, which the ends lie on.

    Raises:
      ValueError: an unknown reference, or positions that do not fit.
    """
    xp: Any = jnp if isinstance(values, jax.Array) else np
    height: Any = xp.asarray(values) * 1.0  # whole numbers are heights, too
    number = height.shape[-1]
    at = np.linspace(0, 1, number) if alphas is None else np.asarray(alphas)
    if at.shape != (number,) or at[0] != 0 or at[-1] != 1:
        raise ValueError(
            f"alphas must be {number} positions from 0 to 1; got shape {at.shape}"
        )
    first, last = height[..., :1], height[..., -1:]
    match reference:
        case "mean":
            level = (first + last) / 2
        case "chord":
            # As many axes as the heights: no rank is promoted.
            at = at.reshape((1,) * (height.ndim - 1) + (number,)).astype(height.dtype)
            level = (1 - at) * first + at * last
        case _:
            raise ValueError(f"reference={reference!r}; it must be 'mean' or 'chord'")
    return xp.max(height - level, axis=-1)


def is_stable(lii: ArrayLike, threshold: float = 0.02) -> Any:
    """Whether instabilities are below the threshold, one by one; nan is not stable.

    For a claim about a mean, with an interval, see `verdicts.stable`.

    Args:
      lii: fractions, any shape.
      threshold: a fraction, at least 0; the paper's is 2 points.

    Raises:
      ValueError: a negative threshold, or one that is no number.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold}; it must be 0 or more")
    xp: Any = jnp if isinstance(lii, jax.Array) else np
    return xp.asarray(lii) < threshold


def barrier_matrix(
    task: Task,
    networks: Network,
    measure: Measure,
    *,
    reference: Reference = "chord",
    **options: Any,
) -> np.ndarray:
    """Error barriers between all pairs of a set: replicas, branches, levels.

    Args:
      task: the task.
      networks: a stack, leading axis `[N]`.
      measure: as in `paths`.
      reference: as in `barrier`; the chord where the ends differ, as levels do.
      **options: of `paths`.

    Returns:
      Fractions `[splits, N, N]`, symmetric, 0 on the diagonal.

    Raises:
      ValueError: fewer than two networks, or anything that `paths` refuses.
    """
    number = trees.count(networks.params)
    if number < 2:
        raise ValueError(f"networks: there is {number}; a barrier is between two")
    pairs = list(itertools.combinations(range(number), 2))
    path = paths(task, networks, pairs, measure, **options)
    height = barrier(path.error, path.alphas, reference=reference)
    matrix = np.zeros((height.shape[1], number, number), np.float32)
    for (i, j), value in zip(pairs, height):
        matrix[:, i, j] = matrix[:, j, i] = value
    return matrix
