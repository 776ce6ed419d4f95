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
from experiments.rewinding.config import NOT_IDENTITY, PRESETS, Config

STUDIES = {
    "stability": stability,
    "retraining": retraining,
    "batch_size": batch_size,
}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""

    def work(cfg: Config, preset: str, folder: pathlib.Path) -> None:
        study = STUDIES[cfg.study]
        if (results := study.run(cfg, folder)) is not None:
            study.report(results, cfg, preset, folder)

    about = __doc__ or ""
    return launch.main(
        "rewinding",
        PRESETS,
        "mnist1d",
        about,
        NOT_IDENTITY,
        work,
        arguments,
        several=True,
    )


if __name__ == "__main__":
    sys.exit(main())
