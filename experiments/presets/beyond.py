"""Pre-training without labels, attacks and rewards."""

from experiments.presets.preset import Fields, Table

# Tables, several fields to a line.
# fmt: off

PRETRAINING: Table = {
    "resnet8-cifar10": (
        "Tickets found in the pre-training of a ResNet-8 on CIFAR-10, by SimCLR or by "
        "labels, match the dense network downstream. Width 8, images of five classes, 1,500 "
        "steps; CIFAR-10 and Fashion-MNIST of 5,000 labels, four densities down to 4%, 3 "
        "replicas. About an hour on 2 cores.",
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
        "Tickets of a policy of CartPole match it where fresh weights and random masks fall "
        "behind. The demo: 3 layers of 128 on CartPole-v0, RMSprop 1e-3, 2,500 steps of 32 "
        "games x 4, rewound to 125, 7 levels of 45% to 1.5% of all weights, 5 replicas. "
        "Minutes on 2 cores.",
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
        "However cheaply they are found, tickets of LeNet-300-100 on Fashion-MNIST match the "
        "dense network under attack, and sooner. Radius 0.1: three finders (Adam 5e-4, 800 "
        "steps), 20 and 5% of the weights, PGD-7 at up to 3e-3 for 100, 200 and 400 steps, 3 "
        "replicas. Some minutes on 2 cores.",
        dict(
            data="fashion_mnist", model="lenet-300-100", batch_size=128,
            learning_rate=5e-4, steps="800it", examples=500,
        ),
    ),
    "collapse-mnist": (
        "Pruning makes a network too small for its attack collapse to one answer: a Conv-2 "
        "of 4 channels on MNIST. Radius 0.3, 20 and 5% of the weights, 400 steps, 3 "
        "replicas. Some minutes on 2 cores.",
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
