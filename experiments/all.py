"""All experiments: what is in this list is listed, documented and tested."""

from typing import Any

from experiments import (
    alignment,
    curves,
    edge_popup,
    imp,
    instability,
    rewinding,
    supermask,
)
from experiments.experiment import Experiment

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    imp.EXPERIMENT,
    instability.EXPERIMENT,
    rewinding.EXPERIMENT,
    alignment.EXPERIMENT,
    curves.EXPERIMENT,
    supermask.EXPERIMENT,
    edge_popup.EXPERIMENT,
)
