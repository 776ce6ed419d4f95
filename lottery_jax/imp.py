"""Iterative magnitude pruning: train, prune, rewind, with its controls.

    for level in range(levels + 1):
        train every arm from the rewind step     # all arms and replicas together
        record them
        mask = prune(score of the ticket's trained weights, mask)
        rewind                                   # weights, schedule, noise, statistics

A *chain* is a procedure with its own sequence of masks (iterative or one-shot; weight
rewinding, learning-rate rewinding or fine-tuning); its *arms* are the controls of
`lottery_jax.arms`. `run` trains a whole study; with a folder it stores checkpoints and
tickets there and continues what it finds. `retrain` trains one stored level again under
another task, optimizer or arm.

References:
  Frankle and Carbin, The Lottery Ticket Hypothesis, 2019, section 1.
  Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020.
  Renda et al., Comparing Rewinding and Fine-tuning in Neural Network Pruning, 2020.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import (
    arms,
    checkpoints,
    engine,
    masks,
    prune,
    schedules,
    scores,
    tickets,
    training,
)
from lottery_jax.engine import Curves, Programs, Rows, Running, Timeline
from lottery_jax.replicas import (
    Execution,
    check_execution,
    default_execution,
    padded,
    parallel,
    place,
    shared,
)
from lottery_jax.types import Array, Key, Mask, Network, Params, PyTree, Task

Records = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Recorded arrays by name, each with the names of its axes."""


