"""Tickets of one optimizer, trained by another: SGD and Adam as a 2 x 2.

Morcos et al. 2019, on transfer across optimizers. The task is the same, so the head stays;
a target's own ticket is then the native one itself. Each optimizer has a learning rate of
its own.
"""

import dataclasses

from experiments.transfer import pairs, study
from experiments.transfer.config import Config


def design(cfg: Config) -> pairs.Design:
    """Both optimizers on one data set, each a source and a target."""
    recipes = {
        "sgd": dataclasses.replace(
            cfg, optimizer="sgd", learning_rate=cfg.sgd_learning_rate
        ),
        "adam": dataclasses.replace(cfg, optimizer="adam"),
    }
    return pairs.Design(recipes, tuple(recipes), tuple(recipes), same_head=True)


EXPERIMENT = study.experiment(design)
"""The study of optimizers."""
