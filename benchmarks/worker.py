"""A process that prepares some programs, then times one of them whenever it is asked.

    python -m benchmarks.worker SPEC

SPEC is JSON: `setup` ("module:function"), its keyword `arguments`, `devices` (host
devices of JAX) or `threads` (of PyTorch), both of which must be known before the
libraries start, and `warm`, whether to call each program once before it is timed.
`setup` returns named programs: functions without arguments that return when their work
is done, with the number of units of work (replica-steps, products) or a dict of facts.

One line of JSON per answer on the standard output: `{"ready": [names]}`, then
`{"seconds": s, "value": units or facts}` for each name read from the standard input. The
name `costs` is answered with what the process has cost so far.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import monitor

COSTS = "costs"

Program = Callable[[], Any]
Programs = Mapping[str, Program]


def main(text: str) -> None:
    """Serves the programs of one spec until the standard input ends."""
    spec = json.loads(text)
    # Whatever prints must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    compiling = None
    if spec.get("devices"):
        import jax

        jax.config.update("jax_num_cpu_devices", spec["devices"])
        compiling = monitor.Compiling()
    if spec.get("threads"):
        import torch

        torch.set_num_threads(spec["threads"])
    module, name = spec["setup"].split(":")
    setup = getattr(importlib.import_module(module), name)
    programs: Programs = setup(**spec["arguments"])
    if spec["warm"]:
        for program in programs.values():
            program()
    print(json.dumps({"ready": list(programs)}), file=answers)
    for line in sys.stdin:
        begin = time.perf_counter()
        if line.strip() == COSTS:
            value = {"memory": monitor.peak_memory()}
            if compiling is not None:
                value["compiling"] = compiling.seconds()
        else:
            value = programs[line.strip()]()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "value": value}), file=answers)


if __name__ == "__main__":
    main(sys.argv[1])
