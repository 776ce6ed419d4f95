"""A level: prune, start, and what is measured at its end.

Everything here is a function of a `Bench`, what stays the same throughout a study, and of
what it has `Kept` from one level to the next.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import (
    at_init,
    keys,
    masks,
    prune,
    scores,
    streams,
    training,
    transforms,
    trees,
)
from lottery_jax.execution import GROUP, Execution, Where
from lottery_jax.imp import arms
from lottery_jax.imp.plan import Chain, Plan, keep_counts
from lottery_jax.keys import ReplicaKeys
from lottery_jax.optimizers.settings import Optimizer, at, each
from lottery_jax.training import checked, runs, windows
from lottery_jax.training.measured import tested as tested_on
from lottery_jax.training.programs import program
from lottery_jax.training.rows import of_rows, shared_data, specs_of, take
from lottery_jax.types import (
    Array,
    Key,
    Mask,
    Network,
    Params,
    PyTree,
    StreamState,
    Task,
)


class Rows(NamedTuple):
    """The networks of a study, in the order chain, replica, arm; then padding.

    Attributes:
      chain: index of the chain, int32 `[P]`.
      replica: position of the replica (not its id), int32 `[P]`.
      arm: position in `arms.ARMS`, int32 `[P]`.
      number: how many rows are real; the others repeat the last one.
      pair: position of each row's (chain, replica), int `[P]`.
      tickets: the row of the ticket of each (chain, replica), padded, int `[Q]`.
      pairs: how many of these are real.
    """

    chain: np.ndarray
    replica: np.ndarray
    arm: np.ndarray
    number: int
    pair: np.ndarray
    tickets: np.ndarray
    pairs: int

    def having(self, field: str) -> np.ndarray:
        """Which rows have an arm of which something holds ("fresh", ...), bool `[P]`."""
        return np.isin(self.arm, arms.having(field))


def lay_out(plan: Plan, replicas: int, execution: Execution) -> Rows:
    """The rows of a study, padded to a multiple of the devices."""
    indices = [arms.index(name) for name in plan.arms]
    shape = (len(plan.chains), replicas, len(indices))
    chain, replica, arm = (x.reshape(-1) for x in np.indices(shape, np.int32))
    arm = np.array(indices, np.int32)[arm]
    number = len(arm)
    at = np.minimum(np.arange(execution.padded(number)), number - 1)
    chain, replica, arm = chain[at], replica[at], arm[at]
    pairs = shape[0] * shape[1]
    pair = np.minimum(np.arange(execution.padded(pairs)), pairs - 1)
    # Without tickets, as when controls are trained again, nothing is pruned.
    own = plan.arms.index("ticket") if "ticket" in plan.arms else 0
    tickets = pair * shape[2] + own
    own_pair = chain * replicas + replica
    return Rows(chain, replica, arm, number, own_pair, tickets, pairs)


class Bench(NamedTuple):
    """What stays the same throughout a study.

    Attributes:
      task, tx, plan: what is done.
      ids: of the replicas.
      rows: the networks.
      keys: of each row's replica, `[P]`.
      noise: the noise key that each row trains under, `[P]`.
      first: each row's own network before any training, on the host, `[P]`; where all
        replicas start from the same weights these are views of one copy.
      stream: its stream state there.
      prunable: which leaves count.
      execution: of the arrays above.
    """

    task: Task
    tx: Optimizer
    plan: Plan
    ids: tuple[int, ...]
    rows: Rows
    keys: ReplicaKeys
    noise: Key
    first: Network
    stream: StreamState
    prunable: PyTree
    execution: Execution

    @property
    def rewind_steps(self) -> np.ndarray:
        """The rewind step of each row's chain, int32 `[P]`."""
        return np.array(self.plan.rewind_steps, np.int32)[self.rows.chain]

    @property
    def hyper(self) -> dict[str, np.ndarray]:
        """The values of each row's setting in a sweep by name, float32 `[P]`."""
        return {name: x[self.rows.chain] for name, x in self.plan.hyper.items()}


