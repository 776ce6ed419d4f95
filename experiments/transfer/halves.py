"""Tickets of one half of a data set, trained on the other half.

Morcos et al. 2019, on transfer within a distribution. The halves are disjoint and of the
same classes, so the head stays.
"""

from experiments.transfer import matrix, pairs, study
from experiments.transfer.config import Config


def design(cfg: Config) -> pairs.Design:
    """Half a of the set is the source, half b the target."""
    source, target = (f"{cfg.data}-{half}" for half in "ab")
    recipes = {name: matrix.part(cfg, name) for name in (source, target)}
    return pairs.Design(recipes, (source,), (target,), same_head=True)


EXPERIMENT = study.experiment(design)
"""The study of halves."""
