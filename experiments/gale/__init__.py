"""Pruning during training against lottery tickets: the comparison of Gale et al.

    python -m experiments.gale                                 # MLP on MNIST-1D
    python -m experiments.gale lenet-fashion

Prunes networks while they train (gradual magnitude pruning), and trains the masks that come
out again: from the initialisation that they grew from (lottery) and from a fresh one
(scratch), for as many steps and for more. Beside them stand iterative magnitude pruning, at
as many steps for each level and at as many steps in all; networks that are sparse all the
time (RigL, SET, a fixed random mask); and the dense network, also at its best learning
rate.

Gale, Elsen and Hooker, The State of Sparsity in Deep Neural Networks, 2019, section 5.
"""

from experiments import presets
from experiments.experiment import Experiment
from experiments.gale import compared, trained
from experiments.gale.config import Config, prepare

PRESETS = presets.make(Config, presets.GALE)

EXPERIMENT = Experiment(
    name="gale",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-8 --subset 200 --steps 6it --update-begin 1it --update-end 4it "
    "--update-every 2 --validate-every 6 --levels 1 --sweep-learning-rate 5e-3 1e-2 "
    "--replicas 2",
    prepare=prepare,
    one=trained.one,
    work=trained.work,
    judge=compared.judge,
    tables=compared.tables,
    figures=compared.figures,
    conclusions=compared.conclusions,
)
main = EXPERIMENT.main
