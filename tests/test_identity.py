"""Run folders keep their names: the identity of every preset, as it has always been."""

import contextlib
import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import identity, imp, recipes
from experiments.all import EXPERIMENTS
from lottery_jax import keys, records

xr = pytest.importorskip("xarray")

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
        "resnet20-cifar10-warmup-short": "6271dd2f",
        "resnet20-cifar10-rewind-short": "7bedb346",
        "resnet20-cifar10-batch1024": "a60b4d1a",
        "resnet8-cifar10": "37ce1222",
        "oneshot-vs-iterative": "de03750e",
        "conv2-cifar10": "0f182555",
        "imagenet-resnet50": "7d93f4eb",
        "imagenet-resnet50-iterative": "ae503d55",
        "imagenet-resnet50-init": "ff8e4440",
        "tiny-imagenet-resnet18": "63c21716",
    },
    "instability": {
        "mnist1d": "c9be1943",
        "lenet-fashion": "e4a97a97",
        "resnet8-cifar10": "ebb75153",
        "lenet-mnist-paper": "4e4fc51d",
        "resnet20-cifar10-paper": "85180774",
        "resnet20-cifar10-short": "b822aa89",
        "vgg16-cifar10-paper": "ed64a068",
        "imagenet-resnet50": "ff69807c",
        "bert-tiny-sst2": "1b38c22e",
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
    "strong_lth": {"digits": "af49f475", "fashion": "b4193084"},
    "deconstruct": {
        "mnist1d": "abbcedd7",
        "lenet-fashion": "89bedf2f",
        "lenet-mnist-paper": "6fc32d0c",
    },
    "at_init": {
        "mnist1d": "1ffa1fe3",
        "lenet-fashion": "475ea5c7",
        "conv2-fashion": "50883a88",
        "resnet20-cifar10": "4171dadb",
    },
    "supermask": {"mnist1d": "0c1d7823", "lenet-fashion": "54696d1a"},
    "edge_popup": {
        "mnist1d": "55cc6d55",
        "lenet-fashion": "1e02a5c5",
        "conv2-cifar10": "92058df3",
        "conv4-cifar10-paper": "091aa25d",
        "conv6-cifar10-paper": "e3701b49",
        "imagenet-edge-popup": "0efcd95d",
    },
    "transfer": {
        "digits": "52fe59f6",
        "lenet": "ca86e9a7",
        "conv2": "c9deb2d2",
        "optimizers": "247ffa84",
        "halves": "4d00e53a",
        "few": "817c476b",
        "size": "c9830ef4",
        "structure": "3dacc792",
        "digits-optimizers": "8426d088",
        "resnet20-cifar-paper": "7fceb07a",
        "resnet50-imagenet-paper": "ab6ba9c2",
    },
    "ma": {
        "mnist1d": "8f139e69",
        "lenet-fashion": "0cdc296b",
        "resnet20-cifar10-paper": "70b05891",
    },
    "early_bird": {
        "mnist1d": "3d530a78",
        "lenet-fashion": "bd2de944",
        "resnet8-cifar10": "108f87c2",
        "resnet20-cifar10-paper": "f4361bf6",
    },
    "liu": {
        "mnist1d": "a054d490",
        "resnet8-cifar10": "ab475556",
        "resnet20-cifar10": "a1b5be9c",
        "imagenet-resnet50": "942ef835",
    },
    "gale": {
        "mnist1d": "7f1a2b70",
        "lenet-fashion": "638dde4a",
        "conv2-cifar10": "a1e39ba8",
        "resnet20-cifar10": "530a96f7",
        "imagenet-resnet50": "34199619",
    },
    "language": {
        "shakespeare-lstm": "00123915",
        "shakespeare-transformer": "240595e9",
        "wikitext2-lstm": "39d43730",
        "wikitext2-lstm-paper": "1ff3b577",
    },
    "reinforcement": {
        "cartpole": "8c72fa12",
        "acrobot": "fdb3481e",
        "cartpole-paper": "39ed5cfc",
    },
    "bert_tickets": {
        "bert-tiny": "46a8f270",
        "minilm": "c1a621b6",
        "bert-base-paper": "f607f392",
    },
    "pretraining": {
        "resnet8-cifar10": "336c35f1",
        "resnet20-cifar10": "28ae33a2",
        "resnet18-cifar10": "eb4d7de8",
    },
    "adversarial": {
        "lenet-fashion": "38002cb3",
        "collapse-mnist": "dfdd0f7f",
        "boosting-fashion": "df0bd61b",
        "resnet20-cifar10": "c2bc9e23",
        "vgg16-cifar10-paper": "fe35dcf8",
        "vgg16-cifar10-boosting": "863bfd53",
    },
}

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}


