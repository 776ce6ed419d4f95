"""Tickets on other data and by other optimizers."""

from experiments.presets.preset import Fields, Table
from experiments.presets.shared import (
    CIFAR,
    IMAGENET,
    LENET,
)

# Tables, several fields to a line.
# fmt: off

# All sets as 28x28 grey images, so that one network fits them all. Steps in iterations:
# epochs of different sets differ.
_GREY: Fields = dict(
    inputs="grey28", datasets=("mnist", "fashion_mnist", "usps", "cifar10"),
)

_SCANS: Fields = dict(
    data="digits", model="mlp-100-100", batch_size=32, learning_rate=2e-3, steps="600it",
    rewind_step="30it", levels=(5, 9, 13, 16),
)

# Few levels, each of half the weights: 25% to 3.1%.
_STUDY: Fields = {
    **LENET, "inputs": "grey28", "fraction": 0.5, "levels": (2, 3, 4, 5),
    "rewind_step": "100it", "steps": "1500it", "every": 750,
}

TRANSFER: Table = {
    "digits": (
        "Tickets of an MLP on some 8x8 scans train on others as well as their own. The demo: "
        "two halves of the scans and their first five classes, 3 replicas, four densities; "
        "no download. Under a minute on 2 cores.",
        _SCANS,
    ),
    "lenet": (
        "Tickets of LeNet-300-100 found on one of four sets of images train on each other "
        "one as well as its own. MNIST, Fashion-MNIST, USPS and grey CIFAR-10: 4 sources x 4 "
        "targets at 8 densities from 64% to 2.8%, 2,000 steps, 3 replicas. A quarter of an "
        "hour on 2 cores.",
        {
            **LENET, **_GREY, "steps": "2000it", "rewind_step": "100it", "every": 1000,
            "levels": (2, 4, 6, 8, 10, 12, 14, 16),
        },
    ),
    "conv2": (
        "Tickets of a narrow Conv-2 travel between Fashion-MNIST and grey CIFAR-10 and train "
        "as well as native ones. 8 channels, 400 steps, at four densities from 26% to 3.5%, "
        "3 replicas. Ten minutes on 2 cores.",
        # Three rounds of 20% in one.
        {
            **LENET, **_GREY, "model": "conv-2-8", "datasets": ("fashion_mnist", "cifar10"),
            "steps": "400it", "rewind_step": "20it", "every": 200, "fraction": 0.488,
            "levels": (2, 3, 4, 5),
        },
    ),
    "optimizers": (
        "Tickets of LeNet-300-100 on Fashion-MNIST that SGD found train with Adam as well as "
        "Adam's own, and the other way round. Two minutes on 2 cores.",
        {**_STUDY, "study": "optimizers"},
    ),
    "halves": (
        "Tickets of LeNet-300-100 found on one half of Fashion-MNIST train on the other half "
        "as well as its own. Two minutes on 2 cores.",
        {**_STUDY, "study": "halves", "steps": "2000it", "every": 1000},
    ),
    "few": (
        "On few examples of Fashion-MNIST, tickets of LeNet-300-100 found on many beat those "
        "that the few find. All of Fashion-MNIST and of MNIST, on 1% and 10% of "
        "Fashion-MNIST. Three minutes on 2 cores.",
        {**_STUDY, "study": "few", "datasets": ("mnist",), "shares": (0.01, 0.1)},
    ),
    "size": (
        "The more examples and classes a ticket of LeNet-300-100 is found on, the better it "
        "trains on other data. 10, 30, 50 and 100% of Fashion-MNIST and five of its classes, "
        "on MNIST and USPS. Three minutes on 2 cores.",
        {
            **_STUDY, "study": "size", "datasets": ("mnist", "usps"), "steps": "1000it",
            "every": 500,
        },
    ),
    "structure": (
        "A ticket's mask travels without its weights: LeNet-300-100 from MNIST and grey "
        "CIFAR-10 to Fashion-MNIST. Beside tickets and fine-tuned dense weights. Three "
        "minutes on 2 cores.",
        {
            **_STUDY, "study": "structure", "datasets": ("mnist", "cifar10"),
            "carried": ("ticket", "structure", "dense"),
        },
    ),
    "digits-optimizers": (
        "The demo of optimizers: an MLP on 8x8 scans; no download. Under a minute on 2 "
        "cores.",
        {**_SCANS, "study": "optimizers"},
    ),
    "resnet20-cifar-paper": (
        "Morcos et al.'s protocol with a ResNet-20: CIFAR-10, CIFAR-100 and SVHN in "
        "colour, 30 levels, 6 replicas, k of one epoch. For a GPU (not run).",
        # No flips: SVHN shows digits.
        {
            **CIFAR, "augment": ("crop",), "datasets": ("cifar10", "cifar100", "svhn"),
            "model": "resnet-20", "batch_size": 128, "drops": ("20000it", "30000it"),
            "steps": "40000it", "rewind_step": "400it", "levels": tuple(range(2, 31, 4)),
            "replicas": 6, "every": 1000,
        },
    ),
    "resnet50-imagenet-paper": (
        "Morcos et al.'s ResNet-50: ImageNet and Places365, 90 epochs with drops at 50, 65 "
        "and 80, batch 512, k of one epoch, 30 levels, 6 replicas in one data order. For "
        "accelerators (not run).",
        {
            **IMAGENET, "initializer": "glorot_normal",
            "datasets": ("imagenet", "places365"), "batch_size": 512,
            "learning_rate": 0.1, "warmup": "0it", "drops": ("50ep", "65ep", "80ep"),
            "rewind_step": "1ep", "levels": tuple(range(2, 31, 4)), "replicas": 6,
            "every": 2503, "shared_order": True,
        },
    ),
}