class Kept(NamedTuple):
    """What a study keeps from one level to the next.

    The first three have a row axis `[P]` and lie on the host, the others have one of
    (chain, replica), `[Q]`.

    Attributes:
      trunk: each row's own network at the rewind step.
      stream: its stream state there.
      optimizer: its optimizer state there; () if levels reset it.
      final: the tickets' networks at the end of the last level.
      dense: those at the end of level 0; () without a one-shot chain.
      begun: what the chains started the last level from, unmasked; () if from the trunk.
      mask: the chains' masks.
    """

    trunk: Network
    stream: StreamState
    optimizer: PyTree
    final: Network
    dense: Network | tuple[()]
    begun: Network | tuple[()]
    mask: Mask


PER_ROW = ("trunk", "stream", "optimizer")
"""Fields of `Kept` with a row axis."""


def set_up(
    task: Task,
    tx: Optimizer,
    plan: Plan,
    ids: tuple[int, ...],
    execution: Execution,
    start: Network | None = None,
    where: Where | None = None,
) -> Bench:
    """Lays out the rows and draws their networks; nothing is trained yet.

    Args:
      task: what is trained.
      tx: the optimizer, or a function of the hyperparameters of the plan's sweep.
      plan: the protocol.
      ids: of the replicas.
      execution: the devices.
      start: weights to start from; see `study.run`.
      where: the study runs, which says how many rows at once fit.

    Raises:
      ValueError: a start that does not fit the task, an arm that it cannot make, an
        optimizer that does not see the subnetwork alone or cannot begin at the rewind step.
    """
    if "small_dense" in plan.arms:
        arms.check_narrows(task)
    if start is not None:
        checked.start(start, task, len(ids))
    for own in each(tx, plan.hyper):
        transforms.check(own, task.shapes[0])
        _check_positions(own, plan, task)
    rows = lay_out(plan, len(ids), execution)
    own = keys.of_replicas(plan.seed, np.array(ids, np.int32)[rows.replica])
    fresh = rows.having("fresh")
    own, fresh_ = execution.place((own, fresh))
    init = execution.place(jnp.where(fresh_, own.fresh_init, own.init))
    noise = execution.place(jnp.where(fresh_, own.fresh_noise, own.noise))
    drawn, _ = (where or Where()).room.run(
        "the draw of networks",
        execution,
        rows.number,
        lambda execution: program(_init, task.functions, execution)(init),
    )
    # On the host: levels need it for a moment only, and it would fill the devices.
    first, stream = trees.host(drawn)
    if start is not None:
        given = of_rows(start, task, rows.replica)
        first = where_rows(fresh, first, given) if fresh.any() else given
    prunable = masks.of_task(task)
    return Bench(
        task, tx, plan, ids, rows, own, noise, first, stream, prunable, execution
    )


def _check_positions(tx: Any, plan: Plan, task: Task) -> None:
    """Raises a ValueError if fresh optimizers cannot stand where levels begin."""
    named = [arm for arm in arms.ARMS if arm.name in plan.arms]
    fresh = plan.level_optimizer == "reset" or any(arm.untrained for arm in named)
    for chain, k in zip(plan.chains, plan.rewind_steps):
        tuned = chain.retrain == "finetune"
        if (fresh and (k > 0 or tuned)) or (tuned and k == 0):
            transforms.check_reset(tx, task.shapes[0])


def _init(functions: Task, execution: Execution) -> Callable[..., Any]:
    def init(key: Key) -> tuple[Network, StreamState]:
        params, model_state, stream = functions.init(key)
        return Network(params, model_state), stream

    return execution.parallel(init, (0,))


def where_rows(condition: np.ndarray, yes: PyTree, no: PyTree) -> PyTree:
    """One stack or another, row by row: condition `[P]`; on the host if both are."""

    def leaf(y: Any, n: Any) -> Any:
        on_host = isinstance(y, np.ndarray) and isinstance(n, np.ndarray)
        xp: Any = np if on_host else jnp
        return xp.where(condition.reshape(-1, *[1] * (y.ndim - 1)), y, n)

    return jax.tree.map(leaf, yes, no)


