"""Metrics where people look: TensorBoard, Weights & Biases, beside `metrics.jsonl`.

    python -m experiments.imp --log tensorboard wandb
    tensorboard --logdir results/imp
    wandb sync results/imp/*/replicas-*/wandb/offline-run-*

For TensorBoard each network is a run of its own, in a folder ARM/REPLICA of the group's
folder `tensorboard`: all networks are curves of one chart for each metric, and one chooses
arms and replicas by the names of the runs. For Weights & Biases a group of replicas is one
run with a key PLACE/ARM/REPLICA/METRIC for each curve, since a run costs a service there.
In both the steps of a pruning study go on over its levels: step 200 of level 3 of 1,500
steps is 4,700, so a study is one curve that grows, and what is written anew after an
interruption is known by its step.

A log never stops a run, and never asks anything: what fails is said once, and left out.
"""

import contextlib
import importlib
import json
import netrc
import os
import pathlib
import re
import secrets
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from lottery_jax import records
from lottery_jax.execution import Progress

Service: TypeAlias = Literal["tensorboard", "wandb"]

PACKAGES: Mapping[Service, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""What is imported for each service; the extras have the names of the services."""

Values: TypeAlias = Mapping[str, Mapping[str, float]]
"""What was measured of each network: its name, the name of the metric, finite numbers."""


class Log(Protocol):
    """Where metrics go."""

    def begin(self, place: str, step: int) -> None:
        """Says that a part of a run begins or is taken up here: later steps will come.

        Args:
          place: the part, such as "levels" or "trunk".
          step: what is known up to this step was written before.
        """

    def add(self, place: str, step: int, values: Values) -> None:
        """Writes what was measured at a step.

        Args:
          place: the part of the run.
          step: counted on over levels.
          values: of all its networks.
        """

    def close(self, place: str) -> None:
        """Says that a part of a run has ended."""


def check(services: Sequence[Service]) -> None:
    """Finds what is missing before there is anything to log.

    Raises:
      ImportError: a package is missing; names the extra.
    """
    for service in services:
        try:
            importlib.import_module(PACKAGES[service])
        except ImportError:
            raise ImportError(
                f"log={service} needs {PACKAGES[service]}: "
                f"pip install 'lottery-jax[{service}]'"
            ) from None


class Logs:
    """The logs of a folder: a watcher of its `Where` that `display.watched` gives names to.

    Attributes:
      folder: of a group of replicas.
      services: the logs that have not failed.
    """

    def __init__(
        self,
        services: Sequence[Service],
        folder: pathlib.Path,
        config: Mapping[str, Any],
    ) -> None:
        """Opens nothing yet.

        Args:
          services: where metrics go.
          folder: of a group of replicas.
          config: what the run is, for Weights & Biases.
        """
        self.folder = folder
        made: dict[Service, Callable[[], Log]] = {
            "tensorboard": lambda: TensorBoard(folder / "tensorboard"),
            "wandb": lambda: WandB(folder, config),
        }
        self.services: dict[str, Log] = {name: made[name]() for name in services}

    def __call__(self, at: Progress) -> None:
        """Nothing: what networks are called is known to `watching` alone."""

    def tell(self, call: Callable[[Log], None]) -> None:
        """Does something with each log; one that fails is left out from then on."""
        for name, log in list(self.services.items()):
            try:
                call(log)
            except Exception as error:  # whatever it is, the run goes on
                del self.services[name]
                print(
                    f"log={name} has failed: {error}; going on without", file=sys.stderr
                )

    @contextlib.contextmanager
    def watching(
        self, folder: pathlib.Path | None, what: str, names: Sequence[str]
    ) -> Iterator[Callable[[Progress], None]]:
        """A watcher that logs every validation of a part of the run.

        Args:
          folder: of the part: this one's, or one below.
          what: before the names of its stages.
          names: of the networks, in the order of their rows.
        """
        begun: list[str] = []

        def watch(at: Progress) -> None:
            if at.curves is None or not self.services:
                return
            where, step = place(self.folder, folder, what, at), steps(at)
            measured = _measured(at, names)
            if at.resumed or where not in begun:
                known = step - 1 if measured else step
                self.tell(lambda log: log.begin(where, known))
                begun.append(where)
            if measured:
                self.tell(lambda log: log.add(where, step, measured))

        try:
            yield watch
        finally:
            for one in dict.fromkeys(begun):
                self.tell(lambda log: log.close(one))  # noqa: B023


def of(watch: Callable[[Progress], None] | None) -> Logs | None:
    """The logs of a `Where`, by who watches it; None where nothing is logged."""
    found = getattr(watch, "logs", watch)
    return found if isinstance(found, Logs) else None


# --- what is written ------------------------------------------------------------------


def steps(at: Progress) -> int:
    """The step that was reached, counted on over levels."""
    return (at.level or 0) * at.total + at.done


def place(
    root: pathlib.Path, folder: pathlib.Path | None, what: str, at: Progress
) -> str:
    """Which part of a run something is told of: "levels", "dense/trunk".

    Args:
      root: the folder of the logs.
      folder: of the part; None for none of its own.
      what: before the names of its stages.
      at: what was told.
    """
    inside = folder is not None and folder.is_relative_to(root)
    parts = list(folder.relative_to(root).parts) if folder and inside else []
    stage = "levels" if at.level is not None else at.stage
    parts += [slug(one) for one in (what, stage) if one.strip(" :")]
    return "/".join(parts)


def slug(name: str) -> str:
    """A name as a path: "one_shot: ticket of replica 0" is "one_shot/ticket/replica0"."""
    parts = re.split(r": | of ", name.strip(" :"))
    tidy = (re.sub(r" (?=\d+$)", "", part) for part in parts)
    return "/".join(re.sub(r"[^\w.\-]+", "_", part) for part in tidy)


def _measured(at: Progress, names: Sequence[str]) -> Values:
    """What was validated just now, without what was not recorded."""
    curves = at.curves
    validated = curves is not None and at.done > at.start and at.done in curves.steps
    if curves is None or at.resumed or not validated:
        return {}
    column = list(curves.steps).index(at.done)
    found = {}
    for row in range(at.rows):
        now = {name: float(x[row, column]) for name, x in curves.values.items()}
        known = {name: x for name, x in now.items() if np.isfinite(x)}
        if known:
            found[slug(names[row]) if row < len(names) else f"network{row}"] = known
    return found


# --- TensorBoard ----------------------------------------------------------------------


class TensorBoard:
    """Event files, a folder for each network.

    They are written at once, without the threads of tensorboardX: after a kill nothing is
    missing that the run has told.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Args: folder: of all event files."""
        self.folder = folder
        self._known: dict[str, int] = {}
        self._files: dict[str, Any] = {}

    def begin(self, place: str, step: int) -> None:
        """See `Log`: TensorBoard drops what older files have beyond this step."""
        self.close(place)
        self._known[place] = step

    def add(self, place: str, step: int, values: Values) -> None:
        """See `Log`."""
        from tensorboardX.proto import event_pb2, summary_pb2

        for network, own in values.items():
            file = self._file(place, network)
            scalars = [
                summary_pb2.Summary.Value(tag=name, simple_value=x)
                for name, x in own.items()
            ]
            summary = summary_pb2.Summary(value=scalars)
            file.write_event(
                event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
            )
            file.flush()

    def close(self, place: str) -> None:
        """See `Log`."""
        for path in [one for one in self._files if one.startswith(place + "/")]:
            self._files.pop(path).close()

    def _file(self, place: str, network: str) -> Any:
        """The file of a network, opened anew by each process."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        name = f"{place}/{network}"
        if name in self._files:
            return self._files[name]
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        # Files are named by the second, and an older one would be written over.
        number = len(list(folder.iterdir()))
        file = EventsWriter(os.fspath(folder / "events"), f".{number}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        after = self._known.get(place, -1) + 1
        file.write_event(
            event_pb2.Event(wall_time=time.time(), step=after, session_log=start)
        )
        self._files[name] = file
        return file


# --- Weights & Biases -----------------------------------------------------------------


class WandB:
    """One run of Weights & Biases for a folder, offline unless the user is logged in.

    What is known of it lies in FOLDER/wandb/lottery_jax.json: its id, which stays when the
    folder is moved, and at which of its steps the rows of each part of the run lie. A run
    that is taken up again so writes the same rows under the same steps, of which Weights &
    Biases keeps one, and what it adds to a part lies behind all others; to leave out what
    was written before would lose what a killed process had not yet brought to the disk.
    """

    def __init__(self, folder: pathlib.Path, config: Mapping[str, Any]) -> None:
        """Args: folder: of a group of replicas; config: what it is."""
        self.folder, self.config = folder, config
        self._run: Any = None
        self._id, self._pieces = "", dict[str, list[list[int]]]()

    @property
    def path(self) -> pathlib.Path:
        """Where the id is kept, and the pieces of each part: offset and last step."""
        return self.folder / "wandb" / "lottery_jax.json"

    def begin(self, place: str, step: int) -> None:
        """See `Log`: nothing, as rows are known by their steps."""

    def add(self, place: str, step: int, values: Values) -> None:
        """See `Log`."""
        if self._run is None:
            self._read()
            self._run = self._opened()
        at = self._at(place, step)
        about = {"id": self._id, "pieces": self._pieces}
        records.write_text(self.path, json.dumps(about) + "\n")
        line: dict[str, float] = {f"{place}/step": step}
        for network, own in values.items():
            line |= {f"{place}/{network}/{name}": x for name, x in own.items()}
        self._run.define_metric(f"{place}/*", step_metric=f"{place}/step")
        self._run.log(line, step=at)

    def _at(self, place: str, step: int) -> int:
        """The step of a row among those of the whole run."""
        own = self._pieces.setdefault(place, [])
        for offset, last in own:
            if step <= last:
                return offset + step
        every = [
            offset + last for pieces in self._pieces.values() for offset, last in pieces
        ]
        end = max(every, default=0)
        if own and sum(own[-1]) == end:
            own[-1][1] = step
        else:
            own.append([end - (own[-1][1] if own else 0), step])
        return own[-1][0] + step

    def close(self, place: str) -> None:
        """See `Log`: nothing; wandb ends its run with the process."""

    def _read(self) -> None:
        """What is known of the run, or the id of a new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = json.loads(self.path.read_text())
            self._id, self._pieces = found["id"], found["pieces"]
        except (OSError, ValueError, KeyError, TypeError):
            self._id = secrets.token_hex(4)

    def _opened(self) -> Any:
        """The run, which is made with the first value."""
        import wandb

        study = self.folder.resolve().parts[-2:]
        how: dict[str, Any] = dict(
            project=os.environ.get("WANDB_PROJECT", "lottery-jax"),
            dir=os.fspath(self.folder),
            id=self._id,
            name="/".join(study),
            group=study[0],
            config=dict(self.config),
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", init_timeout=15),
        )
        mode = wandb_mode(os.environ)
        try:
            return wandb.init(mode=mode, **how)
        except Exception:
            if mode != "online":
                raise
            return wandb.init(mode="offline", **how)  # no network


Mode: TypeAlias = Literal["online", "offline", "disabled"]


def wandb_mode(environment: Mapping[str, str]) -> Mode:
    """Whether runs are sent: only by those who are logged in and have not said otherwise.

    Whoever is not logged in would be asked for a key.

    Args:
      environment: the variables of the process.
    """
    if environment.get("WANDB_MODE") == "disabled":
        return "disabled"
    if environment.get("WANDB_MODE") == "offline":
        return "offline"
    if environment.get("WANDB_API_KEY"):
        return "online"
    host = environment.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        file = netrc.netrc(environment.get("NETRC"))
        known = file.authenticators(urllib.parse.urlparse(host).hostname or "")
    except (OSError, netrc.NetrcParseError):
        known = None
    return "online" if known else "offline"