@dataclasses.dataclass(frozen=True)
class Chain:
    """A procedure with its own sequence of masks.

    Attributes:
      name: of the chain, in results and file names.
      schedule: "geometric" removes `fraction` of the *remaining* weights per level,
        "linear" `fraction` of the *original*; both prune each level's trained weights.
        "one_shot" prunes the trained dense network to the densities of "geometric".
      fraction: in (0, 1).
      scope: "global" ranks over all layers, "layerwise" within each.
      rates: for "layerwise", (pattern, fraction) pairs instead of one fraction; the first
        pattern that is found in a leaf's key path counts.
      rule: "exact" counts, or open_lth's ("global" and "geometric" only).
      score: a name of `scores.SCORES`.
      retrain: "rewind" restores the weights of the rewind step k and trains k to the end;
        "lr_rewind" keeps the trained weights and rewinds the schedule to k; "finetune"
        keeps both, going on for as many steps with the schedule past its end. The trained
        weights are the last level's; with "one_shot" the dense network's.
    """

    name: str = "imp"
    schedule: Literal["geometric", "linear", "one_shot"] = "geometric"
    fraction: float = 0.2
    scope: Literal["global", "layerwise"] = "global"
    rates: tuple[tuple[str, float], ...] = ()
    rule: prune.Rule = "exact"
    score: str = "magnitude"
    retrain: Literal["rewind", "lr_rewind", "finetune"] = "rewind"

    @property
    def keeps_weights(self) -> bool:
        """Whether levels start from trained weights instead of rewound ones."""
        return self.retrain != "rewind"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a study does; determines its numbers together with task and optimizer.

    Attributes:
      steps: length T of a dense training run.
      rewind_step: the step k that levels start from, 0 <= k < steps.
      chains: procedures that run side by side.
      arms: of `arms.ARMS`; "ticket" must be among them.
      validate_every: steps between validations.
      optimizer: "reset" starts each level with fresh moments, "rewind" with those of the
        rewind step, masked.
      random_scope: how the random mask is permuted.
      seed: all keys follow from it and the replica's id.
    """

    steps: int
    rewind_step: int = 0
    chains: tuple[Chain, ...] = (Chain(),)
    arms: tuple[str, ...] = ("ticket", "reinit", "random_mask")
    validate_every: int = 100
    optimizer: Literal["reset", "rewind"] = "reset"
    random_scope: Literal["layerwise", "global"] = "layerwise"
    seed: int = 0


def check(plan: Plan) -> Plan:
    """Raises a ValueError that names the first field of a plan that makes no sense."""
    for field in ("steps", "validate_every"):
        if getattr(plan, field) < 1:
            raise ValueError(f"{field}={getattr(plan, field)}; it must be 1 or more")
    if not 0 <= plan.rewind_step < plan.steps:
        raise ValueError(
            f"rewind_step={plan.rewind_step} lies beyond the run; it must be in "
            f"[0, {plan.steps}), the steps of a training run"
        )
    _one_of("optimizer", plan.optimizer, ("reset", "rewind"))
    _one_of("random_scope", plan.random_scope, ("layerwise", "global"))
    for arm in plan.arms:
        _one_of("arms", arm, arms.ARMS)
    if "ticket" not in plan.arms or len(set(plan.arms)) < len(plan.arms):
        raise ValueError(f"arms={plan.arms}; 'ticket' must be there, and each arm once")
    names = [chain.name for chain in plan.chains]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"chains: there must be some, with different names; got {names}"
        )
    for chain in plan.chains:
        _check_chain(chain)
    return plan


def _check_chain(chain: Chain) -> None:
    _one_of("schedule", chain.schedule, ("geometric", "linear", "one_shot"))
    _one_of("scope", chain.scope, ("global", "layerwise"))
    _one_of("rule", chain.rule, ("exact", "open_lth"))
    _one_of("retrain", chain.retrain, ("rewind", "lr_rewind", "finetune"))
    scores.by_name(chain.score)
    for fraction in (chain.fraction, *(f for _, f in chain.rates)):
        if not 0 < fraction < 1:
            raise ValueError(f"fraction={fraction}; it must be in (0, 1)")
    if chain.rates and chain.scope != "layerwise":
        raise ValueError("rates are given per layer: they need scope='layerwise'")
    if chain.rule == "open_lth" and (chain.scope, chain.schedule) != (
        "global",
        "geometric",
    ):
        raise ValueError(
            "rule='open_lth' needs scope='global' and schedule='geometric'"
        )


def _one_of(field: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(f"{field}={value!r}; it must be one of {', '.join(valid)}")


# --- pruning --------------------------------------------------------------------------


def keep_counts(
    chain: Chain, params: Params, level: int, prunable: PyTree
) -> np.ndarray:
    """How many weights a level keeps: in all, and in each prunable leaf.

    Args:
      chain: the procedure.
      params: arrays or shapes, without replica axis.
      level: 0 or more.
      prunable: which leaves count.

    Returns:
      int32 `[1 + prunable leaves]`; the scope decides which entries are used.
    """
    counted = [
        (name, int(np.prod(leaf.shape)))
        for name, leaf, take in zip(
            masks.paths(params),
            jax.tree.leaves(params),
            masks.resolve(params, prunable),
        )
        if take
    ]
    fractions = [chain.fraction] * len(counted)
    if chain.rates:
        found = [
            (jax.tree.leaves(masks.matching(params, p)), f) for p, f in chain.rates
        ]
        everywhere = masks.paths(params)
        for i, (name, _) in enumerate(counted):
            hits = [f for flags, f in found if flags[everywhere.index(name)]]
            if not hits:
                raise ValueError(f"rates: no pattern matches the layer {name!r}")
            fractions[i] = hits[0]
    law = schedules.linear if chain.schedule == "linear" else schedules.geometric
    per_leaf = [law(n, level, f)[level] for (_, n), f in zip(counted, fractions)]
    if chain.scope == "layerwise":
        in_all = sum(per_leaf)
    else:
        in_all = law(sum(n for _, n in counted), level, chain.fraction)[level]
    return np.array([in_all, *per_leaf], np.int32)


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
    ranking = scores.by_name(chain.score)(key, inputs)
    where: dict[str, Any] = dict(prunable=prunable, exclude=exclude)
    if chain.rule == "open_lth":
        return prune.global_topk(
            ranking, inputs.mask, fraction=chain.fraction, rule="open_lth", **where
        )
    if chain.scope == "global":
        return prune.global_topk(ranking, inputs.mask, keep=keep[0], **where)
    return prune.layerwise_topk(ranking, inputs.mask, keep=keep[1:], **where)


# --- a study --------------------------------------------------------------------------


class Memory(NamedTuple):
    """What a study remembers between levels.

    The first four have a row axis; the others one of (chain, replica), padded.

    Attributes:
      trunk: each row's own network at the rewind step.
      trunk_stream: its stream state there.
      trunk_optimizer: its optimizer state there, or () if levels reset it.
      final: each row's network at the end of the last level.
      dense: the tickets' networks at the end of level 0; () without a one-shot chain.
      begun: what the chains started the last level from, unmasked; () if from the trunk.
      mask: the chains' masks.
    """

    trunk: Network
    trunk_stream: PyTree
    trunk_optimizer: PyTree
    final: Network
    dense: Network | tuple[()]
    begun: Network | tuple[()]
    mask: Mask


class Snapshot(NamedTuple):
    """Everything that a run is made of at one moment: what a checkpoint holds."""

    memory: Memory
    running: Running
    curves: Curves
    records: dict[str, np.ndarray]


class Moment(NamedTuple):
    """Where a run is, for whoever watches it.

    Attributes:
      level: the level in training.
      step: the step that was reached.
      start: the first step of this level.
      stop: its last step.
      rows: how many networks train.
      curves: what was recorded in this level so far.
      resumed: whether the run was just taken up from a checkpoint here.
    """

    level: int
    step: int
    start: int
    stop: int
    rows: int
    curves: Curves
    resumed: bool = False


class Study(NamedTuple):
    """The outcome of `run`.

    Attributes:
      records: what was measured; axes chain, arm, replica, level, step, layer.
      masks: the chains' masks at the last level, `[chain, replica, ...]` leaves.
      rewound: the networks that the tickets start from, `[chain, replica, ...]`.
      execution: the settings that were used.
    """

    records: Records
    masks: Mask
    rewound: Network
    execution: Execution


Watcher = Callable[[Moment], None]


class _Setting(NamedTuple):
    """What stays the same throughout a study."""

    task: Task
    data: PyTree
    plan: Plan
    rows: Rows
    programs: Programs
    begin: Callable[..., Any]
    cut: Callable[..., Any]
    count: Callable[..., Any]
    first: Network
    stream: PyTree
    order: Array
    noise: Key
    execution: Execution
    prunable: PyTree
    template: Params
    ticket_rows: np.ndarray  # [Q] row of each (chain, replica), padded
    source: np.ndarray  # [P] index into Q of each row
    pairs: int  # chains * replicas, the real part of Q
    shape: tuple[int, int, int]  # chains, replicas, arms
    validates: bool


def run(
    task: Task,
    tx: optax.GradientTransformation,
    plan: Plan,
    *,
    levels: int,
    replicas: Sequence[int] = (0, 1, 2),
    execution: Execution | None = None,
    start: Network | None = None,
    folder: pathlib.Path | str | None = None,
    checkpoint_seconds: float = 30.0,
    metadata: Mapping[str, Any] | None = None,
    watch: Watcher | None = None,
) -> Study:
    """Runs a pruning study: all chains, arms and replicas, level after level.

    Args:
      task: what is trained.
      tx: the optimizer, with its schedule over the steps [0, plan.steps).
      plan: the protocol.
      levels: number of prunings after level 0.
      replicas: ids; a replica's numbers depend on its id and not on the others.
      execution: devices and chunk; None for the stored ones or the platform's default.
      start: weights to start from instead of a draw of the task's initialisation, such
        as pre-trained ones: with the leaf shapes of one network, or with a leading axis
        of the replicas. Fresh draws (reinit) still come from the law.
      folder: where checkpoints and tickets go; None keeps everything in memory. A folder
        with a checkpoint is continued from there.
      checkpoint_seconds: write a checkpoint when so many seconds have passed since the
        last one; a kill loses no more than that.
      metadata: JSON-able; goes into the tickets.
      watch: called after every segment.

    Returns:
      The records and the last masks.

    Raises:
      ValueError: a plan, execution or start that does not fit; a folder that holds a run
        with another plan.
      checkpoints.CorruptCheckpointError: the folder holds no intact checkpoint.
    """
    check(plan)
    if levels < 0 or not replicas or len(set(replicas)) < len(replicas):
        raise ValueError(
            f"levels={levels}, replicas={tuple(replicas)}; levels must be 0 or more, and "
            "replicas some different ids"
        )
    ids, store = tuple(replicas), None if folder is None else pathlib.Path(folder)
    if store is not None:
        _check_same(store, plan, ids)
    execution = execution or _stored_execution(store) or default_execution()
    setting = _set_up(task, tx, plan, ids, check_execution(execution), start)
    for chain in plan.chains:
        keep_counts(chain, setting.template, levels, setting.prunable)  # or it raises
    snapshot, first_level, after = _first(setting, tx), 0, None
    if store is not None and (found := _restore(setting, snapshot, store)) is not None:
        snapshot, first_level, after = found
        if watch and first_level <= levels:
            step = after if after is not None else plan.rewind_step
            timeline = _timeline(setting, first_level)
            watch(_moment(setting, timeline, first_level, step, snapshot.curves, True))
    clock = _Clock(checkpoint_seconds)
    for level in range(first_level, levels + 1):
        if after is None:
            snapshot = _begin_level(setting, snapshot, level)
        timeline = _timeline(setting, level)
        columns = timeline.validation_steps()
        for step, running, curves in _train(setting, timeline, snapshot, after):
            snapshot = snapshot._replace(running=running, curves=curves)
            if level == 0 and step == plan.rewind_step:
                memory = _remember_trunk(setting, snapshot.memory, running)
                snapshot = snapshot._replace(memory=memory)
            if watch:
                watch(_moment(setting, timeline, level, step, curves))
            if store and step in columns and step < plan.steps and clock.due():
                with clock:
                    _save(setting, store, snapshot, level, step, ids)
        snapshot, after = _end_level(setting, snapshot, level), None
        if store:
            _store_tickets(setting, snapshot, level, ids, store, metadata or {})
            if clock.due() or level == levels:
                with clock:
                    _save(setting, store, snapshot, level + 1, None, ids)
    recorded = len(next(iter(snapshot.records.values())))
    return _study(setting, snapshot, _begun(setting, snapshot.memory, recorded - 1))


def retrain(
    task: Task,
    tx: optax.GradientTransformation,
    plan: Plan,
    found: Sequence[Sequence[tickets.Ticket]],
    *,
    level: int,
    replicas: Sequence[int],
    dense: Sequence[Sequence[tickets.Ticket]] | None = None,
    execution: Execution | None = None,
    watch: Watcher | None = None,
) -> Study:
    """Trains one stored level again: under another task, optimizer, length or arm.

    Args:
      task: what is trained now; its networks must have the shapes of the tickets.
      tx: the optimizer.
      plan: the protocol; its chains name the tickets, and levels start with a reset
        optimizer.
      found: a ticket for each chain and replica.
      level: which level they are; at least 1 for arms other than "ticket" to differ.
      replicas: the ids of the replicas, for their keys.
      dense: the tickets of level 0 of the same chains and replicas. The arm "random_mask"
        needs them: it trains weights that `found` has not kept.
      execution: devices and chunk; None for the platform's default.
      watch: called after every segment.

    Returns:
      Records with the one level.

    Raises:
      ValueError: tickets that do not fit the task, or a plan that does not fit them.
    """
    plan = check(dataclasses.replace(plan, optimizer="reset"))
    ids = tuple(replicas)
    for name, given in (("found", found), ("dense", found if dense is None else dense)):
        if [len(row) for row in given] != [len(ids)] * len(plan.chains):
            raise ValueError(
                f"{name}: there must be a ticket for each of {len(plan.chains)} chains and "
                f"each of {len(ids)} replicas; got {[len(row) for row in given]}"
            )
    if level > 0 and "random_mask" in plan.arms:
        if any(chain.keeps_weights for chain in plan.chains):
            raise ValueError(
                "arms: 'random_mask' trains weights that no ticket of a chain with "
                "retrain='lr_rewind' or 'finetune' has kept; leave it out"
            )
        if dense is None:
            raise ValueError(
                "dense: the arm 'random_mask' needs the tickets of level 0, for weights "
                "that the others have not kept"
            )
    execution = check_execution(execution or default_execution())
    setting = _set_up(task, tx, plan, ids, execution, None)
    put = partial(place, execution=execution)
    mask, chain_networks = put(_stack(setting, found))
    if dense is not None:
        rest = put(_stack(setting, dense))[1].params
        own = chain_networks.params
        params = jax.tree.map(lambda m, p, r: jnp.where(m, p, r), mask, own, rest)
        chain_networks = chain_networks._replace(params=params)
    snapshot = _first(setting, tx)
    k = plan.rewind_step
    if k > 0 and setting.rows.is_arm("reinit").any():
        # Fresh draws have to be trained densely to k first; the others wait.
        join = np.where(setting.rows.is_arm("reinit"), 0, k).astype(np.int32)
        early = Timeline(join, np.zeros_like(join), k, plan.validate_every, k)
        for _, running, _ in _train(setting, early, snapshot, None, validates=False):
            snapshot = snapshot._replace(running=running)
        memory = _remember_trunk(setting, snapshot.memory, snapshot.running)
        snapshot = snapshot._replace(memory=memory)
    memory = snapshot.memory._replace(mask=mask)
    running = _start_rows(setting, memory, chain_networks, level)
    timeline = _timeline(setting, max(level, 1))
    columns = len(timeline.validation_steps())
    curves = engine.empty_curves(len(setting.rows.arm), columns)
    snapshot = Snapshot(memory, running, curves, {})
    for step, running, curves in _train(setting, timeline, snapshot, None):
        snapshot = snapshot._replace(running=running, curves=curves)
        if watch:
            watch(_moment(setting, timeline, level, step, curves))
    snapshot = _end_level(setting, snapshot, level)
    return _study(setting, snapshot, chain_networks)


def _stack(
    setting: _Setting, found: Sequence[Sequence[tickets.Ticket]]
) -> tuple[Mask, Network]:
    """Tickets as arrays `[Q]`, in the tree structures of the task."""
    params, model_state, _ = jax.eval_shape(setting.task.init, jax.random.key(0))

    def fitted(ticket: tickets.Ticket) -> tuple[Mask, Network]:
        mask = _fit("mask", ticket.mask, params)
        masks.check(mask, params)
        own = _fit("params", ticket.params, params)
        return mask, Network(own, _fit("model_state", ticket.model_state, model_state))

    flat = [fitted(ticket) for row in found for ticket in row]
    flat += [flat[-1]] * (len(setting.ticket_rows) - len(flat))
    return jax.tree.map(lambda *x: np.stack(x), *flat)


def _fit(name: str, tree: PyTree, like: PyTree) -> PyTree:
    """A ticket's tree, nested dicts perhaps, in the structure of the task's."""
    leaves = dict(zip(masks.paths(tree), jax.tree.leaves(tree)))
    wanted = dict(zip(masks.paths(like), jax.tree.leaves(like)))
    if leaves.keys() != wanted.keys():
        raise ValueError(
            f"found: the {name} of a ticket has the leaves {sorted(leaves)}; the task's "
            f"are {sorted(wanted)}"
        )
    for path, leaf in wanted.items():
        if np.shape(leaves[path]) != leaf.shape:
            raise ValueError(
                f"found: leaf {path!r} of a ticket's {name} has shape "
                f"{np.shape(leaves[path])}; the task's has {leaf.shape}"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[p] for p in wanted])


def _study(setting: _Setting, snapshot: Snapshot, rewound: Network) -> Study:
    chains, number, _ = setting.shape

    def square(x: Array) -> Array:
        return x[: setting.pairs].reshape(chains, number, *x.shape[1:])

    return Study(
        _name_axes(setting, snapshot.records),
        jax.tree.map(square, snapshot.memory.mask),
        jax.tree.map(square, rewound),
        setting.execution,
    )


def _train(
    setting: _Setting,
    timeline: Timeline,
    snapshot: Snapshot,
    after: int | None,
    validates: bool | None = None,
) -> Iterator[tuple[int, Running, Curves]]:
    """The rest of a level."""
    return engine.run_level(
        setting.programs,
        setting.rows,
        setting.data,
        setting.order,
        setting.noise,
        timeline,
        snapshot.running,
        snapshot.curves,
        setting.execution,
        after,
        setting.validates if validates is None else validates,
    )


class _Clock:
    """When to write a checkpoint: rarely enough to cost at most 5% of the time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last, self.cost = seconds, time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self.last >= max(self.seconds, 20 * self.cost)

    def __enter__(self) -> None:
        self.begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.last = time.monotonic()
        self.cost = self.last - self.begin if self.seconds else 0.0


