"""How one level of a study leads to the next.

Everything here is a function of a `Setting`, which is fixed, and a `Snapshot`, the moment.
`lottery_jax.imp` puts the parts together.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lottery_jax import engine, masks
from lottery_jax.chains import keep_counts
from lottery_jax.engine import Curves, Running, Timeline
from lottery_jax.replicas import Execution, parallel, place
from lottery_jax.setting import Setting, rewind_steps, timeline_of, where_rows
from lottery_jax.types import Array, Mask, Network, PyTree

Records = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Recorded arrays by name, each with the names of its axes."""


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


class Change(NamedTuple):
    """A moment from which on a study was executed in another way.

    Attributes:
      level: of that moment.
      step: the last step that was made in the old way.
      execution: the new way.
    """

    level: int
    step: int
    execution: Execution


class Study(NamedTuple):
    """The outcome of `run`.

    Attributes:
      records: what was measured; axes chain, arm, replica, level, step, layer.
      masks: the chains' masks at the last level, `[chain, replica, ...]` leaves.
      rewound: the networks that the tickets start from, `[chain, replica, ...]`.
      execution: the settings that were used, at the end.
      changes: when they became so, if they were not from the start.
    """

    records: Records
    masks: Mask
    rewound: Network
    execution: Execution
    changes: tuple[Change, ...] = ()


def outcome(
    setting: Setting,
    snapshot: Snapshot,
    rewound: Network,
    changes: tuple[Change, ...] = (),
) -> Study:
    """What a user gets: named records, and the chains' masks and networks."""
    chains, number, _ = setting.shape

    def square(x: Array) -> Array:
        # On the host: a slice of each shape would be a program of its own.
        rows = np.asarray(x)[: setting.pairs]
        return jnp.asarray(rows.reshape(chains, number, *x.shape[1:]))

    return Study(
        _name_axes(setting, snapshot.records),
        jax.tree.map(square, snapshot.memory.mask),
        jax.tree.map(square, rewound),
        setting.execution,
        changes,
    )


def one_step(setting: Setting, snapshot: Snapshot) -> tuple[Any, ...]:
    """Arguments of the training program for a segment of one step, to try it out."""
    rows = setting.rows
    put = partial(place, execution=setting.execution)
    joined = put((np.zeros_like(rows.arm), np.arange(len(rows.arm)) < rows.number))
    data, noise, order = setting.data, setting.noise, setting.order
    return data, snapshot.running, noise, order, np.int32(0), np.int32(1), *joined


