"""Iterative pruning, tickets taken apart, pruning at initialisation."""

from experiments.presets.preset import Table
from experiments.presets.shared import (
    CIFAR,
    LENET,
    OPEN_LTH,
    OPEN_LTH_CIFAR,
    OPEN_LTH_IMAGENET,
    RESNET20,
    RESNET20_SHORT,
)

# Tables, several fields to a line.
# fmt: off

IMP: Table = {
    "mnist1d": (
        "Tickets of an MLP on MNIST-1D match the dense network where fresh weights and "
        "random masks fall behind. The demo: MLP 40-100-100-10, 5 replicas, 16 levels, no "
        "download. Under a minute on 2 cores.",
        {},
    ),
    "digits": (
        "MLP 64-100-100-10 on 1,797 real 8x8 scans, no download. Under a minute.",
        dict(
            data="digits", batch_size=32, learning_rate=2e-3, steps="600it", levels=12,
            validate_every=50,
        ),
    ),
    "lenet-fashion": (
        "Tickets of LeNet-300-100 on Fashion-MNIST match the dense network where fresh "
        "weights and random masks fall behind. Adam 1.2e-3, 3,000 steps, 3 replicas, 12 "
        "levels.",
        dict(**LENET, levels=12, replicas=3),
    ),
    "lenet-mnist-paper": (
        "Frankle and Carbin's numbers: LeNet-300-100 on MNIST, 50,000 steps, layerwise 20% "
        "and 10% for the output layer, 5 replicas. Hours on a CPU.",
        {
            **LENET, "data": "mnist", "initializer": "glorot_normal", "steps": "50000it",
            "scope": "layerwise", "rates": (("head", 0.1), ("dense", 0.2)), "levels": 19,
        },
    ),
    "open-lth-lenet": (
        "open_lth's mnist_lenet_300_100: SGD 0.1, 40 epochs, its counts, initialisation "
        "and untrained reinit; no validation split.",
        {
            **OPEN_LTH, "data": "mnist", "model": "lenet-300-100", "momentum": 0.0,
            "exclude": ("head",), "steps": "40ep", "validate_every": 469,
        },
    ),
    "open-lth-resnet20": (
        "open_lth's cifar_resnet_20: 160 epochs, lr 0.1 with two drops, k = 0. GPU.",
        dict(**OPEN_LTH_CIFAR, model="resnet-20"),
    ),
    "open-lth-vgg16": (
        "open_lth's cifar_vgg_16: 160 epochs, lr 0.1 with two drops, k = 0. GPU.",
        dict(**OPEN_LTH_CIFAR, model="vgg-16", exclude=("head",)),
    ),
    "resnet20-cifar10-standard": (
        "lr 0.1, batch 128, k = 0: the failure that Liu et al. and Gale et al. report; "
        "expect no gap between ticket and reinit. GPU.",
        RESNET20,
    ),
    "resnet20-cifar10-low": (
        "Works because the learning rate is low (0.01), at the price of dense accuracy. GPU.",
        {**RESNET20, "learning_rate": 0.01},
    ),
    "resnet20-cifar10-warmup": (
        "Works because of 10,000 steps of warm-up to lr 0.03. GPU.",
        {**RESNET20, "learning_rate": 0.03, "warmup": "10000it"},
    ),
    "resnet20-cifar10-rewind": (
        "Works because weights are rewound to step 500 instead of 0. GPU.",
        dict(**RESNET20, rewind_step="500it"),
    ),
    "resnet20-cifar10-warmup-short": (
        "The same in a third of the steps: 3,333 of 5,000 warm up. GPU.",
        {**RESNET20_SHORT, "learning_rate": 0.03, "warmup": "3333it"},
    ),
    "resnet20-cifar10-rewind-short": (
        "Rewinding to step 167, in a third of the steps. GPU.",
        dict(**RESNET20_SHORT, rewind_step="167it"),
    ),
    "resnet20-cifar10-batch1024": (
        "Works because large batches (1,024) make SGD less noisy (Maene et al.). GPU.",
        {
            **RESNET20, "batch_size": 1024, "steps": "120ep", "drops": ("80ep", "100ep"),
            "validate_every": 220,
        },
    ),
    "resnet8-cifar10": (
        "At a low learning rate, tickets of a narrow ResNet-8 on CIFAR-10 match the dense "
        "network and beat fresh weights. 60% per level, 1,000 steps: under an hour on 2 "
        "cores.",
        {
            **RESNET20, "model": "resnet-8-8", "batch_size": 64, "learning_rate": 0.01,
            "schedule": "constant", "drops": (), "steps": "1000it", "fraction": 0.6,
            "levels": 3, "validate_every": 250, "arms": ("ticket", "reinit"),
        },
    ),
    "oneshot-vs-iterative": (
        "One-shot, geometric and linear schedules to the same densities, in one figure.",
        dict(
            **LENET, levels=12, replicas=3,
            schedules=("geometric", "linear", "one_shot"),
            # Twelve equal steps to the density of geometric's level 12.
            linear_fraction=0.0776067, arms=("ticket",),
        ),
    ),
    "conv2-cifar10": (
        "Frankle and Carbin's Conv-2 on CIFAR-10 with their layerwise rates. GPU, or days.",
        dict(
            data="cifar10", model="conv-2", initializer="glorot_normal", batch_size=60,
            learning_rate=2e-4, steps="20000it", scope="layerwise",
            rates=(("head", 0.1), ("conv", 0.1), ("dense", 0.2)), levels=14,
            validate_every=500,
        ),
    ),
    "imagenet-resnet50": (
        "Frankle et al.'s ResNet-50 on ImageNet: 90 epochs of batches of 1,024, pruned at "
        "once to 30% and rewound to epoch 5; --rewind-step 0ep for the failure. Three "
        "replicas in one data order. For accelerators (not run).",
        {
            **OPEN_LTH_IMAGENET, "shared_order": True, "schedules": ("one_shot",),
            "fraction": 0.7, "levels": 1, "rewind_step": "5ep", "validate_every": 1252,
        },
    ),
    "imagenet-resnet50-iterative": (
        "The same in six levels of 20% to 26.2%. For accelerators (not run).",
        {
            **OPEN_LTH_IMAGENET, "shared_order": True, "levels": 6, "rewind_step": "5ep",
            "validate_every": 1252,
        },
    ),
    "imagenet-resnet50-init": (
        "Both, one-shot and iterative side by side, rewound to step 0. For accelerators "
        "(not run).",
        {
            **OPEN_LTH_IMAGENET, "shared_order": True, "schedules": ("one_shot", "geometric"),
            "levels": 6, "arms": ("ticket", "reinit"), "validate_every": 1252,
        },
    ),
    "tiny-imagenet-resnet18": (
        "A ResNet-18 with CIFAR's stem on TinyImageNet, 64 pixels: 200 epochs of SGD 0.2 "
        "with two drops, rewound to step 1,000, 12 levels, 3 replicas in one data order. "
        "For a GPU (not run).",
        # 372 steps are an epoch of what is not held out.
        {
            **CIFAR, "data": "tiny_imagenet", "model": "tiny-imagenet-resnet-18",
            "validation": 5000, "batch_size": 256, "learning_rate": 0.2,
            "drops": ("100ep", "150ep"), "steps": "200ep", "rewind_step": "1000it",
            "levels": 12, "replicas": 3, "validate_every": 1860, "shared_order": True,
        },
    ),
}