def _moment(
    setting: _Setting,
    timeline: Timeline,
    level: int,
    step: int,
    curves: Curves,
    resumed: bool = False,
) -> Moment:
    start, rows = int(timeline.join.min()), setting.rows.number
    return Moment(level, step, start, timeline.stop, rows, curves, resumed)


def _set_up(
    task: Task,
    tx: optax.GradientTransformation,
    plan: Plan,
    ids: tuple[int, ...],
    execution: Execution,
    start: Network | None,
) -> _Setting:
    """Lays out rows and builds the programs; nothing is trained yet."""
    shape = (len(plan.chains), len(ids), len(plan.arms))
    rows = engine.make_rows(shape[0], plan.arms, ids, plan.seed, execution)
    pairs = shape[0] * shape[1]
    position = np.minimum(np.arange(padded(pairs, execution)), pairs - 1)
    ticket_rows = position * shape[2] + plan.arms.index("ticket")
    finetunes = any(chain.retrain == "finetune" for chain in plan.chains)
    stop = plan.steps + (plan.steps - plan.rewind_step if finetunes else 0)
    programs = engine.compile_programs(
        task,
        tx,
        execution,
        epochs=training.epochs_of(task, stop),
        capacity=min(plan.validate_every, plan.steps),
        keep_optimizer=plan.optimizer == "rewind",
    )
    template = jax.eval_shape(task.init, jax.random.key(0))[0]
    prunable = task.prunable(template) if task.prunable else masks.prunable(template)
    masks.cuttable(template, prunable, task.exclude)  # or it raises
    fresh = jnp.asarray(rows.fresh)
    put = partial(place, execution=execution)
    noise = put(jnp.where(fresh, rows.keys.fresh_noise, rows.keys.noise))
    init_keys = put(jnp.where(fresh, rows.keys.fresh_init, rows.keys.init))
    first, stream = programs.init(init_keys)
    if start is not None:
        given = put(_spread(start, first, rows, shape[1]))
        first = jax.tree.map(lambda g, f: _where_rows(fresh, f, g), given, first)
        first = put(first)
    functions = task.functions

    def begin(
        arm: Array, keys: arms.ReplicaKeys, mask: Mask, chain: Network, own: Network
    ) -> tuple[Network, Mask]:
        return arms.begin(
            arm,
            keys,
            mask,
            chain,
            own,
            scope=plan.random_scope,
            prunable=prunable,
            exclude=task.exclude,
        )

    def cut(
        data: PyTree,
        chain: Array,
        key: Key,
        noise: Key,
        order: Array,
        stream: PyTree,
        initial: Network,
        rewind: Network,
        final: Network,
        dense: Network | tuple[()],
        mask: Mask,
        keep: Array,
    ) -> Mask:
        bound = functions._replace(data=data)
        batches = _score_batches(bound, noise, order)

        def loss(params: Params, model_state: PyTree, batch: PyTree, key: Key) -> Array:
            return task.loss(params, model_state, stream, batch, key)[0]

        def by(one: Chain) -> Mask:
            one_shot = one.schedule == "one_shot"
            source = dense if one_shot else final
            assert isinstance(source, Network)
            inputs = scores.Inputs(
                trained=source.params,
                mask=masks.ones_like(mask) if one_shot else mask,
                initial=initial.params,
                rewind=rewind.params,
                model_state=source.model_state,
                loss=loss,
                batches=batches,
            )
            return prune_chain(
                one, key, inputs, keep, prunable=prunable, exclude=task.exclude
            )

        return jax.lax.switch(chain, [partial(by, one) for one in plan.chains])

    many = partial(parallel, execution=execution)
    return _Setting(
        task=task,
        data=jax.device_put(task.data, shared(execution)),
        plan=plan,
        rows=rows,
        programs=programs,
        begin=many(begin, (0, 0, 0, 0, 0)),
        cut=many(cut, (None, *[0] * 11)),
        count=many(partial(_layer_counts, prunable=prunable), (0,)),
        first=first,
        stream=stream,
        order=programs.order(noise),
        noise=noise,
        execution=execution,
        prunable=prunable,
        template=template,
        ticket_rows=ticket_rows,
        source=rows.chain * shape[1] + rows.replica,
        pairs=pairs,
        shape=shape,
        validates=task.validates,
    )


