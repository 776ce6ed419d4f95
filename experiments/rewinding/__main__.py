"""Rewinding: subnetworks are matching where they are stable, and what else retrains them.

    python -m experiments.rewinding                       # stability against k, MNIST-1D
    python -m experiments.rewinding mnist1d-retraining    # weights, learning rate, neither
    python -m experiments.rewinding mnist1d-batch-size    # the same link without rewinding

Three studies, one command. The same command continues an interrupted run.

Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020; Renda et
al., Comparing Rewinding and Fine-tuning, 2020; Maene et al., Towards Understanding
Iterative Magnitude Pruning, 2021; Paul et al., Unmasking the Lottery Ticket Hypothesis,
2023.
"""

import pathlib
import sys

from experiments import launch
from experiments.rewinding import batch_size, retraining, stability
from experiments.rewinding.config import NOT_IDENTITY, PRESETS
from lottery_jax import records

STUDIES = {
    "stability": stability,
    "retraining": retraining,
    "batch_size": batch_size,
}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    command = launch.parse(PRESETS, "mnist1d", __doc__ or "", arguments)
    cfg = command.config

    def work() -> None:
        digits = records.identity(records.as_config(cfg), NOT_IDENTITY)
        name = f"{command.preset}-{digits}"
        folder = pathlib.Path(cfg.out or pathlib.Path("results", "rewinding", name))
        study = STUDIES[cfg.study]
        study.report(study.run(cfg, folder), cfg, command.preset, folder)

    return launch.guarded(work)


if __name__ == "__main__":
    sys.exit(main())