def first_kept(bench: Bench, where: Where) -> Kept:
    """What there is before the first level of a study that runs there."""
    plan, rows, execution = bench.plan, bench.rows, bench.execution
    # Before the first level the tickets' last networks are those they start from.
    tickets = take(bench.first, rows.tickets, execution)
    full = jax.tree.map(
        lambda p: np.ones((len(rows.tickets), *p.shape), np.bool_), bench.task.shapes[0]
    )
    optimizer: PyTree = ()
    if plan.level_optimizer == "rewind":
        params, hyper = execution.place((bench.first.params, bench.hyper))
        made, _ = where.room.run(
            "the start of optimizers",
            execution,
            rows.number,
            lambda execution: program(_fresh_optimizer, execution, bench.tx)(
                hyper, params
            ),
        )
        optimizer = trees.host(made)
    return Kept(
        trunk=bench.first,
        stream=bench.stream,
        optimizer=optimizer,
        final=tickets,
        dense=tickets if any(chain.one_shot for chain in plan.chains) else (),
        begun=tickets if any(chain.keeps_weights for chain in plan.chains) else (),
        mask=execution.place(full),
    )


def _fresh_optimizer(execution: Execution, tx: Optimizer) -> Callable[..., Any]:
    def init(hyper: Mapping[str, Array], params: Params) -> PyTree:
        return at(tx, hyper).init(params)

    return execution.parallel(init, (0, 0))


