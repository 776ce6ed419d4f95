"""The controls of a pruning study: what each arm starts a level from.

| arm | mask | weights at the rewind step k |
|---|---|---|
| ticket | the chain's | the chain's own |
| reinit | the chain's | a fresh draw of the initialisation, trained densely to k |
| reinit_raw | the chain's | a fresh draw, untrained, at schedule step k (open_lth) |
| random_mask | the chain's, permuted | the chain's own |
| shuffled_weights | the chain's | the chain's surviving ones, permuted in each layer |
| small_dense | a dense narrower network of as many weights | a fresh draw, from step 0 |
| reinit_signed | the chain's | those of reinit, with the signs of the chain's own |
| shuffled_weights_signed | the chain's | those of shuffled_weights, with these signs |
| constant | the chain's | +c or -c at random |
| constant_signed | the chain's | +c or -c, with the signs of the chain's own |
| random_ticket | the chain's, permuted | those of reinit: a random mask on random weights |

Level 0 is the dense network for every arm: nothing is permuted there, so random_mask,
shuffled_weights and constant repeat the ticket. Layers that are counted but never cut keep
their mask in every arm; what shuffles, signs or sets weights does so there all the same.

The constant c is the standard deviation of all the layer's weights at k, the pruned ones
included; of the initial draw at k = 0. Signs and constants are those of prunable leaves:
biases and norms are what they are without. The four with signs and constants, with reinit
and shuffled_weights, are the "mask-1 actions" of Zhou et al. (2019), section 3; the random
ticket is the control of Morcos et al. (2019).

A new arm is one more record in `ARMS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import masks, permutations
from lottery_jax.execution import Execution, Where
from lottery_jax.keys import ReplicaKeys, settled
from lottery_jax.masks import Patterns, PrunableLike
from lottery_jax.optimizers.settings import Optimizer, at
from lottery_jax.training import loop
from lottery_jax.training.programs import program
from lottery_jax.transforms import at_schedule_step, mask_state, with_weights
from lottery_jax.types import (
    Array,
    Key,
    Mask,
    Network,
    Params,
    PyTree,
    StreamState,
    Task,
    TrainState,
)


class Given(NamedTuple):
    """What an arm may start from, at one level of one replica of a chain.

    Attributes:
      keys: of the replica; the same at every level, so random masks are nested.
      mask: the chain's.
      chain: the chain's network at the start of the level, unmasked.
      own: the row's own dense network at the rewind step: a fresh draw where the arm has
        one.
    """

    keys: ReplicaKeys
    mask: Mask
    chain: Network
    own: Network


class Shuffling(NamedTuple):
    """How masks are permuted.

    Attributes:
      scope: "layerwise" or "global".
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.
    """

    scope: str = "layerwise"
    prunable: PrunableLike = None
    exclude: Patterns = ()


Begin = Callable[[Given, Shuffling], tuple[Network, Mask]]


class Arm(NamedTuple):
    """A control: what it starts from, and what has to be there for it.

    Attributes:
      name: in plans, results and figures.
      begin: pure; the network, unmasked, and the mask that a level starts from.
      fresh: has an initialisation and a noise of its own, one draw per replica.
      untrained: begins with its initialisation, whatever the rewind step is.
      from_step_0: trains from step 0 at every level.
      narrow: its own network and mask are a narrow dense one with as many weights.
      lost: begins from weights that the level's tickets have lost.
    """

    name: str
    begin: Begin
    fresh: bool = False
    untrained: bool = False
    from_step_0: bool = False
    narrow: bool = False
    lost: bool = False


def _ticket(given: Given, how: Shuffling) -> tuple[Network, Mask]:
    return given.chain, given.mask


def _own(given: Given, how: Shuffling) -> tuple[Network, Mask]:
    return given.own, given.mask


def _random_mask(given: Given, how: Shuffling) -> tuple[Network, Mask]:
    key = given.keys.mask_shuffle
    shuffled = masks.shuffle(key, given.mask, how.scope, how.prunable, how.exclude)  # type: ignore[arg-type]
    return given.chain, shuffled


def _random_ticket(given: Given, how: Shuffling) -> tuple[Network, Mask]:
    return given.own, _random_mask(given, how)[1]


def _shuffled_weights(given: Given, how: Shuffling) -> tuple[Network, Mask]:
    params = shuffle_surviving(
        given.keys.weight_shuffle, given.chain.params, given.mask, how.prunable
    )
    return given.chain._replace(params=params), given.mask


def _constant(given: Given, how: Shuffling) -> tuple[Network, Mask]:
    signs = random_signs(given.keys.signs, given.chain.params)
    return _constants(given, signs, how)


def _constant_signed(given: Given, how: Shuffling) -> tuple[Network, Mask]:
    return _constants(given, given.chain.params, how)


def _constants(given: Given, signs: Params, how: Shuffling) -> tuple[Network, Mask]:
    """The chain's network with a constant of each prunable layer, of these signs."""
    constant = constants(given.own.params)
    params = with_signs(constant, signs, how.prunable, given.chain.params)
    return given.chain._replace(params=params), given.mask


