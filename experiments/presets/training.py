"""Pruning during training, and where tickets fail."""

from experiments.presets.preset import Table
from experiments.presets.shared import (
    CIFAR,
    IMAGENET,
    LENET,
    RESNET20,
)

# Tables, several fields to a line.
# fmt: off

EARLY_BIRD: Table = {
    "mnist1d": (
        "A mask that is drawn early in the training of an MLP on MNIST-1D is as good as one "
        "of its end. The demo: MLP 40-100-100-10, a mask at each of 40 epochs, three "
        "densities, 5 replicas; no download. Two minutes on 2 cores.",
        dict(steps="40ep", replicas=5),
    ),
    "lenet-fashion": (
        "A mask that is drawn early in the training of LeNet-300-100 on Fashion-MNIST is as "
        "good as one of its end. Adam 1.2e-3, 1,500 steps, a mask every 75, two densities, 3 "
        "replicas. Some minutes on 2 cores.",
        {
            **LENET, "steps": "1500it", "mask_every": "75it",
            "draws": ("75it", "300it"), "densities": (0.3, 0.1),
        },
    ),
    "resnet8-cifar10": (
        "A narrow ResNet-8 with BatchNorm on CIFAR-10, 400 steps, a mask every 20: half "
        "of the weights and, as in the paper, half of the channels. A quarter of an hour "
        "on 2 cores.",
        {
            **CIFAR, "validation": 0, "model": "resnet-8-8", "batch_size": 64,
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
            **CIFAR, "model": "resnet-20", "batch_size": 256, "drops": ("80ep", "120ep"),
            "steps": "160ep", "draws": ("1ep", "5ep", "10ep", "20ep", "40ep", "80ep"),
            "criteria": ("magnitude", "channels"), "densities": (0.7, 0.5, 0.3),
            "scale_l1": 1e-4, "validate_every": 196,
        },
    ),
}

LIU: Table = {
    "mnist1d": (
        "At a high learning rate tickets of an MLP on MNIST-1D lose their lead over fresh "
        "weights; warm-up, rewinding or larger batches bring it back. The demo: MLP "
        "40-100-100-10, SGD at 0.02 and 0.2, three cures, two densities, 5 replicas; no "
        "download. About a minute on 2 cores.",
        dict(validation=0, optimizer="sgd", steps="1500it", replicas=5),
    ),
    "resnet8-cifar10": (
        "At a high learning rate tickets of a narrow ResNet-8 on CIFAR-10 lose their lead "
        "over fresh weights; warm-up, rewinding or larger batches bring it back. BatchNorm, "
        "SGD at 0.01 and 0.1, 1,000 steps of 32, 40% and 16% of the weights, 3 replicas; 333 "
        "steps of warm-up, k = 100, or batch 128. Three quarters of an hour on 2 cores.",
        {
            **CIFAR, "validation": 0, "model": "resnet-8-8", "batch_size": 32,
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
            **RESNET20, "validation": 0, "sweep_learning_rate": (0.01, 0.03, 0.1),
            "sweep_warmup": ("0it", "10000it"), "rewind_steps": ("500it",),
            "batch_sizes": (1024,), "fraction": 0.36, "levels": 5,
        },
    ),
    "imagenet-resnet50": (
        "Where Liu et al. found no ticket: ResNet-50 on ImageNet at 0.04 and 0.4, one level "
        "of 70%; 5 epochs of warm-up, or k of 5 epochs. For accelerators (not run).",
        {
            **IMAGENET, "warmup": "0it", "sweep_learning_rate": (0.04, 0.4),
            "sweep_warmup": ("0it", "5ep"), "rewind_steps": ("5ep",), "batch_sizes": (),
            "fraction": 0.7, "levels": 1, "validate_every": 1252, "shared_order": True,
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
        "Trained from scratch, the masks that gradual pruning finds in LeNet-300-100 on "
        "Fashion-MNIST are worse than the pruned network, tickets or not. Adam 1.2e-3 "
        "falling as a cosine, 1,680 steps, three densities from 25 to 1.6%, 3 replicas. Ten "
        "minutes on 2 cores.",
        # Levels of half the weights: 3, 5 and 7 trainings share the steps without a rest.
        {
            **LENET, "schedule": "cosine", "steps": "1680it", "validate_every": 840,
            "levels": (2, 4, 6), "update_begin": "150it", "update_end": "1250it",
            "update_every": 50, "sweep_learning_rate": (6e-4, 1.2e-3, 2.4e-3, 4.8e-3),
        },
    ),
    "conv2-cifar10": (
        "Trained from scratch, the masks that gradual pruning finds in a narrow Conv-2 on "
        "CIFAR-10 are worse than the pruned network, tickets or not. 8 channels, 630 steps "
        "of 32, three densities from 25 to 1.6%, 3 replicas. A quarter of an hour on 2 "
        "cores.",
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
            **RESNET20, "steps": "14700it", "drops": ("9800it", "12250it"),
            "levels": (2, 4, 6), "update_begin": "1000it", "update_end": "11000it",
            "update_every": 100, "sweep_learning_rate": (0.03, 0.1, 0.3),
        },
    ),
    "imagenet-resnet50": (
        "Gale et al.'s ResNet-50 on ImageNet, 90 epochs; 25, 12.5 and 6.25% of the weights, "
        "3 replicas in one data order. For accelerators (not run).",
        # 1,242 steps are an epoch of what is not held out; masks change every 500.
        {
            **IMAGENET, "validation": 10_000, "levels": (2, 3, 4), "update_begin": "5ep",
            "update_end": "84000it", "update_every": 500,
            "sweep_learning_rate": (0.2, 0.4, 0.8), "validate_every": 1242,
            "shared_order": True,
        },
    ),
}