DECONSTRUCT: Table = {
    "mnist1d": (
        "What counts in a ticket of an MLP on MNIST-1D is a large final weight, the sign it "
        "began with, and 0 in place of the pruned. MLP 40-100-100-10, Adam 5e-3, 3 replicas; "
        "no download. About a minute on 2 cores.",
        dict(validation=0, steps="1000it"),
    ),
    "lenet-fashion": (
        "What counts in a ticket of LeNet-300-100 on Fashion-MNIST is a large final weight, "
        "the sign it began with, and 0 in place of the pruned. Adam 1.2e-3, 1,200 steps, 3 "
        "replicas, four densities. Some minutes on 2 cores.",
        {
            **LENET, "validation": 0, "initializer": "glorot_normal", "steps": "1200it",
            "levels": (1, 4, 8, 14), "untrained_levels": (1, 2, 4, 8, 12, 16), "every": 400,
        },
    ),
    "lenet-mnist-paper": (
        "Zhou et al.'s FC network: MNIST, Adam 1.2e-3, batch 60, 55 epochs, 24 levels, 5 "
        "replicas. A GPU, or hours.",
        {
            **LENET, "data": "mnist", "validation": 0, "initializer": "glorot_normal",
            "steps": "55ep", "levels": tuple(range(1, 25)), "replicas": 5, "every": 5000,
            "untrained_levels": tuple(range(1, 25)),
        },
    ),
}

