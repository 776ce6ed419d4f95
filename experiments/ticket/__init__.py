"""A ticket that was handed over: what it is, and whether it still wins.

    python -m experiments.ticket inspect FILE
    python -m experiments.ticket verify FILE --replicas 3

FILE is what a study stored: RUN/replicas-A-B/tickets/CHAIN/levelLL-replicaRR.safetensors.
Nothing else is needed, but the data that it was found on.
"""

from collections.abc import Sequence

from experiments import launch
from experiments.ticket.inspecting import Inspect, inspect
from experiments.ticket.verifying import Verify, verify


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status. Without arguments it shows the help.

    Args:
      arguments: None for those of the command line.

    Raises:
      SystemExit: help was asked for, or the arguments are wrong; says how.
    """
    commands = {"inspect": Inspect, "verify": Verify}
    command: Inspect | Verify = launch.chosen(
        commands, "python -m experiments.ticket", __doc__, arguments
    )
    if isinstance(command, Inspect):
        return launch.guarded(lambda: inspect(command))
    return launch.guarded(lambda: verify(command, launch.deadline(command, arguments)))
