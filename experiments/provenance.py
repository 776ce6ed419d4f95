"""What results say of themselves: what made them, on what, and what was concluded.

Whoever shows results (a report, a gallery) reads all of it from the results file: the
attributes are written when a command ends, and a stored run says the same elsewhere.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import xarray as xr


class Provenance(NamedTuple):
    """What the attributes of results say, with defaults where older results say nothing.

    Attributes:
      experiment: its name, that of its module; "" where it is not said.
      preset: its name; of a retraining, the name of the stored run's folder.
      shows: what the preset shows, in a sentence.
      command: that makes such results.
      figures: names of the figures of the run, without suffix; the first one leads.
      verdicts: a flat object each, as in verdicts.json: place, "claim", "verdict".
      claims: a line each: how often each claim holds, and how surely.
      note: what is to be known of the data; "" for nothing.
      config: the configuration, by field.
      device: number, kind and platform of the devices.
      processor: of the host.
      versions: of packages, by name.
      commit: of this repository.
      minutes: that the last call took; None where it is not said.
    """

    experiment: str
    preset: str
    shows: str
    command: str
    figures: tuple[str, ...]
    verdicts: list[dict[str, Any]]
    claims: list[str]
    note: str
    config: dict[str, Any]
    device: str
    processor: str
    versions: dict[str, str]
    commit: str
    minutes: float | None

    @property
    def title(self) -> str:
        """Experiment and preset, as on the command line: "imp mnist1d"."""
        return f"{self.experiment} {self.preset}".strip()


def attributes(
    experiment: str,
    preset: str,
    shows: str,
    command: str,
    figures: Sequence[str],
    verdicts: Sequence[Mapping[str, Any]],
    claims: Sequence[str],
) -> dict[str, str]:
    """The attributes that a command adds to its results when it ends.

    Args: as in `Provenance`.
    """
    return {
        "experiment": experiment,
        "preset": preset,
        "shows": shows,
        "command": command,
        "figures": json.dumps(list(figures)),
        "verdicts": json.dumps(list(verdicts)),
        "claims": json.dumps(list(claims)),
    }


def read(results: "xr.Dataset") -> Provenance:
    """What results say of themselves.

    Args:
      results: of any experiment, of this version or an earlier one.

    Raises:
      ValueError: an attribute is damaged; names it.
    """
    own = results.attrs

    def decoded(name: str, default: Any) -> Any:
        try:
            return json.loads(own[name]) if name in own else default
        except ValueError as error:
            raise ValueError(f"the attribute {name!r} is damaged: {error}") from None

    seconds = own.get("seconds_last_call")
    return Provenance(
        experiment=str(own.get("experiment", "")),
        preset=str(own.get("preset", "")),
        shows=str(own.get("shows", "")),
        command=str(own.get("command", "")),
        figures=tuple(decoded("figures", ())),
        verdicts=decoded("verdicts", []),
        claims=decoded("claims", []),
        note=str(own.get("note", "")),
        config=decoded("config", {}),
        device=str(own.get("device", "")),
        processor=str(own.get("processor", "")),
        versions=decoded("versions", {}),
        commit=str(own.get("git_commit", "")),
        minutes=None if seconds is None else float(seconds) / 60,
    )