@pytest.mark.parametrize("name", BY_NAME)
def test_presets_keep_their_folders(name):
    found = {
        preset: identity.digits(p.config) for preset, p in BY_NAME[name].presets.items()
    }
    assert found == HASHES[name]


FREE = {
    "imp": {"levels", "target_density", "tolerance", "replicas"},
    "instability": {"threshold", "replicas"},
    "rewinding": {"threshold", "tolerance", "replicas"},
    "alignment": set(),
    "curves": set(),
    "strong_lth": {"replicas"},
    "deconstruct": {"replicas"},
    "at_init": {"tolerance", "replicas"},
    "supermask": {"tolerance", "replicas"},
    "edge_popup": {"tolerance", "replicas"},
    "transfer": {"tolerance", "replicas"},
    "ma": {"max_density", "margin", "tolerance", "best_tolerance", "replicas"},
    "early_bird": {"tolerance", "replicas"},
    "liu": {"tolerance", "replicas"},
    "gale": {"tolerance", "replicas"},
    "language": {"levels", "target_density", "tolerance", "replicas"},
    "reinforcement": {"levels", "target_density", "tolerance", "threshold", "replicas"},
    "bert_tickets": {"tolerance"},
    "pretraining": {"tolerance", "replicas"},
    "adversarial": {"tolerance", "replicas"},
}
"""What changes no number of a replica, beside where and how it runs."""

OTHERWISE = {
    "out": "elsewhere",
    "devices": 1,
    "chunk": 1,
    "convolution": "tiles",
    "data_parallel": 2,
    "checkpoint_seconds": 0.0,
    "minutes": 60.0,
    "group_size": 9,
    "log": ("tensorboard",),
    "precision": "bfloat16",
    "activations": "bfloat16",
    "target_density": 0.5,
    "levels": 1,
    "study": "retraining",
}
"""Other values, where not any will do."""


def otherwise(cfg, field):
    """A configuration with another value of a field, of the same kind."""
    now = getattr(cfg, field)
    if field in OTHERWISE:
        value = OTHERWISE[field]
        if field == "levels" and isinstance(now, tuple):
            value = (0, 1)
    elif isinstance(now, bool):
        value = not now
    elif isinstance(now, int | float):
        value = now + 1
    elif isinstance(now, tuple):
        value = (*now, "another")
    else:
        value = 1 if now is None else f"{now}x"
    assert value != now, field
    return dataclasses.replace(cfg, **{field: value})


def free(name):
    return FREE[name] | {field.name for field in dataclasses.fields(identity.Where)}


SHARED = {
    f.name
    for kind in (recipes.Recipe, identity.Where)
    for f in dataclasses.fields(kind)
}
FIELDS = [
    # What all experiments share is tried with one of them, and with the others slowly.
    pytest.param(
        name,
        field.name,
        marks=[pytest.mark.slow] * (field.name in SHARED and name != "imp"),
    )
    for name, experiment in BY_NAME.items()
    for field in dataclasses.fields(experiment.config)
]


