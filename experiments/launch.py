"""How every experiment starts: presets, flags, devices.

    python -m experiments.NAME [PRESET] [--field value ...] [--out DIR]
    python -m experiments.NAME --from RUN --level L [--field value ...]
    python -m experiments.NAME ... --distributed [--coordinator HOST:PORT --processes N
                                                  --process I]

This module must be imported before JAX is used: it makes one host device per core.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import tyro

from lottery_jax import processes, records
from lottery_jax.data.cache import cache_dir
from lottery_jax.replicas import Execution, default_execution

C = TypeVar("C")


class Preset(NamedTuple):
    """A configuration with a name.

    Attributes:
      config: the frozen dataclass.
      help: one line for `--help`: what it shows, how long it takes.
    """

    config: Any
    help: str


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


class Command(NamedTuple):
    """What was asked for on the command line.

    Attributes:
      config: the configuration.
      preset: the preset's name; for a retraining, the stored run's.
      source: `--from`, a stored run, or None.
      level: `--level`, of that run.
      processes: `--distributed` and its companions, or None for one process.
    """

    config: Any
    preset: str
    source: pathlib.Path | None = None
    level: int | None = None
    processes: Processes | None = None


def parse(
    presets: Mapping[str, Preset],
    default: str,
    description: str,
    arguments: Sequence[str] | None = None,
) -> Command:
    """Reads the command line; `--help` lists the presets.

    Raises:
      SystemExit: help was asked for, or the arguments are wrong; says how.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments)
    source, rest = _take(rest, "--from")
    level, rest = _take(rest, "--level")
    several, rest = _take_processes(rest)
    if (source is None) != (level is None):
        fail("--from RUN and --level L go together: which level of which run?")
    name = None
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in presets:
            fail(f"there is no preset {name!r}; choose one of {', '.join(presets)}")
    config = presets[name or default].config
    kind = type(config)
    module = getattr(sys.modules[kind.__module__], "__spec__", None)
    # The configuration of an experiment in several files lies beside its __main__.
    whole = (module.name if module else kind.__module__).removesuffix(".config")
    program = f"python -m {whole}"
    if source is not None and level is not None:
        if name is not None:
            fail(f"--from {source} brings its own configuration; leave {name!r} out")
        if not level.isdecimal():
            fail(f"--level {level}: it must be a whole number, 0 or more")
        folder = pathlib.Path(source)
        try:
            stored = records.read_config(folder)
            if stored is None:
                fail(f"--from {source}: there is no run (no config.json there)")
            config = from_stored(kind, stored)
        except (ValueError, OSError) as error:
            fail(str(error))
        # A retraining is a run of its own.
        config = dataclasses.replace(config, out=None)
        program += " --from RUN --level L"
        parsed = tyro.cli(
            kind, default=config, args=rest, prog=program, description=description
        )
        return Command(parsed, folder.name, folder, int(level), several)
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
    text = f"{description}\n\nPresets (the first argument; without one: {default}):\n{listing}"
    program += " [PRESET]"
    parsed = tyro.cli(kind, default=config, args=rest, prog=program, description=text)
    return Command(parsed, name or default, processes=several)


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


def from_stored(kind: type[C], stored: Mapping[str, Any]) -> C:
    """A configuration from its JSON: lists become tuples again.

    Raises:
      ValueError: a field is unknown to this version.
    """

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(stored) - known)
    if unknown:
        raise ValueError(
            f"config.json has fields this version does not know: {unknown}"
        )
    return kind(**{name: tuples(value) for name, value in stored.items()})


def execution(config: Any) -> Execution | None:
    """How networks are to run, or None for stored or default settings."""
    fields = {
        name: value
        for name in ("devices", "chunk", "convolution", "precision")
        if (value := getattr(config, name)) is not None
    }
    if config.data_parallel != 1:
        fields["data_parallel"] = config.data_parallel
    return default_execution()._replace(**fields) if fields else None


def main(
    experiment: str,
    presets: Mapping[str, Preset],
    default: str,
    description: str,
    not_identity: Sequence[str],
    work: Callable[[Any, str, pathlib.Path], None],
    arguments: Sequence[str] | None = None,
    *,
    several: bool = False,
) -> int:
    """A whole command: reads the arguments, finds the run folder, works.

    Args:
      experiment: its name, and that of the folder in results/.
      presets: by name.
      default: the preset that is meant if none is named.
      description: for `--help`.
      not_identity: fields of the configuration that a run folder may change in.
      work: (configuration, preset's name, run folder).
      arguments: None for those of the command line.
      several: whether several processes can work on it.

    Returns:
      The exit status.
    """
    command = parse(presets, default, description, arguments)
    if command.source is not None:
        fail(f"--from: {experiment} trains no stored level again")
    if command.processes is not None and not several:
        fail(f"--distributed: {experiment} runs in one process")
    digits = records.identity(records.as_config(command.config), not_identity)
    usual = pathlib.Path("results", experiment, f"{command.preset}-{digits}")
    folder = pathlib.Path(command.config.out or usual)
    return guarded(
        lambda: work(command.config, command.preset, folder), command.processes
    )


def guarded(main: Callable[[], None], several: Processes | None = None) -> int:
    """Runs an experiment; errors of the user become a line and an exit status."""
    use_all_cores()
    try:
        if several is not None:
            processes.start(*several)
        main()
    except (
        ValueError,
        OSError,
        ImportError,
        MemoryError,
        processes.LostProcessError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
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
