"""Checkpoints and tickets of a study: what lies in its folder, and how it goes on.

FOLDER/checkpoints/NNNNNNNN/                          the last moments
FOLDER/tickets/CHAIN/levelLL-replicaRR.safetensors    what each level starts from
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lottery_jax import engine, masks
from lottery_jax.chains import Plan
from lottery_jax.engine import Curves
from lottery_jax.replicas import Execution, place
from lottery_jax.setting import Setting, timeline_of
from lottery_jax.storage import checkpoints, tickets
from lottery_jax.study import Change, Memory, Snapshot, begun
from lottery_jax.types import Mask, Network, PyTree


def stack(
    setting: Setting, found: Sequence[Sequence[tickets.Ticket]]
) -> tuple[Mask, Network]:
    """Tickets as arrays `[Q]`, in the tree structures of the task."""
    params, model_state, _ = jax.eval_shape(setting.task.init, jax.random.key(0))

    def fitted(ticket: tickets.Ticket) -> tuple[Mask, Network]:
        mask = fit("mask", ticket.mask, params)
        masks.check(mask, params)
        own = fit("params", ticket.params, params)
        return mask, Network(own, fit("model_state", ticket.model_state, model_state))

    flat = [fitted(ticket) for row in found for ticket in row]
    flat += [flat[-1]] * (len(setting.ticket_rows) - len(flat))
    return jax.tree.map(lambda *x: np.stack(x), *flat)


def fit(name: str, tree: PyTree, like: PyTree) -> PyTree:
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


def save(
    setting: Setting,
    folder: pathlib.Path,
    snapshot: Snapshot,
    level: int,
    after: int | None,
    ids: tuple[int, ...],
    changes: Sequence[Change] = (),
) -> None:
    """Writes the moment after a segment (`after`), or before a level (None)."""
    where = folder / "checkpoints"
    metadata = {
        "level": level,
        "after": after,
        "levels_recorded": len(next(iter(snapshot.records.values()), ())),
        "execution": setting.execution._asdict(),
        "changes": [(c.level, c.step, c.execution._asdict()) for c in changes],
        "plan": _as_json(setting.plan, ids),
        "rows": [len(setting.rows.arm), len(setting.ticket_rows)],
    }
    checkpoints.save(where, snapshot, metadata)


def _as_json(plan: Plan, ids: tuple[int, ...]) -> dict[str, Any]:
    """What a run in a folder must have in common with the one that began there."""
    return json.loads(json.dumps({**dataclasses.asdict(plan), "replicas": ids}))


def check_same(folder: pathlib.Path, plan: Plan, ids: tuple[int, ...]) -> None:
    """Raises a ValueError if a folder holds a run with another plan; names the field."""
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


def stored_execution(folder: pathlib.Path | None) -> Execution | None:
    """The settings a stored run used, if this machine has the devices for them."""
    if (
        folder is None
        or (found := checkpoints.metadata(folder / "checkpoints")) is None
    ):
        return None
    stored = Execution(**found["execution"])
    # On a machine with fewer devices the run goes on from its exact state all the same.
    return stored if stored.devices <= jax.local_device_count() else None


def stored_changes(folder: pathlib.Path) -> tuple[Change, ...]:
    """When a stored run began to be executed in another way."""
    found = checkpoints.metadata(folder / "checkpoints") or {}
    return tuple(
        Change(level, step, Execution(**execution))
        for level, step, execution in found.get("changes", ())
    )


def restore(
    setting: Setting, first: Snapshot, folder: pathlib.Path
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


def _empty_records(setting: Setting, recorded: int, rows: int) -> dict[str, np.ndarray]:
    """Arrays with the shapes and dtypes of `recorded` levels, for restoring."""
    if not recorded:
        return {}
    columns = len(timeline_of(setting, 0).validation_steps())
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


def store_tickets(
    setting: Setting,
    snapshot: Snapshot,
    level: int,
    ids: tuple[int, ...],
    folder: pathlib.Path,
    metadata: Mapping[str, Any],
) -> None:
    """Writes what each chain's level starts from, one file per replica."""
    plan = setting.plan
    mask = jax.tree.map(np.asarray, snapshot.memory.mask)
    network = jax.tree.map(np.asarray, begun(setting, snapshot.memory, level))
    flags = masks.resolve(setting.template, setting.prunable)
    total = masks.total(setting.template, setting.prunable)

    def counted(tree: Mask) -> list[np.ndarray]:
        return [m for m, take in zip(jax.tree.leaves(tree), flags) if take]

    for pair in range(setting.pairs):
        chain, replica = plan.chains[pair // len(ids)], ids[pair % len(ids)]
        own_mask, own = jax.tree.map(lambda x, i=pair: x[i], (mask, network))
        found = tickets.provenance(
            model=str(metadata.get("model", "")),
            task=str(metadata.get("task", "")),
            rewind_step=plan.rewind_steps[pair // len(ids)],
            density=sum(m.sum() for m in counted(own_mask)) / total,
            level=level,
            init={"seed": plan.seed, "replica": replica},
            found=f"{chain.score}, {chain.schedule}, {chain.scope}, {chain.retrain}",
            chain=dataclasses.asdict(chain),
        )
        ticket = tickets.Ticket(own_mask, own.params, own.model_state, found)
        tickets.save(ticket_path(folder, chain.name, level, replica), ticket)
