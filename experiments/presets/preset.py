"""What a preset is, and how a table of them becomes presets."""

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

C = TypeVar("C")


class Preset(NamedTuple, Generic[C]):
    """A configuration with a name.

    Attributes:
      config: the frozen dataclass.
      help: for `--help`. Where results are stored its first sentence is what the study
        claims, which the gallery shows; then how it is asked, and how long it takes.
    """

    config: C
    help: str


Fields = dict[str, Any]
Table = Mapping[str, tuple[str, Fields]]


def make(kind: type[C], table: Table) -> Mapping[str, Preset[C]]:
    """The presets of an experiment with this configuration."""
    return {
        name: Preset(kind(**fields), text) for name, (text, fields) in table.items()
    }
