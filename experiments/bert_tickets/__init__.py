"""Tickets of a pre-trained encoder, found on one task and trained on others.

    python -m experiments.bert_tickets                         # BERT-tiny, about an hour
    python -m experiments.bert_tickets --tasks mlm sst2 --replicas 2

Iterative pruning from the pre-trained weights (k = 0), 10% of all weights at a time, on
masked language modelling and on tasks of sentences. Beside each ticket stand a random mask,
the ticket's mask on random weights and on shuffled pre-trained ones. The masks of every task
are then trained on every other: is one of them at least as good as the task's own?

Chen et al., The Lottery Ticket Hypothesis for Pre-trained BERT Networks, 2020.
"""

from experiments import presets
from experiments.bert_tickets import compared, found
from experiments.bert_tickets.config import Config, prepare
from experiments.experiment import Experiment

PRESETS = presets.make(Config, presets.BERT_TICKETS)

EXPERIMENT = Experiment(
    name="bert_tickets",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    default="bert-tiny",
    tiny="--tasks mlm rte --corpus tiny_shakespeare --length 16 --lengths rte 12 "
    "--mlm-length 16 --subset 40 --evaluated 20 --mlm-evaluated 8 --batch-size 4 "
    "--mlm-batch-size 4 --steps 2it --mlm-steps 2it --repair-steps 2it --every 2 "
    "--levels 1 --transfer-level 1 --controls 1 --replicas 2",
    prepare=prepare,
    one=found.one,
    work=found.work,
    judge=compared.judge,
    tables=compared.tables,
    figures=compared.figures,
    conclusions=compared.conclusions,
    starts=True,
)
main = EXPERIMENT.main