def _signed(begin: Begin) -> Begin:
    """What another arm begins with, with the signs of the chain's weights."""

    def signed(given: Given, how: Shuffling) -> tuple[Network, Mask]:
        network, mask = begin(given, how)
        params = with_signs(network.params, given.chain.params, how.prunable)
        return network._replace(params=params), mask

    return signed


ARMS = (
    Arm("ticket", _ticket),
    Arm("reinit", _own, fresh=True),
    Arm("reinit_raw", _own, fresh=True, untrained=True),
    Arm("random_mask", _random_mask, lost=True),
    Arm("shuffled_weights", _shuffled_weights),
    Arm("small_dense", _own, fresh=True, from_step_0=True, narrow=True),
    Arm("reinit_signed", _signed(_own), fresh=True),
    Arm("shuffled_weights_signed", _signed(_shuffled_weights)),
    Arm("constant", _constant, lost=True),
    Arm("constant_signed", _constant_signed, lost=True),
    Arm("random_ticket", _random_ticket, fresh=True),
)


def index(name: str) -> int:
    """The position of an arm in `ARMS`."""
    return [arm.name for arm in ARMS].index(name)


def having(field: str) -> list[int]:
    """The positions of the arms of which something holds, such as "fresh"."""
    return [i for i, arm in enumerate(ARMS) if getattr(arm, field)]


def begin(
    arm: Array | np.ndarray,
    given: Given,
    how: Shuffling,
    among: tuple[Arm, ...] = ARMS,
) -> tuple[Network, Mask]:
    """What an arm starts a level from, unmasked.

    Args:
      arm: position in `among`, int32 `[]`, may be traced.
      given: what there is.
      how: masks are permuted.
      among: the arms that may be asked for; no others are compiled.
    """
    return jax.lax.switch(arm, [lambda one=one: one.begin(given, how) for one in among])


# --- many of them ---------------------------------------------------------------------


class Rows(NamedTuple):
    """What many runs of any arms start from; all have a leading axis `[P]`.

    Attributes:
      arm: position in `ARMS`, int32.
      step: where the schedule and the noise of each stand, int32.
      given: what each may start from, unmasked.
      stream: stream states.
      optimizer: states that were kept at the rewind step, or () for fresh ones.
      kept: whether this is so for each, bool; the others begin with a fresh one.
      offset: how far beyond the rewind step each stands, int32; with `optimizer` only.
      hyper: values of each by the names of hyperparameters, float32, where the optimizer is
        a function of them.
    """

    arm: Array | np.ndarray
    step: Array | np.ndarray
    given: Given
    stream: StreamState
    optimizer: PyTree = ()
    kept: Array | np.ndarray | tuple[()] = ()
    offset: Array | np.ndarray | tuple[()] = ()
    hyper: Mapping[str, Array | np.ndarray] = {}


def starts(
    task: Task,
    tx: Optimizer,
    rows: Rows,
    execution: Execution,
    random_scope: str = "layerwise",
    among: tuple[str, ...] | None = None,
    where: Where | None = None,
) -> TrainState:
    """The training states that runs of any arms begin with, masked, `[P]`.

    Args:
      task: what is trained.
      tx: the optimizer.
      rows: what each starts from, in a number that the devices divide.
      execution: the devices.
      random_scope: how random masks are permuted.
      among: the arms that this or another call of the same study asks for, so that all
        share one program; None for those of these rows.
      where: what these are a part of, which says how many rows at once fit.

    Raises:
      ValueError: an arm needs a task that says how to narrow it.
      MemoryError: not even one row fits on a device, or not all of their weights.

    Warns:
      RuntimeWarning: a device was full; fewer run at once from then on.
    """
    if np.isin(rows.arm, having("narrow")).any():
        rows = rows._replace(given=_narrowed(task, rows))
    wanted = {ARMS[i].name for i in np.unique(rows.arm)} | set(among or ())
    chosen = tuple(i for i, one in enumerate(ARMS) if one.name in wanted)
    rows = rows._replace(arm=np.searchsorted(chosen, rows.arm).astype(np.int32))
    placed, where = execution.place(rows), where or Where()

    def start(execution: Execution) -> TrainState:
        parts = (task.functions, execution, tx, random_scope, chosen)
        return program(_start, *parts)(placed)

    number = len(rows.arm)
    return where.room.run("the start of all arms", execution, number, start)[0]


