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

import dataclasses

from experiments.rewinding import batch_size, retraining, stability

STUDIES = {
    "stability": stability.EXPERIMENT,
    "retraining": retraining.EXPERIMENT,
    "batch_size": batch_size.EXPERIMENT,
}

EXPERIMENT = dataclasses.replace(
    stability.EXPERIMENT, about=__doc__ or "", select=lambda cfg: STUDIES[cfg.study]
)
main = EXPERIMENT.main
