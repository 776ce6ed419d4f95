"""A command of `experiments` that ends when its first training segment is done.

    python -m benchmarks.startup BEGIN imp mnist1d --levels 0 --steps 1it ...

BEGIN is the time in seconds since the epoch at which the command was given. Prints, as
JSON, how the time until the end of the first segment was spent.
"""

import json
import os
import sys
import time

_STARTED = time.time()


def main(begin: float, experiment: str, arguments: list[str]) -> int:
    """Runs the command; does not return if it trains."""
    import importlib

    command = importlib.import_module(f"experiments.{experiment}")
    from benchmarks import monitor
    from benchmarks.stopwatch import Interval, Stopwatch

    compiling = monitor.Compiling(time.time)
    imported = time.time()
    watch = Stopwatch(time.time)
    watch.also(command, "make_task", "data and task")

    def stop(interval: Interval) -> None:
        if interval.name != "train":
            return
        task = sum(f.stop - f.start for f in watch.functions)
        traced = sum(compiling.seconds(f.start, f.stop) for f in watch.functions)
        in_step = compiling.seconds(interval.start, interval.stop)
        step = interval.stop - interval.start - in_step
        parts = {
            "the interpreter": _STARTED - begin,
            "imports": imported - _STARTED,
            "data and task": task - traced,
            "tracing, lowering and compiling": compiling.seconds(),
            "the first segment": step,
        }
        whole = interval.stop - begin
        parts["everything else"] = whole - sum(parts.values())
        found = {"seconds": whole, "parts": parts, "memory": monitor.peak_memory()}
        # Onto the standard output that was there before the command's own.
        os.write(answers, (json.dumps(found) + "\n").encode())
        os._exit(0)

    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    watch.tell(stop)
    with watch:
        return command.main(arguments)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
    sys.exit("the command trained nothing")
