"""Run folders keep their names: the identity of every preset, as it has always been."""

import pytest

from experiments import imp, instability
from experiments.rewinding import config as rewinding
from lottery_jax import records

HASHES = {
    "imp": {
        "mnist1d": "31d4e1d2",
        "digits": "5406d3da",
        "lenet-fashion": "7c3eddf4",
        "lenet-mnist-paper": "d345308d",
        "open-lth-lenet": "7f9e9145",
        "open-lth-resnet20": "dae2c4d0",
        "open-lth-vgg16": "a6160288",
        "resnet20-cifar10-standard": "ea59d6d7",
        "resnet20-cifar10-low": "73c71b92",
        "resnet20-cifar10-warmup": "5495df37",
        "resnet20-cifar10-rewind": "2558d9dd",
        "resnet20-cifar10-batch1024": "a60b4d1a",
        "resnet8-cifar10": "37ce1222",
        "oneshot-vs-iterative": "de03750e",
        "conv2-cifar10": "0f182555",
    },
    "instability": {
        "mnist1d": "c9be1943",
        "lenet-fashion": "e4a97a97",
        "resnet8-cifar10": "ebb75153",
        "lenet-mnist-paper": "4e4fc51d",
        "resnet20-cifar10-paper": "85180774",
        "vgg16-cifar10-paper": "ed64a068",
    },
    "rewinding": {
        "mnist1d": "a94f56ff",
        "mnist1d-retraining": "0925efbe",
        "mnist1d-batch-size": "e6c4f224",
        "lenet-fashion": "8a1088dc",
        "lenet-fashion-sparse": "6466893e",
        "resnet8-cifar10": "a34f5c16",
        "resnet20-cifar10-paper": "71bb5896",
        "vgg16-cifar10-paper": "e10b1e36",
    },
}

EXPERIMENTS = {"imp": imp, "instability": instability, "rewinding": rewinding}


@pytest.mark.parametrize("name", HASHES)
def test_presets_keep_their_folders(name):
    experiment = EXPERIMENTS[name]
    found = {
        preset: records.identity(records.as_config(p.config), experiment.NOT_IDENTITY)
        for preset, p in experiment.PRESETS.items()
    }
    assert found == HASHES[name]
