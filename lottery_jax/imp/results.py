"""What a study records, in one table; and its outcome.

`table` says of every record what it is called, its dtype and its last axis. Recording,
going on from a checkpoint and naming axes all follow from it.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors, masks, trees
from lottery_jax.execution import Execution, Where
from lottery_jax.imp import levels
from lottery_jax.imp.levels import Bench, Kept
from lottery_jax.imp.plan import Plan
from lottery_jax.storage import records as records_
from lottery_jax.storage import tickets
from lottery_jax.training import measured
from lottery_jax.training.loop import recorded_steps
from lottery_jax.types import Mask, Network, Task

if TYPE_CHECKING:
    import xarray as xr

Records = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Recorded arrays by name, each with the names of its axes."""


class Record(NamedTuple):
    """One thing that is recorded of every network at every level.

    Attributes:
      dtype: of its array.
      axis: "step" or "layer" for a record with such an axis, "" for a number.
    """

    dtype: Any
    axis: str = ""


def table(bench: Bench) -> dict[str, Record]:
    """What is recorded, by name.

    Every scalar of the task's loss and of its `evaluate` is, under its own name. What a
    task without a validation split has not is nan, and -1 for a step.
    """
    task = bench.task
    tested = measured.metrics(task, "test")
    found = {f"test_{name}": Record(np.float32) for name in tested}
    found |= {f"test_{name}_early": Record(np.float32) for name in tested}
    trained = {
        f"train_{name}": Record(np.float32, "step")
        for name in measured.loss_metrics(task)
    }
    validated = measured.metrics(task, "validation") if task.validates else tested
    trained |= {f"validation_{name}": Record(np.float32, "step") for name in validated}
    return (
        found
        | {"early_stop_step": Record(np.int32)}
        | trained
        | {
            "first_nan": Record(np.float32),
            "alive": Record(np.int32),
            "density": Record(np.float64),
            "layer_density": Record(np.float64, "layer"),
            "diverged": Record(np.int8),
        }
    )


def layers(bench: Bench) -> list[str]:
    """The key paths of the prunable leaves."""
    shapes = bench.task.shapes[0]
    flags = masks.resolve(shapes, bench.prunable)
    return [name for name, take in zip(trees.paths(shapes), flags) if take]


def validation_steps(plan: Plan) -> list[int]:
    """The steps at which a dense run is validated, the last one included."""
    return recorded_steps(plan.steps, plan.validate_every)


def blank(bench: Bench, recorded: int) -> dict[str, np.ndarray]:
    """Arrays for the records of so many levels, `[level, run, ...]`."""
    sizes = {
        "": (),
        "step": (len(validation_steps(bench.plan)),),
        "layer": (len(layers(bench)),),
    }
    return {
        name: np.zeros((recorded, bench.rows.number, *sizes[one.axis]), one.dtype)
        for name, one in table(bench).items()
    }


