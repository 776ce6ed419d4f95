"""Networks and recipes that several experiments have in common."""

from experiments.presets.preset import Fields

# Tables, several fields to a line.
# fmt: off

LENET: Fields = dict(
    data="fashion_mnist", model="lenet-300-100", batch_size=60, learning_rate=1.2e-3,
    steps="3000it",
)
CIFAR: Fields = dict(
    data="cifar10", augment=("flip", "crop"), optimizer="sgd", learning_rate=0.1,
    weight_decay=1e-4, schedule="step",
)
# On paths nothing is chosen by validation, so nothing is held out.
MLP_PATHS: Fields = dict(
    validation=0, optimizer="sgd", learning_rate=0.1, steps="3000it"
)
MLP_ENDS: Fields = dict(validation=0, learning_rate=1e-3, steps="3000it")
RESNET8_PATHS: Fields = dict(
    **CIFAR, validation=0, model="resnet-8-8", batch_size=64, drops=("800it", "1200it"),
    steps="1600it", alphas=11, path_train=2000, path_test=3000, every=100,
)
PAPER_PATHS: Fields = dict(
    **CIFAR, validation=0, model="resnet-20", batch_size=128,
    drops=("32000it", "48000it"), steps="63000it", path_train=10_000,
)
OPEN_LTH: Fields = dict(
    validation=0, initializer="kaiming_normal", bias="torch", norm_scale="uniform",
    unbiased_variance=True, batch_size=128, optimizer="sgd", learning_rate=0.1,
    rule="open_lth", arms=("ticket", "reinit_raw", "random_mask"), levels=20, replicas=3,
    validate_every=391,
)
OPEN_LTH_CIFAR: Fields = {
    **OPEN_LTH, **CIFAR, "normalization": "imagenet", "drops": ("80ep", "120ep"),
    "steps": "160ep",
}
RESNET20: Fields = dict(
    **CIFAR, model="resnet-20", batch_size=128, drops=("10000it", "12500it"),
    steps="15000it", levels=12, replicas=3, validate_every=500,
)
# Of Frankle et al. 2020; 1,252 steps are an epoch of all examples.
IMAGENET: Fields = dict(
    data="imagenet", crop=224, augment=("resized_crop", "flip"),
    model="imagenet-resnet-50", batch_size=1024, optimizer="sgd", learning_rate=0.4,
    weight_decay=1e-4, schedule="step", drops=("30ep", "60ep", "80ep"), warmup="5ep",
    steps="90ep", validation=0, replicas=3,
)
# open_lth's imagenet_resnet_50 has its laws, too.
OPEN_LTH_IMAGENET: Fields = dict(
    **IMAGENET, initializer="kaiming_normal", bias="torch", norm_scale="uniform",
    unbiased_variance=True,
)
# A third of the steps, with all that happens at one of them.
RESNET20_SHORT: Fields = {
    **RESNET20, "drops": ("3333it", "4167it"), "steps": "5000it", "validate_every": 250,
}
