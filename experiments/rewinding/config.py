"""What the studies of rewinding are determined by, and their presets."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from experiments import recipes
from experiments.launch import Preset
from experiments.recipes import PathRecipe

Study = Literal["stability", "retraining", "batch_size"]
Arm = Literal["ticket", "reinit", "random_mask"]


@dataclasses.dataclass(frozen=True)
class Config(PathRecipe):
    """Everything that a study is determined by, and where and how it runs."""

    study: Study = "stability"
    """stability: error and LII of subnetworks against the rewind step. retraining: weight
    and learning-rate rewinding, fine-tuning and reinit against the retraining time.
    batch_size: LII and the ticket-reinit gap at k = 0 against the batch size."""
    rewind_steps: tuple[str, ...] = ("0it", "30it", "100it", "300it", "1000it")
    """For stability: the steps k that levels start from."""
    retrain_times: tuple[str, ...] = ()
    """For retraining: how long levels train, t <= steps; the last step stays the same."""
    batch_sizes: tuple[int, ...] = ()
    """For batch_size: instead of `batch_size`, at equal epochs."""
    levels: tuple[int, ...] = (0, 4, 7, 10)
    """Levels of pruning at which subnetworks are studied; 0 is the dense network."""
    fraction: float = 0.2
    """Share of the surviving weights removed at each level."""
    scope: Literal["global", "layerwise"] = "global"
    """Whether weights are ranked over all layers or within each."""
    arms: tuple[Arm, ...] = ("ticket", "reinit", "random_mask")
    """For stability: the ticket and its controls."""
    branches: int = 3
    """Continuations of each subnetwork under different noise; every two make a pair."""
    successive: bool = True
    """For stability: barriers between successive levels, at all of them."""
    batch_norm: Literal["recompute", "interpolate"] | None = None
    """How BatchNorm statistics are treated on a path; needed where there are any."""
    threshold: float = 0.02
    """Below this LII a subnetwork is called stable."""
    tolerance: float = 0.002
    """How far above the dense error a matching subnetwork may be."""


NOT_IDENTITY = ("threshold", "tolerance", *recipes.NOT_IDENTITY)
"""Fields that change no number of a replica."""

_MNIST1D = Config(
    validation=0, optimizer="sgd", learning_rate=0.1, steps="3000it", replicas=5
)
_LENET = Config(
    data="fashion_mnist",
    validation=0,
    model="lenet-300-100",
    batch_size=60,
    learning_rate=1.2e-3,
    steps="3000it",
    levels=(0, 8),
    successive=False,
    alphas=15,
    path_train=5000,
    replicas=3,
)
_RESNET8 = Config(
    data="cifar10",
    validation=0,
    augment=("flip", "crop"),
    model="resnet-8-8",
    batch_size=64,
    optimizer="sgd",
    learning_rate=0.1,
    weight_decay=1e-4,
    schedule="step",
    drops=("800it", "1200it"),
    steps="1600it",
    rewind_steps=("0it", "160it", "480it"),
    levels=(0, 2),
    fraction=0.5,
    successive=False,
    batch_norm="recompute",
    alphas=11,
    path_train=2000,
    path_test=3000,
    replicas=3,
    every=100,
)
_PAPER = dataclasses.replace(
    _RESNET8,
    model="resnet-20",
    batch_size=128,
    drops=("32000it", "48000it"),
    steps="63000it",
    rewind_steps=("0it", "100it", "250it", "500it", "1000it", "2000it", "8000it"),
    # 16.8%, the density of the paper.
    levels=(0, 8),
    fraction=0.2,
    alphas=30,
    path_train=10_000,
    path_test=None,
)

PRESETS: Mapping[str, Preset] = {
    "mnist1d": Preset(
        _MNIST1D,
        "MLP on MNIST-1D: ticket, reinit and random mask at three densities and five k, "
        "5 replicas x 3 branches, and barriers between levels; no download. Some minutes "
        "on 2 cores.",
    ),
    "mnist1d-retraining": Preset(
        dataclasses.replace(
            _MNIST1D,
            study="retraining",
            schedule="step",
            drops=("1500it", "2250it"),
            retrain_times=("300it", "1000it", "2000it", "2700it", "3000it"),
            levels=(0, 2, 4, 6, 8, 10),
        ),
        "The same network with a stepped learning rate: four ways to retrain, five "
        "retraining times. Some minutes.",
    ),
    "mnist1d-batch-size": Preset(
        dataclasses.replace(
            _MNIST1D,
            study="batch_size",
            batch_sizes=(25, 100, 400, 1000),
            steps="75ep",
            levels=(0, 4, 7),
            every=10_000,
        ),
        "The same network at k = 0 with batches of 25 to 1,000 at equal epochs. Some "
        "minutes.",
    ),
    "lenet-fashion": Preset(
        _LENET,
        "LeNet-300-100 on Fashion-MNIST at 16.8%, five k, 3 replicas. A quarter of an "
        "hour on 2 cores.",
    ),
    "lenet-fashion-sparse": Preset(
        # Where the paper studies LeNet, at 3.5%, in larger steps.
        dataclasses.replace(
            _LENET,
            fraction=0.36,
            levels=(0, 7),
            alphas=11,
            path_train=2000,
            path_test=5000,
        ),
        "The same at 4.4%, 36% per level. Ten minutes on 2 cores.",
    ),
    "resnet8-cifar10": Preset(
        _RESNET8,
        "A narrow ResNet-8 on CIFAR-10 at 25%, three k. Hours on 2 cores.",
    ),
    "resnet20-cifar10-paper": Preset(
        _PAPER,
        "Frankle et al.'s ResNet-20 at 16.8%, seven k. GPU; interrupt and repeat at will.",
    ),
    "vgg16-cifar10-paper": Preset(
        # 1.5%, the density of the paper.
        dataclasses.replace(_PAPER, model="vgg-16", levels=(0, 19)),
        "Frankle et al.'s VGG-16 at 1.4%, seven k. GPU; interrupt and repeat at will.",
    ),
}
