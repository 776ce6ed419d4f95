"""What lies in the folder of a study, and how it goes on from there.

FOLDER/checkpoints/NNNNNNNN/                          the last moments between levels
FOLDER/levels/LL/NNNNNNNN/                            those within a level
FOLDER/tickets/CHAIN/levelLL-replicaRR.safetensors    what each level starts from
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from lottery_jax import keys, trees
from lottery_jax.errors import on_disk
from lottery_jax.execution import Execution, Where
from lottery_jax.imp import levels, results
from lottery_jax.imp.levels import PER_ROW, Bench, Kept
from lottery_jax.imp.plan import Plan
from lottery_jax.imp.results import Moment
from lottery_jax.optimizers.settings import Optimizer
from lottery_jax.scores import Inputs, Score
from lottery_jax.storage import checkpoints, tickets
from lottery_jax.training import identity
from lottery_jax.types import Key, Mask, Network, PyTree, Task

CHECKPOINTS = "checkpoints"
"""The folder of the moments between levels, below that of a study."""


def save(
    folder: pathlib.Path | None, bench: Bench, moment: Moment, own: identity.Fields
) -> None:
    """Writes a moment between levels; what lies of the levels before it goes.

    Args:
      folder: of the study; None writes nothing.
      bench: of the study.
      moment: the moment.
      own: from `fields`.
    """
    if folder is None:
        return
    metadata = identity.stored(own) | {
        "level": moment.level,
        "levels_recorded": len(next(iter(moment.found.values()))),
        "execution": bench.execution._asdict(),
        "changes": [(c.level, c.step, c.execution._asdict()) for c in moment.changes],
    }
    part = {"kept": _real(bench, moment.kept, moment.level), "records": moment.found}
    checkpoints.save(folder / CHECKPOINTS, part, metadata)
    for path in sorted((folder / "levels").glob("[0-9]*")):
        if int(path.name) < moment.level - 1:  # the last one may be fallen back on
            shutil.rmtree(path, ignore_errors=True)


def _trained(bench: Bench) -> bool:
    """Whether trunks were trained: those at step 0 are drawn again, and not stored."""
    return levels.keep_steps(bench) is not None


def _learnt(bench: Bench, level: int) -> tuple[str, ...]:
    """The fields of what is kept that must be stored before a level.

    What was drawn or given is laid out again: a start is not stored once for each of the
    networks that have it.
    """
    if level == 0:
        return ()
    first: tuple[str, ...] = () if _trained(bench) else PER_ROW
    # Level 0 began with the networks themselves, which `levels.begun` knows.
    first += ("begun",) if level == 1 else ()
    return tuple(name for name in Kept._fields if name not in first)


def _real(bench: Bench, kept: Kept, level: int) -> dict[str, PyTree]:
    """What is kept, on the host and without padding; what can be drawn again left out."""
    rows = bench.rows
    return {
        name: trees.rows(
            trees.host(getattr(kept, name)),
            slice(rows.number if name in PER_ROW else rows.pairs),
        )
        for name in _learnt(bench, level)
    }


def restore(folder: pathlib.Path | None, bench: Bench, first: Kept) -> Moment | None:
    """The stored moment, laid out for the devices of now; None if there is none."""
    if folder is None:
        return None
    found = checkpoints.metadata(folder / CHECKPOINTS)
    if found is None:
        return None
    like = {
        "kept": _real(bench, first, found["level"]),
        "records": results.blank(bench, found["levels_recorded"]),
    }
    restored = checkpoints.restore(folder / CHECKPOINTS, like)
    assert restored is not None
    part = restored[0]
    rows, kept = bench.rows, {}
    for name, value in part["kept"].items():
        real, padded = rows.pairs, len(rows.tickets)
        if name in PER_ROW:
            real, padded = rows.number, len(rows.arm)
        value = trees.rows(value, np.minimum(np.arange(padded), real - 1))
        kept[name] = value if name in PER_ROW else bench.execution.place(value)
    changes = tuple(
        results.Change(level, step, Execution(**execution))
        for level, step, execution in found["changes"]
    )
    return Moment(found["level"], first._replace(**kept), part["records"], changes)


def within_level(folder: pathlib.Path | None, level: int) -> bool:
    """Whether the training of a level was checkpointed before its end."""
    if folder is None:
        return False
    return checkpoints.metadata(folder / "levels" / f"{level:02d}") is not None


def levels_over(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders of levels that the newest moment of a study lies beyond.

    They are kept for the checkpoint before, and are not needed beside the newest one.

    Args:
      folder: the folder `levels` of a study; of any other there are none.
    """
    beside = folder.parent / CHECKPOINTS
    if folder.name != "levels" or not beside.is_dir():
        return []
    found = checkpoints.metadata(beside)
    there = [path for path in folder.iterdir() if path.name.isdecimal()]
    return [path for path in there if found and int(path.name) < found["level"]]


def check_same(where: Where, own: identity.Fields) -> tuple[Where, bool]:
    """Settles how a study that is found goes on.

    Returns:
      Where, with the stored settings if none are asked for and this machine has the
      devices; and whether the settings are others than those of before.

    Raises:
      ValueError: the folder holds another study; names the field.
    """
    folder = where.store
    if folder is None:
        return where, False
    found = checkpoints.metadata(folder / CHECKPOINTS)
    if found is None:
        return where, False
    identity.check(folder, "another study", found, own)
    execution = Execution(**found["execution"])
    if where.execution is None and execution.devices <= jax.local_device_count():
        where = where.by(execution)
    return where, where.execution != execution


