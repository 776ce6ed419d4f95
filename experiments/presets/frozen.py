"""Networks whose weights are never trained."""

from experiments.presets.preset import Fields, Table
from experiments.presets.shared import (
    LENET,
)

# Tables, several fields to a line.
# fmt: off

# Scores have an optimizer of their own. Zhou et al. train masks by SGD at rate 100 for 2,000
# epochs; Adam with a falling rate needs minutes.
_MASKS: Fields = dict(
    score_optimizer="adam", score_learning_rate=0.2, score_batch_size=100,
    initializer="glorot_normal",
)

SUPERMASK: Table = {
    "mnist1d": (
        "A mask alone lifts an untrained MLP on MNIST-1D far above chance, and a trained "
        "mask comes close to trained weights. MLP 40-100-100-10, 3 replicas, weights and "
        "masks trained for 3,000 steps; no download. About a minute on 2 cores.",
        dict(**_MASKS, schedule="cosine", steps="3000it", score_steps="3000it"),
    ),
    "lenet-fashion": (
        "A mask alone lifts an untrained LeNet-300-100 on Fashion-MNIST far above chance, "
        "and a trained mask comes close to trained weights. 3 replicas, weights and masks "
        "trained on as many examples, 12 epochs. Some minutes on 2 cores.",
        {
            **LENET, **_MASKS, "schedule": "cosine", "steps": "10000it",
            "score_steps": "6000it", "every": 1000,
        },
    ),
}

# Ramanujan et al. train scores by SGD: rate 0.1, momentum 0.9, weight decay 1e-4, batch 128.
_SCORES: Fields = dict(score_weight_decay=1e-4)

EDGE_POPUP: Table = {
    "mnist1d": (
        "Random MLPs hold subnetworks that match trained weights on MNIST-1D: best at a "
        "medium density, better when wider. Three widths, five densities, three laws, 3 "
        "replicas; no download. About a minute on 2 cores.",
        dict(
            **_SCORES, score_steps="1500it",
            widths=("mlp-25-25", "mlp-50-50", "mlp-100-100"),
        ),
    ),
    "lenet-fashion": (
        "Random LeNets hold subnetworks that match trained weights on Fashion-MNIST: best at "
        "a medium density, better when wider. Three widths, five densities, four laws, 3 "
        "replicas; weights and scores are trained on as many examples. Some minutes on 2 "
        "cores.",
        dict(
            **{**LENET, "steps": "6400it"}, **_SCORES, schedule="cosine",
            score_steps="3000it",
            widths=("lenet-75-25", "lenet-150-50", "lenet-300-100"),
            laws=(
                "kaiming_normal", "scaled_kaiming_normal", "signed_kaiming_constant",
                "scaled_signed_kaiming_constant",
            ),
        ),
    ),
    "conv2-cifar10": (
        "A random Conv-2 holds subnetworks that match trained weights on CIFAR-10, best at a "
        "medium density. 8 channels, five densities, two laws, 3 replicas. Some minutes on 2 "
        "cores.",
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
    "imagenet-edge-popup": (
        "Ramanujan et al.'s ResNet-50 on ImageNet, 30% of each layer kept, 100 epochs of "
        "batches of 256, beside trained weights; published 61.7% with normal weights, 68.6% "
        "with constants. One replica. For accelerators (not run).",
        # 4,966 steps are an epoch of what is not held out.
        dict(
            data="imagenet", crop=224, augment=("resized_crop", "flip"),
            model="imagenet-resnet-50", validation=10_000, label_smoothing=0.1,
            batch_size=256, optimizer="sgd", learning_rate=0.256, momentum=0.875,
            weight_decay=3.05e-5, schedule="cosine", warmup="5ep", steps="100ep",
            score_batch_size=256, score_learning_rate=0.256, score_momentum=0.875,
            score_weight_decay=3.05e-5, score_warmup="5ep", score_steps="100ep",
            densities=(0.3,), width_density=0.3, laws=(
                "kaiming_normal", "signed_kaiming_constant",
            ),
            every=4966, replicas=1, shared_order=True,
        ),
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
        "A random network holds, untrained, a twin of a trained 784-100-10 on Fashion-MNIST, "
        "and its error falls with width as proved. Three constructions, 3,000 steps, 42 "
        "neurons of each input: 371 random weights for each of the 79,400. Some minutes.",
        dict(**{**LENET, "model": "lenet-100"}, validation=0, neurons=42),
    ),
}
