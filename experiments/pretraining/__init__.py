"""Tickets of pre-trained networks: found in pre-training or downstream, from which start?

    python -m experiments.pretraining                          # ResNet-8, about an hour
    python -m experiments.pretraining --targets cifar10 --replicas 2

A network is pre-trained without labels (SimCLR) and with them, on the same images. From
its weights, and from random ones, iterative pruning finds tickets: on the pre-training
task itself, and on every downstream task. All are trained downstream, beside a random mask
on the same weights and the same mask on random weights. What is worth more, the weights
that training starts from or the mask? Which task should find it?

Chen et al., The Lottery Tickets Hypothesis for Supervised and Self-supervised Pre-training
in Computer Vision Models, 2021.
"""

from experiments import presets
from experiments.experiment import Experiment
from experiments.pretraining import compared, trained
from experiments.pretraining.config import Config, prepare

PRESETS = presets.make(Config, presets.PRETRAINING)

EXPERIMENT = Experiment(
    name="pretraining",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    default="resnet8-cifar10",
    tiny="--data digits --classes 5 --targets digits held_out --model conv-2-2 --kept conv_0 "
    "--labels 40 --batch-size 8 --steps 3it --warmup 1it --drops 2it --simclr-steps 3it "
    "--simclr-batch-size 8 --simclr-level-steps 2it --supervised-steps 3it "
    "--supervised-batch-size 8 --supervised-level-steps 2it --every 2 --levels 1 "
    "--replicas 2 --neighbours 3",
    prepare=prepare,
    one=trained.one,
    work=trained.work,
    judge=compared.judge,
    tables=compared.tables,
    figures=compared.figures,
    conclusions=compared.conclusions,
    error_alone=True,
)
main = EXPERIMENT.main
