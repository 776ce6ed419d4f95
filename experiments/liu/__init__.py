"""Where tickets fail, and the cure: learning rate, warm-up, rewinding, larger batches.

    python -m experiments.liu                      # MLP on MNIST-1D
    python -m experiments.liu resnet8-cifar10      # a narrow ResNet-8 with BatchNorm

Tickets and the same masks on fresh weights (reinit), at a low and a high learning rate. From
the initialisation (k = 0) the ticket is said to be the better one at the low rate only, where
the dense network is worse than it can be; at the high rate each cure is said to bring the gap
between the two back: warm-up, rewinding to a step k > 0, and a larger batch, whose SGD is
less noisy. Rates and warm-ups train as replicas of one program. Dense at its best rate stands
beside everything.

Liu et al., Rethinking the Value of Network Pruning, 2019; Gale et al., The State of Sparsity
in Deep Neural Networks, 2019; Frankle et al., Linear Mode Connectivity and the Lottery Ticket
Hypothesis, 2020; Maene et al., Towards Understanding Iterative Magnitude Pruning, 2021; Ma et
al., Sanity Checks for Lottery Tickets, 2021.
"""

from experiments.experiment import Experiment
from experiments.liu.compared import conclusions, figures, judge, tables
from experiments.liu.config import PRESETS, Config
from experiments.liu.trained import one, prepare, work

EXPERIMENT = Experiment(
    name="liu",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-8 --subset 200 --steps 4it --validate-every 4 --levels 1 "
    "--sweep-learning-rate 1e-3 1e-2 --sweep-warmup 0it 2it --rewind-steps 2it "
    "--batch-sizes 200 --replicas 2",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
)
main = EXPERIMENT.main
