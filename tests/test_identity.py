"""Run folders keep their names: the identity of every preset, as it has always been."""

import dataclasses

import pytest

from experiments import identity
from experiments.all import EXPERIMENTS
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
    "alignment": {"mnist1d": "71315261", "resnet8-cifar10": "9bfbdd72"},
    "curves": {"mnist1d": "029e7055", "lenet-fashion": "ef5a06bf"},
}

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}


@pytest.mark.parametrize("name", BY_NAME)
def test_presets_keep_their_folders(name):
    found = {
        preset: identity.digits(p.config) for preset, p in BY_NAME[name].presets.items()
    }
    assert found == HASHES[name]


@pytest.mark.parametrize("name", BY_NAME)
def test_no_field_of_where_is_part_of_the_identity(name):
    experiment = BY_NAME[name]
    cfg = experiment.presets[experiment.default].config
    for field in dataclasses.fields(identity.Where):
        other = dataclasses.replace(cfg, **{field.name: "another value"})
        assert identity.digits(other) == identity.digits(cfg), field.name


FREE = {
    "imp": {"levels", "target_density", "tolerance", "replicas"},
    "instability": {"threshold", "replicas"},
    "rewinding": {"threshold", "tolerance", "replicas"},
    "alignment": set(),
    "curves": set(),
}
"""What else changes no number of a replica."""


@pytest.mark.parametrize("name", BY_NAME)
def test_every_other_field_is(name):
    experiment = BY_NAME[name]
    cfg = experiment.presets[experiment.default].config
    free = FREE[name] | {field.name for field in dataclasses.fields(identity.Where)}
    for field in dataclasses.fields(cfg):
        other = dataclasses.replace(cfg, **{field.name: "another value"})
        same = identity.digits(other) == identity.digits(cfg)
        assert same == (field.name in free), field.name


@dataclasses.dataclass(frozen=True)
class Old:
    steps: int = 3
    replicas: int = dataclasses.field(default=5, metadata=identity.FREE)


@dataclasses.dataclass(frozen=True)
class New(Old):
    task: str = dataclasses.field(default="one", metadata=identity.UNLESS_DEFAULT)


def test_a_later_field_renames_no_folder_at_its_default(tmp_path):
    assert identity.digits(New()) == identity.digits(Old())
    assert identity.digits(New(task="another")) != identity.digits(Old())
    records.claim_folder(tmp_path / "run", identity.as_config(Old()), ())
    records.claim_folder(tmp_path / "run", identity.as_config(New()), ())  # goes on
    with pytest.raises(ValueError, match="task: None there, 'another' now"):
        other = identity.as_config(New(task="another"))
        records.claim_folder(tmp_path / "run", other, ())


def test_a_configuration_comes_back_from_its_folder(tmp_path):
    for cfg in (New(), New(task="another")):
        assert identity.from_stored(New, identity.as_config(cfg)) == cfg
    with pytest.raises(ValueError, match="does not know: \\['colour'\\]"):
        identity.from_stored(Old, {"colour": 1})