def _start(
    functions: Task,
    execution: Execution,
    tx: Optimizer,
    scope: str,
    chosen: tuple[int, ...],
) -> Callable[..., Any]:
    how = Shuffling(scope, masks.of_task(functions), functions.exclude)
    among = tuple(ARMS[i] for i in chosen)

    def start(rows: Rows) -> TrainState:
        network, mask = begin(rows.arm, rows.given, how, among)
        step, own = jnp.asarray(rows.step), at(tx, rows.hyper)
        state = loop.start(own, network, rows.stream, mask, step)
        if rows.optimizer == ():
            return state
        kept = mask_state(own, rows.optimizer, mask)
        kept = with_weights(own, kept, state.params, mask)
        # Fine-tuning goes on elsewhere in the schedule than where this was kept.
        moved = at_schedule_step(own, kept, state.params, step, kept=True)
        stays, beyond = jnp.asarray(rows.kept), jnp.asarray(rows.offset) > 0
        chosen = jax.tree.map(
            lambda k, m, n: jnp.where(stays, jnp.where(beyond, m, k), n),
            *(kept, moved, state.opt_state),
        )
        return state._replace(opt_state=chosen)

    return execution.parallel(start, (0,))


def _narrowed(task: Task, rows: Rows) -> Given:
    """Own networks and masks of narrow arms: as many weights as the chain's mask has."""
    check_narrows(task)
    assert task.narrow is not None
    flags = masks.of_task(task)
    given = rows.given
    own, mask = jax.tree.map(np.array, (given.own, given.mask))
    for row in np.flatnonzero(np.isin(rows.arm, having("narrow"))):
        leaves = zip(jax.tree.leaves(mask), masks.resolve(mask, flags))
        count = sum(int(m[row].sum()) for m, take in leaves if take)
        key = given.keys.fresh_init[row]
        drawn = task.narrow(key, count)
        for whole, one in zip(jax.tree.leaves((own, mask)), jax.tree.leaves(drawn)):
            whole[row] = one
    return given._replace(own=own, mask=mask)


def check_narrows(task: Task) -> None:
    """Raises a ValueError if a task does not say how to narrow it."""
    if task.narrow is None:
        raise ValueError("arms: 'small_dense' needs a task that says how to narrow it")


# --- shuffling ------------------------------------------------------------------------


def shuffle_surviving(
    key: Key, params: Params, mask: Mask, prunable: PrunableLike = None
) -> Params:
    """Permutes the surviving weights among the surviving places of each prunable leaf.

    Args:
      key: draws the permutation.
      params: weights.
      mask: which survive.
      prunable: leaves that take part; the others are returned as they are.
    """
    leaves, structure = jax.tree.flatten(params)
    flags = masks.resolve(params, prunable)
    out = []
    for i, (p, m, take) in enumerate(zip(leaves, jax.tree.leaves(mask), flags)):
        if take:
            p = _shuffle_leaf(jax.random.fold_in(key, i), p, m)
        out.append(p)
    return jax.tree.unflatten(structure, out)


def _shuffle_leaf(key: Key, p: Array, m: Array) -> Array:
    """The survivor of each rank goes to the place of another rank."""
    flat, alive = p.reshape(-1), m.reshape(-1)
    rank = jnp.cumsum(alive, dtype=jnp.int32) - 1
    number = jnp.sum(alive, dtype=jnp.int32)
    beyond = jnp.where(alive, rank, flat.size)
    survivors = jnp.zeros_like(flat).at[beyond].set(flat, mode="drop")
    dealt = survivors[permutations.at(key, rank, number)]
    return jnp.where(alive, dealt, flat).reshape(p.shape)


# --- signs and constants --------------------------------------------------------------


def with_signs(
    params: Params,
    signs: Params,
    prunable: PrunableLike = None,
    others: Params | None = None,
) -> Params:
    """The magnitudes of some weights with the signs of others, in each prunable leaf.

    Args:
      params: whose magnitudes.
      signs: whose signs, of the same shapes; a weight of exactly 0 has none and becomes 0.
      prunable: leaves that take part.
      others: what the other leaves are; None for those of `params`.
    """
    leaves, structure = jax.tree.flatten(params)
    rest = leaves if others is None else jax.tree.leaves(others)
    flags = masks.resolve(params, prunable)
    return jax.tree.unflatten(
        structure,
        [
            jnp.abs(p) * jnp.sign(s) if take else other
            for p, s, other, take in zip(leaves, jax.tree.leaves(signs), rest, flags)
        ],
    )


def constants(params: Params) -> Params:
    """Every weight as the standard deviation of its leaf (Zhou et al. 2019, section 3).

    That of all the leaf's weights, about their mean; computed in float32 at least.
    """

    def leaf(p: Array) -> Array:
        wide = jnp.asarray(p).astype(jnp.promote_types(p.dtype, jnp.float32))
        return jnp.full_like(p, jnp.std(wide).astype(p.dtype))

    return jax.tree.map(leaf, params)


@settled
def random_signs(key: Key, params: Params) -> Params:
    """+1 or -1 for every weight, evenly; one draw per leaf and key.

    Args:
      key: of the draw.
      params: whose shapes and dtypes they have.
    """
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(
        structure,
        [
            jax.random.rademacher(jax.random.fold_in(key, i), p.shape, p.dtype)
            for i, p in enumerate(leaves)
        ],
    )