def compile_ahead(bench: Bench, kept: Kept, where: Where) -> None:
    """Compiles what the first levels need, side by side, while they begin.

    Args:
      bench: of the study.
      kept: before its first level.
      where: it runs.
    """
    execution = where.room.within(bench.execution)
    functions = bench.task.functions
    rows, tickets = len(bench.rows.arm), len(bench.rows.tickets)

    def one(number: int, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((number, *shape), dtype, sharding=execution.sharded)

    def stack(tree: PyTree, number: int) -> PyTree:
        return jax.tree.map(lambda x: one(number, x.shape[1:], x.dtype), tree)

    data = specs_of(shared_data(bench.task, execution, where))
    mask = jax.tree.map(lambda x: one(rows, x.shape[1:], np.bool_), bench.first.params)
    network = stack(bench.first, rows)
    away = streams.streamed(bench.task.data)
    if "test" not in away:
        program(tested_on, functions, execution, "test").ahead(data, network)
    program(_layer_counts, functions, execution).ahead(mask)
    counted = sum(masks.resolve(mask, bench.prunable))
    of_rows = (bench.keys.score, bench.noise, bench.stream, bench.first)
    key, noise, stream, initial = stack(of_rows, tickets)
    of_tickets = (kept.final, kept.dense, kept.mask)
    final, dense, cut_mask = stack(of_tickets, tickets)
    evidence = Evidence(
        one(tickets, (), np.int32),
        key,
        noise,
        stream,
        initial,
        final,
        dense,
        cut_mask,
        one(tickets, (1 + counted,), np.int32),
    )
    level = jax.ShapeDtypeStruct((), np.int32)
    if windows.TRAIN not in away:
        program(_cut, functions, execution, bench.plan.procedures).ahead(
            data, level, evidence
        )


# --- start ----------------------------------------------------------------------------


def starts(
    bench: Bench,
    kept: Kept,
    level: int,
    where: Where,
    networks: Network | None = None,
) -> runs.Runs:
    """What every row of a level starts from, and when.

    Args:
      bench: of the study.
      kept: from the level before.
      level: 0 is the dense network.
      where: the study runs.
      networks: what each chain's ticket starts from, `[Q]`; None for `chain_networks`.
    """
    rows, execution = bench.rows, bench.execution
    if networks is None:
        networks = chain_networks(bench, kept, level)
    # The dense network is each row's own; nothing is permuted or narrowed there.
    arm = rows.arm if level > 0 else np.full_like(rows.arm, arms.index("reinit"))
    joins, offset = timeline(bench, level)
    mask, networks = take((kept.mask, networks), rows.pair, execution)
    state = arms.starts(
        bench.task,
        bench.tx,
        arms.Rows(
            arm,
            joins + offset,
            arms.Given(bench.keys, mask, networks, kept.trunk),
            kept.stream,
            kept.optimizer,
            kept_optimizers(bench, level),
            offset,
            bench.hyper,
        ),
        execution,
        bench.plan.random_scope,
        among=(*bench.plan.arms, "reinit"),
        where=where,
    )
    noise = bench.noise[: rows.number]
    own = trees.rows((joins, offset, bench.hyper), slice(rows.number))
    return runs.Runs(state, noise, *own)


def kept_optimizers(bench: Bench, level: int) -> np.ndarray:
    """Which rows go on with the optimizer of the rewind step, bool `[P]`."""
    fresh = bench.rows.having("untrained") | bench.rows.having("from_step_0")
    kept = bench.plan.level_optimizer == "rewind" and level > 0
    return kept & ~fresh & (bench.rewind_steps > 0)


def timeline(bench: Bench, level: int) -> tuple[np.ndarray, np.ndarray]:
    """When each row joins a level, and its offset in the noise, int32 `[P]`."""
    plan, rows = bench.plan, bench.rows
    rewind = bench.rewind_steps
    joins, offset = np.zeros_like(rewind), np.zeros_like(rewind)
    if level > 0:
        joins = np.where(rows.having("from_step_0"), 0, rewind).astype(np.int32)
        finetune = np.array([chain.retrain == "finetune" for chain in plan.chains])
        goes_on = finetune[rows.chain] & ~rows.having("fresh")
        offset[goes_on] = plan.steps - rewind[goes_on]
    return joins, offset


def chain_networks(bench: Bench, kept: Kept, level: int) -> Network:
    """What each chain's ticket starts a level from, `[Q]`, unmasked."""
    at, chains, execution = bench.rows.tickets, bench.plan.chains, bench.execution
    if level == 0 or not any(chain.keeps_weights for chain in chains):
        return take(kept.trunk, at, execution)
    # On the host: nothing is computed of stacks on the devices but by programs.
    chosen = trees.rows(kept.trunk, at)

    def which(flags: list[bool]) -> np.ndarray:
        return np.array(flags)[bench.rows.chain[at]]

    keeps = which([chain.keeps_weights for chain in chains])
    chosen = where_rows(keeps, trees.host(kept.final), chosen)
    if isinstance(kept.dense, Network):
        once = which([chain.keeps_weights and chain.one_shot for chain in chains])
        chosen = where_rows(once, trees.host(kept.dense), chosen)
    return execution.place(chosen)


def begun(bench: Bench, kept: Kept, level: int) -> Network:
    """What each chain's ticket started a level from, `[Q]`, when the level is over."""
    if level > 0 and isinstance(kept.begun, Network):
        return kept.begun
    return take(kept.trunk, bench.rows.tickets, bench.execution)


# --- prune ----------------------------------------------------------------------------


class Evidence(NamedTuple):
    """What one pruning step of one (chain, replica) looks at.

    Attributes:
      chain: index of its procedure, int32 `[]`.
      key: for scores that draw.
      noise: the ticket's noise key, whose first batches scores see.
      stream: its stream state.
      initial: its network at step 0.
      final: its network at the end of the level.
      dense: that of level 0; () without a one-shot chain.
      mask: the chain's, to be cut.
      keep: from `keep_counts`, int32 `[1 + prunable leaves]`.
    """

    chain: Array | np.ndarray
    key: Key
    noise: Key
    stream: StreamState
    initial: Network
    final: Network
    dense: Network | tuple[()]
    mask: Mask
    keep: Array | np.ndarray


def cut(bench: Bench, kept: Kept, level: int, where: Where) -> Kept:
    """The masks of a level, from the networks at the end of the one before."""
    plan, rows, execution = bench.plan, bench.rows, bench.execution
    shapes, at = bench.task.shapes[0], rows.tickets
    keep = np.stack(
        [keep_counts(chain, shapes, level, bench.prunable) for chain in plan.chains]
    )
    of_rows = (bench.keys.score, bench.noise, kept.stream, bench.first)
    key, noise, stream, initial = take(of_rows, at, execution)
    evidence = Evidence(
        rows.chain[at] // plan.settings,
        key,
        noise,
        stream,
        initial,
        kept.final,
        kept.dense,
        kept.mask,
        keep[rows.chain[at]],
    )
    data = shared_data(bench.task, execution, where)
    placed = execution.place(evidence)
    parts, window = _window(bench, placed, where)

    def prune_all(execution: Execution) -> Mask:
        one = program(_cut, bench.task.functions, execution, plan.procedures, *parts)
        return one(data, np.int32(level), placed, *window)

    stage = f"pruning to level {level}"
    mask, _ = where.room.run(stage, execution, rows.pairs, prune_all)
    begun_: Network | tuple[()] = ()
    if isinstance(kept.begun, Network):
        begun_ = chain_networks(bench, kept, level)
    return kept._replace(mask=mask, begun=begun_)


def _window(
    bench: Bench, evidence: Evidence, where: Where
) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """What scores are given of a split "train" that is streamed: its first batches.

    Returns:
      How `_cut` sees them, and the window; both are empty for a split that is not.
    """
    if windows.TRAIN not in streams.streamed(bench.task.data):
        return (), ()
    own = bench.task.functions, bench.execution
    level = jax.ShapeDtypeStruct((), np.int32)
    without = _cut(*own, bench.plan.procedures, "none")
    try:
        jax.eval_shape(without, {}, level, evidence)
    except scores.MissingInputError:
        number = min(_SCORE_BATCHES, bench.task.steps_per_epoch)
        of = bench.task, bench.execution, evidence.noise, number
        return ("window",), windows.of_first_steps(*of, where.waited)
    return ("none",), ()


def _cut(
    functions: Task,
    execution: Execution,
    chains: tuple[Chain, ...],
    given: Literal["data", "window", "none"] = "data",
) -> Callable[..., Any]:
    flags = masks.of_task(functions)

    def one_cut(data: PyTree, level: Array, seen: Evidence, *window: PyTree) -> Mask:
        task = functions._replace(data=data)
        if given == "window":
            examples, places = window
            task = windows.seen(functions, data, examples, places, 0)
        batches = None if given == "none" else _score_batches(task, seen.noise)
        key = jax.random.fold_in(seen.key, level)

        def loss(params: Params, model_state: PyTree, batch: PyTree, key: Key) -> Array:
            return task.loss(params, model_state, seen.stream, batch, key)[0]

        def by(chain: Chain) -> Mask:
            source = seen.dense if chain.one_shot else seen.final
            assert isinstance(source, Network)
            inputs = scores.Inputs(
                trained=source.params,
                mask=masks.ones_like(seen.mask) if chain.one_shot else seen.mask,
                initial=seen.initial.params,
                model_state=source.model_state,
                loss=loss,
                batches=batches,
                outputs=task.outputs,
            )
            where: dict[str, Any] = dict(prunable=flags, exclude=task.exclude)
            return prune_chain(chain, key, inputs, jnp.asarray(seen.keep), **where)

        return jax.lax.switch(
            seen.chain, [lambda chain=chain: by(chain) for chain in chains]
        )

    window = (GROUP, 0) if given == "window" else ()
    return execution.parallel(one_cut, (None, None, 0, *window))


def prune_chain(
    chain: Chain,
    key: Key,
    inputs: scores.Inputs,
    keep: Array,
    *,
    prunable: PyTree,
    exclude: tuple[str, ...] = (),
) -> Mask:
    """One pruning step of a chain: score, then cut.

    Args:
      chain: the procedure.
      key: for scores that draw.
      inputs: what scores may look at; `inputs.mask` is the mask to cut.
      keep: from `keep_counts`, may be traced.
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.
    """
    ranking = chain.ranking(key, inputs)
    where: dict[str, Any] = dict(prunable=prunable, exclude=exclude)
    if chain.rule == "open_lth":
        fraction = chain.densities.share
        return prune.global_topk(
            ranking, inputs.mask, fraction=fraction, rule="open_lth", **where
        )
    if chain.scope == "global":
        return prune.global_topk(ranking, inputs.mask, keep=keep[0], **where)
    return prune.layerwise_topk(ranking, inputs.mask, keep=keep[1:], **where)


_SCORE_BATCHES = 8


def _score_batches(task: Task, noise: Key) -> PyTree:
    """The first batches of a row's data order, for scores that need gradients."""
    return at_init.first_batches(task, noise, _SCORE_BATCHES)


# --- the end of a level ---------------------------------------------------------------


def end(
    bench: Bench, kept: Kept, done: training.Trained, level: int, where: Where
) -> tuple[Kept, dict[str, np.ndarray]]:
    """What is kept of a level, and what is measured at its end.

    Args:
      bench: of the study.
      kept: what the level began with.
      done: the level, trained.
      level: its number.
      where: what it ran on.

    Returns:
      What is kept, and arrays `[R, ...]` by name (`results.table`).
    """
    rows, execution = bench.rows, done.execution
    at_place = done.places
    where = where.by(execution)

    def tested(network: Network) -> dict[str, np.ndarray]:
        found = training.evaluate(bench.task, network, "test", where=where)
        return {name: x[at_place] for name, x in found.items()}

    counted, _ = where.room.run(
        "the count of weights",
        execution,
        rows.number,
        lambda execution: program(_layer_counts, bench.task.functions, execution)(
            done.rows.mask
        ),
    )
    counts = np.asarray(counted)[at_place]
    shapes = bench.task.shapes[0]
    sizes = [
        int(np.prod(p.shape))
        for p, take in zip(
            jax.tree.leaves(shapes), masks.resolve(shapes, bench.prunable)
        )
        if take
    ]
    measured: dict[str, np.ndarray] = {}
    for name, value in tested(done.rows.network).items():
        measured[f"test_{name}"] = value
    if done.best is not None:
        loss = np.asarray(done.best.loss)[at_place]
        step = np.asarray(done.best.step)[at_place]
        validated = np.isfinite(loss)
        for name, value in tested(done.best.network).items():
            measured[f"test_{name}_early"] = np.where(validated, value, np.nan)
        measured["early_stop_step"] = np.where(validated, step, -1).astype(np.int32)
    measured |= done.curves.values
    measured |= {
        "first_nan": done.curves.first_nan,
        "alive": counts.sum(axis=1).astype(np.int32),
        "density": counts.sum(axis=1) / sum(sizes),
        "layer_density": counts / np.array(sizes),
    }
    final = take(done.rows.network, at_place[rows.tickets], bench.execution)
    kept = kept._replace(final=final)
    if level == 0:
        kept = _remember(bench, kept, done)
        if kept.dense != ():
            kept = kept._replace(dense=final)
    return kept, measured


def _layer_counts(functions: Task, execution: Execution) -> Callable[..., Any]:
    flags = masks.of_task(functions)

    def counts(mask: Mask) -> Array:
        leaves = zip(jax.tree.leaves(mask), masks.resolve(mask, flags))
        return jnp.stack([jnp.sum(m, dtype=jnp.int32) for m, take in leaves if take])

    return execution.parallel(counts, (0,))


def keep_steps(bench: Bench) -> np.ndarray | None:
    """The steps at which level 0 keeps states, one for each run; None if all are 0."""
    steps = bench.rewind_steps[: bench.rows.number, None]
    return steps if steps.any() else None


def _remember(bench: Bench, kept: Kept, done: training.Trained) -> Kept:
    """The states of level 0 at the rewind steps, where these are not the first ones."""
    if done.kept is None:
        return kept
    rows = bench.rows
    later = bench.rewind_steps > 0
    number = np.minimum(np.arange(len(rows.arm)), rows.number - 1)
    state = trees.rows(jax.tree.map(lambda x: x[:, 0], done.kept), number)

    def unless(field: str, now: PyTree, first: PyTree) -> PyTree:
        return where_rows(later & ~rows.having(field), now, first)

    optimizer = kept.optimizer
    if bench.plan.level_optimizer == "rewind":
        optimizer = unless("untrained", state.opt_state, optimizer)
    return kept._replace(
        trunk=unless("untrained", state.network, kept.trunk),
        # A narrow network starts at step 0, and so do its environments.
        stream=unless("from_step_0", state.stream_state, kept.stream),
        optimizer=optimizer,
    )


def diverged(
    bench: Bench,
    before: Mapping[str, np.ndarray],
    now: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Rows not to be averaged: nan in this level, or a mask made from nan weights."""
    # The update of the last step is seen by no training loss.
    bad = np.isfinite(now["first_nan"]) | ~np.isfinite(now["test_loss"])
    rows = bench.rows
    of_tickets = before["diverged"][:, rows.tickets[: rows.pairs]] > 0
    bad = bad | np.any(of_tickets, axis=0)[rows.pair[: rows.number]]
    return bad.astype(np.int8)
