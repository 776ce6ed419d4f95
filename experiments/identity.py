"""What a run is, and what may change about it: marked on the fields, once.

A run folder belongs to the configuration that determines its numbers. A field that changes
none of them says so where it is declared, by a mark:

    replicas: int = dataclasses.field(default=5, metadata=FREE)
    task: str = dataclasses.field(default="classification", metadata=UNLESS_DEFAULT)
    minutes: float | None = dataclasses.field(default=None, metadata=NEVER_STORED)

With the second a field can be added without renaming the folders of earlier runs: it
belongs to the identity only where it differs from its default. With the third it is free,
and says nothing of the run but of one call.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from lottery_jax import records
from lottery_jax.convolution import Method

C = TypeVar("C")

FREE: Mapping[str, Any] = {"identity": False}
"""The mark of a field that changes no number of a replica: a run is extended in it."""

UNLESS_DEFAULT: Mapping[str, Any] = {"identity": "unless default"}
"""The mark of a field that came later: its default is what runs were without it."""

NEVER_STORED: Mapping[str, Any] = {**FREE, "stored": False}
"""The mark of a free field that each call of many has its own of."""


@dataclasses.dataclass(frozen=True)
class Where:
    """Where a run lies, and how it is executed: nothing that changes what comes out."""

    out: str | None = dataclasses.field(default=None, metadata=FREE)
    """Run folder; by default results/EXPERIMENT/PRESET-HASH."""
    devices: int | None = dataclasses.field(default=None, metadata=FREE)
    """Devices that share the networks; None for all."""
    chunk: int | None = dataclasses.field(default=None, metadata=FREE)
    """Networks that are vmapped at once on a device, 0 for all; None for the platform's
    default, or as many as fit."""
    convolution: Method | None = dataclasses.field(default=None, metadata=FREE)
    """How convolutions with a kernel per replica run; None for the platform's default."""
    data_parallel: int = dataclasses.field(default=1, metadata=FREE)
    """Devices that share the batch of each network."""
    checkpoint_seconds: float = dataclasses.field(default=30.0, metadata=FREE)
    """Time between checkpoints."""
    window_steps: int | None = dataclasses.field(default=None, metadata=FREE)
    """Steps whose examples are read together, where data are read while runs train; None
    for as many as fit."""
    minutes: float | None = dataclasses.field(default=None, metadata=NEVER_STORED)
    """Stop in time to have ended after so many, checkpoint written, with exit status 75;
    the same command goes on. None for no limit."""
    group_size: int | None = dataclasses.field(default=None, metadata=NEVER_STORED)
    """Replicas that train side by side, of those that are independent; None for all.
    Small groups have small checkpoints."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = dataclasses.field(
        default=(), metadata=NEVER_STORED
    )
    """Where metrics of validations go, beside metrics.jsonl; see docs/metrics.md."""


def free(kind: type) -> tuple[str, ...]:
    """The fields of a configuration that are outside its identity."""
    return tuple(f.name for f in dataclasses.fields(kind) if _mark(f) is False)


def as_config(config: Any) -> dict[str, Any]:
    """The fields of a configuration as they are stored.

    A field that is marked as later and has its default is left out, as in runs from before
    it was there. Where a run lies is not stored: it may be moved, and read by others.
    """
    declared = dataclasses.fields(config)
    later = [f for f in declared if _mark(f) == "unless default"]
    left_out = {f.name for f in later if getattr(config, f.name) == f.default}
    left_out |= {f.name for f in declared if not f.metadata.get("stored", True)}
    fields = records.as_config(config)
    if "out" in fields:
        fields["out"] = None
    return {name: x for name, x in fields.items() if name not in left_out}


def digits(config: Any) -> str:
    """The eight hexadecimal digits that the default folder of a run ends with."""
    return records.identity(as_config(config), free(type(config)))


def from_stored(
    kind: type[C], stored: Mapping[str, Any], source: str = "config.json"
) -> C:
    """A configuration from its JSON: lists become tuples again.

    Args:
      kind: the dataclass.
      stored: its fields.
      source: where they are from, for the message.

    Raises:
      ValueError: a field is unknown to this version.
    """

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(stored) - known):
        raise ValueError(f"{source} has fields this version does not know: {unknown}")
    return kind(**{name: tuples(value) for name, value in stored.items()})


def _mark(field: dataclasses.Field) -> Any:
    return field.metadata.get("identity", True)
