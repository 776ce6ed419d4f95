"""Networks that are compared on the paths between them."""

from experiments.presets.preset import Fields, Table
from experiments.presets.shared import (
    LENET,
    MLP_ENDS,
    MLP_PATHS,
    OPEN_LTH_IMAGENET,
    PAPER_PATHS,
    RESNET8_PATHS,
)

# Tables, several fields to a line.
# fmt: off

_BOTH = ("recompute", "interpolate")

_K_OF_THE_PAPER = (
    "0it", "100it", "250it", "500it", "1000it", "2000it", "4000it", "8000it"
)

_INSTABILITY_PAPER: Fields = dict(
    **PAPER_PATHS, rewind_steps=_K_OF_THE_PAPER, batch_norm=_BOTH
)

INSTABILITY: Table = {
    "mnist1d": (
        "An MLP on MNIST-1D is unstable to the noise of SGD at its initialisation and stable "
        "soon after. The demo: MLP 40-100-100-10, SGD 0.1, 3 inits x 3 branches, five k, "
        "with the control of restarted schedules; no download. Under a minute on 2 cores.",
        dict(**MLP_PATHS, schedules=("continued", "restarted")),
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST is stable to the noise of SGD from its "
        "initialisation. Adam 1.2e-3, 3,000 steps. Some minutes on 2 cores.",
        dict(
            **LENET, validation=0, rewind_steps=("0it", "100it", "300it", "1000it"),
            path_train=10_000, every=100,
        ),
    ),
    "resnet8-cifar10": (
        "A narrow ResNet-8 on CIFAR-10 is unstable to the noise of SGD at its initialisation "
        "and stable early in training. BatchNorm under both policies, 1,600 steps. About an "
        "hour on 2 cores.",
        dict(
            **RESNET8_PATHS,
            rewind_steps=("0it", "16it", "50it", "160it", "480it", "1000it"),
            batch_norm=_BOTH,
        ),
    ),
    "lenet-mnist-paper": (
        "Frankle et al.'s LeNet: MNIST, Adam 1.2e-3, batch 60, 24,000 steps.",
        {
            **LENET, "data": "mnist", "validation": 0, "initializer": "glorot_normal",
            "steps": "24000it", "rewind_steps": ("0it", "240it", "1200it", "4800it"),
            "every": 1000,
        },
    ),
    "resnet20-cifar10-paper": (
        "Frankle et al.'s ResNet-20: lr 0.1 with drops at 32,000 and 48,000 of 63,000 "
        "steps, eight k. GPU; interrupt and repeat at will.",
        # One init at a time: 24 branches fill a GPU, and their checkpoint can be carried.
        dict(**_INSTABILITY_PAPER, group_size=1),
    ),
    "resnet20-cifar10-short": (
        "The same in a third of the steps, six k, two branches of each state. GPU.",
        # A third of 0, 250, 500, 1,000, 2,000 and 8,000.
        {
            **_INSTABILITY_PAPER, "group_size": 1, "branches": 2, "steps": "21000it",
            "drops": ("10667it", "16000it"),
            "rewind_steps": ("0it", "83it", "167it", "333it", "667it", "2667it"),
        },
    ),
    "vgg16-cifar10-paper": (
        "Frankle et al.'s VGG-16, with the same schedule. GPU; interrupt and repeat.",
        {**_INSTABILITY_PAPER, "model": "vgg-16"},
    ),
    "imagenet-resnet50": (
        "Frankle et al.'s ResNet-50 on ImageNet: published as stable from epoch 18 of 90 "
        "on. Four k, 3 inits x 2 branches. For accelerators (not run).",
        {
            **OPEN_LTH_IMAGENET, "rewind_steps": ("0ep", "5ep", "18ep", "30ep"), "branches": 2,
            "batch_norm": ("recompute",), "alphas": 11, "path_test": 10_000,
            "path_train": 50_000, "validation": 50_000, "every": 1203, "group_size": 1,
        },
    ),
    "bert-tiny-sst2": (
        "Fine-tuning a pre-trained BERT on SST-2 is stable to the noise of SGD from its "
        "first step. 2 layers of width 128 (folder bert-tiny-mlm), AdamW 1e-3, 100 steps of "
        "32 sentences, 3 heads x 2 branches, three k. Some minutes on 2 cores.",
        dict(
            task="sentences", data="sst2", model="bert", pretrained="bert-tiny-mlm",
            validation=0, length=32, batch_size=32, optimizer="adamw",
            learning_rate=1e-3, weight_decay=0.01, schedule="linear", steps="100it",
            rewind_steps=("0it", "10it", "30it"), branches=2, alphas=11, path_train=500,
            every=50,
        ),
    ),
}