def fields(
    task: Task,
    tx: Optimizer,
    plan: Plan,
    ids: tuple[int, ...],
    start: Network | None,
    where: Where,
) -> identity.Fields:
    """What a folder must have in common with the study that goes on there.

    Args:
      task: what is trained.
      tx: the optimizer.
      plan: the protocol.
      ids: of the replicas.
      start: weights to start from; None for draws.
      where: it runs; without a folder there is nothing to compare.
    """
    if where.store is None:
        return {}
    names = ["init", "order", "batch", "loss", "steps_per_epoch", "prunable", "exclude"]
    if "small_dense" in plan.arms:
        names.append("narrow")
    splits = ("validation", "test") if task.validates else ("test",)
    return (
        {"kind": "study"}
        | _of_plan(task, plan, ids)
        | identity.of_draws()
        | identity.of_task(task, names, splits)
        | identity.of_data(task, where)
        | identity.of_optimizer(task, tx, tuple(plan.sweep))
        | ({"start": None} if start is None else identity.of_arrays(start=start))
    )


def _of_plan(task: Task, plan: Plan, ids: tuple[int, ...]) -> identity.Fields:
    """The fields of a plan, and those of each of its chains."""
    found = {f"plan.{name}": value for name, value in plan.as_json(ids).items()}
    chains = found.pop("plan.chains")
    found["plan.chains"] = [chain.name for chain in plan.chains]
    for chain, own in zip(plan.chains, chains):
        # A law of one's own may have further fields.
        own |= {"densities": repr(chain.densities)}
        found |= {f"plan.{chain.name}.{name}": value for name, value in own.items()}
        if not isinstance(chain.score, str):
            parts = task.functions, trees.shapes_of(task.data), chain.score
            found |= identity.of_function(f"plan.{chain.name}.score", _score, *parts)
    return found


def _score(task: Task, data: PyTree, score: Score) -> identity.Traced:
    """A score, as `levels.cut` calls it."""
    params, model_state, stream = task.shapes
    key = jax.eval_shape(lambda: keys.replica_keys(0, 0).score)

    def rank(
        key: Key, weights: PyTree, model_state: PyTree, stream: PyTree, data: PyTree
    ) -> PyTree:
        trained, initial, mask = weights
        inputs = Inputs(
            trained=trained,
            mask=mask,
            initial=initial,
            model_state=model_state,
            loss=lambda p, m, b, k: task.loss(p, m, stream, b, k)[0],
            batches=levels._score_batches(task._replace(data=data), key),
            outputs=task.outputs,
        )
        return score(key, inputs)

    mask = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.bool_), params)
    return rank, key, (params, params, mask), model_state, stream, data


# --- tickets --------------------------------------------------------------------------


def ticket_path(
    folder: pathlib.Path | str, chain: str, level: int, replica: int
) -> pathlib.Path:
    """Where `run` stores a ticket below its folder."""
    name = f"level{level:02d}-replica{replica:02d}.safetensors"
    return on_disk("folder", folder) / "tickets" / chain / name


def store_tickets(
    folder: pathlib.Path,
    bench: Bench,
    moment: Moment,
    about: Mapping[str, Any],
    metadata: Mapping[str, Any],
    weights: Literal["stored", "digest"] = "stored",
) -> None:
    """Writes what each chain's last level started from, one file per replica.

    Args:
      folder: of the study.
      bench: of the study.
      moment: after the level.
      about: the task, from `results.about`.
      metadata: of the caller.
      weights: whether these or their digests are stored.
    """
    plan, ids, level = bench.plan, bench.ids, moment.level - 1
    began = levels.begun(bench, moment.kept, level)
    mask, network = trees.host((moment.kept.mask, began))
    recorded = results.named(bench, moment.found)
    numbers = range(moment.level - len(moment.found["alive"]), moment.level)
    for pair in range(bench.rows.pairs):
        chain, replica = divmod(pair, len(ids))
        own_mask, own = trees.rows((mask, network), pair)
        known = {
            **about,
            **results.facts(recorded, plan, numbers, chain, replica),
        }
        found = results.provenance(plan, chain, ids[replica], level, known, metadata)
        path = ticket_path(folder, plan.chains[chain].name, level, ids[replica])
        ticket = tickets.Ticket(own_mask, own.params, own.model_state, found)
        tickets.save(path, ticket, weights=weights)


def stack(
    task: Task, found: Sequence[Sequence[tickets.Ticket]]
) -> tuple[Mask, Network]:
    """Tickets as stacks `[chain * replica, ...]`, in the tree structures of the task.

    Raises:
      ValueError: a ticket does not fit the task; names the leaf.
    """
    params, model_state, _ = task.shapes

    def fitted(name: str, tree: PyTree, like: PyTree) -> PyTree:
        return trees.fitted(
            tree, like, (f"found: the {name} of a ticket", "the task's")
        )

    def one(ticket: tickets.Ticket) -> tuple[Mask, Network]:
        mask = fitted("mask", ticket.mask, params)
        own = fitted("params", ticket.params, params)
        state = fitted("model_state", ticket.model_state, model_state)
        for path, leaf in trees.by_path(mask).items():
            if leaf.dtype != np.bool_:
                raise ValueError(
                    f"found: leaf {path!r} of the mask of a ticket has dtype {leaf.dtype}; "
                    "it must be bool"
                )
        return mask, Network(own, state)

    return trees.stack([one(ticket) for row in found for ticket in row])