class Empty:
    """An experiment that makes results of the right size out of nothing."""

    def __init__(self, name, stops=False):
        self.experiment = dataclasses.replace(
            BY_NAME[name],
            prepare=lambda cfg: {},
            one=self.one,
            select=None,
            complete=None,
        )
        self.calls, self.stops = 0, stops

    def one(self, setup, ids, where):
        self.calls += 1
        if self.stops:
            raise InterruptedError
        return xr.Dataset({"x": (("replica",), np.zeros(len(ids)))}, {"replica": ids})

    def run(self, cfg, folder):
        return self.experiment.run(cfg, folder)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder of the default preset of each experiment, finished or interrupted."""

    @functools.cache
    def of(name, finished):
        folder = tmp_path_factory.mktemp(name) / "run"
        with contextlib.suppress(InterruptedError):
            Empty(name, stops=not finished).run(default(name), folder)
        assert (folder / "results.nc").exists() == finished
        return folder

    return of


def default(name):
    return BY_NAME[name].presets[BY_NAME[name].default].config


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_field_keeps_its_folder_or_is_refused_there_by_name(
    name, field, finished, there, tmp_path
):
    cfg, other = default(name), otherwise(default(name), field)
    same = field in free(name)
    assert (identity.digits(other) == identity.digits(cfg)) == same
    folder = shutil.copytree(there(name, finished), tmp_path / "run")
    empty = Empty(name)
    if same:
        assert empty.run(other, folder).sizes["replica"] >= cfg.replicas
        assert empty.calls == (not finished or field == "replicas")
        return
    message = f"holds a run with another .*\n  {field}: "
    # What no run of the experiment may have is refused before a folder is looked at.
    if field == "pretrained" and not BY_NAME[name].starts:
        message += "|pretrained='.*'; it must be empty"
    if field == "task" and BY_NAME[name].error_alone:
        message += "|task='.*'; it must be one of"
    with pytest.raises(ValueError, match=message):
        empty.run(other, folder)
    assert empty.calls == 0


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


def test_what_each_call_has_of_its_own_is_not_stored():
    @dataclasses.dataclass(frozen=True)
    class Called(Old):
        seconds: float = dataclasses.field(default=1, metadata=identity.NEVER_STORED)

    assert identity.as_config(Called(seconds=2)) == identity.as_config(Old())
    assert identity.free(Called) == ("replicas", "seconds")


def test_a_configuration_comes_back_from_its_folder(tmp_path):
    for cfg in (New(), New(task="another")):
        assert identity.from_stored(New, identity.as_config(cfg)) == cfg
    with pytest.raises(ValueError, match="does not know: \\['colour'\\]"):
        identity.from_stored(Old, {"colour": 1})


# --- behind a configuration -----------------------------------------------------------

TINY = (
    "mnist1d --model mlp-4 --subset 200 --steps 2it --validate-every 2 --replicas 1 "
    "--arms ticket"
)


def decayed(task):
    def loss(params, *rest):
        value, aux = task.loss(params, *rest)
        return value + 1e-4 * sum(jnp.sum(x**2) for x in jax.tree.leaves(params)), aux

    return task._replace(loss=loss)


def relabelled(task):
    data = jax.tree.map(np.copy, task.data)
    data["test"]["label"][0] ^= 1
    return task._replace(data=data)


CHANGES = {
    "task.loss": ("make_task", lambda cfg: decayed(recipes.make_task(cfg))),
    "data": ("make_task", lambda cfg: relabelled(recipes.make_task(cfg))),
    "optimizer": ("make_optimizer", lambda cfg, steps, **_: optax.sgd(0.1)),
}
"""What a name in a configuration may come to mean."""


@pytest.mark.slow
def test_a_run_is_not_that_of_what_has_only_the_same_names(
    tmp_path, monkeypatch, capsys
):
    out = ["--out", str(tmp_path / "run")]
    whole = [*TINY.split(), "--levels", "0", *out]
    assert imp.main(whole) == 0
    more = [*TINY.split(), "--levels", "1", "--replicas", "2", *out]
    for field, (name, changed) in CHANGES.items():
        for arguments in (whole, more):
            with monkeypatch.context() as patch:
                patch.setattr(imp, name, changed)
                assert imp.main(arguments) == 2
            message = capsys.readouterr().err
            assert f"{tmp_path / 'run'} holds another run: another {field};" in message
    with monkeypatch.context() as patch:
        patch.setattr(keys, "DRAWS", 1)
        assert imp.main(whole) == 2
    message = capsys.readouterr().err
    assert "holds another run: keys.DRAWS=2, not 1 (equal seeds drew" in message
    assert imp.main(whole) == 0
    assert imp.main(more) == 0
    (tmp_path / "run/identity.json").unlink()
    assert imp.main([*more, "--replicas", "3"]) == 2
    assert "holds another run: kind=missing, not run;" in capsys.readouterr().err
