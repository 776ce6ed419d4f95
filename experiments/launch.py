"""How every experiment starts: presets, flags, devices.

    python -m experiments.NAME [PRESET] [--field value ...] [--out DIR]
    python -m experiments.NAME --from RUN --level L [--field value ...]
    python -m experiments.NAME [PRESET] [--field value ...] --plan [--rate STEPS/S]
    python -m experiments.NAME ... --distributed [--coordinator HOST:PORT --processes N
                                                  --process I]

Exit status: 0 when all is done, `UNFINISHED` (75, as EX_TEMPFAIL of sysexits.h) when
`--minutes` was nearly over and the same command goes on, 2 for an error, 130 when
interrupted.

This module must be imported before JAX is used: it makes one host device per core.
"""

import contextlib
import dataclasses
import difflib
import errno
import math
import os
import pathlib
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar, Union

import tyro

from experiments import identity, logs
from experiments.presets import Preset
from lottery_jax import errors, records
from lottery_jax.data.cache import cache_dir
from lottery_jax.execution import (
    Deadline,
    Execution,
    OutOfTimeError,
    Where,
    default_execution,
    processes,
)
from lottery_jax.execution.deadline import process_age
from lottery_jax.streams import SourceError

UNFINISHED = 75
"""Exit status of a run that has stopped in time and is not done."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

C = TypeVar("C")


class Processes(NamedTuple):
    """That several processes work on the run; see `processes.start`.

    Attributes:
      coordinator: `--coordinator`, HOST:PORT of the first; None to ask the cluster.
      number: `--processes`.
      this: `--process`.
    """

    coordinator: str | None = None
    number: int | None = None
    this: int | None = None


class Planned(NamedTuple):
    """That a run is only planned.

    Attributes:
      rate: `--rate`, replica-steps/s that hours are counted by; None for a known one.
    """

    rate: float | None = None


class Command(NamedTuple):
    """What was asked for on the command line.

    Attributes:
      config: the configuration.
      preset: the preset's name; for a retraining, the stored run's.
      source: `--from`, a stored run, or None.
      level: `--level`, of that run.
      processes: `--distributed` and its companions, or None for one process.
      planned: `--plan`, or None to run.
    """

    config: Any
    preset: str
    source: pathlib.Path | None = None
    level: int | None = None
    processes: Processes | None = None
    planned: Planned | None = None


def parse(
    name: str,
    presets: Mapping[str, Preset],
    default: str,
    about: str,
    arguments: Sequence[str] | None = None,
) -> Command:
    """Reads the command line; `--help` lists the presets.

    Args:
      name: of the experiment: that of its module.
      presets: by name.
      default: the preset that is meant if none is named.
      about: what it does, for `--help`.
      arguments: None for those of the command line.

    Raises:
      SystemExit: help was asked for, or the arguments are wrong; says how.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments)
    source, rest = _take(rest, "--from")
    level, rest = _take(rest, "--level")
    several, rest = _take_processes(rest)
    planned, rest = _take_planned(rest)
    if planned is not None and (source is not None or several is not None):
        fail("--plan: it says what one process does with a preset; leave the rest out")
    if (source is None) != (level is None):
        fail("--from RUN and --level L go together: which level of which run?")
    chosen = None
    if rest and not rest[0].startswith("-"):
        chosen = rest.pop(0)
        if chosen not in presets:
            close = difflib.get_close_matches(chosen, presets, 1)
            meant = f" (perhaps {close[0]!r}?)" if close else ""
            names = ", ".join(presets)
            fail(f"there is no preset {chosen!r}{meant}; choose one of {names}")
    program = f"python -m experiments.{name}"
    if source is not None and level is not None:
        if chosen is not None:
            fail(f"--from {source} brings its own configuration; leave {chosen!r} out")
        if not level.isdecimal():
            fail(f"--level {level}: it must be a whole number, 0 or more")
        folder = pathlib.Path(source)
        config = _stored(source, type(presets[default].config))
        program += " --from RUN --level L"
        config = _flags(config, rest, program, about)
        return Command(config, folder.name, folder, int(level), several)
    width = max(len(p) for p in presets)
    listing = "\n".join(
        textwrap.fill(
            p.help,
            95,
            initial_indent=f"  {n:<{width}}  ",
            subsequent_indent=" " * (width + 4),
        )
        for n, p in presets.items()
    )
    text = (
        f"{about}\n\nPresets (the first argument; without one: {default}):\n{listing}"
    )
    preset = chosen or default
    config = _flags(presets[preset].config, rest, f"{program} [PRESET]", text)
    return Command(config, preset, processes=several, planned=planned)


