"""Tickets that are found cheaply and trained again under attack: boosting tickets.

    python -m experiments.adversarial                      # LeNet on Fashion-MNIST, minutes
    python -m experiments.adversarial collapse-mnist       # a network that is too small
    python -m experiments.adversarial --finders fgsm --densities 0.1 --replicas 2

Dense networks are trained at a small learning rate, on images as they are, under FGSM or
under PGD, and their largest weights are taken at once. From their initial values these are
trained again with PGD, by another recipe: a warm-up from the small to a large rate, then
drops; for several lengths. Beside each ticket stand its mask on fresh weights and on
shuffled ones, and dense networks. Robust and clean accuracy at the end, and the steps to a
given robust accuracy.

Published, for VGG-16 on CIFAR-10 at 20% of the weights (PGD-10, radius 8/255): robust 45.3
and clean 76.3% after 40 epochs, dense 44.8 and 77.2%; tickets of FGSM do as well as those of
PGD; small networks collapse to one class. Trained on images as they are, 20 epochs: 91.3%
boosted, 88.1% at the small rate.

Li et al., Towards Practical Lottery Ticket Hypothesis for Adversarial Training, 2020.
"""

from experiments import presets
from experiments.adversarial import compared, trained
from experiments.adversarial.config import Config, prepare
from experiments.experiment import Experiment

PRESETS = presets.make(Config, presets.ADVERSARIAL)

EXPERIMENT = Experiment(
    name="adversarial",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    default="lenet-fashion",
    tiny="--data digits --model mlp-4 --subset 200 --steps 2it --lengths 2it 4it "
    "--validate-every 2 --batch-size 20 --attack-steps 2 --measured-steps 2 --examples 20 "
    "--finders fgsm pgd --replicas 2",
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