_SCORE_BATCHES = 8


def _score_batches(task: Task, noise: Key, order: Array) -> PyTree:
    """The first batches of a row's data order, for scores that need gradients."""
    keys = training.noise_keys(noise)
    number = min(_SCORE_BATCHES, task.steps_per_epoch)
    return jax.lax.map(
        lambda i: task.batch(task.data, order[0, i], keys.batch, i), jnp.arange(number)
    )


def _layer_counts(mask: Mask, prunable: PyTree) -> Array:
    flags = masks.resolve(mask, prunable)
    leaves = jax.tree.leaves(mask)
    return jnp.stack(
        [jnp.sum(m, dtype=jnp.int32) for m, take in zip(leaves, flags) if take]
    )


def _where_rows(condition: Array, yes: Array, no: Array) -> Array:
    return jnp.where(condition.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def _spread(start: Network, first: Network, rows: Rows, number: int) -> Network:
    """Given weights, one copy per row; validates their shapes."""
    if not masks.same_structure(start, first):
        raise ValueError(
            f"start: its leaves {masks.paths(start)} are not those of the task, "
            f"{masks.paths(first)}"
        )

    def spread(path: tuple, given: Array, row: Array) -> Array:
        given = jnp.asarray(given)
        if given.shape == row.shape[1:]:
            return jnp.broadcast_to(given, row.shape)
        if given.shape == (number, *row.shape[1:]):
            return given[rows.replica]
        raise ValueError(
            f"start: leaf {masks.leaf_path(path)!r} has shape {given.shape}; it must be "
            f"{row.shape[1:]}, or {(number, *row.shape[1:])} with one entry per replica"
        )

    return jax.tree_util.tree_map_with_path(spread, start, first)


def _first(setting: _Setting, tx: optax.GradientTransformation) -> Snapshot:
    """The moment before the first step of level 0."""
    rows, plan, programs = setting.rows, setting.plan, setting.programs
    put = partial(place, execution=setting.execution)
    full = jax.tree.map(
        lambda p: jnp.ones((len(rows.arm), *p.shape), jnp.bool_), setting.template
    )
    chains_mask = jax.tree.map(
        lambda p: jnp.ones((len(setting.ticket_rows), *p.shape), jnp.bool_),
        setting.template,
    )
    fresh_optimizer = parallel(tx.init, (0,), setting.execution)
    old = fresh_optimizer(setting.first.params)
    zeros = put(np.zeros(len(rows.arm), np.int32))
    keeps = plan.optimizer == "rewind"
    running = programs.start(
        setting.first, setting.stream, put(full), old if keeps else (), zeros
    )
    one_shot = any(chain.schedule == "one_shot" for chain in plan.chains)
    trained = any(chain.keeps_weights for chain in plan.chains)
    memory = Memory(
        trunk=setting.first,
        trunk_stream=setting.stream,
        trunk_optimizer=old if keeps else (),
        final=setting.first,
        dense=programs.take(setting.first, setting.ticket_rows) if one_shot else (),
        begun=programs.take(setting.first, setting.ticket_rows) if trained else (),
        mask=put(chains_mask),
    )
    columns = len(_timeline(setting, 0).validation_steps())
    curves = engine.empty_curves(len(rows.arm), columns)
    return Snapshot(memory, running, curves, {})


def _timeline(setting: _Setting, level: int) -> Timeline:
    """Who trains when at a level: from the rewind step on, except at level 0."""
    plan, rows = setting.plan, setting.rows
    join = np.full(len(rows.arm), 0 if level == 0 else plan.rewind_step, np.int32)
    offset = np.zeros(len(rows.arm), np.int32)
    if level > 0:
        join[rows.is_arm("small_dense")] = 0
        finetune = np.array([chain.retrain == "finetune" for chain in plan.chains])
        offset[finetune[rows.chain] & ~rows.fresh] = plan.steps - plan.rewind_step
    return Timeline(join, offset, plan.steps, plan.validate_every, plan.rewind_step)


def _remember_trunk(setting: _Setting, memory: Memory, running: Running) -> Memory:
    """Keeps every row's state at the rewind step; raw reinits keep their first weights."""
    state, is_arm = running.state, setting.rows.is_arm

    def unless(arm: str, now: PyTree, first: PyTree) -> PyTree:
        stays = jnp.asarray(is_arm(arm))
        kept = jax.tree.map(lambda n, f: _where_rows(stays, f, n), now, first)
        return place(kept, setting.execution)

    network, optimizer = (
        Network(state.params, state.model_state),
        memory.trunk_optimizer,
    )
    if setting.plan.optimizer == "rewind":
        optimizer = unless("reinit_raw", state.opt_state, optimizer)
    return memory._replace(
        trunk=unless("reinit_raw", network, memory.trunk),
        # A narrow network starts at step 0, and so do its environments.
        trunk_stream=unless("small_dense", state.stream_state, memory.trunk_stream),
        trunk_optimizer=optimizer,
    )


def _chain_networks(setting: _Setting, memory: Memory, level: int) -> Network:
    """What each chain's ticket starts a level from, `[Q]`, unmasked."""
    take, at, chains = setting.programs.take, setting.ticket_rows, setting.plan.chains
    chosen = take(memory.trunk, at)
    if level == 0 or not any(chain.keeps_weights for chain in chains):
        return chosen

    def override(chosen: Network, trained: Network, which: list[bool]) -> Network:
        use = jnp.asarray(np.array(which)[setting.rows.chain[at]])
        return jax.tree.map(lambda t, c: _where_rows(use, t, c), trained, chosen)

    chosen = override(chosen, take(memory.final, at), [c.keeps_weights for c in chains])
    if isinstance(memory.dense, Network):
        once = [c.keeps_weights and c.schedule == "one_shot" for c in chains]
        chosen = override(chosen, memory.dense, once)
    return place(chosen, setting.execution)


def _begun(setting: _Setting, memory: Memory, level: int) -> Network:
    """What each chain's ticket started a level from, `[Q]`, when the level is over."""
    if level > 0 and isinstance(memory.begun, Network):
        return memory.begun
    return setting.programs.take(memory.trunk, setting.ticket_rows)


def _begin_level(setting: _Setting, snapshot: Snapshot, level: int) -> Snapshot:
    """Prunes, and gives every row its mask and its weights at the rewind step."""
    columns = len(_timeline(setting, level).validation_steps())
    curves = engine.empty_curves(len(setting.rows.arm), columns)
    if level == 0:
        return snapshot._replace(curves=curves)
    plan, rows, programs = setting.plan, setting.rows, setting.programs
    put = partial(place, execution=setting.execution)
    memory = snapshot.memory
    at = setting.ticket_rows
    keep = np.stack(
        [keep_counts(c, setting.template, level, setting.prunable) for c in plan.chains]
    )
    score_keys = jax.vmap(lambda key: jax.random.fold_in(key, level))(
        rows.keys.score[at]
    )
    mask = setting.cut(
        setting.data,
        put(rows.chain[at]),
        put(score_keys),
        put(setting.noise[at]),
        programs.take(setting.order, at),
        programs.take(memory.trunk_stream, at),
        programs.take(setting.first, at),
        programs.take(memory.trunk, at),
        programs.take(memory.final, at),
        memory.dense,
        memory.mask,
        put(keep[rows.chain[at]]),
    )
    chain_networks = _chain_networks(setting, memory, level)
    begun = chain_networks if isinstance(memory.begun, Network) else ()
    memory = memory._replace(mask=mask, begun=begun)
    running = _start_rows(setting, memory, chain_networks, level)
    return Snapshot(memory, running, curves, snapshot.records)


def _start_rows(
    setting: _Setting, memory: Memory, chain_networks: Network, level: int
) -> Running:
    """Gives every row what its arm starts from, and a fresh optimizer."""
    rows, programs = setting.rows, setting.programs
    network, row_mask = setting.begin(
        place(rows.arm, setting.execution),
        rows.keys,
        programs.take(memory.mask, setting.source),
        programs.take(chain_networks, setting.source),
        memory.trunk,
    )
    if rows.is_arm("small_dense").any():
        network, row_mask = _small_dense(setting, network, row_mask, memory.mask)
    timeline = _timeline(setting, level)
    return programs.start(
        network,
        memory.trunk_stream,
        row_mask,
        memory.trunk_optimizer,
        place(timeline.join + timeline.offset, setting.execution),
    )


def _small_dense(
    setting: _Setting, network: Network, row_mask: Mask, mask: Mask
) -> tuple[Network, Mask]:
    """Replaces the rows of that arm by narrow networks of as many weights."""
    narrow = setting.task.narrow
    if narrow is None:
        raise ValueError("arms: 'small_dense' needs a task that says how to narrow it")
    counts = np.asarray(setting.count(mask)).sum(axis=1)
    rows = setting.rows
    host = jax.tree.map(np.array, (network, row_mask))
    for row in np.flatnonzero(rows.is_arm("small_dense")):
        drawn = narrow(rows.keys.fresh_init[row], int(counts[setting.source[row]]))
        for whole, one in zip(jax.tree.leaves(host), jax.tree.leaves(drawn)):
            whole[row] = one
    return place(host, setting.execution)


def _end_level(setting: _Setting, snapshot: Snapshot, level: int) -> Snapshot:
    """Tests every row at its end and at its early stop, and records the level."""
    programs, running, curves = setting.programs, snapshot.running, snapshot.curves
    state = running.state
    final = Network(state.params, state.model_state)
    tested = programs.test(setting.data, final)
    chosen = programs.test(setting.data, running.best)
    counts = np.asarray(setting.count(state.mask))
    total = masks.total(setting.template, setting.prunable)
    sizes = [
        int(np.prod(p.shape))
        for p, take in zip(
            jax.tree.leaves(setting.template),
            masks.resolve(setting.template, setting.prunable),
        )
        if take
    ]
    validated = np.isfinite(np.asarray(running.best_loss))
    one_level = {
        "test_error": np.asarray(tested["error"]),
        "test_loss": np.asarray(tested["loss"]),
        "test_error_early": np.where(validated, chosen["error"], np.nan),
        "test_loss_early": np.where(validated, chosen["loss"], np.nan),
        "early_stop_step": np.where(validated, running.best_step, -1).astype(np.int32),
        "train_loss": curves.train_loss,
        "train_error": curves.train_error,
        "validation_loss": curves.validation_loss,
        "validation_error": curves.validation_error,
        "first_nan": curves.first_nan,
        "alive": counts.sum(axis=1).astype(np.int32),
        "density": counts.sum(axis=1) / total,
        "layer_density": counts / np.array(sizes),
    }
    one_level["diverged"] = _diverged(setting, snapshot.records, one_level)
    records = {
        name: np.concatenate([snapshot.records[name], value[None]])
        if name in snapshot.records
        else value[None]
        for name, value in one_level.items()
    }
    memory = snapshot.memory._replace(final=final)
    if level == 0 and memory.dense != ():
        memory = memory._replace(dense=programs.take(final, setting.ticket_rows))
    return snapshot._replace(memory=memory, records=records)


def _diverged(
    setting: _Setting,
    before: Mapping[str, np.ndarray],
    now: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Rows not to be averaged: nan in this level, or a mask made from nan weights."""
    # The update of the last step is seen by no training loss.
    diverged = np.isfinite(now["first_nan"]) | ~np.isfinite(now["test_loss"])
    if "diverged" in before:
        tickets_before = before["diverged"][:, setting.ticket_rows].max(axis=0) > 0
        diverged = diverged | tickets_before[setting.source]
    return diverged.astype(np.int8)


_AXES = {
    "train_loss": "step",
    "train_error": "step",
    "validation_loss": "step",
    "validation_error": "step",
    "layer_density": "layer",
}


def _name_axes(setting: _Setting, records: Mapping[str, np.ndarray]) -> Records:
    """From `[level, row, ...]` to named axes, padding dropped; with coordinates."""
    chains, number, arm_count = setting.shape
    out: Records = {}
    for name, value in records.items():
        rest = value.shape[2:]
        value = value[:, : setting.rows.number]
        value = value.reshape(len(value), chains, number, arm_count, *rest)
        value = np.moveaxis(value, (1, 3, 2, 0), (0, 1, 2, 3))
        axes = ("chain", "arm", "replica", "level")
        out[name] = (axes + ((_AXES[name],) if rest else ()), value)
    layers = [
        name
        for name, take in zip(
            masks.paths(setting.template),
            masks.resolve(setting.template, setting.prunable),
        )
        if take
    ]
    steps = _timeline(setting, 0).validation_steps()
    out["step"] = (("step",), np.array(steps, np.int32))
    out["layer"] = (("layer",), np.array(layers))
    return out


# --- storage --------------------------------------------------------------------------


def _save(
    setting: _Setting,
    folder: pathlib.Path,
    snapshot: Snapshot,
    level: int,
    after: int | None,
    ids: tuple[int, ...],
) -> None:
    """Writes the moment after a segment (`after`), or before a level (None)."""
    where = folder / "checkpoints"
    metadata = {
        "level": level,
        "after": after,
        "levels_recorded": len(next(iter(snapshot.records.values()), ())),
        "execution": setting.execution._asdict(),
        "plan": _as_json(setting.plan, ids),
        "rows": [len(setting.rows.arm), len(setting.ticket_rows)],
    }
    checkpoints.save(where, (checkpoints.latest(where) or 0) + 1, snapshot, metadata)


def _as_json(plan: Plan, ids: tuple[int, ...]) -> dict[str, Any]:
    """What a run in a folder must have in common with the one that began there."""
    return json.loads(json.dumps({**dataclasses.asdict(plan), "replicas": ids}))


def _check_same(folder: pathlib.Path, plan: Plan, ids: tuple[int, ...]) -> None:
    found = checkpoints.metadata(folder / "checkpoints") or {}
    now = _as_json(plan, ids)
    stored = found.get("plan", now)
    differ = [name for name in now if now[name] != stored.get(name, now[name])]
    if differ:
        was = ", ".join(f"{name}={stored[name]!r}" for name in differ)
        raise ValueError(
            f"{folder} holds a run with another plan, {was}; continue it with that, or "
            "choose another folder"
        )


def _stored_execution(folder: pathlib.Path | None) -> Execution | None:
    if (
        folder is None
        or (found := checkpoints.metadata(folder / "checkpoints")) is None
    ):
        return None
    stored = Execution(**found["execution"])
    # On a machine with fewer devices the run goes on from its exact state all the same.
    return stored if stored.devices <= jax.device_count() else None


def _restore(
    setting: _Setting, first: Snapshot, folder: pathlib.Path
) -> tuple[Snapshot, int, int | None] | None:
    """The stored moment, laid out for the devices of now."""
    found = checkpoints.metadata(folder / "checkpoints")
    if found is None:
        return None
    recorded = found["levels_recorded"]
    old_rows, old_pairs = found["rows"]
    memory, running = first.memory, first.running

    def stored(tree: PyTree, rows: int) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), tree
        )

    pair_fields = {"mask", "dense", "begun"}
    like = Snapshot(
        Memory(
            **{
                name: stored(value, old_pairs if name in pair_fields else old_rows)
                for name, value in memory._asdict().items()
            }
        ),
        stored(running, old_rows),
        Curves(*(np.zeros((old_rows, *x.shape[1:]), x.dtype) for x in first.curves)),
        _empty_records(setting, recorded, old_rows),
    )
    restored = checkpoints.restore(folder / "checkpoints", like)
    assert restored is not None
    snapshot, _ = restored

    def relayout(tree: PyTree, real: int, new: int) -> PyTree:
        rows = np.minimum(np.arange(new), real - 1)
        return place(jax.tree.map(lambda x: x[rows], tree), setting.execution)

    real, new = setting.rows.number, len(setting.rows.arm)
    host = np.minimum(np.arange(new), real - 1)
    memory = Memory(
        **{
            name: relayout(value, setting.pairs, len(setting.ticket_rows))
            if name in pair_fields
            else relayout(value, real, new)
            for name, value in snapshot.memory._asdict().items()
        }
    )
    snapshot = Snapshot(
        memory,
        relayout(snapshot.running, real, new),
        Curves(*(x[host] for x in snapshot.curves)),
        {name: x[:, host] for name, x in snapshot.records.items()},
    )
    return snapshot, found["level"], found["after"]


def _empty_records(
    setting: _Setting, recorded: int, rows: int
) -> dict[str, np.ndarray]:
    """Arrays with the shapes and dtypes of `recorded` levels, for restoring."""
    if not recorded:
        return {}
    columns = len(_timeline(setting, 0).validation_steps())
    layers = sum(masks.resolve(setting.template, setting.prunable))
    curves = engine.empty_curves(rows, columns)._asdict()
    scalars = ("test_error", "test_loss", "test_error_early", "test_loss_early")
    one = {
        **{name: np.zeros(rows, np.float32) for name in scalars},
        "early_stop_step": np.zeros(rows, np.int32),
        **curves,
        "alive": np.zeros(rows, np.int32),
        "density": np.zeros(rows, np.float64),
        "layer_density": np.zeros((rows, layers), np.float64),
        "diverged": np.zeros(rows, np.int8),
    }
    return {name: np.stack([x] * recorded) for name, x in one.items()}


def ticket_path(
    folder: pathlib.Path | str, chain: str, level: int, replica: int
) -> pathlib.Path:
    """Where `run` stores a ticket below its folder."""
    name = f"level{level:02d}-replica{replica:02d}.safetensors"
    return pathlib.Path(folder) / "tickets" / chain / name


def _store_tickets(
    setting: _Setting,
    snapshot: Snapshot,
    level: int,
    ids: tuple[int, ...],
    folder: pathlib.Path,
    metadata: Mapping[str, Any],
) -> None:
    """Writes what each chain's level starts from, one file per replica."""
    plan = setting.plan
    mask = jax.tree.map(np.asarray, snapshot.memory.mask)
    network = jax.tree.map(np.asarray, _begun(setting, snapshot.memory, level))
    for pair in range(setting.pairs):
        chain, replica = plan.chains[pair // len(ids)], ids[pair % len(ids)]
        own_mask, own = jax.tree.map(lambda x, i=pair: x[i], (mask, network))
        found = tickets.provenance(
            model=str(metadata.get("model", "")),
            task=str(metadata.get("task", "")),
            rewind_step=plan.rewind_step,
            density=float(masks.density(own_mask, setting.prunable)),
            level=level,
            init={"seed": plan.seed, "replica": replica},
            found=f"{chain.score}, {chain.schedule}, {chain.scope}, {chain.retrain}",
            chain=dataclasses.asdict(chain),
        )
        ticket = tickets.Ticket(own_mask, own.params, own.model_state, found)
        tickets.save(ticket_path(folder, chain.name, level, replica), ticket)