def train_level(
    setting: Setting,
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


def first_snapshot(setting: Setting, tx: optax.GradientTransformation) -> Snapshot:
    """The moment before the first step of level 0."""
    rows, plan, programs = setting.rows, setting.plan, setting.programs
    put = partial(place, execution=setting.execution)
    full = jax.tree.map(
        lambda p: np.ones((len(rows.arm), *p.shape), np.bool_), setting.template
    )
    chains_mask = jax.tree.map(
        lambda p: np.ones((len(setting.ticket_rows), *p.shape), np.bool_),
        setting.template,
    )
    old: PyTree = ()
    if plan.optimizer == "rewind":
        old = parallel(tx.init, (0,), setting.execution)(setting.first.params)
    zeros = put(np.zeros(len(rows.arm), np.int32))
    running = programs.start(setting.first, setting.stream, put(full), old, zeros)
    one_shot = any(chain.schedule == "one_shot" for chain in plan.chains)
    trained = any(chain.keeps_weights for chain in plan.chains)
    memory = Memory(
        trunk=setting.first,
        trunk_stream=setting.stream,
        trunk_optimizer=old,
        final=setting.first,
        dense=programs.take(setting.first, setting.ticket_rows) if one_shot else (),
        begun=programs.take(setting.first, setting.ticket_rows) if trained else (),
        mask=put(chains_mask),
    )
    columns = len(timeline_of(setting, 0).validation_steps())
    curves = engine.empty_curves(len(rows.arm), columns)
    return Snapshot(memory, running, curves, {})


def remember_trunk(
    setting: Setting, memory: Memory, running: Running, step: int
) -> Memory:
    """Keeps the state of the rows whose rewind step this is.

    Raw reinits keep their first weights.
    """
    state, is_arm = running.state, setting.rows.is_arm
    elsewhere = rewind_steps(setting) != step

    def unless(arm: str, now: PyTree, first: PyTree) -> PyTree:
        stays = jnp.asarray(elsewhere | is_arm(arm))
        kept = jax.tree.map(lambda n, f: where_rows(stays, f, n), now, first)
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


def chain_networks(setting: Setting, memory: Memory, level: int) -> Network:
    """What each chain's ticket starts a level from, `[Q]`, unmasked."""
    take, at, chains = setting.programs.take, setting.ticket_rows, setting.plan.chains
    chosen = take(memory.trunk, at)
    if level == 0 or not any(chain.keeps_weights for chain in chains):
        return chosen

    def override(chosen: Network, trained: Network, which: list[bool]) -> Network:
        use = jnp.asarray(np.array(which)[setting.rows.chain[at]])
        return jax.tree.map(lambda t, c: where_rows(use, t, c), trained, chosen)

    chosen = override(chosen, take(memory.final, at), [c.keeps_weights for c in chains])
    if isinstance(memory.dense, Network):
        once = [c.keeps_weights and c.schedule == "one_shot" for c in chains]
        chosen = override(chosen, memory.dense, once)
    return place(chosen, setting.execution)


def begun(setting: Setting, memory: Memory, level: int) -> Network:
    """What each chain's ticket started a level from, `[Q]`, when the level is over."""
    if level > 0 and isinstance(memory.begun, Network):
        return memory.begun
    return setting.programs.take(memory.trunk, setting.ticket_rows)


def begin_level(setting: Setting, snapshot: Snapshot, level: int) -> Snapshot:
    """Prunes, and gives every row its mask and its weights at the rewind step."""
    columns = len(timeline_of(setting, level).validation_steps())
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
    of_rows = (
        rows.keys.score,
        setting.noise,
        setting.order,
        memory.trunk_stream,
        setting.first,
        memory.trunk,
        memory.final,
    )
    mask = setting.cut(
        setting.data,
        np.int32(level),
        put(rows.chain[at]),
        *programs.take(of_rows, at),
        memory.dense,
        memory.mask,
        put(keep[rows.chain[at]]),
    )
    networks = chain_networks(setting, memory, level)
    kept = networks if isinstance(memory.begun, Network) else ()
    memory = memory._replace(mask=mask, begun=kept)
    running = start_rows(setting, memory, networks, level)
    return Snapshot(memory, running, curves, snapshot.records)


def start_rows(
    setting: Setting, memory: Memory, networks: Network, level: int
) -> Running:
    """Gives every row what its arm starts from, and a fresh optimizer."""
    rows, programs = setting.rows, setting.programs
    network, row_mask = setting.begin(
        place(rows.arm, setting.execution),
        rows.keys,
        programs.take(memory.mask, setting.source),
        programs.take(networks, setting.source),
        memory.trunk,
    )
    if rows.is_arm("small_dense").any():
        network, row_mask = _small_dense(setting, network, row_mask, memory.mask)
    timeline = timeline_of(setting, level)
    return programs.start(
        network,
        memory.trunk_stream,
        row_mask,
        memory.trunk_optimizer,
        place(timeline.join + timeline.offset, setting.execution),
    )


def _small_dense(
    setting: Setting, network: Network, row_mask: Mask, mask: Mask
) -> tuple[Network, Mask]:
    """Replaces the rows of that arm by narrow networks of as many weights."""
    narrow = setting.task.narrow
    assert narrow is not None  # `set_up` saw to it
    counts = np.asarray(setting.count(mask)).sum(axis=1)
    rows = setting.rows
    host = jax.tree.map(np.array, (network, row_mask))
    for row in np.flatnonzero(rows.is_arm("small_dense")):
        drawn = narrow(rows.keys.fresh_init[row], int(counts[setting.source[row]]))
        for whole, one in zip(jax.tree.leaves(host), jax.tree.leaves(drawn)):
            whole[row] = one
    return place(host, setting.execution)


def end_level(setting: Setting, snapshot: Snapshot, level: int) -> Snapshot:
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
    setting: Setting,
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


def _name_axes(setting: Setting, records: Mapping[str, np.ndarray]) -> Records:
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
    steps = timeline_of(setting, 0).validation_steps()
    out["step"] = (("step",), np.array(steps, np.int32))
    out["layer"] = (("layer",), np.array(layers))
    return out
