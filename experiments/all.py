"""All experiments: what is in this list is listed, documented and tested."""

from typing import Any

from experiments import (
    adversarial,
    alignment,
    at_init,
    bert_tickets,
    curves,
    deconstruct,
    early_bird,
    edge_popup,
    gale,
    imp,
    instability,
    language,
    liu,
    ma,
    pretraining,
    reinforcement,
    rewinding,
    strong_lth,
    supermask,
    transfer,
)
from experiments.experiment import Experiment

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    imp.EXPERIMENT,
    instability.EXPERIMENT,
    rewinding.EXPERIMENT,
    alignment.EXPERIMENT,
    curves.EXPERIMENT,
    deconstruct.EXPERIMENT,
    supermask.EXPERIMENT,
    edge_popup.EXPERIMENT,
    at_init.EXPERIMENT,
    strong_lth.EXPERIMENT,
    transfer.EXPERIMENT,
    ma.EXPERIMENT,
    early_bird.EXPERIMENT,
    liu.EXPERIMENT,
    gale.EXPERIMENT,
    bert_tickets.EXPERIMENT,
    language.EXPERIMENT,
    pretraining.EXPERIMENT,
    reinforcement.EXPERIMENT,
    adversarial.EXPERIMENT,
)