def written(name: str, presets: Mapping[str, Preset], command: Command) -> str:
    """A command as one would write it again: what differs from its preset, by flags.

    Args:
      name: of the experiment: that of its module.
      presets: by name.
      command: what was asked for.
    """
    words = ["python", "-m", f"experiments.{name}"]
    if command.source is not None:
        words += ["--from", str(command.source), "--level", str(command.level)]
        usual = _stored(str(command.source), type(command.config))
    else:
        words.append(command.preset)
        usual = presets[command.preset].config
    return shlex.join([*words, *changed(command.config, usual)])


def changed(config: C, usual: C) -> list[str]:
    """The flags of the fields that differ from the usual ones.

    What says nothing of the run (its folder, `--minutes`) is left out.

    Args:
      config: what was asked for, a dataclass.
      usual: one of the same kind.
    """
    words = []
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        stays = field.metadata.get("stored", True) and field.name != "out"
        if stays and value != getattr(usual, field.name):
            words += _flag(field.name, value)
    return words


def _flag(name: str, value: Any) -> list[str]:
    """A field as it is given on the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, tuple):
        return [f"--{flag}", *(str(one) for one in _flat(value))]
    return [f"--{flag}", str(value)]


def _flat(value: Any) -> Iterator[Any]:
    """What nested tuples hold, one after another."""
    for one in value:
        yield from _flat(one) if isinstance(one, tuple) else (one,)


def _flags(config: C, rest: list[str], program: str, text: str) -> C:
    """A configuration with the fields that flags change."""
    return tyro.cli(
        type(config), default=config, args=rest, prog=program, description=text
    )


def _stored(folder: str, kind: type[C]) -> C:
    """The configuration of a stored run, for a run of its own."""
    try:
        fields = records.read_config(errors.on_disk("--from", folder))
        if fields is None:
            fail(f"--from {folder}: there is no run (no config.json there)")
        return identity.from_stored(kind, {**fields, "out": None})
    except (ValueError, OSError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Ends the program like wrong arguments do: a line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _take_processes(rest: list[str]) -> tuple[Processes | None, list[str]]:
    """Removes `--distributed` and its companions from the arguments."""
    coordinator, rest = _take(rest, "--coordinator")
    number, rest = _take(rest, "--processes")
    index, rest = _take(rest, "--process")
    for flag, value in (("--processes", number), ("--process", index)):
        if value is not None and not value.isdecimal():
            fail(f"{flag} {value}: it must be a whole number, 0 or more")
    if "--distributed" not in rest:
        if (coordinator, number, index) != (None, None, None):
            fail("--coordinator, --processes and --process go with --distributed")
        return None, rest
    rest = [argument for argument in rest if argument != "--distributed"]
    several = Processes(
        coordinator,
        None if number is None else int(number),
        None if index is None else int(index),
    )
    return several, rest


def _take_planned(rest: list[str]) -> tuple[Planned | None, list[str]]:
    """Removes `--plan` and `--rate` from the arguments."""
    rate, rest = _take(rest, "--rate")
    if "--plan" not in rest:
        if rate is not None:
            fail("--rate goes with --plan")
        return None, rest
    rest = [argument for argument in rest if argument != "--plan"]
    if rate is None:
        return Planned(), rest
    try:
        steps = float(rate)
    except ValueError:
        steps = 0.0
    if not 0 < steps < math.inf:
        fail(f"--rate {rate}: it must be a number above 0, replica-steps/s")
    return Planned(steps), rest


def _take(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Removes `flag value` or `flag=value` from the arguments."""
    for i, argument in enumerate(arguments):
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :], arguments[:i] + arguments[i + 1 :]
        if argument == flag:
            if i + 1 == len(arguments):
                fail(f"{flag} needs a value")
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
    return None, arguments


