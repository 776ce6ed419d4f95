"""Tickets that travel: found on one task, trained on another.

    python -m experiments.transfer                  # parts of 8x8 scans, no download
    python -m experiments.transfer lenet            # MNIST, Fashion-MNIST, USPS, CIFAR-10

Tickets of every source, found by global pruning and late rewinding, are trained on every
target, beside the target's own (native) and random ones: a random mask on random weights.
The output layer is drawn anew. The same command continues an interrupted run.

Morcos et al., One ticket to win them all, 2019; Sabatelli et al., On the Transferability
of Winning Tickets in Non-Natural Image Datasets, 2020.
"""

import dataclasses

from experiments.transfer import matrix

STUDIES = {"matrix": matrix.EXPERIMENT}

EXPERIMENT = dataclasses.replace(
    matrix.EXPERIMENT, about=__doc__ or "", select=lambda cfg: STUDIES[cfg.study]
)
main = EXPERIMENT.main