_REWINDING_MLP: Fields = dict(**MLP_PATHS, replicas=5)

_REWINDING_LENET: Fields = dict(
    **LENET, validation=0, levels=(0, 8), successive=False, alphas=15, path_train=5000,
)

_REWINDING_PAPER: Fields = dict(
    **PAPER_PATHS,
    rewind_steps=("0it", "100it", "250it", "500it", "1000it", "2000it", "8000it"),
    # 16.8%, the density of the paper.
    levels=(0, 8), successive=False, batch_norm="recompute", every=100,
)

REWINDING: Table = {
    "mnist1d": (
        "Subnetworks of an MLP on MNIST-1D match the dense network if and only if they are "
        "stable. Ticket, reinit and random mask at three densities and five k, 5 replicas x "
        "3 branches, and barriers between levels; no download. Some minutes on 2 cores.",
        _REWINDING_MLP,
    ),
    "mnist1d-retraining": (
        "Rewinding, of weights or of the learning rate alone, retrains a pruned MLP on "
        "MNIST-1D better than fine-tuning. A stepped learning rate, four ways to retrain, "
        "five retraining times. Some minutes.",
        dict(
            **_REWINDING_MLP, study="retraining", schedule="step",
            drops=("1500it", "2250it"),
            retrain_times=("300it", "1000it", "2000it", "2700it", "3000it"),
            levels=(0, 2, 4, 6, 8, 10),
        ),
    ),
    "mnist1d-batch-size": (
        "Larger batches make tickets of an MLP on MNIST-1D stable at k = 0, and widen their "
        "lead over fresh weights. Batches of 25 to 1,000 at equal epochs. Some minutes.",
        {
            **_REWINDING_MLP, "study": "batch_size", "batch_sizes": (25, 100, 400, 1000),
            "steps": "75ep", "levels": (0, 4, 7), "every": 10_000,
        },
    ),
    "lenet-fashion": (
        "At 17% of the weights, subnetworks of LeNet-300-100 on Fashion-MNIST match the "
        "dense network if and only if they are stable. Five k, 3 replicas. A quarter of an "
        "hour on 2 cores.",
        _REWINDING_LENET,
    ),
    "lenet-fashion-sparse": (
        "At 4.4% of the weights, subnetworks of LeNet-300-100 on Fashion-MNIST match the "
        "dense network if and only if they are stable. 36% per level. Ten minutes on 2 "
        "cores.",
        # Where the paper studies LeNet, at 3.5%, in larger steps.
        {
            **_REWINDING_LENET, "fraction": 0.36, "levels": (0, 7), "alphas": 11,
            "path_train": 2000, "path_test": 5000,
        },
    ),
    "resnet8-cifar10": (
        "A narrow ResNet-8 on CIFAR-10 at 25%, three k. Hours on 2 cores.",
        dict(
            **RESNET8_PATHS, rewind_steps=("0it", "160it", "480it"), levels=(0, 2),
            fraction=0.5, successive=False, batch_norm="recompute",
        ),
    ),
    "resnet20-cifar10-paper": (
        "Frankle et al.'s ResNet-20 at 16.8%, seven k. GPU; interrupt and repeat at will.",
        _REWINDING_PAPER,
    ),
    "vgg16-cifar10-paper": (
        "Frankle et al.'s VGG-16 at 1.4%, seven k. GPU; interrupt and repeat at will.",
        # 1.5%, the density of the paper.
        {**_REWINDING_PAPER, "model": "vgg-16", "levels": (0, 19)},
    ),
}

CURVES: Table = {
    "mnist1d": (
        "A trained curve joins two MLPs on MNIST-1D at low error where the line between them "
        "has a barrier. MLP 40-100-100-10, Adam 1e-3, 3 replicas; no download. About a "
        "minute on 2 cores.",
        MLP_ENDS,
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST, 3 replicas. Some minutes.",
        dict(**LENET, validation=0, path_train=5000, path_test=5000, plane=15),
    ),
}

ALIGNMENT: Table = {
    "mnist1d": (
        "Renumbering hidden units lowers the barrier between two MLPs on MNIST-1D. Three "
        "widths, Adam 1e-3, 3 replicas; no download. Some minutes on 2 cores.",
        MLP_ENDS,
    ),
    "resnet8-cifar10": (
        "A narrow ResNet-8 with BatchNorm on CIFAR-10, 3 replicas. Some minutes.",
        {
            **{k: v for k, v in RESNET8_PATHS.items() if k != "model"},
            "models": ("resnet-8-8",), "batch_norm": "recompute",
        },
    ),
}