def add(
    bench: Bench, before: dict[str, np.ndarray], measured: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The records with one more level.

    Args:
      bench: of the study.
      before: `[level, run, ...]`, from `blank` or an earlier `add`.
      measured: `[run, ...]` by name, from `levels.end`.
    """
    measured = measured | {"diverged": levels.diverged(bench, before, measured)}
    out = {}
    for name, empty in blank(bench, 1).items():
        missing = np.nan if empty.dtype.kind == "f" else -1
        value = measured.get(name, np.full_like(empty[0], missing))
        out[name] = np.concatenate([before[name], value[None].astype(empty.dtype)])
    return out


class Emptied(NamedTuple):
    """A layer of a network that has no weight left.

    Attributes:
      chain: its name.
      arm: its name.
      replica: the id.
      level: the first at which it is so.
      layer: the key path of the leaf.
    """

    chain: str
    arm: str
    replica: int
    level: int
    layer: str


def emptied(
    density: np.ndarray,
    plan: Plan,
    ids: tuple[int, ...],
    levels: tuple[int, ...],
    layers: list[str],
) -> list[Emptied]:
    """The layers that lost their last weight, each at the level where it happened.

    Args:
      density: of layers, `[chain, arm, replica, level, layer]`.
      plan: of the study.
      ids: of the replicas.
      levels: their numbers.
      layers: their key paths.
    """
    gone = density == 0
    first = gone.copy()
    first[..., 1:, :] &= ~gone[..., :-1, :]
    return [
        Emptied(plan.chains[c].name, plan.arms[a], ids[r], levels[i], layers[j])
        for c, a, r, i, j in np.argwhere(first)
    ]


SAID = 12
"""Networks that a warning names."""


def warn_of_emptied(
    bench: Bench,
    before: dict[str, np.ndarray],
    measured: dict[str, np.ndarray],
    level: int,
) -> None:
    """Warns of the layers that lost their last weight at a level: one warning for all.

    Pruning is pure and traced and says nothing; a network that has lost a layer trains on
    at chance, if no other connection passes it.

    Args:
      bench: of the study.
      before: the records of the levels before, `[level, run, ...]`.
      measured: those of this level, `[run, ...]`.
      level: its number.
    """
    known = before["layer_density"][-1:]
    density = np.concatenate([known, measured["layer_density"][None]])
    numbers = tuple(range(level + 1 - len(density), level + 1))
    square = _square(bench, density)
    found = [
        one
        for one in emptied(square, bench.plan, bench.ids, numbers, layers(bench))
        if one.level == level
    ]
    if not found:
        return
    where = dict[tuple[str, str], dict[int, list[str]]]()
    for one in found:
        of_arm = where.setdefault((one.chain, one.arm), {})
        of_arm.setdefault(one.replica, []).append(one.layer)
    said = [
        f"chain {chain!r}, arm {arm!r}, replica {replica}: {', '.join(names)}"
        for (chain, arm), of_arm in where.items()
        for replica, names in of_arm.items()
    ]
    if len(said) > SAID:
        said = [*said[:SAID], f"and {len(said) - SAID} more, see Study.emptied"]
    whole = int((measured["alive"] == 0).sum())
    more = f" {whole} networks have no prunable weight left at all." if whole else ""
    warnings.warn(
        f"level {level}: layers have lost their last weight, and are trained on without "
        f"any: {'; '.join(said)}.{more} Prune fewer levels, or exclude these layers",
        RuntimeWarning,
        stacklevel=3,
    )


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


def settled(
    bench: Bench, where: Where, level: int, step: int
) -> tuple[Bench, tuple[Change, ...]]:
    """A study within what has turned out to fit, and the change if that is new.

    Args:
      bench: of the study.
      where: it runs.
      level: that it has reached.
      step: likewise.
    """
    fits = where.room.within(bench.execution)
    if fits == bench.execution:
        return bench, ()
    return bench._replace(execution=fits), (Change(level, step, fits),)


class Moment(NamedTuple):
    """A study between two levels: all that the next one needs.

    Attributes:
      level: the one that comes next.
      kept: from the levels before it.
      found: their records, `[level, run, ...]` by name.
      changes: of how they were executed.
    """

    level: int
    kept: Kept
    found: dict[str, np.ndarray]
    changes: tuple[Change, ...]


class Study(NamedTuple):
    """The outcome of a study.

    Attributes:
      records: what was measured; axes chain, arm, replica, level, step, layer.
      masks: the chains' masks at the last level, `[chain, replica, ...]` leaves.
      rewound: the networks that the tickets start from, `[chain, replica, ...]`.
      execution: the settings that were used, at the end.
      changes: when they became so, if they were not from the start.
      plan: what was done.
      replicas: the ids.
      levels: which levels the records hold.
      about: what its tickets say of the task and of what it began with; from `about`.
    """

    records: Records
    masks: Mask
    rewound: Network
    execution: Execution
    changes: tuple[Change, ...]
    plan: Plan
    replicas: tuple[int, ...]
    levels: tuple[int, ...]
    about: dict[str, Any]

    @property
    def emptied(self) -> list[Emptied]:
        """The layers that lost their last weight, where and when; read off the records."""
        density, names = self.records["layer_density"][1], self.records["layer"][1]
        own = self.plan, self.replicas, self.levels
        return emptied(density, *own, [str(name) for name in names])

    def dataset(self, **attributes: Any) -> "xr.Dataset":
        """The records as a labelled `xarray.Dataset`; of a sweep, with an axis of each name.

        Args:
          **attributes: JSON-able, beside those that say what was run.

        Raises:
          ImportError: xarray is missing; names the extra.
        """
        sweep = {name: list(values) for name, values in self.plan.sweep.items()}
        sizes = [len(self.plan.procedures), *map(len, sweep.values())]

        def unfolded(axes: tuple[str, ...], x: np.ndarray) -> Any:
            if axes[0] != "chain":
                return axes, x
            return ("chain", *sweep, *axes[1:]), x.reshape(*sizes, *x.shape[1:])

        found = {name: unfolded(*one) for name, one in self.records.items()}
        coordinates = {
            "chain": [chain.name for chain in self.plan.procedures],
            **sweep,
            "arm": list(self.plan.arms),
            "replica": list(self.replicas),
            "level": list(self.levels),
        }
        own = {
            **records_.environment(),
            "execution": self.execution._asdict(),
            "execution_changes": [
                (change.level, change.step, change.execution._asdict())
                for change in self.changes
            ],
            "rewind_step": self.plan.rewind_step,
            "steps": self.plan.steps,
        }
        return records_.dataset(found, coordinates, own | attributes)


def outcome(
    bench: Bench, moment: Moment, rewound: Network, about: dict[str, Any]
) -> Study:
    """What a user gets: named records, and the chains' masks and networks.

    Args:
      bench: of the study.
      moment: after its last level.
      rewound: what the tickets start from, `[Q]`.
      about: the task, from `about`.
    """
    chains, number = len(bench.plan.chains), len(bench.ids)

    def square(x: Any) -> jax.Array:
        # On the host: a slice of each shape would be a program of its own.
        rows = np.asarray(x)[: bench.rows.pairs]
        return jnp.asarray(rows.reshape(chains, number, *x.shape[1:]))

    recorded = len(moment.found["alive"])
    return Study(
        named(bench, moment.found),
        jax.tree.map(square, moment.kept.mask),
        jax.tree.map(square, rewound),
        bench.execution,
        moment.changes,
        bench.plan,
        bench.ids,
        tuple(range(moment.level - recorded, moment.level)),
        about,
    )


def named(bench: Bench, found: dict[str, np.ndarray]) -> Records:
    """Records from `[level, run, ...]` to named axes, with coordinates."""
    out: Records = {}
    for name, one in table(bench).items():
        value = _square(bench, found[name])
        axes = ("chain", "arm", "replica", "level", *((one.axis,) if one.axis else ()))
        out[name] = (axes, value)
    out["step"] = (("step",), np.array(validation_steps(bench.plan), np.int32))
    out["layer"] = (("layer",), np.array(layers(bench)))
    return out


def _square(bench: Bench, value: np.ndarray) -> np.ndarray:
    """From `[level, run, ...]` to `[chain, arm, replica, level, ...]`."""
    shape = (len(bench.plan.chains), len(bench.ids), len(bench.plan.arms))
    value = value.reshape(len(value), *shape, *value.shape[2:])
    return np.moveaxis(value, (1, 3, 2, 0), (0, 1, 2, 3))


# --- what tickets say -----------------------------------------------------------------


def about(task: Task, *, given: bool, data: str | None = None) -> dict[str, Any]:
    """What tickets say of a task, and of what a study of it began with.

    Args:
      task: what is trained.
      given: whether the first weights were given, and not drawn by the task's law.
      data: a digest of all that its data hold, if it was made.

    Returns:
      `prunable`, the key paths of the leaves that count; `exclude` and `head`, the task's
      patterns; `start`, "given" or "drawn"; `data_digest`, or None.
    """
    shapes = task.shapes[0]
    leaves = zip(trees.paths(shapes), masks.resolve(shapes, masks.of_task(task)))
    return {
        "prunable": [path for path, take in leaves if take],
        "exclude": list(task.exclude),
        "head": list(task.head),
        "start": "given" if given else "drawn",
        "data_digest": data,
    }


def tickets_of(study: Study) -> list[list[tickets.Ticket]]:
    """The tickets of a study's last level, by chain and replica; no folder is needed.

    They are what `run` would have stored, but for what only a caller's metadata says.

    Raises:
      ValueError: the study has trained controls alone.
    """
    if "ticket" not in study.plan.arms:
        raise errors.wrong("study.plan.arms", study.plan.arms, "with a 'ticket' in it")
    mask, network = trees.host((study.masks, study.rewound))
    level = study.levels[-1]

    def ticket(c: int, r: int) -> tickets.Ticket:
        own_mask, own = trees.rows((mask, network), (c, r))
        found = facts(study.records, study.plan, study.levels, c, r)
        metadata = provenance(
            study.plan, c, study.replicas[r], level, {**study.about, **found}, {}
        )
        return tickets.Ticket(own_mask, own.params, own.model_state, metadata)

    return [
        [ticket(c, r) for r in range(len(study.replicas))]
        for c in range(len(study.plan.chains))
    ]


def facts(
    records: Records, plan: Plan, levels: Sequence[int], chain: int, replica: int
) -> dict[str, Any]:
    """What was measured of a ticket of the last level, as plain numbers.

    Args:
      records: of the study.
      plan: of the study.
      levels: which ones the records hold.
      chain: position of the ticket's.
      replica: position of the ticket's.

    Returns:
      `density` and `layer_density`; `test_NAME` of every metric at the end of its level,
      `dense_test_NAME` of the same replica at level 0, None where the records have not
      got it; `diverged`.
    """
    row = chain, plan.arms.index("ticket"), replica
    measured = {name: value[row] for name, (axes, value) in records.items() if axes[1:]}
    names = [str(name) for name in records["layer"][1]]
    found: dict[str, Any] = {
        "density": float(measured["density"][-1]),
        "layer_density": dict(zip(names, measured["layer_density"][-1].tolist())),
    }
    for name, value in measured.items():
        if name.startswith("test_") and not name.endswith("_early"):
            found[name] = float(value[-1])
            found[f"dense_{name}"] = float(value[0]) if levels[0] == 0 else None
    found["diverged"] = bool(measured["diverged"][-1])
    return records_.finite(found)


OWN = (
    *("rewind_step", "density", "level", "init", "found", "versions", "chain", "plan"),
    *("prunable", "exclude", "head", "start", "data_digest", "layer_density"),
    *("diverged", "git_commit"),
)
"""What a study itself says in its tickets, beside `test_NAME` and `dense_test_NAME`."""


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raises a ValueError if a caller's metadata has a name that is the study's own."""
    for name in metadata:
        if name in OWN or name.startswith(("test_", "dense_test_")):
            must = "another name: the study itself says that of its tickets"
            raise errors.wrong("metadata", repr(name), must)


def provenance(
    plan: Plan,
    chain: int,
    replica: int,
    level: int,
    known: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Where a ticket comes from, and all that the library knows of it.

    Args:
      plan: of the study.
      chain: its position.
      replica: its id.
      level: of pruning.
      known: from `about` and `facts`.
      metadata: of the caller; "model" and "task" name what was trained.
    """
    own = plan.chains[chain]
    words = own.as_json()
    names = {"model", "task"}
    own_fields = ("steps", "validate_every", "level_optimizer", "random_scope")
    return tickets.provenance(
        **{name: str(metadata.get(name, "")) for name in sorted(names)},  # type: ignore[arg-type]
        rewind_step=plan.rewind_steps[chain],
        level=level,
        init={"seed": plan.seed, "replica": replica},
        found=f"{words['score']}, {words['schedule']}, {words['scope']}, {words['retrain']}",
        chain=words,
        plan={name: getattr(plan, name) for name in own_fields},
        git_commit=records_.git_commit(),
        **known,
        **{name: x for name, x in metadata.items() if name not in names},
    )