def execution(config: Any) -> Execution | None:
    """How networks are to run, or None for stored or default settings."""
    fields = {
        name: getattr(config, name)
        for name, neutral in {
            **dict.fromkeys(Execution._fields),
            "data_parallel": 1,
            "activations": "float32",
        }.items()
        if getattr(config, name) != neutral
    }
    shards = fields.get("data_parallel", 1)
    if shards < 1 or config.batch_size % shards:
        raise ValueError(
            f"data_parallel={shards}; it must divide batch_size={config.batch_size}"
        )
    return default_execution()._replace(**fields) if fields else None


def where(
    config: Any,
    folder: pathlib.Path,
    meeting: processes.Meeting | None = None,
    deadline: Deadline | None = None,
) -> Where:
    """How a run is executed, where it lies, who logs it, and when it must have ended."""
    watch = None
    if config.log:
        watch = logs.Logs(config.log, folder, identity.as_config(config))
    return Where(
        execution(config),
        folder,
        config.checkpoint_seconds,
        watch,
        meeting=meeting,
        deadline=deadline,
        window=config.window_steps,
    )


def folder(out: str | None, usual: pathlib.Path) -> pathlib.Path:
    """The folder of a run; not made yet.

    Args:
      out: `--out`; None for the usual one.
      usual: where the run lies without it.

    Raises:
      ValueError: an address, or nothing can be written there: said before data are read.
    """
    path = errors.on_disk("out", out or usual)
    there = next(one for one in (path, *path.parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "is read-only" if there.is_dir() else "is a file"
        must = f"a folder that can be written; {there} {what}"
        raise errors.wrong("out", repr(os.fspath(path)), must)
    return path


def deadline(config: Any, arguments: Sequence[str] | None = None) -> Deadline | None:
    """When a command must have ended; None for no limit.

    Args:
      config: whose `minutes` say how long it may take.
      arguments: of the command; None for a process of its own, which counts from its start.

    Raises:
      ValueError: minutes that make no sense.
    """
    if config.minutes is None:
        return None
    return Deadline(config.minutes, age=process_age() if arguments is None else 0.0)


def chosen(
    commands: Mapping[str, type], prog: str, about: str | None, arguments: Any = None
) -> Any:
    """Which of several commands was given, with its options; none shows the help.

    Args:
      commands: what each is described by, by name.
      prog: what is called.
      about: the description.
      arguments: None for those of the command line.

    Raises:
      SystemExit: help was asked for, or the arguments are wrong; says how.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    kinds: list[Any] = [
        Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items()
    ]
    one: Any = Union[tuple(kinds)]
    return tyro.cli(one, args=rest, prog=prog, description=about)


def guarded(main: Callable[[], None], several: Processes | None = None) -> int:
    """Runs an experiment; errors of the user become a line and an exit status.

    So does a run that has stopped in time: `UNFINISHED`.
    """
    try:
        use_all_cores()
        if several is not None:
            processes.start(*several)
        main()
    except OutOfTimeError as stopped:
        print(stopped, file=sys.stderr)
        return UNFINISHED
    except (
        ValueError,
        OSError,
        ImportError,
        MemoryError,
        SourceError,
        processes.LostProcessError,
    ) as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        what = "; make room, and give the same command again" if full else ""
        print(f"error: {error}{what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def use_all_cores() -> None:
    """One host device per core, and compiled programs kept between runs.

    On a machine with accelerators the host devices are made and not used.
    """
    import jax

    config: Any = jax.config
    if config.jax_num_cpu_devices < 0:  # nobody has chosen a number
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        # Refused once JAX has started, in a notebook say: then with the devices there are.
        with contextlib.suppress(RuntimeError):
            config.update("jax_num_cpu_devices", cores)
    if config.jax_compilation_cache_dir is None:
        config.update("jax_compilation_cache_dir", os.fspath(cache_dir() / "xla"))
        config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
