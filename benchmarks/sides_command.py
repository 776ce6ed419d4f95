"""Commands of `experiments`, timed from outside: each a process with caches of its own."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.rows import Sizes
from benchmarks.run import ROOT, Programs, gigabytes


def _commands(flags: str) -> Iterator[tuple[str, pathlib.Path, subprocess.Popen, Any]]:
    """Starts `experiments.imp` with empty caches, and again with those of the first.

    Yields:
      "cold" or "warm", the run folder, the process, and the file of what it prints.
    """
    # The library that this process runs, which may be another checkout's.
    tree = sys.path[0] if pathlib.Path(sys.path[0], "experiments").is_dir() else ROOT
    with tempfile.TemporaryDirectory() as name:
        environment = dict(os.environ) | {"MPLBACKEND": "agg"}
        environment["LOTTERY_JAX_CACHE"] = f"{name}/cache"
        # Here the cache of compiled programs is part of what is timed.
        environment.pop("JAX_ENABLE_COMPILATION_CACHE", None)
        for kind in ("cold", "warm"):
            out = pathlib.Path(name) / kind
            command = [sys.executable, "-m", "experiments.imp", *flags.split()]
            with tempfile.TemporaryFile("w+") as output:
                process = subprocess.Popen(
                    [*command, "--out", str(out)],
                    cwd=tree,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                yield kind, out, process, output


def _checked(process: subprocess.Popen, status: int, output: Any) -> None:
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        output.seek(0)
        raise RuntimeError(f"{process.args} failed:\n{output.read()[-2000:]}")


def first_step(sizes: Sizes) -> Programs:
    """Facts: seconds until a command has written the first line of its metrics."""

    def facts() -> dict[str, float]:
        found = {}
        begin = time.perf_counter()
        for kind, out, process, output in _commands(sizes.flags):
            # A group of replicas has a folder of its own.
            while not any(path.stat().st_size for path in out.rglob("metrics.jsonl")):
                pid, status = os.waitpid(process.pid, os.WNOHANG)
                if pid:
                    _checked(process, status, output)
                    raise RuntimeError(f"{process.args} ended without a step")
                time.sleep(0.005)
            name = f"from the command to the first training step, {kind}"
            found[name] = time.perf_counter() - begin
            process.wait()  # its caches are those of the next one
            begin = time.perf_counter()
        return found

    return {"run": facts}


def demo(sizes: Sizes) -> Programs:
    """Facts: wall time and peak memory of a whole command."""

    def facts() -> dict[str, float]:
        found, peak = {}, 0.0
        begin = time.perf_counter()
        for kind, _, process, output in _commands(sizes.flags):
            # The usage of this child alone, where RUSAGE_CHILDREN has the largest so far.
            _, status, usage = os.wait4(process.pid, 0)
            found[f"wall time, {kind}"] = time.perf_counter() - begin
            _checked(process, status, output)
            peak = max(peak, gigabytes(usage.ru_maxrss))
            begin = time.perf_counter()
        return found | {"peak resident memory": peak}

    return {"run": facts}