AT_INIT: Table = {
    "mnist1d": (
        "Masks that are found at the initialisation of an MLP on MNIST-1D know no more than "
        "how many weights each layer keeps. The demo: MLP 40-100-100-10, four methods, four "
        "densities, shuffled, reinitialised and inverted, 3 replicas; no download. About a "
        "minute on 2 cores.",
        dict(steps="1000it"),
    ),
    "lenet-fashion": (
        "Masks that are found at the initialisation of LeNet-300-100 on Fashion-MNIST know "
        "no more than how many weights each layer keeps. Adam 1.2e-3, 1,500 steps, 3 "
        "replicas. Some minutes on 2 cores.",
        {**LENET, "steps": "1500it", "densities": (0.2, 0.05, 0.02, 0.01)},
    ),
    "conv2-fashion": (
        "Masks that are found at the initialisation of a narrow Conv-2 on Fashion-MNIST know "
        "no more than how many weights each layer keeps. 8 channels, 600 steps, 3 replicas. "
        "A quarter of an hour on 2 cores.",
        {
            **LENET, "model": "conv-2-8", "validation": 0, "steps": "600it",
            "validate_every": 600, "methods": ("snip", "grasp", "synflow"),
            "densities": (0.2, 0.05, 0.02, 0.01),
        },
    ),
    "resnet20-cifar10": (
        "ResNet-20 on CIFAR-10, as Frankle et al.: 160 epochs, lr 0.1 with two drops. For "
        "a GPU; no results are stored.",
        dict(
            **CIFAR, model="resnet-20", batch_size=128, drops=("80ep", "120ep"),
            steps="160ep", densities=(0.5, 0.2, 0.1, 0.05, 0.02), validate_every=391,
        ),
    ),
}

MA: Table = {
    "mnist1d": (
        "Tickets of an MLP on MNIST-1D meet the conditions of Ma et al. for a winning ticket "
        "at every learning rate. The demo: MLP 40-100-100-10, Adam at three rates, four "
        "densities, 3 replicas; no download. About a minute on 2 cores.",
        dict(steps="1000it"),
    ),
    "lenet-fashion": (
        "Tickets of LeNet-300-100 on Fashion-MNIST meet the conditions of Ma et al. for a "
        "winning ticket at every learning rate. 1,000 steps of Adam at three rates, four "
        "densities from 41% to 2.8%, 3 replicas. Some minutes on 2 cores.",
        # A quarter of the usual rate, this rate, and four times as much.
        {
            **LENET, "validation": 0, "steps": "1000it", "validate_every": 1000,
            "sweep_learning_rate": (3e-4, 1.2e-3, 4.8e-3),
        },
    ),
    "resnet20-cifar10-paper": (
        "Ma et al.'s ResNet-20 on CIFAR-10: 160 epochs of SGD at 0.005, 0.01 and 0.1, "
        "k = 0. For a GPU (not run).",
        dict(
            **CIFAR, model="resnet-20", batch_size=64, drops=("80ep", "120ep"),
            steps="160ep", sweep_learning_rate=(0.005, 0.01, 0.1), fraction=0.2, levels=11,
            max_density=0.5, validate_every=782,
        ),
    ),
}
