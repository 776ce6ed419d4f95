"""An experiment is a value: what is run, what is concluded, and all that follows from it.

    EXPERIMENT = Experiment(name="curves", about=__doc__, config=Config, ...)
    main = EXPERIMENT.main

Identity and run folder, groups of replicas, several processes, what results say of their
origin, verdicts, tables, figures, the screen and `--help` are the same for all. What one
has of its own are functions:

    prepare(config) -> setup          checks, task, optimizer, plan
    one(setup, ids, where) -> results of a group of replicas
    judge(results, config) -> verdicts
    tables, figures, conclusions (outcome)
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

from experiments import (
    cost,
    display,
    groups,
    identity,
    launch,
    logs,
    plans,
    recipes,
)
from experiments.display import Judged, Rows
from experiments.launch import Command
from experiments.presets import Preset
from experiments.report import leave
from lottery_jax import errors, plots, records
from lottery_jax.execution import Deadline, Where, default_execution, processes
from lottery_jax.training import identity as origin
from lottery_jax.verdicts import ERROR, Metric

if TYPE_CHECKING:
    import xarray as xr

C = TypeVar("C")

_AT_LEAST = {"replicas": 1, "every": 1, "tolerance": 0, "checkpoint_seconds": 0}
_AT_LEAST |= {"group_size": 1}


class Outcome(NamedTuple):
    """What came out of a run, for tables and figures.

    Attributes:
      results: all of them.
      cfg: the configuration.
      preset: its name.
      judged: the verdicts.
    """

    results: "xr.Dataset"
    cfg: Any
    preset: str
    judged: list[Judged]

    @property
    def networks(self) -> str:
        """What was trained, for titles."""
        return f"{self.cfg.model} on {self.cfg.data}"

    @property
    def metric(self) -> Metric:
        """What networks are compared by."""
        return recipes.metric(self.cfg)


Drawn: TypeAlias = tuple[str, Any] | tuple[str, Any, Sequence[Judged]]
"""A figure with its name, and the verdicts that are written below it."""


def describe(outcome: Outcome) -> list[str]:
    """The verdicts, a line each; and, of claims at several places, how many hold."""
    lines = [one.verdict.describe() for one in outcome.judged]
    several = [
        one
        for own in display.by_claim(outcome.judged).values()
        for one in own * (len(own) > 1)
    ]
    return lines + display.claims(several)


@dataclasses.dataclass(frozen=True)
class Experiment(Generic[C]):
    """A command `python -m experiments.NAME`, and all that it does.

    Attributes:
      name: of its module, and of its folder in results/.
      about: what it shows, for `--help`: the module's docstring.
      config: the frozen dataclass of its fields: a `Recipe` and a `Where`. Replicas are
        independent and run in groups, unless `replicas` belongs to the identity: then
        they are compared with each other and run together, in one process.
      presets: by name.
      default: the preset that is meant if none is named.
      tiny: flags that make a run of the default preset a matter of seconds, for tests.
      prepare: what all groups share, before a folder is made; raises a ValueError that
        names the first field that makes no sense.
      one: runs a group of replicas, by ids, or what is missing of it.
      work: what a run computes, of what `prepare` has made; for `--plan`.
      judge: the verdicts on results.
      tables: of an outcome.
      figures: their names and matplotlib figures; the first is named on the screen. A
        third entry says which verdicts are about a figure: they are written below it.
        Without one the first figure bears all verdicts, and another none.
      conclusions: a line each.
      complete: for studies that grow in more than replicas: whether results hold all
        that a configuration asks for.
      again: for `--from`: (config, run, level, folder of the new run, deadline) -> its
        results.
      select: for one command of several studies: the one that a configuration means.
      starts: whether its networks begin with `recipe.pretrained`. A configuration that
        names weights is refused by all others, which would draw theirs.
      error_alone: whether it compares networks by their error, whatever their task: tasks
        with another metric are refused.
    """

    name: str
    about: str
    config: type[C]
    presets: Mapping[str, Preset[C]]
    tiny: str
    prepare: Callable[[C], Any]
    one: Callable[[Any, list[int], Where], "xr.Dataset"]
    judge: Callable[["xr.Dataset", C], list[Judged]]
    tables: Callable[[Outcome], Sequence[Rows]]
    figures: Callable[[Outcome], Iterable[Drawn]]
    conclusions: Callable[[Outcome], list[str]] = describe
    default: str = "mnist1d"
    work: Callable[[Any], cost.Work] | None = None
    complete: Callable[["xr.Dataset", C], bool] | None = None
    again: (
        Callable[[C, pathlib.Path, int, pathlib.Path, Deadline | None], "xr.Dataset"]
        | None
    ) = None
    select: Callable[[C], "Experiment"] | None = None
    starts: bool = False
    error_alone: bool = False

    @property
    def together(self) -> bool:
        """Whether replicas are compared with each other, and so run together."""
        return "replicas" not in identity.free(self.config)

    def of(self, cfg: C) -> "Experiment[C]":
        """The study that a configuration means: itself, if there is no other."""
        return self.select(cfg) if self.select else self

    # --- running

    def check(self, cfg: C) -> None:
        """Finds what makes no sense in fields that all experiments share.

        Raises:
          ValueError: names the field.
        """
        for field, least in _AT_LEAST.items():
            if field == "replicas" and self.together:
                least = 2
            if getattr(cfg, field, None) is not None:
                errors.at_least(field, getattr(cfg, field), least)
        size, replicas = cfg.group_size, cfg.replicas  # type: ignore[attr-defined]
        if self.together and size is not None and size < replicas:
            must = f"at least replicas={replicas}: {self.name} compares them"
            raise errors.wrong("group_size", size, must)
        if (given := getattr(cfg, "pretrained", "")) and not self.starts:
            must = f"empty: the networks of {self.name} begin with draws"
            raise errors.wrong("pretrained", repr(given), must)
        if self.error_alone and (metric := recipes.metric(cfg)) != ERROR:  # type: ignore[arg-type]
            must = f"one whose networks are compared by their error, for {self.name}"
            name = f"{cfg.task!r} (compared by {metric.name})"  # type: ignore[attr-defined]
            raise errors.wrong("task", name, must)
        logs.check(cfg.log)  # type: ignore[attr-defined]
        (launch.execution(cfg) or default_execution()).check()

    def run(
        self, cfg: C, folder: pathlib.Path, deadline: Deadline | None = None
    ) -> "xr.Dataset | None":
        """Runs what is missing in a run folder, and returns all results.

        With several processes the first one returns them, the others None.

        Args:
          cfg: the configuration.
          folder: of the run.
          deadline: when this call must have ended; None for no limit.

        Raises:
          ValueError: a field that makes no sense, or the folder of another run; names
            the fields.
          OutOfTimeError: the deadline is near; the same call goes on.
        """
        this = self.of(cfg)
        found = this.stored(cfg, folder)
        this.check(cfg)
        setup = this.prepare(cfg)
        if found is not None:
            claim(folder, setup, launch.where(cfg, folder, None))
            return found
        config, free = identity.as_config(cfg), identity.free(this.config)
        replicas: int = cfg.replicas  # type: ignore[attr-defined]

        def one(
            group: pathlib.Path,
            ids: list[int],
            meeting: processes.Meeting | None = None,
        ) -> "xr.Dataset":
            where = launch.where(cfg, group, meeting, deadline)
            claim(folder, setup, where)
            results = this.one(setup, ids, where)
            results.attrs |= groups.of_streams(where.waited)
            return results

        def all_together() -> "xr.Dataset":
            results = one(folder, list(range(replicas)))
            results.attrs["config"] = json.dumps(config)
            return results

        if this.together:
            records.claim_folder(folder, config, free)
            return groups.once(folder / "results.nc", all_together)
        return groups.run(
            folder,
            config,
            free,
            replicas,
            one,
            grows=this.complete is not None,
            size=cfg.group_size,  # type: ignore[attr-defined]
            deadline=deadline,
        )

    def stored(self, cfg: C, folder: pathlib.Path) -> "xr.Dataset | None":
        """The results in a folder, if they hold all that is asked for.

        Raises:
          ValueError: the folder holds a run with another configuration.
        """
        path = folder / "results.nc"
        if not records.intact(path):
            return None
        found, replicas = records.load(path), cfg.replicas  # type: ignore[attr-defined]
        if not 0 < replicas <= found.sizes["replica"]:
            return None
        if self.complete and not self.complete(found, cfg):
            return None
        # What it says of its size stays, when less is asked for.
        own, free = records.read_config(folder) or {}, identity.free(self.config)
        size = {name: own[name] for name in free if name in own}
        records.claim_folder(folder, identity.as_config(cfg) | size, free)
        return found

    # --- what came out

    def report(
        self,
        results: "xr.Dataset",
        cfg: C,
        preset: str,
        folder: pathlib.Path,
        command: str = "",
    ) -> None:
        """Figures, tables and verdicts, on the disk and on the screen.

        Args:
          results: all of them, as they are stored in the folder.
          cfg: the configuration.
          preset: its name.
          folder: of the run.
          command: that made them, as one would write it again.
        """
        this = self.of(cfg)
        outcome = Outcome(results, cfg, preset, this.judge(results, cfg))
        figures: list[str] = []
        for name, figure, *about in this.figures(outcome):
            if not figures and not about:
                about = [outcome.judged]
            lines = [line for judged in about for line in display.claims(judged)]
            plots.caption(figure, lines)
            plots.save(figure, folder / "figures" / name)
            figures.append(name)
        tables, lines = this.tables(outcome), this.conclusions(outcome)
        display.leave(folder, outcome.judged, tables, lines)
        shows = self.presets[preset].help if preset in self.presets else ""
        said = display.note(
            folder,
            outcome.judged,
            experiment=self.name,
            preset=preset,
            shows=shows,
            command=command,
            figures=figures,
        )
        if note := results.attrs.get("note"):
            lines = [*lines, f"Data: {note}"]
        lines = [*lines, *groups.streams_in_words(results)]
        first = folder / "figures" / f"{figures[0]}.png" if figures else None
        report = leave(folder, results.assign_attrs(said))
        display.show(tables, [*lines, "", report, f"Figure: {first}"])

    # --- the command

    def parse(self, arguments: Sequence[str] | None = None) -> Command:
        """Reads the command line; see `launch.parse`."""
        return launch.parse(
            self.name, self.presets, self.default, self.about, arguments
        )

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """The command; returns the exit status."""
        command = self.parse(arguments)
        if command.planned is not None:
            return launch.guarded(lambda: self._plan(command))
        if command.source is not None and self.again is None:
            launch.fail(f"--from: {self.name} trains no stored level again")
        if command.processes is not None and self.together:
            launch.fail(f"--distributed: {self.name} runs in one process")
        return launch.guarded(
            lambda: self._work(command, launch.deadline(command.config, arguments)),
            command.processes,
        )

    def _plan(self, command: Command) -> None:
        cfg, this = command.config, self.of(command.config)
        if this.work is None or command.planned is None:
            raise ValueError(f"--plan: {self.name} does not say what it trains")
        this.check(cfg)
        name, rate = f"{self.name} {command.preset}", command.planned.rate
        plans.show(name, cfg, this.prepare, this.work, rate)

    def _work(self, command: Command, deadline: Deadline | None) -> None:
        cfg, source, level = command.config, command.source, command.level
        digits = identity.digits(cfg)
        if source is not None and level is not None and self.again is not None:
            if processes.count() > 1:
                raise ValueError("--from: a level is trained again by one process")
            usual = source / "retrained" / f"level{level:02d}-{digits}"
            folder = launch.folder(cfg.out, usual)
            self.check(cfg)
            results: xr.Dataset | None = self.again(
                cfg, source, level, folder, deadline
            )
        else:
            usual = pathlib.Path("results", self.name, f"{command.preset}-{digits}")
            folder = launch.folder(cfg.out, usual)
            results = self.run(cfg, folder, deadline)
        if results is not None and processes.index() == 0:
            written = launch.written(self.name, self.presets, command)
            self.report(results, cfg, command.preset, folder, written)


def claim(folder: pathlib.Path, setup: Any, where: Where) -> None:
    """Notes what the numbers of a run follow from, or checks that it is the same.

    The configuration names data and models; what these are may change under their names,
    and results of before are never given out as those of now.

    Args:
      folder: of the run.
      setup: from `prepare`: a `Setup`, or several by their names.
      where: it runs.

    Raises:
      ValueError: another task, data or optimizer, or other weights to start from; names
        them.
    """
    fields: origin.Fields = {"kind": "run"} | origin.of_draws()
    named = setup if isinstance(setup, Mapping) else {"": setup}
    for name, (cfg, task, tx, *_) in named.items():
        swept = recipes.sweep(cfg, task.steps_per_epoch)
        own = origin.of_task(task, _DETERMINE, ("test",))
        own |= origin.of_data(task, where)
        own |= origin.of_optimizer(task, tx, tuple(swept))
        if begins := recipes.start_digest(cfg):
            own["start"] = begins
        fields |= {f"{name} {field}".strip(): value for field, value in own.items()}
    path, found = folder / "identity.json", {}
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged: {error}; choose another folder"
            ) from None
    elif not any(folder.rglob("*.nc")):
        records.write_text(path, json.dumps(origin.stored(fields), indent=1) + "\n")
        return
    origin.check(folder, "another run", found, fields)


_DETERMINE = (
    "init",
    "order",
    "batch",
    "loss",
    "steps_per_epoch",
    "prunable",
    "exclude",
)


def dataset(
    cfg: Any,
    found: Mapping[str, tuple[tuple[str, ...], Any]],
    coordinates: Mapping[str, Any],
    **attributes: Any,
) -> "xr.Dataset":
    """Records with named axes, and where they come from.

    Args:
      cfg: the configuration.
      found: arrays with the names of their axes.
      coordinates: labels of the axes.
      **attributes: beside the environment and what must be said of the data.
    """
    more = {"note": note} if (note := recipes.note(cfg)) else {}
    attributes = {**records.environment(), **attributes, **more}
    return records.dataset(found, coordinates, attributes)
