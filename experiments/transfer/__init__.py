"""Tickets that travel: found on one task, trained on another.

    python -m experiments.transfer                  # parts of 8x8 scans, no download
    python -m experiments.transfer lenet            # MNIST, Fashion-MNIST, USPS, CIFAR-10
    python -m experiments.transfer optimizers       # SGD <-> Adam, a 2 x 2
    python -m experiments.transfer halves           # disjoint halves of one set
    python -m experiments.transfer few              # to 1% and 10% of a set
    python -m experiments.transfer size             # from larger and richer sources
    python -m experiments.transfer structure        # masks alone, and dense weights

Tickets of every source, found by global pruning and late rewinding, are trained on every
target, beside the target's own (native) and random ones: a random mask on random weights.
The output layer is drawn anew. The same command continues an interrupted run.

Morcos et al., One ticket to win them all, 2019; Sabatelli et al., On the Transferability
of Winning Tickets in Non-Natural Image Datasets, 2020.
"""

import dataclasses

from experiments.transfer import few, halves, matrix, optimizers, size, structure

STUDIES = {
    "matrix": matrix.EXPERIMENT,
    "optimizers": optimizers.EXPERIMENT,
    "halves": halves.EXPERIMENT,
    "few": few.EXPERIMENT,
    "size": size.EXPERIMENT,
    "structure": structure.EXPERIMENT,
}

EXPERIMENT = dataclasses.replace(
    matrix.EXPERIMENT, about=__doc__ or "", select=lambda cfg: STUDIES[cfg.study]
)
main = EXPERIMENT.main
